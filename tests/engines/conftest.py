"""Engines to test against, and images on them. What cannot be had is skipped with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.local.engine import STORE_VARIABLE
from pytest_stagebuild.engines.owner import this_process
from pytest_stagebuild.engines.protocol import Engine, ImageConfig, StoredImage
from pytest_stagebuild.errors import EngineUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

from fake import FakeEngine
from own_podman import own_podman
from with_user import CONFIGURATION, INSTRUCTIONS, add_user, image_with_user
from worlds import BASE, PASSWD, World


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    try:
        engine = DockerEngine.connect()
    except EngineUnavailable as error:
        pytest.skip(f"no Docker engine: {error}")
    before = set(_containers(engine))
    yield engine
    left = set(_containers(engine)) - before
    engine.close()
    assert not left, f"containers left behind: {left}"


def _containers(engine: DockerEngine) -> list[str]:
    here = f'"pid": {os.getpid()}'
    found = engine._connection.client.containers(all=True, filters={"label": "pytest-stagebuild.owner"})
    return [one["Names"][0] for one in found if here in one["Labels"]["pytest-stagebuild.owner"]]


@pytest.fixture(scope="session")
def docker_base(docker: DockerEngine) -> StoredImage:
    image = docker.find_image(BASE)
    if image is None:
        pytest.skip(f"the image {BASE} is not here: docker pull {BASE}, or scripts/ensure-image")
    return image


@pytest.fixture(scope="session")
def docker_with_user(docker: DockerEngine, docker_base: StoredImage) -> Iterator[StoredImage]:
    """The base image with a named user, an environment and all else that a configuration can hold."""
    with image_with_user(docker, docker_base, {"conf": CONFIGURATION}) as image:
        yield image


@pytest.fixture(scope="session")
def podman(docker: DockerEngine, docker_base: StoredImage) -> Iterator[DockerEngine]:
    """A Podman of our own, behind its Docker-compatible socket, with the base image."""
    with _podman(docker, rootless=False) as engine:
        yield engine


@pytest.fixture(scope="session")
def rootless_podman(docker: DockerEngine, docker_base: StoredImage) -> Iterator[DockerEngine]:
    """The same of an ordinary user."""
    with _podman(docker, rootless=True) as engine:
        yield engine


@contextmanager
def _podman(docker: DockerEngine, *, rootless: bool) -> Iterator[DockerEngine]:
    with own_podman(rootless=rootless) as service:
        service.bring(BASE, docker._connection.client)
        with service.connected() as engine:
            yield engine
            left = _containers(engine)
    assert not left, f"containers left behind: {left}"


@pytest.fixture(scope="session")
def podman_base(podman: DockerEngine) -> StoredImage:
    image = podman.find_image(BASE)
    assert image
    return image


@pytest.fixture(scope="session")
def rootless_podman_base(rootless_podman: DockerEngine) -> StoredImage:
    image = rootless_podman.find_image(BASE)
    assert image
    return image


@pytest.fixture(scope="session")
def podman_with_user(podman: DockerEngine, podman_base: StoredImage) -> Iterator[StoredImage]:
    """The same as far as Podman can be told."""
    with image_with_user(podman, podman_base, {"changes": INSTRUCTIONS}) as image:
        yield image


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, str(shared_folder(tmp_path_factory) / "store"))
        try:
            engine = LocalEngine.connect()
        except EngineUnavailable as error:
            pytest.skip(f"no local engine: {error}")
    yield engine
    engine.close()
    left = [owner for owner in engine._store._owners() if owner.process == this_process()]
    assert not left, f"sandboxes left behind: {left}"


@pytest.fixture(scope="session")
def local_base(local: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> StoredImage:
    """The same image as on Docker, imported once for all workers."""
    folder = shared_folder(tmp_path_factory)
    with FileLock(folder / "image.lock"):
        if (found := local.find_image(BASE)) is None:
            docker_command("save", "-o", folder / "image.tar", BASE)
            found = local.pull_image(str(folder / "image.tar"), lambda _: None)
            (folder / "image.tar").unlink()
    return found


@pytest.fixture(scope="session")
def local_host(local: LocalEngine, tmp_path_factory: pytest.TempPathFactory) -> StoredImage:
    """This machine's own system."""
    with FileLock(shared_folder(tmp_path_factory) / "host.lock"):
        return local.find_image("host") or local.pull_image("host", lambda _: None)


@pytest.fixture(scope="session")
def local_with_user(local: LocalEngine, local_base: StoredImage) -> Iterator[StoredImage]:
    """The base image with a named user and an environment."""
    with local.sandbox(local_base, labels={}, network=False, life=300) as sandbox:
        add_user(sandbox)
        config = ImageConfig(("PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello world"), "app", "/home/app")
        sandbox._image = replace(sandbox._image, config=config)
        image = sandbox.commit(f"stagebuild-test/user:{uuid.uuid4().hex}", {})
    yield image
    local.remove_image(image.id)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the workers of one run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder


def docker_command(*arguments: str | Path) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


@pytest.fixture
def test_id() -> str:
    return uuid.uuid4().hex[:12]


@pytest.fixture
def world_of(test_id: str) -> Iterator[Callable[[Engine, StoredImage], World]]:
    worlds: list[World] = []

    def make(engine: Engine, image: StoredImage) -> World:
        worlds.append(World(engine, image, test_id))
        return worlds[-1]

    yield make
    for world in worlds:
        for image in world.engine.images_with(world.labels):
            world.engine.remove_image(image.id)
        assert not world.engine.images_with(world.labels)


REAL = {
    "docker-root": ("docker", "docker_base"),
    "docker-user": ("docker", "docker_with_user"),
    "podman-root": ("podman", "podman_base"),
    "podman-user": ("podman", "podman_with_user"),
    "podman-rootless": ("rootless_podman", "rootless_podman_base"),
    "local-root": ("local", "local_base"),
    "local-user": ("local", "local_with_user"),
}
"""The fixtures of each engine and of an image on it, without a USER or with one."""


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.engine)
        for name in REAL
        if name not in ("podman-user", "podman-rootless")  # each takes a minute, and does what podman-root does
    ]
)
def real(request: pytest.FixtureRequest, world_of: Callable[[Engine, StoredImage], World]) -> World:
    """Each real engine, on an image without a USER and on one with it."""
    engine, image = REAL[request.param]
    return world_of(request.getfixturevalue(engine), request.getfixturevalue(image))


@pytest.fixture(params=["fake-root", "fake-user", *REAL])
def world(request: pytest.FixtureRequest, world_of: Callable[[Engine, StoredImage], World]) -> World:
    """Each engine, the fake too: what holds for both can be relied on in tests with the fake."""
    if request.param in REAL:
        engine, image = REAL[request.param]
        return world_of(request.getfixturevalue(engine), request.getfixturevalue(image))
    config = ImageConfig(env=("GREETING=hello world",), user="app" if request.param == "fake-user" else "")
    fake = FakeEngine({BASE: {"/etc/passwd": PASSWD}}, config=config)
    base = fake.find_image(BASE)
    assert base
    return world_of(fake, base)


@pytest.fixture
def docker_world(
    docker: DockerEngine, docker_base: StoredImage, world_of: Callable[[Engine, StoredImage], World]
) -> World:
    return world_of(docker, docker_base)
