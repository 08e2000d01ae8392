"""What the workers of one run tell each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_stagebuild.runs import RunFolder
from pytest_stagebuild.stage import Failure, StageResult

FAILED = StageResult(
    "install",
    "pip install .",
    "failed",
    duration=1.5,
    reason="first run",
    failure=Failure("install", "exit 1", "Try again.", Path("install.log"), "the end of it\n"),
    log=Path("install.log"),
    notes=("a note",),
)


def test_what_one_worker_made_of_a_stage_another_one_learns_as_it_was(tmp_path):
    RunFolder(tmp_path, "run").keep("key", FAILED)
    assert RunFolder(tmp_path, "run").result("key") == FAILED


@pytest.mark.parametrize(("run", "key"), [("other", "key"), ("run", "other")])
def test_another_run_or_stage_has_a_result_of_its_own(tmp_path, run, key):
    RunFolder(tmp_path, "run").keep("key", FAILED)
    assert RunFolder(tmp_path, run).result(key) is None


def test_a_run_that_has_ended_is_forgotten_and_others_are_not(tmp_path):
    for run in ("ended", "living"):
        RunFolder(tmp_path, run).keep("key", FAILED)
    RunFolder(tmp_path, "ended").remove()
    assert [path.name for path in tmp_path.iterdir()] == ["living"]


def test_where_nothing_can_be_kept_each_worker_works_for_itself(tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file", "run")
    folder.keep("key", FAILED)
    assert folder.result("key") is None
