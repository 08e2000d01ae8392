"""The client of the process that sandboxes are forked from, and the words for what the kernel refuses it."""

from __future__ import annotations

import dataclasses
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pytest_stagebuild.engines.local.runtime import wire
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.values import dataclass

_START: Final = "import sys; sys.path.insert(0, sys.argv[2]); from runtime.zygote import main; main(int(sys.argv[1]))"

_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")

REFUSED: Final = "!"
"""What begins so is told in place of an exit code: the step of confining a command, and the errno, that was refused."""

_ANSWER: Final = 60.0
"""Seconds within which a sandbox must be made, or must answer what takes no time."""


class SetUpFailed(EngineError):
    """The kernel refused a step of making a sandbox; ``step`` and ``number`` (an errno) say which and how."""

    def __init__(self, step: str, number: int, place: Path) -> None:
        super().__init__(_in_words(step, number, place))
        self.step = step
        self.number = number


@dataclasses.dataclass
class Channel:
    """A socket on which one question is asked at a time, and answered."""

    sock: socket.socket
    _lock: threading.Lock

    @classmethod
    def over(cls, sock: socket.socket) -> Channel:
        return cls(sock, threading.Lock())

    def send(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
        try:
            wire.send(self.sock, message, descriptors)
        except OSError as error:
            raise _ended() from error

    def receive(self, timeout: float | None = _ANSWER) -> dict[str, Any]:
        """The next message. Raises :class:`EngineError` where none comes."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            raise EngineError(f"the sandbox did not answer within {timeout:g} s. Run again.")
        try:
            received = wire.receive(self.sock)
        except OSError:
            received = None
        if received is None:
            raise _ended()
        return received[0]

    def ask(self, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        with self._lock:
            self.send(message, descriptors)
            return self.receive()

    def asking(self) -> threading.Lock:
        """Held by whoever sends and receives by itself."""
        return self._lock

    def close(self) -> None:
        """End it for the other side too, whoever else may have inherited this end by a fork."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@dataclass(frozen=True)
class Spawned:
    """A sandbox: where files are asked for, where commands are, and what is readable once all of it has ended."""

    files: Channel
    commands: Channel
    ended: int

    def end(self) -> None:
        """End everything in it, and wait until it has."""
        self.files.close()
        self.commands.close()
        try:
            os.read(self.ended, 1)
        finally:
            os.close(self.ended)


class Spawner:
    """Starts the process when the first sandbox is asked for, or before, and ends it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        ours, theirs = wire.pair()
        with theirs:
            self._channel = Channel.over(ours)
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-S",
                    "-X",
                    "utf8",
                    "-c",
                    _START,
                    str(theirs.fileno()),
                    str(Path(__file__).parent),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # No more of it than it takes to start: all sandboxes are forked from it.
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                # Ctrl-C is for the run, which ends its sandboxes as it likes.
                start_new_session=True,
            )

    def spawn(self, spec: Mapping[str, object]) -> tuple[Spawned, dict[str, Any]]:
        """Make a sandbox, and give it with what it says of itself. Raises :class:`SetUpFailed`."""
        files, their_files = wire.pair()
        commands, their_commands = wire.pair()
        ended, their_end = os.pipe()
        spawned = Spawned(Channel.over(files), Channel.over(commands), ended)
        try:
            with their_files, their_commands:
                try:
                    with self._lock:
                        self._channel.send(spec, [their_files.fileno(), their_commands.fileno(), their_end])
                finally:
                    os.close(their_end)
            answer = spawned.files.receive()
        except EngineError as error:
            spawned.end()
            raise EngineError(f"{error}{self._complaint()}") from error
        except BaseException:
            spawned.end()
            raise
        if "step" in answer:
            spawned.end()
            raise SetUpFailed(answer["step"], answer["errno"], Path(str(spec["folder"])))
        return spawned, answer

    def close(self) -> None:
        self._channel.close()
        self._process.communicate()

    def _complaint(self) -> str:
        if self._process.poll() is None or self._process.stderr is None:
            return ""
        said = self._process.stderr.read().decode(errors="replace").strip()
        return f" (the engine's own process has ended: {said.rpartition(chr(10))[2]})"


def _ended() -> EngineError:
    return EngineError("the sandbox ended unasked: somebody killed it, or it outlived its time. Run again.")


def _in_words(step: str, number: int, place: Path) -> str:
    """What was refused, why that is known to happen, and what to do about it."""
    name = errno.errorcode.get(number, str(number))
    return f"the local engine could not {step}: {os.strerror(number)} ({name}). {_remedy(step, number, place)}"


def _remedy(step: str, number: int, place: Path) -> str:
    refused = number in (errno.EPERM, errno.EACCES)
    if step == "make a user namespace" and number in (errno.ENOSPC, errno.EUSERS):
        return "The machine allows no more of them: raise the sysctl user.max_user_namespaces."
    if step in ("make a user namespace", "map users", "make namespaces") and refused:
        if _text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
            return (
                "Ubuntu's AppArmor restricts what ordinary users' namespaces may do: allow it with the sysctl "
                "kernel.apparmor_restrict_unprivileged_userns=0, run as root, or use Docker."
            )
        if _text("/proc/sys/kernel/unprivileged_userns_clone") == "0":
            return "Debian's sysctl kernel.unprivileged_userns_clone is 0: set it to 1, run as root, or use Docker."
        return (
            "Inside a container, its seccomp profile refuses it: start that with "
            "--security-opt seccomp=unconfined --security-opt apparmor=unconfined, or use Docker's engine from there."
        )
    if step.endswith("an overlay"):
        return (
            f"{place} must lie on a local file system that can be the upper layer of an overlay (ext4, xfs, btrfs; not "
            "NFS, nor a container's own overlay), on Linux 5.12 or newer: name a folder on one in "
            "PYTEST_STAGEBUILD_STORE."
        )
    if step == "mount /proc" and refused:
        return (
            "Inside a container whose /proc is masked, no new one can be mounted: start that with "
            "--security-opt systempaths=unconfined, or use Docker's engine from there."
        )
    if step == "filter system calls" and number == errno.ENOSYS:
        return (
            f"Those of {os.uname().machine} are not known to it (of x86_64 and aarch64 they are). Use Docker instead."
        )
    if number == errno.ENOSYS:
        return "The kernel is too old: the local engine needs Linux 5.12 or newer. Use Docker instead."
    if number == errno.EMFILE:
        return "Too many files are open: raise `ulimit -n`."
    return "Use Docker instead (--stagebuild-engine=docker), and report this."


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
