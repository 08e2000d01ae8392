"""What the tests leave comes out, whatever became of them; nothing else does, and nothing gets in by it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from grounds import on_each_engine


@pytest.fixture
def cheap(new_project):
    return new_project(install_cmd="true", build_cmd="true", test_cmd="true")


def artifacts(project) -> dict[str, str]:
    """The files below ``.stagebuild/artifacts`` with their text."""
    folder = project.root / ".stagebuild" / "artifacts"
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if not path.is_dir()}


WRITE = "mkdir -p reports/deep /tmp/out; echo c > cov.xml; echo r > reports/deep/r.txt; echo t > /tmp/out/t.txt"


@on_each_engine
@pytest.mark.parametrize(
    ("end", "outcome"), [("", "ran"), ("; exit 3", "FAILED"), ("; sleep 300", "FAILED"), ("; kill -9 $$", "FAILED")]
)
def test_artifacts_come_out_whatever_became_of_the_tests(cheap, end, outcome):
    run = cheap.stagebuild(
        f"--stagebuild-test-cmd={WRITE}{end}",
        *(["--stagebuild-timeout=2"] if "sleep" in end else []),
        "--stagebuild-artifact=cov.xml",
        "--stagebuild-artifact=reports/deep",
        "--stagebuild-artifact=/tmp/out",
    )
    assert run.outcomes()["test"] == outcome
    assert artifacts(cheap) == {"cov.xml": "c\n", "reports/deep/r.txt": "r\n", "tmp/out/t.txt": "t\n"}
    assert not [line for line in run.summary if line.startswith("note")]


def test_artifacts_belong_to_whoever_runs_pytest_and_keep_their_executable_bit(project):
    run = project.stagebuild(
        "--stagebuild-test-cmd=umask 077; mkdir out; echo a > out/plain; cp out/plain out/tool; chmod 4711 out/tool",
        "--stagebuild-artifact=out",
    )
    assert run.code == 0
    folder = project.root / ".stagebuild" / "artifacts" / "out"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "plain", folder / "tool")}
    assert modes == {"out": 0o755, "plain": 0o644, "tool": 0o755}
    assert {path.stat().st_uid for path in (folder, folder / "plain")} == {os.getuid()}


@on_each_engine
def test_an_artifact_that_is_missing_is_noted_and_changes_nothing(cheap):
    run = cheap.stagebuild("--stagebuild-artifact=nothing.xml", "--stagebuild-artifact=pyproject.toml/below")
    assert run.code == 0
    assert "note             artifact nothing.xml was not there after the tests" in run.summary
    assert "note             artifact pyproject.toml/below was not there after the tests" in run.summary


def test_artifacts_of_an_earlier_run_are_not_taken_for_those_of_this_one(cheap):
    assert cheap.stagebuild(f"--stagebuild-test-cmd={WRITE}", "--stagebuild-artifact=cov.xml").code == 0
    assert artifacts(cheap) == {"cov.xml": "c\n"}
    run = cheap.stagebuild("--stagebuild-test-cmd=exit 1", "--stagebuild-artifact=cov.xml")
    assert run.code == 1
    assert artifacts(cheap) == {}

    cheap.stagebuild(f"--stagebuild-test-cmd={WRITE}", "--stagebuild-artifact=cov.xml")
    assert cheap.stagebuild("--stagebuild-build-cmd=exit 1").outcomes()["test"] == "skipped"
    assert artifacts(cheap) == {}


HOSTILE = r"""
import contextlib, os, socket, sys

victim = sys.argv[1]
os.makedirs("out/folder")
open("out/good", "w").write("good")
os.symlink(victim, "out/link-out")
os.symlink("/etc/passwd", "out/link-absolute")
os.symlink("../../..", "out/link-up")
os.symlink("good", "out/link-inside")
os.link("out/good", "out/hard")
os.mkfifo("out/fifo")
socket.socket(socket.AF_UNIX).bind("out/socket")
open("out/back\\slash", "w").write("b")
open("out/new\nline\x1b[31m", "w").write("n")
open(b"out/not-utf-8-\xff", "w").write("u")
open("out/..hidden", "w").write("h")
with open("out/hole", "wb") as file:
    file.truncate(1 << 20)
with contextlib.suppress(PermissionError):  # not every root may do it
    os.mknod("out/device", 0o20666, os.makedev(1, 3))
"""


def test_what_is_neither_file_nor_folder_stays_behind_and_is_named(project, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    project.write({"hostile.py": HOSTILE})
    run = project.stagebuild(
        f"--stagebuild-test-cmd=python3 hostile.py {victim}",
        "--stagebuild-artifact=out",
        "--stagebuild-artifact=out/fifo",
    )
    assert run.code == 0, run.output
    folder = project.root / ".stagebuild" / "artifacts" / "out"
    names = {path.name for path in folder.iterdir()}
    # Whichever of two hard links comes first is the file.
    assert names - {"good", "hard"} == {
        "folder",
        "back\\slash",
        "new\nline\x1b[31m",
        "not-utf-8-\udcff",
        "..hidden",
        "hole",
    }
    assert len(names & {"good", "hard"}) == 1
    assert (folder / "hole").stat().st_size == 1 << 20
    assert not [path for path in folder.rglob("*") if path.is_symlink() or not (path.is_dir() or path.is_file())]
    assert list(victim.iterdir()) == []
    notes = "\n".join(line for line in run.summary if line.startswith("note"))
    for name in ("link-out", "link-absolute", "link-up", "link-inside"):
        assert f"'out/{name}' was left out: it is a symbolic link" in notes
    assert "'out/fifo' was left out: it is a FIFO" in notes
    assert "'fifo' was left out: it is a FIFO" in notes
    assert "it is a hard link" in notes
    assert "\x1b" not in run.output


def test_links_that_the_user_made_on_this_side_are_not_written_through(cheap, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    state = cheap.root / ".stagebuild"
    state.mkdir()
    (state / "artifacts").symlink_to(outside)
    run = cheap.stagebuild(f"--stagebuild-test-cmd={WRITE}; exit 7", "--stagebuild-artifact=cov.xml")
    assert "exit 7" in run.row("test")
    assert {path.name for path in outside.iterdir()} == {"mine"}
    assert "artifacts is a symbolic link" in "".join(run.summary)


@on_each_engine
def test_the_list_of_failed_tests_that_is_brought_out_is_not_trusted_either(cheap):
    """It is read from the container after the tests, which may have put anything there."""
    below = ".pytest_cache/v/cache"
    for made in (
        "ln -s /etc/passwd $0/lastfailed",
        "mkdir $0/lastfailed",
        "mkfifo $0/lastfailed",
        "echo '[' > $0/lastfailed",
    ):
        command = made.replace("$0", below)
        run = cheap.stagebuild(f"--stagebuild-test-cmd=mkdir -p {below}; {command}")
        assert run.code == 0, run.output
    kept: Path = cheap.root / ".stagebuild" / "last-failed.json"
    assert not kept.exists() or "root:" not in kept.read_text()
