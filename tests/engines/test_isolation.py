"""What a command must not reach, on each engine: docs/explanation/isolation.md names these tests."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from worlds import World, members_of, run, tar_of

from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.local.runtime import kernel
from pytest_stagebuild.engines.protocol import Engine, Program, StoredImage

pytestmark = pytest.mark.engine

_TOO_MUCH = {"DAC_READ_SEARCH": 2, "NET_ADMIN": 12, "SYS_MODULE": 16, "SYS_RAWIO": 17, "SYS_PTRACE": 19,
             "SYS_ADMIN": 21, "SYS_BOOT": 22, "SYS_RESOURCE": 24, "SYS_TIME": 25}  # fmt: skip


@pytest.fixture(
    params=[
        ("docker", "docker_base"),
        ("docker", "docker_with_user"),
        ("local", "local_base"),
        ("local", "local_with_user"),
        ("local", "local_host"),
    ],
    ids=["docker-root", "docker-user", "local-root", "local-user", "local-host"],
)
def apart(request: pytest.FixtureRequest, world_of: Callable[[Engine, StoredImage], World]) -> World:
    engine, image = request.param
    return world_of(request.getfixturevalue(engine), request.getfixturevalue(image))


@pytest.fixture(params=["local_base", "local_with_user", "local_host"])
def local_apart(request: pytest.FixtureRequest, local: LocalEngine, world_of) -> World:
    return world_of(local, request.getfixturevalue(request.param))


@pytest.fixture
def on_host(local: LocalEngine, local_host: StoredImage, world_of) -> World:
    return world_of(local, local_host)


@pytest.fixture
def canary() -> Iterator[Path]:
    """A secret that everybody may read, in the home folder of whoever runs the tests."""
    file = Path.home() / f".stagebuild-canary-{uuid.uuid4().hex}"
    file.write_text("a secret")
    file.chmod(0o644)
    yield file
    file.unlink()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host."""
    with subprocess.Popen(["sleep", "98765.4321"]) as process:
        yield process
        process.kill()


def python(program: str) -> str:
    return f"python3 - <<'END'\n{program}\nEND\n"


def test_a_home_folder_is_not_there(apart: World, canary: Path) -> None:
    with apart.started() as sandbox:
        assert run(sandbox, f"cat {canary} /proc/1/root{canary}").stdout == b""
        assert run(sandbox, f"ls -A {canary.parent}/.ssh {canary.parent}/.aws").stdout == b""


def test_the_environment_is_what_was_given_and_what_the_image_says(apart: World) -> None:
    with apart.started() as sandbox:
        ran = run(sandbox, "env", env={"GIVEN": "1"})
    names = {line.partition("=")[0] for line in ran.stdout.decode().splitlines()}
    declared = {variable.partition("=")[0] for variable in apart.image.config.env}
    assert names - declared <= {"GIVEN", "HOME", "PATH", "PWD", "HOSTNAME", "OLDPWD", "SHLVL", "_"}


def test_no_process_of_the_host_is_seen_or_ended(apart: World, bystander: subprocess.Popen[bytes]) -> None:
    with apart.started() as sandbox:
        listed = run(sandbox, "for entry in /proc/[0-9]*; do tr '\\0' ' ' <$entry/cmdline; echo; done").stdout
        run(sandbox, f"kill -9 {bystander.pid}")
        run(sandbox, "kill -9 -1")
        assert run(sandbox, "echo still here").stdout == b"still here\n"
    assert b"sleep 98765.4321" not in listed
    assert bystander.poll() is None


def test_process_1_cannot_be_looked_into(local_apart: World) -> None:
    with local_apart.started() as sandbox:
        ran = run(
            sandbox, "cd /proc/1; cat environ maps mem fd/* root/* exe; ls -l fd/ cwd/ ns/; readlink exe cwd root"
        )
        assert ran.stdout == b""
        traced = "import ctypes; print(ctypes.CDLL(None).ptrace(16, 1, 0, 0))"
        assert run(sandbox, python(traced)).stdout == b"-1\n"


def test_a_command_inherits_no_descriptor_but_the_three(apart: World) -> None:
    with apart.started() as sandbox:
        ran = run(sandbox, python("import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:-1])"))
    assert ran.stdout == b"[0, 1, 2]\n"


def test_without_a_network_there_is_the_loopback_interface_alone_and_it_works(apart: World) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening, apart.started() as sandbox:
        port = listening.getsockname()[1]
        ran = run(
            sandbox,
            python(f"""
import socket
print([line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line])
for address in ("127.0.0.1", {_own_address()!r}, "192.0.2.1"):
    try:
        socket.create_connection((address, {port}), 3)
        print(address, "answers")
    except OSError:
        pass
own = socket.create_server(("127.0.0.1", 0))
socket.create_connection(own.getsockname(), 3)
print("own answers")
"""),
        )
    assert ran.stdout == b"['lo']\nown answers\n"


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket, contextlib.suppress(OSError):
        any_socket.connect(("192.0.2.1", 9))
        return str(any_socket.getsockname()[0])
    return "127.0.0.1"


def test_abstract_sockets_of_the_host_are_out_of_reach(local_apart: World) -> None:
    if not _has_scopes():
        pytest.skip("this kernel has no Landlock that knows abstract sockets (Linux 6.12 with landlock in lsm=)")
    name = f"stagebuild-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listening, local_apart.started(network=True) as sandbox:
        listening.bind(f"\0{name}")
        listening.listen()
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')"
        assert b"PermissionError" in run(sandbox, python(connect)).stderr
        own = "import socket; s = socket.socket(socket.AF_UNIX); s.bind('\\0x'); s.listen()"
        assert run(sandbox, python(f"{own}; socket.socket(socket.AF_UNIX).connect('\\0x')")).code == 0


def _has_scopes() -> bool:
    try:
        return kernel._syscall(kernel._LANDLOCK_CREATE_RULESET, 0, 0, 1) >= kernel._LANDLOCK_SCOPES
    except OSError:
        return False


def test_the_settings_of_the_kernel_cannot_be_changed(apart: World) -> None:
    with apart.started() as sandbox:
        assert run(sandbox, "find /proc/sys -type f -writable").stdout == b""
        assert run(sandbox, "echo 1 >/proc/sysrq-trigger").code != 0


def test_a_command_has_no_right_over_the_machine(apart: World) -> None:
    with apart.started() as sandbox:
        lines = run(sandbox, "cat /proc/self/status").stdout.decode().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        for refused in (
            "mount -t tmpfs x /mnt",
            "umount /proc",
            "unshare -m true",
            "unshare -U true",
            "unshare -n true",
        ):
            assert run(sandbox, refused).code != 0, refused
    for kind in ("CapEff", "CapPrm", "CapBnd"):
        assert [name for name, bit in _TOO_MUCH.items() if int(status[kind], 16) >> bit & 1] == []
    assert status["Seccomp"].strip() == "2"


def test_no_program_gives_more_rights_than_its_caller_has(local_apart: World) -> None:
    with local_apart.started() as sandbox:
        assert b"NoNewPrivs:\t1" in run(sandbox, "cat /proc/self/status").stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_system_calls_that_reach_beyond_a_sandbox_are_refused(local_apart: World) -> None:
    calls = {
        "io_uring_setup": 425,
        "keyctl": 250,
        "bpf": 321,
        "userfaultfd": 323,
        "perf_event_open": 298,
        "syslog": 103,
    }
    program = f"""
import ctypes, fcntl, os, socket
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {calls}.items():
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() != 1:
        print(name, ctypes.get_errno())
for family in (38, 40):
    try:
        print(socket.socket(family, socket.SOCK_STREAM))
    except OSError as error:
        assert error.errno == 97
master, slave = os.openpty()
for request in (0x5412, 0x541C, 0x100005412):
    if libc.ioctl(slave, ctypes.c_ulong(request), b"x") != -1 or ctypes.get_errno() != 1:
        print(hex(request), ctypes.get_errno())
"""
    with local_apart.started() as sandbox:
        ran = run(sandbox, python(program))
    assert (ran.code, ran.stdout, ran.stderr) == (0, b"", b"")


def test_a_command_makes_no_devices_and_has_no_terminal(local_apart: World) -> None:
    with local_apart.started() as sandbox:
        assert run(sandbox, "mknod /tmp/device c 1 3").code != 0
        assert run(sandbox, ": </dev/tty").code != 0
        assert set(run(sandbox, "ls /dev").stdout.decode().split()) == {
            "fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"
        }  # fmt: skip
        assert run(sandbox, "ls /dev/pts").stdout == b"ptmx\n"


def test_an_archive_puts_nothing_outside_whatever_its_links_say(apart: World, canary: Path) -> None:
    buffer = io.BytesIO()
    target = canary.parent / f"{canary.name}-put"
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("src/out", tarfile.SYMTYPE), ("src/hard", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = "../../../../../../../.." + str(canary.parent) if kind == tarfile.SYMTYPE else "src/out"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo(f"src/out/{target.name}"))
    with apart.started() as sandbox, contextlib.suppress(Exception):
        sandbox.put([buffer.getvalue()])
    assert not target.exists()


@pytest.mark.parametrize("how", ["put", "put_layer"])
def test_an_archive_that_climbs_stays_inside(local_apart: World, canary: Path, how: str) -> None:
    up = "../" * 20
    with local_apart.started() as sandbox:
        for name in (f"{up}{canary.parent}/{canary.name}-up", f"/{canary.parent}/{canary.name}-up"):
            getattr(sandbox, how)([tar_of({name: b"x"})])
        assert members_of(sandbox.get(f"{canary}-up"))
    assert not Path(f"{canary}-up").exists()
    assert canary.read_text() == "a secret"


def test_what_a_link_leads_to_out_here_is_not_read(apart: World, canary: Path) -> None:
    up = "../" * 20
    with apart.started() as sandbox:
        run(sandbox, f"ln -s {canary} file; ln -s {up}{canary.parent} folder; ln -s /proc/1/root root", user="root")
        assert b"a secret" not in b"".join(sandbox.get("/src/file"))
        for path in (f"/src/folder/{canary.name}", f"/src/root{canary}"):
            with pytest.raises(Exception, match=r"no such path|could not|cannot"):
                b"".join(sandbox.get(path))
        if apart.engine.name == "local":  # Docker reads them out of what `get` gives
            sandbox.end_processes()
            assert b"a secret" not in b"".join(b"".join(content) for _, content in sandbox.changed_files())


def test_a_deep_tree_is_read_to_its_bottom(local: LocalEngine, local_base: StoredImage, world_of) -> None:
    deep = "import os\nfor _ in range(2000): os.mkdir('folder'); os.chdir('folder')\nopen('bottom', 'w').write('deep')"
    with world_of(local, local_base).started() as sandbox:
        assert run(sandbox, python(deep)).code == 0
        changed = [b"".join(content) for path, content in sandbox.changed_files() if path.endswith("/bottom")]
        made = sandbox.commit("stagebuild-test/deep", {})
    assert changed == [b"deep"]
    assert local.remove_image(made.id)


def test_the_system_of_the_host_cannot_be_written_to(on_host: World) -> None:
    with on_host.started() as sandbox:
        for folder in ("/usr", "/etc", "/usr/bin", str(Path(sys.base_prefix).resolve())):
            assert b"Read-only file system" in run(sandbox, f"touch {folder}/stagebuild-canary").stderr
            assert b"Read-only file system" in run(sandbox, f"chmod 755 {folder}").stderr


def test_what_only_root_may_read_is_not_read(on_host: World) -> None:
    with on_host.started() as sandbox:
        ran = run(
            sandbox, "cat /etc/shadow /etc/gshadow; find /etc -type f ! -perm -o+r -readable; ls /run /home /srv /sys"
        )
    assert ran.stdout == b""


def test_the_store_is_not_there_and_a_lower_layer_stays_as_it_is(local: LocalEngine, local_apart: World) -> None:
    layer = local._store.layer(local._store.find(local_apart.image.id).stack[-1])
    before = _listing(layer)
    with local_apart.started() as sandbox:
        assert run(sandbox, f"ls {local._store.path}").code != 0
        run(sandbox, "rm -rf /root /var /venv /usr/share/doc/[a-c]*; echo x >/etc/passwd", user="root")
    assert _listing(layer) == before


def _listing(layer: Path) -> list[tuple[str, int, int, int]]:
    found = []
    for here, folders, files in os.walk(layer):
        for name in (*folders, *files):
            there = os.lstat(os.path.join(here, name))
            found.append((os.path.join(here, name), there.st_mode, there.st_mtime_ns, there.st_size))
    return sorted(found)


def test_what_serves_a_sandbox_loads_nothing_from_it(local: LocalEngine, local_base: StoredImage, world_of) -> None:
    places = [Path(os.__file__).parent, Path(kernel.__file__).parents[1], Path(kernel.__file__).parent]
    planted = {f"{str(place)[1:]}/planted.py": b"print('loaded')" for place in places}
    with world_of(local, local_base).started(planted) as sandbox:
        beside = sandbox.run_beside(Program("import planted"))
        assert beside.line(20) is None
        assert beside.complaint() == "ModuleNotFoundError: No module named 'planted'"


def test_a_program_beside_holds_no_folder_of_the_host(local: LocalEngine, local_base: StoredImage, world_of) -> None:
    program = """
import os
found = []
for number in range(1024):
    try:
        found.append(os.fstat(number).st_mode >> 12)
    except OSError:
        pass
print(4 in found, len(found), flush=True)
"""
    with world_of(local, local_base).started() as sandbox:
        assert sandbox.run_beside(Program(program)).line(20) == "False 4"


def test_the_processes_of_an_engine_have_none_of_the_environment(
    local: LocalEngine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SECRET_CANARY", "a secret")
    with contextlib.closing(LocalEngine.connect()) as engine:
        environment = Path(f"/proc/{engine._spawner._process.pid}/environ").read_bytes()
    assert b"a secret" not in environment


def test_a_command_that_takes_back_what_it_has_printed_is_ended_in_time(on_host: World) -> None:
    program = """
import os, threading
def take():
    own = os.open("/proc/self/fd/1", os.O_RDONLY)
    while True:
        os.read(own, 1 << 20)
for _ in range(2):
    threading.Thread(target=take, daemon=True).start()
while True:
    os.write(1, b"x")
"""
    with on_host.started() as sandbox:
        assert run(sandbox, python(program), timeout=2).exit.timed_out
        # Only a race shows it from outside: what was there to be read is gone, and nothing more is written.
        run(sandbox, "sleep 100 &")
        assert [os.get_blocking(stream) for stream in sandbox._executions[-1]._streams] == [False, False]


def test_the_umask_of_the_run_does_not_shut_the_sandbox(
    local: LocalEngine, local_with_user: StoredImage, world_of
) -> None:
    before = os.umask(0o077)
    try:
        with world_of(local, local_with_user).started() as sandbox:
            assert run(sandbox, "ls / /usr && python3 -c 1 && touch /tmp/x", cwd="/").code == 0
    finally:
        os.umask(before)


def test_a_mount_point_that_an_earlier_stage_made_a_link_leads_nowhere(
    local: LocalEngine, local_base: StoredImage, world_of, canary: Path
) -> None:
    world = world_of(local, local_base)
    with world.started() as sandbox:
        run(
            sandbox,
            f"mkdir /x; cp -a /etc/. /x; mv /etc /y; ln -s {canary.parent} /root/link; rm -rf /tmp; ln -s / /tmp",
            cwd="/",
        )
        made = sandbox.commit(world.name(), {})
    with contextlib.suppress(Exception), world.started(image=made) as sandbox:
        assert run(sandbox, f"cat {canary} /tmp{canary} /root/link/{canary.name}").stdout == b""
