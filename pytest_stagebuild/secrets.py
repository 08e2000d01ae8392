"""Secrets: taken out of what is shown, and looked for in what is about to be kept."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, Literal
from urllib.parse import quote, quote_plus

from pytest_stagebuild.values import dataclass

MASK: Final = b"***"

Form = Literal["raw", "base64", "URL-quoted"]

_BLOCK: Final = 1 << 18
"""How much of a file is searched at once, in bytes: enough to make the calls cheap, little enough for a CPU's cache."""


class Redactor:
    """Replaces values by ``***`` in a stream of bytes, wherever the stream is cut.

    Every byte that is part of an occurrence goes; occurrences that overlap become one mask, so that no end of one is
    left standing behind another. What is held back is only what may still become an occurrence.
    """

    def __init__(self, values: Iterable[str | bytes]) -> None:
        self._values = tuple(sorted({v for v in map(_encoded, values) if v}, key=lambda value: (-len(value), value)))
        self._pending = b""
        self._masked = 0
        """How many bytes at the start of what is pending a mask already stands for."""

    def feed(self, chunk: bytes) -> bytes:
        """Take the next bytes of the stream and give what of it can be shown."""
        if not self._values:
            return chunk
        data = self._pending + chunk
        kept = len(data) - max(_overlap(data, value) for value in self._values)
        shown, masked = self._replace(data, kept)
        self._pending, self._masked = data[kept:], max(0, masked - kept)
        return shown

    def flush(self) -> bytes:
        """Give what was held back: the stream has ended."""
        shown, _ = self._replace(self._pending, len(self._pending))
        self._pending, self._masked = b"", 0
        return shown

    def _replace(self, data: bytes, end: int) -> tuple[bytes, int]:
        """``data`` up to ``end`` with its masks, and where the bytes of the last mask end."""
        pieces: list[bytes] = []
        done = self._masked
        for start, stop in self._occurrences(data):
            if start >= done:
                if start > end:
                    break
                pieces += (data[done:start], MASK)
            done = max(done, stop)
        pieces.append(data[done:end])
        return b"".join(pieces), done

    def _occurrences(self, data: bytes) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for value in self._values:
            at = data.find(value)
            while at >= 0:
                found.append((at, at + len(value)))
                at = data.find(value, at + 1)
        found.sort()
        return found


def redaction(values: Iterable[str | bytes]) -> Callable[[str], str]:
    """What gives a whole text without these values."""
    sought = [encoded for encoded in map(_encoded, values) if encoded]
    if not sought:
        return str

    def redact(text: str) -> str:
        data = text.encode("utf-8", "surrogateescape")
        if not any(value in data for value in sought):
            return text
        redactor = Redactor(sought)
        return (redactor.feed(data) + redactor.flush()).decode("utf-8", "surrogateescape")

    return redact


@dataclass(frozen=True)
class Leak:
    """A file that holds a secret: its path, the secret's name, and how it was written.

    Where the secret stands in the path itself, the path given here has ``***`` in its place.
    """

    path: str
    name: str
    form: Form


def search(secrets: Mapping[str, str], files: Iterable[tuple[str, Iterator[bytes]]]) -> Leak | None:
    """The first file whose path or content holds the value of a secret, as it is, in base64 or quoted for a URL.

    ``secrets`` maps names to values of four characters or more; a shorter value would be found by chance. In base64 a
    value is found wherever it begins in what was encoded (as in ``user:password``), but not across line breaks.
    Memory is bounded by 256 KiB, the longest value, and the largest piece that ``files`` gives.
    """
    needles = [
        (needle, name, form) for name, value in secrets.items() for needle, form in _forms(_encoded(value)).items()
    ]
    if not needles:
        return None
    overlap = max(len(needle) for needle, _, _ in needles) - 1
    for path, content in files:
        path_bytes = os.fsencode(path)
        for needle, name, form in needles:
            if needle in path_bytes:
                return Leak(os.fsdecode(path_bytes.replace(needle, MASK)), name, form)
        for block in _blocks(content, overlap):
            for needle, name, form in needles:
                if needle in block:
                    return Leak(path, name, form)
    return None


def _blocks(content: Iterator[bytes], overlap: int) -> Iterator[bytes]:
    """``content`` in blocks of which each begins with the last ``overlap`` bytes of the one before."""
    parts: list[bytes] = []
    size = 0
    for piece in content:
        parts.append(piece)
        size += len(piece)
        if size >= _BLOCK + overlap:
            block = b"".join(parts)
            yield block
            parts = [block[-overlap:]] if overlap else []
            size = sum(map(len, parts))
    if size:
        yield b"".join(parts)


def _forms(value: bytes) -> dict[bytes, Form]:
    """Everything to look for, each with the name of its form; the plain value wins over forms that equal it."""
    if not value:
        return {}
    forms: dict[bytes, Form] = {value: "raw"}
    for quoted in (quote(value, safe=""), quote(value), quote_plus(value)):
        lower = re.sub("%..", lambda code: code.group().lower(), quoted)
        forms.setdefault(quoted.encode(), "URL-quoted")
        forms.setdefault(lower.encode(), "URL-quoted")
    for lead in range(3):
        encoded = base64.b64encode(bytes(lead) + value)
        # Six bits a character: those at either end also hold bits of the neighbours, which are not known here.
        core = encoded[-(-8 * lead // 6) : 8 * (lead + len(value)) // 6]
        forms.setdefault(core, "base64")
        forms.setdefault(core.translate(bytes.maketrans(b"+/", b"-_")), "base64")
    return forms


def _overlap(data: bytes, value: bytes) -> int:
    """The length of the longest end of ``data`` that ``value`` begins with and goes on after."""
    head = value[:16]
    at = max(0, len(data) - len(value) + 1)
    while (at := data.find(head, at)) >= 0:
        if value.startswith(data[at:]):
            return len(data) - at
        at += 1
    return next((n for n in range(min(len(head) - 1, len(data)), 0, -1) if data.endswith(value[:n])), 0)


def _encoded(value: str | bytes) -> bytes:
    """The bytes that a process sees in its environment."""
    return value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
