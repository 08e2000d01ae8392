"""Signals that interrupt a run, held back while something must not be left half done."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

INTERRUPTING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_PATIENCE: Final = 5.0
"""Seconds after which a signal is no longer held back: whoever sends another one by then means it."""


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let what is done inside come to its end before a signal raises ``KeyboardInterrupt``, as it then does.

    A container that is made while its maker is interrupted would belong to nobody.
    """
    # Python runs signal handlers in the main thread alone, so that nothing is ever interrupted in another one.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hold = _Hold()
    try:
        for number in INTERRUPTING:
            hold.take_over(number)
        yield
    finally:
        hold.give_back()


class _Hold:
    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._came: int | None = None
        self._since = 0.0
        self._over = False

    def take_over(self, number: int) -> None:
        handler = signal.getsignal(number)
        if callable(handler):  # neither ignored nor left to the system
            self._handlers[number] = handler
            signal.signal(number, self._take)

    def give_back(self) -> None:
        # From here on `_take` passes on what comes: one that raises before all are given back does no harm.
        self._over = True
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._came is not None:
            self._handlers[self._came](self._came, None)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._over or (self._came is not None and now - self._since > _PATIENCE):
            self._handlers[number](number, frame)
        elif self._came is None:
            self._came, self._since = number, now
