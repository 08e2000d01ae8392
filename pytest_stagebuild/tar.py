"""Small tars, as files go into a sandbox and come out of it, and large ones read as they come."""

from __future__ import annotations

import io
import posixpath
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """A tar with these files, and the folders that lead to them, all root's and readable by everyone.

    What begins as a script does can be executed.
    """
    return members_of(files) + bytes(2 * tarfile.BLOCKSIZE)


def members_of(files: Mapping[str, bytes]) -> bytes:
    """The same without the end of an archive, so that another one can follow."""
    buffer = io.BytesIO()
    now = int(time.time())
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for folder in _folders(files):
            header = tarfile.TarInfo(folder.lstrip("/"))
            header.type, header.mode, header.mtime = tarfile.DIRTYPE, 0o755, now
            tar.addfile(header)
        for path, data in sorted(files.items()):
            header = tarfile.TarInfo(path.lstrip("/"))
            header.size, header.mtime = len(data), now
            header.mode = 0o755 if data.startswith(b"#!") else 0o644
            tar.addfile(header, io.BytesIO(data))
        return buffer.getvalue()


def writable_file(path: str) -> bytes:
    """An empty file that everybody may write to, as a part of an archive to which another one can follow."""
    header = tarfile.TarInfo(path.lstrip("/"))
    header.mode, header.mtime = 0o666, int(time.time())
    return header.tobuf(tarfile.GNU_FORMAT)


def _folders(paths: Iterable[str]) -> list[str]:
    folders: set[str] = set()
    for path in paths:
        while (path := posixpath.dirname(path)) != "/":
            folders.add(path)
    return sorted(folders)


def read_file(archive: bytes) -> bytes:
    """The content of the file at the top of a tar. Raises ``ValueError`` where something else is there."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        top = tar.next()
        # `extractfile` follows a link into the archive, and raises KeyError where that does not hold its target.
        if top is not None and top.isreg() and (file := tar.extractfile(top)) is not None:
            return file.read()
    raise ValueError("the archive is not one of a file")


def content_of(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    """What a member holds, in pieces: of a link its target, of a folder or device nothing."""
    if member.issym() or member.islnk():
        yield member.linkname.encode("utf-8", "surrogateescape")
    elif member.isreg() and (file := archive.extractfile(member)):
        while piece := file.read(1 << 20):
            yield piece


class IterableFile(io.RawIOBase):
    """Reads the pieces as one file, holding one of them at a time."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """As many bytes as asked for, fewer only at the end."""
        taken: list[memoryview] = []
        missing = size
        while missing:
            if not self._piece:
                following = next(self._pieces, None)
                if following is None:
                    break
                self._piece = memoryview(following)
            part = self._piece if missing < 0 else self._piece[:missing]
            self._piece = self._piece[len(part) :]
            taken.append(part)
            missing -= len(part) if missing > 0 else 0
        return b"".join(taken)
