"""What to do about failures that a command's output names, but does not explain to whoever runs it in a container."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Final, NamedTuple

from pytest_stagebuild.stage import Stage


class _Known(NamedTuple):
    pattern: str
    hint: str


_NO_COMPILER: Final = re.compile(
    r"(?:command|unable to execute|linker) ['`]?\S*\b(?:gcc|g\+\+|cc|c\+\+|clang)['`]?"
    r".*(?:failed: No such file|: No such file|not found)|extension could not be compiled|Unknown compiler\(s\)"
    r"|CMAKE_C(?:XX)?_COMPILER not set"
)
_KNOWN: Final = (
    _Known(
        r"requires a different Python: \S+ not in|requires-python.*incompatible|is not allowed by the project",
        "The Python of the image is not one that the project admits: choose another with "
        "--stagebuild-image=python:3.X-slim.",
    ),
    _Known(
        r"CERTIFICATE_VERIFY_FAILED|invalid peer certificate|SELF_SIGNED_CERT|self[- ]signed certificate"
        r"|unable to get local issuer certificate",
        "The container does not know whoever signed that server's certificate: name the CA bundle of this machine in "
        "SSL_CERT_FILE, PIP_CERT or REQUESTS_CA_BUNDLE, whose content is passed on.",
    ),
    _Known(
        r"Temporary failure in name resolution|Name or service not known|Could not resolve host|dns error|EAI_AGAIN"
        r"|Network is unreachable|ENOTFOUND|Temporary failure resolving",
        "The container did not reach the network. Settings of this machine are passed on: set https_proxy, or "
        "PIP_INDEX_URL for a mirror of the package index. A stage with `network = false` has none.",
    ),
    _Known(
        r"error: externally-managed-environment",
        "pip refuses to install into this image's own Python: take a python:3.X image, or give "
        "--stagebuild-env=PIP_BREAK_SYSTEM_PACKAGES=1.",
    ),
    _Known(
        r"(?i)unable to detect version|Error getting the version from source `?vcs|vcs_versioning.*LookupError",
        "The build asks git for its version, and there is neither git nor a repository in the container. "
        "Give the version: --stagebuild-env=SETUPTOOLS_SCM_PRETEND_VERSION=1.0.",
    ),
    _Known(
        r"(?m)^Package \S+ \([^)]+\) not found\.$",
        "Poetry takes packages from an API of PyPI that mirrors often lack. Where yours does, name the mirror in "
        "[[tool.poetry.source]], or let pip install: --stagebuild-install-cmd='pip install -e . pytest build'.",
    ),
    _Known(
        r"No matching distribution found for|ResolutionImpossible",
        "pip found no such version at its index for the image's Python. An index of your own is passed on from "
        "PIP_INDEX_URL and PIP_EXTRA_INDEX_URL; another Python comes with --stagebuild-image.",
    ),
    _Known(
        r"Read-only file system|EROFS|Could not open lock file /var/lib/\S+ - open \(2: No such file",
        "The system here is a part of this machine, which is read-only: only the source, the virtual environment and "
        "HOME can be written to. Where a command must change more, take a full image: with "
        "--stagebuild-engine=docker, or one that was saved (--stagebuild-image=./image.tar).",
    ),
    _Known(
        r"(?:chown|chgrp|apt|dpkg|tar|setegid|seteuid|setgroups).*Invalid argument",
        "For an ordinary user the local engine has one user in its sandboxes: no file there can belong to another. Run "
        "as root, or with --stagebuild-engine=docker.",
    ),
    _Known(
        r"(?i)No space left on device",
        "The engine's disk is full: --stagebuild-prune=1 removes older checkpoints, `docker system df` shows the rest.",
    ),
)

_MISSING_TOOL: Final = re.compile(r"(?m)^\S*python[\d.]*: No module named (\w+)$")
_MISSING_MODULE: Final = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_UNKNOWN_OPTIONS: Final = re.compile(r"(?:error: unrecognized arguments: |Missing required plugins: )(.+)")


def hint_in(output: str, stage: Stage, install: str) -> str:
    """The hint for the first cause that is known, empty where none is; ``install`` is the command of that stage."""
    return next(_hints(output, stage, install), "")


def _hints(output: str, stage: Stage, install: str) -> Iterator[str]:
    if _NO_COMPILER.search(output):
        first = f"apt-get update && apt-get install -y gcc libc6-dev && {install}"
        yield (
            "The project compiles code, and the image has no compiler. Choose an image that has one "
            "(--stagebuild-image=python:3.11 has, python:3.11-slim has not), or install one first: "
            f"--stagebuild-install-cmd={shlex.quote(first)}."
        )
    yield from (known.hint for known in _KNOWN if re.search(known.pattern, output))
    if found := _MISSING_TOOL.search(output):
        yield f"The install stage has to bring it: --stagebuild-install-cmd={shlex.quote(f'{install} {found[1]}')}."
    if stage.name != "test":
        return
    if found := _UNKNOWN_OPTIONS.search(output):
        yield (
            f"The project's pytest configuration asks for what is not installed in the container ({found[1].strip()}): "
            f"{_where_to_declare('the plugins that it needs')}"
        )
    if found := _MISSING_MODULE.search(output):
        yield f"{found[1]} is not installed in the container: {_where_to_declare('what the tests need')}"


def _where_to_declare(what: str) -> str:
    return f"declare {what} in an extra or a dependency group called test, or install it with `install_cmd`."
