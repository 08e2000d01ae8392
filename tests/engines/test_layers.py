"""Files that the engine is handed as a layer: what is on an image made so, and that nothing is left of it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_engine import IMAGE, own_engine
from worlds import World, members_of, run, tar_of

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.docker import engine as docker_engine
from pytest_stagebuild.engines.docker.transport import Response, UnixSocket
from pytest_stagebuild.engines.owner import this_process
from pytest_stagebuild.engines.protocol import Engine, Owner, StoredImage, TakesLayers
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.source import SourceTree

pytestmark = pytest.mark.engine

ODD = os.fsdecode(b"od\xffd/\xe9 \n'\"\\name")


@pytest.fixture
def tree(tmp_path: Path) -> SourceTree:
    root = tmp_path / "tree"
    for name, content in {"plain": b"\0\xff" * 70_000, "deep/er/long" + "n" * 200: b"1", ODD: b"2"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
        os.utime(root / name, (1e9, 1e9))
    (root / "script.sh").write_bytes(b"#!/bin/sh\n")
    (root / "script.sh").chmod(0o755)
    (root / "link").symlink_to("nowhere")
    return SourceTree.read(root)


def sent(tree: SourceTree) -> Iterator[bytes]:
    return iter(tree.upload(None, owner=Owner(0, 0), not_before=0))


def layered(docker: DockerEngine, image: StoredImage, archive: Iterator[bytes]) -> StoredImage:
    made = docker.add_layer(image, archive, most=1 << 30)
    assert made is not None
    return made


def left(docker: DockerEngine) -> set[str]:
    """The images of this process: others may be at work on the same engine."""
    here = f'"pid": {os.getpid()},'
    images = docker._connection.client.images(all=True, filters={"label": "pytest-stagebuild.owner"})
    return {one["Id"] for one in images if here in one["Labels"]["pytest-stagebuild.owner"]}


def test_a_layer_holds_what_would_have_been_put(docker_world: World, docker: DockerEngine, tree: SourceTree) -> None:
    def content(image: StoredImage, archive: Iterator[bytes]) -> dict[str, tuple[object, ...]]:
        with docker_world.sandbox(image) as sandbox:
            sandbox.put(archive)
            found = members_of(sandbox.get("/src")).items()
        return {
            name: (one.mode, one.uid, one.gid, one.mtime, one.type, one.linkname, data) for name, (one, data) in found
        }

    put = content(docker_world.image, sent(tree))
    made = layered(docker, docker_world.image, sent(tree))
    try:
        assert content(made, iter([tar_of({})])) == put
    finally:
        docker.remove_layered(made)
    assert stat.S_IMODE(int(str(put["src/script.sh"][0]))) == 0o755
    assert len(put) == 9


def test_the_image_is_like_the_one_below(docker: DockerEngine, docker_with_user: StoredImage, tree: SourceTree) -> None:
    made = layered(docker, docker_with_user, sent(tree))
    try:
        inspect = docker._connection.client.inspect_image
        theirs, ours = inspect(docker_with_user.id), inspect(made.id)
        assert ours["RootFS"]["Layers"][:-1] == theirs["RootFS"]["Layers"]
        labels = {**theirs["Config"].pop("Labels"), "pytest-stagebuild.owner": this_process().to_label()}
        assert ours["Config"].pop("Labels") == labels
        assert ours["Config"] == theirs["Config"]
        assert made.platform == docker_with_user.platform
        history = docker._connection.client.history(made.id)
        assert [one["Comment"] for one in history][:2] == ["the source, by pytest-stagebuild", "of the base image"]
        assert len(history) == len(made.layers)
    finally:
        docker.remove_layered(made)


def test_without_a_use_nothing_is_left(docker_world: World, docker: DockerEngine, tree: SourceTree) -> None:
    before = left(docker)
    made = layered(docker, docker_world.image, sent(tree))
    assert left(docker) - before
    docker.remove_layered(made)
    assert left(docker) == before
    docker.remove_layered(made)  # no error where it is gone


def test_it_goes_with_what_was_made_of_it(docker_world: World, docker: DockerEngine, tree: SourceTree) -> None:
    before = left(docker)
    made = layered(docker, docker_world.image, sent(tree))
    with docker_world.sandbox(made) as sandbox:
        sandbox.start()
        run(sandbox, "echo more >/src/more")
        checkpoint = sandbox.commit(docker_world.name("one"), docker_world.labels)
    docker.remove_layered(made)
    with docker_world.sandbox(checkpoint) as sandbox:
        sandbox.start()
        assert run(sandbox, "cat more; wc -c <plain").stdout == b"more\n140000\n"
        on_top = sandbox.commit(docker_world.name("two"), docker_world.labels)
    assert checkpoint.layers[:-1] == made.layers
    assert left(docker) - before == {made.id, checkpoint.id, on_top.id}
    assert not docker.remove_image(checkpoint.id)
    assert docker.remove_image(on_top.id)
    assert left(docker) - before == {made.id, checkpoint.id}
    assert docker.remove_image(checkpoint.id)
    assert left(docker) == before


def test_an_image_of_somebodys_below_a_checkpoint_stays(
    docker_world: World, docker: DockerEngine, tree: SourceTree
) -> None:
    client = docker._connection.client
    made = layered(docker, docker_world.image, sent(tree))
    with docker_world.sandbox(made) as sandbox:
        theirs = str(client.commit(sandbox.name)["Id"])  # without a name, and with the labels of the sandbox
    docker.remove_layered(made)
    image = docker.find_image(theirs)
    assert image
    try:
        with docker_world.sandbox(image) as sandbox:
            checkpoint = sandbox.commit(docker_world.name(), docker_world.labels)
        assert docker.remove_image(checkpoint.id)
        assert docker.find_image(theirs)
    finally:
        assert docker.remove_image(theirs)


def test_what_a_killed_run_left_is_swept(docker_world: World, docker: DockerEngine, tree: SourceTree) -> None:
    before = left(docker)
    program = f"""
import os, signal
from pathlib import Path
from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.source import SourceTree
engine = DockerEngine.connect()
tree = SourceTree.read(Path({str(tree.root)!r}))
image = engine.find_image({docker_world.image.id!r})
print(engine.add_layer(image, tree.upload(None, owner=Owner(0, 0), not_before=0), most=1 << 30).id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    of_mine = layered(docker, docker_world.image, iter([tar_of({"mine": b""})]))
    try:
        assert docker.find_image(killed.stdout.strip()), killed.stderr
        docker.sweep()
        assert not docker.find_image(killed.stdout.strip())
        assert docker.find_image(of_mine.id)
    finally:
        docker.remove_layered(of_mine)
    assert left(docker) == before


def test_what_nobody_can_be_asked_about_goes_after_a_day(
    docker_world: World, docker: DockerEngine, tree: SourceTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = layered(docker, docker_world.image, sent(tree))
    try:
        monkeypatch.setattr(docker_engine, "provably_gone", lambda *_: False)
        monkeypatch.setattr(docker_engine, "_DAY", 3600)
        docker.sweep()
        assert docker.find_image(made.id)
        monkeypatch.setattr(docker_engine, "_DAY", -3600)
        with docker_world.sandbox(made):
            docker.sweep()
            assert docker.find_image(made.id)
        docker.sweep()
        assert not docker.find_image(made.id)
    finally:
        docker.remove_layered(made)


def test_one_that_a_killed_run_left_its_name_goes_with_what_was_made_of_it_too(
    docker_world: World, docker: DockerEngine, tree: SourceTree
) -> None:
    before = left(docker)
    with docker_world.sandbox(layered(docker, docker_world.image, sent(tree))) as sandbox:
        checkpoint = sandbox.commit(docker_world.name(), docker_world.labels)
    assert docker.remove_image(checkpoint.id)
    assert left(docker) == before


def test_an_interrupt_while_the_engine_takes_it_leaves_nothing(
    docker_world: World, docker: DockerEngine, tree: SourceTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = UnixSocket.request

    def interrupted(self: UnixSocket, method: str, target: str, *, body: Any, **more: Any) -> Response:
        if "/images/load" not in target:
            return request(self, method, target, body=body, **more)
        sent = threading.Event()

        def noted() -> Iterator[bytes]:
            yield from body
            sent.set()

        threading.Thread(target=lambda: request(self, method, target, body=noted(), **more).whole()).start()
        sent.wait()
        raise KeyboardInterrupt

    before = left(docker)
    monkeypatch.setattr(UnixSocket, "request", interrupted)
    with pytest.raises(KeyboardInterrupt):
        docker.add_layer(docker_world.image, sent(tree), most=1 << 30)
    assert left(docker) == before


def test_more_than_is_wanted_as_a_layer_is_refused(docker_world: World, docker: DockerEngine) -> None:
    before = left(docker)
    with pytest.raises(EngineError, match="the files are more than 1000 bytes"):
        docker.add_layer(docker_world.image, iter([b"\0" * 1001]), most=1000)
    assert left(docker) == before


def test_what_the_engine_does_not_take_is_an_error_and_leaves_nothing(
    docker_world: World, docker: DockerEngine
) -> None:
    before = left(docker)
    with pytest.raises(EngineError, match="the engine could not take the files as a layer: "):
        docker.add_layer(docker_world.image, iter([b"no archive" * 1000]), most=1 << 30)
    assert left(docker) == before


def test_an_error_of_the_archive_is_its_own_and_leaves_nothing(docker_world: World, docker: DockerEngine) -> None:
    def broken() -> Iterator[bytes]:
        yield tar_of({"a": b""})
        raise KeyError("ours")

    before = left(docker)
    with pytest.raises(KeyError, match="ours"):
        docker.add_layer(docker_world.image, broken(), most=1 << 30)
    assert left(docker) == before


def test_a_disk_that_runs_full_leaves_nothing() -> None:
    with own_engine(size=72_000_000) as own:
        own.load()
        with own.connected() as engine:
            image = engine.find_image(IMAGE)
            assert image
            before = left(engine)
            with pytest.raises(EngineError, match=r"could not take the files as a layer: .*no space left"):
                engine.add_layer(image, iter([tar_of({"big": os.urandom(80_000_000)})]), most=1 << 30)
            assert left(engine) == before


def test_where_the_engine_keeps_images_otherwise_it_is_not_tried(
    docker: DockerEngine, docker_base: StoredImage
) -> None:
    engine = DockerEngine.connect()
    try:
        engine.__dict__["_what_it_is"] = {**engine._what_it_is, "Driver": "overlayfs"}
        assert engine.add_layer(docker_base, iter([]), most=1) is None
    finally:
        engine.close()


def test_podman_takes_none(podman: DockerEngine, podman_base: StoredImage) -> None:
    assert podman.add_layer(podman_base, iter([]), most=1) is None


def test_which_engines_can(docker: DockerEngine, local: Engine) -> None:
    assert isinstance(docker, TakesLayers)
    assert not isinstance(local, TakesLayers)
