from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source import SourceTree

SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55\n"
SOMEBODY_ELSE = 12345


def files(root: Path) -> set[str]:
    return set(SourceTree.read(root).manifest.entries)


@pytest.fixture
def repository(tree: Path, git, write) -> Path:
    write("tracked.py")
    git(tree, "init", "-q")
    git(tree, "add", ".")
    return tree


def commit(folder: Path, git) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "a")


def test_git_s_view_is_what_is_tracked_and_what_is_new_but_not_what_is_ignored(repository: Path, write) -> None:
    write("new.py")
    write("sub/.gitignore", b"*.log\n!keep.log\n")
    write("sub/a.log")
    write("sub/keep.log")

    source = SourceTree.read(repository)

    assert set(source.manifest.entries) == {"tracked.py", "new.py", "sub/.gitignore", "sub/keep.log"}
    assert source.how == "4 files, by git"
    assert source.notes == ()


def test_a_tracked_file_counts_though_a_rule_ignores_it(repository: Path, git, write) -> None:
    write(".gitignore", b"*.dat\n")
    write("needed.dat")
    write("other.dat")
    git(repository, "add", "-f", "needed.dat")

    assert files(repository) == {".gitignore", "needed.dat", "tracked.py"}


def test_a_tracked_file_that_was_deleted_is_absent(repository: Path, write) -> None:
    write("other.py")
    (repository / "tracked.py").unlink()

    assert files(repository) == {"other.py"}


def test_a_tracked_file_is_absent_where_its_folder_has_become_a_link(repository: Path, git, write) -> None:
    write("folder/secret")
    git(repository, "add", ".")
    (repository / "folder").rename(repository.parent / "elsewhere")
    (repository / "folder").symlink_to(repository.parent / "elsewhere")

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {"tracked.py", "folder"}
    assert source.manifest.entries["folder"].kind == "link"


def test_a_tracked_file_that_has_become_a_folder_gives_way_to_what_is_in_it(repository: Path, write) -> None:
    (repository / "tracked.py").unlink()
    write("tracked.py/inner.py")

    assert files(repository) == {"tracked.py/inner.py"}


def test_unmerged_files_are_sent_once(repository: Path, git, write) -> None:
    commit(repository, git)
    git(repository, "checkout", "-q", "-b", "other")
    write("tracked.py", b"theirs")
    commit(repository, git)
    git(repository, "checkout", "-q", "-")
    write("tracked.py", b"ours")
    commit(repository, git)
    with pytest.raises(subprocess.CalledProcessError):
        git(repository, "merge", "other")

    assert SourceTree.read(repository).how == "1 file, by git"


def test_a_folder_of_a_repository_is_its_own_source(repository: Path, write) -> None:
    write(".gitignore", b"*.log\n")
    write("sub/a.py")
    write("sub/a.log")
    subprocess.run(["git", "-C", repository, "add", "."], check=True)

    source = SourceTree.read(repository / "sub")

    assert source.manifest.entries.keys() == {"a.py"}
    assert source.how.endswith("by git")


def test_a_worktree_is_read_through_git(repository: Path, git, tmp_path: Path) -> None:
    commit(repository, git)
    git(repository, "worktree", "add", "-q", str(tmp_path / "worktree"))
    (tmp_path / "worktree/new.py").write_text("")

    source = SourceTree.read(tmp_path / "worktree")

    assert source.manifest.entries.keys() == {"tracked.py", "new.py"}
    assert source.how == "2 files, by git"


def test_submodules_and_other_repositories_inside_are_read_by_their_own_rules(
    repository: Path, git, write, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "library.py").write_text("")
    (other / ".gitignore").write_text("*.o\n")
    commit(other, git)
    git(repository, "submodule", "--quiet", "add", str(other), "deps/library")
    write("deps/library/object.o")
    write("deps/library/new.py")
    git(repository, "clone", "-q", str(other), "nested")
    write("nested/object.o")

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {
        "tracked.py",
        ".gitmodules",
        *(f"{folder}/{name}" for folder in ("deps/library", "nested") for name in (".gitignore", "library.py")),
        "deps/library/new.py",
    }
    assert source.notes == ()


def test_a_submodule_whose_git_does_not_answer_is_walked_and_named(
    repository: Path, git, write, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "library.py").write_text("")
    commit(other, git)
    git(repository, "submodule", "--quiet", "add", str(other), "library")
    write("library/.git", b"gitdir: /nowhere\n")
    write("library/.gitignore", b"*.o\n")
    write("library/object.o")

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {"tracked.py", ".gitmodules", "library/library.py", "library/.gitignore"}
    assert source.notes == ("walked library/ (not a git repository)",)


def test_a_submodule_that_was_not_checked_out_is_absent(repository: Path, git, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "other")
    git(tmp_path / "other", "commit", "-q", "--allow-empty", "-m", "a")
    git(repository, "submodule", "--quiet", "add", str(tmp_path / "other"), "library")
    git(repository, "submodule", "--quiet", "deinit", "-f", "library")

    assert files(repository) == {"tracked.py", ".gitmodules"}


def test_a_folder_that_an_outer_repository_ignores_is_walked(repository: Path, write) -> None:
    write(".gitignore", b"build/\n")
    write("build/made.py")
    write("build/.gitignore", b"*.o\n")
    write("build/object.o")

    source = SourceTree.read(repository / "build")

    assert source.manifest.entries.keys() == {"made.py", ".gitignore"}
    assert source.how == "2 files, by a walk: git tracks nothing here"


def test_a_folder_without_git_is_walked(tree: Path, write) -> None:
    write("a.py")

    assert SourceTree.read(tree).how == "1 file, by a walk: not a git repository"


def test_without_a_git_command_the_source_is_walked(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert SourceTree.read(repository).how == "1 file, by a walk: no git command"


@pytest.mark.skipif(os.getuid() != 0, reason="gives a repository to somebody else")
def test_a_repository_of_somebody_else_is_walked_and_the_reason_given(repository: Path) -> None:
    os.chown(repository, SOMEBODY_ELSE, SOMEBODY_ELSE)
    os.chown(repository / ".git", SOMEBODY_ELSE, SOMEBODY_ELSE)

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {"tracked.py"}
    assert source.how.startswith("1 file, by a walk: git: dubious ownership in repository at")


def test_the_variables_of_a_git_hook_do_not_point_at_another_repository(
    repository: Path, git, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other/index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "other"))

    assert SourceTree.read(repository).how == "1 file, by git"


def test_a_program_that_the_repository_configures_is_not_run(repository: Path, git, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(program))
    git(repository, "config", "core.hooksPath", str(tmp_path))

    files(repository)

    assert not (tmp_path / "ran").exists()


@pytest.fixture(params=["git", "walk"])
def either(request: pytest.FixtureRequest, tree: Path, git, write) -> Path:
    """A tree that is read through git, and one that is walked."""
    write("a.py")
    if request.param == "git":
        git(tree, "init", "-q")
        git(tree, "add", ".")
    return tree


@pytest.mark.parametrize("folder", ["__pycache__", ".tox", ".nox", "node_modules", ".pytest_cache", ".stagebuild"])
def test_caches_and_the_like_are_left_out_wherever_they_stand(either: Path, write, folder: str) -> None:
    write(f"{folder}/deep/x")
    write(f"src/{folder}/x")

    assert files(either) == {"a.py"}


def test_virtual_environments_and_tagged_caches_are_left_out(either: Path, write) -> None:
    write(".venv/pyvenv.cfg")
    write(".venv/lib/x.py")
    write("src/cache/CACHEDIR.TAG", SIGNATURE)
    write("src/cache/deep/x")
    write("other/CACHEDIR.TAG", b"no signature\n")

    assert files(either) == {"a.py", "other/CACHEDIR.TAG"}


def test_the_root_is_the_source_whatever_it_holds(either: Path, write) -> None:
    write("CACHEDIR.TAG", SIGNATURE)
    write("pyvenv.cfg")

    assert files(either) == {"a.py", "CACHEDIR.TAG", "pyvenv.cfg"}


def test_tracked_files_that_are_left_out_are_named(repository: Path, git, write) -> None:
    write("tests/venv/pyvenv.cfg")
    write("tests/venv/lib/x.py")
    write("web/node_modules/x.js")
    git(repository, "add", ".")

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {"tracked.py"}
    assert source.notes == (
        "left out tests/venv/ with 2 tracked files (pyvenv.cfg)",
        "left out web/node_modules/ with 1 tracked file (node_modules)",
    )


def test_empty_folders_are_no_part_of_the_source(either: Path) -> None:
    (either / "empty/deep").mkdir(parents=True)

    assert files(either) == {"a.py"}


def test_what_is_neither_file_nor_link_is_skipped_and_named(either: Path, write) -> None:
    write(".gitignore", b"ignored*\n")
    os.mkfifo(either / "a-fifo")
    os.mkfifo(either / "ignored-fifo")
    (either / "run/deep").mkdir(parents=True)
    (either / "ignored/deep").mkdir(parents=True)
    os.mkfifo(either / "ignored/deep/fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(either / "run/deep/x.sock"))

        source = SourceTree.read(either)

    assert source.manifest.entries.keys() == {"a.py", ".gitignore"}
    assert source.notes == ("skipped FIFO a-fifo", "skipped socket run/deep/x.sock")


@pytest.mark.skipif(os.getuid() != 0, reason="makes a device")
def test_a_device_is_skipped_and_named(either: Path) -> None:
    os.mknod(either / "null", 0o020666, os.makedev(1, 3))

    assert SourceTree.read(either).notes == ("skipped device null",)


def test_a_tracked_file_that_has_become_a_fifo_is_named(repository: Path, write) -> None:
    write("other.py")
    (repository / "tracked.py").unlink()
    os.mkfifo(repository / "tracked.py")

    source = SourceTree.read(repository)

    assert source.manifest.entries.keys() == {"other.py"}
    assert source.notes == ("skipped FIFO tracked.py",)


def test_many_skipped_files_are_counted(either: Path) -> None:
    for number in range(13):
        os.mkfifo(either / f"fifo{number:02}")

    notes = SourceTree.read(either).notes

    assert notes[9:] == ("skipped FIFO fifo09", "skipped 3 more sockets, FIFOs and devices")


def test_names_that_are_not_utf_8_and_names_with_newlines_are_found(either: Path, write) -> None:
    write(b"caf\xe9.py")
    write("new\nline.py")

    assert files(either) == {"a.py", "caf\udce9.py", "new\nline.py"}


def test_links_are_entries_and_never_followed(either: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (either / "out").symlink_to(tmp_path / "outside")
    (either / "loop").symlink_to("loop")
    (either / "dangling").symlink_to("/nowhere")

    entries = SourceTree.read(either).manifest.entries

    assert {path: entry.kind for path, entry in entries.items()} == {
        "a.py": "file",
        "out": "link",
        "loop": "link",
        "dangling": "link",
    }


@pytest.mark.parametrize("what", ["empty", "ignored", "missing", "file"])
def test_a_source_without_files_is_an_error(tree: Path, write, what: str) -> None:
    root = tree / "project"
    match what:
        case "empty":
            (root / "folder").mkdir(parents=True)
        case "ignored":
            write("project/.gitignore", b"*\n")
        case "file":
            write("project")

    with pytest.raises(SourceError, match=r"project.*\. Give the folder of the project"):
        SourceTree.read(root)
