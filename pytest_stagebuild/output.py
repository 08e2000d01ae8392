"""Output of commands: intact on disk, its ends in memory, and readable on a terminal."""

from __future__ import annotations

import codecs
import re
import threading
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, get_args

from pytest_stagebuild.engines.protocol import Stream
from pytest_stagebuild.secrets import Redactor

if TYPE_CHECKING:
    from typing_extensions import Self

STREAMS: Final[tuple[Stream, ...]] = get_args(Stream)

_HEAD_BYTES: Final = 64 << 10
_TAIL_BYTES: Final = 256 << 10
_TAIL_PIECES: Final = 4096
"""Both streams taking turns byte by byte would otherwise make a hundred bytes of objects for each byte of output."""

_LAST_LINE_BYTES: Final = 8 << 10
_CAPTURED_BYTES: Final = 8 << 20


class StageLog:
    """Takes the output of a stage: all of it into a file, both ends of it into memory.

    It is an :data:`~pytest_stagebuild.engines.protocol.OutputSink` by its :meth:`write`. ``redact`` are the values that
    become ``***`` everywhere; ``on_text`` is called with the text of what was written, as it comes and with its escape
    codes. What may be read while a stage runs (:meth:`tail`, :attr:`last_line`) can be read from any thread.

    The file is a new one, in the place of an older one: who still writes or reads that keeps it. Raises ``OSError``
    where it cannot be made. Where it cannot be written later (a full disk), the rest is kept in memory only, and
    :attr:`problem` says why.
    """

    def __init__(
        self, path: Path, *, redact: Iterable[str | bytes] = (), on_text: Callable[[str], None] | None = None
    ) -> None:
        values = tuple(redact)
        self.path = path
        self.problem = ""
        self._redactors = {stream: Redactor(values) for stream in STREAMS}
        self._decoders = {stream: _decoder() for stream in STREAMS}
        self._on_text = on_text
        self._head = bytearray()
        self._tail = _Tail(_TAIL_BYTES)
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        self._file = path.open("xb", buffering=0)

    def write(self, stream: Stream, data: bytes) -> None:
        """Take the next output of ``stream``."""
        self._take(stream, self._redactors[stream].feed(data))

    def close(self) -> None:
        """Write what was held back, and close the file. What is in memory stays."""
        if self._file.closed:
            return
        for stream in STREAMS:
            self._take(stream, self._redactors[stream].flush())
            self._show(self._decoders[stream].decode(b"", final=True))
        self._file.close()

    def head(self, lines: int = 40, *, width: int = 400) -> str:
        """The first ``lines`` lines, cleaned like those of :meth:`tail`."""
        with self._lock:
            start = bytes(self._head)
        return _join(_clean_lines(start.decode("utf-8", "replace"))[:lines], width)

    def tail(self, lines: int = 40, *, width: int = 400) -> str:
        r"""The last ``lines`` lines, fit for a terminal.

        Escape codes and control characters are gone, a line that was rewritten (``\r``) is as it was last, and one
        longer than ``width`` characters is cut. At most 256 KiB of output is looked at.
        """
        return _join(self._lines(_TAIL_BYTES)[-lines:], width)

    @property
    def last_line(self) -> str:
        """The last line that is not blank, finished or not; empty where there is none."""
        return _join(self._lines(_LAST_LINE_BYTES)[-1:], 400)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, stream: Stream, data: bytes) -> None:
        if not data:
            return
        with self._lock:
            if len(self._head) < _HEAD_BYTES:
                self._head += data[: _HEAD_BYTES - len(self._head)]
            self._tail.add(stream, data)
        self._store(data)
        if self._on_text:
            self._show(self._decoders[stream].decode(data))

    def _store(self, data: bytes) -> None:
        if self.problem:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.problem = f"{self.path} is incomplete: {error.strerror}"

    def _show(self, text: str) -> None:
        if text and self._on_text:
            self._on_text(text)

    def _lines(self, limit: int) -> list[str]:
        with self._lock:
            text, whole = self._tail.text(limit)
        lines = _clean_lines(text)
        while lines and not lines[-1]:
            lines.pop()
        # A line whose beginning was dropped may start inside an escape code.
        return lines[1:] if len(lines) > 1 and not whole else lines


class _Tail:
    """The last bytes of two streams, in the order in which they came."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: deque[tuple[Stream, bytearray]] = deque()
        self._size = 0
        self._dropped = False

    def add(self, stream: Stream, data: bytes) -> None:
        if len(data) > self._limit:
            self._dropped = True
            data = data[-self._limit :]
        if self._pieces and self._pieces[-1][0] == stream and len(self._pieces[-1][1]) < 4096:
            self._pieces[-1][1].extend(data)
        else:
            self._pieces.append((stream, bytearray(data)))
        self._size += len(data)
        while len(self._pieces) > 1 and (
            len(self._pieces) > _TAIL_PIECES or self._size - len(self._pieces[0][1]) >= self._limit
        ):
            self._size -= len(self._pieces.popleft()[1])
            self._dropped = True

    def text(self, limit: int) -> tuple[str, bool]:
        """The text of the last ``limit`` bytes or somewhat more, and whether that is all there ever was."""
        chosen: list[tuple[Stream, bytearray]] = []
        size = 0
        for stream, piece in reversed(self._pieces):
            if size >= limit:
                break
            chosen.append((stream, piece[-limit:]))
            size += min(len(piece), limit)
        decoders = {stream: _decoder() for stream in STREAMS}
        text = "".join(decoders[stream].decode(piece) for stream, piece in reversed(chosen))
        text += "".join(decoders[stream].decode(b"", final=True) for stream in STREAMS)
        return text, not self._dropped and size == self._size


class Captured:
    """The output of a command that a test asked for: both ends of each stream, at most 8 MiB of it in memory.

    It is an :data:`~pytest_stagebuild.engines.protocol.OutputSink` by its :meth:`write`. ``redact`` are the values that
    become ``***``.
    """

    def __init__(self, *, redact: Iterable[str | bytes] = (), limit: int = _CAPTURED_BYTES) -> None:
        values = tuple(redact)
        self._redactors = {stream: Redactor(values) for stream in STREAMS}
        self._ends = {stream: _Ends(limit // 2) for stream in STREAMS}

    def write(self, stream: Stream, data: bytes) -> None:
        """Take the next output of ``stream``."""
        self._ends[stream].add(self._redactors[stream].feed(data))

    def close(self) -> None:
        """Take what was held back: the command has ended."""
        for stream in STREAMS:
            self._ends[stream].add(self._redactors[stream].flush())

    def raw(self, stream: Stream) -> bytes:
        """What the stream held, with a line in the middle that says how many bytes are missing there, if any are."""
        start, dropped, end = self._ends[stream].parts()
        return start + (f"\n[... {dropped} bytes dropped ...]\n".encode() if dropped else b"") + end

    def text(self, stream: Stream = "stdout") -> str:
        """The same as text; what is not UTF-8 becomes U+FFFD."""
        return self.raw(stream).decode("utf-8", "replace")


class _Ends:
    """The first and the last ``half`` bytes of a stream."""

    def __init__(self, half: int) -> None:
        self._half = half
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        if room:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        # Not at every call: each time the whole tail is moved.
        if len(self._tail) > self._half + (1 << 20):
            self._trim()

    def parts(self) -> tuple[bytes, int, bytes]:
        self._trim()
        return bytes(self._head), self._dropped, bytes(self._tail)

    def _trim(self) -> None:
        excess = max(0, len(self._tail) - self._half)
        self._dropped += excess
        del self._tail[:excess]


_ESCAPE_CODE: Final = re.compile(
    # ECMA-48: control sequences; strings up to their terminator; other escapes. \x9b is the one-character CSI.
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b[ -/]*[0-~]"
)
_CONTROL: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that do something rather than show something, such as turning the direction of writing round."""


def _clean_lines(text: str) -> list[str]:
    return [clean_line(line) for line in text.split("\n")]


def clean_line(line: str) -> str:
    """A line as a terminal would show it at its end: without escape codes and without what was overwritten."""
    line = _ESCAPE_CODE.sub("", line).rstrip("\r")
    states = [state for state in line.split("\r") if state.strip()]
    line = states[-1] if states else ""
    if "\b" in line:
        line = _without_backspaces(line)
    line = line.expandtabs()
    if not line.isprintable():
        line = "".join(c for c in line if unicodedata.category(c) not in _CONTROL)
    return line.rstrip()


class ForeignText:
    """Text of a command for a terminal that is not the command's own.

    Colours stay; what changes the terminal itself, or writes elsewhere on it, goes. A code may come in pieces.
    """

    def __init__(self) -> None:
        self._rest = ""
        self._coloured = False

    def feed(self, text: str) -> str:
        """What of it is to be shown now."""
        text = self._rest + text
        begun = max(text.rfind("\x1b"), text.rfind("\x9b"))
        whole = begun < 0 or len(text) - begun > _LONGEST_CODE or _is_whole(text[begun:])
        self._rest = "" if whole else text[begun:]
        text = _ESCAPE_CODE.sub(self._colour, text if whole else text[:begun])
        kept = (c for c in text if c in "\n\r\t\b\x1b" or unicodedata.category(c) != "Cc")
        return text if text.isprintable() else "".join(kept)

    def end(self) -> str:
        """What gives the terminal its own colours back."""
        ended, self._coloured, self._rest = "\x1b[0m" if self._coloured else "", False, ""
        return ended

    def _colour(self, code: re.Match[str]) -> str:
        if _COLOUR.fullmatch(code[0]) is None:
            return ""
        self._coloured = True
        return code[0]


def _is_whole(code: str) -> bool:
    """Whether an escape code has come to its end; of ``[`` and what begins a string, more is to come."""
    found = _ESCAPE_CODE.match(code)
    return found is not None and not (len(found[0]) == 2 and found[0][1] in "[]PX^_")


_COLOUR: Final = re.compile(r"\x1b\[[0-9;:]*m")


def without_colours(text: str) -> str:
    """The text as it is where there are none."""
    return _COLOUR.sub("", text)


_LONGEST_CODE: Final = 4096


def fitted(text: str, cells: int) -> str:
    """As much of a line as goes into so many cells of a terminal: https://www.unicode.org/reports/tr11/."""
    for end, character in enumerate(text):
        wide = unicodedata.east_asian_width(character) in "WF"
        cells -= 0 if unicodedata.combining(character) else 1 + wide
        if cells < 0:
            return text[:end]
    return text


def _without_backspaces(line: str) -> str:
    kept: list[str] = []
    for character in line:
        if character != "\b":
            kept.append(character)
        elif kept:
            kept.pop()
    return "".join(kept)


def _join(lines: Iterable[str], width: int) -> str:
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in lines)


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")(errors="replace")
