"""The watcher on this machine's own kernel: what it sees, what it does not, and when it does not vouch for it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pytest_stagebuild.source import watcher

FILES = ("top", "d/one", "d/two", "e/f/deep", b"e/\xff".decode("utf-8", "surrogateescape"))


class Watched:
    """A source and a watcher over it; ``report`` is known when the ``with`` block has ended."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "src"
        self.report: dict[str, Any] = {}
        for path in FILES:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text("#!/bin/sh\n")
        (self.root / "made").mkdir()
        (self.root / "made" / "product").touch()

    @contextmanager
    def watching(
        self, *, python: str = sys.executable, ways: tuple[str, ...] = watcher.WAYS
    ) -> Iterator[subprocess.Popen[bytes]]:
        probes = self.folder / "probes"
        probes.mkdir()
        for way in ways:
            (probes / way).write_text("#!/bin/sh\n")
            (probes / way).chmod(0o755)
        (self.folder / "sent").write_bytes(b"".join(os.fsencode(path) + b"\0" for path in FILES))
        arguments = [self.root, self.folder / "sent", probes, self.folder / "absent"]
        with subprocess.Popen([python, "-I", "-S", watcher.__file__, *arguments], stdout=subprocess.PIPE) as process:
            assert process.stdout
            try:
                line = process.stdout.readline()
                yield process
            finally:
                (self.folder / "sent").unlink()
            self.report = json.loads(process.stdout.readline() if line == b"ready\n" else line)
            if "folders" in self.report:
                assert self.report["folders"][0] == ""  # counts in any case
                del self.report["folders"][0]
        assert process.returncode == 0

    def sh(self, command: str) -> None:
        subprocess.run(["/bin/sh", "-c", command], cwd=self.root, check=True)

    def sees(self, command: str) -> tuple[list[str], list[str]]:
        with self.watching():
            self.sh(command)
        return self.report["files"], self.report["folders"]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


@pytest.mark.parametrize(
    ("command", "files", "folders"),
    [
        ("true", [], []),
        ("cat d/one", ["d/one"], ["d"]),
        ("cp d/one made/copy", ["d/one"], ["d"]),
        ("sh ./d/one", ["d/one"], ["d"]),
        ("chmod 600 d/one", ["d/one"], ["d"]),
        ("touch d/one", ["d/one"], ["d"]),
        ("echo >>top", ["top"], []),
        ("truncate -s 3 d/two", ["d/two"], ["d"]),
        ("rm d/two", ["d/two"], ["d"]),
        ("mv d/two made/two", ["d/two"], ["d"]),
        ("mv d/two d/one", ["d/one", "d/two"], ["d"]),
        ("ln d/one made/hard", ["d/one"], []),
        ("ln d/one ../hard; cat ../hard", ["d/one"], []),
        ("ls d", [], ["d"]),
        ("ls e", [], ["e"]),
        ("mv d z; cat z/one; mv z d", ["d/one"], ["d"]),
        ("ln -s $PWD/d ../other; cat ../other/two", ["d/two"], ["d"]),
        ("mkdir e/new; echo >e/new/file", [], ["e"]),
        ("echo >e/f/new", [], ["e/f"]),
        ("cat made/product", [], []),
        ("cat e/\udcff", ["e/\udcff"], ["e"]),
        ("rm -r d; mkdir d; echo >d/one", ["d/one", "d/two"], ["d"]),
        ("test -e d/one; stat top; cd d", [], []),
    ],
)
def test_what_a_command_uses_is_seen_and_nothing_else(
    watched: Watched, command: str, files: list[str], folders: list[str]
) -> None:
    assert watched.sees(command) == (files, folders)


@pytest.mark.parametrize(
    "read",
    [
        "import mmap; mmap.mmap(file, 0, prot=mmap.PROT_READ)[:]",
        "os.sendfile(out, file, 0, 9)",
        "os.copy_file_range(file, out, 9)  # in one file system only",
        "os.pread(file, 9, 0)",
    ],
)
@pytest.mark.parametrize("flags", [0, os.O_NOATIME, os.O_PATH])
def test_however_a_file_is_read(watched: Watched, read: str, flags: int) -> None:
    # A descriptor that is only a path gives nothing until it is opened through /proc.
    again = "file = os.open(f'/proc/self/fd/{file}', os.O_RDONLY)" if flags == os.O_PATH else ""
    opened = f"file, out = os.open('d/one', os.O_RDONLY | {flags}), os.open('../out', os.O_RDWR | os.O_CREAT)"
    script = f"import os\n{opened}\n{again}\n{read}"
    with watched.watching():
        subprocess.run([sys.executable, "-I", "-S", "-c", script], cwd=watched.root, check=True)
    assert watched.report == {"files": ["d/one"], "folders": ["d"]}


def test_what_happens_up_to_the_end_is_seen(watched: Watched) -> None:
    with watched.watching():
        for number in range(3000):
            (watched.root / "d" / f"{number}").touch()
        (watched.root / "e/f/deep").read_bytes()
    assert watched.report == {"files": ["e/f/deep"], "folders": ["d", "e/f"]}


def test_a_folder_that_an_earlier_stage_removed_is_no_obstacle(watched: Watched) -> None:
    shutil.rmtree(watched.root / "d")
    (watched.root / "d").symlink_to("e")
    assert watched.sees("cat d/f/deep") == (["d/one", "d/two", "e/f/deep"], ["e/f"])


def pythons() -> list[str]:
    """The Pythons of this machine, one of each version."""
    names = [f"python3.{minor}" for minor in range(6, 15)]
    places = [*os.get_exec_path(), *map(str, Path.home().glob(".pyenv/versions/*/bin"))]
    found = {name: shutil.which(name, path=place) for name in names for place in places if "shims" not in place}
    return [sys.executable, *filter(None, found.values())]


@pytest.mark.parametrize("python", pythons())
def test_on_any_python(watched: Watched, python: str) -> None:
    with watched.watching(python=python):
        watched.sh("cat d/one")
    assert watched.report == {"files": ["d/one"], "folders": ["d"]}


def test_without_its_probes_it_vouches_for_nothing(watched: Watched) -> None:
    with watched.watching(ways=watcher.WAYS[1:]):
        watched.sh("cat d/one")
    assert "No such file" in str(watched.report["problem"])


def blind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[pytest.MonkeyPatch], None]) -> object:
    """What it says of a kernel that shows it less; the command uses nothing."""
    change(monkeypatch)
    watched = Watched(tmp_path)
    for way in watcher.WAYS:
        (tmp_path / "probes").mkdir(exist_ok=True)
        (tmp_path / "probes" / way).write_text("#!/bin/sh\n")
        (tmp_path / "probes" / way).chmod(0o755)
    monkeypatch.setattr(watcher, "LAST_EVENT", 0.3)
    monkeypatch.setattr(watcher.os, "write", lambda *_: 0)
    try:
        return watcher.watch(
            os.fsencode(watched.root), str(tmp_path / "gone"), [b"top"], [os.fsencode(tmp_path / "probes")]
        )
    except watcher.Unseen as problem:
        return str(problem)


@pytest.mark.parametrize(
    ("missing", "unseen"),
    [
        (watcher.OPENED, "a probe file that was opened was not seen"),
        (watcher.ATTRIBUTES | watcher.MOVED_FROM | watcher.MOVED_TO, ""),
    ],
)
def test_a_kernel_that_does_not_tell_of_something_fails_the_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: int, unseen: str
) -> None:
    # What else changes a file changes its ctime too, and is seen by that.
    said = blind(monkeypatch, tmp_path, lambda patch: patch.setattr(watcher, "WATCHED", watcher.WATCHED & ~missing))
    assert unseen in said if unseen else said == {"files": [], "folders": [""]}


def test_a_file_system_that_keeps_no_time_of_change_fails_the_proof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def without_times(patch: pytest.MonkeyPatch) -> None:
        judge = watcher.Tree.judge
        patch.setattr(watcher.Tree, "judge", lambda tree, start: judge(tree, start + 10**18))

    assert "linked was not seen" in str(blind(monkeypatch, tmp_path, without_times))


def test_a_clock_that_is_set_back_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    offsets = iter((100.0, 99.0))
    said = blind(monkeypatch, tmp_path, lambda patch: patch.setattr(watcher, "clock_offset", lambda: next(offsets)))
    assert said == "the clock was set back"


def test_more_than_the_kernel_keeps_is_a_problem(watched: Watched) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with watched.watching() as process:
        process.send_signal(signal.SIGSTOP)
        for _ in range(most // 2 + 1):
            for path in ("d/one", "d/two"):
                os.close(os.open(watched.root / path, os.O_RDONLY))
        process.send_signal(signal.SIGCONT)
    assert "max_queued_events" in str(watched.report["problem"])
