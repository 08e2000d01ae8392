"""One command inside a running container: its output as it comes, and its end."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.connection import Connection, engine_errors, words_of
from pytest_stagebuild.engines.docker.transport import Lost
from pytest_stagebuild.engines.pace import paced
from pytest_stagebuild.engines.protocol import MEANWHILE, OutputSink, Program, Stream
from pytest_stagebuild.errors import EngineError

if TYPE_CHECKING:
    from typing_extensions import Self

_POLL: Final = 0.5
"""Seconds between two questions after a command whose output is still open: something that it left may hold it."""

_QUIET: Final = 0.3
_DRAIN: Final = 5.0
"""Once a command has ended, its output is over after this many seconds without any, or this many in all: what it
left running may go on writing for ever."""

_PIECE: Final = 1 << 20
_HEAD: Final = 1000

_FAILED_TO_START: Final = (b"OCI runtime exec failed", b"unable to find user", b"unable to find group")
"""How the engine's own words start where it puts them into the command's output, with the exit code 126 or 127."""


class Streamed:
    """The output of a command, given to a sink by a thread that reads it; none any more once it is closed."""

    def __init__(self, output: OutputSink) -> None:
        self._output = output
        self._delivery = threading.Lock()
        self._closed = False
        self._delivering_since: float | None = None
        self._last_output = 0.0
        self._problem: BaseException | None = None
        self._over = threading.Event()

    @property
    def over(self) -> bool:
        """Whether there will be no more output."""
        return self._over.is_set()

    def drain(self) -> None:
        """Wait until what the ended command has written is delivered."""
        end = time.monotonic() + _DRAIN
        quiet_from = time.monotonic()
        while not self._over.wait(0.02):
            now = time.monotonic()
            if self._delivering_since is not None:
                # The sink is slow, the engine is not: that time does not count.
                end += 0.02
                quiet_from = now
            elif now > end or now - max(quiet_from, self._last_output) > _QUIET:
                return

    def close(self) -> None:
        """Take no more output, and let the command run on."""
        with self._delivery:
            self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _deliver(self, stream: Stream, piece: bytes) -> bool:
        """Give it to the sink; False where that takes no more."""
        with self._delivery:
            if self._closed:
                return False
            self._delivering_since = time.monotonic()
            self._output(stream, piece)
            self._delivering_since = None
            self._last_output = time.monotonic()
            return True

    def _wait_for_the_end(self, deadline: float | None, meanwhile: Callable[[], None] | None) -> None:
        """Wait for the end of the output, or for a while."""
        left = None if deadline is None else deadline - time.monotonic()
        timeout = _POLL if left is None else max(0.0, min(_POLL, left))
        if meanwhile is None:
            self._over.wait(timeout)
        else:
            end = time.monotonic() + timeout
            while (left := end - time.monotonic()) > 0 and not self._over.wait(min(left, MEANWHILE)):
                meanwhile()
        self._raise_problem()

    def _raise_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _end_reading(self, error: BaseException | None) -> None:
        """Say that there is no more; whatever ended the reading is kept for the thread that waits."""
        # Closing a response that is being read ends in any of these. What the sink raises belongs to whoever waits.
        if isinstance(error, (Lost, OSError, ValueError, AttributeError)) and self._delivering_since is None:
            error = None if self._closed else self._broken_off(error)
        self._problem = error
        self._over.set()

    def _broken_off(self, error: Exception) -> EngineError | None:
        """What it means that the engine ended the stream so; nothing where that is how a container's end looks."""
        return None


class Execution(Streamed):
    """A command that the engine has started in a container that runs."""

    def __init__(
        self,
        connection: Connection,
        container: str,
        argv: Sequence[str],
        *,
        output: OutputSink,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str = "",
    ) -> None:
        super().__init__(output)
        self._connection = connection
        self._first_output = b""
        with engine_errors("start a command"):
            told: dict[str, object] = {
                "Cmd": list(argv),
                "Env": [f"{name}={value}" for name, value in (env or {}).items()],
                "User": user,
                "AttachStdout": True,
                "AttachStderr": True,
            }
            if cwd is not None:
                told["WorkingDir"] = cwd
            self._id: str = connection.ask("POST", f"/containers/{container}/exec", body=told)["Id"]
            self._response = connection.stream(f"/exec/{self._id}/start", {"Detach": False, "Tty": False})
        self._interrupter = self._response.interrupter()
        self._reader = threading.Thread(target=self._read, name="stagebuild-output", daemon=True)
        self._reader.start()

    def wait(self, timeout: float | None, meanwhile: Callable[[], None] | None = None) -> int | None:
        """The exit code, after all output has been delivered; None when ``timeout`` seconds have passed before."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.005
        while True:
            self._wait_for_the_end(deadline, meanwhile)
            with engine_errors("say how the command ended"):
                state = self._connection.ask("GET", f"/exec/{self._id}/json")
            if not state["Running"]:
                if state["ExitCode"] is None:
                    raise EngineError("the engine lost the command: it neither runs nor has an exit code. Run again.")
                self.drain()
                self._raise_problem()
                return self._checked(int(state["ExitCode"]))
            if deadline is not None and time.monotonic() >= deadline:
                return None
            if self._over.is_set():
                # It has closed its output and goes on, or the engine has not yet seen it end.
                time.sleep(pause)
                pause = min(pause * 2, _POLL)

    def close(self) -> None:
        super().close()
        if self._interrupter is not None:
            with suppress(OSError):  # the other side was faster
                self._interrupter.shutdown(socket.SHUT_RDWR)
            self._interrupter.close()
            self._reader.join(timeout=5)
        self._response.close()

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            for stream, piece in frames(paced(self._response.read)):
                if len(self._first_output) < _HEAD:
                    self._first_output += piece[:_HEAD]
                if not self._deliver(stream, piece):
                    break
        except BaseException as caught:  # noqa: BLE001 - it belongs to the thread that waits
            error = caught
        self._end_reading(error)

    def _broken_off(self, error: Exception) -> EngineError | None:
        return EngineError(f"the engine broke off the command's output: {words_of(error)}")

    def _checked(self, code: int) -> int:
        if code in (126, 127) and self._first_output.startswith(_FAILED_TO_START):
            words = self._first_output.decode(errors="replace").strip()
            raise EngineError(f"the engine could not start the command: {words}. Mend that, then run again.")
        return code


class Lines:
    """What a program prints, given out line by line; ``over`` says whether it will print no more."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over
        self._whole: deque[bytes] = deque()
        self._part = b""
        self._news = threading.Condition()

    def add(self, piece: bytes) -> None:
        """Take what was printed."""
        with self._news:
            *lines, self._part = (self._part + piece).split(b"\n")
            self._whole.extend(lines)
            self._news.notify_all()

    def next(self, timeout: float) -> str | None:
        """The next one; None when there is no more, or none within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._news:
            # The end of the output comes without news.
            while not self._whole:
                if self._over() or time.monotonic() > deadline:
                    return None
                self._news.wait(0.05)
            return self._whole.popleft().decode(errors="replace")

    def left(self) -> bytes:
        """All that has not been given out."""
        with self._news:
            return b"\n".join([*self._whole, self._part])


class ExecutedBeside:
    """A program that the engine has started; see :class:`~pytest_stagebuild.engines.protocol.Beside`."""

    def __init__(self, connection: Connection, container: str, program: Program) -> None:
        argv = keeper.beside_command(program)
        self._lines = Lines(lambda: self._execution.over)
        self._said = b""
        self._execution = Execution(connection, container, argv, output=self._take, user="0:0")

    def line(self, timeout: float) -> str | None:
        return self._lines.next(timeout)

    def complaint(self) -> str:
        return self._said.decode(errors="replace").strip().rpartition("\n")[2]

    def close(self) -> None:
        """Hear no more of it."""
        self._execution.close()

    def _take(self, stream: Stream, piece: bytes) -> None:
        if stream == "stdout":
            self._lines.add(piece)
        else:
            self._said += piece


def output_of(connection: Connection, container: str, argv: Sequence[str], *, timeout: float) -> bytes:
    """What a short command prints when root runs it. Raises :class:`EngineError` unless it succeeds in time."""
    pieces: list[bytes] = []
    with Execution(connection, container, argv, output=lambda _, piece: pieces.append(piece), user="0:0") as execution:
        code = execution.wait(timeout)
    if code != 0:
        ending = f"failed with exit code {code}" if code is not None else f"did not end within {timeout:.0f} s"
        words = b"".join(pieces).decode(errors="replace")[-500:].strip()
        raise EngineError(f"a command of ours in the sandbox {ending}: {words}. Run again.")
    return b"".join(pieces)


def frames(read: Callable[[int], bytes]) -> Iterator[tuple[Stream, bytes]]:
    """Part the engine's stream, of which ``read`` gives as many bytes as asked for unless it ends, into pieces.

    The format: https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerAttach.
    Stream 3, where the daemon itself speaks, counts as stderr. Raises ``ValueError`` for a stream that ends in a frame.
    """
    while header := read(8):
        if len(header) < 8:
            raise ValueError("the stream ends in the middle of a frame")
        stream: Stream = "stderr" if header[0] in (2, 3) else "stdout"
        left = int.from_bytes(header[4:], "big")
        while left:
            piece = read(min(left, _PIECE))
            if not piece:
                raise ValueError("the stream ends in the middle of a frame")
            left -= len(piece)
            yield stream, piece
