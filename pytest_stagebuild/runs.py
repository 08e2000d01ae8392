"""What the processes of one pytest run share: the results of the stages that one of them made."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Final

from pytest_stagebuild.stage import StageResult, result_from_json, result_to_json

_FORGOTTEN: Final = 7 * 86400.0
"""Seconds after which the folder of a run that never cleaned up is removed."""


class RunFolder:
    """Results by stage key, for the pytest-xdist workers of one run.

    A failed stage leaves no checkpoint by which the next worker would know not to build it again; and a test may write
    into the source, which a worker that asks later finds changed. In one process neither makes a stage run twice.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self._folder = folder / run_id

    def result(self, key: str) -> StageResult | None:
        """What another process of this run made of the stage with this key."""
        try:
            return result_from_json(json.loads(self._path(key).read_bytes()))
        except (OSError, ValueError):
            return None

    def keep(self, key: str, result: StageResult) -> None:
        """Tell the other processes; where that cannot be, each of them works for itself."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}")
            temporary.write_text(json.dumps(result_to_json(result)))
            os.replace(temporary, path)

    def remove(self) -> None:
        """Forget the run, and runs that ended long ago without doing so."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for other in self._folder.parent.iterdir():
                if time.time() - other.stat().st_mtime > _FORGOTTEN:
                    shutil.rmtree(other, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key[:40]}.json"
