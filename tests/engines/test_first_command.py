"""The first command in a sandbox and what comes with it, which an engine may treat otherwise than those that follow."""

from __future__ import annotations

import re

import pytest
from worlds import World, members_of, run, tar_of


@pytest.mark.parametrize("first", ["command", "read", "command of root", "beside", "commit"])
def test_what_may_come_later_is_there_in_time(real: World, first: str) -> None:
    archive = tar_of(
        {"run/": b"", "run/a b.txt": b"\0\xff" * 100_000, "run/b.sh": b"#!"}, mode=0o755, mtime=1_600_000_000
    )
    with real.sandbox() as sandbox:
        sandbox.put([tar_of({"src/": b""})])
        sandbox.put([archive[:700], archive[700:]], later=True)
        if first == "read":
            assert members_of(sandbox.get("/run"))["run/a b.txt"][1] == b"\0\xff" * 100_000
        sandbox.start()
        look = "cd /run && stat -c '%s %a %u %g %Y' 'a b.txt' && test -x b.sh && echo gone > b.sh"
        if first == "command of root":
            run(sandbox, "test -x /run/b.sh", user="root")
        elif first == "beside":
            beside = sandbox.run_beside("print(open('/run/b.sh').read(), flush=True)", [])
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
