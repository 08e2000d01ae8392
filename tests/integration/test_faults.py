"""A fault at every step between "container created" and "lockfile written" costs one stage at most."""

from __future__ import annotations

import signal

import pytest
from grounds import on_each_engine

once = pytest.mark.parametrize("ground", ["local"], indirect=True)
"""What is raised goes the same way whatever the engine is; only what a killed process leaves is the engine's matter."""

STEPS = (
    "created",
    "source sent",
    "started",
    "command ended",
    "processes ended",
    "secrets searched",
    "record written",
    "committed",
    "recorded",
)

FAULTS = """\
import os, signal

from pytest_stagebuild.errors import EngineError

AT, HOW = os.environ.get("FAULT_AT"), os.environ.get("FAULT")

def fault():
    if HOW == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "bug":
        raise RuntimeError("somebody else's mistake")
    raise EngineError("the engine went away. Start it and run again")

def pytest_stagebuild_step(stage, step):
    if f"{stage}: {step}" == AT:
        fault()

if AT == "lockfile replaced":
    replace = os.replace

    def os_replace(source, target):
        if str(target).endswith("stagebuild.lock"):
            fault()
        replace(source, target)

    os.replace = os_replace
"""


@pytest.fixture
def faulty(new_project):
    project = new_project(
        install_cmd="cp requirements.txt installed.txt",
        build_cmd="cat installed.txt module.txt > built.txt",
        test_cmd="test -s built.txt",
        secrets=["TOKEN"],
    )
    project.environ["TOKEN"] = "hunter2222"
    project.write({"requirements.txt": "one\n", "module.txt": "code\n", "plugins/faults.py": FAULTS})
    return project


def with_fault(project, at: str, how: str):
    env = {
        "PYTHONPATH": str(project.root / "plugins"),
        "PYTEST_PLUGINS": "pytest_stagebuild.plugin,faults",
        "FAULT_AT": at,
        "FAULT": how,
    }
    return project.stagebuild(env=env)


def then_green(project, *, untouched: tuple[str, ...]) -> None:
    run = project.stagebuild()
    assert run.code == 0, run.output
    outcomes = run.outcomes()
    assert all(outcomes[stage] == "CACHED" for stage in untouched), run.output
    assert project.sandboxes() == []
    assert len(project.images()) == len(project.checkpoints()) == 2
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


@on_each_engine
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stage", ["install", "build"])
def test_a_run_that_is_killed_at_a_step_costs_that_stage_at_most(faulty, stage, step):
    assert with_fault(faulty, f"{stage}: {step}", "kill").code == -signal.SIGKILL
    made = ("install",) if stage == "build" or step in ("committed", "recorded") else ()
    then_green(faulty, untouched=(*made, *(("build",) if (stage, step) == ("build", "recorded") else ())))


@once
@pytest.mark.parametrize("step", STEPS)
def test_an_engine_that_fails_at_a_step_is_an_error_of_that_stage(faulty, step):
    run = with_fault(faulty, f"build: {step}", "exception")
    assert run.code == 1
    assert run.outcomes() == {"install": "ran", "build": "ERROR", "test": "skipped"}
    assert "the engine went away. Start it and run again" in run.output
    assert run.summary[-2] == "rollback points  deps-installed 00000000"
    assert run.summary[-1].endswith("--stagebuild-from=deps-installed")
    assert faulty.sandboxes() == []
    then_green(faulty, untouched=("install",))


@once
@pytest.mark.parametrize("step", ["created", "started", "committed", "recorded"])
def test_a_mistake_in_somebody_elses_hook_is_shown_and_loses_nothing(faulty, step):
    run = with_fault(faulty, f"install: {step}", "bug")
    assert run.code == 1
    assert "plugins/faults.py:11: RuntimeError" in run.output  # as pytest shows where it is
    assert "FAILED pyproject.toml::install - RuntimeError: somebody else's mistake" in run.lines
    assert run.outcomes() == {"install": "ERROR", "build": "skipped", "test": "skipped"}
    assert "failed stage     install (error), log: .stagebuild/logs/install.log" in run.summary
    assert faulty.sandboxes() == []
    then_green(faulty, untouched=("install",) if step in ("committed", "recorded") else ())


@on_each_engine
@pytest.mark.parametrize("how", ["kill", "exception"])
def test_a_lockfile_that_was_never_put_in_place_costs_nothing(faulty, how):
    assert with_fault(faulty, "lockfile replaced", how).code != 0
    then_green(faulty, untouched=())
    assert not list((faulty.root / ".stagebuild").glob(".stagebuild.lock.*.tmp"))
