"""A file of members of a tar that came out of a sandbox and goes into another one, as they are and in one go.

Behind them stands their sha256, and no end of an archive, so that others can follow them. Whoever controls a sandbox
wrote what comes out of it: what is written down here is regular files, and links from one place to another in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.untrusted import members_in, pieces_of
from pytest_stagebuild.values import dataclass

LIMIT_BYTES: Final = 2 << 30
_LIMIT_FILES: Final = 400_000

_PIECE: Final = 1 << 20
_DIGEST_BYTES: Final = 32
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
    limit: int = LIMIT_BYTES,
) -> None:
    """Write down what ``is_kept`` of the folder that an archive holds, for ``owner`` and ``below`` that path.

    ``is_kept`` is asked for each file by its path in the folder. The file at ``path`` is replaced whole, and left as it
    is where there is nothing to keep, or after an error: :class:`TooMuchError` for more than ``limit`` bytes,
    :class:`EngineError`, which names the archive as ``what``, where it is none, and ``OSError``.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "w+b") as file:
            keeping = _Keeping(file, below, owner)
            members = members_in(archive, limit=limit, too_large=lambda: _too_much(limit), what=what)
            for number, (member, content) in enumerate(members):
                if number == _LIMIT_FILES:
                    raise _too_much(limit)
                name = _in_folder(member.name)
                if not member.isdir() and is_kept(name):
                    keeping.take(name, member, pieces_of(content, what) if content else iter(()))
            size = keeping.end()
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
        left = os.fstat(file.fileno()).st_size - _DIGEST_BYTES
        digest = hashlib.sha256()
        for piece in _pieces(file, left):
            digest.update(piece)
        if left <= 0 or left % tarfile.BLOCKSIZE or file.read() != digest.digest():
            raise ValueError(f"{path} is damaged")
        file.seek(0)
        yield from _pieces(file, left)


def folder_header(path: str, owner: Owner) -> bytes:
    """A folder, as a part of an archive to which another one can follow."""
    header = tarfile.TarInfo(path.strip("/"))
    header.type, header.mode, header.mtime = tarfile.DIRTYPE, 0o755, int(time.time())
    header.uid, header.gid = owner.uid, owner.gid
    return header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Part:
    """Where members begin in the file, and the unit that they stand or fall with, "" for none."""

    start: int
    unit: str


class _Keeping:
    """Members as they are written down. A cache of uv's holds wheels unpacked: each is kept whole or not at all."""

    def __init__(self, file: IO[bytes], below: str, owner: Owner) -> None:
        self._file = file
        self._below = below
        self._owner = owner
        self._now = time.time()
        self._folders: set[str] = set()
        self._files: set[str] = set()
        self._links: set[str] = set()
        self._parts: list[_Part] = []
        self._led_to: set[str] = set()
        self._spoilt: set[str] = set()

    def take(self, path: str, member: tarfile.TarInfo, content: Iterator[bytes]) -> None:
        """Write a member down, where it is of a kind that is kept and has a name that a file should have."""
        header = self._header(path, member)
        if header is None:
            self._spoilt.add(_unit(path))
            return
        if posixpath.dirname(path) not in self._folders:
            for folder in reversed([*_above(path)]):
                if folder not in self._folders:
                    self._folders.add(folder)
                    self._begin(_unit(f"{folder}/x"))
                    self._file.write(folder_header(self._name(folder), self._owner))
        unit = self._leads_to(path, member) if member.issym() else _unit(path)
        self._begin(unit)
        self._file.write(header.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        written = sum(self._file.write(piece) for piece in content)
        self._file.write(bytes(-written % tarfile.BLOCKSIZE))
        if member.issym():
            self._led_to.add(unit)
            self._links.add(path)
        self._files.add(path)

    def _begin(self, unit: str) -> None:
        if not self._parts or self._parts[-1].unit != unit:
            self._parts.append(_Part(self._file.tell(), unit))

    def end(self) -> int:
        """Leave out the wheels that are not whole, and seal the rest; the bytes that are left.

        A wheel that no link leads to was not downloaded but built.
        """
        ends = [*(part.start for part in self._parts[1:]), self._file.tell()]
        digest = hashlib.sha256()
        size = 0
        for part, end in zip(self._parts, ends, strict=False):
            if part.unit and (part.unit in self._spoilt or part.unit not in self._led_to):
                continue
            for at in range(part.start, end, _PIECE):
                self._file.seek(at)
                piece = self._file.read(min(_PIECE, end - at))
                digest.update(piece)
                if at != size:
                    self._file.seek(size)
                    self._file.write(piece)
                size += len(piece)
        self._file.seek(size)
        self._file.truncate()
        self._file.write(digest.digest())
        return size

    def _header(self, path: str, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not _is_sane(path) or path in self._files or (self._links and self._is_below_link(path)):
            return None
        header = tarfile.TarInfo(self._name(path))
        header.mode = 0o755 if member.mode & 0o111 else 0o644
        header.mtime = int(min(max(member.mtime, 0), self._now))
        header.uid, header.gid = self._owner.uid, self._owner.gid
        if member.issym() and path not in self._folders and not _unit(path) and self._leads_to(path, member):
            header.type, header.linkname = tarfile.SYMTYPE, member.linkname
        elif member.islnk():
            target = _in_folder(member.linkname)
            if target not in self._files or target in self._links or _unit(target) != _unit(path):
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
        unit = _unit(f"{target}/x")
        return unit if unit == target and not member.linkname.startswith("/") and _is_sane(target) else ""

    def _name(self, path: str) -> str:
        return f"{self._below}/{path}".strip("/")


def _in_folder(name: str) -> str:
    """The path in the folder that was asked for, which is the first part of each name."""
    return name.removeprefix("./").partition("/")[2]


def _unit(path: str) -> str:
    """The folder of uv's in which a wheel was unpacked, that a path lies in; else ""."""
    match = re.match(r"archive-v\d+/[^/]+(?=/)", path)
    return match[0] if match else ""


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
