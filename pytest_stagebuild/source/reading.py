"""Reading the files of a tree as they are at one moment, without ever following a symbolic link."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, NamedTuple

from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source.manifest import Kind, path_of, shown

LARGE: Final = 8 * 1024 * 1024
"""In bytes: a file that is larger is not held in memory."""

PIECE: Final = 1024 * 1024

ATTEMPTS: Final = 3

_SECOND: Final = 1_000_000_000

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""What opening says when the path is no longer what it was a moment ago."""


class Loaded(NamedTuple):
    """A small file or a link with its content, which for a link is its target. ``mtime`` is in whole seconds."""

    kind: Kind
    digest: str
    content: bytes
    mtime: int


class LargeFile:
    """A file to be read in pieces.

    Iterating gives exactly ``size`` bytes, padded should the file have become shorter. Afterwards ``digest`` is that of
    the bytes given, and ``stable`` says whether the file was the same before and after.
    """

    def __init__(self, folder: int, path: bytes, before: os.stat_result) -> None:
        self._folder = folder
        self._path = path
        self._before = before
        self.kind: Kind = _file_kind(before.st_mode)
        self.size = before.st_size
        self.mtime = before.st_mtime_ns // _SECOND
        self.stable = False
        self.digest = ""

    def __iter__(self) -> Iterator[bytes]:
        total = hashlib.sha256()
        left = self.size
        handle = _open_file(self._folder, self._path)
        try:
            while left:
                piece = (_read(handle, min(PIECE, left), self._path) if handle is not None else b"") or bytes(
                    min(PIECE, left)
                )
                total.update(piece)
                left -= len(piece)
                yield piece
            self.stable = handle is not None and _same(self._before, os.fstat(handle))
            self.digest = total.hexdigest()
        finally:
            if handle is not None:
                os.close(handle)


SpecialKind = Literal["FIFO", "socket", "device"]


class Special(NamedTuple):
    """What is neither a file, nor a folder, nor a link."""

    what: SpecialKind


class Folders:
    """The folders of a tree, opened one below the other so that no link is followed on the way.

    Those above the one in hand stay open; going through paths in order opens each folder once.
    """

    def __init__(self, root: Path) -> None:
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(
                f"cannot read the source {shown(os.fspath(root))}: {error.strerror}. Give the folder of the project."
            ) from error
        self._open: list[tuple[bytes, int]] = []

    def enter(self, folder: bytes) -> int | None:
        """The descriptor of ``folder`` (empty for the root), valid until the next call; None where it is no folder."""
        names = folder.split(b"/") if folder else []
        depth = 0
        while depth < min(len(names), len(self._open)) and self._open[depth][0] == names[depth]:
            depth += 1
        self._close_below(depth)
        current = self._open[-1][1] if self._open else self._root
        for name in names[depth:]:
            try:
                current = os.open(name, _FOLDER_FLAGS, dir_fd=current)
            except OSError as error:
                if error.errno in _GONE:
                    return None
                raise unreadable(folder, error) from error
            self._open.append((name, current))
        return current

    def _close_below(self, depth: int) -> None:
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

    def __enter__(self) -> Folders:  # noqa: PYI034 -- Self is in typing from Python 3.11 on
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_below(0)
        os.close(self._root)


def load(folder: int, path: bytes) -> Loaded | LargeFile | Special | None:
    """What is at ``path``, whose folder is open as ``folder``; None where there is nothing, or a folder.

    A file that changes while it is read is read again. Raises :class:`SourceError` for one that cannot be read, and
    for one that was never the same before and after.
    """
    name = path[path.rfind(b"/") + 1 :]
    for _ in range(ATTEMPTS):
        try:
            before = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise unreadable(path, error) from error
        mode = before.st_mode
        if stat.S_ISREG(mode):
            if before.st_size > LARGE:
                return LargeFile(folder, path, before)
            content = _read_small(folder, path, before)
            if content is not None:
                return Loaded(
                    _file_kind(mode), hashlib.sha256(content).hexdigest(), content, before.st_mtime_ns // _SECOND
                )
        elif stat.S_ISLNK(mode):
            try:
                target = os.readlink(name, dir_fd=folder)
            except OSError:
                continue
            return Loaded("link", hashlib.sha256(target).hexdigest(), target, before.st_mtime_ns // _SECOND)
        elif stat.S_ISDIR(mode):
            return None
        else:
            return Special(special_kind(mode))
    raise kept_changing(path)


def read_text_file(folder: int, path: bytes) -> bytes | None:
    """The content of a small regular file such as an ignore file; None where there is none to be read.

    One that cannot be read is reported when the files themselves are.
    """
    try:
        found = load(folder, path)
    except SourceError:
        return None
    return found.content if isinstance(found, Loaded) and found.kind != "link" else None


def special_kind(mode: int) -> SpecialKind:
    """The word for a mode that is neither a file's, nor a folder's, nor a link's."""
    if stat.S_ISFIFO(mode):
        return "FIFO"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def unreadable(path: bytes, error: OSError) -> SourceError:
    """The error for a path at which the system refused to read."""
    return SourceError(
        f"cannot read {shown(path_of(path))} in the source: {error.strerror}. "
        "Make it readable for the user who runs pytest, or leave it out by a rule in .gitignore."
    )


def kept_changing(path: bytes) -> SourceError:
    """The error for a file that was never the same before and after it was read."""
    return SourceError(
        f"{shown(path_of(path))} kept changing while it was read, {ATTEMPTS} times. "
        "End what writes to it and run again, or leave it out by a rule in .gitignore."
    )


def _file_kind(mode: int) -> Kind:
    return "executable" if mode & stat.S_IXUSR else "file"


def _open_file(folder: int, path: bytes) -> int | None:
    try:
        return os.open(path[path.rfind(b"/") + 1 :], _FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise unreadable(path, error) from error


def _read(handle: int, count: int, path: bytes) -> bytes:
    try:
        return os.read(handle, count)
    except OSError as error:
        raise unreadable(path, error) from error


def _read_small(folder: int, path: bytes, before: os.stat_result) -> bytes | None:
    """The content, or None where the file was not the same before and after."""
    handle = _open_file(folder, path)
    if handle is None:
        return None
    size = before.st_size
    try:
        content = _read(handle, size + 1, path)
        while len(content) < size and (more := _read(handle, size + 1 - len(content), path)):
            content += more
        after = os.fstat(handle)
    finally:
        os.close(handle)
    return content if len(content) == size and _same(before, after) else None


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (
        before.st_ino == after.st_ino
        and before.st_size == after.st_size
        and before.st_mtime_ns == after.st_mtime_ns
        and before.st_ctime_ns == after.st_ctime_ns
        and before.st_dev == after.st_dev
    )
