"""Projects taken through their stages on Podman, behind its Docker-compatible socket."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from grounds import PYTHON_IMAGE, Ground
from projects import LONGEST, Project, making_projects

if TYPE_CHECKING:
    from own_podman import OwnPodman

MADE = {"install": "ran", "build": "ran", "test": "ran"}
KNOWN = {"install": "CACHED", "build": "CACHED", "test": "ran"}


@pytest.fixture(scope="module")
def podman(podman_service: OwnPodman) -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.DockerClient(base_url=podman_service.address, timeout=LONGEST)) as podman:
        yield podman


@pytest.fixture(scope="module")
def podman_image() -> str:
    return PYTHON_IMAGE


@pytest.fixture(scope="module")
def podman_image_with_user(podman: docker.DockerClient) -> str:
    name = "stagebuild-test/user:podman"
    container = podman.containers.create(PYTHON_IMAGE, ["useradd", "--create-home", "--uid", "1234", "app"])
    container.start()
    assert container.wait()["StatusCode"] == 0
    container.commit(*name.split(":"), changes=["USER app", 'CMD ["python3"]'])
    container.remove(force=True)
    return name


@pytest.fixture
def new_podman_project(tmp_path: Path, on_podman: Ground) -> Iterator[Callable[..., Project]]:
    with making_projects(tmp_path, on_podman) as make:
        yield make


@pytest.fixture
def podman_project(new_podman_project: Callable[..., Project]) -> Project:
    project = new_podman_project(
        image=PYTHON_IMAGE,
        install_cmd="cp requirements.txt installed.txt",
        build_cmd="cat installed.txt module.txt > built.txt",
        test_cmd="cat built.txt; test -s built.txt",
    )
    project.write({"requirements.txt": "one\n", "module.txt": "code\n"})
    return project


@pytest.mark.parametrize("image", ["podman_image", "podman_image_with_user"])
def test_what_a_first_run_makes_is_reused_with_the_lockfile_and_without(podman_project, podman, image, request):
    podman_project.environ["PYTEST_ADDOPTS"] = f"--stagebuild-image={request.getfixturevalue(image)}"
    first = podman_project.stagebuild()
    assert (first.code, first.outcomes()) == (0, MADE)
    assert f"podman {podman.version()['Version']} at {podman_project.environ['DOCKER_HOST']}" in first.output
    images = podman_project.images()
    assert len(images) == 2

    second = podman_project.stagebuild()
    assert (second.code, second.outcomes()) == (0, KNOWN)

    uuids = set(podman_project.checkpoints())
    for path in ("stagebuild.lock", *(f"records/{uuid}.json" for uuid in uuids)):
        (podman_project.root / ".stagebuild" / path).unlink()
    third = podman_project.stagebuild()
    assert (third.code, third.outcomes()) == (0, KNOWN)
    assert set(podman_project.checkpoints()) == uuids
    assert podman_project.images() == images


def test_a_stage_runs_again_for_a_file_that_it_used_and_for_no_other(podman_project):
    assert podman_project.stagebuild().code == 0
    podman_project.write({"module.txt": "other code\n"})
    run = podman_project.stagebuild("-s")
    assert run.outcomes() == {"install": "CACHED", "build": "ran", "test": "ran"}
    assert "(module.txt changed)" in run.row("build")
    assert "other code" in run.output


def test_a_failed_build_says_where_to_resume_and_is_resumed_there(podman_project):
    failed = podman_project.stagebuild("--stagebuild-build-cmd=echo wrong >&2; exit 3")
    assert (failed.code, failed.outcomes()) == (1, {"install": "ran", "build": "FAILED", "test": "skipped"})
    assert "wrong" in failed.output
    assert len(podman_project.images()) == 1

    resumed = podman_project.stagebuild("--stagebuild-from=deps-installed")
    assert (resumed.code, resumed.outcomes()) == (0, {"install": "FORCED", "build": "ran", "test": "ran"})


def test_the_image_says_nothing_of_commands_and_secrets(new_podman_project, podman):
    project = new_podman_project(
        image=PYTHON_IMAGE,
        install_cmd="echo $TOKEN marked-command",
        build_cmd="true",
        test_cmd="true",
        secrets=["TOKEN"],
    )
    assert project.stagebuild(env={"TOKEN": "canary-4711"}).code == 0
    base = podman.api.inspect_image(PYTHON_IMAGE)["Config"]
    for image in project.images():
        inspection, history = podman.api.inspect_image(image), podman.api.history(image)
        said = json.dumps([inspection, history])
        assert "canary-4711" not in said
        assert "marked-command" not in said
        config = inspection["Config"]
        assert [config.get("Entrypoint") or [], config.get("Cmd")] == [base.get("Entrypoint") or [], base["Cmd"]]


def test_pruning_removes_what_nothing_needs_and_keeps_what_a_checkpoint_stands_on(podman_project, podman):
    podman_project.stagebuild()
    podman_project.write({"module.txt": "other code\n"})
    podman_project.stagebuild("--stagebuild-prune=1")
    assert len(podman_project.images()) == len(podman_project.checkpoints()) == 2
    assert podman_project.stagebuild().outcomes() == KNOWN
    assert podman.images.get(PYTHON_IMAGE)


def test_no_container_is_left_5_seconds_after_kill_9(new_podman_project):
    project = new_podman_project(
        image=PYTHON_IMAGE, install_cmd="trap '' TERM HUP; echo started; sleep 300", build_cmd="true", test_cmd="true"
    )
    process = project.start("--stagebuild-source=.")
    log = project.root / ".stagebuild" / "logs" / "install.log"
    deadline = time.monotonic() + 60
    while not (log.exists() and "started" in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert project.sandboxes()
    process.kill()
    deadline = time.monotonic() + 5
    while project.sandboxes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_name_that_podman_cannot_resolve_is_an_error_that_says_what_to_do(new_podman_project):
    run = new_podman_project(
        image="no-such-image:1", install_cmd="true", build_cmd="true", test_cmd="true"
    ).stagebuild()
    assert run.code == 4
    assert "the image no-such-image:1 is not here" in run.output
    assert "podman load" in run.output
