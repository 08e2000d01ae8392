"""What a command may not do, though it is root in its sandbox."""

from __future__ import annotations

import errno
import os
import struct

from . import kernel

# https://man7.org/linux/man-pages/man7/capabilities.7.html. What installing packages takes, and none of what reaches
# beyond the sandbox's own files and processes.
_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _KILL, _SETGID, _SETUID, _SETPCAP = 0, 1, 3, 4, 5, 6, 7, 8
_NET_BIND_SERVICE, _SYS_CHROOT = 10, 18
_KEPT = frozenset(
    (_CHOWN, _DAC_OVERRIDE, _FOWNER, _FSETID, _KILL, _SETGID, _SETUID, _SETPCAP, _NET_BIND_SERVICE, _SYS_CHROOT)
)

_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06

_CALL, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = 0, 4, 16, 24
"""Offsets in ``struct seccomp_data``, of the lower half of each argument."""

_X32 = 0x40000000

# io_uring_setup, _enter and _register, which make sockets without the call that is looked at here: Docker refuses them
# too (https://github.com/moby/moby/pull/46762).
_RINGS = (425, 426, 427)

# AUDIT_ARCH of each, and its numbers of: socket, ioctl; add_key, request_key, keyctl, bpf, perf_event_open,
# userfaultfd, syslog
_ARCHITECTURES = {
    "x86_64": (0xC000003E, 41, 16, (248, 249, 250, 321, 298, 323, 103, *_RINGS)),
    "aarch64": (0xC00000B7, 198, 29, (217, 218, 219, 280, 241, 282, 116, *_RINGS)),
}

_AF_ALG, _AF_VSOCK = 38, 40
"""Into the kernel's own cryptography, which has let the page cache of files be written that others share
(CVE-2026-31431), and to the machine that this one is a guest of."""

_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
"""Both put words into the terminal that the run was started from."""


def confine() -> None:
    """Give up every capability but those kept, for this process and all that it becomes."""
    number = 0
    while number in _KEPT or kernel.drop_capability(number):
        number += 1


def filter_calls() -> None:
    """Refuse the system calls that reach beyond the sandbox, and every way round the refusal.

    Raises ``OSError`` with ``ENOSYS`` on a machine whose calls are not known here.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"the system calls of {machine} are not known")
    kernel.filter_system_calls(_program(*_ARCHITECTURES[machine]))


def _program(architecture: int, socket: int, ioctl: int, refused: tuple[int, ...]) -> bytes:
    unknown_family, forbidden = _ERROR | errno.EAFNOSUPPORT, _ERROR | errno.EPERM
    return b"".join(
        (
            _step(_LOAD, _ARCHITECTURE),
            # Another architecture's calls have other numbers, and a call of its own for sockets.
            _step(_JUMP_EQUAL, architecture, 1, 0),
            _step(_RETURN, _ERROR | errno.ENOSYS),
            _step(_LOAD, _CALL),
            _step(_JUMP_GREATER_EQUAL, _X32, 0, 1),
            _step(_RETURN, _ERROR | errno.ENOSYS),
            *_refusals(socket, _FIRST_ARGUMENT, (_AF_ALG, _AF_VSOCK), unknown_family),
            *_refusals(ioctl, _SECOND_ARGUMENT, (_TIOCSTI, _TIOCLINUX), forbidden),
            *(step for call in refused for step in (_step(_JUMP_EQUAL, call, 0, 1), _step(_RETURN, forbidden))),
            _step(_RETURN, _ALLOW),
        )
    )


def _refusals(call: int, argument: int, values: tuple[int, ...], answer: int) -> tuple[bytes, ...]:
    body = [_step(_LOAD, argument)]
    for value in values:
        body += [_step(_JUMP_EQUAL, value, 0, 1), _step(_RETURN, answer)]
    body.append(_step(_RETURN, _ALLOW))
    return _step(_JUMP_EQUAL, call, 0, len(body)), *body


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
