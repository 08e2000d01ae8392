"""Commands that fail, hang, kill, stay behind or print without end: the stage's own outcome stands and is named."""

from __future__ import annotations

import re

import pytest
from grounds import on_each_engine

MINIMUM = """\
import os, json, docker, pytest

@pytest.hookimpl
def pytest_stagebuild_step(config, stage, step):
    if step == "started":
        client = docker.from_env()
        for found in client.api.containers(filters={"label": "pytest-stagebuild.owner"}):
            if json.loads(found["Labels"]["pytest-stagebuild.owner"])["pid"] == os.getpid():
                client.api.update_container(found["Id"], mem_limit="64m", memswap_limit="64m")
        client.close()
"""
"""A plugin that leaves each sandbox only 64 MB of memory."""


@pytest.fixture
def cheap(new_project):
    """A project of which every stage does nothing yet."""
    return new_project(install_cmd="true", build_cmd="true", test_cmd="true")


def log_of(project, stage: str = "install") -> bytes:
    return (project.root / ".stagebuild" / "logs" / f"{stage}.log").read_bytes()


@on_each_engine
@pytest.mark.parametrize(
    ("command", "cause", "hint"),
    [
        ("no-such-command", "command not found (127)", "A command that it names is not in the image"),
        ("./pyproject.toml", "command not executable (126)", "check its executable bit"),
        ("kill -9 $$", "killed by SIGKILL (137)", "Somebody killed it (SIGKILL)"),
        ("kill -SEGV $$", "segmentation fault (139)", ""),
        ("kill -TERM $$", "killed by SIGTERM (143)", ""),
        ("exit 77", "exit 77", ""),
    ],
)
def test_the_summary_says_how_the_command_of_a_stage_failed(cheap, command, cause, hint):
    run = cheap.stagebuild(f"--stagebuild-install-cmd={command}")
    assert run.code == 1
    assert run.outcomes() == {"install": "FAILED", "build": "skipped", "test": "skipped"}
    assert cause in run.row("install")
    assert f"failed stage     install ({cause}), log: .stagebuild/logs/install.log" in run.summary
    assert f"install: {cause}" in run.output.partition("FAILURES")[2]
    assert hint in run.output
    assert cheap.checkpoints() == {}


@pytest.mark.parametrize(
    ("command", "cause"),
    [("exec tail /dev/zero", "killed for memory (137)"), ("tail /dev/zero; exit 3", "exit 3, ran out of memory")],
)
def test_a_command_that_the_kernel_ended_for_memory_is_told_from_one_that_was_killed(cheap, command, cause):
    cheap.write({"sixty_four.py": MINIMUM})
    run = cheap.stagebuild("-p", "sixty_four", f"--stagebuild-install-cmd={command}", env={"PYTHONPATH": "."})
    assert run.code == 1
    assert cause in run.row("install")
    assert "give the engine more memory" in run.output


def test_a_stage_over_its_time_is_ended_with_all_it_started_and_keeps_what_it_left(project):
    # It ignores every signal that can be ignored, and so does what it started in a session of its own.
    project.write(
        {
            "stubborn.sh": "trap '' TERM INT HUP QUIT\necho so far\nmkdir out; echo kept > out/file\n"
            "setsid sh -c 'trap \"\" TERM; while :; do sleep 61; done' &\nwhile :; do sleep 62; done\n"
        }
    )
    run = project.stagebuild("--stagebuild-install-cmd=sh stubborn.sh", "--stagebuild-timeout=2")
    assert run.code == 1
    assert "timed out after 2 s" in run.row("install")
    assert "--stagebuild-timeout" in run.output
    assert 2 <= float(re.findall(r"install: FAILED (\d+\.\d)s", run.output)[0]) < 2 + 5
    assert log_of(project) == b"so far\n"
    assert project.checkpoints() == {}

    run = project.stagebuild(
        "--stagebuild-test-cmd=sh stubborn.sh", "--stagebuild-timeout=2", "--stagebuild-artifact=out"
    )
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "FAILED"}
    assert "timed out after 2 s" in run.row("test")
    assert log_of(project, "test") == b"so far\n"
    assert (project.root / ".stagebuild" / "artifacts" / "out" / "file").read_text() == "kept\n"


@pytest.mark.parametrize("command", ["sleep 60 & touch done; kill -9 -1", "kill -9 1; kill -9 -1; exit 3"])
def test_a_command_that_kills_everything_it_may_keeps_its_own_outcome(project, command):
    run = project.stagebuild(f"--stagebuild-install-cmd={command}", "--stagebuild-build-cmd=ls done")
    code = 3 if command.endswith("3") else 0
    assert run.outcomes()["install"] == ("FAILED" if code else "ran")
    assert run.outcomes()["build"] == ("skipped" if code else "ran")
    assert "exit 3" in run.row("install") or not code


def test_what_a_command_leaves_running_is_ended_before_the_commit_and_named(project):
    daemons = "setsid nohup sleep 7001 >/dev/null 2>&1 & (trap '' TERM HUP; while :; do sleep 7002; done) & echo on"
    run = project.stagebuild(
        f"--stagebuild-install-cmd={daemons}", "--stagebuild-build-cmd=true", "pyproject.toml::build"
    )
    assert run.code == 0
    assert run.outcomes() == {"install": "ran", "build": "ran"}
    [note] = [line for line in run.summary if "left running" in line]
    assert note.startswith("note             install left running, ended: ")
    assert "sleep 7001" in note
    assert "sleep 7002" in note
    assert "[" not in note  # nothing of ours, caught while it ends


@on_each_engine
def test_output_is_intact_in_the_log_whatever_its_bytes(cheap):
    data = bytes(range(256)) * 40 + b"\x1b[31mred\x1b[0m\0\xff\xfe no newline at the end"
    cheap.write({"data.bin": data})
    run = cheap.stagebuild("-v", "--stagebuild-install-cmd=cat data.bin")
    assert run.code == 0
    assert log_of(cheap) == data


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("printf 'no newline'; exit 1", "no newline"),
        ("exit 1", ""),
        ("head -c 100000 /dev/zero | tr '\\0' x; echo; echo last; exit 1", "last"),
        ("printf 'a\\0b\\033[31m\\377c\\n'; exit 1", "ab\N{REPLACEMENT CHARACTER}c"),
    ],
)
def test_the_end_of_a_failed_stages_output_is_shown(cheap, command, shown):
    run = cheap.stagebuild(f"--stagebuild-install-cmd={command}", "--stagebuild-build-cmd=echo never")
    assert run.code == 1
    failures = run.output.partition(" FAILURES ")[2].partition("= stagebuild =")[0].splitlines()[1:-1]
    if shown:
        assert failures[-2:] == ["", shown] or failures[-1] == shown
    else:
        assert failures[-1] == "log: .stagebuild/logs/install.log"
    assert max(map(len, failures)) <= 400
    assert "\x1b" not in run.output


GIBIBYTE = 1 << 30


@pytest.mark.slow
@on_each_engine
def test_a_gibibyte_of_output_is_whole_in_the_log_in_bounded_memory(cheap):
    cheap.write(
        {
            "peak.py": "import re\n"
            "def pytest_unconfigure(config):\n"
            "    print('peak', re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], 'kB')\n"
        }
    )
    command = f"yes 'a line of output' | head -c {GIBIBYTE}"
    run = cheap.stagebuild(
        "-p",
        "peak",
        f"--stagebuild-install-cmd={command}",
        "--stagebuild-secret=TOKEN",
        env={"PYTHONPATH": ".", "TOKEN": "a secret to look for"},
    )
    assert run.code == 0
    assert (cheap.root / ".stagebuild" / "logs" / "install.log").stat().st_size == GIBIBYTE
    peak = int(re.search(r"peak (\d+) kB", run.output)[1])
    assert peak < 150 * 1024
