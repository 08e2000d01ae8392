"""One command in a sandbox of the local engine, or a program of ours beside them: its output as it comes, its end."""

from __future__ import annotations

import array
import fcntl
import os
import select
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pytest_stagebuild.engines.local.spawning import REFUSED, SetUpFailed, Spawned
from pytest_stagebuild.engines.pace import paced
from pytest_stagebuild.engines.protocol import MEANWHILE, OutputSink, Stream
from pytest_stagebuild.errors import EngineError

_PIECE: Final = 1 << 20
_TOLD: Final = 256


class LocalBeside:
    """See :class:`~pytest_stagebuild.engines.protocol.Beside`."""

    def __init__(self, out: int, complaints: int) -> None:
        self._out = out
        self._complaints = complaints
        self._printed = b""

    def line(self, timeout: float) -> str | None:
        deadline = time.monotonic() + timeout
        while b"\n" not in self._printed:
            left = max(0.0, deadline - time.monotonic())
            piece = os.read(self._out, _PIECE) if ready(self._out, left) else b""
            if not piece:
                return None
            self._printed += piece
        line, _, self._printed = self._printed.partition(b"\n")
        return line.decode(errors="replace")

    def complaint(self) -> str:
        said = b""
        while ready(self._complaints, 0) and (piece := os.read(self._complaints, _PIECE)):
            said += piece
        return said.decode(errors="replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        os.close(self._out)
        os.close(self._complaints)


class Execution:
    """A command that runs; what it prints is delivered while somebody waits for it."""

    def __init__(self, processes: Spawned, request: Mapping[str, object], output: OutputSink, place: Path) -> None:
        self._output = output
        self._place = place
        out, their_out = os.pipe()
        err, their_err = os.pipe()
        self._told, their_told = os.pipe()
        self._streams: dict[int, Stream] = {out: "stdout", err: "stderr"}
        self._open = [out, err, self._told]
        for pipe in (out, err):
            os.set_blocking(pipe, False)  # a process in the sandbox may read what it has written itself
        for pipe in (their_out, their_err):
            with suppress(OSError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIECE)
        try:
            processes.commands.send(request, [their_out, their_err, their_told])
        except BaseException:
            self.close()
            raise
        finally:
            for pipe in (their_out, their_err, their_told):
                os.close(pipe)

    def wait(self, deadline: float | None, meanwhile: Callable[[], None] | None = None) -> int | None:
        """The exit code, after all that the command has written was delivered; None when the deadline has passed."""
        poll = select.poll()
        for one in (*self._streams, self._told):
            poll.register(one, select.POLLIN)
        some_ready = paced(poll.poll)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if meanwhile is not None:
                left = MEANWHILE if left is None else min(left, MEANWHILE)
            ready = {descriptor for descriptor, _ in some_ready(None if left is None else left * 1000)}
            for descriptor in ready - {self._told}:
                with suppress(BlockingIOError):
                    if piece := os.read(descriptor, _PIECE):
                        self._output(self._streams[descriptor], piece)
                    else:
                        poll.unregister(descriptor)
            # What it has written has been seen by now, but for what is still in the pipes.
            if self._told in ready:
                code = self._code()
                self._drain()
                return code
            if meanwhile is not None:
                meanwhile()

    def _code(self) -> int:
        code = os.read(self._told, _TOLD).decode()
        if not code:
            raise EngineError(
                "the sandbox ended while the command ran in it: somebody killed it, or the machine is short of memory. "
                "Run again."
            )
        if code.startswith(REFUSED):
            number, _, name = code[len(REFUSED) :].partition(" ")
            raise SetUpFailed(name, int(number), self._place)
        return int(code)

    def _drain(self) -> None:
        """Deliver what is in the pipes, and no more: what the command left running may go on writing for ever."""
        for descriptor, stream in self._streams.items():
            waiting = array.array("i", [0])
            fcntl.ioctl(descriptor, termios.FIONREAD, waiting)
            left = waiting[0]
            with suppress(BlockingIOError):
                while left > 0 and (piece := os.read(descriptor, min(left, _PIECE))):
                    left -= len(piece)
                    self._output(stream, piece)

    def close_if_over(self) -> bool:
        """Close it where nobody can write any more, and say whether that is so."""
        over = all(ready(descriptor, 0) & select.POLLHUP for descriptor in self._streams)
        if over:
            self.close()
        return over

    def close(self) -> None:
        for one in self._open:
            os.close(one)
        self._open.clear()


def ready(descriptor: int, timeout: float) -> int:
    """What :func:`select.poll` says of a descriptor within ``timeout`` seconds, 0 where it is nothing."""
    poll = select.poll()  # unlike select, for any number of open files
    poll.register(descriptor, select.POLLIN)
    return next((event for _, event in poll.poll(timeout * 1000)), 0)
