"""The main process of a container, through its streams: it ends with them, and can be told to run commands.

That saves the engine from starting other processes in the container, each of which takes it a tenth of a second.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.connection import Connection, interrupter
from pytest_stagebuild.engines.docker.exec import Streamed, frames
from pytest_stagebuild.engines.protocol import OutputSink, Stream
from pytest_stagebuild.errors import EngineError

_KILLED = 137

_LISTED_WITHIN = 4.0

_MOST_AFTER = 1 << 20
"""Bytes after the end of an output that are of interest."""


class MainProcess:
    """The keeper of a container that is about to be started."""

    def __init__(self, connection: Connection, container: str) -> None:
        outputs = "&stdout=1&stderr=1" if connection.is_plain else ""
        self._response = connection.stream(f"/containers/{container}/attach?stdin=1&stream=1{outputs}", None)
        self._socket = interrupter(self._response)
        self._deaf = not connection.is_plain
        self._turn = threading.Lock()
        self._last: MainCommand | None = None
        self._reader: threading.Thread | None = None

    def run(
        self, command: str, *, cwd: str, env: Mapping[str, str], archive: bytes, output: OutputSink
    ) -> MainCommand | None:
        """Have it extract an archive and run a command; None where it cannot.

        It cannot where another command runs, or has left something that may print as well.
        """
        token = keeper.new_token()
        told = keeper.told(token, command, cwd=cwd, env=env, archive=archive)
        if told is None or self._socket is None or not self._turn.acquire(blocking=False):
            return None
        try:
            if self._deaf or (self._last is not None and not self._last.left_nothing()):
                return None
            self._last = begun = MainCommand(token, output)
            try:
                self._socket.sendall(told)
            except OSError as error:
                raise EngineError("the sandbox ended before a command could begin. Run again.") from error
            if self._reader is None:
                self._reader = threading.Thread(target=self._read, name="stagebuild-main", daemon=True)
                self._reader.start()
            if archive and begun.was_refused():
                self._deaf = True
                return None
            return begun
        finally:
            self._turn.release()

    def close(self) -> None:
        """Let it end."""
        if self._socket is not None:
            with suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            if self._reader is not None:
                self._reader.join(timeout=5)
        self._response.close()

    def _read(self) -> None:
        from urllib3.exceptions import HTTPError

        # Closing a response that is being read ends in any of these, and so does the end of the container.
        with suppress(HTTPError, OSError, ValueError, AttributeError):
            for stream, piece in frames(self._response.raw.read):
                if self._last is not None:
                    self._last.take(stream, piece)
        if self._last is not None:
            self._last.lose()


class MainCommand(Streamed):
    """A command that the main process runs. What is printed after its end is dropped."""

    def __init__(self, token: str, output: OutputSink) -> None:
        super().__init__(output)
        self._token = token
        mark = keeper.mark(token)
        self._beginning = End(mark)
        self._ends: dict[Stream, End] = {"stdout": End(mark), "stderr": End(mark)}
        self._code: int | None = None
        self._answer: bytes | None = None
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
        return not self._answer

    def left_nothing(self) -> bool:
        """Whether it was seen that no process of the command was left when it had ended."""
        if not self._over.is_set() or not self._listed.wait(_LISTED_WITHIN) or self._code is None:
            return False
        _, _, listing = (self._ends["stdout"].rest or b"").partition(b"\n")
        listing, mark, _ = listing.partition(keeper.mark(self._token))
        return bool(mark) and keeper.nothing_left(listing, self._token)

    def take(self, stream: Stream, piece: bytes) -> None:
        """The next of what the main process and the command print."""
        if stream == "stdout" and not self._answered.is_set():
            self._beginning.feed(piece)
            answer, answered, piece = (self._beginning.rest or b"").partition(b"\n")
            if not answered:
                return
            self._answer = answer
            self._answered.set()
        before = self._ends[stream].feed(piece)
        if before and self._problem is None:
            try:
                self._deliver(stream, before)
            except BaseException as error:  # noqa: BLE001 - what the sink raises belongs to the thread that waits
                self._problem = error
                self._over.set()
        if all(end.rest is not None for end in self._ends.values()):
            code, newline, after = (self._ends["stdout"].rest or b"").partition(b"\n")
            if newline and self._code is None:
                self._code = int(code)
                self._over.set()
            if keeper.mark(self._token) in after:
                self._listed.set()

    def lose(self) -> None:
        """Nothing more will come."""
        for event in (self._over, self._listed, self._answered):
            event.set()


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
