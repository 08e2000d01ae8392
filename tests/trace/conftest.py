"""An engine, and images to trace on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import StoredImage

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

from places import Place
from readers import PYTHON_IMAGE, image_with_readers


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerEngine]:
    engine = DockerEngine.connect()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def python_image(engine: DockerEngine) -> StoredImage:
    image = engine.find_image(PYTHON_IMAGE)
    assert image, f"the image {PYTHON_IMAGE} is not here: scripts/ensure-image {PYTHON_IMAGE}"
    return image


@pytest.fixture(scope="session")
def image_of_readers(engine: DockerEngine) -> Iterator[StoredImage]:
    with image_with_readers(engine) as image:
        yield image


@pytest.fixture
def new_place(engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
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
