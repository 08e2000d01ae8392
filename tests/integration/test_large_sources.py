"""A large source on Docker: handed over as a layer, which nobody sees but by the time that it saves."""

from __future__ import annotations

import time

import pytest

pytestmark = pytest.mark.engine

MANY = {f"many/{number}": str(number) for number in range(3000)}

COUNT = "ls many | wc -l && cat many/2999"


@pytest.fixture
def layers(client):
    """How many layers an image has beyond the one that it was made from."""

    def beyond(image, base="python:3.11-slim"):
        return len(client.images.get(image).attrs["RootFS"]["Layers"]) - len(
            client.images.get(base).attrs["RootFS"]["Layers"]
        )

    return beyond


@pytest.fixture
def left(client):
    """The images that processes of a project left on the engine, whatever for, but its checkpoints."""

    def left(project):
        owners = [f'"pid": {process.pid},' for process in project.processes]
        found = client.api.images(all=True, filters={"label": "pytest-stagebuild.owner"})
        labels = {one["Id"]: one["Labels"]["pytest-stagebuild.owner"] for one in found}
        return {image for image, label in labels.items() if any(owner in label for owner in owners)} - set(
            project.images()
        )

    return left


def image_of(project, stage):
    [image] = [one["image"] for one in project.checkpoints().values() if one["stage"] == stage]
    return image


def test_it_is_there_and_is_reused(new_project, layers):
    project = new_project(install_cmd=COUNT, build_cmd="true", test_cmd=f"test -w many/1 && {COUNT}")
    project.write(MANY)
    assert project.stagebuild().outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert layers(image_of(project, "install")) == 2
    assert layers(image_of(project, "build")) == 3
    run = project.stagebuild("-v")
    assert run.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert "\n3000\n2999" in run.output
    (project.root / ".stagebuild/stagebuild.lock").unlink()
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    project.write({"many/5": "edited, and used by nobody"})
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    project.write({"many/2999": "edited"})
    run = project.stagebuild("-v")
    assert run.outcomes()["install"] == "ran"
    assert "\n3000\nedited" in run.output


def test_nothing_is_left_when_its_checkpoints_are_gone(new_project, client, left):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true", keep=1)
    project.write(MANY)
    for content in ("one", "two", "three"):
        project.write({"many/0": content})
        assert project.stagebuild(f"--stagebuild-env=TURN={content}").code == 0
    parents = {client.api.inspect_image(image)["Parent"] for image in project.images()}
    assert left(project) <= parents
    assert all(not client.api.inspect_image(image)["RepoTags"] for image in left(project))
    assert len(left(project)) == 1


def test_a_stage_that_fails_leaves_nothing(new_project, left):
    project = new_project(install_cmd="exit 3", build_cmd="true", test_cmd="true")
    project.write(MANY)
    assert project.stagebuild().outcomes() == {"install": "FAILED", "build": "skipped", "test": "skipped"}
    assert left(project) == set()


REFUSING = """\
import os, signal
from pytest_stagebuild.engines.docker import layers

check = layers._check

def refusing(said):
    check(said)
    if os.environ["WHAT"] == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    check(b'{"error": "not today"}')

layers._check = refusing
"""
"""A plugin by which the engine refuses what it was given as a layer, or the user wants no more when it has it."""


@pytest.mark.parametrize(("what", "code"), [("refused", 0), ("interrupted", 2)])
def test_where_the_engine_does_not_take_it_it_is_sent_as_any_other(new_project, layers, left, what, code):
    project = new_project(install_cmd=COUNT, build_cmd="true", test_cmd="true")
    project.write({"refusing.py": REFUSING, **MANY})
    run = project.stagebuild("-p", "refusing", env={"PYTHONPATH": ".", "WHAT": what})
    assert run.code == code, run.output
    assert left(project) == set()
    assert project.sandboxes() == []
    if code == 0:
        assert layers(image_of(project, "install")) == 1


def test_a_secret_in_it_is_found_as_in_any_other(new_project, layers):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true", secrets=["TOKEN"])
    project.write({**MANY, "many/7": "correct-horse-battery"})
    run = project.stagebuild(env={"TOKEN": "correct-horse-battery"})
    assert run.outcomes()["install"] == "FAILED"
    assert "TOKEN" in run.row("install")
    project.write({"many/7": "nothing"})
    assert project.stagebuild(env={"TOKEN": "correct-horse-battery"}).code == 0
    assert layers(image_of(project, "install")) == 1


def test_what_would_remove_files_in_a_layer_is_sent_as_any_other(new_project, layers):
    command = "test -f many/.wh.3 && test -f many/3"
    project = new_project(install_cmd=command, build_cmd="true", test_cmd="true")
    project.write({**MANY, "many/.wh.3": ""})
    assert project.stagebuild().outcomes()["install"] == "ran"
    assert layers(image_of(project, "install")) == 1


def test_a_user_of_the_image_owns_it(new_project, client, image_with_user, layers):
    project = new_project(install_cmd="touch many/new", build_cmd="true", test_cmd="true", image=image_with_user)
    project.write(MANY)
    assert project.stagebuild().code == 0
    assert layers(image_of(project, "install"), image_with_user) == 1


def test_what_is_large_for_the_size_of_its_files_is_sent_as_any_other(new_project, layers):
    project = new_project(install_cmd=COUNT, build_cmd="true", test_cmd="true")
    project.write({**MANY, "large": bytes(16384 * 3100)})
    time.sleep(2.1)  # as long as it is that young, nobody goes by its size
    assert project.stagebuild().code == 0
    assert layers(image_of(project, "install")) == 1
