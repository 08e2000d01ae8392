"""Signals that interrupt a run: what they do, and how they are held back while something must not be left half done."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

INTERRUPTING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_PATIENCE: Final = 5.0
"""Seconds after which a signal is no longer held back: whoever sends another one by then means it."""

_LOOK_AROUND: Final = 0.5

_BETWEEN_LINES: Final = 0.01
"""Seconds after which a signal is sent again that came at an instruction without a line."""

_MOST_PUT_OFF: Final = 50

_INTERRUPTED: Final = 2
"""https://docs.pytest.org/en/stable/reference/exit-codes.html"""

_Handler = Callable[[int, FrameType | None], Any] | int


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


def end_with_parent() -> None:
    """Interrupt this process once its parent is gone: a worker of pytest-xdist would hear of that 5 seconds later.

    https://github.com/pytest-dev/execnet/blob/v2.1.1/src/execnet/gateway_base.py, ``_terminate_execution``
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_AROUND)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, name="stagebuild-parent", daemon=True).start()


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


class Interrupts:
    """Lets SIGTERM and SIGHUP end a run as Ctrl-C does: by default they end the process without any clean-up.

    The first signal raises ``KeyboardInterrupt``. Those that follow while that is on its way are taken for impatience,
    and once the run is being wound up (:meth:`wind_up`) another one ends the process at once.
    """

    def __init__(self) -> None:
        self._before: dict[int, _Handler] = {}
        self._raised: float | None = None
        self._put_off = 0
        self._winding_up = False

    def catch(self, *, ctrl_c: bool) -> None:
        """Take over signals that nobody else handles or ignores, Ctrl-C among them only where ``ctrl_c``."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in INTERRUPTING:
            nobodys = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            if signal.getsignal(number) == nobodys and (ctrl_c or number != signal.SIGINT):
                self._before[number] = nobodys
                signal.signal(number, self._take)

    def wind_up(self) -> None:
        """The interrupt has arrived where it is dealt with, and no sandbox is left: the rest can be done without."""
        self._winding_up = True

    def release(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._winding_up:
            with contextlib.suppress(Exception):
                sys.stdout.write("\nstagebuild: interrupted again, left at once\n")
                sys.stdout.flush()
            os._exit(_INTERRUPTED)
        now = time.monotonic()
        if self._raised is not None and now - self._raised <= _PATIENCE:
            return
        if frame is not None and frame.f_lineno is None and self._put_off < _MOST_PUT_OFF:
            # The compiler's own jumps may have no line. A traceback from there has none either, over which pytest
            # stumbles (`TracebackEntry.lineno` in
            # https://github.com/pytest-dev/pytest/blob/9.0.0/src/_pytest/_code/code.py), with an internal error.
            self._put_off += 1
            # `threading.Thread` would take locks, which the interrupted frame might hold.
            start_new_thread(_send_again, (number, threading.get_ident()))
            return
        self._raised, self._put_off = now, 0
        raise KeyboardInterrupt(signal.Signals(number).name)


def _send_again(number: int, thread: int) -> None:
    time.sleep(_BETWEEN_LINES)
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(thread, number)
