"""Who owns a sandbox: the process that made it, told apart from every other so that its end can be proved."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pytest_stagebuild.values import dataclass


@dataclass(frozen=True)
class Process:
    """A process and the machine it runs on.

    ``host`` is the machine's id and name, ``boot`` changes with each start of its kernel, ``pidns`` tells in which
    process namespace ``pid`` counts, and ``start`` tells this process from a later one with the same ``pid``. A field
    is empty where the system does not say.
    """

    host: str
    boot: str
    pidns: str
    pid: int
    start: str

    def to_label(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_label(cls, label: str) -> Process | None:
        """None for anything that :meth:`to_label` does not write."""
        try:
            value = json.loads(label)
        except ValueError:
            return None
        match value:
            case {"host": str(host), "boot": str(boot), "pidns": str(pidns), "pid": int(pid), "start": str(start)}:
                return cls(host, boot, pidns, pid, start)
        return None


def this_process() -> Process:
    """The calling process."""
    pid = os.getpid()
    return Process(host=_host(), boot=_boot(), pidns=_pid_namespace(), pid=pid, start=start_of(pid) or "")


def provably_gone(owner: Process, here: Process, start_of: Callable[[int], str | None]) -> bool:
    """Whether ``owner`` has ended for certain, as far as the process ``here`` can tell.

    ``start_of`` gives the start of a process by its pid, None where there is none, and "" where that cannot be told. A
    process of another machine or of another pid namespace is never provably gone: an engine may be shared by many.
    """
    if not owner.host or owner.host != here.host or not owner.boot or not here.boot:
        return False
    if owner.boot != here.boot:
        # Without a machine id the name alone is left, and two machines may share that.
        return not owner.host.startswith(":")
    if owner.pidns != here.pidns:
        return False
    start = start_of(owner.pid)
    if start is None:
        return True
    return bool(start and owner.start) and start != owner.start


def start_of(pid: int) -> str | None:
    """When a process of this machine started, in the system's own words; None when there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except (OSError, OverflowError):
        pass  # it is there and belongs to someone else
    if sys.platform == "linux":
        return _start_from_proc(pid)
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
    return _output_of("ps", "-o", "lstart=", "-p", str(pid), env=environment)


def _start_from_proc(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""  # /proc may hide the processes of others (hidepid)
    state, start = fields[0], fields[19]
    return None if state in "ZX" else start


def _host() -> str:
    machine = _text_of("/etc/machine-id") or _text_of("/var/lib/dbus/machine-id")
    if not machine and sys.platform == "darwin":
        found = re.search(r'"IOPlatformUUID" = "([^"]+)"', _output_of("ioreg", "-rd1", "-c", "IOPlatformExpertDevice"))
        machine = found[1] if found else ""
    # The name as well: containers made from one image may all have its machine-id.
    return f"{machine}:{socket.gethostname()}"


def _boot() -> str:
    if sys.platform == "darwin":
        return _output_of("sysctl", "-n", "kern.bootsessionuuid")
    return _text_of("/proc/sys/kernel/random/boot_id")


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text_of(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return ""


def _output_of(*command: str, env: dict[str, str] | None = None) -> str:
    try:
        run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=10, check=False)
        return run.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
