"""The tar by which a source tree, or what has changed of it, goes into a sandbox."""

from __future__ import annotations

import math
import os
import tarfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_stagebuild.source.manifest import Entry, Kind, Manifest, folders_above, path_of, raw_path
from pytest_stagebuild.source.reading import ATTEMPTS, Folders, LargeFile, Loaded, kept_changing, load

if TYPE_CHECKING:
    from pytest_stagebuild.engines.protocol import Owner

_PIECE: Final = 512 * 1024
"""Archives come in pieces of about this many bytes: each is a write to the engine's socket."""

_LONG_AGO: Final = -(2**62)


class Upload:
    """An uncompressed GNU tar of what differs from ``parent``, to be extracted at ``/``; it can be iterated once.

    What is read while it is iterated is what counts: :attr:`sent` afterwards is the manifest of the whole tree with
    the digests of the bytes that went out. GNU's format keeps names that are not UTF-8 as they are.
    """

    def __init__(
        self, root: Path, manifest: Manifest, parent: Manifest | None, *, owner: Owner, not_before: float, top: str
    ) -> None:
        self.top: Final = top
        self.manifest: Final = manifest
        self.files = 0
        """How many files and links were sent."""
        self.size = 0
        """How many bytes of content were sent."""
        self._root = root
        self._owner = owner
        self._now = math.floor(time.time())
        # Products of a stage carry times up to the checkpoint's, cut to seconds by a commit; a changed source must be
        # newer than those, or cargo and make keep the products.
        self._not_before = _LONG_AGO if parent is None else math.floor(not_before) + 1
        same = parent is not None and parent == manifest
        old = {} if parent is None or same else parent.entries
        now = {} if same else manifest.entries
        self._is_first = parent is None
        self._old = old
        self._paths = sorted(path for path, entry in now.items() if old.get(path) != entry)
        self._unannounced = set(manifest.folders - Manifest(old).folders) if self._paths else set()
        self._sent: Manifest | None = None
        self._surprises: list[str] = []
        self._vanished: list[str] = []
        self._begun = False

    @property
    def is_plain(self) -> bool:
        """Whether it only adds and replaces files, in folders that are there, so that every ``tar`` does the same with
        it: some skip links and exit with 0 (https://github.com/rauc/rauc/issues/249). Known before the pass.
        """
        if self._is_first or self._unannounced or self.removed:
            return False
        sides = (self._old, self.manifest.entries)
        return all(side[path].kind != "link" for side in sides for path in self._paths if path in side)

    @property
    def sent(self) -> Manifest:
        """The manifest of the whole tree as the sandbox has it after this upload. Known after the pass."""
        if self._sent is None:
            raise RuntimeError("what was sent is known when the upload has been made")
        return self._sent

    @property
    def surprises(self) -> tuple[str, ...]:
        """The paths that were sent otherwise than the manifest said, or had vanished. Known after the pass."""
        return tuple(self._surprises)

    @property
    def removed(self) -> tuple[str, ...]:
        """The files of ``parent`` that are gone, sorted.

        Known before the pass, but for files that vanish during it, which are added then.
        """
        gone = self._old.keys() - self.manifest.entries.keys() if self._old else set()
        return tuple(sorted(gone.union(self._vanished)))

    @property
    def removed_folders(self) -> tuple[str, ...]:
        """The folders in which :attr:`removed` files lay and that hold nothing now, the deepest first."""
        now = self.manifest if self._sent is None else self.sent
        gone = {folder for path in self.removed for folder in folders_above(path)} - now.folders - now.entries.keys()
        return tuple(sorted(gone, key=lambda path: (-path.count("/"), path)))

    def __iter__(self) -> Iterator[bytes]:
        if self._begun:
            raise RuntimeError("an upload can be made once")
        self._begun = True
        # An empty chunk is what ends a body that is sent in chunks (RFC 9112, section 7.1).
        return filter(None, self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        sent = dict(self.manifest.entries) if self._paths else {}
        waiting: list[bytes] = []
        with Folders(self._root) as folders:
            waiting.append(self._folder(self.top, folders.enter(b"")))
            held = 0
            for path in self._paths:
                raw = raw_path(path)
                for above in folders_above(path):
                    if above in self._unannounced:
                        self._unannounced.remove(above)
                        waiting.append(self._folder(f"{self.top}/{above}", folders.enter(raw_path(above))))
                folder = folders.enter(raw.rpartition(b"/")[0])
                found = load(folder, raw) if folder is not None else None
                entry: Entry | None = None
                if isinstance(found, Loaded):
                    entry = Entry(found.kind, found.digest)
                    waiting += self._file(path, found)
                    held += len(found.content) + tarfile.BLOCKSIZE
                elif folder is not None and isinstance(found, LargeFile):
                    yield b"".join(waiting)
                    waiting, held = [], 0
                    entry = yield from self._large_file(path, folder, found)
                if entry is None:
                    self._vanished.append(path)
                    del sent[path]
                else:
                    self.files += 1
                    sent[path] = entry
                if entry != self.manifest.entries[path]:
                    self._surprises.append(path)
                if held >= _PIECE:
                    yield b"".join(waiting)
                    waiting, held = [], 0
        waiting.append(bytes(2 * tarfile.BLOCKSIZE))
        yield b"".join(waiting)
        self._sent = Manifest(sent) if self._surprises else self.manifest

    def _large_file(self, path: str, folder: int, found: LargeFile) -> Generator[bytes, None, Entry | None]:
        """Send a file that is not held in memory, and again where it changed on the way: the last member counts."""
        raw = raw_path(path)
        for _ in range(ATTEMPTS):
            yield self._header(
                f"{self.top}/{path}", tarfile.REGTYPE, mode=_mode(found.kind), size=found.size, mtime=found.mtime
            )
            yield from found
            yield _padding(found.size)
            if found.stable:
                self.size += found.size
                return Entry(found.kind, found.digest)
            again = load(folder, raw)
            if isinstance(again, Loaded):
                yield from self._file(path, again)
                return Entry(again.kind, again.digest)
            if not isinstance(again, LargeFile):
                return None
            found = again
        raise kept_changing(raw)

    def _file(self, path: str, found: Loaded) -> tuple[bytes, ...]:
        name = f"{self.top}/{path}"
        if found.kind == "link":
            target = path_of(found.content)
            return (self._header(name, tarfile.SYMTYPE, mode=0o777, mtime=found.mtime, target=target),)
        size = len(found.content)
        self.size += size
        header = self._header(name, tarfile.REGTYPE, mode=_mode(found.kind), size=size, mtime=found.mtime)
        return header, found.content, _padding(size)

    def _folder(self, name: str, handle: int | None) -> bytes:
        mtime = self._now if handle is None else os.fstat(handle).st_mtime_ns // 1_000_000_000
        return self._header(name, tarfile.DIRTYPE, mode=0o755, mtime=mtime)

    def _header(self, name: str, kind: bytes, *, mode: int, mtime: int, size: int = 0, target: str = "") -> bytes:
        member = tarfile.TarInfo(name)
        member.type = kind
        member.mode = mode
        member.size = size
        member.linkname = target
        member.uid = self._owner.uid
        member.gid = self._owner.gid
        member.mtime = max(min(mtime, self._now), self._not_before)
        return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _mode(kind: Kind) -> int:
    return 0o755 if kind == "executable" else 0o644


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)
