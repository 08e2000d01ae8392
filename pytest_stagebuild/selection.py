"""What the command line selects: which stages, which host tests, and what is passed to the tests inside."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.stage import STAGES, StageName
from pytest_stagebuild.values import dataclass

_SELECTING: Final = {"keyword": "-k", "markexpr": "-m", "lf": "--lf", "failedfirst": "--ff", "deselect": "--deselect"}
"""The options by which a user chooses tests, by the name under which pytest stores them."""

_PASSED: Final = (
    "keyword",
    "markexpr",
    "maxfail",
    "lf",
    "failedfirst",
    "last_failed_no_failures",
    "pyargs",
    "showlocals",
    "fulltrace",
    "runxfail",
    "verbose",
)
"""pytest's options that mean the tests inside and take the same value there, where they are set."""

_LAUNCHER: Final = re.compile(
    r"(?<![\w./-])(?:tox|nox|make|just|task|hatch|pdm|poe|doit|inv|invoke)(?![\w.-])|[\w-]\.(?:sh|py)(?!\w)|(?<!\S)\./\w"
)
"""Programs that start others, and scripts."""


@dataclass(frozen=True)
class Arguments:
    """What the paths and ids on a command line mean: stages, host tests (absolute), tests inside (relative to /src)."""

    stages: tuple[StageName, ...] = ()
    host: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()


@dataclass(frozen=True)
class Selection:
    """What the pytest inside is told: the paths and ids to run, and values for its options.

    ``typed`` are the words on the command line that choose tests, for messages.
    """

    paths: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    typed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where paths on the command line start: the source, else the folder that pytest was called in."""

    source: Path
    invocation_dir: Path

    def inside(self, path: str) -> str:
        """A path of the source as it is called inside, relative to ``/src``; what is no path here stays as it is.

        Raises :class:`ConfigurationError` for one that lies outside the source.
        """
        if path == WORKING_DIRECTORY or path.startswith(WORKING_DIRECTORY + "/"):
            path = path[len(WORKING_DIRECTORY) :].lstrip("/") or "."
        candidates = [self.source / path, self.invocation_dir / path]
        found = next((candidate for candidate in candidates if os.path.lexists(candidate)), candidates[0])
        relative = os.path.relpath(os.path.normpath(found), self.source)
        if relative == ".." or relative.startswith("../"):
            raise ConfigurationError(
                f"{path} lies outside the source {self.source}: with --stagebuild-source, paths and ids "
                "mean tests of it. Give paths relative to the source."
            )
        return relative

    def inside_id(self, identifier: str) -> str:
        """The same for ``path::name``."""
        path, separator, rest = identifier.partition("::")
        return self.inside(path) + separator + rest


def classify(
    typed: Iterable[str], place: Place, *, anchor: Path, files: Collection[str], host_tests: Collection[str]
) -> Arguments:
    """Sort the paths and ids of a command line.

    ``anchor`` is the file that stages are named after. ``files`` are the paths of the source tree and ``host_tests``
    those among them that run here, all relative to the source.
    """
    stages: list[StageName] = []
    host: list[str] = []
    inner: list[str] = []
    for argument in typed:
        path, separator, rest = argument.partition("::")
        inside = place.inside(path)
        if place.source / inside == anchor and (rest in STAGES or (not rest and anchor != place.source)):
            stages += [stage for stage in STAGES if rest in ("", stage)]
            continue
        below = [test for test in host_tests if inside in (test, ".") or test.startswith(inside + "/")]
        host += [f"{place.source / test}{separator}{rest}" for test in below]
        if inside not in below and (not below or _holds_tests_inside(inside, files, host_tests)):
            inner.append(inside + separator + rest)
    return Arguments(tuple(dict.fromkeys(stages)), tuple(dict.fromkeys(host)), tuple(dict.fromkeys(inner)))


def select(option: argparse.Namespace, arguments: Arguments, place: Place, host_tests: Iterable[str]) -> Selection:
    """What the tests inside are told, of pytest's parsed options and the sorted arguments."""
    options = {name: value for name in _PASSED if (value := getattr(option, name, None))}
    if options.get("last_failed_no_failures") == "all":  # pytest's default
        del options["last_failed_no_failures"]
    if int(options.get("verbose", 0)) < 0:
        del options["verbose"]
    if (style := getattr(option, "tbstyle", "auto")) != "auto":
        options["tbstyle"] = style
    if getattr(option, "capture", None) == "no":
        options["capture"] = "no"
    if deselected := getattr(option, "deselect", None):
        options["deselect"] = [place.inside_id(one) for one in deselected]
    ignored = [*(place.inside(path) for path in getattr(option, "ignore", None) or ()), *host_tests]
    if ignored:
        options["ignore"] = [f"{WORKING_DIRECTORY}/{path}" for path in ignored]
    if globs := getattr(option, "ignore_glob", None):
        options["ignore_glob"] = list(globs)
    typed = (*arguments.inner, *(flag for name, flag in _SELECTING.items() if name in options))
    return Selection(arguments.inner, options, typed)


def runs_pytest(command: str) -> bool:
    """Whether a command runs pytest, as far as its text shows."""
    return re.search(r"(?<![\w-])py\.?test(?![\w-])", command) is not None


def check_reaches(selection: Selection, command: str) -> None:
    """Raise :class:`ConfigurationError` where tests were selected and the test command runs no pytest to be told.

    What starts other programs, as its own files say, may run one: if none is told, the stage fails for that.
    """
    if selection.typed and not runs_pytest(command) and _LAUNCHER.search(command) is None:
        raise ConfigurationError(
            f"{', '.join(selection.typed)} cannot reach the tests inside, for the test command runs no "
            f"pytest: {command}. Leave it out, or give a command that selects the tests with --stagebuild-test-cmd."
        )


def _holds_tests_inside(folder: str, files: Iterable[str], host_tests: Collection[str]) -> bool:
    return any(
        path.endswith(".py")
        and (folder == "." or path.startswith(folder + "/"))
        and path not in host_tests
        and path.rpartition("/")[2] not in ("conftest.py", "__init__.py", "setup.py", "noxfile.py")
        for path in files
    )
