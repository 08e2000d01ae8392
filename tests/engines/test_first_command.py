"""The first command in a sandbox and what comes with it and right after it, which an engine may treat otherwise."""

from __future__ import annotations

import re

import pytest
from worlds import World, members_of, program, run, tar_of

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.errors import EngineError


@pytest.mark.parametrize("first", ["command", "read", "command of root", "beside", "commit"])
def test_what_may_come_later_is_there_in_time(real: World, first: str) -> None:
    archive = tar_of(
        {"run/": b"", "run/a b.txt": b"\0\xff" * 100_000, "run/b.sh": b"#!"}, mode=0o755, mtime=1_600_000_000
    )
    reads = program("print(open('/run/b.sh').read(), flush=True)")
    with real.sandbox(beside=reads if first == "beside" else None) as sandbox:
        sandbox.put([tar_of({"src/": b""})])
        sandbox.put([archive[:700], archive[700:]], later=True)
        if first == "read":
            assert members_of(sandbox.get("/run"))["run/a b.txt"][1] == b"\0\xff" * 100_000
        sandbox.start()
        look = "cd /run && stat -c '%s %a %u %g %Y' 'a b.txt' && test -x b.sh && echo gone > b.sh"
        if first == "command of root":
            run(sandbox, "test -x /run/b.sh", user="root")
        elif first == "beside":
            beside = sandbox.run_beside(reads)
            assert beside.line(60) == "#!"
        elif first == "commit":
            image = sandbox.commit(real.name(), {})
            with real.engine.sandbox(image, labels={}, network=False, life=300) as other:
                assert members_of(other.get("/run/b.sh"))["b.sh"][1] == b"#!"
            return
        user = "root" if real.image.config.user else "image"
        assert run(sandbox, look, user=user).stdout == b"200000 755 0 0 1600000000\n"
        assert run(sandbox, "cat /run/b.sh").stdout == b"gone\n"


def test_variables_that_no_shell_knows_arrive_too(real: World) -> None:
    env = {"UID": "2", "ESCAPED": "\x1b[0m", "LINES_": "a\n  b\n"}
    with real.started() as sandbox:
        for _ in range(2):
            printed = run(sandbox, "env -0", env=env).stdout.decode().split("\0")
            assert {f"{name}={value}" for name, value in env.items() if name != "UID"} <= set(printed)


def test_a_command_that_kills_its_group_ends_alone(real: World) -> None:
    with real.started() as sandbox:
        assert run(sandbox, "kill -TERM 0; sleep 60").code == 143
        assert run(sandbox, "echo on").stdout == b"on\n"


def test_the_first_command_and_the_second_find_the_same(real: World) -> None:
    """Though an engine may run them in different ways."""
    status = "grep -E 'Sig|Cap|Seccomp|NoNewPrivs|Groups|Uid' /proc/self/status"
    look = f"env | sort; pwd; umask; ulimit -a; {status}; ls -l /proc/self/fd"
    with real.started({"src/a": b""}) as sandbox:
        first, second = (run(sandbox, look, env={"NAME": "it's"}).stdout.decode() for _ in range(2))

    def steady(text: str) -> str:
        # Podman tells its name to the main process alone.
        return re.sub(r"HOSTNAME=.*\n|SigQ:.*|pipe:\[\d+\]|\S+ +\d+ \d\d:\d\d|/proc/\d+", "", text)

    assert steady(first) == steady(second)


LEFT = "(trap '' TERM HUP; while :; do sleep 0.1; done) >/dev/null 2>&1 &"


@pytest.mark.parametrize("command", ["true", "exit 3", "kill -9 -1; true", LEFT, "kill -TERM 0", "printf '\\036'; cat"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
def test_steps_of_ours_after_it(real: World, command: str, beside: bool) -> None:
    files = {".our/": b"", ".our/a": b"\n\0\xff" * 5000, ".our/b": b""}
    goes_on = program("import time\nwhile True:\n    time.sleep(1)")
    with real.started(beside=goes_on if beside else None) as sandbox:
        if beside:
            sandbox.run_beside(goes_on)
        run(sandbox, command)
        sandbox.end_processes()
        said = run(sandbox, "echo out; echo err >&2; pwd; id -u; exit 4", user="root", cwd="/usr")
        assert (said.code, sorted((said.stdout + said.stderr).split())) == (4, [b"/usr", b"0", b"err", b"out"])
        for _ in range(2):
            sandbox.put([tar_of(files)], later=True)
            assert run(sandbox, "ls -A /.our", user="root").stdout == b"a\nb\n"
            assert run(sandbox, "rm -rf /.our && echo 'it is' \"gone\"", user="root").stdout == b"it is gone\n"
        assert run(sandbox, "echo second; cat").stdout == b"second\n"
        assert sandbox.end_processes() == []
        sandbox.put([tar_of(files)], later=True)
        image = sandbox.commit(real.name(), {})
        with real.engine.sandbox(image, labels={}, network=False, life=300) as other:
            assert {name: data for name, (_, data) in members_of(other.get("/.our")).items()} == {
                ".our": b"",
                ".our/a": b"\n\0\xff" * 5000,
                ".our/b": b"",
            }


def test_they_do_not_need_the_engine(docker_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with docker_world.started() as sandbox:
        run(sandbox, "true")
        monkeypatch.delattr("pytest_stagebuild.engines.docker.sandbox.Execution")
        assert sandbox.end_processes() == []
        sandbox.put([tar_of({"run/a": b"x"})], later=True)
        assert run(sandbox, "cat /run/a", user="root").stdout == b"x"


@pytest.mark.parametrize("program", ["head", "tar"])
@pytest.mark.parametrize("with_it", ["rm -f", "ln -sf true", "ln -sf false"])
def test_a_command_that_takes_the_programs_away_that_steps_need(real: World, program: str, with_it: str) -> None:
    with real.started() as sandbox:
        user = "root" if real.image.config.user else "image"
        assert run(sandbox, f"cd /bin; {with_it} {program}; cd /usr/bin; {with_it} {program}", user=user).code == 0
        sandbox.end_processes()
        sandbox.put([tar_of({"a.sh": b"echo no\n" * 3000, "b.sh": b"\necho no\n" * 3000})], later=True)
        assert run(sandbox, "cat /a.sh | wc -c; echo on", user="root").stdout == b"24000\non\n"
        image = sandbox.commit(real.name(), {})
        with real.engine.sandbox(image, labels={}, network=False, life=300) as other:
            assert len(members_of(other.get("/b.sh"))["b.sh"][1]) == 27000


@pytest.mark.parametrize("size", [10, 1_000_000], ids=["small", "large"])
def test_a_main_process_that_does_not_answer_is_not_waited_for_without_end(
    docker: DockerEngine, docker_world: World, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytest_stagebuild.engines.docker.main_process.QUICK", 2)
    passes = program("pass")
    with docker_world.started(beside=passes) as sandbox:
        sandbox.put([tar_of({"later": b"x" * size})], later=True)
        docker._connection.client.pause(sandbox.name)
        with pytest.raises(EngineError, match=r"^the sandbox (does not answer|ended before)"):
            sandbox.run_beside(passes)
        docker._connection.client.unpause(sandbox.name)
        assert run(sandbox, "echo on").stdout == b"on\n"
