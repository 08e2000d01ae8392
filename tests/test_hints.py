"""The output here is what the tools themselves print, shortened."""

from __future__ import annotations

import shlex

import pytest

from pytest_stagebuild.hints import hint_in
from pytest_stagebuild.stage import Stage, StageName

INSTALL = "pip install -e '.[test]'"


def hint(output: str, stage: StageName = "install") -> str:
    return hint_in(f"something\n{output}\nsomething else\n", Stage(stage, "command"), INSTALL)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("error: command 'x86_64-linux-gnu-gcc' failed: No such file or directory", "no compiler"),
        ("unable to execute 'gcc': No such file or directory", "no compiler"),
        ("error: linker `cc` not found", "no compiler"),
        ("WARNING: The C extension could not be compiled, speedups are not enabled.", "no compiler"),
        ("../meson.build:1:0: ERROR: Unknown compiler(s): [['cc'], ['gcc']]", "no compiler"),
        ("ERROR: Package 'demo' requires a different Python: 3.11.2 not in '>=3.12'", "--stagebuild-image=python:3.X"),
        ("ssl.SSLCertVerificationError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "SSL_CERT_FILE"),
        ("  cause: invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "did not reach the network"),
        ("  cause: dns error", "did not reach the network"),
        ("error: externally-managed-environment", "PIP_BREAK_SYSTEM_PACKAGES"),
        ("LookupError: setuptools-scm was unable to detect version for /src.", "SETUPTOOLS_SCM_PRETEND_VERSION"),
        ("Package attrs (21.4.0) not found.", "Poetry"),
        ("ERROR: No matching distribution found for nosuchthing>=99", "PIP_INDEX_URL"),
        ("OSError: [Errno 28] No space left on device", "--stagebuild-prune"),
        ("/usr/bin/python3: No module named build", "has to bring it"),
    ],
)
def test_what_a_tool_says_is_explained(output: str, expected: str) -> None:
    assert expected in hint(output)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("E   ModuleNotFoundError: No module named 'trustme'", "trustme is not installed in the container"),
        ("pytest: error: unrecognized arguments: --cov=demo --cov-branch", "(--cov=demo --cov-branch)"),
        ("ERROR: Missing required plugins: pytest-asyncio", "(pytest-asyncio)"),
    ],
)
def test_what_tests_miss_is_to_be_declared(output: str, expected: str) -> None:
    assert expected in hint(output, "test")
    assert "called test" in hint(output, "test")
    assert hint(output) == ""


def test_the_install_command_that_a_hint_proposes_goes_on_from_the_one_in_force() -> None:
    words = shlex.split(hint("unable to execute 'gcc': No such file or directory").rstrip("."))
    assert words[-1].endswith(f"install-cmd=apt-get update && apt-get install -y gcc libc6-dev && {INSTALL}")


@pytest.mark.parametrize("output", ["", "compiled with gcc", "1 failed, 3 passed", "E   assert 'No module' in text"])
def test_what_explains_itself_gets_no_hint(output: str) -> None:
    assert hint(output, "test") == ""
