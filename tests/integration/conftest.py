"""A real engine, images on it, and projects that pytest processes of their own take through their stages there."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from filelock import FileLock

from pytest_stagebuild.errors import EngineUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))

from grounds import PYTHON_IMAGE, DockerGround, Ground, local_ground
from own_podman import OwnPodman, own_podman
from projects import LONGEST, ForeignProject, Project, making_projects


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env(timeout=LONGEST)) as client:
        yield client


@pytest.fixture(scope="session")
def image_with_user(client: docker.DockerClient) -> Iterator[str]:
    """An image like the base, whose commands run as a user other than root."""
    name = f"stagebuild-test/user:{uuid.uuid4().hex[:8]}"
    added = "useradd --create-home --uid 1234 app"
    container = client.containers.create(PYTHON_IMAGE, ["sh", "-c", added])
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0
        container.commit(*name.split(":"), conf={"User": "app", "Cmd": ["python3"]})
    finally:
        container.remove(force=True)
    yield name
    client.images.remove(name, force=True)


@pytest.fixture(scope="session")
def on_docker(client: docker.DockerClient) -> Ground:
    return DockerGround(client)


@pytest.fixture(scope="session")
def on_docker_with_user(client: docker.DockerClient, image_with_user: str) -> Ground:
    return DockerGround(client, image_with_user)


@pytest.fixture(scope="session")
def podman_service(client: docker.DockerClient) -> Iterator[OwnPodman]:
    """A Podman of its own that answers as Docker does, and has the base image."""
    with own_podman() as service:
        service.bring(PYTHON_IMAGE, client.api)
        yield service


@pytest.fixture(scope="session")
def on_podman(podman_service: OwnPodman) -> Iterator[Ground]:
    address = podman_service.address
    with contextlib.closing(docker.DockerClient(base_url=address, timeout=LONGEST)) as podman:
        yield DockerGround(podman, environ={"DOCKER_HOST": address})


@pytest.fixture(scope="session")
def on_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """The local engine, whose store the workers of one run share: the image that it stands on is made once."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with contextlib.ExitStack() as stack:
        with FileLock(folder / "store.lock"):
            try:
                ground = stack.enter_context(local_ground(folder / "store"))
            except EngineUnavailable as error:
                pytest.skip(f"no local engine: {error}")
        yield ground


@pytest.fixture(scope="module", params=["docker"])
def ground(request: pytest.FixtureRequest) -> Ground:
    """Docker, where a test does not say otherwise."""
    return request.getfixturevalue(f"on_{request.param}")


@pytest.fixture
def new_project(tmp_path: Path, ground: Ground) -> Iterator[Callable[..., Project]]:
    with making_projects(tmp_path, ground) as make:
        yield make


@pytest.fixture(scope="module")
def new_shared_project(tmp_path_factory: pytest.TempPathFactory, ground: Ground) -> Iterator[Callable[..., Project]]:
    """The same for projects that all tests of a module use."""
    with making_projects(tmp_path_factory.mktemp("shared"), ground) as make:
        yield make


@pytest.fixture(scope="module")
def new_copy(new_shared_project: Callable[..., Project]) -> Callable[[Path], ForeignProject]:
    """Makes copies of projects that live elsewhere."""

    def copy(original: Path) -> ForeignProject:
        project = new_shared_project(original.name, ForeignProject)
        assert isinstance(project, ForeignProject)
        left_out = shutil.ignore_patterns(".stagebuild", ".tox", "__pycache__", ".pytest_cache", "dist", "target")
        shutil.copytree(original, project.root, ignore=left_out, dirs_exist_ok=True)
        return project

    return copy


@pytest.fixture(params=["docker", "docker_with_user", "local"])
def each_ground(request: pytest.FixtureRequest) -> Ground:
    """Each engine, and images without a USER and with one."""
    return request.getfixturevalue(f"on_{request.param}")


@pytest.fixture
def project(tmp_path: Path, each_ground: Ground) -> Iterator[Project]:
    """A project whose stages are cheap: install and build copy a file each, the tests compare."""
    with making_projects(tmp_path, each_ground) as make:
        project = make(
            install_cmd="cp requirements.txt installed.txt",
            build_cmd="cat installed.txt module.txt > built.txt",
            test_cmd="cat built.txt; test -s built.txt",
        )
        project.write({"requirements.txt": "one\n", "module.txt": "code\n"})
        yield project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"client", "ground", "each_ground"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.engine)
