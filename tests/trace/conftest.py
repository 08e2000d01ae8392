"""Each real engine, and images to trace on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.local.engine import STORE_VARIABLE
from pytest_stagebuild.engines.protocol import Engine, StoredImage

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

from places import Place
from readers import PYTHON_IMAGE, image_with_readers


@pytest.fixture(scope="session")
def docker() -> Iterator[DockerEngine]:
    engine = DockerEngine.connect()
    yield engine
    engine.close()


@pytest.fixture(scope="session", params=["docker", "local"])
def engine(
    request: pytest.FixtureRequest, docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    if request.param == "docker":
        yield docker
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, str(tmp_path_factory.mktemp("store")))
        engine = LocalEngine.connect()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def bring(
    engine: Engine, docker: DockerEngine, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[StoredImage], StoredImage]:
    """Brings an image that was made on Docker to the engine."""

    def brought(image: StoredImage) -> StoredImage:
        if engine is docker:
            return image
        saved = tmp_path_factory.mktemp("saved") / "image.tar"
        with saved.open("wb") as file:
            file.writelines(docker._connection.client.get_image(image.id))
        found = engine.pull_image(str(saved), lambda _: None)
        saved.unlink()
        return found

    return brought


@pytest.fixture(scope="session")
def python_image(docker: DockerEngine, engine: Engine, request: pytest.FixtureRequest) -> StoredImage:
    if engine is not docker:
        return request.getfixturevalue("image_of_readers")  # it is the same with a few files more
    image = docker.find_image(PYTHON_IMAGE)
    assert image, f"the image {PYTHON_IMAGE} is not here: scripts/ensure-image {PYTHON_IMAGE}"
    return image


@pytest.fixture(scope="session")
def image_of_readers(docker: DockerEngine, bring: Callable[[StoredImage], StoredImage]) -> Iterator[StoredImage]:
    with image_with_readers(docker) as image:
        yield bring(image)


@pytest.fixture
def new_place(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
    """Makes source trees on an image, with commands of install and build."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    places: list[Place] = []

    def make(image: StoredImage, *, install: str = "true", build: str = "true") -> Place:
        root = tmp_path / f"trace-{tmp_path.name.lower()[:40]}-{len(places)}"
        places.append(Place(root, engine, image.id, install, build))
        return places[-1]

    yield make
    for place in places:
        place.forget()
        assert not place.images()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)
