"""The options of the command line: what they are called, what they say of themselves, and what was typed."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Final, Literal, get_args

import pytest

from pytest_stagebuild.detection import DEFAULT_IMAGE

RebuildFrom = Literal["all", "base", "install", "build", "test"]
"""The first stage that is to use no checkpoint; "all" is every one of them, "base" looks the image up anew too."""

DEFAULT_TIMEOUT: Final = 1800.0
"""Seconds that a stage may take."""

DEFAULT_KEEP: Final = 10
"""Checkpoints that are kept per stage and source."""

DEFAULT_LOCKFILE: Final = ".stagebuild/stagebuild.lock"
"""Relative to the source."""


@dataclass(frozen=True)
class CommandLine:
    """What was typed: None, False or nothing where an option was not. ``timeout`` is in seconds.

    ``prune`` is "table" where the option was given without a number.
    """

    source: str | None = None
    image: str | None = None
    install_cmd: str | None = None
    build_cmd: str | None = None
    test_cmd: str | None = None
    engine: str | None = None
    resume_from: str | None = None
    rebuild: RebuildFrom | None = None
    plan: bool = False
    prune: int | Literal["table"] | None = None
    timeout: float | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    host_tests: tuple[str, ...] = ()
    lockfile: str | None = None


def add_options(parser: pytest.Parser) -> None:
    """Declare the options of the plugin, all in one group."""
    group = parser.getgroup("stagebuild", "staged build: image, install, build, test, each from a checkpoint")
    group.addoption(
        "--stagebuild-source",
        metavar="DIR",
        help="take the project in DIR through its stages in containers and report its tests (default: off)",
    )
    group.addoption(
        "--stagebuild-image",
        metavar="REF",
        help="base image: NAME[:TAG][@DIGEST], tag:NAME or a checkpoint's UUID "
        f"(default: {DEFAULT_IMAGE}, or what the project needs)",
    )
    for name, default in (("install", "pip install -e ."), ("build", "python -m build"), ("test", "pytest")):
        group.addoption(
            f"--stagebuild-{name}-cmd",
            metavar="CMD",
            help=f"shell command of the {name} stage, run in /src (default: {default}, or what fits the project)",
        )
    group.addoption(
        "--stagebuild-engine", metavar="NAME", help="what runs the containers (default: auto, the first that answers)"
    )
    group.addoption(
        "--stagebuild-from",
        metavar="CHECKPOINT",
        help="resume from a checkpoint as it is: base, deps-installed, build-complete, a UUID or the start of one",
    )
    group.addoption(
        "--stagebuild-rebuild",
        nargs="?",
        const="all",
        type=_rebuild,
        metavar="STAGE",
        help="use no checkpoint from STAGE on: base, install, build or test (without STAGE: all of them)",
    )
    group.addoption(
        "--stagebuild-plan",
        action="store_true",
        help="say which stages would be reused or run, and why; start nothing",
    )
    group.addoption(
        "--stagebuild-prune",
        nargs="?",
        const="table",
        type=_prune,
        metavar="KEEP",
        help=f"keep the KEEP last used checkpoints per stage, remove the others (default: {DEFAULT_KEEP})",
    )
    group.addoption(
        "--stagebuild-timeout",
        type=float,
        metavar="SECONDS",
        help=f"longest time of each stage (default: {DEFAULT_TIMEOUT:.0f})",
    )
    for option, metavar, text in (
        ("env", "NAME[=VALUE]", "environment variable for every stage, with its value from here if none is given"),
        ("secret", "NAME", "environment variable whose value goes to commands and is kept nowhere"),
        ("artifact", "PATH", "copy PATH out of the test container into .stagebuild/artifacts/"),
        ("host-tests", "PATH", "test files that run here rather than in the container"),
    ):
        group.addoption(
            f"--stagebuild-{option}",
            action="append",
            default=[],
            metavar=metavar,
            help=f"{text}; may be repeated, and adds to the project's table",
        )
    group.addoption(
        "--stagebuild-lockfile", metavar="FILE", help=f"index of checkpoints (default: DIR/{DEFAULT_LOCKFILE})"
    )


def command_line(namespace: argparse.Namespace) -> CommandLine:
    """What was typed, from a namespace that pytest has parsed."""
    return CommandLine(
        source=namespace.stagebuild_source,
        image=namespace.stagebuild_image,
        install_cmd=namespace.stagebuild_install_cmd,
        build_cmd=namespace.stagebuild_build_cmd,
        test_cmd=namespace.stagebuild_test_cmd,
        engine=namespace.stagebuild_engine,
        resume_from=namespace.stagebuild_from,
        rebuild=namespace.stagebuild_rebuild,
        plan=namespace.stagebuild_plan,
        prune=namespace.stagebuild_prune,
        timeout=namespace.stagebuild_timeout,
        env=tuple(namespace.stagebuild_env),
        secrets=tuple(namespace.stagebuild_secret),
        artifacts=tuple(namespace.stagebuild_artifact),
        host_tests=tuple(namespace.stagebuild_host_tests),
        lockfile=namespace.stagebuild_lockfile,
    )


def repeated(typed: CommandLine) -> tuple[str, ...]:
    """The options to type again in order to resume. Not among them: where to start, and whether at all."""
    prune = None if typed.prune is None else "" if typed.prune == "table" else f"={typed.prune}"
    once = {
        "source": typed.source,
        "image": typed.image,
        "install-cmd": typed.install_cmd,
        "build-cmd": typed.build_cmd,
        "test-cmd": typed.test_cmd,
        "engine": typed.engine,
        "timeout": None if typed.timeout is None else f"{typed.timeout!r}".removesuffix(".0"),
        "lockfile": typed.lockfile,
    }
    several = {
        "env": typed.env,
        "secret": typed.secrets,
        "artifact": typed.artifacts,
        "host-tests": typed.host_tests,
    }
    return (
        # First, because without a number it would take a path that came after it for one.
        *(() if prune is None else (f"--stagebuild-prune{prune}",)),
        *(f"--stagebuild-{option}={value}" for option, value in once.items() if value is not None),
        *(f"--stagebuild-{option}={value}" for option, values in several.items() for value in values),
    )


def _rebuild(text: str) -> str:
    if text not in get_args(RebuildFrom):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no stage: write --stagebuild-rebuild=STAGE with base, install, build or test, "
            "or put a bare --stagebuild-rebuild behind the paths"
        )
    return text


def _prune(text: str) -> int | str:
    if text != "table" and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number: write --stagebuild-prune=KEEP, or put a bare --stagebuild-prune behind the paths"
        )
    return text if text == "table" else int(text)
