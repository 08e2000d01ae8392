"""Records that are known by their heads, and one process at a time for each key."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_stagebuild.checkpoint import Record, key_of
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.inputs import Used
from pytest_stagebuild.source.manifest import Changes, Entry, Manifest
from pytest_stagebuild.state import SingleFlight, StateFolder

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


RECORD = Record(
    uuid="3f2c1a9e-0000-4000-8000-000000000000",
    stage="install",
    key=key_of({"command": "make"}),
    components={"command": "make"},
    parent="sha256:base",
    layers=("sha256:layer",),
    created=1.5,
    inputs=Used(frozenset({"a"}), frozenset({""})),
    manifest=Manifest({"a": Entry("file", "0" * 64), "b": Entry("file", "1" * 64)}),
    version="1.0",
)


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    folder = StateFolder.of(tmp_path)
    folder.keep_record(RECORD)
    return folder


def test_a_record_is_what_was_kept(state: StateFolder) -> None:
    record = state.record(RECORD.uuid)
    assert record is not None
    assert record.to_bytes() == RECORD.to_bytes()


def test_a_tree_in_which_nothing_has_changed_is_known_by_the_head(
    state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = state.record(RECORD.uuid)
    assert record is not None
    monkeypatch.setattr(Record, "from_bytes", None)  # nothing more is read
    assert record.changes(RECORD.manifest) == Changes()


def test_what_has_changed_is_said_by_the_whole_record(state: StateFolder) -> None:
    record = state.record(RECORD.uuid)
    assert record is not None
    edited, unused = (Manifest({**RECORD.manifest.entries, path: Entry("file", "2" * 64)}) for path in ("a", "b"))
    assert record.changes(edited) == Changes(changed=("a",))
    assert record.changes(unused) == Changes()


def damaged_head(folder: Path) -> None:
    (head,) = folder.glob("*.head")
    head.write_bytes(head.read_bytes()[:-2])


def no_record(folder: Path) -> None:
    for record in folder.glob("*.json"):
        record.unlink()


@pytest.mark.parametrize("damage", [damaged_head, lambda folder: next(folder.glob("*.head")).unlink()])
def test_without_its_head_a_record_is_read_as_a_whole(state: StateFolder, damage: Callable[[Path], None]) -> None:
    damage(state.path / "records")
    record = state.record(RECORD.uuid)
    assert record == RECORD


def test_a_head_without_its_record_says_nothing(state: StateFolder) -> None:
    no_record(state.path / "records")
    assert state.record(RECORD.uuid) is None


def test_the_head_of_another_record_is_not_believed(state: StateFolder) -> None:
    path = state.path / "records" / f"{RECORD.uuid}.json"
    other = replace(RECORD, manifest=Manifest({}))
    path.write_bytes(other.to_bytes())
    record = state.record(RECORD.uuid)
    assert record == other


def test_a_record_that_is_damaged_between_two_looks_is_an_error_that_says_so(state: StateFolder) -> None:
    record = state.record(RECORD.uuid)
    assert record is not None
    no_record(state.path / "records")
    with pytest.raises(StagebuildError, match=r"is damaged .*: remove it and run again"):
        record.changes(Manifest({}))


def test_a_record_that_is_dropped_leaves_nothing(state: StateFolder) -> None:
    state.drop_record(RECORD.uuid)
    assert list((state.path / "records").iterdir()) == []
