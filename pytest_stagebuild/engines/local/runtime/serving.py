"""A process that answers requests and looks after its children, one thing after the other."""

from __future__ import annotations

import os
import select
import signal

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

_PIECE = 4096


def serve(
    asked: socket.socket, answer: Callable[[dict[str, Any], list[int]], None], ended: Callable[[int, int], None]
) -> None:
    """Give ``answer`` each request, and ``ended`` each child's pid and status, until the socket is closed."""
    waking, wake = os.pipe()
    for one in (waking, wake):
        os.set_blocking(one, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    poll.register(waking, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready == waking:
                os.read(waking, _PIECE)
                reap(ended)
                continue
            message = wire.receive(asked)
            if message is None:
                return
            answer(*message)


def reap(ended: Callable[[int, int], None]) -> None:
    """Tell of the children that have ended so far."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        ended(pid, status)
