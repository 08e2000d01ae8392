"""The root of a sandbox: an overlay of layers, what of the host is bound into it, and file systems of its own.

Everything is done by descriptors that were opened while the process still was who it was on the host: afterwards it may
not even be allowed to reach the folder that the layers lie in.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import contextmanager

from . import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"}

_PATH_ONLY = os.O_PATH | os.O_CLOEXEC


class Failed(Exception):
    """A step of making a sandbox that the kernel refused."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step, number)
        self.step = step
        self.number = number


@contextmanager
def step(name: str) -> Iterator[None]:
    """Name what is being done, should it fail."""
    try:
        yield
    except OSError as error:
        raise Failed(name, error.errno or 0) from error


class Root:
    """A root that is being made of ``folder``, which holds ``upper``, ``work`` and the place for it, ``root``.

    ``stack`` are the lower layers from the lowest up, ``binds`` what appears of the host: targets and their sources.
    """

    def __init__(self, folder: str, stack: list[str], binds: Mapping[str, str]) -> None:
        with step("open the store"):
            self.folder = os.open(folder, _PATH_ONLY | os.O_DIRECTORY)
            self.upper = os.open("upper", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY, dir_fd=self.folder)
            work = os.open("work", _PATH_ONLY | os.O_DIRECTORY, dir_fd=self.folder)
        self.lowers = []
        for layer in stack:
            with step(f"open the layer {layer}"):
                self.lowers.append(os.open(layer, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY))
        self._options = b"lowerdir=%s,upperdir=%s,workdir=%s,userxattr,volatile" % (
            b":".join(map(_path, reversed(self.lowers))),
            _path(self.upper),
            _path(work),
        )
        self._binds: dict[str, int] = {}
        for target, source in binds.items():
            with step(f"open {source}"):
                self._binds[target] = os.open(source, _PATH_ONLY)
        self._devices: dict[str, int] = {}
        for device in DEVICES:
            with step(f"open /dev/{device}"):
                self._devices[device] = os.open(f"/dev/{device}", _PATH_ONLY)
        self.fd = -1

    def assemble(self) -> None:
        """Mount everything but ``/proc``, which needs a process of the sandbox."""
        with step("mount an overlay"):
            place = os.open("root", _PATH_ONLY | os.O_DIRECTORY, dir_fd=self.folder)
            kernel.mount(b"overlay", place, kernel.NO_SUID | kernel.NO_DEVICES, self._options)
            self.fd = os.open("root", _PATH_ONLY | os.O_DIRECTORY, dir_fd=self.folder)
        for target, source in self._binds.items():
            with step(f"show {target} of the host"):
                kernel.bind(source, self._at(target), kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEVICES)
        with step("mount /dev"):
            kernel.mount(b"tmpfs", self._at("dev"), kernel.NO_SUID | kernel.NO_EXEC, b"mode=0755")
            folder = self._at("dev")
            for device, source in self._devices.items():
                os.close(os.open(device, os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=folder))
                kernel.bind(source, self._at(f"dev/{device}"), kernel.NO_SUID | kernel.NO_EXEC)
            for name, target in LINKS.items():
                os.symlink(target, name, dir_fd=folder)
            os.mkdir("pts", 0o755, dir_fd=folder)
            os.mkdir("shm", 0o755, dir_fd=folder)
        with step("mount /dev/pts"):
            options = b"newinstance,ptmxmode=0666,mode=0620"
            kernel.mount(b"devpts", self._at("dev/pts"), kernel.NO_SUID | kernel.NO_EXEC, options)
        with step("mount /dev/shm"):
            kernel.mount(b"tmpfs", self._at("dev/shm"), kernel.NO_SUID | kernel.NO_DEVICES, b"mode=1777")

    def mount_proc(self) -> None:
        """Called by a process that is in the sandbox's own process namespace."""
        with step("mount /proc"):
            kernel.mount(b"proc", self._at("proc"), kernel.NO_SUID | kernel.NO_DEVICES | kernel.NO_EXEC)
        with step("forbid further user namespaces"):
            # In one of its own a command would have every capability again, and with that all that the kernel lets be
            # done with them: the source of most of its holes.
            limit = os.open("sys/user/max_user_namespaces", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self._at("proc"))
            os.write(limit, b"0")
            os.close(limit)
        with step("make /proc/sys read-only"):
            settings = self._at("proc/sys")
            kernel.bind(settings, settings, kernel.READ_ONLY | kernel.NO_SUID | kernel.NO_DEVICES | kernel.NO_EXEC)

    def enter(self) -> None:
        with step("leave the host's root"):
            kernel.enter_root(self.fd)

    def _at(self, path: str) -> int:
        return kernel.open_beneath(self.fd, path.lstrip("/"))


def loopback_up() -> None:
    """Bring up the only interface that a new network namespace has."""
    with step("bring up the loopback interface"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        # https://man7.org/linux/man-pages/man7/netdevice.7.html: SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sH14x", b"lo", 1))


def _path(descriptor: int) -> bytes:
    return b"/proc/self/fd/%d" % descriptor
