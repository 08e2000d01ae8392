"""The options of the command line: their names, their help texts and the defaults that these name.

It is loaded in every pytest run of everybody who has the plugin installed, and so imports nothing else of the package.
"""

from __future__ import annotations

import argparse
from typing import Final, Literal, get_args

import pytest

RebuildFrom = Literal["all", "base", "install", "build", "test"]
"""The first stage that is to use no checkpoint; "all" is every one of them, "base" looks the image up anew too."""

Isolation = Literal["stage", "file", "test"]
"""What has a container of its own when tests are run: all of them together, each file, or each test."""

Downloads = Literal["keep", "fresh"]
"""Whether what package tools download is kept for the next time that a stage is made."""

DEFAULT_IMAGE: Final = "python:3.11-slim"

DEFAULT_TIMEOUT: Final = 1800.0
"""Seconds that a stage may take."""

DEFAULT_KEEP: Final = 10
"""Checkpoints that are kept per stage and source."""

DEFAULT_LOCKFILE: Final = ".stagebuild/stagebuild.lock"
"""Relative to the source."""


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
        ("junit", "GLOB", "JUnit XML files that the test command leaves in the container: their tests are reported"),
    ):
        group.addoption(
            f"--stagebuild-{option}",
            action="append",
            default=[],
            metavar=metavar,
            help=f"{text}; may be repeated, and adds to the project's table",
        )
    group.addoption(
        "--stagebuild-isolate",
        choices=get_args(Isolation),
        help="run each test file, or each test, in a container of its own (default: stage, all of them in one)",
    )
    group.addoption(
        "--stagebuild-jobs",
        type=_jobs,
        metavar="N",
        help="how many containers run at a time with --stagebuild-isolate (default: 1)",
    )
    group.addoption(
        "--stagebuild-downloads",
        choices=get_args(Downloads),
        help="keep what pip, uv, npm and cargo download for the next install and build, or let them start afresh "
        "(default: keep)",
    )
    group.addoption(
        "--stagebuild-lockfile", metavar="FILE", help=f"index of checkpoints (default: DIR/{DEFAULT_LOCKFILE})"
    )


def _rebuild(text: str) -> str:
    if text not in get_args(RebuildFrom):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no stage: write --stagebuild-rebuild=STAGE with base, install, build or test, "
            "or put a bare --stagebuild-rebuild behind the paths"
        )
    return text


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of containers: write --stagebuild-jobs=N, from 1")
    return int(text)


def _prune(text: str) -> int | str:
    if text != "table" and not text.isdecimal():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number: write --stagebuild-prune=KEEP, or put a bare --stagebuild-prune behind the paths"
        )
    return text if text == "table" else int(text)
