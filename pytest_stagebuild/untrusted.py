"""Tars that whoever controls a sandbox wrote, read as they come without believing what they say."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

from pytest_stagebuild.errors import EngineError, StagebuildError

HEADER_BYTES: Final = 1 << 20
"""The most that the headers of one member may hold: ``tarfile`` reads them into memory, however long they are."""

_RETRY: Final = "run again, and report it where it happens again"


def members_in(
    pieces: Iterator[bytes], *, limit: int, too_large: Callable[[], Exception], what: str
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members of a tar with their content, which must be used before the next member is asked for.

    Raises what ``too_large`` makes where there are more than ``limit`` bytes of it, headers and padding included, and
    :class:`EngineError`, which names it as ``what``, where the stream is no tar or ends early.
    """
    source = _Source(pieces, limit, too_large, what)
    source.begin_header()
    with _tar_errors(what):
        archive = tarfile.TarFile(fileobj=source, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
    while True:
        source.begin_header()
        with _tar_errors(what):
            member = archive.next()
        source.begin_content()
        if member is None:
            break
        yield member, archive.extractfile(member) if member.isreg() else None
        # Both grow with the archive otherwise. Headers for all members that follow have no use here.
        archive.members = []  # type: ignore[attr-defined]
        archive.pax_headers = {}
    # `tarfile` takes garbage between members, and a stream that ends there, for the end of the archive.
    if source.last_read != bytes(tarfile.BLOCKSIZE):
        raise EngineError(f"{what} arrived incomplete or garbled; {_RETRY}")


def pieces_of(content: IO[bytes], what: str) -> Iterator[bytes]:
    """The content of a member, in pieces. Raises :class:`EngineError` where it ends early."""
    while True:
        with _tar_errors(what):
            piece = content.read(1 << 20)
        if not piece:
            return
        yield piece


class _Source:
    """The stream as the file that ``tarfile`` reads: forwards only, and not more than is sane."""

    def __init__(self, chunks: Iterator[bytes], limit: int, too_large: Callable[[], Exception], what: str) -> None:
        self.last_read = b""
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._position = 0
        self._limit = limit
        self._too_large = too_large
        self._what = what
        self._headers_left: int | None = None

    def begin_header(self) -> None:
        """What is read from here on is the header of a member, until :meth:`begin_content`."""
        self._headers_left = HEADER_BYTES

    def begin_content(self) -> None:
        self._headers_left = None

    def read(self, size: int) -> bytes:
        if self._headers_left is not None:
            self._headers_left -= size
            if self._headers_left < 0:
                raise tarfile.ReadError("a header is too long")
        self.last_read = b"".join(self._take(size))
        return self.last_read

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member has a negative size")
        for _ in self._take(position - self._position):
            pass

    def tell(self) -> int:
        return self._position

    def _take(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            if not self._chunk:
                try:
                    self._chunk = memoryview(next(self._chunks))
                except StopIteration:
                    return
                except OSError as error:
                    raise EngineError(f"{self._what} could not be read ({error}); {_RETRY}") from error
                continue
            piece, self._chunk = self._chunk[:size], self._chunk[size:]
            size -= len(piece)
            self._position += len(piece)
            if self._position > self._limit:
                raise self._too_large()
            yield piece


@contextmanager
def _tar_errors(what: str) -> Iterator[None]:
    """Anything at all can go wrong in reading a hostile header: not only ``TarError``, also ``RecursionError``."""
    try:
        yield
    except (StagebuildError, OSError):
        raise
    except Exception as error:
        raise EngineError(f"{what} arrived incomplete or garbled ({error}); {_RETRY}") from error
