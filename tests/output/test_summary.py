"""The whole text of every kind of summary and plan, as pure functions of what happened."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.pipeline import PlannedStage
from pytest_stagebuild.stage import BaseImage, CheckpointStage, Failure, RunReport, Stage, StageName, StageResult
from pytest_stagebuild.terminal import Line, plan, resume_arguments, summary

COMMANDS: dict[StageName, str] = {
    "install": "pip install -e '.[dev]' build pytest",
    "build": "python -m build",
    "test": "pytest -v",
}
BASE = BaseImage("python:3.11-slim", "sha256:19c7bb06e0e8" + 52 * "0", "sha256:" + 64 * "1")
RESUME = ["pytest", "--stagebuild-source=."]


def checkpoint(stage: CheckpointStage, uuid: str) -> Checkpoint:
    return Checkpoint(
        uuid=uuid + "-1111-2222-3333-444444444444",
        stage=stage,
        key="k",
        components={},
        parent="p",
        engine="docker:x",
        project="x",
        image="sha256:x",
        created=0,
        used=0,
        size=0,
    )


INSTALLED = checkpoint("install", "3f2c1a9e")
BUILT = checkpoint("build", "9a1b77c4")


def result(stage: StageName, outcome: str, **more: object) -> StageResult:
    return StageResult(stage, COMMANDS[stage], outcome, **more)  # type: ignore[arg-type]


def failure(stage: StageName, cause: str, tail: str = "") -> Failure:
    return Failure(stage, cause, log=Path(".stagebuild/logs", f"{stage}.log").absolute(), tail=tail)


def text(lines: list[Line]) -> str:
    return "\n".join(line.text for line in lines)


def block(expected: str) -> str:
    return dedent(expected).strip("\n")


def test_a_first_run():
    report = RunReport(
        BASE,
        (
            result("install", "ran", duration=11.84, reason="first run", checkpoint=INSTALLED),
            result("build", "ran", duration=2.9, reason="first run", checkpoint=BUILT),
            result("test", "ran", duration=5.1),
        ),
    )
    assert text(summary(report, RESUME)) == block("""
        base     python:3.11-slim                      sha256:19c7bb06e0e8
        install  pip install -e '.[dev]' build pytest  ran      11.8s  3f2c1a9e  deps-installed  (first run)
        build    python -m build                       ran       2.9s  9a1b77c4  build-complete  (first run)
        test     pytest -v                             ran       5.1s
    """)


def test_tests_that_failed_on_a_reused_checkpoint():
    report = RunReport(
        BASE,
        (
            result("install", "cached", checkpoint=INSTALLED),
            result("build", "ran", duration=2.9, reason="src/click/core.py changed", checkpoint=BUILT),
            result("test", "failed", duration=5.1, failure=failure("test", "exit 1")),
        ),
        rollback_points=(BUILT, INSTALLED),
    )
    assert text(summary(report, RESUME)) == block("""
        base     python:3.11-slim                      sha256:19c7bb06e0e8
        install  pip install -e '.[dev]' build pytest  CACHED    0.0s  3f2c1a9e  deps-installed
        build    python -m build                       ran       2.9s  9a1b77c4  build-complete  (src/click/core.py changed)
        test     pytest -v                             FAILED    5.1s  exit 1

        failed stage     test (exit 1), log: .stagebuild/logs/test.log
        rollback points  build-complete 9a1b77c4, deps-installed 3f2c1a9e
        resume           pytest --stagebuild-source=. --stagebuild-from=build-complete
    """)


def test_a_build_that_failed_with_its_output():
    report = RunReport(
        BASE,
        (
            result(
                "install", "forced", checkpoint=INSTALLED, notes=("used as it is, though changed since: a changed",)
            ),
            result(
                "build",
                "failed",
                duration=1,
                reason="--stagebuild-from=deps-installed",
                failure=failure("build", "timed out after 5 s", tail="one\ntwo"),
            ),
            result("test", "skipped", reason="build failed"),
        ),
        rollback_points=(INSTALLED,),
        notes=("skipped FIFO pipe",),
    )
    assert text(summary(report, RESUME, show_output=True)) == block("""
        base     python:3.11-slim                      sha256:19c7bb06e0e8
        install  pip install -e '.[dev]' build pytest  FORCED    0.0s  3f2c1a9e  deps-installed
        build    python -m build                       FAILED    1.0s  timed out after 5 s  (--stagebuild-from=deps-installed)
        test     pytest -v                             skipped         build failed

        note             skipped FIFO pipe
        note             used as it is, though changed since: a changed

        one
        two

        failed stage     build (timed out after 5 s), log: .stagebuild/logs/build.log
        rollback points  deps-installed 3f2c1a9e
        resume           pytest --stagebuild-source=. --stagebuild-from=deps-installed
    """)


def test_an_install_that_failed_resumes_from_the_base_image():
    report = RunReport(
        BASE,
        (
            result("install", "failed", duration=1, reason="first run", failure=failure("install", "exit 1")),
            result("build", "skipped", reason="install failed"),
            result("test", "skipped", reason="install failed"),
        ),
    )
    assert text(summary(report, RESUME)) == block("""
        base     python:3.11-slim                      sha256:19c7bb06e0e8
        install  pip install -e '.[dev]' build pytest  FAILED    1.0s  exit 1  (first run)
        build    python -m build                       skipped         install failed
        test     pytest -v                             skipped         install failed

        failed stage     install (exit 1), log: .stagebuild/logs/install.log
        rollback points  none but the base image
        resume           pytest --stagebuild-source=. --stagebuild-from=base
    """)


def test_checkpoints_are_counted_once_they_take_more_than_5_gib():
    many = RunReport(BASE, (), checkpoint_count=31, checkpoint_bytes=5 * 2**30 + 1)
    few = RunReport(BASE, (), checkpoint_count=31, checkpoint_bytes=5 * 2**30)
    assert text(summary(many, RESUME)) == block("""
        base     python:3.11-slim  sha256:19c7bb06e0e8

        note             31 checkpoints take 5.0 GiB: keep fewer with --stagebuild-prune=KEEP
    """)
    assert "checkpoints take" not in text(summary(few, RESUME))


def test_a_long_command_is_cut_and_a_command_of_several_lines_is_one():
    long = StageResult("install", "set -e\n  " + "pip install one " * 10, "cached", checkpoint=INSTALLED)
    row = text(summary(RunReport(BASE, (long,)), RESUME)).splitlines()[1]
    assert row == "install  set -e pip install one pip install one pip …  CACHED    0.0s  3f2c1a9e  deps-installed"


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        (["--stagebuild-source=.", "-x"], ["pytest", "--stagebuild-source=.", "-x"]),
        (["--stagebuild-source", ".", "--stagebuild-from", "base"], ["pytest", "--stagebuild-source", "."]),
        (["--stagebuild-source=.", "--stagebuild-from=base"], ["pytest", "--stagebuild-source=."]),
        (["--stagebuild-source=.", "--stagebuild-rebuild"], ["pytest", "--stagebuild-source=."]),
        (["--stagebuild-source=.", "--stagebuild-rebuild=build"], ["pytest", "--stagebuild-source=."]),
        (["--stagebuild-source=.", "--stagebuild-rebuild", "build"], ["pytest", "--stagebuild-source=."]),
        (
            ["--stagebuild-secret=TOKEN", "--stagebuild-env=A=b"],
            ["pytest", "--stagebuild-secret=TOKEN", "--stagebuild-env=A=b"],
        ),
    ],
)
def test_the_command_to_resume_repeats_all_but_where_to_start(typed, again):
    assert resume_arguments(typed) == again


def test_a_plan():
    def stage(name: StageName) -> Stage:
        return Stage(name, COMMANDS[name])

    planned = [
        PlannedStage(stage("install"), INSTALLED, ""),
        PlannedStage(stage("build"), None, "src/click/core.py changed"),
        PlannedStage(stage("test"), None, "every time"),
    ]
    assert text(plan(planned, "python:3.11-slim")) == block("""
        base:    python:3.11-slim
        install: would be reused, deps-installed 3f2c1a9e
        build:   would run, src/click/core.py changed
        test:    would run, every time
    """)
