"""Reading a tree again: what has not changed is not read, and what has is never missed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.source import seen as seen_module
from pytest_stagebuild.source import tree as tree_module
from pytest_stagebuild.source.seen import Seen

SECOND = 1_000_000_000


def kept(tree: SourceTree) -> Seen:
    """What the next run knows of a tree."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "tree")
        tree.seen.save(file)
        seen = Seen.load(file)
    assert seen == tree.seen
    return seen


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

    second = SourceTree.read(tree, known=kept(first))

    assert opened == [b"b"]
    assert second == SourceTree.read(tree) != first
    opened.clear()
    assert SourceTree.read(tree, known=kept(second)) == second
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

    again = SourceTree.read(tree, known=kept(first))

    assert again == SourceTree.read(tree)
    assert again.manifest != first.manifest


@pytest.mark.parametrize(("age", "seen"), [(1, True), (3, False)])
def test_a_file_younger_than_a_coarse_clock_can_tell_is_read_again(
    tree: Path, write, monkeypatch: pytest.MonkeyPatch, *, age: int, seen: bool
) -> None:
    """The older file shows what the rule is for: on such a clock, an edit need not show in what a file is."""
    monkeypatch.setattr(time, "time_ns", lambda: 1000 * SECOND)
    changed = (1000 - age) * SECOND
    stamp = seen_module._STAMP.pack(1, 2, 3, 4, changed, changed)
    monkeypatch.setattr(tree_module, "take_stamps", lambda _, paths: stamp * len(paths))
    path = write("file", b"old")
    first = SourceTree.read(tree)
    in_place(path)

    assert (SourceTree.read(tree, known=kept(first)) != first) == seen


@pytest.mark.usefixtures("later")
def test_the_tree_as_it_was_is_there_without_reading_a_file(tree: Path, write, opened: list[bytes]) -> None:
    write("file", b"content")
    write("run", b"#!/bin/sh").chmod(0o755)
    write(b"not utf-8 \xff".decode("utf-8", "surrogateescape"), b"old")
    (tree / "link").symlink_to("file")
    first = SourceTree.read(tree)
    opened.clear()

    again = SourceTree.read(tree, known=kept(first))

    assert opened == []
    assert again.manifest.entries == first.manifest.entries
    assert (again.how, again.manifest.count, again.manifest.digest) == (first.how, 4, first.manifest.digest)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("edit", [lambda tree: (tree / "new").touch(), lambda tree: (tree / "b").rename(tree / "c")])
def test_a_file_of_another_name_is_seen(tree: Path, write, edit: Callable[[Path], None]) -> None:
    for name in ("a", "b"):
        write(name, b"same")
    first = SourceTree.read(tree)
    edit(tree)

    again = SourceTree.read(tree, known=kept(first))

    assert again == SourceTree.read(tree) != first


def test_a_file_that_vanishes_while_the_tree_is_looked_at_is_not_taken_for_what_it_was(
    tree: Path, write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("file", b"old")
    write("other")
    really = tree_module.take_stamps

    def gone_for_a_moment(folders: object, paths: list[bytes]) -> bytes:
        (tree / "file").rename(tree.parent / "file")
        taken = really(folders, paths)  # type: ignore[arg-type]
        (tree.parent / "file").rename(tree / "file")
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(tree_module, "take_stamps", gone_for_a_moment)
        first = SourceTree.read(tree)
        (tree / "file").write_bytes(b"new")
        assert SourceTree.read(tree, known=kept(first)) == SourceTree.read(tree) != first


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: data[:40],
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: b"pytest-stagebuild tree 9" + data[24:],
    ],
)
def test_what_is_damaged_is_not_known(tree: Path, write, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    write("file", b"old")
    file = tmp_path / "seen"
    SourceTree.read(tree).seen.save(file)
    assert Seen.load(file) is not None
    file.write_bytes(damage(file.read_bytes()))

    assert Seen.load(file) is None


def test_where_nothing_was_kept_nothing_is_known(tmp_path: Path) -> None:
    assert Seen.load(tmp_path / "seen") is None
    assert Seen.load(tmp_path) is None


@pytest.mark.usefixtures("later")
def test_the_size_of_all_files_is_known(tree: Path, write) -> None:
    write("a", b"12345")
    write("deep/b", b"123")
    (tree / "link").symlink_to("a")
    assert SourceTree.read(tree).seen.known_size == 5 + 3 + len("a")


def test_what_was_written_just_now_counts_for_nothing(tree: Path, write) -> None:
    write("a", b"12345")
    assert SourceTree.read(tree).seen.known_size == 0
