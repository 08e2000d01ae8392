"""The host's own settings for reaching the network, which commands in a sandbox need as well.

Without them the first run behind a company's proxy fails. They are no part of any key: they say how to fetch, not what.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from fnmatch import fnmatchcase, translate
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from pytest_stagebuild.values import dataclass

BUNDLE_FOLDER: Final = "/.stagebuild/run"

_INDEXES: Final = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "UV_*INDEX*",
    "UV_INSECURE_HOST",
    "NPM_CONFIG_REGISTRY",
)
_PATIENCE: Final = (
    "PIP_DEFAULT_TIMEOUT",
    "PIP_TIMEOUT",
    "PIP_RETRIES",
    "UV_HTTP_*",
    "POETRY_REQUESTS_*",
    "NPM_CONFIG_FETCH_*",
    "CARGO_NET_RETRY",
    "CARGO_HTTP_TIMEOUT",
)
"""How long tools wait and how often they try: what a slow network needs here, it needs in a sandbox."""

_TAKEN: Final = re.compile("|".join(map(translate, ("*_PROXY", *_INDEXES, *_PATIENCE))))
_BUNDLES: Final = (
    "PIP_CERT",
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
)
_LOOPBACK = re.compile(r"localhost|127(\.\d+){3}|\[::1\]", re.IGNORECASE)

_SHORTEST_REDACTED: Final = 4
"""Words shorter than this stand in ordinary output, which would be unreadable without them."""

_SHORTEST_TOKEN: Final = 8
"""A user without a password is taken for a token from this length on; "git" is none."""


@dataclass(frozen=True)
class HostSettings:
    """What commands are given of this machine's environment.

    ``env`` holds variables, ``bundles`` the certificates that some of them name, by their absolute path in the sandbox.
    ``redactions`` are texts that must not appear in output. ``notes`` are for the user: what was left out, or will not
    work.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    bundles: Mapping[str, bytes] = field(default_factory=dict)
    redactions: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def host_settings(environ: Mapping[str, str], *, own_network: bool = True) -> HostSettings:
    """The proxies, package indexes, timeouts and certificate bundles that ``environ`` declares. Never raises."""
    env: dict[str, str] = {}
    bundles: dict[str, bytes] = {}
    redactions: set[str] = set()
    notes: list[str] = []
    for name, value in sorted(environ.items()):
        if not value:
            continue
        if name in _BUNDLES:
            try:
                content = _bundle(Path(value))
            except (OSError, ValueError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                notes.append(f"{name} is not passed on: {value}: {reason}")
                continue
            path = f"{BUNDLE_FOLDER}/ca-{hashlib.sha256(content).hexdigest()[:8]}.pem"
            env[name] = path
            bundles[path] = content
        elif _TAKEN.match(name.upper()):
            env[name] = value
            redactions.update(_credentials(name, value))
            notes.extend(_unreachable(name, value) if own_network else ())
    return HostSettings(env, bundles, tuple(sorted(redactions, key=lambda text: (-len(text), text))), tuple(notes))


def _bundle(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise ValueError("not a file")
    return path.read_bytes()


def _credentials(name: str, value: str) -> Iterator[str]:
    """The parts of a URL that nobody else may read, each as it stands there and as it is once decoded."""
    if fnmatchcase(name.upper(), "UV_INDEX_*_PASSWORD"):
        yield value
    for user_info, _ in _authorities(value):
        user, colon, password = user_info.partition(":")
        found = {user_info, password} if colon else {user}
        shortest = _SHORTEST_REDACTED if colon else _SHORTEST_TOKEN
        for text in found | {unquote(text) for text in found}:
            if len(text) >= shortest:
                yield text


def _unreachable(name: str, value: str) -> Iterator[str]:
    if name.upper() == "NO_PROXY":
        return
    for _, host in _authorities(value):
        if _LOOPBACK.fullmatch(host):
            yield (
                f"{name} names {host}, which in a container is the container itself: "
                "use an address that containers reach, or set `pass_host_env = false`"
            )


def _authorities(value: str) -> Iterator[tuple[str, str]]:
    """User information and host of each URL in a list parted by blanks; a proxy may stand without its scheme."""
    for url in value.split():
        authority = re.split(r"[/?#]", url.partition("://")[2] or url, maxsplit=1)[0]
        user_info, _, address = authority.rpartition("@")
        yield user_info, re.sub(r":\d*$", "", address)
