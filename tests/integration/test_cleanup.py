"""No sandbox outlives its run, however that ends, and whoever interrupts one is told where it stood."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from grounds import on_each_engine

AT = """\
import os, signal, threading

def pytest_stagebuild_step(stage, step):
    if f"{stage}: {step}" == os.environ["INTERRUPT_AT"]:
        threading.Timer(float(os.environ["AFTER"]), os.kill, (os.getpid(), signal.SIGINT)).start()
"""
"""A plugin that presses Ctrl-C so many seconds after a step."""

AGAIN = """\
import os, signal
from pytest_stagebuild.engines.docker.sandbox import DockerSandbox
from pytest_stagebuild.engines.local.spawning import Spawned

def interrupted(removing):
    def remove(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        removing(self)
    return remove

if os.environ["AGAIN"] == "while the sandbox is removed":
    DockerSandbox._remove = interrupted(DockerSandbox._remove)
    Spawned.end = interrupted(Spawned.end)

def pytest_keyboard_interrupt():
    if os.environ["AGAIN"] == "while the run is wound up":
        os.kill(os.getpid(), signal.SIGINT)
"""
"""A plugin that presses Ctrl-C once more."""


def wait_for(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(project, stage: str, text: str) -> Callable[[], bool]:
    log = project.root / ".stagebuild" / "logs" / f"{stage}.log"
    return lambda: log.exists() and text in log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_in_order_and_the_summary_says_where(project, number):
    assert project.stagebuild("pyproject.toml::install").code == 0
    process = project.start("--stagebuild-source=.", "--stagebuild-build-cmd=echo so far; sleep 300")
    wait_for(said(project, "build", "so far"))
    process.send_signal(number)
    run = project.wait(process)
    assert project.sandboxes() == []
    assert run.code == 2
    assert run.outcomes() == {"install": "CACHED", "build": "STOPPED"}
    assert run.row("build").endswith("interrupted  (first run)")
    assert "stopped stage    build (interrupted), log: .stagebuild/logs/build.log" in run.summary
    assert "rollback points  deps-installed 00000000" in run.summary
    assert run.summary[-1].endswith("--stagebuild-from=deps-installed")
    assert len(project.checkpoints()) == 1


def test_a_signal_that_the_run_was_started_to_ignore_is_ignored(new_project):
    project = new_project(install_cmd="echo started; sleep 1", build_cmd="true", test_cmd="true")
    ignoring = project.root / "python-that-ignores"
    ignoring.write_text(f"#!/bin/sh\ntrap '' HUP\nexec {sys.executable} \"$@\"\n")
    ignoring.chmod(0o755)
    process = project.start("--stagebuild-source=.", "pyproject.toml::install", python=str(ignoring))
    wait_for(said(project, "install", "started"))
    process.send_signal(signal.SIGHUP)
    assert project.wait(process).code == 0


@on_each_engine
@pytest.mark.parametrize(
    ("at", "after"),
    [
        ("install: created", "0.3"),
        ("install: source sent", "0.1"),
        ("install: record written", "0.05"),
        ("install: record written", "0.4"),
        ("build: created", "0"),
    ],
)
def test_ctrl_c_at_any_step_leaves_no_sandbox_and_no_half_made_checkpoint(new_project, at, after):
    # Enough to send that the interrupt comes in the middle of it, and enough to commit.
    project = new_project(
        install_cmd="head -c 200000000 /dev/urandom > made", build_cmd="wc -c < made", test_cmd="sleep 1"
    )
    project.write({"at.py": AT})
    with (project.root / "large.bin").open("wb") as file:
        file.truncate(1_500_000_000 if at == "install: created" else 1)
    run = project.wait(
        project.start("--stagebuild-source=.", "-p", "at", env={"PYTHONPATH": ".", "INTERRUPT_AT": at, "AFTER": after})
    )
    assert project.sandboxes() == []
    assert run.code == 2
    # A commit may be over by then, and the interrupt come between two stages.
    assert "STOPPED" in run.outcomes().values() or at == "install: record written"

    (project.root / "large.bin").unlink()
    again = project.stagebuild("-s")
    assert again.code == 0
    assert "200000000" in again.output


BEGUN = """\
import os, signal, threading, time
import pytest
from pytest_stagebuild.pipeline import Pipeline

WHAT = os.environ["WHAT"]
begun, start = Pipeline.begin, threading.Thread.start

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

def start_and_interrupt(thread):
    start(thread)
    interrupt()

def begin(self, *arguments, **more):
    if WHAT == "as it begins":
        threading.Thread.start = start_and_interrupt
    try:
        begun(self, *arguments, **more)
    finally:
        threading.Thread.start = start
    sandboxes = self._sandboxes
    assert sandboxes._of_stage if os.environ["FIRST"] == "build" else sandboxes._of_tests

Pipeline.begin = begin

@pytest.hookimpl(trylast=True)
def pytest_sessionstart():
    if WHAT == "refused":
        raise pytest.UsageError("not today")
    interrupt()
    time.sleep(5)

@pytest.hookimpl(trylast=True)
def pytest_keyboard_interrupt():
    if WHAT == "twice":
        interrupt()
"""
"""A plugin by which a run ends before it has begun, when the sandbox of its first stage has."""


@on_each_engine
@pytest.mark.parametrize("first", ["build", "test"])
@pytest.mark.parametrize(("what", "code"), [("as it begins", 2), ("once", 2), ("twice", 2), ("refused", 4)])
def test_a_run_that_ends_before_its_first_stage_leaves_no_sandbox(new_project, what, code, first):
    project = new_project(install_cmd="true", build_cmd="cat used", test_cmd="true")
    project.write({"begun.py": BEGUN, "used": ""})
    assert project.stagebuild().code == 0
    if first == "build":
        project.write({"used": "edited"})
    env = {"PYTHONPATH": ".", "WHAT": what, "FIRST": first}
    run = project.wait(project.start("--stagebuild-source=.", "-p", "begun", env=env))
    assert project.sandboxes() == []
    assert run.code == code, run.output
    assert "Traceback" not in run.output
    assert ("left at once" in run.output) == (what == "twice")


READING = """\
import os, signal, time
from pytest_stagebuild import session

made, read = session.guessed, session.SourceTree.read

def guessed(*arguments):
    guess = made(*arguments)
    assert guess is not None
    if os.environ["WHAT"] == "started":
        guess.sandbox._entered._thread.join()
    return guess

def broken(*arguments, **more):
    if os.environ["WHAT"] != "right":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    return read(*arguments, **more)

session.guessed = guessed
session.SourceTree.read = broken
"""
"""A plugin by which a run ends while the source is read, for which it is large enough to begin before that."""


@on_each_engine
@pytest.mark.parametrize(("what", "code"), [("right", 0), ("starting", 2), ("started", 2)])
def test_what_is_begun_while_a_large_source_is_read_is_never_left(new_project, what, code):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="ls many | wc -l")
    project.write({"reading.py": READING, **{f"many/{number}": "" for number in range(3000)}})
    assert project.stagebuild().code == 0
    run = project.stagebuild("-s", "-p", "reading", env={"PYTHONPATH": ".", "WHAT": what})
    assert project.sandboxes() == []
    assert run.code == code, run.output
    assert ("3000" in run.output) == (code == 0)


MAKING = """\
import os, signal
from pytest_stagebuild.engines.docker.connection import Connection
from pytest_stagebuild.engines.local.spawning import Spawner

def interrupted(making, creates):
    def make(*arguments, **more):
        if creates(arguments):
            os.kill(os.getpid(), signal.SIGINT)
        return making(*arguments, **more)
    return make

Connection.tell = interrupted(Connection.tell, lambda arguments: "/containers/create" in arguments)
Spawner.spawn = interrupted(Spawner.spawn, lambda arguments: True)
"""
"""A plugin that presses Ctrl-C while a sandbox is made."""


@on_each_engine
def test_ctrl_c_while_a_sandbox_is_made_leaves_none(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"making.py": MAKING})
    # Nothing is begun then before the stage itself makes it.
    run = project.stagebuild("--stagebuild-rebuild=all", "-p", "making", env={"PYTHONPATH": "."})
    assert (run.code, run.outcomes()) == (2, {"install": "STOPPED"})
    assert project.sandboxes() == []


@on_each_engine
@pytest.mark.parametrize("again", ["while the sandbox is removed", "while the run is wound up"])
def test_a_second_ctrl_c_prints_no_traceback_and_leaves_no_sandbox(new_project, again):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"at.py": AT, "again.py": AGAIN})
    env = {"PYTHONPATH": ".", "INTERRUPT_AT": "install: started", "AFTER": "0", "AGAIN": again}
    run = project.wait(project.start("--stagebuild-source=.", "-p", "at", "-p", "again", env=env))
    assert run.code == 2
    assert project.sandboxes() == []
    assert project.checkpoints() == {}
    if again == "while the run is wound up":
        assert run.lines[-1] == "stagebuild: interrupted again, left at once"
    else:
        assert run.outcomes() == {"install": "STOPPED"}


CLOSING = """\
import os, signal, threading, time

from pytest_stagebuild.engines.local import store

synchronise = store.Store._make_durable

def slow(self, image):
    time.sleep(3)
    synchronise(self, image)

store.Store._make_durable = slow

def pytest_terminal_summary():
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
"""
"""A plugin that presses Ctrl-C while the end of a run waits for what it made to be on disk."""


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_ctrl_c_once_everything_is_over_ends_the_waiting_and_loses_nothing(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"closing.py": CLOSING})
    run = project.stagebuild("-p", "closing", env={"PYTHONPATH": "."})
    assert run.code == 0
    assert run.lines[-1].startswith("=")
    assert project.stagebuild().outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}


@contextlib.contextmanager
def silent_registry() -> Iterator[tuple[int, threading.Event]]:
    """A registry that takes requests and never answers; the event is set at the first."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])
                    asked.set()

        kept: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1], asked
        finally:
            for one in kept:
                one.close()


def test_ctrl_c_while_the_base_image_is_pulled(new_project):
    with silent_registry() as (port, asked):
        project = new_project(image=f"127.0.0.1:{port}/silent:1")
        process = project.start("--stagebuild-source=.")
        assert asked.wait(60)
        process.send_signal(signal.SIGINT)
        run = project.wait(process)
    assert run.code == 2
    assert run.summary == [
        "",
        f"note             interrupted before the base image 127.0.0.1:{port}/silent:1 was there",
    ]


HOST_TESTS = {
    "test_host.py": """\
def test_first(): pass

def test_image(build_image):
    build_image.run("echo so far >/proc/1/fd/1; sleep 300")
"""
}


@on_each_engine
@pytest.mark.parametrize("slow", ["build", "test"])
def test_ctrl_c_in_a_fixture_or_a_test_that_uses_it(new_project, slow):
    project = new_project(install_cmd="true", build_cmd="sleep 300" if slow == "build" else "true", test_cmd="true")
    project.write(HOST_TESTS)
    process = project.start("test_host.py", "-v")
    wait_for(lambda: project.ground.runs(process.pid, "sleep 300"))
    process.send_signal(signal.SIGINT)
    run = project.wait(process)
    assert run.code == 2
    assert project.sandboxes() == []
    assert run.outcomes() == {"install": "ran", "build": "STOPPED" if slow == "build" else "ran"}
    assert "KeyboardInterrupt" in run.output
    assert "1 passed" in run.output


@on_each_engine
def test_ctrl_c_reaches_every_worker_of_xdist(new_project):
    pytest.importorskip("xdist")
    project = new_project(install_cmd="echo started; sleep 300")
    project.write({"test_host.py": "def test_a(deps_image): pass\ndef test_b(deps_image): pass\n"})
    process = project.start("-p", "xdist", "-n2", "test_host.py", new_group=True)
    wait_for(said(project, "install", "started"))
    left = project.ground.going_on(process.pid)
    assert left()
    os.killpg(process.pid, signal.SIGINT)
    run = project.wait(process)
    assert run.code == 2, run.output
    wait_for(lambda: not left(), 5)


@on_each_engine
@pytest.mark.parametrize("plain", ["stages", "xdist"])
def test_no_sandbox_is_left_5_seconds_after_kill_9(new_project, plain):
    project = new_project(install_cmd="trap '' TERM HUP; echo started; sleep 300", build_cmd="true", test_cmd="true")
    project.write({"test_host.py": "def test_a(deps_image): pass\n"})
    arguments = ["--stagebuild-source=."] if plain == "stages" else ["-p", "xdist", "-n1", "test_host.py"]
    process = project.start(*arguments, new_group=True)
    wait_for(said(project, "install", "started"))
    left = project.ground.going_on(process.pid)
    assert left()
    process.kill()
    wait_for(lambda: not left(), 5)
    process.communicate()


@on_each_engine
def test_what_a_killed_run_leaves_is_removed_by_the_next_one_and_a_living_ones_is_not(new_project):
    """A container that was not started yet has no process of its own that could end it."""
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    hold = (
        "import os, time\ndef pytest_stagebuild_step(stage, step):\n    open(step, 'w').close()\n    time.sleep(300)\n"
    )
    project.write({"hold.py": hold})
    living, killed = (
        project.start(
            "--stagebuild-source=.", "-p", "hold", f"--stagebuild-install-cmd=echo {name}", env={"PYTHONPATH": "."}
        )
        for name in ("living", "killed")
    )
    try:
        wait_for(lambda: len(project.sandboxes()) == 2)
        killed.kill()
        killed.communicate()
        # By this run, or by that of another test at the same time: every run removes what nobody owns any more.
        assert project.stagebuild().code == 0
        [left] = project.sandboxes()
        assert project.ground.sandboxes([living.pid]) == [left]
    finally:
        living.send_signal(signal.SIGINT)
        project.wait(living)
    assert project.sandboxes() == []


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ([], 0),
        (["--stagebuild-test-cmd=exit 1"], 1),
        (["--stagebuild-test-cmd=sleep 300", "--stagebuild-timeout=1"], 1),
    ],
)
def test_no_sandbox_is_left_by_success_failure_or_a_time_limit(project, options, code):
    run = project.stagebuild(*options)
    assert run.code == code
    assert project.sandboxes() == []
