"""The shell that keeps a sandbox alive as its PID 1, and the scripts that find and end what else runs there.

All of it is POSIX shell that needs no other program, so that it runs on any image that has a ``/bin/sh``.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pytest_stagebuild.engines.protocol import Program
from pytest_stagebuild.values import dataclass

MARK: Final = "pytest-stagebuild-keeper"
"""Stands in the first line of the command line of each process that belongs to the keeper."""

_SIGNALS: Final = "HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF SYS"

# What the engine gives each container, and keeps in no image; of some hundred lines at most, for a shell reads slowly,
# and all in one line, since steps are.
_GIVEN: Final = (
    "given() { lines=0; for file in /etc/hosts /etc/hostname /etc/resolv.conf; do echo :; "
    'while IFS= read -r line || [ -n "$line" ]; do echo "$line"; lines=$((lines + 1)); '
    '[ "$lines" -lt 100 ] || return 1; done <"$file"; done; }'
)

# Passes on what `told` gives, but for the bytes at its end.
_LISTEN: Final = f""": {MARK}
IFS= read -r token && printf "%s\\n" "$token" && while IFS= read -r line; do
  [ "$line" != "$token" ] || exit 0
  printf "%s\\n" "$line"
done
exit 1
"""

# Reads the archive to its end, whoever extracts it, or what comes after it would be read from its middle. A `tar` that
# the command has made a link to `true` lists nothing.
_EXTRACT: Final = """
extract() {
  head -c "$1" | {
    listed=$(TAR_OPTIONS= EXTRACT_UNSAFE_SYMLINKS=1 tar -xvf - -C / 2>&1) && [ -n "$listed" ]; code=$?
    while read -r rest; do :; done
    exit "$code"
  }
}
"""

# Waits for the end of the input, and does the steps of ours that are told before: see `told_step`. Where something else
# comes than was agreed upon, it does nothing more. Steps have what was given at the start as their first argument.
_WAIT: Final = f""": {MARK}
{_EXTRACT}
while IFS= read -r token && IFS= read -r size && IFS= read -r script; do
  printf "\\036%s" "$token" >&4
  [ "$size" = 0 ] || extract "$size"
  code=$?
  [ "$code" != 0 ] || {{ (eval "$script") </dev/null >&4 2>&1; code=$?; }}
  printf "\\036%s%s\\n" "$token" "$code" >&4
  IFS= read -r after && [ "$after" = "$token" ] || break
done
while read -r line; do :; done
"""

_BROUGHT: Final = "/dev/pytest-stagebuild"
"""Where a file shows that what was sent has been extracted: in memory, and in no image."""

GO_ON: Final = f": >{_BROUGHT}"
"""What root has to run where the keeper was told nothing, and a program beside is to go on."""

# The shell itself is PID 1: signals from inside that it has no handler for do not reach it, not even SIGKILL
# (https://man7.org/linux/man-pages/man7/pid_namespaces.7.html), and its `wait` reaps every orphan. Shells have handlers
# of their own (dash for SIGINT, bash for nearly all once there is a trap), hence the `trap`. It does not ignore them,
# for the command that it is told would do so as well; the children that guard the input do, and end by SIGKILL.
# It cannot read its standard input while it waits, so a child does, which is started again when `kill -9 -1` took it
# along. The end of input means that the process holding the other end is gone. What comes before it is what `told`
# gives: a line, what it is, a number, more lines up to another like the first, and so many bytes.
# /proc/uptime, because a wall clock may be set. Old busybox has a `timeout` with other arguments: hence the trial,
# beside the rest.
# Only one command is told: whoever reads the input while it runs cannot be parted from it again for sure.
# The command is no job of the background, for those ignore SIGINT and SIGQUIT; the one that guards is, and ends the
# command too. (Where the command kills that one, and goes on, nobody guards until it ends.) At its end comes a list of
# what it has left.
# What runs beside has the one output for itself, and the command the other for both of its own. It ignores what the
# command sends to its group. That it has ended is told by a shell of its own, or by the keeper where both were killed.
# It starts first of all, and waits for a file that says that what it was sent with is there: see `_EARLY`.
_KEEPER: Final = f""": {MARK}
trap : {_SIGNALS}
exec 3<&0 4>&1 5>&2 </dev/null >/dev/null 2>&1
newline='
'
now() {{ read -r now rest </proc/uptime; now=${{now%%.*}}; }}
life=$1 list=$2 lends=$3 told= what= beside= bounded=yes waiting='{_WAIT}'
shift 3
beside() {{
  trap '' {_SIGNALS}
  "$@" 2>&1 & program=$!
  trap 'kill -s CONT "$program"' CONT
  while wait "$program"; [ "$?" -gt 128 ] && kill -s 0 "$program"; do :; done
  printf '\\036'
}}
[ "$#" = 0 ] || {{ beside "$@" 3<&- >&5 4>&- 5>&- & beside=$!; }}
timeout -s KILL 9 /bin/sh -c 'exit 7' {MARK} 3<&- 4>&- 5>&- & trial=$!
now; end=$((now + life))
{_GIVEN}
given=; [ -z "$lends" ] || given=$(given) || given=
while wait "$trial"; code=$?; [ "$code" -gt 128 ] && kill -s 0 "$trial"; do :; done
[ "$code" = 7 ] || bounded=
guarded() (
  trap '' {_SIGNALS}
  script=$1
  while now; left=$((end - now)); [ "$left" -gt 0 ]; do
    set -- /bin/sh -c "$script" {MARK} "$given"
    [ -z "$bounded" ] || set -- timeout -s KILL "$left" "$@"
    "$@" <&3 3<&- 5>&-
    code=$?
    [ "$code" -gt 128 ] || exit "$code"
  done
  exit 1
)
watched() {{
  guarded "$waiting"
  code=$?
  [ "$code" -gt 128 ] || kill -s KILL -- -1
  return "$code"
}}
first() {{ first=${{told%%"$newline"*}} told=${{told#*"$newline"}}; }}
{_EXTRACT}
hear() {{
  while told=$(trap '' {_SIGNALS}; guarded '{_LISTEN}'); code=$?; [ "$code" -gt 128 ]; do :; done
  [ "$code" = 0 ] || exit
  told=$told$newline
  first; token=$first; first; what=$first; first; size=$first
  extracted=yes; [ "$size" = 0 ] || extract "$size" <&3 || extracted=
  [ -z "$extracted" ] || [ "$what" = nothing ] || command {GO_ON}
  [ -n "$extracted" ] || {{ told= waiting='while read -r line; do :; done'; }}
  printf "$extracted\\n" >&4
}}
begin_guard() {{ {{ trap '' {_SIGNALS}; watched; }} & guard=$!; }}
ended() {{
  printf '\\036%s%s\\n' "$token" "$1" >&4
  if [ -n "$beside" ]; then kill -s CONT "$beside"; else printf '\\036%s\\n' "$token" >&5; fi
  /bin/sh -c "$list" {MARK} "$token" >&4 3<&- 4>&- 5>&-; printf '\\036%s' "$token" >&4
}}
if [ -n "$list" ]; then
  while hear; [ "$what" = files ]; do :; done
fi
begin_guard
if [ -n "$told" ]; then
  errors=5; [ -z "$beside" ] || errors=4
  (eval "$told") 3<&- >&4 2>&"$errors" 4>&- 5>&-
  ended "$?"
fi
if [ -n "$beside" ]; then
  kill -s 0 "$guard" || begin_guard
  wait "$beside"; printf '\\036' >&5
fi
wait "$guard"
code=$?
while [ "$code" -gt 128 ]; do
  watched
  code=$?
done
"""

BESIDE_ENDED: Final = b"\x1e"

# The command line is read before the state: a process that ended in between has none, and is then seen to be ending.
# What the shell itself can read of it tells most of the keeper's own, and saves a `cat` for each of them. It reads byte
# by byte, which takes long where a command line has a million.
_LIST: Final = f"""
for entry in /proc/[0-9]*; do
  pid=${{entry#/proc/}} line=
  read -r status <"$entry/stat"
  case $status in *"(sh) "* | *"(timeout) "* | *"(python"*) read -r line <"$entry/cmdline";; esac
  case $line in *{MARK}*) continue;; esac
  if [ "$pid" != 1 ] && [ "$pid" != "$$" ]; then
    printf '\\n%s\\n' "$1"
    cat "$entry/cmdline" || {{ read -r line <"$entry/cmdline"; printf '%s' "$line"; }}
    ! read -r status <"$entry/stat" || printf '\\n%s=\\n%s' "$1" "$status"
  fi
done 2>/dev/null
:
"""

# Once more after a moment would need `sleep`: the caller repeats the whole script instead.
_END: Final = "kill -s KILL -- -1 2>/dev/null\n" + _LIST
_END_THESE: Final = 'token=$1; shift; kill -s KILL -- "$@" 2>/dev/null; set -- "$token"\n' + _LIST

# Starting Python and reading the program takes 15 ms, which need nothing of what is sent.
_EARLY: Final = f"""
import os, sys, time
source, *arguments = sys.argv[1:]
program = {{"__name__": "beside"}}
exec(compile(source, "beside", "exec"), program)
begun = time.monotonic()
while not os.path.exists("{_BROUGHT}"):
    time.sleep(0.0005 if time.monotonic() - begun < 1 else 0.01)
program["main"](*arguments)
"""

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


# The list of all connections takes the kernel 5 ms, and the counts none. Those of IPv6 are another list, and are not
# looked at: whatever is counted and not listed is something.
NETWORK: Final = (
    _GIVEN + '; now=$(given); [ -z "$1" ] || [ "$now" != "$1" ] || { echo as given; all=yes; '
    'for file in sockstat sockstat6; do while read -r line; do echo "$line"; '
    'case $line in "TCP: inuse 0 "*" tw 0 "*) all=;; esac; done </proc/net/$file; done; '
    '[ -z "$all" ] || cat /proc/net/tcp; } 2>/dev/null; :'
)
"""A step that prints, for :func:`network_is_new`, what there is in the network of a sandbox."""

_CLOSED: Final = frozenset(("05", "06"))
"""The states of a TCP connection that is over but for packets on their way, in hexadecimal
(https://github.com/torvalds/linux/blob/v6.6/include/net/tcp_states.h)."""

_MOST_CLOSED: Final = 16

_CHOSEN: Final = range(32768, 61000)
"""The ports that the kernel chooses from in a new network (net/ipv4/af_inet.c, ``inet_init_net``)."""

_PF_EXITING: Final = 0x4
"""https://github.com/torvalds/linux/blob/v6.6/include/linux/sched.h#L1730"""

_KEEPERS_SESSION: Final = 1
"""The session that PID 1 leads. The keeper's own are in it (but for busybox's ``timeout``), and have no command line
for a moment while they are executed."""

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_SHELLS_OWN: Final = frozenset(
    "_ BASHOPTS BASH_VERSINFO EUID IFS LINENO OLDPWD OPTARG OPTIND PPID PS4 PWD SHELLOPTS UID".split()  # noqa: SIM905
)
"""Variables that a shell cannot be told, or goes by itself."""

_CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
"""What terminals, and so the engines where they take input for a terminal's, give a meaning."""


def keeper_command(
    life: float, *, listens: bool = False, lends: bool = False, beside: Program | None = None
) -> list[str]:
    """What PID 1 is to run so that the sandbox ends with its standard input, or after ``life`` seconds.

    Where it ``listens``, it first waits on its standard input for what :func:`told` or :func:`told_nothing` gives, and
    may have a program run ``beside``, which goes on once something was told, and what came with that is extracted. What
    that prints comes on standard error, and :data:`BESIDE_ENDED` after it. Where it ``lends``, it remembers for
    :data:`NETWORK` what the engine has given.
    """
    words = [str(max(1, math.ceil(life))), _LIST if listens else "", "yes" if lends else ""]
    early = beside_command(Program(_EARLY, (beside.source, *beside.arguments))) if beside else []
    return ["/bin/sh", "-c", _KEEPER, MARK, *words, *early]


def told(token: str, command: str, *, cwd: str, env: Mapping[str, str], archive: bytes = b"") -> bytes | None:
    """What makes a keeper that listens run ``/bin/sh -c command``, or None where a shell cannot be told so.

    It extracts ``archive`` before. For that alone it needs other programs: it prints a line "yes" where it could, else
    an empty one, and runs nothing.

    On each of its two outputs :func:`end_mark` then follows what the command printed. On standard output its exit code
    and a newline come after that, then the listing for :func:`nothing_left`, and the mark once more. Where something
    runs beside, both outputs of the command are the one, and what runs beside gets SIGCONT at the command's end.
    """
    if any(not _NAME.fullmatch(name) or name in _SHELLS_OWN for name in env):
        return None
    script = [f"cd {shlex.quote(cwd)} && unset PWD OLDPWD || exit 126"]
    script += [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    script.append(f"exec /bin/sh -c {shlex.quote(command)}")
    return None if _CONTROLS.search("\n".join(script)) else _telling(token, "command", script, archive)


def told_files(token: str, archive: bytes) -> bytes:
    """What makes a keeper that listens extract ``archive``, say so as above, and listen on."""
    return _telling(token, "files", [], archive)


def told_step(token: str, command: str, *, cwd: str, archive: bytes = b"") -> bytes | None:
    """What makes a keeper extract ``archive`` and then run ``/bin/sh -c command``, or None where it cannot be told so.

    For when it was told the one command, that has ended, and nothing is left of it that could take the input away. On
    standard output then come :func:`end_mark`, what the command prints on both outputs, the mark again, and its exit
    code with a newline, or that of extracting where this has failed. It is to be answered by :func:`heard_step`.
    """
    script = f'cd {shlex.quote(cwd)} && exec /bin/sh -c {shlex.quote(command)} sh "$1"'
    if "\n" in script or _CONTROLS.search(script):
        return None
    return os.fsencode(f"{token}\n{len(archive)}\n{script}\n") + archive


def network_is_new(printed: bytes) -> bool:
    """Whether what :data:`NETWORK` printed is what a new network has: the files as they were given, and no socket.

    Connections that are over count as none, if they are few and are such as a download leaves: the port of this side
    was chosen by the kernel, the other one was not.
    The format: https://www.kernel.org/doc/html/v6.6/networking/proc_net_tcp.html.
    """
    files, *lines = printed.decode(errors="replace").splitlines() or [""]
    waiting, closed = -1, 0
    for line in lines:
        match line.split():
            case ["TCP:", "inuse", "0", "orphan", _, "tw", count, *_]:
                waiting = int(count)
            case [_, "inuse", "0", *_] | ["sockets:" | "sl", *_]:
                pass
            case [number, local, remote, state, *_] if number[:-1].isdigit() and state in _CLOSED:
                here, there = (int(side.rpartition(":")[2], 16) in _CHOSEN for side in (local, remote))
                closed += 1
                if not here or there:
                    return False
            case _:
                return False
    return files == "as given" and waiting == closed <= _MOST_CLOSED


def heard_step(token: str) -> bytes:
    """What ends a step: not before it, for some programs read ahead."""
    return f"{token}\n".encode()


def told_nothing(token: str) -> bytes:
    """What makes a keeper that listens do nothing else but to keep."""
    return _telling(token, "nothing", [], b"")


def _telling(token: str, what: str, script: Sequence[str], archive: bytes) -> bytes:
    return os.fsencode("\n".join((token, what, str(len(archive)), *script, token, ""))) + archive


def end_mark(token: str) -> bytes:
    """It begins with a character that hardly anybody prints, so that nothing else has to wait for what comes next."""
    return b"\x1e" + token.encode()


def list_command(token: str) -> list[str]:
    """What lists the processes of a sandbox for :func:`leftovers`."""
    return ["/bin/sh", "-c", _LIST, MARK, token]


def end_command(token: str, these: Sequence[int] = ()) -> list[str]:
    """The same, after SIGKILL has been sent to ``these``; without any, to all processes but the keeper."""
    return ["/bin/sh", "-c", _END_THESE if these else _END, MARK, token, *map(str, these)]


def beside_command(program: Program) -> list[str]:
    """What runs a program with the image's own Python, marked as one of ours."""
    return ["/bin/sh", "-c", _BESIDE, MARK, program.source, *program.arguments]


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

    A process that has blanked its command line is named as ``ps`` does: ``[name]``. In the keeper's session it may be
    one of its own, and counts as exiting.
    """
    return [process for process in _processes(listing, token) if process is not None]


def nothing_left(listing: bytes, token: str) -> bool:
    """Whether a listing shows that nothing is left. It may have been printed where others print as well."""
    return not listing.partition(f"\n{token}\n".encode())[0].strip() and not list(_processes(listing, token))


def _processes(listing: bytes, token: str) -> Iterator[Leftover | None]:
    """Those that count; None for what cannot be read."""
    for part in listing.split(f"\n{token}\n".encode())[1:]:
        command_line, _, status = part.partition(f"\n{token}=\n".encode())
        # https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html: pid (comm) state ppid pgrp session tty tpgid flags
        match = re.match(rb"(\d+) \((.*)\) (.) -?\d+ -?\d+ (-?\d+) -?\d+ -?\d+ (\d+)[\d -]*\s*$", status, re.DOTALL)
        if match is None:
            if status.strip():
                yield None
            continue
        if match[3] in b"ZX":
            continue
        words = command_line.rstrip(b"\0").replace(b"\0", b" ") or b"[" + match[2] + b"]"
        text = words.decode(errors="backslashreplace").strip()
        unsure = int(match[4]) == _KEEPERS_SESSION and text.startswith("[")
        if MARK not in text:
            yield Leftover(int(match[1]), text, exiting=unsure or bool(int(match[5]) & _PF_EXITING))
