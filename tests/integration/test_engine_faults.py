"""What a run comes to when its engine stops, runs full, is emptied or was never there."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from grounds import DockerGround, Ground
from projects import Project, Run, making_projects

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from own_engine import IMAGE, OwnEngine, own_engine

from pytest_stagebuild.engines.local.engine import STORE_VARIABLE

# The SDK leaves a socket open where its connection to an engine that has ended is refused.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

BIG = 24_000_000


@contextlib.contextmanager
def project_on(own: OwnEngine, tmp_path: Path) -> Iterator[Project]:
    """A project whose stages run on an engine of its own; install and build copy a file each."""
    own.load()
    with (
        contextlib.closing(docker.DockerClient(base_url=own.address)) as client,
        making_projects(tmp_path, DockerGround(client, IMAGE)) as make,
    ):
        project: Project = make(
            install_cmd="cp one.txt installed.txt; sh install.sh",
            build_cmd="cat installed.txt two.txt > built.txt; sh build.sh",
            test_cmd="sh test.sh",
        )
        project.write({"one.txt": "one\n", "two.txt": "two\n", "install.sh": "", "build.sh": "", "test.sh": ""})
        project.environ["DOCKER_HOST"] = own.address
        yield project


@pytest.fixture
def own() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        yield engine


@pytest.fixture
def project(own: OwnEngine, tmp_path: Path) -> Iterator[Project]:
    with project_on(own, tmp_path) as made:
        yield made


def stopped_during(own: OwnEngine, project: Project, stage: str, how: signal.Signals) -> Run:
    """A run whose engine stops as soon as the command of a stage has begun."""
    project.write({f"{stage}.sh": "echo it has begun; sleep 60\n"})
    process = project.start("--stagebuild-source=.")
    log = project.root / f".stagebuild/logs/{stage}.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "it has begun" in log.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    own.stop(how)
    output, _ = process.communicate(timeout=120)
    project.write({f"{stage}.sh": ""})
    return Run(process.returncode, output)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_engine_that_stops_under_a_command_is_an_error_and_the_next_run_is_green(own, project, how):
    run = stopped_during(own, project, "build", how)
    assert run.code == 1
    assert run.outcomes() == {"install": "ran", "build": "ERROR", "test": "skipped"}
    assert "engine error" in run.row("build")
    assert "un again." in run.output
    assert "Traceback" not in run.output
    assert [entry["stage"] for entry in project.checkpoints().values()] == ["install"]

    own.start()
    run = project.stagebuild()
    assert (run.code, run.outcomes()["build"], run.outcomes()["test"]) == (0, "ran", "ran")
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


def test_an_engine_that_stops_under_the_tests_is_no_failure_of_the_tests(own, project):
    assert project.stagebuild().code == 0
    run = stopped_during(own, project, "test", signal.SIGKILL)
    assert run.code == 1
    assert run.outcomes()["test"] == "ERROR"
    assert "1 error" in run.lines[-1]
    assert "failed" not in run.lines[-1]

    own.start()
    run = project.stagebuild()
    assert (run.code, run.outcomes()) == (0, {"install": "CACHED", "build": "CACHED", "test": "ran"})


def test_a_disk_that_runs_full_during_a_commit_is_an_engine_error_and_leaves_no_checkpoint(tmp_path):
    with own_engine(size=3 * BIG) as own, project_on(own, tmp_path) as project:
        project.write({"build.sh": f"head -c {2 * BIG} /dev/zero > /big\n"})
        run = project.stagebuild()
        assert run.code == 1
        assert run.outcomes() == {"install": "ran", "build": "ERROR", "test": "skipped"}
        assert "no space left on device" in run.output
        assert [entry["stage"] for entry in project.checkpoints().values()] == ["install"]

        project.write({"build.sh": ""})
        run = project.stagebuild()
        assert (run.code, run.outcomes()["build"]) == (0, "ran")


def test_after_a_prune_of_everything_the_missing_base_image_is_named_with_the_ways_to_get_it(own, project):
    assert project.stagebuild().code == 0
    prune_everything(own)
    run = project.stagebuild()
    assert run.code == 4
    assert f"ERROR: the image {IMAGE} is not here, and the engine could not pull it: " in run.output
    assert f"`docker import rootfs.tar {IMAGE}`." in run.output


def test_after_a_prune_of_everything_but_the_base_each_stage_runs_again_and_says_why(own, project):
    assert project.stagebuild().code == 0
    prune_everything(own)
    own.load()
    run = project.stagebuild()
    assert run.code == 0
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert "(checkpoint image is gone)" in run.row("install")
    assert "(deps-installed is new)" in run.row("build")
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


def prune_everything(own: OwnEngine) -> None:
    """As ``docker system prune -af`` does."""
    with own.client() as client:
        client.prune_containers()
        client.prune_images({"dangling": False})
        assert client.images(all=True) == []


NO_ENGINE = """\
none of the engines can be used here.
docker: no Docker engine answers. Tried:
  unix://{folder}/none.sock (from DOCKER_HOST): absent (no such socket)
Start one (systemctl start docker, or dockerd), or point DOCKER_HOST at one that runs.
local: the local engine cannot keep its store at {folder}/project/pyproject.toml: Not a directory. \
Name a folder of yours on a local disk in PYTEST_STAGEBUILD_STORE."""


def without_names(run: Run) -> str:
    """What was printed, without how the local engine calls the folder in that of its store."""
    return re.sub(r"(?<=/pyproject\.toml)/[\w-]+(?=: )", "", run.output)


@pytest.fixture
def without_engine(tmp_path: Path, on_docker: Ground) -> Project:
    project = Project(tmp_path / "project", "test", on_docker, {})
    project.root.mkdir()
    project.table()
    project.environ |= {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "PATH": "/usr/bin:/bin"}
    project.environ[STORE_VARIABLE] = str(project.root / "pyproject.toml")
    return project


def test_no_engine_ends_a_run_before_it_begins(without_engine, tmp_path):
    run = without_engine.stagebuild()
    assert run.code == 4
    assert without_names(run).strip() == "ERROR: " + NO_ENGINE.format(folder=tmp_path)


def test_no_engine_is_an_error_of_the_test_that_asked_for_one(without_engine, tmp_path):
    without_engine.write({"test_it.py": "def test_it(base_image): pass\n"})
    run = without_engine.pytest()
    assert run.code == 1
    assert "ERROR at setup of test_it" in run.output
    assert NO_ENGINE.format(folder=tmp_path) in without_names(run)
