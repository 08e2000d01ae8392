"""Two runs that need the same checkpoint at once: one makes it, the other waits, saying for whom, then reuses it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from grounds import on_each_engine
from projects import Project, Run

HOLD = """\
import os, pathlib, time

def pytest_stagebuild_step(stage, step):
    if f"{stage}: {step}" == "install: command ended":
        pathlib.Path(os.environ["HELD"]).touch()
        while not pathlib.Path(os.environ["LET_GO"]).exists():
            time.sleep(0.02)
"""
"""A plugin that keeps a run in the middle of its install stage until it is let go."""


@dataclass
class Holder:
    """A run in the middle of its install stage."""

    project: Project
    process: subprocess.Popen[str]
    gate: Path

    def let_go(self) -> Run:
        self.gate.touch()
        return self.project.wait(self.process)


@pytest.fixture
def hold(tmp_path):
    """Starts a run and returns once it is in the middle of its install stage."""
    plugins = tmp_path / "plugins"  # beside the project: both runs must see the same source
    plugins.mkdir()
    (plugins / "hold.py").write_text(HOLD)

    def start(project: Project) -> Holder:
        held, gate = plugins / "held", plugins / "let-go"
        env = {"PYTHONPATH": str(plugins), "HELD": str(held), "LET_GO": str(gate)}
        process = project.start("--stagebuild-source=.", "-p", "hold", env=env)
        while not held.exists():
            assert process.poll() is None
            time.sleep(0.02)
        return Holder(project, process, gate)

    return start


def heard(process: subprocess.Popen[str], text: str) -> str:
    """What a process has said by the time it has said ``text``; the rest is still to be read."""
    said = b""
    while text.encode() not in said:
        piece = os.read(process.stdout.fileno(), 1 << 16)
        assert piece, said.decode()
        said += piece
    return said.decode(errors="replace")


def cloned(project: Project) -> Path:
    project.write({".gitignore": ".stagebuild\n"})
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        project.git(*command)
    clone = project.root.with_name("clone")
    project.git("clone", "-q", str(project.root), str(clone))
    return clone


@on_each_engine
@pytest.mark.parametrize("where", ["one tree", "two clones"])
def test_one_run_makes_a_checkpoint_and_the_other_waits_for_it(new_project, hold, where):
    project = new_project(install_cmd="echo installing", build_cmd="true", test_cmd="true")
    second = project.root if where == "one tree" else cloned(project)
    holder = hold(project)
    waiter = project.start("--stagebuild-source=.", cwd=second)
    said = heard(waiter, "waiting for process")
    first = holder.let_go()
    other = project.wait(waiter)

    assert (first.code, other.code) == (0, 0)
    assert (first.outcomes()["install"], other.outcomes()["install"]) == ("ran", "CACHED")
    assert sorted([first.outcomes()["build"], other.outcomes()["build"]]) == ["CACHED", "ran"]
    assert len(project.images()) == 2
    whom = rf"stagebuild install: waiting for process {holder.process.pid}, which has been at install of {project.name}"
    assert re.search(whom + r" since \d\d:\d\d:\d\d", said + other.output)


@on_each_engine
def test_the_run_that_waits_goes_on_when_the_other_is_killed(new_project, hold):
    project = new_project(install_cmd="echo installing", build_cmd="true", test_cmd="true")
    holder = hold(project)
    waiter = project.start("--stagebuild-source=.")
    heard(waiter, "waiting for process")
    holder.process.kill()
    run = project.wait(waiter)
    assert run.code == 0
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert len(project.images()) == 2


def test_a_stage_that_failed_in_one_run_is_tried_by_the_one_that_waited(new_project, hold):
    project = new_project(install_cmd="echo tried; exit 7", build_cmd="true", test_cmd="true")
    holder = hold(project)
    waiter = project.start("--stagebuild-source=.", "-s")
    heard(waiter, "waiting for process")
    assert holder.let_go().outcomes()["install"] == "FAILED"
    run = project.wait(waiter)
    assert run.outcomes()["install"] == "FAILED"
    assert "tried" in run.lines


def test_a_run_can_be_interrupted_while_it_waits(new_project, hold):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    holder = hold(project)
    waiter = project.start("--stagebuild-source=.")
    heard(waiter, "waiting for process")
    waiter.send_signal(signal.SIGINT)
    run = project.wait(waiter)
    assert (run.code, run.outcomes()) == (2, {"install": "STOPPED"})
    assert holder.let_go().code == 0


def test_runs_of_different_projects_do_not_wait_for_each_other(new_project, hold):
    commands = {"install_cmd": "true", "build_cmd": "true", "test_cmd": "true"}
    holder = hold(new_project("one", **commands))
    run = new_project("another", **commands).stagebuild()
    assert run.code == 0
    assert "waiting" not in run.output
    assert holder.let_go().outcomes()["install"] == "ran"
