"""A dockerd of the tests' own, to be stopped, killed, filled and emptied."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from bare import busybox
from own_service import OwnService

APPLETS = ("sh", "rm", "cat", "cp", "sleep", "timeout", "test", "head", "mkdir", "rmdir", "sync", "kill")
IMAGE = "stagebuild-test-busybox:1"
_PATIENCE = 60.0


class OwnEngine(OwnService):
    """A dockerd that shares nothing with another; ``address`` is its socket.

    It has a network of its own, unless it is to reach what listens ``on_this_host``. With ``size`` its data lie in a
    file system of so many bytes. Nothing of it is left once it is closed. Where it ends in the middle of something the
    SDK leaves sockets open, of which Python warns.
    """

    patience = _PATIENCE

    def __init__(self, *arguments: str, size: int | None = None, on_this_host: bool = False) -> None:
        if os.geteuid() != 0 or shutil.which("dockerd") is None:
            pytest.skip("a second dockerd needs root and the Debian package docker.io")
        # A socket's path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
        self.data = self.folder / "data"
        self._size = size
        # A dockerd with --bridge=none removes docker0, whoever's it is:
        # https://github.com/moby/moby/blob/v20.10.24/daemon/daemon_unix.go, removeDefaultBridgeInterface
        self._bridge = f"sb{os.getpid()}"[:15] if on_this_host else ""
        self.address = f"unix://{self.folder}/docker.sock"
        self._group = f"/stagebuild-test-{self.folder.name}"
        self._arguments = [
            *(() if on_this_host else ("unshare", "--net", "--")),
            "dockerd",
            f"--bridge={self._bridge or 'none'}",
            f"--host={self.address}",
            f"--data-root={self.data}",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--cgroup-parent={self._group}",
            "--iptables=false",
            "--userland-proxy=false",
            "--shutdown-timeout=1",
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make what it stands on."""
        self.data.mkdir()
        if self._size is not None:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", self.data], check=True)
        if self._bridge:
            _ip("link", "add", self._bridge, "type", "bridge")
            _ip("addr", "add", "198.18.91.1/30", "dev", self._bridge)

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End it, and wait until it has ended."""
        if self._process is not None:
            self._process.send_signal(by)
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise
            self._process = None
            if by == signal.SIGKILL:
                # Its containerd goes with it, if not at once, and a new dockerd would wait for the old one's socket.
                self._end(lambda words: words.startswith(b"containerd\0"))
                for name in ("containerd.pid", "containerd.sock"):
                    (self.folder / "exec/containerd" / name).unlink(missing_ok=True)

    def load(self, name: str = IMAGE) -> None:
        """Bring in an image with a busybox."""
        repository, tag = name.split(":")
        with self.client() as client:
            client.import_image_from_data(busybox(APPLETS), repository=repository, tag=tag)
            client.inspect_image(name)

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self._end()
            for group in self._groups():
                _end_group(group)
            for mount in sorted(self._mounts(), reverse=True):
                subprocess.run(["umount", "--lazy", mount], check=False)
            shutil.rmtree(self.folder)
            if Path(f"/sys/class/net/{self._bridge or 'none'}").exists():
                _ip("link", "delete", self._bridge)

    def _answers(self) -> bool:
        if not Path(self.address.removeprefix("unix://")).exists():
            return False
        try:
            with self.client() as client:
                return bool(client.ping())
        except (docker.errors.DockerException, OSError):
            return False

    def _end(self, these: Callable[[bytes], bool] = lambda words: True) -> None:
        """Kill what a dockerd that was killed has left: its containerd and its shims, which name its folder."""
        deadline = time.monotonic() + _PATIENCE
        ours = os.fsencode(self.folder) + b"/"
        while left := {pid: words for pid, words in _command_lines().items() if ours in words and these(words)}:
            assert time.monotonic() < deadline, left
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)

    def _groups(self) -> list[Path]:
        """Its cgroups, children first: one tree for each controller in version 1, a single one in version 2."""
        tops = [*Path("/sys/fs/cgroup").glob(f"*{self._group}"), Path(f"/sys/fs/cgroup{self._group}")]
        return [group for top in tops if top.is_dir() for group in [*sorted(top.rglob("*/"), reverse=True), top]]

    def _mounts(self) -> list[str]:
        points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{self.folder}/")]


@contextmanager
def own_engine(
    *arguments: str, size: int | None = None, on_this_host: bool = False, start: bool = True
) -> Iterator[OwnEngine]:
    engine = OwnEngine(*arguments, size=size, on_this_host=on_this_host)
    try:
        engine.prepare()
        if start:
            engine.start()
        yield engine
    finally:
        engine.close()
        gc.collect()  # sockets of refused connections, while the test that expects them goes on


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _command_lines() -> dict[int, bytes]:
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
    return found


def _end_group(group: Path) -> None:
    """Kill what is still in a cgroup, and remove it."""
    deadline = time.monotonic() + _PATIENCE
    while members := (group / "cgroup.procs").read_text().split():
        assert time.monotonic() < deadline, f"processes stay in {group}"
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.02)
    group.rmdir()
