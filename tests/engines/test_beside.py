"""A program of ours beside the commands of a sandbox, which an engine may start in more than one way."""

from __future__ import annotations

import dataclasses
import time

import pytest
from bare import busybox
from worlds import World, run, tar_of

from pytest_stagebuild.engines.protocol import StoredImage

FOLLOWS_TWICE = "import time\nprint('one', flush=True)\ntime.sleep({pause})\nprint('two', flush=True)\n"
HEARS_THE_END = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
print('ready', flush=True)
signal.sigwait({signal.SIGCONT})
print('heard', flush=True)
"""
GOES_ON = "import time\nprint('ready', flush=True)\nwhile True:\n    time.sleep(0.05)\n    print('on', flush=True)\n"


def test_what_it_prints_comes_while_the_command_runs(real: World) -> None:
    heard: list[str] = []
    with real.started() as sandbox:
        beside = sandbox.run_beside(FOLLOWS_TWICE.format(pause=0.5), [])
        assert beside.line(60) == "one"
        sandbox.run(
            "sleep 4",
            cwd="/src",
            env={},
            timeout=60,
            output=lambda *_: None,
            meanwhile=lambda: heard.extend(filter(None, [beside.line(0)])),
        )
        assert heard == ["two"]
        assert beside.line(60) is None


def test_it_gets_its_arguments_as_they_are(real: World) -> None:
    words = ["it's", "a b", "$HOME", 'x"', "ü"]
    with real.started() as sandbox:
        beside = sandbox.run_beside("import sys\nprint(ascii(sys.argv[1:]), flush=True)", words)
        assert beside.line(60) == ascii(words)
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_the_command_is_none_the_wiser(real: World) -> None:
    with real.started() as sandbox:
        together = sandbox.listens
        beside = sandbox.run_beside(GOES_ON, [])
        assert beside.line(60) == "ready"
        first = run(sandbox, "for i in 1 2 3; do echo out$i; echo err$i >&2; done; printf '\\036'; exit 3")
        assert first.code == 3
        if together:
            assert first.stdout == b"out1\nerr1\nout2\nerr2\nout3\nerr3\n\x1e"
        else:
            assert (first.stdout, first.stderr) == (b"out1\nout2\nout3\n\x1e", b"err1\nerr2\nerr3\n")
        assert sandbox.end_processes() == []
        assert beside.line(60) == "on"
        assert run(sandbox, "echo second; echo apart >&2").stderr == b"apart\n"


def test_two_of_them(real: World) -> None:
    with real.started() as sandbox:
        one, two = (sandbox.run_beside(f"print({number}, flush=True)", []) for number in (1, 2))
        assert (one.line(60), two.line(60)) == ("1", "2")
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_after_a_command(real: World) -> None:
    with real.started() as sandbox:
        run(sandbox, "true")
        assert not sandbox.listens
        assert sandbox.run_beside("print('late', flush=True)", []).line(60) == "late"


def test_what_it_complains_of_is_known(real: World) -> None:
    with real.started() as sandbox:
        beside = sandbox.run_beside("print('one', flush=True)\n1 / 0", [])
        assert beside.line(60) == "one"
        said = beside.line(60)
        assert said is None or said.startswith("Traceback")  # an engine may have but one stream for it
        assert beside.complaint() == "ZeroDivisionError: division by zero"
        assert run(sandbox, "echo after; echo apart >&2").code == 0


def test_signals_to_the_group_of_the_command_are_not_for_it(real: World) -> None:
    with real.started() as sandbox:
        beside = sandbox.run_beside(GOES_ON, [])
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -TERM 0; sleep 60").code == 143
        while beside.line(0) is not None:
            pass
        assert beside.line(60) == "on"


def test_what_it_holds_is_no_part_of_the_time_limit(real: World) -> None:
    with real.started() as sandbox:
        assert sandbox.run_beside(GOES_ON, []).line(60) == "ready"
        ran = run(sandbox, "echo begun; sleep 60", timeout=2)
        assert ran.exit.timed_out
        assert ran.stdout == b"begun\n"
        assert run(sandbox, "echo after").stdout == b"after\n"


@pytest.fixture(params=["dash", "bash", "busybox"])
def shell_world(docker_world: World, request: pytest.FixtureRequest) -> World:
    """One with another /bin/sh."""
    with docker_world.sandbox() as sandbox:
        if request.param == "busybox":
            sandbox.put([busybox(["sh"])])
        sandbox.start()
        if request.param == "bash":
            assert run(sandbox, "ln -sf bash /bin/sh", cwd="/", user="root").code == 0
        image = sandbox.commit(docker_world.name(), docker_world.labels)
    return dataclasses.replace(docker_world, image=image)


@pytest.mark.parametrize("env", [{}, {"ESCAPED": "\x1b[0m"}], ids=["told", "executed"])
def test_its_end_is_seen_where_a_command_kills_everything(shell_world: World, env: dict[str, str]) -> None:
    with shell_world.started() as sandbox:
        beside = sandbox.run_beside(GOES_ON, [])
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -9 -1; echo on", env=env).stdout == b"on\n"
        begun = time.monotonic()
        while beside.line(60) is not None:
            pass
        assert time.monotonic() - begun < 30
        assert beside.complaint() == ""
        assert run(sandbox, "echo after").stdout == b"after\n"


@pytest.fixture
def without_head(docker_world: World) -> StoredImage:
    with docker_world.started() as sandbox:
        assert run(sandbox, "cd /bin && rm -f head; cd /usr/bin && rm -f head").code == 0
        return sandbox.commit(docker_world.name("headless"), docker_world.labels)


def test_a_command_follows_where_the_image_cannot_extract_what_comes_before(
    docker_world: World, without_head: StoredImage
) -> None:
    with docker_world.sandbox(without_head) as sandbox:
        sandbox.put([tar_of({"src/a.sh": b"\n\necho no\n" * 5000})], later=True)
        sandbox.start()
        assert sandbox.run_beside("print('ready', flush=True)", []).line(60) == "ready"
        ended = run(sandbox, "wc -c <a.sh")
        assert (ended.stdout, ended.exit.timed_out) == (b"50000\n", False)


def test_its_end_is_seen_before_there_is_a_command(shell_world: World) -> None:
    with shell_world.started() as sandbox:
        beside = sandbox.run_beside("raise SystemExit('no more')", [])
        assert beside.line(60) == "no more"
        begun = time.monotonic()
        assert beside.line(60) is None
        assert time.monotonic() - begun < 30
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_where_a_process_listens_it_is_told_of_the_end(shell_world: World) -> None:
    with shell_world.started() as sandbox:
        assert sandbox.listens
        beside = sandbox.run_beside(HEARS_THE_END, [])
        assert beside.line(60) == "ready"
        assert run(sandbox, "echo x").stdout == b"x\n"
        assert beside.line(60) == "heard"
        assert beside.line(60) is None
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_signals_to_the_group_of_the_command_are_not_for_the_shell_beside_it(shell_world: World) -> None:
    with shell_world.started() as sandbox:
        beside = sandbox.run_beside(HEARS_THE_END, [])
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -TERM 0; sleep 60").code == 143
        assert beside.line(60) == "heard"
