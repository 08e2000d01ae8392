"""A file of members of a tar that came out of a sandbox and goes into another one, as they are and in one go.

Behind them stands an index of them with checksums, and no end of an archive, so that others can follow them. Whoever
controls a sandbox wrote what comes out of it: what is written down here is regular files, and links from one place to
another in it.

Some of it comes in units that never change once they are downloaded. What is written down of a unit the first time is
what is kept of it: the next file has the same bytes, whatever has become of them in a sandbox since.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import posixpath
import re
import struct
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.untrusted import members_in, pieces_of

LIMIT_BYTES: Final = 2 << 30
_LIMIT_FILES: Final = 400_000

_PIECE: Final = 1 << 20
_TRAILER: Final = struct.Struct(">IQ")
"""The checksum of the index before it, and its length. Both this and the index find accidents, not forgeries: who could
forge the file is its owner. CRC-32 takes a quarter of the time of SHA-256."""

_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 2048


class TooMuchError(StagebuildError):
    """More came out of a sandbox than is kept."""


def keep(
    archive: Iterator[bytes],
    path: Path,
    *,
    below: str,
    owner: Owner,
    is_kept: Callable[[str], bool],
    what: str,
    units: re.Pattern[str] | None = None,
    onto: bool = False,
    limit: int = LIMIT_BYTES,
) -> None:
    """Write down what ``is_kept`` of the folder that an archive holds, for ``owner`` and ``below`` that path.

    ``is_kept`` is asked for each file by its path in the folder; ``units`` matches the beginning of such a path that is
    a unit: a file, or a folder that is kept whole, and only with a link that leads to it. ``onto`` says that the folder
    was filled from the file at ``path``: its units need not be in the archive, and are taken from that file.

    That file is replaced whole, and left as it is where there is nothing to keep, or after an error:
    :class:`TooMuchError` for more than ``limit`` bytes, :class:`EngineError`, which names the archive as ``what``,
    where it is none, and ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w+b") as file, _opened(path if onto else None) as old:
            keeping = _Keeping(file, below, owner, units, old)
            members = members_in(archive, limit=limit, too_large=lambda: _too_much(limit), what=what)
            for number, (member, content) in enumerate(members):
                if number == _LIMIT_FILES:
                    raise _too_much(limit)
                name = _in_folder(member.name)
                if not member.isdir() and is_kept(name):
                    keeping.take(name, member, pieces_of(content, what) if content else iter(()))
            size, count = keeping.end()
            if size > limit or count > _LIMIT_FILES:
                raise _too_much(limit)
        if size:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108 - a name that mkstemp gave


def kept_members(path: Path) -> Iterator[bytes]:
    """The members in a file that :func:`keep` wrote, in pieces.

    All of it is looked through before the first: half a member would spoil the archive that it becomes a part of.
    Raises ``ValueError`` for a damaged one.
    """
    with path.open("rb") as file:
        parts = _index_of(file)
        for part in parts:
            file.seek(part.start)
            checksum = 0
            for piece in _pieces(file, part.size):
                checksum = zlib.crc32(piece, checksum)
            if checksum != part.checksum:
                raise ValueError(f"{path} is damaged")
        file.seek(0)
        yield from _pieces(file, sum(part.size for part in parts))


def units_in(path: Path) -> list[str]:
    """The units of which a file that :func:`keep` wrote has all. Raises as :func:`kept_members` does."""
    with path.open("rb") as file:
        return [*dict.fromkeys(part.unit for part in _index_of(file) if part.is_inside)]


def folder_header(path: str, owner: Owner) -> bytes:
    """A folder, as a part of an archive to which another one can follow."""
    header = tarfile.TarInfo(path.strip("/"))
    header.type, header.mode, header.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
    header.uid, header.gid = owner.uid, owner.gid
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@dataclasses.dataclass
class _Part:
    """Members in the file, and the unit that they stand or fall with: they are ``is_inside`` it, or lead to it."""

    unit: str
    is_inside: bool
    start: int
    size: int = 0
    members: int = 0
    checksum: int = 0


@dataclasses.dataclass
class _Old:
    """The file that is replaced."""

    file: IO[bytes] | None = None
    parts: list[_Part] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[_Old]:
    """Empty where there is no such file that could be read."""
    with contextlib.ExitStack() as leaving:
        old = _Old()
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                old.file = leaving.enter_context(path.open("rb"))
                old.parts = [part for part in _index_of(old.file) if part.is_inside]
        yield old


def _index_of(file: IO[bytes]) -> list[_Part]:
    """What stands in the file; raises ``ValueError`` where that does not fit its size."""
    size = os.fstat(file.fileno()).st_size
    try:
        file.seek(size - _TRAILER.size)
        checksum, length = _TRAILER.unpack(file.read())
        file.seek(size - _TRAILER.size - length)
        index = file.read(length)
    except (OSError, OverflowError, struct.error) as error:
        raise ValueError(f"{file.name} is damaged") from error
    if index and zlib.crc32(index) == checksum:
        parts = [_Part(*fields) for fields in json.loads(index)]
        if sum(part.size for part in parts) + length + _TRAILER.size == size:
            return parts
    raise ValueError(f"{file.name} is damaged")


class _Keeping:
    """Members as they are written down. A cache of uv's holds wheels unpacked: each is kept whole or not at all."""

    def __init__(self, file: IO[bytes], below: str, owner: Owner, units: re.Pattern[str] | None, old: _Old) -> None:
        self._file = file
        self._below = below
        self._owner = owner
        self._units = units
        self._old = old
        self._had = {part.unit for part in old.parts}
        self._now = time.time()
        self._folders: set[str] = set()
        self._files: set[str] = set()
        self._links: set[str] = set()
        self._parts: list[_Part] = []
        self._led_to: set[str] = set()
        self._spoilt: set[str] = set()

    def take(self, path: str, member: tarfile.TarInfo, content: Iterator[bytes]) -> None:
        """Write a member down, where it is of a kind that is kept and has a name that a file should have."""
        unit = self._unit(path)
        if unit in self._had:
            return
        header = self._header(path, member)
        if header is None:
            self._spoilt.add(unit)
            return
        self._make_folder(posixpath.dirname(path))
        if member.issym():
            unit = self._leads_to(path, member)
            self._links.add(path)
        if member.issym() or unit == path:
            self._led_to.add(unit)
        self._begin(unit, is_inside=not member.issym())
        self._write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        written = sum(self._write(piece) for piece in content)
        self._write(bytes(-written % tarfile.BLOCKSIZE))
        self._files.add(path)

    def end(self) -> tuple[int, int]:
        """Add the units that were there, leave out what is not whole, and seal the rest: its bytes and members.

        A wheel that no link leads to was not downloaded but built, or is not wanted any more.
        """
        for part in self._old.parts:
            if part.unit in self._led_to or self._unit(part.unit) == part.unit:
                self._copy(part)
        whole = ({part.unit for part in self._parts if part.is_inside} & self._led_to) - self._spoilt
        size = 0
        parts: list[_Part] = []
        for part in self._parts:
            if part.unit and part.unit not in whole:
                continue
            if part.start != size:
                for at in range(0, part.size, _PIECE):
                    self._file.seek(part.start + at)
                    piece = self._file.read(min(_PIECE, part.size - at))
                    self._file.seek(size + at)
                    self._file.write(piece)
            part.start = size
            size += part.size
            parts.append(part)
        self._file.seek(size)
        self._file.truncate()
        index = json.dumps([dataclasses.astuple(part) for part in parts]).encode()
        self._file.write(index + _TRAILER.pack(zlib.crc32(index), len(index)))
        return size, sum(part.members for part in parts)

    def _copy(self, old: _Part) -> None:
        if self._old.file is None or not self._files.isdisjoint(_above(old.unit)):
            return
        self._make_folder(posixpath.dirname(old.unit))
        self._parts.append(dataclasses.replace(old, start=self._file.tell()))
        self._led_to.add(old.unit)
        self._old.file.seek(old.start)
        for piece in _pieces(self._old.file, old.size):
            self._file.write(piece)

    def _make_folder(self, path: str) -> None:
        if path in self._folders:
            return
        for folder in reversed([path, *_above(path)]):
            if folder not in self._folders:
                self._folders.add(folder)
                unit = self._unit(f"{folder}/x")
                self._begin(unit if f"{folder}/".startswith(f"{unit}/") else "")
                self._write(folder_header(self._name(folder), self._owner))

    def _begin(self, unit: str, *, is_inside: bool = True) -> None:
        """What is written from here on is a member of that unit, "" for none."""
        is_inside = is_inside and unit != ""
        if not self._parts or (self._parts[-1].unit, self._parts[-1].is_inside) != (unit, is_inside):
            self._parts.append(_Part(unit, is_inside, self._file.tell()))
        self._parts[-1].members += 1

    def _write(self, data: bytes) -> int:
        part = self._parts[-1]
        part.size += len(data)
        part.checksum = zlib.crc32(data, part.checksum)
        return self._file.write(data)

    def _unit(self, path: str) -> str:
        """The unit that a path lies in; else ""."""
        match = self._units.match(path) if self._units else None
        return match[0] if match else ""

    def _header(self, path: str, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not _is_sane(path) or path in self._files or (self._links and self._is_below_link(path)):
            return None
        header = tarfile.TarInfo(self._name(path))
        header.mode = 0o755 if member.mode & 0o111 else 0o644
        header.mtime = int(min(max(member.mtime, 0), self._now))
        header.uid, header.gid = self._owner.uid, self._owner.gid
        if member.issym() and path not in self._folders and not self._unit(path) and self._leads_to(path, member):
            header.type, header.linkname = tarfile.SYMTYPE, member.linkname
        elif member.islnk():
            target = _in_folder(member.linkname)
            if target not in self._files or target in self._links or self._unit(target) != self._unit(path):
                return None
            header.type, header.linkname = tarfile.LNKTYPE, self._name(target)
        elif member.isreg():
            header.size = member.size
        else:
            return None
        return header

    def _is_below_link(self, path: str) -> bool:
        """Whether it lies behind a link, whose folder is one of those that members were written into before."""
        return posixpath.dirname(path) not in self._folders and any(above in self._links for above in _above(path))

    def _leads_to(self, path: str, member: tarfile.TarInfo) -> str:
        """The unit that a link leads to, "" where it leads anywhere else: such a one is not kept."""
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), member.linkname))
        unit = self._unit(f"{target}/x")
        return unit if unit == target and not member.linkname.startswith("/") and _is_sane(target) else ""

    def _name(self, path: str) -> str:
        return f"{self._below}/{path}".strip("/")


def _in_folder(name: str) -> str:
    """The path in the folder that was asked for, which is the first part of each name."""
    return name.removeprefix("./").partition("/")[2]


def _above(path: str) -> Iterator[str]:
    """The folders that a path lies in, the nearest first; the last is "", the one that holds all."""
    while path:
        path = posixpath.dirname(path)
        yield path


def _is_sane(path: str) -> bool:
    parts = path.split("/")
    return (
        not {"", ".", ".."} & {*parts}
        and "\0" not in path
        and len(os.fsencode(path)) <= _PATH_BYTES
        and all(len(os.fsencode(part)) <= _NAME_BYTES for part in parts)
    )


def _pieces(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
        yield piece


def _too_much(limit: int) -> TooMuchError:
    return TooMuchError(f"it is more than {limit >> 20} MiB; the next stage starts afresh")
