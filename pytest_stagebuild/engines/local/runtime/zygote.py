"""The process that all sandboxes of an engine are forked from: it has everything loaded that they need.

It ends with the socket that it is asked through, and takes the sandboxes along.
"""

from __future__ import annotations

import ctypes  # noqa: F401 - this and the next: what programs of ours that run beside the user's commands import
import mmap  # noqa: F401
import os
import signal
import socket
import sys
from importlib.machinery import BuiltinImporter

from . import kernel, serving, supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(descriptor: int) -> None:
    """Serve the socket that ``descriptor`` is."""
    _import_no_more()
    os.umask(0o022)
    asked = socket.socket(fileno=descriptor)
    asked.set_inheritable(False)
    living: dict[int, int] = {}

    def answer(spec: dict[str, Any], descriptors: list[int]) -> None:
        pid, ended = _sandbox(asked, living, spec, descriptors)
        living[pid] = ended

    def ended(pid: int, _: int) -> None:
        # The pipe of a sandbox is closed with it: that is how others know.
        if pid in living:
            os.close(living.pop(pid))

    serving.serve(asked, answer, ended)
    os._exit(0)  # nothing of it needs to be taken down in order, and somebody waits


def _import_no_more() -> None:
    """What a sandbox is served by must not come from a file in it, though one lies where Python would look."""
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if finder is BuiltinImporter]


def _sandbox(
    asked: socket.socket, living: dict[int, int], spec: dict[str, Any], descriptors: list[int]
) -> tuple[int, int]:
    files, commands, ended = descriptors
    from_child, to_parent = os.pipe()
    from_parent, to_child = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            asked.close()
            for one in (ended, from_child, to_child, *living.values()):
                os.close(one)
            kernel.die_with_parent()

            def map_users() -> None:
                os.write(to_parent, b"?")
                answer = os.read(from_parent, 16)
                if answer != b"+":
                    raise OSError(int(answer or b"0"), "the kernel refused the map")

            supervisor.supervise(spec, socket.socket(fileno=files), socket.socket(fileno=commands), map_users)
            code = 0
        except BrokenPipeError:
            pass  # nobody wants it any more
        finally:
            os._exit(code)
    for one in (files, commands, to_parent, from_parent):
        os.close(one)
    # Only a process out here may map more than itself.
    if os.read(from_child, 1):
        try:
            _map(pid, spec)
            os.write(to_child, b"+")
        except OSError as error:
            os.write(to_child, b"%d" % (error.errno or 0))
    os.close(from_child)
    os.close(to_child)
    return pid, ended


def _map(pid: int, spec: dict[str, Any]) -> None:
    """https://man7.org/linux/man-pages/man7/user_namespaces.7.html, "User and group ID mappings"."""
    if not spec["groups"]:
        _write(f"/proc/{pid}/setgroups", "deny")
    _write(f"/proc/{pid}/uid_map", spec["uid_map"])
    _write(f"/proc/{pid}/gid_map", spec["gid_map"])


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
