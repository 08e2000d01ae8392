"""The main process of a container, through its streams: it ends with them, and can be told to run a command.

That saves the engine from starting another process in the container, for which it needs a tenth of a second.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.connection import QUICK, Connection
from pytest_stagebuild.engines.docker.exec import Lines, Streamed, frames
from pytest_stagebuild.engines.pace import paced
from pytest_stagebuild.engines.protocol import OutputSink, Stream
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.values import dataclass

_KILLED = 137

_BEGINS = 5.0
"""Seconds within which it begins with what it is told."""

_LAST_WORDS = 1.0
"""Seconds that what a program beside says of its end may still be on its way."""


class MainProcess:
    """The keeper of a container that is about to be started; it may have a program run ``beside`` the first command."""

    def __init__(self, connection: Connection, container: str, *, beside: bool) -> None:
        outputs = "&stdout=1&stderr=1" if connection.is_plain else ""
        self._response = connection.stream(f"/containers/{container}/attach?stdin=1&stream=1{outputs}")
        self._socket = self._response.interrupter()
        if self._socket is not None:
            # Of what is sent alone: it has the other direction in common with the response.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", QUICK, 0))
        self._telling = threading.Lock()
        self._listens = connection.is_plain and self._socket is not None
        self._reader: threading.Thread | None = None
        self._ended = False
        self._command: MainCommand | None = None
        self.beside = MainBeside() if beside else None
        self._step: Step | None = None
        self._does_steps = True

    @property
    def listens(self) -> bool:
        """Whether it can still be told something."""
        return self._listens

    def run(
        self, command: str, *, cwd: str, env: Mapping[str, str], archive: bytes, output: OutputSink
    ) -> MainCommand | None:
        """Have it extract an archive and run a command, the first in the container; None where it cannot."""
        with self._telling:
            if not self._listens:
                return None
            self._listens = False
            token = keeper.new_token()
            told = keeper.told(token, command, cwd=cwd, env=env, archive=archive)
            if told is not None:
                self._command = MainCommand(token, output, both_in_one=self.beside is not None)
                if self._ended:  # asked before it is told: what ends the reading from then on, the reader says itself
                    self._command.end(None)
            self._tell(told or keeper.told_nothing(token))
            return self._command

    def put(self, archive: bytes) -> bool:
        """Have it extract an archive, at which the program beside goes on; False where it cannot."""
        with self._telling:
            if not self._listens or self.beside is None:
                return False
            self._listens = False
            self._tell(keeper.told_files(keeper.new_token(), archive))
            if self._ended:
                self.beside.end()
            # Where it refused, there is no telling what it reads next: without `head` the archive lies there unread.
            self._does_steps = self.beside.has_its_files()
            self._listens = self._does_steps and not self._ended
            return self._does_steps

    def run_step(self, command: str, *, cwd: str, archive: bytes, timeout: float) -> Done | None:
        """Have it extract an archive and run a command of ours, once nothing is left of the first that it ran.

        None where it did not begin, or did not end in time.
        """
        with self._telling:
            token = keeper.new_token()
            told = keeper.told_step(token, command, cwd=cwd, archive=archive)
            if told is None or not self._does_steps or self._command is None or self._command.was_refused():
                return None
            self._step = Step(token)
            self._tell(told)
            if self._ended:
                self._step.end()
            done = self._step.wait(timeout)
            # Where it failed, there is no telling any more what it reads next.
            self._does_steps = done is not None and not (archive and done.code != 0)
            self._tell(keeper.heard_step(token))
            return done

    def close(self) -> None:
        """Let it end."""
        if self._socket is not None:
            with suppress(OSError):  # the other side was faster
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            if self._reader is not None:
                self._reader.join(timeout=5)
        self._response.close()

    def _is_running(self) -> bool:
        """Whether what comes is the output of a command, and nobody waits for an answer of ours."""
        return self._command is not None and not self._command.over

    def _tell(self, what: bytes) -> None:
        try:
            if self._socket is not None:
                self._socket.sendall(what)
        except OSError as error:
            raise EngineError("the sandbox ended before a command could begin. Run again.") from error
        if self._reader is None:
            self._reader = threading.Thread(target=self._read, name="stagebuild-main", daemon=True)
            self._reader.start()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for stream, piece in frames(paced(self._response.read, may_rest=self._is_running)):
                beside, command, step = self.beside, self._command, self._step
                if beside is not None and (stream == "stderr" or command is None):
                    beside.take(stream, piece)
                elif step is not None:
                    step.take(piece)
                elif command is not None:
                    command.take(stream, piece)
        except BaseException as caught:  # noqa: BLE001 - it belongs to the thread that waits
            error = caught
        self._listens = False
        self._ended = True
        if self.beside is not None:
            self.beside.end()
        if self._command is not None:
            self._command.end(error)
        if self._step is not None:
            self._step.end()


class MainBeside:
    """A program that the main process has started. Its complaints come among its lines.

    See :class:`~pytest_stagebuild.engines.protocol.Beside`.
    """

    def __init__(self) -> None:
        self._answer = Answer()
        self._ended = threading.Event()
        self._lines = Lines(self._ended.is_set)

    def line(self, timeout: float) -> str | None:
        return self._lines.next(timeout)

    def complaint(self) -> str:
        self._ended.wait(_LAST_WORDS)
        return self._lines.left().decode(errors="replace").strip().rpartition("\n")[2]

    def has_its_files(self) -> bool:
        """Whether it has what it waits for, once that is known."""
        return self._answer.wait()

    def take(self, stream: Stream, piece: bytes) -> None:
        """Its own output is stderr; on the other one stands whether it has what it waits for."""
        if stream == "stdout":
            self._answer.feed(piece)
        elif not self._ended.is_set():
            printed, ended, _ = piece.partition(keeper.BESIDE_ENDED)
            self._lines.add(printed)
            if ended:
                self._ended.set()

    def end(self) -> None:
        """Say that no more can come."""
        self._answer.give_up()
        self._ended.set()

    def close(self) -> None:
        """It ends with the container."""


@dataclass(frozen=True)
class Done:
    """How a step ended, and all that it has printed."""

    code: int
    printed: bytes


class Step:
    """A command of ours after the first."""

    def __init__(self, token: str) -> None:
        self._mark = keeper.end_mark(token)
        self._text = b""
        self._begun = threading.Event()
        self._over = threading.Event()

    def wait(self, timeout: float) -> Done | None:
        """What came of it; None where it did not begin soon, or did not end within ``timeout`` seconds."""
        if not self._begun.wait(_BEGINS) or not self._over.wait(timeout):
            return None
        _, *after = self._text.split(self._mark)
        return Done(int(after[1]), after[0]) if after[1:] and after[1].endswith(b"\n") else None

    def take(self, piece: bytes) -> None:
        """Look in a piece of the output for what is waited for."""
        self._text += piece
        _, *begun = self._text.split(self._mark)
        if begun:
            self._begun.set()
        if begun[1:] and begun[-1].endswith(b"\n"):
            self._over.set()

    def end(self) -> None:
        """Say that no more can come."""
        self._begun.set()
        self._over.set()


class Answer:
    """The line by which the main process says whether it could extract an archive."""

    def __init__(self) -> None:
        self._line = b""
        self._given = threading.Event()

    def wait(self) -> bool:
        """Whether it could, once that is known."""
        if not self._given.wait(QUICK):
            raise EngineError(f"the sandbox does not answer within {QUICK} s. Run again.")
        return self._line != b""

    def feed(self, piece: bytes) -> bytes:
        """What comes after the line."""
        if self._given.is_set():
            return piece
        self._line, newline, after = (self._line + piece).partition(b"\n")
        if newline:
            self._given.set()
        return after

    def give_up(self) -> None:
        """There will be none any more."""
        self._given.set()


class MainCommand(Streamed):
    """A command that the main process runs. What was printed after its end is read and dropped."""

    def __init__(self, token: str, output: OutputSink, *, both_in_one: bool) -> None:
        super().__init__(output)
        self._token = token
        self._mark = keeper.end_mark(token)
        streams: tuple[Stream, ...] = ("stdout",) if both_in_one else ("stdout", "stderr")
        self._ends = {stream: End(self._mark) for stream in streams}
        self._code: int | None = None
        self._listing: bytes | None = None
        self._answer = Answer()
        self._delivering = True
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
        return not self._answer.wait()

    def left_nothing(self, timeout: float) -> bool:
        """Whether it was seen that no process of the command was left when it had ended."""
        self._listed.wait(timeout)
        return self._listing is not None and keeper.nothing_left(self._listing, self._token)

    def take(self, stream: Stream, piece: bytes) -> None:
        """Deliver it, but for what the main process says itself."""
        before = self._ends[stream].feed(self._answer.feed(piece) if stream == "stdout" else piece)
        if before and self._delivering:
            self._delivering = self._deliver(stream, before)
        if all(end.rest is not None for end in self._ends.values()):
            self._look_at_the_end()

    def end(self, error: BaseException | None) -> None:
        """Say that no more can come."""
        self._end_reading(error)
        self._listed.set()
        self._answer.give_up()

    def _look_at_the_end(self) -> None:
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
