"""The main process of a container, through its streams: it ends with them, and can be told to run a command.

That saves the engine from starting another process in the container, for which it needs a tenth of a second.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.connection import Connection, interrupter
from pytest_stagebuild.engines.docker.exec import Streamed, frames
from pytest_stagebuild.engines.protocol import OutputSink, Stream
from pytest_stagebuild.errors import EngineError

if TYPE_CHECKING:
    from requests import Response

_KILLED = 137


class MainProcess:
    """The keeper of a container that is about to be started."""

    def __init__(self, connection: Connection, container: str) -> None:
        outputs = "&stdout=1&stderr=1" if connection.is_plain else ""
        self._response = connection.stream(f"/containers/{container}/attach?stdin=1&stream=1{outputs}", None)
        self._socket = interrupter(self._response)
        self._listens = threading.Lock()
        if not connection.is_plain:
            self._listens.acquire()
        self._reader: threading.Thread | None = None

    def run(
        self, command: str, *, cwd: str, env: Mapping[str, str], archive: bytes, output: OutputSink
    ) -> MainCommand | None:
        """Have it extract an archive and run a command, the first in the container; None where it cannot."""
        if not self._listens.acquire(blocking=False) or self._socket is None:
            return None
        token = keeper.new_token()
        told = keeper.told(token, command, cwd=cwd, env=env, archive=archive)
        try:
            self._socket.sendall(told or keeper.told_nothing(token))
        except OSError as error:
            raise EngineError("the sandbox ended before a command could begin. Run again.") from error
        if told is None:
            return None
        begun = MainCommand(token, output)
        self._reader = threading.Thread(target=begun.read, args=(self._response,), name="stagebuild-main", daemon=True)
        self._reader.start()
        return begun

    def close(self) -> None:
        """Let it end."""
        if self._socket is not None:
            with suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            if self._reader is not None:
                self._reader.join(timeout=5)
        self._response.close()


class MainCommand(Streamed):
    """A command that the main process runs. What was printed after its end is read and dropped."""

    def __init__(self, token: str, output: OutputSink) -> None:
        super().__init__(output)
        self._token = token
        self._mark = keeper.end_mark(token)
        self._ends: dict[Stream, End] = {"stdout": End(self._mark), "stderr": End(self._mark)}
        self._code: int | None = None
        self._listing: bytes | None = None
        self._answer = b""
        self._answered = threading.Event()
        self._listed = threading.Event()

    def wait(self, timeout: float | None, meanwhile: Callable[[], None] | None = None) -> int | None:
        """The exit code, after all output has been delivered; None when ``timeout`` seconds have passed before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._wait_for_the_end(deadline, meanwhile)
            if self._over.is_set():
                return _KILLED if self._code is None else self._code  # its container has ended, and it with that
            if deadline is not None and time.monotonic() >= deadline:
                return None

    def was_refused(self) -> bool:
        """Whether it does not run, for want of programs that extract an archive."""
        self._answered.wait()
        return self._answer == b""

    def left_nothing(self, timeout: float) -> bool:
        """Whether it was seen that no process of the command was left when it had ended."""
        self._listed.wait(timeout)
        return self._listing is not None and keeper.nothing_left(self._listing, self._token)

    def read(self, response: Response) -> None:
        """Deliver what comes, until there is no more."""
        delivering = True
        with self._reading():
            for stream, piece in frames(response.raw.read):
                before = self._ends[stream].feed(self._after_the_answer(piece) if stream == "stdout" else piece)
                if before and delivering:
                    delivering = self._deliver(stream, before)
                if all(end.rest is not None for end in self._ends.values()):
                    self._end()
        for event in (self._listed, self._answered):
            event.set()

    def _after_the_answer(self, piece: bytes) -> bytes:
        if self._answered.is_set():
            return piece
        self._answer, answered, after = (self._answer + piece).partition(b"\n")
        if answered:
            self._answered.set()
        return after

    def _end(self) -> None:
        code, newline, after = (self._ends["stdout"].rest or b"").partition(b"\n")
        if newline and not self._over.is_set():
            self._code = int(code)
            self._over.set()
        listing, mark, _ = after.partition(self._mark)
        if mark:
            self._listing = listing
            self._listed.set()


class End:
    """Looks for the mark that ends an output, wherever that is cut; ``rest`` is what has come after it."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self._pending = b""
        self.rest: bytes | None = None

    def feed(self, piece: bytes) -> bytes:
        """What of this and of what was held back stands before the mark."""
        if self.rest is not None:
            if len(self.rest) < _MOST_AFTER:
                self.rest += piece
            return b""
        data = self._pending + piece
        before, mark, after = data.partition(self._mark)
        if mark:
            self._pending, self.rest = b"", after
            return before
        held = next(n for n in range(min(len(data), len(self._mark) - 1), -1, -1) if data.endswith(self._mark[:n]))
        self._pending = data[len(data) - held :]
        return data[: len(data) - held]


_MOST_AFTER = 1 << 20
"""Bytes after the mark that are of interest."""
