"""The system calls that Python's own modules lack."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

# https://github.com/torvalds/linux/blob/v6.6/include/uapi/linux/sched.h
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip

# https://github.com/torvalds/linux/blob/v6.6/include/uapi/linux/mount.h
READ_ONLY, NO_SUID, NO_DEVICES, NO_EXEC = 0x1, 0x2, 0x4, 0x8
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 0x2
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 0x1, 0o2000000
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_MOVE_FROM_EMPTY, _MOVE_TO_EMPTY = 0x4, 0x40

# Numbers from 424 on are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08

# https://github.com/torvalds/linux/blob/v6.6/include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP = 1, 4, 22, 24
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SECCOMP_MODE_FILTER = 2

# https://github.com/torvalds/linux/blob/v6.12/include/uapi/linux/landlock.h
_LANDLOCK_CREATE_RULESET_VERSION = 0x1
_LANDLOCK_SCOPES = 6
"""The version that has them."""
_ABSTRACT_SOCKETS, _SIGNALS = 0x1, 0x2


def unshare(flags: int) -> None:
    """Give the process namespaces of its own."""
    _call("unshare", flags)


def make_mounts_private() -> None:
    """Let nothing that is mounted from now on be seen out there."""
    _call("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)


def mount(kind: bytes, target: int, flags: int, options: bytes = b"") -> None:
    """Mount a new file system on the folder that the descriptor ``target`` is open on."""
    _call("mount", kind, b"/proc/self/fd/%d" % target, kind, ctypes.c_ulong(flags), options)


def bind(source: int, target: int, flags: int) -> None:
    """Let what ``source`` is open on, with all that is mounted below it, appear at ``target`` too."""
    tree = _syscall(_OPEN_TREE, source, b"", _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH | _AT_RECURSIVE)
    try:
        attributes = struct.pack("=QQQQ", flags, 0, 0, 0)
        _syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, attributes, len(attributes))
        _syscall(_MOVE_MOUNT, tree, b"", target, b"", _MOVE_FROM_EMPTY | _MOVE_TO_EMPTY)
    finally:
        os.close(tree)


def open_beneath(folder: int, path: str) -> int:
    """A descriptor that only names ``path`` below ``folder``; no link is followed on the way."""
    how = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW, 0, _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH)
    return _syscall(_OPENAT2, folder, os.fsencode(path), how, len(how))


def enter_root(root: int) -> None:
    """Make ``root`` the root of every process here, and let go of the old one.

    https://man7.org/linux/man-pages/man2/pivot_root.2.html, "pivot_root(".", ".")".
    """
    os.fchdir(root)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def set_host_name(name: str) -> None:
    """Name the machine, as those in this namespace see it."""
    text = name.encode()
    _call("sethostname", text, ctypes.c_size_t(len(text)))


def synchronise(folder: os.PathLike[str]) -> None:
    """Wait until everything that was written to the file system of ``folder`` is on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        _call("syncfs", descriptor)
    finally:
        os.close(descriptor)


def die_with_parent() -> None:
    """Be killed when the parent ends; a change of user or group undoes this."""
    _call("prctl", _PR_SET_PDEATHSIG, ctypes.c_ulong(9), 0, 0, 0)


def adopt_orphans() -> None:
    """Be the parent of what children leave behind."""
    _call("prctl", _PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)


def forbid_inspection() -> None:
    """Nobody without more rights may trace this process, or look into its memory and descriptors."""
    _call("prctl", _PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0)


def gain_no_rights() -> None:
    """No program gives more rights than its caller has, whatever its mode and file capabilities say."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)


def drop_capability(number: int) -> bool:
    """Take a capability from everything that is executed from now on; False where the kernel has none so numbered."""
    try:
        _call("prctl", _PR_CAPBSET_DROP, ctypes.c_ulong(number), 0, 0, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def filter_system_calls(program: bytes) -> None:
    """``program`` is made of ``struct sock_filter``: https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    _call("prctl", _PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), header, 0, 0)


def keep_to_its_own() -> None:
    """From now on this process and its children reach only abstract sockets and processes of each other.

    Such sockets belong to a network, not to a file system: a sandbox that shares the host's network would reach those
    of every program there. Kernels before 6.12 cannot tell them apart, and those without Landlock neither
    (https://docs.kernel.org/userspace-api/landlock.html#ipc-scoping).
    """
    try:
        version = _syscall(_LANDLOCK_CREATE_RULESET, 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return
        raise
    if version < _LANDLOCK_SCOPES:
        return
    attributes = struct.pack("=QQQ", 0, 0, _ABSTRACT_SOCKETS | _SIGNALS)
    rules = _syscall(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _syscall(_LANDLOCK_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _call(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def _syscall(number: int, *arguments: int | bytes) -> int:
    return _call("syscall", number, *(ctypes.c_long(one) if isinstance(one, int) else one for one in arguments))
