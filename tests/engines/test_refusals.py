"""What the local engine says where the kernel does not allow it, with real refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_stagebuild
from pytest_stagebuild.engines import connect
from pytest_stagebuild.errors import EngineUnavailable

_CONNECT = "from pytest_stagebuild.engines.local import LocalEngine; LocalEngine.connect().close(); print('it works')"

_NAMESPACES = pytest.mark.skipif(
    sys.platform != "linux"
    or os.geteuid() != 0
    or subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0,
    reason="only root, allowed to mount, can make a machine that refuses",
)


def refused(store: Path, *around: str, script: str = "") -> str:
    """What connecting to the local engine says, in a process that ``around`` starts after ``script``."""
    environment = {**os.environ, "PYTEST_STAGEBUILD_STORE": str(store)}
    environment["PYTHONPATH"] = str(Path(pytest_stagebuild.__file__).parents[1])
    command = [*around, "/bin/sh", "-c", f'set -e\n{script}\nexec "$@"', "sh", sys.executable, "-c", _CONNECT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert "it works" not in done.stdout
    _, found, said = done.stderr.rpartition("EngineUnavailable: ")
    assert found, done.stderr
    return " ".join(said.split())


@_NAMESPACES
def test_a_store_on_an_overlay_is_refused_and_a_better_place_asked_for(tmp_path: Path) -> None:
    script = (
        f"cd {tmp_path}; mkdir l u w m; mount -t tmpfs tmpfs u; mkdir u/u u/w; "
        f"mount -t overlay overlay -o lowerdir=l,upperdir=u/u,workdir=u/w m; chmod 755 m"
    )
    said = refused(tmp_path / "m" / "store", "unshare", "--mount", script=script)
    assert said.startswith("the local engine could not mount an overlay: ")
    assert "not NFS, nor a container's own overlay" in said
    assert said.endswith("name a folder on one in PYTEST_STAGEBUILD_STORE.")


@_NAMESPACES
def test_no_more_user_namespaces_name_the_setting(tmp_path: Path) -> None:
    script = "echo 0 >/proc/sys/user/max_user_namespaces"
    said = refused(tmp_path / "store", "unshare", "--user", "--map-root-user", "--mount", script=script)
    assert said.startswith("the local engine could not make a user namespace: No space left on device (ENOSPC).")
    assert said.endswith("raise the sysctl user.max_user_namespaces.")


@_NAMESPACES
def test_a_masked_proc_is_told_from_other_refusals(tmp_path: Path) -> None:
    script = "mount -t tmpfs -o ro tmpfs /proc/acpi || mount -t tmpfs -o ro tmpfs /proc/fs"
    around = ("unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc")
    said = refused(tmp_path / "store", *around, script=script)
    assert said.startswith("the local engine could not mount /proc: Operation not permitted (EPERM).")
    assert "systempaths=unconfined" in said


_WITHOUT = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
refuse = 0x50000 | int(sys.argv[2])
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, int(sys.argv[1])), (0x06, 0, 0, refuse), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)), 0, 0) == 0
os.execvp(sys.argv[3], sys.argv[3:])
"""


@_NAMESPACES
@pytest.mark.parametrize(
    ("number", "error", "begins", "ends"),
    [
        (
            437,
            38,
            "Function not implemented (ENOSYS).",
            "the local engine needs Linux 5.12 or newer. Use Docker instead.",
        ),
        (
            442,
            38,
            "Function not implemented (ENOSYS).",
            "the local engine needs Linux 5.12 or newer. Use Docker instead.",
        ),
        (272, 1, "Operation not permitted (EPERM).", "or use Docker's engine from there."),
    ],
    ids=["openat2", "mount_setattr", "unshare"],
)
def test_a_call_that_is_missing_or_forbidden_is_named_by_its_step(
    tmp_path: Path, number: int, error: int, begins: str, ends: str
) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of the calls are those of x86_64")
    said = refused(tmp_path / "store", sys.executable, "-c", _WITHOUT, str(number), str(error))
    assert said.startswith("the local engine could not ")
    assert begins in said
    assert said.endswith(ends)


@pytest.mark.engine
def test_in_a_container_the_options_that_it_lacks_are_named(docker_base: object) -> None:
    package = Path(pytest_stagebuild.__file__).parent
    made = subprocess.run(["docker", "create", "python:3.11-slim", "python3", "-c",
                           _IN_A_CONTAINER], capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    try:
        subprocess.run(["docker", "cp", package, f"{made}:/pytest_stagebuild"], check=True, capture_output=True)
        done = subprocess.run(["docker", "start", "-a", made], capture_output=True, text=True, check=False, timeout=60)
    finally:
        subprocess.run(["docker", "rm", "-f", made], check=True, capture_output=True)
    said = " ".join(done.stderr.split())
    assert "could not make a user namespace: Operation not permitted (EPERM)." in said
    assert "--security-opt seccomp=unconfined" in said


_IN_A_CONTAINER = """
import os, sys
sys.path.insert(0, "/")
from pytest_stagebuild.engines.local import spawning
from pathlib import Path
spawner = spawning.Spawner()
os.makedirs("/tmp/folder/upper")
spec = {"folder": "/tmp/folder", "stack": [], "binds": {}, "network": True, "host_name": "x", "life": 9}
spawner.spawn({**spec, "uid_map": "0 0 1", "gid_map": "0 0 1", "groups": False})
"""


def unavailable(words: str):
    def factory():
        raise EngineUnavailable(words)

    return factory


def test_auto_lists_each_engine_and_why_it_cannot_be_used() -> None:
    with pytest.raises(EngineUnavailable) as caught:
        connect("auto", factories={"docker": unavailable("no daemon."), "local": unavailable("no namespaces.")})
    assert str(caught.value) == ("none of the engines can be used here.\ndocker: no daemon.\nlocal: no namespaces.")


@_NAMESPACES
def test_pytest_ends_with_4_where_no_engine_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "none"\nversion = "1"\n')
    environment = {
        **os.environ,
        "DOCKER_HOST": f"unix://{tmp_path}/none",
        "PYTEST_STAGEBUILD_STORE": str(tmp_path / "store"),
        "PYTHONPATH": str(Path(pytest_stagebuild.__file__).parents[1]),
    }
    command = [sys.executable, "-c", _WITHOUT, "272", "1", sys.executable, "-m", "pytest", "--stagebuild-source=."]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 4, said
    assert "docker: no Docker engine answers." in said
    assert "local: the local engine could not make a user namespace" in said


def test_on_another_system_the_local_engine_says_so_and_loads_nothing_of_linux() -> None:
    program = """
import sys
sys.platform = "darwin"
for name in ("termios", "fcntl", "ctypes", "pwd", "resource"):
    sys.modules[name] = None
import pytest_stagebuild.plugin, pytest_stagebuild.engines
assert not [name for name in sys.modules if name.startswith("pytest_stagebuild.engines.local")]
from pytest_stagebuild.errors import EngineUnavailable
try:
    pytest_stagebuild.engines.connect("local")
except EngineUnavailable as error:
    print(error)
assert "pytest_stagebuild.engines.local.runtime.kernel" not in sys.modules
"""
    source = str(Path(pytest_stagebuild.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": source})  # fmt: skip
    assert done.stdout == "the local engine runs on Linux only. Use Docker here.\n", done.stderr


@_NAMESPACES
def test_what_was_proved_here_is_proved_again_by_another_user_namespace(tmp_path: Path) -> None:
    source = str(Path(pytest_stagebuild.__file__).parents[1])
    environment = {**os.environ, "PYTEST_STAGEBUILD_STORE": str(tmp_path / "store"), "PYTHONPATH": source}
    subprocess.run([sys.executable, "-c", _CONNECT], env=environment, check=True, timeout=120)
    said = refused(tmp_path / "store", sys.executable, "-c", _WITHOUT, "272", "1")
    assert "could not make a user namespace" in said


_FEW_USERS = """
import ctypes, os, sys
(made, make), (mapped, map) = os.pipe(), os.pipe()
pid = os.fork()
if not pid:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    os.write(make, b".")
    os.read(mapped, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
os.read(made, 1)
for name in ("uid_map", "gid_map"):
    with open(f"/proc/{pid}/{name}", "w") as file:
        file.write("0 0 65536")
os.write(map, b".")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

_READS = """
from pytest_stagebuild.engines.local import LocalEngine
engine = LocalEngine.connect()
image = engine.find_image("host") or engine.pull_image("host", print)
with engine.sandbox(image, labels={}, network=False, life=60) as one:
    one.start()
    one.run("cat /etc/root; id -u; cat /etc/all", cwd="/", env={}, timeout=60, output=lambda _, piece: print(piece))
engine.close()
"""


@_NAMESPACES
def test_root_of_a_container_with_few_users_takes_nobody_and_reads_nothing_of_roots(tmp_path: Path) -> None:
    etc = tmp_path / "etc"
    script = f"""
mount -t tmpfs -o mode=755 tmpfs {tmp_path}
mkdir {etc}; chmod 755 {etc}; cp -r /etc/ld.so* /etc/passwd /etc/group /etc/alternatives {etc}
echo secret >{etc}/root; chmod 600 {etc}/root; echo public >{etc}/all; chmod 644 {etc}/all
mount --bind {etc} /etc
exec "$@"
"""
    environment = {
        **os.environ,
        "PYTEST_STAGEBUILD_STORE": str(tmp_path / "store"),
        "PYTHONPATH": str(Path(pytest_stagebuild.__file__).parents[1]),
    }
    around = [sys.executable, "-c", _FEW_USERS, "unshare", "--mount", "/bin/sh", "-ec", script, "sh"]
    command = [*around, sys.executable, "-c", _READS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert "secret" not in done.stdout
    assert "0\\npublic" in done.stdout.replace("'\nb'", ""), done.stderr
