"""What a real engine makes of our archives."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException, ImageNotFound
from docker.models.containers import Container

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.source import Manifest, SourceTree, Upload, removal_script

TRUSTED: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
"""Debian's Python 3.11 has no filters yet."""

pytestmark = pytest.mark.engine

IMAGE = "python:3.11-slim"
LONG_AGO = 1_000_000_000


@pytest.fixture
def container() -> Iterator[Container]:
    """A container that was created and is not started."""
    try:
        client = docker.from_env(timeout=600)
        created = client.containers.create(IMAGE, ["sleep", "600"], init=True)
    except (DockerException, ImageNotFound) as error:
        pytest.skip(f"no engine with {IMAGE}: {error}")
    try:
        yield created
    finally:
        created.remove(force=True)
        client.close()


def put(container: Container, upload: Upload) -> None:
    assert container.put_archive("/", upload)


def taken_out(container: Container) -> dict[str, tarfile.TarInfo]:
    pieces, _ = container.get_archive("/src")
    archive = io.BytesIO(b"".join(pieces))
    with tarfile.open(fileobj=archive, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def written_back(container: Container, folder: Path) -> SourceTree:
    """The tree that the container holds, read again on the host."""
    pieces, _ = container.get_archive("/src")
    archive = io.BytesIO(b"".join(pieces))
    with tarfile.open(fileobj=archive, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        tar.extractall(folder, **TRUSTED)
    return SourceTree.read(folder / "src")


def test_every_kind_of_name_content_and_link_arrives_as_it_is(tree: Path, write, container, tmp_path: Path) -> None:
    write("plain", b"content")
    write("script", b"#!/bin/sh\n", 0o755)
    write("empty", b"")
    write(b"latin-caf\xe9/\xff\xfe", b"x")
    write("n" * 200)
    write("/".join(["d" * 150] * 5) + "/" + "f" * 255)
    write("quotes ' \" and\nnewline\ttab \\")
    write("schön/日本")
    write("large", os.urandom(1024) * 9000)
    (tree / "link").symlink_to(os.fsdecode(b"t\xff\xe9"))
    (tree / "long-link").symlink_to("t" * 300)
    (tree / "out").symlink_to("/etc")
    source = SourceTree.read(tree)

    put(container, source.upload(None, owner=Owner(0, 0), not_before=0))

    assert written_back(container, tmp_path / "back").manifest == source.manifest


def test_targets_of_links_arrive_byte_for_byte(tree: Path, write, container) -> None:
    targets = [
        b"folder/",
        b"folder///",
        b"./folder/./x",
        b"a//b",
        b"//a",
        b"/",
        b"../../../../outside",
        b"/etc/../src/",
        b" spaces ",
        b"line\nbreak\n",
        b"caf\xe9\xff",
        b"t" * 99,
        b"t" * 100,
        b"t" * 100 + b"/",
        b"t" * 300 + b"//\xff\n/",
        "schön".encode() * 40,
    ]
    write("folder/x")
    for number, target in enumerate(targets):
        os.symlink(target, os.fsencode(tree / str(number)))

    put(container, SourceTree.read(tree).upload(None, owner=Owner(0, 0), not_before=0))
    container.start()

    links = [f"/src/{number}" for number in range(len(targets))]
    assert container.exec_run(["readlink", "-z", *links]) == (0, b"".join(target + b"\0" for target in targets))


def test_owner_modes_and_times_arrive(tree: Path, write, container) -> None:
    write("folder/file", mode=0o600)
    write("script", mode=0o700)
    (tree / "link").symlink_to("script")
    os.utime(tree / "folder/file", (LONG_AGO, LONG_AGO))
    os.utime(write("future"), (2**33, 2**33))

    put(container, SourceTree.read(tree).upload(None, owner=Owner(1000, 3_000_000), not_before=0))
    found = taken_out(container)

    assert {(member.uid, member.gid) for member in found.values()} == {(1000, 3_000_000)}
    assert {name: stat.S_IMODE(member.mode) for name, member in found.items() if not member.issym()} == {
        "src": 0o755,
        "src/folder": 0o755,
        "src/folder/file": 0o644,
        "src/script": 0o755,
        "src/future": 0o644,
    }
    assert found["src/folder/file"].mtime == LONG_AGO
    assert LONG_AGO < found["src/future"].mtime <= time.time()


def test_a_second_upload_and_its_removal_lead_to_the_new_tree(tree: Path, write, container, tmp_path: Path) -> None:
    for file in ("same", "changed", "gone", b"gone-folder/deep/caf\xe9'\n", "file-to-folder", "folder-to-file/a"):
        write(file)
    write("folder-to-link/a")
    write("target/a")
    (tree / "link-to-folder").symlink_to("target")
    first = SourceTree.read(tree)
    put(container, first.upload(None, owner=Owner(0, 0), not_before=0))
    for folder in ("gone-folder", "folder-to-file", "folder-to-link"):
        shutil.rmtree(tree / folder)
    for file in ("gone", "file-to-folder", "link-to-folder"):
        (tree / file).unlink()
    write("changed", b"new")
    write("file-to-folder/a")
    write("folder-to-file")
    (tree / "folder-to-link").symlink_to("target")
    write("link-to-folder/a", b"not the target's")
    second = SourceTree.read(tree)

    upload = second.upload(first.manifest, owner=Owner(0, 0), not_before=0)
    put(container, upload)
    container.start()
    script = tmp_path / "script"
    script.write_bytes(removal_script(upload))
    copy = io.BytesIO()
    with tarfile.open(fileobj=copy, mode="w") as tar:
        tar.add(script, "remove.sh")
    container.put_archive("/", copy.getvalue())
    assert container.exec_run(["sh", "/remove.sh"]) == (0, b"")

    found = taken_out(container)
    back = written_back(container, tmp_path / "back")
    assert back.manifest == second.manifest == upload.sent
    assert {name for name, member in found.items() if member.isdir()} == {"src"} | {
        f"src/{folder}" for folder in second.manifest.folders
    }


def test_a_new_folder_replaces_a_link_that_a_stage_has_made(tree: Path, write, container, tmp_path: Path) -> None:
    write("a")
    first = SourceTree.read(tree)
    put(container, first.upload(None, owner=Owner(0, 0), not_before=0))
    link = tarfile.TarInfo("src/new")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    container.put_archive("/", link.tobuf() + bytes(1024))
    write("new/hostname-of-ours")

    put(container, SourceTree.read(tree).upload(first.manifest, owner=Owner(0, 0), not_before=0))

    assert taken_out(container)["src/new"].isdir()
    pieces, _ = container.get_archive("/etc")
    assert b"hostname-of-ours" not in b"".join(pieces)


def test_an_upload_of_nothing_changes_nothing(tree: Path, write, container, tmp_path: Path) -> None:
    write("a/b")
    source = SourceTree.read(tree)
    put(container, source.upload(None, owner=Owner(0, 0), not_before=0))
    upload = source.upload(source.manifest, owner=Owner(0, 0), not_before=0)

    put(container, upload)

    assert written_back(container, tmp_path / "back").manifest == source.manifest
    assert upload.files == 0
    assert upload.sent.changes_since(Manifest({})) == source.manifest.changes_since(Manifest({}))
