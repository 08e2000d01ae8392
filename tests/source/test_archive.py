from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source import Entry, Manifest, SourceTree, Upload
from pytest_stagebuild.source.reading import LARGE

ROOT = Owner(0, 0)
LONG_AGO = 1_000_000_000


def members(upload: Upload) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    archive = io.BytesIO(b"".join(upload))
    with tarfile.open(fileobj=archive, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            yield member, file.read() if file else b""


def as_manifest(root: Path) -> dict[str, Entry]:
    """The files below ``root``, worked out the plain way."""
    found = {}
    for path in root.rglob("*"):
        relative = os.fsencode(path.relative_to(root)).decode("utf-8", "surrogateescape")
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            # Path.readlink would give the target without a slash at its end or an empty component.
            found[relative] = Entry("link", hashlib.sha256(os.readlink(os.fsencode(path))).hexdigest())
        elif stat.S_ISREG(mode):
            kind = "executable" if mode & 0o100 else "file"
            found[relative] = Entry(kind, hashlib.sha256(path.read_bytes()).hexdigest())
    return found


name = st.binary(min_size=1, max_size=4).filter(lambda raw: not set(b"/\0") & set(raw) and not raw.startswith(b"."))
path = st.lists(name | st.just(b"n" * 120), min_size=1, max_size=4).map(b"/".join)
what = st.one_of(
    st.tuples(st.sampled_from([0o644, 0o755, 0o600]), st.binary(max_size=2000)),
    st.tuples(st.just(0), st.binary(min_size=1, max_size=200).filter(lambda raw: b"\0" not in raw)),
)

TRUSTED: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
"""Debian's Python 3.11 has no filters yet."""
plan = st.dictionaries(path, what, min_size=1, max_size=8)


def plant(root: Path, files: dict[bytes, tuple[int, bytes]]) -> None:
    for relative, (mode, content) in files.items():
        target = Path(os.fsdecode(os.fsencode(root) + b"/" + relative))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if mode:
                target.write_bytes(content)
                target.chmod(mode)
            else:
                target.symlink_to(os.fsdecode(content))
        except OSError:
            continue


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan)
@example({b"\x01": (0, b"\x01/")})
def test_extracting_the_archive_gives_the_manifest(files: dict[bytes, tuple[int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "tree"
        root.mkdir()
        plant(root, {b"first": (0o644, b""), **files})
        source = SourceTree.read(root)
        upload = source.upload(None, owner=Owner(os.getuid(), os.getgid()), not_before=0)
        archive = io.BytesIO(b"".join(upload))
        with tarfile.open(fileobj=archive, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            tar.extractall(top, **TRUSTED)

        assert as_manifest(Path(top) / "src") == source.manifest.entries == as_manifest(root)
        assert upload.sent == source.manifest
        assert upload.surprises == upload.removed == ()
        assert upload.files == len(source.manifest.entries)


def test_every_folder_has_a_header_before_what_is_in_it(tree: Path, write) -> None:
    write("a/b/file")
    write("a/c")

    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)

    assert [member.name for member, _ in members(upload)] == ["src", "src/a", "src/a/b", "src/a/b/file", "src/a/c"]


def test_owner_and_modes_are_what_the_image_needs_and_not_what_the_host_has(tree: Path, write) -> None:
    write("file", mode=0o666)
    write("folder/script", mode=0o700)
    (tree / "folder").chmod(0o700)
    (tree / "link").symlink_to("file")

    found = [member for member, _ in members(SourceTree.read(tree).upload(None, owner=Owner(1000, 7), not_before=0))]

    assert {member.name: member.mode for member in found} == {
        "src": 0o755,
        "src/file": 0o644,
        "src/folder": 0o755,
        "src/folder/script": 0o755,
        "src/link": 0o777,
    }
    assert {(member.uid, member.gid, member.uname, member.gname) for member in found} == {(1000, 7, "", "")}


def test_the_top_folder_can_be_named(tree: Path, write) -> None:
    write("a")

    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0, top="work/here")

    assert [member.name for member, _ in members(upload)] == ["work/here", "work/here/a"]


def test_only_what_differs_from_the_parent_is_sent(tree: Path, write) -> None:
    write("same")
    write("old/same")
    write("changed")
    write("script")
    (tree / "link").symlink_to("same")
    parent = SourceTree.read(tree).manifest
    write("changed", b"new")
    write("script", mode=0o755)
    write("old/added")
    write("new/deep/added")
    (tree / "link").unlink()
    (tree / "link").symlink_to("changed")

    upload = SourceTree.read(tree).upload(parent, owner=ROOT, not_before=0)

    assert not upload.is_plain
    assert [member.name for member, _ in members(upload)] == [
        "src",
        "src/changed",
        "src/link",
        "src/new",
        "src/new/deep",
        "src/new/deep/added",
        "src/old/added",
        "src/script",
    ]
    assert upload.sent == SourceTree.read(tree).manifest
    assert (upload.files, upload.size) == (5, 6)


def test_only_an_upload_of_files_in_known_folders_is_plain(tree: Path, write) -> None:
    write("a/changed")
    write("a/kept")
    (tree / "link").symlink_to("a")
    (tree / "became-file").symlink_to("a")
    before = SourceTree.read(tree)

    def is_plain() -> bool:
        return SourceTree.read(tree).upload(before.manifest, owner=ROOT, not_before=0).is_plain

    assert not before.upload(None, owner=ROOT, not_before=0).is_plain
    write("a/changed", b"new", mode=0o755)
    write("a/added")
    assert is_plain()
    for change, back in (
        (lambda: (tree / "other").symlink_to("a"), (tree / "other").unlink),
        (lambda: write("new/added"), lambda: shutil.rmtree(tree / "new")),
        (lambda: (tree / "a/kept").rename(tree / "kept"), lambda: (tree / "kept").rename(tree / "a/kept")),
    ):
        change()
        assert not is_plain()
        back()
        assert is_plain()
    (tree / "became-file").unlink()
    write("became-file")
    assert not is_plain()


def test_the_first_upload_of_a_flat_tree_is_not_plain(tree: Path, write) -> None:
    write("file")

    assert not SourceTree.read(tree).upload(None, owner=ROOT, not_before=0).is_plain


def test_nothing_but_the_top_folder_is_sent_when_nothing_differs(tree: Path, write) -> None:
    write("a/b")
    source = SourceTree.read(tree)

    upload = source.upload(source.manifest, owner=ROOT, not_before=0)

    assert upload.is_plain
    assert [member.name for member, _ in members(upload)] == ["src"]
    assert upload.sent == source.manifest


def test_a_folder_in_place_of_a_file_or_a_link_has_a_header(tree: Path, write) -> None:
    write("was-file")
    (tree / "was-link").symlink_to("/elsewhere")
    parent = SourceTree.read(tree).manifest
    (tree / "was-file").unlink()
    (tree / "was-link").unlink()
    write("was-file/a")
    write("was-link/a")

    upload = SourceTree.read(tree).upload(parent, owner=ROOT, not_before=0)

    kinds = {member.name: member.type for member, _ in members(upload)}
    assert kinds["src/was-file"] == kinds["src/was-link"] == tarfile.DIRTYPE


def mtimes(upload: Upload) -> dict[str, float]:
    return {member.name: member.mtime for member, _ in members(upload)}


def test_times_are_the_host_s_in_whole_seconds(tree: Path, write) -> None:
    os.utime(write("a"), ns=(0, LONG_AGO * 10**9 + 999_999_999))
    (tree / "link").symlink_to("a")
    os.utime(tree / "link", (LONG_AGO + 5, LONG_AGO + 5), follow_symlinks=False)
    os.utime(write("before-the-epoch"), (-5, -5))
    os.utime(tree, (LONG_AGO + 9, LONG_AGO + 9))

    assert mtimes(SourceTree.read(tree).upload(None, owner=ROOT, not_before=time.time())) == {
        "src": LONG_AGO + 9,
        "src/a": LONG_AGO,
        "src/link": LONG_AGO + 5,
        "src/before-the-epoch": -5,
    }


def test_no_time_is_in_the_future(tree: Path, write) -> None:
    os.utime(write("a"), (2**33, 2**33))

    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)

    assert mtimes(upload)["src/a"] <= time.time()


@pytest.mark.parametrize("made", [LONG_AGO + 0.2, LONG_AGO])
def test_what_has_changed_since_the_checkpoint_is_newer_than_it(tree: Path, write, made: float) -> None:
    os.utime(write("old"), (5, 5))
    os.utime(write("newer"), (LONG_AGO + 100, LONG_AGO + 100))

    upload = SourceTree.read(tree).upload(Manifest({}), owner=ROOT, not_before=made)

    found = mtimes(upload)
    assert found["src/old"] == LONG_AGO + 1
    assert found["src/newer"] == LONG_AGO + 100


def test_what_was_sent_is_what_counts_when_a_file_changes_after_it_was_read(tree: Path, write) -> None:
    write("a")
    write("b")
    (tree / "link").symlink_to("a")
    source = SourceTree.read(tree)
    write("a", b"changed", 0o755)
    (tree / "link").unlink()
    (tree / "link").symlink_to("b")

    upload = source.upload(None, owner=ROOT, not_before=0)
    contents = {member.name: content for member, content in members(upload)}

    assert contents["src/a"] == b"changed"
    assert upload.surprises == ("a", "link")
    assert upload.sent == SourceTree.read(tree).manifest != source.manifest


@pytest.mark.parametrize("what", ["nothing", "folder", "fifo", "folder above is a link"])
def test_a_file_that_vanishes_before_it_is_sent_counts_as_removed(tree: Path, write, what: str) -> None:
    write("folder/a")
    write("b")
    source = SourceTree.read(tree)
    parent = Manifest({**source.manifest.entries, "folder/a": Entry("file", "old")})
    (tree / "folder/a").unlink()
    match what:
        case "folder":
            (tree / "folder/a").mkdir()
        case "fifo":
            os.mkfifo(tree / "folder/a")
        case "folder above is a link":
            shutil.move(tree / "folder", tree.parent / "elsewhere")
            (tree.parent / "elsewhere/a").write_text("secret")
            (tree / "folder").symlink_to(tree.parent / "elsewhere")

    upload = source.upload(parent, owner=ROOT, not_before=0)
    assert upload.removed == ()
    names = [member.name for member, _ in members(upload)]

    assert names == ["src"]
    assert upload.sent == Manifest({"b": source.manifest.entries["b"]})
    assert upload.surprises == upload.removed == ("folder/a",)
    assert upload.removed_folders == ("folder",)


def test_a_large_file_that_changes_on_the_way_is_sent_again(tree: Path, write) -> None:
    large = write("large", b"a" * (LARGE + 1))
    write("next")
    source = SourceTree.read(tree)
    upload = source.upload(None, owner=ROOT, not_before=0)
    pieces = []
    for number, piece in enumerate(upload):
        pieces.append(piece)
        if number == 3:
            large.write_bytes(b"b" * (LARGE - 5))
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces)), mode="r:") as tar:
        names = tar.getnames()
        last = tar.extractfile("src/large")
        assert last is not None
        content = last.read()

    assert names == ["src", "src/large", "src/large", "src/next"]
    assert content == b"b" * (LARGE - 5)
    assert upload.sent == SourceTree.read(tree).manifest
    assert upload.surprises == ("large",)
    assert upload.size == LARGE - 5 + 1


def test_a_large_file_that_keeps_changing_on_the_way_is_an_error(tree: Path, write) -> None:
    large = write("large", b"a" * (LARGE + 1))
    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)

    def grow_and_send() -> None:
        for number, _ in enumerate(upload):
            with large.open("ab") as file:
                file.write(b"%d" % number)

    with pytest.raises(SourceError, match="large kept changing"):
        grow_and_send()


def test_a_large_file_that_vanishes_on_the_way_is_removed_again(tree: Path, write) -> None:
    large = write("folder/large", b"a" * (LARGE + 1))
    write("small")
    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)
    for number, _ in enumerate(upload):
        if number == 3:
            large.write_bytes(b"")
            large.unlink()

    assert upload.sent.entries.keys() == {"small"}
    assert upload.removed == upload.surprises == ("folder/large",)
    assert upload.removed_folders == ("folder",)


def test_an_upload_is_made_once_and_what_was_sent_is_known_afterwards(tree: Path, write) -> None:
    write("a")
    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)

    with pytest.raises(RuntimeError):
        _ = upload.sent
    list(upload)
    with pytest.raises(RuntimeError):
        list(upload)


def test_an_upload_that_is_broken_off_keeps_nothing_open(tree: Path, write) -> None:
    write("a/large", b"a" * (LARGE + 1))
    upload = SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)
    before = len(list(Path("/proc/self/fd").iterdir()))

    pieces = iter(upload)
    for _ in range(4):
        next(pieces)
    del pieces

    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_pieces_are_bounded_whatever_the_tree_holds(tree: Path, write) -> None:
    write("large", b"a" * (3 * LARGE))
    for number in range(20):
        write(f"small{number}", b"a" * 1_000_000)

    sizes = [len(piece) for piece in SourceTree.read(tree).upload(None, owner=ROOT, not_before=0)]

    assert max(sizes) < 2_000_000
    assert sum(sizes) > 3 * LARGE + 20_000_000


def test_no_piece_is_empty(tree: Path, write) -> None:
    for large in ("a", "b"):
        write(large, b"a" * (LARGE + tarfile.BLOCKSIZE))

    assert all(SourceTree.read(tree).upload(None, owner=ROOT, not_before=0))


def test_removed_files_and_the_folders_that_they_leave_are_known(tree: Path, write) -> None:
    for file in ("keep/a", "keep/b", "gone/deep/a", "gone/b", "now-link/a", "now-file/deep/a"):
        write(file)
    parent = SourceTree.read(tree).manifest
    for folder in ("gone", "now-link", "now-file"):
        shutil.rmtree(tree / folder)
    (tree / "keep/b").unlink()
    write("now-file")
    (tree / "now-link").symlink_to("keep")

    upload = SourceTree.read(tree).upload(parent, owner=ROOT, not_before=0)

    assert upload.removed == ("gone/b", "gone/deep/a", "keep/b", "now-file/deep/a", "now-link/a")
    assert upload.removed_folders == ("gone/deep", "now-file/deep", "gone")
