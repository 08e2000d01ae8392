"""The base image: looked up first, pulled where it is missing, and pulled anew where that is asked for."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from projects import Project

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from bare import busybox
from own_engine import APPLETS
from registries import Registry, image_of, registry

NAME = "base:1"


@pytest.fixture
def served(tmp_path: Path, client: docker.DockerClient) -> Iterator[Registry]:
    """A registry of which the engine keeps nothing afterwards."""
    with registry(tmp_path / "registry") as running:
        yield running
    for image in client.api.images(all=True):
        if any(digest.startswith(running.address) for digest in image["RepoDigests"] or ()):
            client.api.remove_image(image["Id"], force=True)


@pytest.fixture
def publish(served: Registry, client: docker.DockerClient, tmp_path: Path) -> Callable[[], str]:
    """Puts a base image under the same tag, another one at each call, and gives its reference."""
    shell = list(APPLETS)

    def put() -> str:
        shell.append(f"other{len(shell)}")
        with image_of(client.api, f"stagebuild-{served.address.partition(':')[2]}", busybox(shell)) as image:
            return served.push(client.api, image, NAME)

    return put


@pytest.fixture
def cheap(publish: Callable[[], str], new_project: Callable[..., Project]) -> Project:
    """A project on what was published first."""
    return new_project(image=publish(), install_cmd="true", build_cmd="true", test_cmd="true")


def base_of(run) -> str:
    """What the row of the base image shows as its digest."""
    [digest] = re.findall(r"^base .*(sha256:[0-9a-f]{12})$", run.output, re.MULTILINE)
    return digest


def test_it_is_pulled_where_it_is_missing_and_found_here_from_then_on(cheap, served):
    reference = f"{served.address}/{NAME}"
    first = cheap.stagebuild()
    assert first.code == 0
    assert re.search(rf"^stagebuild pulling {reference}: \d+\.\d", first.output, re.MULTILINE)

    served.stop()
    second = cheap.stagebuild()
    assert second.code == 0
    assert second.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert "pulling" not in second.output
    assert base_of(second) == base_of(first)


def test_a_tag_that_has_moved_is_seen_when_the_base_is_rebuilt_and_is_the_reason_for_what_runs(cheap, publish):
    before = base_of(cheap.stagebuild())
    publish()
    unasked = cheap.stagebuild()
    assert unasked.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert base_of(unasked) == before

    asked = cheap.stagebuild("--stagebuild-rebuild=base")
    assert asked.code == 0
    assert asked.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert base_of(asked) != before
    assert f"(base image changed {before} -> {base_of(asked)})" in asked.output
    assert "(deps-installed is new)" in asked.row("build")
    assert cheap.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


def test_a_tag_that_has_not_moved_rebuilds_nothing(cheap):
    cheap.stagebuild()
    run = cheap.stagebuild("--stagebuild-rebuild=base")
    assert run.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


def test_a_registry_that_is_down_leaves_the_image_that_is_here_and_says_so(cheap, served):
    cheap.stagebuild()
    served.stop()
    run = cheap.stagebuild("--stagebuild-rebuild=base")
    assert run.code == 0
    assert run.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    reference = f"{served.address}/{NAME}"
    assert f"{reference} was not pulled anew, and the image that is here is used: " in run.output
    assert "connection refused" in run.output


def test_an_image_that_nobody_has_ends_the_run_before_it_begins(cheap, served):
    reference = f"{served.address}/nothing:1"
    run = cheap.stagebuild(f"--stagebuild-image=tag:{reference}")
    assert run.code == 4
    said = (
        f"ERROR: the image {reference} is not here, and the engine could not pull it: "
        f"manifest for {reference} not found: manifest unknown: manifest unknown\n"
        f"Check the name and that its registry answers, log in there (docker login {served.address}), or bring it in "
        f"offline: `docker save {reference} -o image.tar` where it is and `docker load -i image.tar` here, or "
        f"`docker import rootfs.tar {reference}`.\n"
    )
    assert said in run.output
    assert "stagebuild install" not in run.output
