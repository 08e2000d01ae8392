"""Process 1 of a sandbox: runs the user's commands, reaps what they leave, and ends it.

Signals from inside do not reach it, SIGKILL included: https://man7.org/linux/man-pages/man7/pid_namespaces.7.html.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from . import confinement, kernel, root, serving, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, NoReturn

    Request = dict[str, Any]

_END_WITHIN = 4.0
"""Seconds that what is left may take to end."""

_STARTED_WITHIN = 0.5
"""Seconds in which a process that was forked as the command ended has become what it is to be, and is named so."""

_FORKED_ONLY = 0x40
"""PF_FORKNOEXEC: https://github.com/torvalds/linux/blob/v6.6/include/linux/sched.h#L1734"""

READY = "ready"

REFUSED = "!"
"""What is told begins so, in place of an exit code, where the kernel refuses to confine the command."""


def serve(place: root.Root, commands: socket.socket, ready: int, adopted: int, *, groups: bool) -> NoReturn:
    """Mount ``/proc``, write the line "ready" to ``ready``, and serve ``commands`` until that is closed.

    ``adopted`` ends once this process has the parent that it is to end with.
    """
    os.setsid()
    os.chdir("/")
    place.mount_proc()
    kernel.forbid_inspection()
    with root.step("keep to the sandbox's own sockets"):
        kernel.keep_to_its_own()
    os.write(ready, f"{READY}\n".encode())
    os.close(ready)
    os.read(adopted, 1)
    os.close(adopted)
    kernel.die_with_parent()
    first = _First(groups=groups)
    serving.serve(commands, lambda *request: first.answer(commands, *request), first.ended)
    os._exit(0)


class _First:
    """The commands that run, by their pid, each with the descriptor that its end is told through."""

    def __init__(self, *, groups: bool) -> None:
        self._groups = groups
        self._running: dict[int, int] = {}

    def answer(self, commands: socket.socket, request: Request, descriptors: list[int]) -> None:
        match request["do"]:
            case "run" | "prove":
                self._run(request, *descriptors)
            case "end":
                wire.send(commands, self._end())

    def ended(self, pid: int, status: int) -> None:
        if (told := self._running.pop(pid, None)) is not None:
            code = os.waitstatus_to_exitcode(status)
            with suppress(BrokenPipeError):  # whoever asked has lost patience
                os.write(told, b"%d" % (code if code >= 0 else 128 - code))
            os.close(told)

    def _run(self, request: Request, out: int, err: int, told: int) -> None:
        pid = os.fork()
        if not pid:
            _become(request, out, err, told, groups=self._groups)
        self._running[pid] = told
        os.close(out)
        os.close(err)

    def _end(self) -> dict[str, object]:
        ended: dict[int, str] = {}
        begun = time.monotonic()
        while any(one.starting for one in _processes()) and time.monotonic() - begun < _STARTED_WITHIN:
            time.sleep(0.001)
        while running := _processes():
            ended = {**{one.pid: one.command_line for one in running}, **ended}
            if time.monotonic() - begun > _END_WITHIN:
                return {"ended": list(ended.values()), "stuck": [one.command_line for one in running]}
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            serving.reap(self.ended)
            time.sleep(0.001)
        return {"ended": list(ended.values()), "stuck": []}


def _become(request: Request, out: int, err: int, told: int, *, groups: bool) -> NoReturn:
    """Turn into the command; ``told`` takes what keeps it from being confined."""
    try:
        try:
            _confine(request, groups=groups)
        except root.Failed as failed:
            os.write(told, f"{REFUSED}{failed.number} {failed.step}".encode())
            os._exit(126)
        if request["do"] == "prove":
            os._exit(0)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.umask(0o022)
        os.chdir(request["cwd"])
        os.execve("/bin/sh", ["/bin/sh", "-c", request["command"]], request["env"])  # noqa: S606 - it is the shell
    except OSError as error:
        os.write(2, f"the command could not be started: {error}\n".encode())
    finally:
        os._exit(126)


def _confine(request: Request, *, groups: bool) -> None:
    os.setsid()
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and not 32 <= number < 34:  # two are the C library's own
            signal.signal(number, signal.SIG_DFL)
    with root.step("give up capabilities"):
        confinement.confine()
    with root.step("become the command's user"):
        if groups:
            os.setgroups(request["groups"])
        os.setresgid(*[request["gid"]] * 3)
        os.setresuid(*[request["uid"]] * 3)
    with root.step("filter system calls"):
        kernel.gain_no_rights()
        confinement.filter_calls()


class _Process:
    """What runs besides this process; ``starting`` where it has not become what it is to be, or never will."""

    def __init__(self, pid: int, command_line: str, *, starting: bool) -> None:
        self.pid = pid
        self.command_line = command_line
        self.starting = starting


def _processes() -> list[_Process]:
    """All others, named as ``ps`` does where the command line is blank."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal() and name != "1":
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    words = file.read().rstrip(b"\0").replace(b"\0", b" ")
                with open(f"/proc/{name}/stat", "rb") as file:
                    before, _, after = file.read().rpartition(b")")
            except OSError:
                continue
            state, flags = after.split()[0], int(after.split()[6])
            if state not in (b"Z", b"X"):
                words = words or b"[" + before.partition(b"(")[2] + b"]"
                text = words.decode(errors="backslashreplace").strip()
                found.append(_Process(int(name), text, starting=bool(flags & _FORKED_ONLY)))
    return found
