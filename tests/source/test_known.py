"""Reading a tree again: what has not changed is not read, and what has is never missed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.source import tree as tree_module

SECOND = 1_000_000_000


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file was written long ago."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * SECOND)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The names of files that are opened, as they are."""
    names: list[bytes] = []
    really = os.open

    def opening(name: bytes, flags: int, *arguments: object, **options: object) -> int:
        if isinstance(name, bytes) and not flags & os.O_DIRECTORY:
            names.append(name)
        return really(name, flags, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opening)
    return names


@pytest.mark.usefixtures("later")
def test_only_what_has_changed_is_read_again(tree: Path, write, opened: list[bytes]) -> None:
    for name in ("a", "deep/b", "c"):
        write(name, b"old")
    first = SourceTree.read(tree)
    write("deep/b", b"longer")
    opened.clear()

    second = SourceTree.read(tree, known=first)

    assert opened == [b"b"]
    assert second == SourceTree.read(tree) != first
    opened.clear()
    assert SourceTree.read(tree, known=second) == second
    assert opened == []


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"new")


def another_file(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"new")
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.rename(path)


def link(path: Path) -> None:
    path.unlink()
    path.symlink_to("old")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_bytes(b"old")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    "edit", [in_place, another_file, lambda path: path.chmod(0o755), Path.unlink, link, folder, fifo]
)
def test_an_edit_that_keeps_size_and_time_is_seen(tree: Path, write, edit: Callable[[Path], None]) -> None:
    write("other")
    path = write("file", b"old")
    before = path.stat()
    first = SourceTree.read(tree)
    edit(path)
    if os.path.lexists(path):
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)
        while path.lstat().st_ctime_ns == before.st_ctime_ns:  # no kernel's clock is exact
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns), follow_symlinks=False)

    again = SourceTree.read(tree, known=first)

    assert again == SourceTree.read(tree)
    assert again.manifest != first.manifest


@pytest.mark.parametrize(("age", "seen"), [(1, True), (3, False)])
def test_a_file_younger_than_a_coarse_clock_can_tell_is_read_again(
    tree: Path, write, monkeypatch: pytest.MonkeyPatch, *, age: int, seen: bool
) -> None:
    """The older file shows what the rule is for: on such a clock, an edit need not show in what a file is."""
    monkeypatch.setattr(time, "time_ns", lambda: 1000 * SECOND)
    changed = (1000 - age) * SECOND
    monkeypatch.setattr(tree_module, "_stamp", lambda *_: tree_module.Stamp(1, 2, 3, 4, changed, changed))
    path = write("file", b"old")
    first = SourceTree.read(tree)
    in_place(path)

    assert (SourceTree.read(tree, known=first) != first) == seen
