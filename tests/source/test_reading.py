from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source import Entry, SourceTree
from pytest_stagebuild.source.reading import LARGE, Folders, LargeFile, load

READ_AS_NOBODY = """
import os, sys
from pathlib import Path
import pathspec
from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source import SourceTree
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    print(SourceTree.read(Path(sys.argv[1])).how)
except SourceError as error:
    print(error)
"""


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_entry_is_type_executable_bit_and_content(tree: Path, write) -> None:
    write("file", b"content", 0o664)
    write("script", b"#!/bin/sh", 0o700)
    write("for-others", b"x", 0o611)
    (tree / "link").symlink_to(b"t\xff".decode("utf-8", "surrogateescape"))

    assert SourceTree.read(tree).manifest.entries == {
        "file": Entry("file", sha256(b"content")),
        "script": Entry("executable", sha256(b"#!/bin/sh")),
        "for-others": Entry("file", sha256(b"x")),
        "link": Entry("link", sha256(b"t\xff")),
    }


def test_metadata_that_git_does_not_count_does_not_count(tree: Path, write) -> None:
    path = write("file", b"content", 0o600)
    before = SourceTree.read(tree).manifest
    path.chmod(0o666)
    os.utime(path, (1, 1))

    assert SourceTree.read(tree).manifest.digest == before.digest


def test_a_large_file_is_read_in_pieces_and_has_the_digest_of_the_whole(tree: Path, write) -> None:
    content = os.urandom(1024) * (LARGE // 1024 + 1)
    write("large", content)
    with Folders(tree) as folders:
        handle = folders.enter(b"")
        assert handle is not None
        assert isinstance(load(handle, b"large"), LargeFile)

    assert SourceTree.read(tree).manifest.entries["large"] == Entry("file", sha256(content))


class Editor:
    """Changes a file while it is read, as often as it is told to: at each reading of its first bytes."""

    def __init__(self, path: Path, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.edits = 0
        read = os.read

        def reading(handle: int, count: int) -> bytes:
            content = read(handle, count)
            ours = os.path.samestat(os.fstat(handle), path.stat())
            if ours and os.lseek(handle, 0, os.SEEK_CUR) == len(content) and content and self.edits < times:
                self.edits += 1
                with path.open("ab") as file:
                    file.write(b"%d" % self.edits)
            return content

        monkeypatch.setattr(os, "read", reading)


@pytest.mark.parametrize("size", [10, LARGE + 1])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    tree: Path, write, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("busy", b"x" * size)
    editor = Editor(path, 2, monkeypatch)

    entry = SourceTree.read(tree).manifest.entries["busy"]

    assert editor.edits == 2
    assert entry.digest == sha256(b"x" * size + b"12")


@pytest.mark.parametrize("size", [10, LARGE + 1])
def test_a_file_that_keeps_changing_is_an_error_that_names_it(
    tree: Path, write, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = Editor(write("busy", b"x" * size), 99, monkeypatch)

    with pytest.raises(SourceError, match=r"busy kept changing .* 3 times\. End what writes to it"):
        SourceTree.read(tree)
    assert editor.edits == 3


def test_a_file_that_becomes_a_link_before_it_is_opened_is_not_followed(
    tree: Path, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    path = write("file", b"x")
    look = os.stat

    def swap(name: bytes, *arguments: object, **options: object) -> os.stat_result:
        found = look(name, *arguments, **options)  # type: ignore[arg-type]
        if name == b"file" and stat.S_ISREG(found.st_mode):
            path.unlink()
            path.symlink_to(secret)
        return found

    monkeypatch.setattr(os, "stat", swap)

    assert SourceTree.read(tree).manifest.entries["file"] == Entry("link", sha256(os.fsencode(secret)))


def test_a_folder_that_is_a_link_is_not_entered(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/deep").mkdir(parents=True)
    (tree / "folder").symlink_to(tmp_path / "outside")

    with Folders(tree) as folders:
        assert folders.enter(b"folder") is None
        assert folders.enter(b"folder/deep") is None


def test_no_descriptor_stays_open(tree: Path, write) -> None:
    for number in range(5):
        write("/".join("abcdefgh"[:number]) + f"/f{number}")
    before = len(list(Path("/proc/self/fd").iterdir()))

    SourceTree.read(tree)

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_paths_may_be_longer_than_the_kernel_takes_in_one_piece(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    for _ in range(60):
        Path("d" * 100).mkdir()
        os.chdir("d" * 100)
    Path("file").write_text("")

    assert SourceTree.read(tree).manifest.entries.keys() == {"/".join(["d" * 100] * 60 + ["file"])}


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_read_is_an_error_that_names_it(
    tree: Path, write, git, shared_tmp_path: Path, *, what: str, tracked: bool
) -> None:
    write("a.py")
    secret = write("folder/secret", mode=0o600 if what == "file" else 0o644)
    if tracked:
        git(tree, "init", "-q")
        git(tree, "add", ".")
        subprocess.run(["chown", "-R", "65534", tree], check=True)
        os.chown(secret, 0, 0)
    if what == "folder":
        os.chown(secret.parent, 0, 0)
        secret.parent.chmod(0o700)
    shared = tree.rename(shared_tmp_path / "tree")

    done = subprocess.run(
        [sys.executable, "-c", READ_AS_NOBODY, shared], check=True, capture_output=True, text=True, cwd="/"
    )

    name = "folder/secret" if what == "file" else "folder"
    assert f"{name} in the source: Permission denied" in done.stdout or f"'{name}/': Permission denied" in done.stdout
    assert "Make it readable for the user who runs pytest, or leave it out by a rule in .gitignore" in done.stdout
