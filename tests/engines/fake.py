"""A fake engine: the protocol of ``engines/``, in memory, without a clock, a container or a process.

::

    engine = FakeEngine({"python:3.11-slim": {"/etc/os-release": b"Debian"}})
    engine.programs["pip"] = lambda shell, words: shell.files.write("/lib/site", b"") or 0
    engine.fail_at["commit"] = EngineError("no space left on device")     # once, instead of the commit
    engine.fail_at["after commit"] = KeyboardInterrupt()                  # once, when it has been done
    engine.registry["python:3.12-slim"] = {"/bin/sh": b""}                # what can be pulled
    assert engine.calls == ["find_image", "sandbox", "put", ...]
    assert not engine.sandboxes                                           # what is still there
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import sys
import tarfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from pytest_stagebuild.engines.protocol import (
    CommandExit,
    ImageConfig,
    OutputSink,
    Owner,
    PullProgress,
    Sandbox,
    StoredImage,
)
from pytest_stagebuild.engines.protocol import (
    Program as PythonProgram,
)
from pytest_stagebuild.engines.users import resolve_user
from pytest_stagebuild.errors import EngineError, ImageUnavailable

if TYPE_CHECKING:
    from typing_extensions import Self

if str(Path(__file__).parent) not in sys.path:  # for whoever loads this file by its path
    sys.path.append(str(Path(__file__).parent))

from fake_files import Files, OutOfTime, Program, Shell

_START = 1_700_000_000.0


class FakeEngine:
    """Images and sandboxes in dictionaries; ids and times are the same in every run."""

    name = "docker"
    platform = "linux/amd64"

    def __init__(
        self,
        images: Mapping[str, Mapping[str, bytes]] | None = None,
        *,
        identity: str = "docker:fake",
        config: ImageConfig | None = None,
    ) -> None:
        self.identity = identity
        self.fail_at: MutableMapping[str, BaseException] = {}
        self.calls: list[str] = []
        self.programs: dict[str, Program] = {}
        self.registry: dict[str, Mapping[str, bytes]] = {}
        self.tags: dict[str, str] = {}
        self.images: dict[str, StoredImage] = {}
        self.trees: dict[str, Files] = {}
        self.parents: dict[str, str] = {}
        self.sandboxes: dict[str, FakeSandbox] = {}
        self.orphans: list[str] = []
        self.watches = True
        self.lends = False
        self._made = 0
        for name, contents in (images or {"python:3.11-slim": {"/etc/os-release": b"Debian\n"}}).items():
            self.add_image(name, contents, config=config or ImageConfig(cmd=("python3",)))

    def add_image(self, name: str, contents: Mapping[str, bytes], *, config: ImageConfig | None = None) -> StoredImage:
        return self.store(name, Files.of(contents), (), config or ImageConfig(), {})

    def store(
        self, name: str, tree: Files, below: tuple[str, ...], config: ImageConfig, labels: Mapping[str, str]
    ) -> StoredImage:
        self._made += 1
        seen = [[path, node.kind, node.mode, node.data.hex()] for path, node in sorted(tree.nodes.items())]
        layer = "sha256:" + hashlib.sha256(json.dumps(seen).encode()).hexdigest()
        id_ = "sha256:" + hashlib.sha256(f"{self._made} {layer}".encode()).hexdigest()
        size = sum(len(node.data) for node in tree.nodes.values())
        created = _START + self._made
        image = StoredImage(id_, (*below, layer), config, self.platform, dict(labels), size, created)
        self.images[id_], self.trees[id_] = image, tree.copy()
        self.tags[name] = id_
        return image

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.calls.append(name)
        if error := self.fail_at.pop(name, None):
            raise error
        yield
        if error := self.fail_at.pop(f"after {name}", None):
            raise error

    @property
    def default_image(self) -> str | None:
        return None

    @property
    def shares_network(self) -> bool:
        return False

    @property
    def lends_networks(self) -> bool:
        return self.lends

    def describe(self) -> str:
        return "docker 0 (fake) at memory"

    def find_image(self, reference: str) -> StoredImage | None:
        with self.step("find_image"):
            for name in (reference, f"{reference}:latest"):
                if image := self.images.get(self.tags.get(name, name)):
                    return image
            return None

    def pull_image(self, reference: str, progress: Callable[[PullProgress], None]) -> StoredImage:
        with self.step("pull_image"):
            if reference not in self.registry:
                raise ImageUnavailable(
                    f"the image {reference} is not here, and the engine could not pull it: not found"
                )
            contents = self.registry[reference]
            total = sum(map(len, contents.values()))
            progress(PullProgress(reference, 0, None))
            progress(PullProgress(reference, total, total))
            return self.add_image(reference, contents)

    def images_with(self, labels: Mapping[str, str], *, but: Collection[str] = ()) -> list[StoredImage]:
        with self.step("images_with"):
            images = (image for image in self.images.values() if image.id not in but)
            found = [image for image in images if labels.items() <= image.labels.items()]
            return sorted(found, key=lambda image: image.created, reverse=True)

    def remove_image(self, image: str) -> bool:
        with self.step("remove_image"):
            used = {sandbox.image.id for sandbox in self.sandboxes.values()} | set(self.parents.values())
            if image in used:
                return False
            self.forget(image)
            return True

    def forget(self, image: str) -> None:
        """Take an image away as someone else would, behind our back."""
        for held in (self.images, self.trees, self.parents):
            held.pop(image, None)
        self.tags = {name: id_ for name, id_ in self.tags.items() if id_ != image}

    def sandbox(
        self,
        image: StoredImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        after: Sandbox | None = None,
        beside: PythonProgram | None = None,
    ) -> FakeSandbox:
        with self.step("sandbox"):
            if image.id not in self.images:
                raise ImageUnavailable(f"the image {image.id} is gone. Run again.")
            self._made += 1
            lender = after.lends(network=network) if after else None
            assert lender is None or isinstance(lender, FakeSandbox)
            sandbox = FakeSandbox(self, f"stagebuild-{self._made:04x}", image, labels, network=network, lender=lender)
            self.sandboxes[sandbox.name] = sandbox
            return sandbox

    def sweep(self) -> list[str]:
        with self.step("sweep"):
            swept, self.orphans = self.orphans, []
            for name in swept:
                self.sandboxes.pop(name, None)
            return swept

    def close(self) -> None:
        self.calls.append("close")


class FakeSandbox:
    def __init__(
        self,
        engine: FakeEngine,
        name: str,
        image: StoredImage,
        labels: Mapping[str, str],
        *,
        network: bool,
        lender: FakeSandbox | None = None,
    ) -> None:
        self.engine, self.name, self.image = engine, name, image
        self.labels = {**image.labels, **labels}
        self.network = network
        self.lender = lender
        self.files = engine.trees[image.id].copy()
        self.running: list[str] = []
        self.environments: list[dict[str, str]] = []
        self.state: Literal["created", "started", "removed"] = "created"

    @property
    def owner(self) -> Owner:
        passwd, group = (
            self.files.read(path).decode() if self.files.exists(path) else "" for path in ("/etc/passwd", "/etc/group")
        )
        return resolve_user(self.image.config.user, passwd, group)

    def put(self, archive: Iterable[bytes], *, later: bool = False) -> None:
        with self.engine.step("put"):
            assert self.state != "removed"
            with tarfile.open(fileobj=io.BytesIO(b"".join(archive)), mode="r:") as opened:
                self.files.extract(opened)

    def get(self, path: str) -> Iterator[bytes]:
        with self.engine.step("get"):
            return iter([self.files.archive(path)])

    def start(self) -> None:
        with self.engine.step("start"):
            assert self.state == "created", "a sandbox is started once"
            self.state = "started"
            self.check_network()

    def check_network(self) -> None:
        assert self.lender is None or self.lender.state == "started", "a sandbox has lost the network that it was lent"

    def run(
        self,
        command: str,
        *,
        cwd: str,
        env: Mapping[str, str],
        timeout: float | None,
        output: OutputSink,
        user: Literal["image", "root"] = "image",
        meanwhile: Callable[[], None] | None = None,
    ) -> CommandExit:
        with self.engine.step("run"):
            if meanwhile is not None:
                meanwhile()
            if self.state != "started":
                raise EngineError(f"the engine could not start a command: {self.name} is not running")
            self.check_network()
            own = dict(variable.partition("=")[::2] for variable in self.image.config.env)
            self.environments.append({**own, **env})
            deadline = float("inf") if timeout is None else timeout
            shell = Shell(self.files, {**own, **env}, cwd, output, self.engine.programs, self.running, deadline)
            try:
                return CommandExit(shell.run(command), shell.clock)
            except OutOfTime:
                self.running.clear()
                return CommandExit(137, deadline, timed_out=True)

    @property
    def listens(self) -> bool:
        return False

    def run_beside(self, program: PythonProgram, *, at_once: bool = True) -> FakeWatcher | FakeFollower:
        with self.engine.step("run_beside"):
            return FakeWatcher(self, program.arguments) if len(program.arguments) > 1 else FakeFollower()

    def end_processes(self) -> list[str]:
        with self.engine.step("end_processes"):
            ended = list(self.running)
            self.running.clear()
            return ended

    def changed_files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        with self.engine.step("changed_files"):
            before = self.engine.trees[self.image.id].nodes
            for path, node in sorted(self.files.nodes.items()):
                if path not in before or (node.kind != "folder" and before[path] != node):
                    yield path, iter([node.data])

    def lends(self, *, network: bool) -> FakeSandbox | None:
        return (self.lender or self) if self.engine.lends and network == self.network else None

    def commit(self, reference: str, labels: Mapping[str, str]) -> StoredImage:
        with self.engine.step("commit"):
            assert labels.items() <= self.labels.items(), "an image is found by labels that the sandbox has"
            kept = self.files.copy()
            for path in self.image.config.volumes:
                kept.remove(path)
            engine, image = self.engine, self.image
            stored = engine.store(reference, kept, image.layers, replace(image.config), self.labels)
            engine.parents[stored.id] = image.id
            return stored

    def remove(self) -> None:
        with self.engine.step("remove"):
            self.state = "removed"
            self.engine.sandboxes.pop(self.name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class FakeFollower:
    """Is never there in time: what is in a file is read at the end."""

    def line(self, timeout: float) -> str | None:
        return None

    def complaint(self) -> str:
        return "there is no Python in the image"


class FakeWatcher:
    """Knows what commands use, since it has their file system in hand; ``engine.watches = False`` takes it away."""

    def __init__(self, sandbox: FakeSandbox, arguments: Sequence[str]) -> None:
        self.files, self.engine = sandbox.files, sandbox.engine
        self.root, self.listed, *_ = arguments
        self.sent = [os.fsdecode(path) for path in self.files.read(self.listed).split(b"\0")[:-1]]
        self.files.used.clear()
        self.begun = False

    def line(self, timeout: float) -> str | None:
        if not self.engine.watches:
            return None
        if not self.begun:
            self.begun = True
            return "ready"
        assert self.listed not in self.files.nodes
        used = {posixpath.relpath(path, self.root) for path in self.files.used if path.startswith(self.root)}
        gone = {path for path in self.sent if posixpath.join(self.root, path) not in self.files.nodes}
        files = [path for path in self.sent if path in used | gone]
        folders = {posixpath.dirname(path) for path in used} | {path for path in used if path not in files}
        return json.dumps({"files": files, "folders": sorted("" if folder == "." else folder for folder in folders)})

    def complaint(self) -> str:
        return "there is no Python in the image"
