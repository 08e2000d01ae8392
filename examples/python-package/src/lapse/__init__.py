"""Durations as people write them: ``1h 30m``."""

from __future__ import annotations

import re
import time
from types import TracebackType
from typing import final

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"\s*(\d+)\s*([dhms])")


def parse(text: str) -> int:
    """The seconds that ``text`` means. Raises ``ValueError`` for what is no duration."""
    total, position, smallest = 0, 0, max(UNITS.values()) + 1
    while match := _PART.match(text, position):
        unit = UNITS[match[2]]
        if unit >= smallest:
            raise ValueError(f"{match[2]!r} is out of order in {text!r}")
        total, position, smallest = total + int(match[1]) * unit, match.end(), unit
    if not position or text[position:].strip():
        raise ValueError(f"not a duration: {text!r}")
    return total


def words(seconds: int) -> str:
    """The shortest text that :func:`parse` reads as ``seconds``."""
    if seconds < 0:
        raise ValueError(f"a duration is not negative: {seconds}")
    parts = []
    for name, length in UNITS.items():
        count, seconds = divmod(seconds, length)
        if count:
            parts.append(f"{count}{name}")
    return " ".join(parts) or "0s"


@final
class Stopwatch:
    """Measures what happens in its ``with`` block, in seconds."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        self._start = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = time.monotonic() - self._start
