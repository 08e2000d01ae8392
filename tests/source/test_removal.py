from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.source import Entry, Manifest, SourceTree, removal_script
from pytest_stagebuild.source.manifest import path_of

EVERY_BYTE = bytes(sorted(set(range(1, 256)) - {ord("/")}))
SHELLS = [shell for shell in ("sh", "dash", "bash", "busybox") if shutil.which(shell)]

name = st.binary(min_size=1, max_size=5).filter(lambda raw: not set(b"/\0") & set(raw) and raw.strip(b"."))
hostile = st.sampled_from([b"-rf", b"a'b", b'"', b"$(touch x)", b"`id`", b"new\nline", b"a b", b"*", b"\\", b"\xff"])
path = st.lists(name | hostile, min_size=1, max_size=3).map(b"/".join)


def run(script: bytes, shell: str = "sh") -> None:
    command = [shell, "sh"] if shell == "busybox" else [shell]
    with tempfile.NamedTemporaryFile() as file:
        file.write(script)
        file.flush()
        subprocess.run([*command, file.name], check=True, cwd="/")


def script_for(sandbox: Path, now: Path, gone: list[bytes]) -> bytes:
    """The script that removes ``gone`` from ``sandbox``, when the tree is as in ``now``."""
    source = SourceTree.read(now)
    parent = Manifest({**source.manifest.entries, **{path_of(raw): Entry("file", "") for raw in gone}})
    upload = source.upload(parent, owner=Owner(0, 0), not_before=0, top=os.fspath(sandbox)[1:])
    return removal_script(upload)


def below(root: Path) -> set[bytes]:
    return {os.fsencode(path.relative_to(root)) for path in root.rglob("*")}


@pytest.fixture
def now(tmp_path: Path) -> Path:
    """The tree as it is on the host: a file ``keep/file`` alone."""
    root = tmp_path / "now"
    (root / "keep").mkdir(parents=True)
    (root / "keep/file").write_text("")
    return root


@pytest.fixture
def sandbox(tmp_path: Path) -> Path:
    root = tmp_path / "sand'box"
    (root / "keep").mkdir(parents=True)
    (root / "keep/file").write_text("")
    return root


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sets(path, min_size=1, max_size=8), st.sets(path, max_size=4))
@example({EVERY_BYTE[:100], EVERY_BYTE[100:]}, set())
def test_what_has_gone_is_removed_and_nothing_else(gone: set[bytes], stay: set[bytes]) -> None:
    with tempfile.TemporaryDirectory() as top:
        sandbox, now = Path(top) / "sandbox", Path(top) / "now"
        for root, files in ((now, stay | {b"keep"}), (sandbox, stay | {b"keep"} | gone)):
            root.mkdir()
            for relative in sorted(files, key=lambda relative: (relative in gone - stay, relative)):
                file = root / os.fsdecode(relative)
                try:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.touch()
                except OSError:
                    continue
        removed = [raw for raw in gone if not os.path.lexists(now / os.fsdecode(raw))]

        run(script_for(sandbox, now, removed))

        assert below(sandbox) == below(now)


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_takes_every_byte_of_a_name(sandbox: Path, now: Path, shell: str) -> None:
    names = [b"d" + EVERY_BYTE[:120] + b"/" + EVERY_BYTE[120:], *(b"x" + bytes([byte]) for byte in EVERY_BYTE)]
    for raw in names:
        file = sandbox / os.fsdecode(raw)
        file.parent.mkdir(exist_ok=True)
        file.touch()

    run(script_for(sandbox, now, names), shell)

    assert below(sandbox) == {b"keep", b"keep/file"}


def test_a_folder_that_holds_something_else_stays(sandbox: Path, now: Path) -> None:
    (sandbox / "gone/deep").mkdir(parents=True)
    (sandbox / "gone/deep/file").touch()
    (sandbox / "gone/made-by-a-stage").touch()

    run(script_for(sandbox, now, [b"gone/deep/file"]))

    assert below(sandbox) == {b"keep", b"keep/file", b"gone", b"gone/made-by-a-stage"}


def test_nothing_is_deleted_through_a_link_that_a_stage_has_made(sandbox: Path, now: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "elsewhere/file").touch()
    (tmp_path / "elsewhere/deep/file").touch()
    (sandbox / "linked").symlink_to(tmp_path / "elsewhere")

    run(script_for(sandbox, now, [b"linked/file", b"linked/deep/file"]))

    assert below(tmp_path / "elsewhere") == {b"file", b"deep", b"deep/file"}


def test_nothing_is_deleted_below_what_is_now_a_file_or_a_link(sandbox: Path, now: Path) -> None:
    for root in (now, sandbox):
        (root / "now-link").symlink_to("keep")
        (root / "now-file").touch()

    script = script_for(sandbox, now, [b"now-link/file", b"now-file/file"])
    run(script)

    assert b"now-" not in script
    assert below(sandbox) == {b"keep", b"keep/file", b"now-link", b"now-file"}


def test_a_folder_in_the_place_of_a_removed_file_stays(sandbox: Path, now: Path) -> None:
    (sandbox / "made-by-a-stage/deep").mkdir(parents=True)
    for root in (now, sandbox):
        (root / "now-folder").mkdir()
        (root / "now-folder/file").touch()

    run(script_for(sandbox, now, [b"made-by-a-stage", b"now-folder"]))

    assert {b"made-by-a-stage/deep", b"now-folder/file"} < below(sandbox)


def test_what_is_gone_already_is_no_error(sandbox: Path, now: Path) -> None:
    run(script_for(sandbox, now, [b"never/was", b"nor-this"]))
    shutil.rmtree(sandbox)
    run(script_for(sandbox, now, [b"never/was"]))


def test_thousands_of_files_are_removed(sandbox: Path, now: Path) -> None:
    names = [f"gone/{'n' * 200}{number:05}".encode() for number in range(20_000)]
    (sandbox / "gone").mkdir()
    for raw in names:
        (sandbox / os.fsdecode(raw)).touch()

    run(script_for(sandbox, now, names))

    assert below(sandbox) == {b"keep", b"keep/file"}
