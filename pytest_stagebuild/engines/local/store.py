"""The store: images as folders of layers, the folders of sandboxes, and what is left of those that broke off.

::

    store.json                 the store's own UUID
    images/ID/image.json       what the image is, and the layers that it stands on
    images/ID/fs/              its own layer, never written again
    images/ID/durable          on disk for certain; holds the bytes of the layer
    sandboxes/NAME/            owner.json, and the layer that is being made
    trash/                     what is being removed

An image appears by one rename and is known to be on disk only later, when ``durable`` is written. One that was made
under an earlier boot of the machine and never got that far may lack anything, and is removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from pytest_stagebuild.engines.owner import Process, provably_gone, start_of, this_process
from pytest_stagebuild.engines.protocol import ImageConfig, StoredImage
from pytest_stagebuild.errors import EngineUnavailable
from pytest_stagebuild.state import make_cache
from pytest_stagebuild.values import dataclass

SCHEMA: Final = 1
"""Goes up whenever what the store holds gets another shape."""

_CLOSING: Final = 10.0
"""Seconds that the end of a run waits for what was made to be on disk, and for what was thrown away to be gone."""


@dataclass(frozen=True)
class LocalImage:
    """An image as the store has it.

    ``layers`` tell it from every other, ``stack`` are the ids of the images whose layers it is made of, its own last;
    ``binds`` are paths of the host that appear in its sandboxes, with their sources. ``boot`` is when it was made.
    """

    id: str
    names: tuple[str, ...]
    labels: Mapping[str, str]
    config: ImageConfig
    layers: tuple[str, ...]
    stack: tuple[str, ...]
    platform: str
    created: float
    boot: str
    binds: Mapping[str, str] = field(default_factory=dict)
    title: str = ""

    def to_bytes(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LocalImage:
        """Raises ``ValueError`` for anything that :meth:`to_bytes` does not write."""
        try:
            value = json.loads(data)
            if value.pop("schema") != SCHEMA:
                raise ValueError("another schema")
            config = value["config"]
            for name in _WORDS:
                config[name] = None if config[name] is None else tuple(config[name])
            for name in ("names", "layers", "stack"):
                value[name] = tuple(value[name])
            return cls(**{**value, "config": ImageConfig(**config)})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError("not an image of the store") from error


_WORDS: Final = ("env", "entrypoint", "cmd", "volumes")


class Store:
    """A store on disk, shared by every run of its user."""

    def __init__(self, path: Path, *, shift: int) -> None:
        """``shift`` is the user id that root has in the layers. Raises :class:`EngineUnavailable`."""
        self.path = path
        self._shift = shift
        try:
            make_cache(path, 0o700)
            self._refuse_strangers()
            for name in ("images", "sandboxes", "trash"):
                (path / name).mkdir(exist_ok=True, mode=0o700)
            self.uuid = self._own_uuid()
        except OSError as error:
            raise EngineUnavailable(
                f"the local engine cannot keep its store at {path}: {error.strerror or error}. "
                "Name a folder of yours on a local disk in PYTEST_STAGEBUILD_STORE."
            ) from error
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._work: list[threading.Thread] = []
        self._parsed: dict[str, tuple[int, LocalImage]] = {}

    # Images

    def images(self) -> list[LocalImage]:
        """Those that are whole, the newest first."""
        found = {}
        for folder in self._folders("images"):
            with contextlib.suppress(OSError, ValueError):
                image = self._read(folder)
                if image.id == folder.name and (image.boot == self._boot or (folder / "durable").exists()):
                    found[image.id] = image
        whole = [image for image in found.values() if all(one in found for one in image.stack)]
        return sorted(whole, key=lambda image: image.created, reverse=True)

    def find(self, reference: str) -> LocalImage | None:
        """The image of this id or name."""
        return next((image for image in self.images() if reference in (image.id, *image.names)), None)

    def stored(self, image: LocalImage) -> StoredImage:
        """The same in the words of the protocol."""
        sizes = [self._size_of(one) for one in image.stack]
        return StoredImage(
            id=image.id,
            layers=image.layers,
            config=image.config,
            platform=image.platform,
            labels=image.labels,
            size=sum(sizes) if all(sizes) else 0,
            own_size=sizes[-1],
            created=image.created,
            title=image.title,
        )

    def layer(self, image: str) -> Path:
        return self.path / "images" / image / "fs"

    def publish(self, sandbox: Path, image: LocalImage) -> LocalImage:
        """Make an image of what a sandbox wrote that has ended; it takes its names from those that have them."""
        made = replace(image, boot=self._boot)
        (sandbox / "image").mkdir(mode=0o700)
        (sandbox / "image" / "image.json").write_bytes(made.to_bytes())
        os.rename(sandbox / "upper", sandbox / "image" / "fs")
        with self._lock:
            for other in self.images():
                if kept := set(other.names) & set(made.names):
                    self._rename(other, tuple(name for name in other.names if name not in kept))
            os.rename(sandbox / "image", self.path / "images" / made.id)
        self._discard(sandbox)
        self._behind(self._make_durable, made.id)
        return made

    def remove_image(self, image: str) -> bool:
        """False where another image stands on it or a sandbox uses it."""
        with self._lock:
            others = [one for one in self.images() if one.id != image]
            if any(image in one.stack for one in others) or any(image in owner.stack for owner in self._owners()):
                return False
            self._discard(self.path / "images" / image)
        return True

    # Sandboxes

    def new_sandbox(self, name: str, image: LocalImage) -> Path:
        """A folder for a sandbox on ``image``. Raises ``FileNotFoundError`` where the image is gone."""
        folder = self.path / "sandboxes" / name
        with self._lock:
            for one in image.stack:
                if not self.layer(one).is_dir():
                    raise FileNotFoundError(image.id)
            folder.mkdir(mode=0o700)
            (folder / "owner.json").write_text(
                json.dumps({"owner": this_process().to_label(), "stack": [*image.stack]})
            )
        parts = [folder / part for part in ("upper", "work", "root")]
        for path in parts:
            path.mkdir()
            path.chmod(0o755)  # whatever this process masks
        if self._shift:
            for path in (folder, *parts):
                os.chown(path, self._shift, self._shift)
        return folder

    def make_layer(self, folders: Mapping[str, int], files: Sequence[str], links: Mapping[str, str]) -> Path:
        """A sandbox's folder whose layer holds these folders with their modes, empty files, and links."""
        made = self.path / "sandboxes" / uuid.uuid4().hex
        with self._lock:
            made.mkdir(mode=0o700)
            (made / "owner.json").write_text(json.dumps({"owner": this_process().to_label(), "stack": []}))
        upper = made / "upper"
        upper.mkdir()
        for path in folders:
            (upper / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for path in files:
            file = upper / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        for path, target in links.items():
            (upper / path.lstrip("/")).symlink_to(target)
        for one in (upper, *upper.rglob("*")):
            os.chown(one, self._shift or -1, self._shift or -1, follow_symlinks=False)
            if not one.is_symlink():
                one.chmod(folders.get(f"/{one.relative_to(upper)}", 0o755 if one.is_dir() else 0o644))
        return made

    def drop_sandbox(self, name: str) -> None:
        """Remove the folder of a sandbox that has ended."""
        self._discard(self.path / "sandboxes" / name)

    def sweep(self) -> list[str]:
        """Remove what is no use to anybody, and give the names of the sandboxes among it."""
        swept = [owner.sandbox for owner in self._owners() if provably_gone(owner.process, this_process(), start_of)]
        for name in swept:
            self.drop_sandbox(name)
        with self._lock:
            known = {owner.sandbox for owner in self._owners()}
            for folder in self._folders("sandboxes"):
                # Without an owner it was broken off between two steps, or is just being made, under the lock.
                if folder.name not in known:
                    self._discard(folder)
            whole = {image.id for image in self.images()}
            for folder in self._folders("images"):
                if folder.name not in whole:
                    self._discard(folder)
                elif not (folder / "durable").exists():
                    self._behind(self._make_durable, folder.name)
        for folder in self._folders("trash"):
            self._behind(_remove, folder)
        return swept

    def proven(self) -> bool:
        """Whether a sandbox has worked in these circumstances."""
        with contextlib.suppress(OSError):
            return (self.path / "proven").read_text() == self._circumstances()
        return False

    def now_proven(self) -> None:
        with contextlib.suppress(OSError):
            (self.path / "proven").write_text(self._circumstances())

    def _circumstances(self) -> str:
        """What decides whether the kernel allows a sandbox, besides its settings: a container may share the store."""
        there = self.path.stat()
        facts = [self._boot, str(there.st_dev), str(there.st_ino), os.readlink("/proc/self/ns/user")]
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/status").read_text().splitlines()
            facts += [line for line in lines if line.startswith(("Uid:", "CapBnd:", "NoNewPrivs:", "Seccomp"))]
        with contextlib.suppress(OSError):
            facts.append(Path("/proc/self/attr/current").read_text().strip("\0\n"))
        return "\n".join(facts)

    def close(self) -> None:
        """Wait for what goes on behind, within reason: the next run comes to the rest."""
        end = time.monotonic() + _CLOSING
        with contextlib.suppress(KeyboardInterrupt):  # whoever has no patience loses nothing
            for thread in self._work:
                thread.join(max(0.0, end - time.monotonic()))

    # What goes on behind

    def _behind(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="stagebuild-store", daemon=True)
        self._work.append(thread)
        thread.start()

    def _make_durable(self, image: str) -> None:
        from pytest_stagebuild.engines.local.runtime.kernel import synchronise

        folder = self.path / "images" / image
        with contextlib.suppress(OSError):  # it may be removed meanwhile
            synchronise(self.path)
            size = sum(_sizes(folder / "fs"))
            descriptor = os.open(folder / "durable.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, b"%d" % size)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(folder / "durable.new", folder / "durable")

    def _discard(self, folder: Path) -> None:
        aside = self.path / "trash" / uuid.uuid4().hex
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder, aside)
            self._behind(_remove, aside)

    # The rest

    def _read(self, folder: Path) -> LocalImage:
        """Raises ``OSError`` and ``ValueError``."""
        path = folder / "image.json"
        written = path.stat().st_mtime_ns
        known = self._parsed.get(folder.name)
        if known is None or known[0] != written:
            known = self._parsed[folder.name] = (written, LocalImage.from_bytes(path.read_bytes()))
        return known[1]

    def _size_of(self, image: str) -> int:
        """The bytes of an image's own layer, 0 where they have not been counted yet."""
        try:
            return int((self.path / "images" / image / "durable").read_text())
        except (OSError, ValueError):
            return 0

    def _rename(self, image: LocalImage, names: tuple[str, ...]) -> None:
        path = self.path / "images" / image.id / "image.json"
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(replace(image, names=names).to_bytes())
        os.replace(temporary, path)

    def _owners(self) -> list[_Owner]:
        owners = []
        for folder in self._folders("sandboxes"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                value = json.loads((folder / "owner.json").read_text())
                process = Process.from_label(value["owner"])
                if process:
                    owners.append(_Owner(folder.name, process, tuple(value["stack"])))
        return owners

    def _folders(self, kind: str) -> list[Path]:
        return [Path(entry.path) for entry in os.scandir(self.path / kind)]

    @cached_property
    def _lock(self) -> contextlib.AbstractContextManager[object]:
        from filelock import FileLock

        return FileLock(self.path / "lock")

    def _refuse_strangers(self) -> None:
        there = self.path.stat()
        if there.st_uid != os.geteuid() or there.st_mode & 0o022:
            raise EngineUnavailable(
                f"the local engine's store {self.path} can be written by others: whoever does decides what runs here. "
                f"Remove it, or make it yours alone (chown, chmod 700)."
            )
        for parent in self.path.resolve().parents:
            if parent.stat().st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
                raise EngineUnavailable(
                    f"the local engine's store {self.path} lies in {parent}, where everybody can put another folder in "
                    f"its place: whoever does decides what runs here. Make that yours (chmod o-w), or name a folder "
                    "elsewhere in PYTEST_STAGEBUILD_STORE."
                )
        if stat.S_IMODE(there.st_mode) != 0o700:
            self.path.chmod(0o700)

    def _own_uuid(self) -> str:
        path = self.path / "store.json"
        if known := _uuid_in(path):
            return known
        with self._lock:
            if known := _uuid_in(path):
                return known
            own = str(uuid.uuid4())
            path.write_text(json.dumps({"uuid": own}))
        return own


def flat_name(image: str) -> str:
    """The name of an image with the same content as ``image``, on fewer layers."""
    return f"flat:{image}"


def _uuid_in(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text())["uuid"])
    return ""


@dataclass(frozen=True)
class _Owner:
    """The process that a sandbox belongs to, and the layers that it stands on."""

    sandbox: str
    process: Process
    stack: tuple[str, ...]


def _sizes(folder: Path) -> Iterator[int]:
    waiting = [str(folder)]  # a tree may be deeper than Python can call itself
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                yield entry.stat(follow_symlinks=False).st_blocks * 512


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "work" / "work").chmod(0o700)  # the kernel makes it with no permissions at all
    try:
        shutil.rmtree(folder)
    except (OSError, RecursionError):
        # A folder that even its owner may not change, or one too deep for Python.
        script = 'chmod -R u+rwx -- "$1"; rm -rf -- "$1"'
        subprocess.run(["/bin/sh", "-c", script, "sh", folder], stderr=subprocess.DEVNULL, check=False)
