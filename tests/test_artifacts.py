from __future__ import annotations

import contextlib
import io
import os
import resource
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_stagebuild.artifacts import ArtifactError, Extracted, extract
from pytest_stagebuild.errors import EngineError


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, link: str = "", size: int = 0
) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, size
    return info


def tar(*members: tuple[str, bytes] | tarfile.TarInfo, layout: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=layout) as archive:
        for item in members:
            if isinstance(item, tarfile.TarInfo):
                archive.addfile(item, io.BytesIO(bytes(item.size)))
            else:
                name, content = item
                archive.addfile(member(name, size=len(content)), io.BytesIO(content))
    return stream.getvalue()


def pieces(data: bytes, size: int = 1000) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def destination(tmp_path: Path) -> Path:
    return tmp_path / "state" / "artifacts"


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_files_and_folders_are_put_in_place(destination: Path, layout: int) -> None:
    long = "dist/" + "n" * 200 + "/" + "m" * 200
    archive = tar(member("dist/", tarfile.DIRTYPE), ("dist/a.whl", b"wheel"), (long, b"long"), layout=layout)
    assert extract(pieces(archive), destination) == Extracted((destination / "dist/a.whl", destination / long))
    assert tree(destination) == {"dist/a.whl": "wheel", long: "long"}


def test_a_file_that_is_no_multiple_of_a_block_arrives_whole(destination: Path) -> None:
    content = os.urandom(3_000_001)
    extract(pieces(tar(("a", content), ("b", b"next")), 7919), destination)
    assert (destination / "a").read_bytes() == content
    assert (destination / "b").read_bytes() == b"next"


def test_nothing_but_the_artifacts_is_left_behind(destination: Path) -> None:
    extract(pieces(tar(("a", b"a"))), destination)
    assert [path.name for path in destination.parent.iterdir()] == ["artifacts"]


def test_an_older_artifact_is_replaced_whole_and_others_stay(destination: Path) -> None:
    extract(pieces(tar(("dist/old", b"1"), ("report", b"1"), ("other", b"1"))), destination)
    extract(pieces(tar(("dist/new", b"2"), ("report", b"2"))), destination)
    assert tree(destination) == {"dist/new": "2", "report": "2", "other": "1"}


@pytest.mark.parametrize(("older", "newer"), [("report", "report/index"), ("report/index", "report")])
def test_a_file_and_a_folder_replace_each_other(destination: Path, older: str, newer: str) -> None:
    extract(pieces(tar((older, b"1"))), destination)
    extract(pieces(tar((newer, b"2"))), destination)
    assert tree(destination) == {newer: "2"}


def test_an_empty_folder_is_an_artifact(destination: Path) -> None:
    extract(pieces(tar(member("empty", tarfile.DIRTYPE))), destination)
    assert (destination / "empty").is_dir()


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(0o600, 0o644), (0o000, 0o644), (0o700, 0o755), (0o4755, 0o755), (0o6777, 0o755), (0o1666, 0o644)],
)
def test_modes_are_plain_whatever_the_archive_and_the_umask_say(destination: Path, mode: int, kept: int) -> None:
    umask = os.umask(0o077)
    try:
        extract(pieces(tar(member("dir", tarfile.DIRTYPE, mode=0o7777), member("dir/file", mode=mode))), destination)
    finally:
        os.umask(umask)
    assert stat.S_IMODE((destination / "dir/file").stat().st_mode) == kept
    assert stat.S_IMODE((destination / "dir").stat().st_mode) == 0o755


def test_files_belong_to_the_caller(destination: Path) -> None:
    info = member("file")
    info.uid = info.gid = 12345
    extract(pieces(tar(info)), destination)
    assert (destination / "file").stat().st_uid == os.geteuid()


@pytest.mark.parametrize(
    ("hostile", "note"),
    [
        (member("../evil"), "'../evil' was left out: its path leads out of the archive"),
        (member("a/../../evil"), "'a/../../evil' was left out: its path leads out of the archive"),
        (member("/tmp/evil"), "'/tmp/evil' was left out: its path is absolute"),
        (member("soft", tarfile.SYMTYPE, link="/etc/passwd"), "'soft' was left out: it is a symbolic link"),
        (member("hard", tarfile.LNKTYPE, link="good"), "'hard' was left out: it is a hard link"),
        (member("dev", tarfile.CHRTYPE), "'dev' was left out: it is a device"),
        (member("dev", tarfile.BLKTYPE), "'dev' was left out: it is a device"),
        (member("pipe", tarfile.FIFOTYPE), "'pipe' was left out: it is a FIFO"),
        (member("odd", b"Z", size=700), "'odd' was left out: it is of an unknown kind"),
        (member("n" * 256), f"{'n' * 256!r} was left out: its name is longer than 255 bytes"),
        (member("é" * 128), f"{'é' * 128!r} was left out: its name is longer than 255 bytes"),
        (member("a/" * 129 + "b"), f"{'a/' * 129 + 'b'!r} was left out: it is more than 128 folders deep"),
        (member("good/below"), "'good/below' was left out: it is both a file and a folder"),
        (member("good", tarfile.DIRTYPE), "'good' was left out: it is both a file and a folder"),
        (member("dir"), "'dir' was left out: it is both a file and a folder"),
        (member("."), "'.' was left out: it has no name"),
    ],
)
def test_what_is_no_plain_file_or_leads_elsewhere_is_left_out_with_a_note(
    destination: Path, hostile: tarfile.TarInfo, note: str
) -> None:
    archive = tar(("good", b"good"), member("dir", tarfile.DIRTYPE), hostile, ("last", b"last"))
    assert extract(pieces(archive), destination).notes == (note,)
    assert tree(destination.parent) == {"artifacts/good": "good", "artifacts/last": "last"}


def test_a_path_that_is_too_long_is_left_out(destination: Path) -> None:
    archive = tar(("/".join(["n" * 255] * 9), b""))
    assert extract(pieces(archive), destination).notes[0].endswith("was left out: its path is longer than 2048 bytes")


def test_a_name_with_control_characters_cannot_reach_the_terminal(destination: Path) -> None:
    notes = extract(pieces(tar(member("\x1b[31m\n\udcff", tarfile.FIFOTYPE))), destination).notes
    assert notes == (r"'\x1b[31m\n\udcff' was left out: it is a FIFO",)


def test_many_notes_are_counted(destination: Path) -> None:
    archive = tar(*(member(f"{number}", tarfile.FIFOTYPE) for number in range(1000)))
    notes = extract(pieces(archive), destination).notes
    assert (len(notes), notes[-1]) == (21, "980 more were left out")


def test_a_file_behind_a_link_of_the_same_archive_stays_inside(destination: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    archive = tar(member("link", tarfile.SYMTYPE, link=str(outside)), ("link/evil", b"inside"))
    extract(pieces(archive), destination)
    assert not any(outside.iterdir())
    assert tree(destination) == {"link/evil": "inside"}


def test_a_file_that_comes_twice_is_the_later_one(destination: Path) -> None:
    extracted = extract(pieces(tar(("a", b"first, longer"), ("a", b"second"))), destination)
    assert (extracted.paths, tree(destination)) == ((destination / "a",), {"a": "second"})


@pytest.mark.parametrize("name", ["precious", "folder/file"])
def test_a_link_in_the_destination_is_replaced_and_not_followed(destination: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    destination.mkdir(parents=True)
    (destination / "precious").symlink_to(outside / "file")
    (destination / "folder").symlink_to(outside)
    extract(pieces(tar((name, b"artifact"))), destination)
    assert tree(outside) == {"file": "precious"}
    assert (destination / name).read_text() == "artifact"
    assert not (destination / Path(name).parts[0]).is_symlink()


def test_a_destination_that_is_a_link_is_refused(destination: Path, tmp_path: Path) -> None:
    destination.parent.mkdir()
    (tmp_path / "outside").mkdir()
    destination.symlink_to(tmp_path / "outside")
    with pytest.raises(ArtifactError, match=r"is a symbolic link .* remove it$"):
        extract(pieces(tar(("a", b""))), destination)
    assert not any((tmp_path / "outside").iterdir())


def test_a_destination_that_is_a_file_is_refused(destination: Path) -> None:
    destination.parent.mkdir()
    destination.write_text("a file")
    with pytest.raises(ArtifactError, match=r"cannot be written to .*/artifacts: File exists"):
        extract(pieces(tar(("a", b""))), destination)


def test_a_full_disk_is_an_error_that_says_so(destination: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="File too large; make room there"):
            extract(pieces(tar(("a", bytes(10_000_000)))), destination)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("limit", [2999, 0])
def test_too_many_bytes_are_an_error(destination: Path, limit: int) -> None:
    with pytest.raises(ArtifactError, match=rf"larger than {limit} bytes; name fewer"):
        extract(pieces(tar(("a", bytes(1500)), ("b", bytes(1500)))), destination, limit_bytes=limit)


def test_as_many_bytes_as_are_allowed_are_taken(destination: Path) -> None:
    assert len(extract(pieces(tar(("a", bytes(3000)))), destination, limit_bytes=3000).paths) == 1


def test_the_bytes_of_members_that_are_left_out_count_too(destination: Path) -> None:
    header = member("odd", b"Z", size=1 << 40).tobuf(tarfile.GNU_FORMAT)

    def endless() -> Iterator[bytes]:
        yield header
        while True:
            yield bytes(1 << 20)

    with pytest.raises(ArtifactError, match="larger than 10000000 bytes"):
        extract(endless(), destination, limit_bytes=10_000_000)


def test_a_hole_in_a_file_counts_as_the_bytes_that_it_would_take(destination: Path) -> None:
    info = member("sparse", size=512)
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse", "GNU.sparse.map": "0,512",
        "GNU.sparse.size": str(1 << 40),
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="larger than"):
        extract(pieces(tar(info)), destination, limit_bytes=10_000_000)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.FIFOTYPE])
def test_too_many_members_are_an_error(destination: Path, kind: bytes) -> None:
    archive = tar(*(member(f"{number}", kind) for number in range(101)))
    with pytest.raises(ArtifactError, match="more than 100 files; name fewer"):
        extract(pieces(archive), destination, limit_files=100)


def test_after_an_error_the_older_artifacts_are_as_they_were(destination: Path) -> None:
    extract(pieces(tar(("a", b"older"))), destination)
    with pytest.raises(ArtifactError):
        extract(pieces(tar(("a", b"newer"), ("b", bytes(1000)))), destination, limit_bytes=100)
    assert tree(destination.parent) == {"artifacts/a": "older"}


GOOD = tar(("a", b"x" * 700), ("b", b"y" * 1024), ("c", b""))
END = 512 + 1024 + 512 + 1024 + 512


@pytest.mark.parametrize("length", [0, 1, 511, 512, 600, 1536, 2048, 2500, 3072, 3584])
def test_a_tar_that_ends_early_is_an_engine_error(destination: Path, length: int) -> None:
    assert length <= END
    with pytest.raises(EngineError, match=r"incomplete or garbled.*; run again"):
        extract(pieces(GOOD[:length]), destination)
    assert not destination.exists()


@pytest.mark.parametrize(
    "garbage",
    [
        b"not a tar at all " * 100,
        GOOD[:1536] + b"garbage " * 64 + GOOD[2048:],
        GOOD[:END] + b"garbage " * 200,
        tar(member("a", b"x", size=3)),
        b"".join(member("a", b"x", size=512).tobuf() + b"11 path=ab\n".ljust(512, b"\0") for _ in range(5000)),
        member("a", b"L", size=1 << 32).tobuf(tarfile.GNU_FORMAT) + bytes(1 << 22),
    ],
    ids=["text", "between members", "at the end", "broken header", "headers of headers", "endless header"],
)
def test_garbage_is_an_engine_error(destination: Path, garbage: bytes) -> None:
    with pytest.raises(EngineError, match=r"incomplete or garbled.*; run again"):
        extract(pieces(garbage), destination)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=8))
def test_whatever_is_changed_in_a_tar_nothing_is_written_elsewhere(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    archive = bytearray(GOOD)
    for at, byte in changes:
        archive[at] = byte
    with contextlib.suppress(EngineError, ArtifactError):
        extract(pieces(bytes(archive)), tmp_path / "in" / "artifacts", limit_bytes=1 << 20)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert {path.name for path in (tmp_path / "in").iterdir()} <= {"artifacts"}


def test_an_engine_that_fails_meanwhile_is_an_engine_error(destination: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield GOOD[:1000]
        raise ConnectionResetError("connection reset")

    with pytest.raises(EngineError, match="connection reset"):
        extract(broken(), destination)


@pytest.mark.parametrize(
    "members",
    [
        "yield member('big', b'0', 100 << 20); yield from [bytes(1 << 20)] * 100",
        "for number in range(50_000): yield member(f'pipe{number}', b'6', 0)",
        "for number in range(300): yield from header(b'g', b'key%d' % number, 100_000)",
        "yield from header(b'x', b'key', 100_000_000)",
    ],
    ids=["a large file", "many members", "global headers", "a large header"],
)
def test_no_archive_takes_much_memory(tmp_path: Path, members: str) -> None:
    script = f"""
import contextlib, pathlib, re, sys, tarfile
from pytest_stagebuild.artifacts import extract
from pytest_stagebuild.errors import EngineError
def member(name, kind, size):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)
def header(kind, key, size):
    record = b"%d %s=" % (size, key)
    yield member("header", kind, size)
    yield (record + b"v" * (size - len(record) - 1) + b"\\n").ljust(-(-size // 512) * 512, b"\\0")
    yield member("file", b"0", 0)
def stream():
    {members}
    yield bytes(1024)
def peak():
    # Not getrusage(), whose figure a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
archive = list(stream())
before = peak()
with contextlib.suppress(EngineError):
    extract(iter(archive), pathlib.Path(sys.argv[1]))
print(peak() - before)
"""
    command = [sys.executable, "-c", script, tmp_path / "artifacts"]
    grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(grown) < 16 * 1024
