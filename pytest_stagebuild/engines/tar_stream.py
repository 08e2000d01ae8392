"""A file to read from, made of pieces that come one after the other, as ``tarfile`` wants it for a stream."""

from __future__ import annotations

import io
from collections.abc import Iterable


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
