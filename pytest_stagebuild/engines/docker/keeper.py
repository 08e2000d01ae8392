"""The shell that keeps a sandbox alive as its PID 1, and the scripts that find and end what else runs there.

All of it is POSIX shell that needs no other program, so that it runs on any image that has a ``/bin/sh``.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence
from typing import Final

from pytest_stagebuild.values import dataclass

MARK: Final = "pytest-stagebuild-keeper"
"""Stands in the command line of each process that belongs to the keeper."""

# The shell itself is PID 1: signals from inside that it has no handler for do not reach it, not even SIGKILL
# (https://man7.org/linux/man-pages/man7/pid_namespaces.7.html), and its `wait` reaps every orphan. Shells have handlers
# of their own (dash for SIGINT, bash for nearly all once there is a trap), hence the `trap`; its children ignore those
# signals too, and are ended by SIGKILL.
# It cannot read its standard input meanwhile, so a child does, which is started again when `kill -9 -1` took it along.
# The end of input means that the process holding the other end is gone: nothing is ever written there.
# /proc/uptime, because a wall clock may be set. Old busybox has a `timeout` with other arguments: hence the trial.
_KEEPER: Final = f"""
trap '' HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF SYS
exec 3<&0 </dev/null >/dev/null 2>&1
now() {{ read -r now rest </proc/uptime; now=${{now%%.*}}; }}
bounded=yes; timeout -s KILL 9 /bin/sh -c : {MARK} || bounded=
now; end=$((now + $1))
while now; left=$((end - now)); [ "$left" -gt 0 ]; do
  set -- /bin/sh -c 'while read -r line; do :; done' {MARK}
  [ -z "$bounded" ] || set -- timeout -s KILL "$left" "$@"
  "$@" <&3 &
  wait "$!"
  [ "$?" -gt 128 ] || break
done
"""

# The command line is read before the state: a process that ended in between has none, and is then seen to be ending.
_LIST: Final = """
for entry in /proc/[0-9]*; do
  pid=${entry#/proc/}
  if [ "$pid" != 1 ] && [ "$pid" != "$$" ]; then
    printf '\\n%s\\n' "$1"
    cat "$entry/cmdline" || { read -r line <"$entry/cmdline"; printf '%s' "$line"; }
    ! read -r status <"$entry/stat" || printf '\\n%s=\\n%s' "$1" "$status"
  fi
done 2>/dev/null
:
"""

# Once more after a moment would need `sleep`: the caller repeats the whole script instead.
_END: Final = "kill -s KILL -- -1 2>/dev/null\n" + _LIST
_END_THESE: Final = 'token=$1; shift; kill -s KILL -- "$@" 2>/dev/null; set -- "$token"\n' + _LIST

# -X takes any word; it is what keeps the program out of the list of leftovers.
_BESIDE: Final = """
for python in python3 python; do
  if command -v "$python" >/dev/null; then exec "$python" -I -S -X "$0" -c "$@"; fi
done
echo 'there is no Python in the image' >&2
exit 127
"""

OUT_OF_MEMORY_KILLS: Final = """
for events in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
  [ ! -r "$events" ] || while read -r name count; do
    [ "$name" != oom_kill ] || echo "$count"
  done <"$events"
done
:
"""
"""Prints how many processes of the sandbox the kernel has killed for memory (cgroup version 2, or 1)."""


_PF_EXITING: Final = 0x4
"""https://github.com/torvalds/linux/blob/v6.6/include/linux/sched.h#L1730"""

_KEEPERS_SESSION: Final = 1
"""The session that PID 1 leads and no command can join, for each begins one of its own. The mark alone does not tell:
a process has no command line for a moment while it is executed (busybox's ``timeout``, in turn, leaves the session)."""


def keeper_command(life: float) -> list[str]:
    """What PID 1 is to run so that the sandbox ends with its standard input, or after ``life`` seconds."""
    return ["/bin/sh", "-c", _KEEPER, MARK, str(max(1, math.ceil(life)))]


def list_command(token: str) -> list[str]:
    """What lists the processes of a sandbox for :func:`leftovers`."""
    return ["/bin/sh", "-c", _LIST, MARK, token]


def end_command(token: str, these: Sequence[int] = ()) -> list[str]:
    """The same, after SIGKILL has been sent to ``these``; without any, to all processes but the keeper."""
    return ["/bin/sh", "-c", _END_THESE if these else _END, MARK, token, *map(str, these)]


def beside_command(program: str, arguments: Sequence[str]) -> list[str]:
    """What runs a Python program, given as its source, with the image's own Python, marked as one of ours."""
    return ["/bin/sh", "-c", _BESIDE, MARK, program, *arguments]


def new_token() -> str:
    """A word that no command line contains yet."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Leftover:
    """A process that still runs; ``exiting`` where it is already on its way out."""

    pid: int
    command_line: str
    exiting: bool


def leftovers(listing: bytes, token: str) -> list[Leftover]:
    """The processes in what :func:`list_command` printed, but for the keeper's own and for dead ones.

    A process that has blanked its command line is named as ``ps`` does: ``[name]``.
    """
    found = []
    for part in listing.split(f"\n{token}\n".encode())[1:]:
        command_line, _, status = part.partition(f"\n{token}=\n".encode())
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: pid (comm) state ppid pgrp session tty tpgid flags
        match = re.match(rb"(\d+) \((.*)\) (.) -?\d+ -?\d+ (-?\d+) -?\d+ -?\d+ (\d+)", status, re.DOTALL)
        if match is None or match[3] in b"ZX":
            continue
        words = command_line.rstrip(b"\0").replace(b"\0", b" ") or b"[" + match[2] + b"]"
        text = words.decode(errors="backslashreplace").strip()
        if int(match[4]) != _KEEPERS_SESSION and MARK not in text:
            found.append(Leftover(int(match[1]), text, exiting=bool(int(match[5]) & _PF_EXITING)))
    return found
