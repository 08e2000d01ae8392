"""What projects stand on: an engine with a base image, looked at from without, past the plugin."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import docker
import pytest

from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.local.engine import STORE_VARIABLE
from pytest_stagebuild.engines.local.store import LocalImage, Store
from pytest_stagebuild.engines.owner import start_of

PYTHON_IMAGE = "python:3.11-slim"

LABEL = "pytest-stagebuild."

on_each_engine = pytest.mark.parametrize("ground", ["docker", "local"], indirect=True)
"""For tests of what a project does that depends on its engine, but not on its image."""


class Ground(Protocol):
    """An engine with a base image.

    ``table`` is what the table of a project says to be here, ``environ`` what its processes find in their environment,
    ``base`` how the summary names the base image, ``header`` how the header begins to name the engine, and ``argument``
    is in the command lines of what keeps a sandbox.
    """

    table: Mapping[str, object]
    environ: Mapping[str, str]
    base: str
    argument: bytes

    @property
    def name(self) -> str:
        """The engine's."""

    def images(self, **labels: str) -> list[str]:
        """The ids of the images that have these labels of ours, the newest first."""

    def labels(self, image: str) -> dict[str, str]:
        """All of them, without what is before the last dot in ours."""

    def remove_image(self, image: str) -> None:
        """Without a word to anybody, if nothing else stands on it."""

    def built_on(self, image: str, project: str) -> str:
        """An image that somebody makes of this one, with the labels that it has from that."""

    def kept(self, image: str, folder: Path) -> dict[str, bytes]:
        """Everything that is kept of an image of two stages but for its base, by path; ``folder`` is for this."""

    def sandboxes(self, pids: Sequence[int]) -> list[str]:
        """The names of those that are there and were made by these processes."""

    def remove_sandbox(self, name: str) -> None:
        """With all that runs in it."""

    def sweep(self) -> None:
        """What the next run does for one that was killed."""

    def runs(self, pid: int, command: str) -> bool:
        """Whether a command runs in a sandbox that this process made."""

    def going_on(self, pid: int) -> Callable[[], list[str]]:
        """Gives what is left of what goes on now in sandboxes that this process made, or one that it started."""


# Docker


@dataclass(frozen=True)
class DockerGround:
    """An engine behind Docker's API."""

    client: docker.DockerClient
    image: str = PYTHON_IMAGE
    environ: Mapping[str, str] = field(default_factory=dict)
    argument: bytes = b"pytest-stagebuild-keeper"

    @property
    def name(self) -> str:
        return "docker"

    @property
    def base(self) -> str:
        return self.image

    @property
    def table(self) -> Mapping[str, object]:
        return {} if self.image == PYTHON_IMAGE else {"image": self.image}

    def images(self, **labels: str) -> list[str]:
        filters = {"label": [f"{LABEL}{name}={value}" for name, value in labels.items()]}
        return [image.id for image in self.client.images.list(all=True, filters=filters)]

    def labels(self, image: str) -> dict[str, str]:
        return {name.removeprefix(LABEL): value for name, value in self.client.images.get(image).labels.items()}

    def remove_image(self, image: str) -> None:
        with contextlib.suppress(docker.errors.APIError):
            self.client.api.remove_image(image, force=True)

    def built_on(self, image: str, project: str) -> str:
        container = self.client.containers.create(self.image, labels=self.client.images.get(image).labels)
        theirs = container.commit("stagebuild-test/theirs", project)
        container.remove()
        return str(theirs.id)

    def kept(self, image: str, folder: Path) -> dict[str, bytes]:
        archive = folder / "image.tar"
        with archive.open("wb") as file:
            for piece in self.client.images.get(image).save(named=True):
                file.write(piece)
        told = [self.client.api.inspect_image(image), self.client.api.history(image)]
        files = {"as the engine tells it": json.dumps(told).encode()}
        with tarfile.open(archive) as outer:
            [manifest] = json.load(outer.extractfile("manifest.json"))
            ours = manifest["Layers"][-2:]
            assert len(manifest["Layers"]) > len(ours)
            for member in outer:
                if not member.isreg() or member.name in manifest["Layers"][:-2]:
                    continue
                content = outer.extractfile(member).read()
                files[member.name] = content
                if member.name in ours:
                    with tarfile.open(fileobj=io.BytesIO(content)) as layer:
                        files |= {inner.name: content for inner in layer}
        archive.unlink()
        return files

    def sandboxes(self, pids: Sequence[int]) -> list[str]:
        return [one["Names"][0] for one in self._containers() if _owner(one["Labels"]) in pids]

    def remove_sandbox(self, name: str) -> None:
        self.client.api.remove_container(name, force=True)

    def sweep(self) -> None:
        """A container ends with its run, and what was never started is removed by the tests that leave it."""

    def runs(self, pid: int, command: str) -> bool:
        for found in self._containers(all=False):
            if _owner(found["Labels"]) == pid:
                with contextlib.suppress(docker.errors.APIError):  # it may be gone by now
                    top = self.client.api.top(found["Id"])
                    return any(command in line[-1] for line in top["Processes"] or ())
        return False

    def going_on(self, pid: int) -> Callable[[], list[str]]:
        pids = [pid, *descendants(pid)]
        return lambda: self.sandboxes(pids)

    def _containers(self, *, all: bool = True) -> list[dict]:  # noqa: A002 - as the API has it
        found = self.client.api.containers(all=all, filters={"label": f"{LABEL}owner"})
        # One without a name is no container any more, though an engine that was killed may still list it.
        return [one for one in found if one["Names"]]


def _owner(labels: Mapping[str, str]) -> int:
    return json.loads(labels[f"{LABEL}owner"])["pid"]


# The local engine


@dataclass(frozen=True)
class LocalGround:
    """The embedded engine, with a store that all tests share."""

    store: Store
    environ: Mapping[str, str]
    base: str = "host"
    table: Mapping[str, object] = field(default_factory=lambda: {"engine": "local"})
    argument: bytes = b"runtime.zygote"

    @property
    def name(self) -> str:
        return "local"

    def images(self, **labels: str) -> list[str]:
        wanted = {f"{LABEL}{name}": value for name, value in labels.items()}
        return [image.id for image in self.store.images() if wanted.items() <= image.labels.items()]

    def labels(self, image: str) -> dict[str, str]:
        return {name.removeprefix(LABEL): value for name, value in self._image(image).labels.items()}

    def remove_image(self, image: str) -> None:
        self.store.remove_image(image)

    def built_on(self, image: str, project: str) -> str:
        """As a later version might keep it, or a user who copies folders."""
        copy = uuid.uuid4().hex
        value = json.loads((self.store.layer(image).parent / "image.json").read_text())
        value |= {"id": copy, "names": [f"stagebuild-test/theirs:{project}"], "stack": [*value["stack"][:-1], copy]}
        (self.store.layer(copy)).mkdir(parents=True)
        (self.store.layer(copy).parent / "image.json").write_text(json.dumps(value))
        return copy

    def kept(self, image: str, folder: Path) -> dict[str, bytes]:
        """Whatever else the store holds is looked through too."""
        files: dict[str, bytes] = {}
        for one in self._image(image).stack[-2:]:
            below = self.store.layer(one)
            files |= files_below(below) | {f"{one}/image.json": (below.parent / "image.json").read_bytes()}
        for name in ("sandboxes", "trash"):
            files |= {f"{name}/{path}": content for path, content in files_below(self.store.path / name).items()}
        return files

    def sandboxes(self, pids: Sequence[int]) -> list[str]:
        return [one.sandbox for one in self.store._owners() if one.process.pid in pids]

    def remove_sandbox(self, name: str) -> None:
        self.store.drop_sandbox(name)

    def sweep(self) -> None:
        self.store.sweep()

    def runs(self, pid: int, command: str) -> bool:
        return any(command in arguments for arguments in map(_arguments, descendants(pid)) if arguments)

    def going_on(self, pid: int) -> Callable[[], list[str]]:
        here = _mounts_of(os.getpid())
        pids = {one: start_of(one) for one in descendants(pid)}
        ours = {one: start for one, start in pids.items() if _mounts_of(one) != here or "zygote" in _arguments(one)}
        spaces = {_mounts_of(one) for one in ours} - {here, None}

        def left() -> list[str]:
            living = [one for one, start in ours.items() if start is not None and start_of(one) == start]
            inside = [one for one in _processes() if _mounts_of(one) in spaces]
            mounts = [
                line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(self.store.path) in line
            ]
            return [f"{one} {_arguments(one)}" for one in {*living, *inside}] + mounts

        return left

    def _image(self, image: str) -> LocalImage:
        return next(one for one in self.store.images() if one.id == image)


@contextlib.contextmanager
def local_ground(folder: Path) -> Iterator[LocalGround]:
    """The engine with its store in ``folder``, where the image ``host`` is made for all to use."""
    environ = {STORE_VARIABLE: str(folder)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(STORE_VARIABLE, str(folder))
        with contextlib.closing(LocalEngine.connect()) as engine:
            if engine.find_image("host") is None:
                engine.pull_image("host", lambda _: None)
    yield LocalGround(engine._store, environ)
    engine._store.close()


def files_below(folder: Path) -> dict[str, bytes]:
    """The files and what links say, by path; what others remove meanwhile is left out."""
    files = {}
    for here, folders, names in os.walk(folder):
        for path in (Path(here, name) for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):
                if path.is_symlink():
                    files[str(path.relative_to(folder))] = os.fsencode(path.readlink())
                elif path.is_file():
                    files[str(path.relative_to(folder))] = path.read_bytes()
    return files


# Processes of this machine


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and they, and so on."""
    parents = {}
    for one in _processes():
        with contextlib.suppress(OSError):
            parents[one] = int(Path(f"/proc/{one}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def _arguments(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _mounts_of(pid: int) -> str | None:
    """What tells the mounts that it sees from those of others; None where that is not ours to know."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None
