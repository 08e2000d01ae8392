"""Makes a sandbox and serves it: files in and out, and programs of ours beside the user's commands.

It lives in the sandbox's mounts but outside of its processes, so that no command can see or end it. It ends with the
socket that it is asked through, and the sandbox ends with it.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from . import files, init, kernel, root, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import Any

    Request = dict[str, Any]

_ALL_DESCRIPTORS = 1 << 20


def supervise(spec: Request, asked: socket.socket, commands: socket.socket, map_users: Callable[[], None]) -> None:
    """Make the sandbox that ``spec`` describes, say so through ``asked``, and serve it until that is closed."""
    ends = time.monotonic() + spec["life"]
    try:
        sandbox = _make(spec, commands, map_users)
    except root.Failed as failed:
        wire.send(asked, {"step": failed.step, "errno": failed.number})
        return
    try:
        wire.send(asked, {"ready": True, "shell": os.access("/bin/sh", os.X_OK)})
        poll = select.poll()
        poll.register(asked, select.POLLIN)
        while (left := ends - time.monotonic()) > 0:
            if poll.poll(min(left, 3600) * 1000):
                message = wire.receive(asked)
                if message is None:
                    return
                request, descriptors = message
                wire.send(asked, _answer(request, descriptors, sandbox))
    finally:
        for pid in sandbox.processes:
            os.kill(pid, signal.SIGKILL)
        for pid in sandbox.processes:
            os.waitpid(pid, 0)


class _Sandbox:
    """A sandbox with its first process and those of ours beside it; with the first one all of the user's end."""

    def __init__(self, place: root.Root, first: int) -> None:
        self.place = place
        self.processes = [first]


def _make(spec: Request, commands: socket.socket, map_users: Callable[[], None]) -> _Sandbox:
    kernel.adopt_orphans()
    with root.step("make a user namespace"):
        kernel.unshare(kernel.NEW_USER)
    with root.step("map users"):
        map_users()
    with root.step("make namespaces"):
        network = 0 if spec["network"] else kernel.NEW_NETWORK
        kernel.unshare(kernel.NEW_MOUNTS | kernel.NEW_IPC | kernel.NEW_UTS | network)
        kernel.make_mounts_private()
    # Before it becomes somebody who may not even enter the folders that these lie in.
    place = root.Root(spec["folder"], spec["stack"], spec["binds"])
    with root.step("become the sandbox's root"):
        if spec["groups"]:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    # Whoever changes its user loses this.
    kernel.die_with_parent()
    os.umask(0o022)
    if not spec["network"]:
        root.loopback_up()
    with root.step("name the sandbox"):
        kernel.set_host_name(spec["host_name"])
    place.assemble()
    first = _first_process(place, commands, groups=spec["groups"])
    place.enter()
    kernel.forbid_inspection()
    return _Sandbox(place, first)


def _first_process(place: root.Root, commands: socket.socket, *, groups: bool) -> int:
    """Fork what is to be process 1 of the sandbox, and give its pid out here.

    The process that makes the namespace does not enter it; its children do. Programs of ours are to stay outside, so
    that process is another one, and what it leaves behind is adopted.
    """
    reading, writing = os.pipe()
    adopted, still_here = os.pipe()
    between = os.fork()
    if not between:
        try:
            with root.step("make a process namespace"):
                kernel.unshare(kernel.NEW_PIDS)
            first = os.fork()
            if not first:
                os.close(reading)
                os.close(still_here)
                init.serve(place, commands, writing, adopted, groups=groups)
            os.write(writing, b"%d\n" % first)
        except BaseException as error:  # noqa: BLE001 - it is told, to whoever can
            failed = error if isinstance(error, root.Failed) else root.Failed(repr(error), 0)
            os.write(writing, f"{failed.number} {failed.step}\n".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(between, 0)
    os.close(still_here)
    os.close(adopted)
    with open(reading, "rb") as told:
        lines = told.read().decode().splitlines()
    pids = [int(line) for line in lines if line.isdecimal()]
    if not pids or init.READY not in lines:
        number, _, name = next((line for line in lines if " " in line), "0 start the first process").partition(" ")
        raise root.Failed(name, int(number))
    return pids[0]


def _answer(request: Request, descriptors: list[int], sandbox: _Sandbox) -> dict[str, object]:
    try:
        return _done(request, descriptors, sandbox)
    except root.Failed as failed:
        return {"step": failed.step, "errno": failed.number}
    except Exception as error:  # noqa: BLE001 - it is told to whoever asked
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _done(request: Request, descriptors: list[int], sandbox: _Sandbox) -> dict[str, object]:
    match request["do"]:
        case "put" | "put layer":
            with open(os.dup(descriptors[0]), "rb", 0) as stream:
                files.extract(stream, layer=request["do"] == "put layer")
        case "get":
            try:
                os.lstat(request["path"])
            except (FileNotFoundError, NotADirectoryError):
                return {"absent": True}
            sandbox.processes.append(_process(lambda: _give_path(request["path"], *descriptors), *descriptors))
        case "whole":
            sandbox.processes.append(_process(lambda: _give_whole(*descriptors), *descriptors))
        case "changes":
            sandbox.processes.append(_process(lambda: _give_changes(sandbox.place, *descriptors), *descriptors))
        case "prove":
            files.prove()
        case "beside":
            sandbox.processes.append(_process(lambda: _run_program(request, *descriptors), *descriptors))
    return {}


def _process(work: Callable[[], None], _: int, complaints: int) -> int:
    """Let a process of its own work, so that the next request need not wait; ``complaints`` takes its last word."""
    pid = os.fork()
    if pid:
        return pid
    try:
        kernel.die_with_parent()
        work()
    except BrokenPipeError:
        pass  # whoever asked has read enough
    except BaseException as error:  # noqa: BLE001 - it is told
        os.write(complaints, f"{type(error).__name__}: {error}\n".encode(errors="backslashreplace"))
    finally:
        os._exit(0)


def _give_path(path: str, out: int, _: int) -> None:
    with open(os.dup(out), "wb", 0) as stream:
        files.archive(path, stream)


def _give_whole(out: int, _: int) -> None:
    with open(os.dup(out), "wb", 0) as stream:
        files.whole(stream)


def _give_changes(place: root.Root, out: int, _: int) -> None:
    with open(os.dup(out), "wb", 0) as stream:
        files.changes(place.upper, place.lowers, stream)


def _run_program(request: Request, out: int, complaints: int) -> None:
    os.setsid()
    os.dup2(out, 1)
    os.dup2(complaints, 2)
    # Some of the others lead out of the sandbox.
    os.closerange(3, complaints)
    os.closerange(complaints + 1, _ALL_DESCRIPTORS)
    sys.argv = ["", *request["arguments"]]
    exec(compile(request["program"], "<beside>", "exec"), {"__name__": "__main__"})  # noqa: S102 - it is one of ours
    sys.stdout.flush()
