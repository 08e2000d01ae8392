"""One process at a time for each key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.state import SingleFlight

HOLD = """\
import sys
from pathlib import Path
from pytest_stagebuild.state import SingleFlight

with SingleFlight(Path(sys.argv[1])).hold("key", "install of tally", print):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the key until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def in_words(holder: subprocess.Popen[str]) -> str:
    return rf"process {holder.pid}, which has been at install of tally since \d\d:\d\d:\d\d"


def test_who_comes_second_waits_and_is_told_once_for_whom(tmp_path, holder):
    told: list[str] = []

    def waiting(whom: str) -> None:
        told.append(whom)
        holder.stdin.close()

    with SingleFlight(tmp_path).hold("key", "build of tally", waiting):
        assert holder.wait(10) == 0
    assert len(told) == 1
    assert re.fullmatch(in_words(holder), told[0])


def test_who_is_killed_holds_nothing_any_more(tmp_path, holder):
    holder.kill()
    holder.wait()
    told: list[str] = []
    with SingleFlight(tmp_path).hold("key", "build of tally", told.append):
        assert told == []


def test_another_key_is_free(tmp_path, holder):
    told: list[str] = []
    with SingleFlight(tmp_path).hold("another", "build of tally", told.append):
        assert told == []


def test_who_has_waited_too_long_is_told_what_to_do(tmp_path, holder):
    with (
        pytest.raises(StagebuildError, match=f"waited .* for {in_words(holder)}: end that process and run again"),
        SingleFlight(tmp_path, wait_limit=0.1).hold("key", "build of tally", lambda whom: None),
    ):
        pass


@pytest.mark.parametrize("said", [None, "", "{", "[]", '{"pid": "x"}', "\0"])
def test_a_holder_that_left_no_whole_word_about_itself_is_another_process(tmp_path, holder, said):
    [about] = tmp_path.glob("*.holder")
    about.unlink() if said is None else about.write_text(said)
    with (
        pytest.raises(StagebuildError, match="for another process: end that process"),
        SingleFlight(tmp_path, wait_limit=0.1).hold("key", "build of tally", lambda whom: None),
    ):
        pass


def test_a_failure_of_who_holds_the_key_frees_it(tmp_path):
    with pytest.raises(ZeroDivisionError), SingleFlight(tmp_path).hold("key", "install of tally", print):
        raise ZeroDivisionError
    told: list[str] = []
    with SingleFlight(tmp_path).hold("key", f"build of {os.getpid()}", told.append):
        assert told == []
