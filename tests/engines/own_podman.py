"""A Podman service of the tests' own, apart from whatever Podman there is on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from own_service import OwnService

_PATIENCE = 60.0

# Its network interfaces, mounts and processes are in namespaces of their own, and so end with it. What Podman keeps in
# fixed places, whatever it is configured for, is in memory there: the state of networks and locks.
# The shell reaps those that Podman leaves to process 1; to Podman a dead conmon that nobody has reaped is alive.
_SERVICE = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && chmod 1777 /dev/shm || exit
mount -t tmpfs tmpfs /var/lib && ip link set lo up || exit
podman system service --time=0 "$1" & wait "$!"
"""

# The same by a user whom nobody else knows, with the subordinate ids that Podman wants, and with the device that its
# networks need, which everyone may open where udev is at work.
_ROOTLESS_SERVICE = """
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && chmod 1777 /dev/shm || exit
mkdir "$2/etc" "$2/work" && mount -t overlay -o "lowerdir=/etc,upperdir=$2/etc,workdir=$2/work" overlay /etc || exit
echo "stagebuild:x:4711:4711::$2/home:/bin/sh" >>/etc/passwd
echo "stagebuild:x:4711:" >>/etc/group
for file in /etc/subuid /etc/subgid; do echo "stagebuild:1879048192:65536" >>"$file"; done
mknod -m 666 "$2/tun" c 10 200 && mount --bind "$2/tun" /dev/net/tun
mkdir "$2/home" "$2/runtime" && chown -R 4711:4711 "$2" && cd "$2" && ip link set lo up || exit
export HOME="$2/home" XDG_RUNTIME_DIR="$2/runtime"
setpriv --reuid=4711 --regid=4711 --clear-groups podman system service --time=0 "$1" & wait "$!"
"""

# The folders are those that Podman takes where it is told no more than the root of its storage, as by the clean-up that
# it has run once a container has ended.
# crun, Podman's choice, refuses a machine with both versions of cgroups, and raised limits need a capability
# (CAP_SYS_RESOURCE) that a container or a small virtual machine may lack.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
static_dir = "{folder}/data/libpod"
volume_path = "{folder}/data/volumes"
[network]
network_config_dir = "{folder}/networks"
"""

_STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/data"
rootless_storage_path = "{folder}/data"
runroot = "{folder}/run"
"""

# As Podman's packages have it for those who name images as they do for Docker.
_REGISTRIES_CONF = """\
unqualified-search-registries = ["docker.io"]
"""


class OwnPodman(OwnService):
    """A ``podman system service``, of root or of another user; ``address`` is its socket.

    Nothing of it is left once it is closed.
    """

    patience = 300

    def __init__(self, *, rootless: bool = False) -> None:
        if os.geteuid() != 0:
            pytest.skip("a Podman of the tests' own needs root, to give it namespaces, or another user's id")
        needed = ["podman", "runc", "conmon", "setpriv", "unshare", "ip"]
        needed += ["newuidmap", "slirp4netns"] if rootless else []
        missing = [name for name in needed if shutil.which(name) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")
        self.folder = Path(tempfile.mkdtemp(prefix="sbp-", dir="/tmp"))  # a socket's path has at most 107 characters
        self.address = f"unix://{self.folder}/podman.sock"
        self._rootless = rootless
        self._script = _ROOTLESS_SERVICE if rootless else _SERVICE
        self._process: subprocess.Popen[bytes] | None = None
        self._turn: int | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._turn = os.open(Path(__file__).parent, os.O_RDONLY)
        fcntl.flock(self._turn, fcntl.LOCK_SH)
        environment = {**os.environ, "TMPDIR": str(self.folder)}
        texts = {
            "CONTAINERS": _CONTAINERS_CONF,
            "CONTAINERS_STORAGE": _STORAGE_CONF,
            "CONTAINERS_REGISTRIES": _REGISTRIES_CONF,
        }
        for name, text in texts.items():
            file = self.folder / f"{name.lower()}.conf"
            file.write_text(text.format(folder=self.folder))
            environment[f"{name}_CONF"] = str(file)
        namespaces = [
            "setpriv",
            "--pdeathsig=KILL",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*namespaces, "/bin/sh", "-c", self._script, "sh", self.address, str(self.folder)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _PATIENCE
        while not self._answers():
            if self._rootless and self._process.poll() is not None:
                pytest.skip(f"this machine does not let an ordinary user run Podman: {self.log}")
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def bring(self, image: str, source: docker.APIClient) -> None:
        """Bring in an image that another engine has."""
        with self.client() as client:
            for _ in client.load_image(source.get_image(image)):
                pass
            client.inspect_image(image)

    def close(self) -> None:
        if self._process is not None:
            # With its process 1 all others end, and what started that ends once all have: nothing is in a cgroup then.
            tasks = f"/proc/{self._process.pid}/task/{self._process.pid}/children"
            first = Path(tasks).read_text() if self._process.poll() is None else ""
            for pid in first.split() or [self._process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            self._process.wait(_PATIENCE)
            self._process = None
        if self._turn is not None:
            _remove_groups(self._turn)
            os.close(self._turn)
            self._turn = None
        deadline = time.monotonic() + _PATIENCE
        while self.folder.exists():
            # A mount may go a moment after the namespace.
            shutil.rmtree(self.folder, ignore_errors=time.monotonic() < deadline)

    def _answers(self) -> bool:
        if not Path(self.address.removeprefix("unix://")).exists():
            return False
        try:
            with self.client() as client:
                return bool(client.ping())
        except (docker.errors.DockerException, OSError):
            return False


@contextmanager
def own_podman(*, rootless: bool = False) -> Iterator[OwnPodman]:
    podman = OwnPodman(rootless=rootless)
    try:
        podman.start()
        yield podman
    finally:
        podman.close()


def _remove_groups(turn: int) -> None:
    """Remove the cgroups that Podman leaves, which all share, where nobody who holds this lock has need of them."""
    fcntl.flock(turn, fcntl.LOCK_UN)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    for top in [*Path("/sys/fs/cgroup").glob("*/libpod_parent"), Path("/sys/fs/cgroup/libpod_parent")]:
        for group in [*sorted(top.rglob("*/"), reverse=True), top]:
            with contextlib.suppress(OSError):  # another Podman's, in use
                group.rmdir()
