"""A program of ours beside the commands of a sandbox, which an engine may start in more than one way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bare import busybox
from worlds import World, program, run, tar_of

from pytest_stagebuild.engines.protocol import Beside, Program, Sandbox, StoredImage

FOLLOWS_TWICE = program("import time\nprint('one', flush=True)\ntime.sleep(0.5)\nprint('two', flush=True)\n")
HEARS_THE_END = program("""
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})
print('ready', flush=True)
signal.sigwait({signal.SIGCONT})
print('heard', flush=True)
""")
GOES_ON = program("""
import time
print('ready', flush=True)
while True:
    time.sleep(0.05)
    print('on', flush=True)
""")


@pytest.fixture(params=[True, False], ids=["early", "late"])
def early(request: pytest.FixtureRequest) -> bool:
    """Whether a sandbox is created with the program that is to run beside."""
    return bool(request.param)


@contextmanager
def beside_in(world: World, program: Program, *, early: bool = True) -> Iterator[tuple[Sandbox, Beside]]:
    """A sandbox in which a program runs beside."""
    with world.started(beside=program if early else None) as sandbox:
        yield sandbox, sandbox.run_beside(program)


@pytest.fixture
def without_head(docker_world: World) -> StoredImage:
    with docker_world.started() as sandbox:
        assert run(sandbox, "cd /bin && rm -f head; cd /usr/bin && rm -f head").code == 0
        return sandbox.commit(docker_world.name("headless"), docker_world.labels)


def test_what_it_prints_comes_while_the_command_runs(real: World, early: bool) -> None:
    heard: list[str] = []
    with beside_in(real, FOLLOWS_TWICE, early=early) as (sandbox, beside):
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


def test_it_gets_its_arguments_as_they_are(real: World, early: bool) -> None:
    words = ["it's", "a b", "$HOME", 'x"', "ü"]
    tells = program("print(ascii([*arguments]), flush=True)", *words)
    with beside_in(real, tells, early=early) as (sandbox, beside):
        assert beside.line(60) == ascii(words)
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_what_is_sent_before_it_begins_is_there(real: World, early: bool) -> None:
    looks = program("print(open('/src/one').read() + open('/src/two').read(), flush=True)")
    with real.started({"src/one": b"1"}, beside=looks if early else None) as sandbox:
        time.sleep(0.5)
        sandbox.put([tar_of({"src/two": b"2"})], later=True)
        assert sandbox.run_beside(looks).line(60) == "12"
        assert run(sandbox, "cat one two").stdout == b"12"
        assert sandbox.end_processes() == []


def test_it_may_begin_with_the_command(real: World, early: bool) -> None:
    looks = program("print(open('/src/sent').read(), flush=True)")
    with real.started(beside=looks if early else None) as sandbox:
        together = sandbox.listens
        sandbox.put([tar_of({"src/sent": b"sent"})], later=True)
        beside = sandbox.run_beside(looks, at_once=False)
        if together:
            assert beside.line(0.3) is None
        assert run(sandbox, "cat sent; echo; echo apart >&2").stdout == (b"sent\napart\n" if together else b"sent\n")
        assert beside.line(60) == "sent"


def test_it_begins_too_where_the_command_has_to_be_executed(
    docker_world: World, without_head: StoredImage, early: bool
) -> None:
    looks = program("print(open('/src/sent').read(), flush=True)")
    for image, env in ((None, {"ESCAPED": "\x1b[0m"}), (without_head, {})):
        with docker_world.sandbox(image, beside=looks if early else None) as sandbox:
            sandbox.put([tar_of({"src/": b""})])
            sandbox.start()
            sandbox.put([tar_of({"src/sent": b"sent"})], later=True)
            beside = sandbox.run_beside(looks, at_once=False)
            assert run(sandbox, "cat sent", env=env).stdout == b"sent"
            assert beside.line(60) == "sent"


def test_it_is_run_once_for_each_time_it_is_asked_for(real: World) -> None:
    with beside_in(real, GOES_ON) as (sandbox, one):
        two = sandbox.run_beside(GOES_ON)
        assert [one.line(60), two.line(60)] == ["ready", "ready"]
        assert run(sandbox, "echo x").stdout == b"x\n"


def test_an_image_whose_root_is_somebody_else(docker_world: World) -> None:
    users = "sed -i 's/^root:x:0:0/root:x:1234:1234/; $a other:x:0:0::/:/bin/sh' /etc/passwd"
    with docker_world.started() as sandbox:
        assert run(sandbox, users).code == 0
        image = sandbox.commit(docker_world.name("renamed"), docker_world.labels)
    image = dataclasses.replace(image, config=dataclasses.replace(image.config, user="root"))
    with docker_world.started(image=image, beside=GOES_ON) as sandbox:
        assert not sandbox.listens
        ran = run(sandbox, "echo out; echo err >&2")
        assert (ran.stdout, ran.stderr) == (b"out\n", b"err\n")


@pytest.mark.parametrize("does", ["read -r line; exit 1", "cat", "echo usage", "kill -9 $$"])
def test_a_program_called_timeout_that_is_none(docker_world: World, does: str, early: bool) -> None:
    with docker_world.started() as sandbox:
        wrong = f"printf '#!/bin/sh\n{does}\n' >/usr/local/bin/timeout; chmod 755 /usr/local/bin/timeout"
        assert run(sandbox, wrong).code == 0
        image = sandbox.commit(docker_world.name("untimely"), docker_world.labels)
    with docker_world.started(image=image, beside=GOES_ON if early else None) as sandbox:
        assert sandbox.run_beside(GOES_ON).line(60) == "ready"
        ran = run(sandbox, "echo on; exit 3", timeout=20)
        assert (ran.stdout, ran.code) == (b"on\n", 3)
        assert sandbox.end_processes() == []


def test_the_command_is_none_the_wiser(real: World, early: bool) -> None:
    with real.started(beside=GOES_ON if early else None) as sandbox:
        together = sandbox.listens
        beside = sandbox.run_beside(GOES_ON)
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
    programs = [program(f"print({number}, flush=True)") for number in (1, 2)]
    with real.started(beside=programs[0]) as sandbox:
        one, two = map(sandbox.run_beside, programs)
        assert (one.line(60), two.line(60)) == ("1", "2")
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_after_a_command(real: World) -> None:
    late = program("print('late', flush=True)")
    with real.started(beside=late) as sandbox:
        run(sandbox, "true")
        assert not sandbox.listens
        assert sandbox.run_beside(late).line(60) == "late"


def test_what_it_complains_of_is_known(real: World, early: bool) -> None:
    with beside_in(real, program("print('one', flush=True)\n1 / 0"), early=early) as (sandbox, beside):
        assert beside.line(60) == "one"
        said = beside.line(60)
        assert said is None or said.startswith("Traceback")  # an engine may have but one stream for it
        assert beside.complaint() == "ZeroDivisionError: division by zero"
        assert run(sandbox, "echo after; echo apart >&2").code == 0


def test_signals_to_the_group_of_the_command_are_not_for_it(real: World, early: bool) -> None:
    with beside_in(real, GOES_ON, early=early) as (sandbox, beside):
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -TERM 0; sleep 60").code == 143
        while beside.line(0) is not None:
            pass
        assert beside.line(60) == "on"


def test_what_it_holds_is_no_part_of_the_time_limit(real: World, early: bool) -> None:
    with beside_in(real, GOES_ON, early=early) as (sandbox, beside):
        assert beside.line(60) == "ready"
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
    with beside_in(shell_world, GOES_ON) as (sandbox, beside):
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -9 -1; echo on", env=env).stdout == b"on\n"
        begun = time.monotonic()
        while beside.line(60) is not None:
            pass
        assert time.monotonic() - begun < 30
        assert beside.complaint() == ""
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_a_command_follows_where_the_image_cannot_extract_what_comes_before(
    docker_world: World, without_head: StoredImage
) -> None:
    looks = program("import os; print(os.path.getsize('/src/a.sh'), flush=True)")
    with docker_world.sandbox(without_head, beside=looks) as sandbox:
        sandbox.put([tar_of({"src/a.sh": b"\n\necho no\n" * 5000})], later=True)
        sandbox.start()
        assert sandbox.run_beside(looks).line(60) == "50000"
        ended = run(sandbox, "wc -c <a.sh")
        assert (ended.stdout, ended.exit.timed_out) == (b"50000\n", False)


def test_its_end_is_seen_before_there_is_a_command(shell_world: World) -> None:
    with beside_in(shell_world, program("raise SystemExit('no more')")) as (sandbox, beside):
        assert beside.line(60) == "no more"
        begun = time.monotonic()
        assert beside.line(60) is None
        assert time.monotonic() - begun < 30
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_where_a_process_listens_it_is_told_of_the_end(shell_world: World) -> None:
    with shell_world.started(beside=HEARS_THE_END) as sandbox:
        assert sandbox.listens
        beside = sandbox.run_beside(HEARS_THE_END)
        assert beside.line(60) == "ready"
        assert run(sandbox, "echo x").stdout == b"x\n"
        assert beside.line(60) == "heard"
        assert beside.line(60) is None
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_signals_to_the_group_of_the_command_are_not_for_the_shell_beside_it(shell_world: World) -> None:
    with beside_in(shell_world, HEARS_THE_END) as (sandbox, beside):
        assert beside.line(60) == "ready"
        assert run(sandbox, "kill -TERM 0; sleep 60").code == 143
        assert beside.line(60) == "heard"


def test_an_image_without_a_python_says_so(shell_world: World, early: bool) -> None:
    gone = "for one in python python3; do rm -f $(command -v $one); done; ! command -v python3 python"
    with shell_world.started() as sandbox:
        assert run(sandbox, gone).code == 0
        image = sandbox.commit(shell_world.name("snakeless"), shell_world.labels)
    with beside_in(dataclasses.replace(shell_world, image=image), GOES_ON, early=early) as (sandbox, beside):
        assert "there is no Python in the image" in (beside.line(60), beside.complaint())
        assert run(sandbox, "echo after").stdout == b"after\n"


def test_nothing_of_it_is_left_in_an_image(docker_world: World) -> None:
    with beside_in(docker_world, program("print('ready', flush=True)")) as (sandbox, beside):
        assert beside.line(60) == "ready"
        run(sandbox, "true")
        assert list(dict(sandbox.changed_files())) == ["/src"]


def test_one_that_is_not_wanted_after_all_is_no_leftover(real: World) -> None:
    with real.started(beside=GOES_ON) as sandbox:
        assert run(sandbox, "echo x").stdout == b"x\n"
        assert sandbox.end_processes() == []
        assert run(sandbox, "echo after").stdout == b"after\n"
