"""A real engine, images on it, and projects that pytest processes of their own take through their stages there."""

from __future__ import annotations

import contextlib
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

from projects import LONGEST, PYTHON_IMAGE, ForeignProject, Project, making_projects


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


@pytest.fixture
def new_project(tmp_path: Path, client: docker.DockerClient) -> Iterator[Callable[..., Project]]:
    with making_projects(tmp_path, client) as make:
        yield make


@pytest.fixture(scope="module")
def new_shared_project(
    tmp_path_factory: pytest.TempPathFactory, client: docker.DockerClient
) -> Iterator[Callable[..., Project]]:
    """The same for projects that all tests of a module use."""
    with making_projects(tmp_path_factory.mktemp("shared"), client) as make:
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


@pytest.fixture(params=["root", "user"])
def base(request: pytest.FixtureRequest) -> str:
    """Images without a USER and with one."""
    return PYTHON_IMAGE if request.param == "root" else str(request.getfixturevalue("image_with_user"))


@pytest.fixture
def project(new_project: Callable[..., Project], base: str) -> Project:
    """A project whose stages are cheap: install and build copy a file each, the tests compare."""
    project = new_project(
        image=base,
        install_cmd="cp requirements.txt installed.txt",
        build_cmd="cat installed.txt module.txt > built.txt",
        test_cmd="cat built.txt; test -s built.txt",
    )
    project.write({"requirements.txt": "one\n", "module.txt": "code\n"})
    return project


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "client" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)
