"""Engines that stop, break off and run full: always an error of the engine, never of the user's command."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import docker
import pytest
from own_engine import IMAGE, OwnEngine, own_engine
from proxies import Proxy
from worlds import World, run, tar_of, within

from pytest_stagebuild.ahead import Soon
from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.docker import sandbox as docker_sandbox
from pytest_stagebuild.engines.protocol import Sandbox, StoredImage
from pytest_stagebuild.errors import EngineError, ImageUnavailable

# The SDK leaves a socket open where its connection to an engine that has ended is refused.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

BIG = 24_000_000


@pytest.fixture
def own() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        engine.load()
        yield engine


@pytest.fixture
def full() -> Iterator[OwnEngine]:
    """An engine that has room for two files of the size BIG, and not for a third."""
    with own_engine(size=3 * BIG) as engine:
        engine.load()
        yield engine


def image_of(engine: DockerEngine) -> StoredImage:
    image = engine.find_image(IMAGE)
    assert image
    return image


def is_gone(engine: DockerEngine, name: str) -> bool:
    """Whether there is no such container, though it may be listed.

    An engine that comes back removes what it was running twice at once, and may then list a ghost without a name until
    it is started again: https://github.com/moby/moby/blob/v20.10.24/daemon/daemon.go, ``restore``.
    """
    try:
        engine._connection.client.inspect_container(name)
    except docker.errors.NotFound:
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_an_engine_that_stops_while_a_command_runs_is_no_failure_of_the_command(
    own: OwnEngine, how: signal.Signals
) -> None:
    running = threading.Event()

    def stop() -> None:
        running.wait()
        own.stop(how)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with own.connected() as engine:
        sandbox = engine.sandbox(image_of(engine), labels={}, network=False, life=60)
        sandbox.start()
        with pytest.raises(EngineError, match=r"the engine was stopped, or|the engine could not|the engine broke off"):
            sandbox.run("echo on; sleep 60", cwd="/", env={}, timeout=60, output=lambda *_: running.set())
    stopper.join()
    own.start()
    with own.connected() as engine:
        assert within(60, lambda: is_gone(engine, sandbox.name))
        with engine.sandbox(image_of(engine), labels={}, network=False, life=60) as sandbox:
            sandbox.start()
            assert run(sandbox, "echo on", cwd="/").stdout == b"on\n"


STEPS: dict[str, Callable[[Sandbox], object]] = {
    "put": lambda sandbox: sandbox.put([b"\0" * 10240]),
    "get": lambda sandbox: sandbox.get("/bin"),
    "start": lambda sandbox: sandbox.start(),
    "run": lambda sandbox: run(sandbox, "echo on", cwd="/"),
    "changed_files": lambda sandbox: list(sandbox.changed_files()),
    "end_processes": lambda sandbox: sandbox.end_processes(),
    "commit": lambda sandbox: sandbox.commit("stagebuild-test:1", {}),
    "remove": lambda sandbox: sandbox.remove(),
}


def test_every_step_on_an_engine_that_has_gone_says_so_and_what_to_do(
    own: OwnEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_sandbox, "_COMMIT_LOOKUP", 0.5)
    with own.connected() as engine:
        image = image_of(engine)
        sandbox = engine.sandbox(image, labels={}, network=False, life=60)
        own.stop(signal.SIGKILL)
        for step, take in STEPS.items():
            with pytest.raises(EngineError) as caught:
                take(sandbox)
            assert str(caught.value).endswith("Check that the engine still runs, then run again."), step
        for question in (lambda: engine.find_image(IMAGE), engine.sweep, lambda: engine.images_with({})):
            with pytest.raises(EngineError, match="Check that the engine still runs, then run again"):
                question()


def test_a_disk_that_runs_full_during_a_commit_leaves_no_image(full: OwnEngine) -> None:
    with full.connected() as engine:
        with engine.sandbox(image_of(engine), labels={"key": "1"}, network=False, life=60) as sandbox:
            sandbox.start()
            assert run(sandbox, f"head -c {2 * BIG} /dev/zero > /big", cwd="/").code == 0
            with pytest.raises(EngineError, match=r"could not commit the container: .*no space left on device"):
                sandbox.commit("stagebuild-test:full", {"key": "1"})
        assert engine.images_with({"key": "1"}) == []
        assert engine.find_image("stagebuild-test:full") is None
        with engine.sandbox(image_of(engine), labels={"key": "1"}, network=False, life=60) as sandbox:
            sandbox.start()
            assert run(sandbox, f"head -c {BIG} /dev/zero > /big", cwd="/").code == 0
            made = sandbox.commit("stagebuild-test:full", {"key": "1"})
        assert engine.images_with({"key": "1"}) == [made]


def test_a_disk_that_runs_full_while_files_are_sent_is_an_error_of_the_engine(full: OwnEngine) -> None:
    with (
        full.connected() as engine,
        engine.sandbox(image_of(engine), labels={}, network=False, life=60) as sandbox,
        pytest.raises(EngineError, match=r"could not take the files: .*no space left on device"),
    ):
        sandbox.put([tar_of({"big": b"\0" * 4 * BIG})])


def test_a_disk_that_runs_full_under_a_command_is_the_commands_own_failure(full: OwnEngine) -> None:
    with full.connected() as engine, engine.sandbox(image_of(engine), labels={}, network=False, life=60) as sandbox:
        sandbox.start()
        ran = run(sandbox, "cat /dev/zero > /big", cwd="/")
    assert ran.code == 1
    assert b"No space left on device" in ran.stderr


def test_after_a_prune_of_everything_the_images_are_gone_and_the_engine_goes_on(own: OwnEngine) -> None:
    with own.connected() as engine:
        image = image_of(engine)
        with own.client() as client:
            client.prune_containers()
            client.prune_images({"dangling": False})
        assert engine.find_image(IMAGE) is None
        with pytest.raises(ImageUnavailable, match=f"the image {image.id} is gone: .*Run again"):
            engine.sandbox(image, labels={}, network=False, life=60)


@pytest.fixture
def through_proxy(docker: DockerEngine, tmp_path: Path) -> Iterator[tuple[DockerEngine, Proxy]]:
    """The engine, reached through a proxy that can be told when to break off."""
    address = docker.describe().partition(" at ")[2].partition(" ")[0]
    if not address.startswith("unix://"):
        pytest.skip("the proxy stands before a Unix socket")

    def reach() -> socket.socket:
        there = socket.socket(socket.AF_UNIX)
        there.connect(address.removeprefix("unix://"))
        return there

    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        proxy = Proxy(listener, reach)
        with mock.patch.dict("os.environ", {"DOCKER_HOST": f"tcp://127.0.0.1:{listener.getsockname()[1]}"}):
            engine = DockerEngine.connect()
        stack.callback(engine.close)
        stack.callback(proxy.die)
        yield engine, proxy


def test_a_commit_that_is_not_answered_is_found_by_its_labels(
    docker_world: World, through_proxy: tuple[DockerEngine, Proxy]
) -> None:
    engine, proxy = through_proxy
    labels = {**docker_world.labels, "key": "1"}
    with engine.sandbox(docker_world.image, labels=labels, network=False, life=60) as sandbox:
        sandbox.put([b"\0" * 10240])
        proxy.cut_when = lambda sent, received: b"/commit?" in sent and sent.endswith(b"}")
        made = sandbox.commit(docker_world.name(), labels)
        proxy.cut_when = lambda sent, received: False
    assert proxy.cuts
    assert docker_world.engine.images_with(labels) == [made]
    assert docker_world.engine.find_image(docker_world.name()) == made


def test_an_engine_that_did_not_say_who_it_is_is_asked_once_more(docker_world: World) -> None:
    engine = DockerEngine.connect()
    try:
        engine._info = Soon(lambda: {}["interrupted"])
        assert engine.identity == docker_world.engine.identity
    finally:
        engine.close()
