"""The lockfile: whatever happens to it, no entry of anybody else is lost and no run ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.lockfile import Index, Lockfile

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


def make_checkpoint(uuid: str = "11111111-2222", engine: str = "engine-a", created: float = 1.0) -> Checkpoint:
    return Checkpoint(
        uuid, "install", "key", {"stage": "install"}, "base", engine, "project", "sha256:i", created, 2.0, 3
    )


CHECKPOINTS = st.builds(
    Checkpoint,
    uuid=TEXT,
    stage=st.sampled_from(["install", "build"]),
    key=TEXT,
    components=st.dictionaries(TEXT, TEXT, max_size=3),
    parent=TEXT,
    engine=TEXT,
    project=TEXT,
    image=TEXT,
    created=st.floats(0, 1e10),
    used=st.floats(0, 1e10),
    size=st.integers(0, 2**60),
)


@given(st.lists(CHECKPOINTS, max_size=4), st.dictionaries(TEXT, st.dictionaries(TEXT, TEXT, max_size=2), max_size=2))
def test_what_is_written_is_read_back(checkpoints: list[Checkpoint], bases: dict[str, dict[str, str]]) -> None:
    index = Index({one.uuid: one for one in checkpoints}, bases)
    assert Index.from_bytes(index.to_bytes()) == index


@given(JSON)
def test_json_that_is_no_lockfile_is_refused_with_a_value_error(value: object) -> None:
    try:
        index = Index.from_bytes(json.dumps(value).encode())
    except ValueError:
        return
    assert index == Index()


def test_an_update_keeps_what_another_process_wrote_in_between(tmp_path: Path) -> None:
    ours, theirs = Lockfile(tmp_path / "lock"), Lockfile(tmp_path / "lock")
    ours.read()
    theirs.update(lambda index: index.with_checkpoint(make_checkpoint("theirs")))
    ours.update(lambda index: index.with_checkpoint(make_checkpoint("ours")))
    assert set(theirs.read().checkpoints) == {"theirs", "ours"}


def _add_many(path: str, name: str) -> None:
    lockfile = Lockfile(Path(path))
    for number in range(20):
        lockfile.update(lambda index, uuid=f"{name}-{number}": index.with_checkpoint(make_checkpoint(uuid)))


def test_no_entry_is_lost_when_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_add_many, args=(str(tmp_path / "lock"), name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Lockfile(tmp_path / "lock").read().checkpoints) == 60


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "is corrupt"),
        (b"", "is corrupt"),
        (b'{"schema": 1, "checkpoints": {"x": {}}, "bases": {}}', "is corrupt"),
        (b"<<<<<<< ours\n{}\n=======\n{}\n>>>>>>> theirs\n", "holds merge-conflict marks"),
        (b"\xff\xfe\x00", "is corrupt"),
    ],
)
def test_a_file_that_cannot_be_understood_is_set_aside_with_a_warning(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    lockfile = Lockfile(path)
    assert lockfile.read() == Index()
    (aside,) = tmp_path.glob("lock.corrupt-*")
    assert aside.read_bytes() == content
    assert len(lockfile.warnings) == 1
    assert said in lockfile.warnings[0]


def test_a_newer_schema_is_left_alone_and_this_run_remembers_what_it_made(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    newer = b'{"schema": 99, "something": "else"}'
    path.write_bytes(newer)
    lockfile = Lockfile(path)
    lockfile.update(lambda index: index.with_checkpoint(make_checkpoint("mine")))
    assert set(lockfile.read().checkpoints) == {"mine"}
    assert path.read_bytes() == newer
    assert "newer than this version's" in lockfile.warnings[0]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Lockfile(tmp_path / "link").update(lambda index: index.with_checkpoint(make_checkpoint()))
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real").read_bytes())["checkpoints"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from pytest_stagebuild.lockfile import Lockfile
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
Lockfile(Path(sys.argv[1])).update(lambda index: index)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_and_nothing_else_is(tmp_path: Path) -> None:
    kept = {".lock.mine", ".other.x.tmp", "lock.tmp", "other"}
    for name in kept:
        (tmp_path / name).touch()
    Lockfile(tmp_path / "lock").update(lambda index: index.with_checkpoint(make_checkpoint("before")))
    usual = {file.name for file in tmp_path.iterdir()}
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path / "lock")], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert len({file.name for file in tmp_path.iterdir()} - usual) == 1

    Lockfile(tmp_path / "lock").update(lambda index: index.with_checkpoint(make_checkpoint("after")))

    assert {file.name for file in tmp_path.iterdir()} == usual
    assert kept < usual
    assert set(Lockfile(tmp_path / "lock").read().checkpoints) == {"before", "after"}


_READ_ONLY = """
import os, sys
from pathlib import Path
import filelock
from pytest_stagebuild.lockfile import Lockfile
os.setgid(65534); os.setuid(65534)
lockfile = Lockfile(Path(sys.argv[1]))
lockfile.update(lambda index: index.with_base("engine", "identity", "id"))
print(lockfile.read().bases["engine"]["identity"], *lockfile.warnings, sep="|")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become a user who may not write")
def test_a_folder_that_cannot_be_written_is_a_warning_and_the_run_goes_on(shared_tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _READ_ONLY, str(shared_tmp_path / "lock")],
        capture_output=True,
        text=True,
        check=True,
    )
    remembered, warning = done.stdout.strip().split("|")
    assert remembered == "id"
    assert "cannot be written (Permission denied)" in warning


def test_entries_are_found_by_engine_and_key_newest_first() -> None:
    old, new = make_checkpoint("old", created=1.0), make_checkpoint("new", created=2.0)
    other = make_checkpoint("other", engine="engine-b", created=3.0)
    index = Index({one.uuid: one for one in (old, new, other)})
    assert [one.uuid for one in index.under("engine-a", key="key")] == ["new", "old"]
    assert index.under("engine-a", key="another") == []


def test_what_is_no_file_is_left_alone_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    lockfile = Lockfile(tmp_path / "lock")
    assert lockfile.read() == Index()
    assert "cannot be read (it is no file)" in lockfile.warnings[0]
