"""Processes in a sandbox of a real engine: what keeps it alive, what ends it, what is left running in it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from bare import busybox
from worlds import World, members_of, program, run, tar_of, within

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.docker.main_process import MainProcess
from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.protocol import Engine, Program, StoredImage
from pytest_stagebuild.errors import EngineError

pytestmark = pytest.mark.engine

_DEADLY = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF SYS"


def _exists(engine: Engine, name: str) -> bool:
    if isinstance(engine, LocalEngine):
        # Its processes are the only ones that see the host by this name.
        return any(_host_name_of(pid) == name for pid in os.listdir("/proc") if pid.isdecimal())
    assert isinstance(engine, DockerEngine)
    return bool(engine._connection.client.containers(all=True, filters={"name": f"^/?{name}$"}))


def _host_name_of(pid: str) -> str:
    seen = subprocess.run(["nsenter", "-t", pid, "-u", "hostname"], capture_output=True, text=True, check=False)
    return seen.stdout.strip()


@pytest.mark.parametrize("user", ["image", "root"])
@pytest.mark.parametrize("target", ["-1", "1"])
def test_a_command_cannot_end_the_sandbox_by_signals(real: World, user: str, target: str) -> None:
    with real.started() as sandbox:
        run(sandbox, f"for signal in {_DEADLY}; do kill -s $signal -- {target}; done", user=user)
        # SIGALRM makes a `timeout` end what reads the next command, and it may be slow to heed that.
        alive = "grep -sL '^State:.Z' /proc/[0-9]*/status"
        run(sandbox, f"while {alive} | xargs grep -qs 'Pnd:.*[1-9a-f]'; do sleep 0.01; done; sleep 0.2", user="root")
        ran = run(sandbox, "echo alive")
        assert (ran.stdout, ran.exit.timed_out) == (b"alive\n", False)
        assert sandbox.end_processes() == []


def test_files_belong_to_whom_the_archive_says(real: World) -> None:
    with real.sandbox() as sandbox:
        sandbox.put([tar_of({"src/": b"", "src/file": b""}, uid=7, gid=8)])
        sandbox.start()
        assert run(sandbox, "stat -c '%u %g' . file").stdout == b"7 8\n7 8\n"


def test_orphans_are_reaped(real: World) -> None:
    with real.started() as sandbox:
        run(sandbox, "for i in 1 2 3 4 5; do (sleep 0.1 &); done; sleep 0.5")
        states = run(sandbox, "cat /proc/[0-9]*/stat", user="root").stdout.decode()
    assert "(sleep)" not in states


def test_a_command_that_ignores_signals_is_ended_with_its_whole_tree(real: World) -> None:
    stubborn = "trap '' TERM INT HUP; setsid /bin/sh -c 'while :; do sleep 61; done' & while :; do sleep 62; done"
    with real.started({"src/kept": b"kept"}) as sandbox:
        began = time.monotonic()
        assert run(sandbox, stubborn, timeout=1).exit.timed_out
        assert time.monotonic() - began < 1 + 5  # the promise of the time limit
        assert b"sleep" not in run(sandbox, "cat /proc/[0-9]*/cmdline", user="root").stdout.replace(b"\0sleep", b"")
        assert members_of(sandbox.get("/src/kept"))["kept"][1] == b"kept"


def test_the_time_limit_holds_for_a_command_that_prints_without_end(real: World) -> None:
    with real.started() as sandbox:
        ran = run(sandbox, "while :; do echo on and on; done", timeout=1)
    assert ran.exit.timed_out
    assert ran.stdout.startswith(b"on and on\n")


def test_nothing_is_delivered_after_the_end_though_something_goes_on_printing(real: World) -> None:
    pieces: list[bytes] = []
    with real.started() as sandbox:
        # Podman closes the output of a command that has ended.
        command = "(trap '' PIPE; while :; do echo more; sleep 0.05; done) 2>/dev/null & echo first"
        ended = sandbox.run(command, cwd="/src", env={}, timeout=60, output=lambda _, piece: pieces.append(piece))
        count = len(pieces)
        assert ended.code == 0
        assert b"first\n" in b"".join(pieces)
        time.sleep(0.3)
        assert len(pieces) == count
        assert len(sandbox.end_processes()) >= 1


def test_a_command_that_closes_its_output_is_waited_for(real: World) -> None:
    with real.started() as sandbox:
        assert run(sandbox, "exec >/dev/null 2>&1; sleep 1; exit 4").code == 4


def test_output_is_intact_whatever_its_bytes(real: World) -> None:
    data = bytes(range(256)) * 20_000 + b"\x1b[31m\xf0\x9f\0end"
    with real.started({"src/data": data}) as sandbox:
        assert run(sandbox, "cat data").stdout == data


def test_all_output_is_delivered_to_a_slow_sink(real: World) -> None:
    received = bytearray()

    def slow(_: str, piece: bytes) -> None:
        time.sleep(0.02)
        received.extend(piece)

    data = os.urandom(2_000_000)
    with real.started({"src/data": data}) as sandbox:
        sandbox.run("cat data", cwd="/src", env={}, timeout=120, output=slow)
    assert received == data


def _full(_: str, piece: bytes) -> None:
    raise OSError(28, "No space left on device")


def test_what_the_sink_raises_reaches_the_caller(real: World) -> None:
    with real.started() as sandbox, pytest.raises(OSError, match="No space left"):
        sandbox.run("echo x; sleep 5", cwd="/src", env={}, timeout=60, output=_full)


def test_what_the_sink_raises_reaches_a_caller_who_has_only_just_told_the_command(
    docker_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = MainProcess._tell

    def tell_slowly(self: MainProcess, what: bytes) -> None:
        tell(self, what)
        time.sleep(1)

    monkeypatch.setattr(MainProcess, "_tell", tell_slowly)
    with docker_world.started() as sandbox, pytest.raises(OSError, match="No space left"):
        sandbox.run("echo x; sleep 5", cwd="/src", env={}, timeout=60, output=_full)


@pytest.mark.slow
def test_a_gibibyte_of_output_passes_in_bounded_memory(docker_base: StoredImage) -> None:
    script = f"""if True:
        from pathlib import Path
        from pytest_stagebuild.engines import connect
        engine, _ = connect("docker")
        seen = 0
        def count(stream, piece):
            global seen
            seen += len(piece)
        with engine.sandbox(engine.find_image({docker_base.id!r}), labels={{}}, network=False, life=300) as sandbox:
            sandbox.start()
            sandbox.run("head -c 1073741824 /dev/zero", cwd="/", env={{}}, timeout=250, output=count)
        # Not getrusage(): on Linux its ru_maxrss begins with what the process that forked this one had.
        status = Path("/proc/self/status").read_text()
        print(seen, status.partition("VmHWM:")[2].split()[0])
    """
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    seen, peak = map(int, ran.stdout.split())
    assert seen == 1 << 30
    assert peak < 150 * 1024


def test_a_command_that_the_kernel_killed_for_memory_is_told_from_one_that_was_killed(docker_world: World) -> None:
    with docker_world.started() as sandbox:
        assert not run(sandbox, "kill -9 $$").exit.out_of_memory
        docker_world.engine._connection.client.update_container(sandbox.name, mem_limit="64m", memswap_limit="64m")
        ran = run(sandbox, "exec tail /dev/zero")
        assert (ran.code, ran.exit.out_of_memory) == (137, True)
        again = run(sandbox, "kill -9 $$")
        assert (again.code, again.exit.out_of_memory) == (137, False)


@pytest.mark.parametrize("beside", [None, program("import time; time.sleep(300)")], ids=["alone", "beside"])
def test_the_sandbox_ends_when_its_process_is_killed(
    docker: DockerEngine, docker_base: StoredImage, beside: Program | None
) -> None:
    script = f"""if True:
        from pytest_stagebuild.engines import connect
        from pytest_stagebuild.engines.protocol import Program
        engine, _ = connect("docker")
        image, beside = engine.find_image({docker_base.id!r}), {beside!r}
        sandbox = engine.sandbox(image, labels={{}}, network=False, life=300, beside=beside)
        sandbox.start()
        if beside:
            sandbox.run_beside(beside)
        def show(stream, piece):
            print(sandbox.name, flush=True)
        sandbox.run("trap '' TERM HUP; echo on; sleep 300", cwd="/", env={{}}, timeout=None, output=show)
    """
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert _exists(docker, name)
        process.kill()
    assert within(5, lambda: not _exists(docker, name))


def test_a_sandbox_whose_process_was_killed_before_the_start_is_swept(
    docker: DockerEngine, docker_base: StoredImage
) -> None:
    script = f"""if True:
        import os
        from pytest_stagebuild.engines import connect
        engine, _ = connect("docker")
        sandbox = engine.sandbox(engine.find_image({docker_base.id!r}), labels={{}}, network=False, life=300)
        print(sandbox.name, flush=True)
        os.read(0, 1)
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes, text=True) as process:
        assert process.stdout
        name = process.stdout.readline().strip()
        assert name not in docker.sweep()
        process.kill()
    assert name in docker.sweep()
    assert not _exists(docker, name)


def test_a_sweep_leaves_alone_what_is_not_provably_ours_and_gone(
    docker: DockerEngine, docker_base: StoredImage
) -> None:
    api = docker._connection.client
    with docker.sandbox(docker_base, labels={}, network=False, life=300) as ours:
        label = api.inspect_container(ours.name)["Config"]["Labels"]["pytest-stagebuild.owner"]
        dead = re.sub(r'"start": "\d+"', '"start": "1"', label)
        containers = {
            "stagebuild-test-gone": ("stagebuild-test-gone", dead),
            "stagebuild-test-users": ("stagebuild-test-another", dead),
            "stagebuild-test-elsewhere": (
                "stagebuild-test-elsewhere",
                re.sub(r'"host": "[^"]+"', '"host": "x:y"', dead),
            ),
            "stagebuild-test-garbled": ("stagebuild-test-garbled", "{"),
        }
        try:
            for name, (sandbox, owner) in containers.items():
                labels = {"pytest-stagebuild.sandbox": sandbox, "pytest-stagebuild.owner": owner}
                api.create_container(docker_base.id, name=name, labels=labels)
            swept = docker.sweep()
            assert {name for name in swept if name in containers} == {"stagebuild-test-gone"}
            left = [name for name in (*containers, ours.name) if _exists(docker, name)]
            assert left == [*list(containers)[1:], ours.name]
        finally:
            for name in containers:
                if _exists(docker, name):
                    api.remove_container(name, force=True)


def test_a_sandbox_does_not_outlive_its_longest_life(real: World) -> None:
    with real.started(life=2) as sandbox:
        assert within(20, lambda: not _exists(real.engine, sandbox.name))
        with pytest.raises(EngineError, match=r"ended unasked|the sandbox ended (before|while)"):
            run(sandbox, "echo too late")


@pytest.fixture
def bare_image(request: pytest.FixtureRequest, docker: DockerEngine, docker_base: StoredImage) -> Iterator[StoredImage]:
    """An image with no more than what the parameter says."""
    name = f"stagebuild-test-bare-{os.getpid()}"
    docker._connection.client.import_image_from_data(
        _BARE[request.param](docker, docker_base), repository=name, tag="bare"
    )
    image = docker.find_image(f"{name}:bare")
    assert image
    yield image
    docker.remove_image(image.id)


def _with_busybox(*applets: str) -> Callable[[Engine, StoredImage], bytes]:
    return lambda engine, base: busybox(applets)


def _with_shell_alone(shell: str) -> Callable[[Engine, StoredImage], bytes]:
    copy = (
        f"mkdir -p /n/bin && cp -L {shell} /n/bin/sh && "
        f"for f in $(ldd {shell} | grep -o '/[^ ]*'); do mkdir -p /n${{f%/*}} && cp -L $f /n$f; done"
    )

    def build(engine: Engine, base: StoredImage) -> bytes:
        with engine.sandbox(base, labels={}, network=False, life=300) as sandbox:
            sandbox.start()
            if run(sandbox, copy, cwd="/").code:
                pytest.skip(f"the base image cannot say what its {shell} needs")
            files = {name.removeprefix("n/"): data for name, (_, data) in members_of(sandbox.get("/n")).items() if data}
        return tar_of({"proc/": b"", "src/": b"", **files}, mode=0o755)

    return build


_BARE: dict[str, Callable[[Engine, StoredImage], bytes]] = {
    "busybox": _with_busybox("sh", "sleep", "timeout", "cat", "id"),
    "busybox-without-timeout": _with_busybox("sh", "sleep"),
    "dash-alone": _with_shell_alone("/bin/dash"),
    "bash-alone": _with_shell_alone("/bin/bash"),
    "nothing": lambda engine, base: tar_of({"file": b""}),
}


_WITH_A_SHELL = [name for name in _BARE if name != "nothing"]


@pytest.mark.parametrize("bare_image", _WITH_A_SHELL, indirect=True)
def test_an_image_with_a_bare_shell_is_enough(docker: DockerEngine, bare_image: StoredImage) -> None:
    with docker.sandbox(bare_image, labels={}, network=False, life=300) as sandbox:
        sandbox.start()
        assert run(sandbox, "echo hello").stdout == b"hello\n"
        run(sandbox, "kill -9 -1")
        left = "/bin/sh -c 'while :; do read x; done' left </dev/tty & /bin/sh -c 'while :; do :; done' left & echo on"
        assert run(sandbox, left).stdout == b"on\n"
        ended = sandbox.end_processes()
        assert len(ended) == 1
        assert "while :; do :; done" in ended[0]
        assert sandbox.end_processes() == []
        assert run(sandbox, "while :; do :; done", timeout=1).exit.timed_out
        assert run(sandbox, "echo still here").stdout == b"still here\n"


@pytest.mark.parametrize("bare_image", _WITH_A_SHELL, indirect=True)
def test_a_bare_shell_need_not_extract_what_comes_later(docker: DockerEngine, bare_image: StoredImage) -> None:
    with docker.sandbox(bare_image, labels={}, network=False, life=300) as sandbox:
        sandbox.put([tar_of({"src/": b""})])
        sandbox.put([tar_of({"run/later": b"content\n"})], later=True)
        sandbox.start()
        look = "read -r line </run/later && echo $line; echo once >>/run/count; while read -r line; do echo $line; done"
        assert run(sandbox, f"{look} </run/count").stdout == b"content\nonce\n"


@pytest.mark.parametrize("bare_image", _WITH_A_SHELL, indirect=True)
def test_no_shell_lets_a_command_end_the_sandbox_by_signals(docker: DockerEngine, bare_image: StoredImage) -> None:
    with docker.sandbox(bare_image, labels={}, network=False, life=300) as sandbox:
        sandbox.start()
        run(sandbox, f"for signal in {_DEADLY}; do kill -s $signal 1; done")
        assert run(sandbox, "echo alive").stdout == b"alive\n"
        assert sandbox.end_processes() == []


@pytest.mark.parametrize("bare_image", ["busybox"], indirect=True)
def test_busybox_bounds_the_life_too(docker: DockerEngine, bare_image: StoredImage) -> None:
    with docker.sandbox(bare_image, labels={}, network=False, life=2) as sandbox:
        sandbox.start()
        run(sandbox, "kill -15 -1")
        assert within(20, lambda: not _exists(docker, sandbox.name))


@pytest.mark.parametrize("bare_image", ["nothing"], indirect=True)
def test_an_image_without_a_shell_is_named_as_such(docker: DockerEngine, bare_image: StoredImage) -> None:
    with (
        docker.sandbox(bare_image, labels={}, network=False, life=60) as sandbox,
        pytest.raises(EngineError, match="no /bin/sh"),
    ):
        sandbox.start()


def test_an_interrupt_leaves_no_container(docker: DockerEngine, docker_base: StoredImage) -> None:
    script = f"""if True:
        import signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        from pytest_stagebuild.engines import connect
        engine, _ = connect("docker")
        with engine.sandbox(engine.find_image({docker_base.id!r}), labels={{}}, network=False, life=300) as sandbox:
            sandbox.start()
            def show(stream, piece):
                print(sandbox.name, flush=True)
            sandbox.run("echo on; sleep 300", cwd="/", env={{}}, timeout=None, output=show)
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes, text=True) as process:
        assert process.stdout
        assert process.stderr
        name = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in process.stderr.read()
    assert not _exists(docker, name)
