"""Sees what a stage's command uses of the source, by a program that runs beside it in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from pytest_stagebuild.checkpoint import RUN_FOLDER, WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Program
from pytest_stagebuild.inputs import Inputs, Used, Whole
from pytest_stagebuild.source.manifest import Manifest, raw_path
from pytest_stagebuild.source.watcher import WAYS

if TYPE_CHECKING:
    from pytest_stagebuild.engines.protocol import Sandbox

_LIST: Final = f"{RUN_FOLDER}/sent"
_FRESH: Final = f"{RUN_FOLDER}/probes"
_KEPT: Final = "/.stagebuild/probes"

_PROBE: Final = b"#!/bin/sh\n"

PROBES: Final[Mapping[str, bytes]] = {f"{_KEPT}/{way}": _PROBE for way in WAYS}
"""What each checkpoint holds, so that the next stage proves itself on files of a lower layer too."""

_READY: Final = 60.0
_REPORT: Final = 120.0
"""Seconds that the watcher may take, on a machine that is busy with everything else."""


def watch_files(manifest: Manifest) -> dict[str, bytes]:
    """What the watcher needs in the sandbox when it begins."""
    return {
        _LIST: b"".join(raw_path(path) + b"\0" for path in sorted(manifest.entries)),
        **{f"{_FRESH}/{way}": _PROBE for way in WAYS},
    }


@cache
def watcher() -> Program:
    """What runs beside the command of a stage that is watched."""
    source = files("pytest_stagebuild.source").joinpath("watcher.py").read_text("utf-8")
    return Program(source, (WORKING_DIRECTORY, _LIST, _FRESH, _KEPT))


class Watch:
    """A watch over the source in a sandbox, from the moment it is made.

    Where it cannot vouch for what it has seen, everything is an input.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._beside = sandbox.run_beside(watcher())
        line = self._beside.line(_READY)
        self._problem = "" if line == "ready" else self._problem_in(line)

    def end(self, sent: Manifest) -> Inputs:
        """What was used of ``sent``, now that everything has ended that could use it, and ``RUN_FOLDER`` is removed."""
        if not self._problem:
            line = self._beside.line(_REPORT)
            match _parsed(line):
                case {"files": list(files), "folders": list(folders)}:
                    return Used.of(files, folders, sent)
            self._problem = self._problem_in(line)
        return Whole(self._problem)

    def _problem_in(self, line: str | None) -> str:
        match _parsed(line):
            case {"problem": str(problem)}:
                return problem
        return self._beside.complaint() or line or "the watcher ended before it had reported"


def _parsed(line: str | None) -> object:
    try:
        return json.loads(line or "")
    except ValueError:
        return None
