"""The user's own tests with the images as fixtures: one build, whoever asks, and one report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from grounds import on_each_engine
from projects import Project, Run

XDIST = "pytest_stagebuild.plugin,xdist.plugin"

COUNT = """\
import os

def pytest_stagebuild_stage_start(stage):
    with open(os.environ["STARTED"], "a") as started:
        started.write(stage.name + "\\n")
"""
"""A plugin that counts how often each stage is made, in whichever process."""

IMAGES = """\
def test_base(base_image):
    assert base_image.stage == "base" and "installed.txt" not in base_image.list()

def test_deps(deps_image):
    assert deps_image.read_text("installed.txt") == "one\\n" and "built.txt" not in deps_image.list()

def test_build(build_image):
    assert build_image.read_text("built.txt") == "one\\ncode\\n"
"""


@dataclass
class Counted:
    """Runs pytest in a project, and counts the stages that its processes make."""

    folder: Path

    def run(self, project: Project, *arguments: str, xdist: bool = False, env: Mapping[str, str] | None = None) -> Run:
        plugins = (XDIST if xdist else "pytest_stagebuild.plugin") + ",count"
        counting = {"PYTEST_PLUGINS": plugins, "PYTHONPATH": str(self.folder), "STARTED": str(self.folder / "started")}
        return project.pytest(*arguments, env={**counting, **(env or {})})

    @property
    def started(self) -> list[str]:
        return (self.folder / "started").read_text().split()


@pytest.fixture
def counted(tmp_path) -> Counted:
    folder = tmp_path / "plugins"  # beside the project, whose files the stages depend on
    folder.mkdir()
    (folder / "count.py").write_text(COUNT)
    return Counted(folder)


def test_without_a_source_the_rootdir_is_the_source(project, counted):
    project.write({"tests/test_images.py": IMAGES})
    run = counted.run(project, "--rootdir=.", "tests/test_images.py")
    assert (run.code, run.outcomes()) == (0, {"install": "ran", "build": "ran"})
    assert counted.started == ["install", "build"]
    assert len(project.images()) == 2
    assert (project.root / ".stagebuild" / "stagebuild.lock").exists()


def test_the_rootdir_is_found_from_a_folder_below_it(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write(
        {"module.txt": "", "tests/test_it.py": "def test_it(base_image): base_image.read_text('module.txt')\n"}
    )
    run = project.pytest(cwd=project.root / "tests")
    assert run.code == 0, run.output
    assert not (project.root / "tests" / ".stagebuild").exists()


def test_with_a_source_host_tests_share_the_stages_that_are_reported(project, counted):
    project.write({"test_images.py": IMAGES, "test_inside.py": "def test_inside(): pass\n"})
    run = counted.run(project, "--stagebuild-source=.")
    assert (run.code, run.outcomes()) == (0, {"install": "ran", "build": "ran", "test": "ran"})
    assert "6 passed" in run.lines[-1]
    assert counted.started == ["install", "build", "test"]


HOW_IT_ENDS = """\
import atexit, gc

@atexit.register
def say():
    print("frozen at the end:", gc.get_freeze_count() > 10_000)
"""


@pytest.mark.parametrize("host_tests", [{}, {"test_images.py": IMAGES}], ids=["none", "some"])
def test_only_a_process_without_host_tests_ends_without_a_last_collection(project, tmp_path, host_tests):
    (tmp_path / "ends.py").write_text(HOW_IT_ENDS)
    project.write({"test_inside.py": "def test_inside(): pass\n", **host_tests})
    run = project.pytest("--stagebuild-source=.", "-p", "ends", env={"PYTHONPATH": str(tmp_path)})
    assert run.code == 0
    assert f"frozen at the end: {not host_tests}" in run.lines


def test_host_tests_alone_take_the_stages_that_they_need(project, counted):
    project.write({"test_images.py": IMAGES})
    run = counted.run(project, "--stagebuild-source=.", "test_images.py::test_deps")
    assert (run.code, run.outcomes()) == (0, {"install": "ran"})
    assert "1 passed" in run.lines[-1]


@on_each_engine
@pytest.mark.parametrize("options", [[], ["--stagebuild-rebuild"]], ids=["first", "rebuild"])
def test_all_workers_share_one_build(new_project, counted, options):
    project = new_project(install_cmd="echo installing; sleep 1", build_cmd="true", test_cmd="true")
    project.write({"test_images.py": several("build_image", "deps_image")})
    run = counted.run(project, "-n4", *options, xdist=True)
    assert (run.code, run.outcomes()) == (0, {"install": "ran", "build": "ran"}), run.output
    assert "8 passed" in run.lines[-1]
    assert counted.started == ["install", "build"]
    assert len(project.images()) == len(project.checkpoints()) == 2


@on_each_engine
def test_a_stage_that_fails_is_made_once_for_all_workers_and_reported_once(new_project, counted):
    project = new_project(install_cmd="true", build_cmd="echo building; exit 7", test_cmd="true")
    project.write({"test_images.py": several("build_image", "deps_image")})
    run = counted.run(project, "-n4", "-q", xdist=True)
    assert run.code == 1, run.output
    assert "4 passed, 4 errors" in run.lines[-1]
    assert counted.started == ["install", "build"]
    said = "stage build failed (exit 7): see the stagebuild summary"
    assert run.lines.count(said) == 4
    assert run.output.count("failed stage     build (exit 7)") == 1
    assert run.outcomes() == {"install": "ran", "build": "FAILED"}
    assert "building" in run.summary
    assert len(project.images()) == 1


WRITING = """\
import pathlib, time

DONE = pathlib.Path("done.txt")

def test_first(request):
    try:
        request.getfixturevalue("deps_image")
    finally:
        DONE.touch()

def test_second(request):
    while not DONE.exists():
        time.sleep(0.02)
    request.getfixturevalue("deps_image").read_bytes("done.txt")
"""


@pytest.mark.parametrize("install", ["made", "failed", "reused"])
def test_what_a_test_writes_into_the_source_makes_no_other_worker_build_again(new_project, counted, install):
    command = "exit 7" if install == "failed" else "true"
    project = new_project(install_cmd=command, build_cmd="true", test_cmd="true")
    project.write({"test_images.py": WRITING})
    if install == "reused":
        assert counted.run(project, "--stagebuild-source=.", "pyproject.toml::install").code == 0
    run = counted.run(project, "-n2", xdist=True)
    assert run.code == (1 if install == "failed" else 0), run.output
    assert counted.started == ["install"]


def test_a_stage_that_fails_is_made_once_for_all_fixtures_and_the_base_image_is_there_all_the_same(
    new_project, counted
):
    project = new_project(install_cmd="echo installing; exit 7", build_cmd="true", test_cmd="true")
    tests = "\n".join(
        f"def test_{name}({name}_image): assert {name}_image.list()" for name in ("build", "deps", "base")
    )
    project.write({"test_images.py": tests})
    run = counted.run(project)
    assert run.code == 1
    assert "1 passed, 2 errors" in run.lines[-1]
    assert counted.started == ["install"]
    assert run.lines.count("stage install failed (exit 7): see the stagebuild summary") == 2
    assert run.output.count("failed stage     install (exit 7)") == 1


BROKEN = """\
from pytest_stagebuild.errors import EngineError

def pytest_stagebuild_step(step):
    if step == "started":
        raise EngineError("the engine is tired: let it rest, then run again")
"""


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_an_engine_that_fails_is_no_failure_of_the_stage_and_the_summary_has_its_words(new_project, counted, workers):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"test_images.py": "def test_it(build_image): pass\n"})
    (counted.folder / "broken.py").write_text(BROKEN)
    run = counted.run(project, "-p", "broken", *workers, xdist=True)
    assert (run.code, run.outcomes()) == (1, {"install": "ERROR", "build": "skipped"})
    assert "stage install was not made (engine error): see the stagebuild summary" in run.lines
    assert run.summary.count("the engine is tired: let it rest, then run again") == 1


NOTHING = """\
import sys

def test_nothing(): assert "docker" not in sys.modules and "pytest_stagebuild.session" not in sys.modules

def test_image(build_image): pass
"""


@pytest.mark.parametrize("options", [["-k", "nothing"], ["-n2", "-k", "nothing"], ["--collect-only"], ["--fixtures"]])
def test_nothing_happens_until_an_image_is_asked_for(new_project, tmp_path, options):
    project = new_project(install_cmd="true")
    project.write({"test_images.py": NOTHING})
    before = sorted(os.listdir(project.root))
    env = {"PYTEST_PLUGINS": XDIST, "PYTHONDONTWRITEBYTECODE": "1"}
    run = project.pytest("-p", "no:cacheprovider", *options, env=env)
    assert run.code == 0, run.output
    assert "stagebuild summary" not in run.output
    assert sorted(os.listdir(project.root)) == before
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("options", [[], ["-n2"], ["--stagebuild-source=."]], ids=["alone", "xdist", "source"])
def test_a_run_without_a_terminal_reporter_works(new_project, options):
    project = new_project(install_cmd="true", build_cmd="exit 7", test_cmd="true")
    project.write(
        {"test_images.py": "def test_deps(deps_image): deps_image.list()\ndef test_build(build_image): pass\n"}
    )
    run = project.pytest("-p", "no:terminal", *options, "test_images.py", env={"PYTEST_PLUGINS": XDIST})
    assert (run.code, run.output) == (1, "")
    run = project.pytest("-p", "no:terminal", *options, "test_images.py::test_deps", env={"PYTEST_PLUGINS": XDIST})
    assert (run.code, run.output) == (0, "")


def test_a_run_works_without_plugins_of_pytest_that_can_be_switched_off(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"test_images.py": "def test_it(deps_image): deps_image.list()\n"})
    without = [f"-pno:{name}" for name in ("capture", "setuponly", "cacheprovider", "logging", "junitxml", "stepwise")]
    assert project.pytest(*without).code == 0
    assert project.stagebuild(*without).code == 0


def test_the_name_that_xdist_is_given_for_a_run_is_no_folder_to_be_removed(new_project, tmp_path):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"test_images.py": "def test_it(deps_image): pass\n"})
    precious = tmp_path / "precious" / "file.txt"
    precious.parent.mkdir()
    precious.touch()
    run = project.pytest("-n1", f"--testrunuid={precious.parent}", env={"PYTEST_PLUGINS": XDIST})
    assert run.code == 0, run.output
    assert precious.exists()


def several(*images: str) -> str:
    """Eight tests that ask for these images in turn."""
    return "".join(
        f"def test_{number}({images[number % len(images)]}): assert {images[number % len(images)]}.stage\n"
        for number in range(8)
    )
