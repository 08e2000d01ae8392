"""An edited source on top of what a checkpoint holds: the same, whether the engine or the image's ``tar`` extracts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare import busybox
from worlds import World, members_of, run

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import Engine, StoredImage
from pytest_stagebuild.source import SourceTree

LONG = "long/" + "n" * 250
ODD = os.fsdecode(b"od\xffd/\xe9 \n'\"\\name")

FILES = {
    "changed": b"old",
    "script.sh": b"#!/bin/sh\n",
    "no-script.sh": b"#!/bin/sh\n",
    LONG: b"old",
    ODD: b"old",
    "same/kept": b"kept",
}
EDITED = {"changed": b"new", LONG: b"new", ODD: b"new", "same/added": b"\0\xff" * 70_000}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name, content in FILES.items():
        _write(root / name, content)
        os.utime(root / name, (1e9, 1e9))
    (root / "script.sh").chmod(0o755)
    (root / "link").symlink_to("changed")
    return root


def test_on_every_engine(real: World, tree: Path) -> None:
    _check(real.engine, real.image, tree)


@pytest.fixture
def with_busybox(docker: DockerEngine) -> Iterator[StoredImage]:
    name = f"stagebuild-test-edits-{os.getpid()}"
    applets = ("sh", "tar", "head", "cat", "find", "sleep", "rm")
    docker._connection.client.import_image_from_data(busybox(applets), repository=name, tag="tar")
    image = docker.find_image(f"{name}:tar")
    assert image
    yield image
    docker.remove_image(image.id)


def test_with_busybox(docker: DockerEngine, with_busybox: StoredImage, tree: Path) -> None:
    _check(docker, with_busybox, tree)


def test_without_options_of_the_image_for_tar(docker_world: World, docker: DockerEngine, tree: Path) -> None:
    name, api = docker_world.name("options"), docker._connection.client
    container = api.create_container(docker_world.image.id, "true", labels=docker_world.labels)
    try:
        api.commit(container, *name.split(":"), changes=["ENV TAR_OPTIONS=--strip-components=1"])
    finally:
        api.remove_container(container)
    image = docker.find_image(name)
    assert image
    assert "TAR_OPTIONS=--strip-components=1" in image.config.env
    _check(docker, image, tree)


def _check(engine: Engine, image: StoredImage, root: Path) -> None:
    before = SourceTree.read(root)
    with engine.sandbox(image, labels={}, network=False, life=300) as sandbox:
        sandbox.put(before.upload(None, owner=sandbox.owner, not_before=0))
        for name, content in EDITED.items():
            (root / name).unlink(missing_ok=True)
            _write(root / name, content)
        (root / "script.sh").chmod(0o644)
        (root / "no-script.sh").chmod(0o755)
        after = SourceTree.read(root)
        made = time.time() - 60
        upload = after.upload(before.manifest, owner=sandbox.owner, not_before=made)
        assert upload.is_plain
        sandbox.put(upload, later=True)
        sandbox.start()
        run(sandbox, "true")
        found = members_of(sandbox.get("/src"))
    expected = {**FILES, **EDITED}
    assert {name: data for name, (member, data) in found.items() if member.isreg()} == {
        f"src/{name}": data for name, data in expected.items()
    }
    assert {name: member.linkname for name, (member, _) in found.items() if member.issym()} == {"src/link": "changed"}
    assert {name for name, (member, _) in found.items() if member.isreg() and member.mode & 0o100} == {
        "src/no-script.sh"
    }
    assert {(member.uid, member.gid) for member, _ in found.values()} == {(sandbox.owner.uid, sandbox.owner.gid)}
    newer = {name for name, (member, _) in found.items() if member.isreg() and member.mtime > made}
    assert newer == {f"src/{name}" for name in (*EDITED, "script.sh", "no-script.sh")}


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
