"""Which downloads are kept for whom, and what of an archive is."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_stagebuild.downloads import TOOLS, is_wanted, tools_of
from pytest_stagebuild.engines.protocol import ImageConfig, Owner
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.kept_archive import TooMuchError, keep, kept_members, units_in
from pytest_stagebuild.stage import Stage

BELOW = "/run/tool"
UNITS = re.compile(r"archive-v0/[^/]+(?=/)|by-digest/[^/]+\Z")


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.mtime = kind, link, mode, 1_700_000_000
    return info


def archive(*members: tarfile.TarInfo | str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for one in members:
            info = member(one) if isinstance(one, str) else one
            content = info.name.encode() if info.isreg() else b""
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pieces(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 700] for at in range(0, len(data), 700))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kept" / "tool.tar"


def kept(path: Path, data: bytes, **how: object) -> dict[str, tarfile.TarInfo]:
    """The members that are kept of an archive of the folder ``cache``, by their names below that of the tool."""
    given = {"below": BELOW, "owner": Owner(7, 8), "is_kept": lambda _: True, "what": "it", "units": UNITS, **how}
    keep(pieces(data), path, **given)
    if not path.exists():
        return {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(kept_members(path)) + bytes(1024))) as tar:
        found = {one.name: one for one in tar}
        for name, one in found.items():
            if one.isreg():
                assert tar.extractfile(one).read().decode() == name.replace("run/tool", "cache")
    return {name.removeprefix("run/tool").lstrip("/"): one for name, one in found.items()}


def test_files_get_the_place_owner_and_mode_that_they_need_in_a_sandbox(path):
    found = kept(path, archive("cache/a/one", member("cache/a/program", mode=0o4711)))
    assert list(found) == ["", "a", "a/one", "a/program"]
    assert {(one.uid, one.gid) for one in found.values()} == {(7, 8)}
    assert [one.mode for one in found.values()] == [0o755, 0o755, 0o644, 0o755]
    assert found["a/one"].mtime == 1_700_000_000


def test_what_is_not_asked_for_stays_behind(path):
    assert "b" not in kept(path, archive("cache/a", "cache/b"), is_kept=lambda path: path == "a")


@pytest.mark.parametrize(
    "hostile",
    [
        member("cache/../../etc/passwd"),
        member("cache/link", tarfile.SYMTYPE, link="/etc"),
        member("cache/link", tarfile.SYMTYPE, link="../../etc"),
        member("cache/link", tarfile.SYMTYPE, link="other"),
        member("cache/link", tarfile.LNKTYPE, link="cache/../../etc/passwd"),
        member("cache/device", tarfile.CHRTYPE),
        member("cache/pipe", tarfile.FIFOTYPE),
        member("cache/" + "n" * 300),
    ],
    ids=lambda info: f"{info.name[:20]} {info.linkname}",
)
def test_nothing_else_than_files_below_the_folder_is_kept(path, hostile):
    assert list(kept(path, archive("cache/good", hostile))) == ["", "good"]


def test_nothing_is_kept_behind_a_link(path):
    link = member("cache/wheels/link", tarfile.SYMTYPE, link="../archive-v0/one")
    found = kept(path, archive("cache/archive-v0/one/a", link, "cache/wheels/link/b"))
    assert "wheels/link" in found
    assert "wheels/link/b" not in found


def test_an_unpacked_wheel_is_kept_with_the_link_that_leads_to_it(path):
    link = member("cache/wheels/one", tarfile.SYMTYPE, link="../archive-v0/one")
    found = kept(path, archive("cache/archive-v0/built/a", "cache/archive-v0/one/a", link))
    assert [name for name in found if name.startswith("archive")] == [
        "archive-v0",
        "archive-v0/one",
        "archive-v0/one/a",
    ]
    assert found["wheels/one"].linkname == "../archive-v0/one"


def test_of_an_unpacked_wheel_nothing_is_kept_where_not_all_is(path):
    link = member("cache/wheels/one", tarfile.SYMTYPE, link="../archive-v0/one")
    odd = member("cache/archive-v0/one/odd", tarfile.FIFOTYPE)
    assert list(kept(path, archive("cache/archive-v0/one/a", odd, link, "cache/b"))) == [
        "",
        "archive-v0",
        "wheels",
        "b",
    ]


LINK = member("cache/wheels/one", tarfile.SYMTYPE, link="../archive-v0/one")
"""What leads to a wheel unpacked, and stays in the sandbox when that is removed."""


def test_units_that_were_sent_are_kept_without_coming_out_again(path):
    kept(path, archive("cache/archive-v0/one/a", "cache/by-digest/b", LINK, "cache/c"))
    found = kept(path, archive(LINK, "cache/archive-v0/two/a", "cache/d"), onto=True)
    files = {name for name, one in found.items() if not one.isdir()}
    assert files == {"wheels/one", "d", "archive-v0/one/a", "by-digest/b"}
    assert {one.uid for one in found.values()} == {7}
    # And so for ever.
    assert {*kept(path, archive(LINK), onto=True)} == {*found} - {"d"}


def test_every_folder_stands_before_what_is_in_it(path):
    kept(path, archive("cache/archive-v0/one/a/b", "cache/by-digest/c", LINK))
    names = [*kept(path, archive(LINK), onto=True)]
    assert all(names.index(name.rpartition("/")[0]) < names.index(name) for name in names if name)


def test_units_are_told_by_their_names(path):
    kept(path, archive("cache/archive-v0/one/a", "cache/archive-v0/one/b", LINK, "cache/by-digest/b", "cache/c"))
    assert units_in(path) == ["archive-v0/one", "by-digest/b"]


def test_a_wheel_goes_with_the_last_link_to_it(path):
    kept(path, archive("cache/archive-v0/one/a", LINK))
    assert [*kept(path, archive("cache/b"), onto=True)] == ["", "b"]


def test_a_link_goes_with_the_wheel_that_it_led_to(path):
    assert [*kept(path, archive(LINK, "cache/b"))] == ["", "wheels", "b"]


def test_of_a_unit_the_first_is_kept_whatever_has_become_of_it(path):
    kept(path, archive("cache/archive-v0/one/a", "cache/by-digest/b", LINK))
    before = {*kept(path, archive(LINK), onto=True)}
    changed = member("cache/by-digest/b", mode=0o755), member("cache/archive-v0/one/a", tarfile.FIFOTYPE)
    found = kept(path, archive(LINK, *changed, "cache/archive-v0/one/more"), onto=True)
    assert {*found} == before
    assert found["by-digest/b"].mode == 0o644


def test_a_link_in_the_place_of_a_folder_of_units_takes_them_nowhere(path):
    kept(path, archive("cache/by-digest/b", "cache/archive-v0/one/a", LINK))
    instead = member("cache/by-digest", tarfile.SYMTYPE, link="archive-v0/one")
    assert not any(name.startswith("by-digest/") for name in kept(path, archive(LINK, instead), onto=True))


def test_what_was_not_sent_is_not_kept_again(path):
    kept(path, archive("cache/by-digest/b"))
    assert [*kept(path, archive("cache/c"))] == ["", "c"]


def test_units_count_where_there_is_too_much(path):
    kept(path, archive(*(f"cache/by-digest/{number}" for number in range(20))), limit=35_000)
    with pytest.raises(TooMuchError):
        kept(path, archive(*(f"cache/by-digest/{number}" for number in range(20, 40))), onto=True, limit=35_000)


def test_damage_to_a_unit_is_found_after_it_was_kept_again(path):
    kept(path, archive("cache/by-digest/b"))
    content = bytearray(path.read_bytes())
    content[content.index(b"cache/by-digest/b")] ^= 1
    path.write_bytes(content)
    keep(
        pieces(archive("cache/c")),
        path,
        below=BELOW,
        owner=Owner(7, 8),
        is_kept=bool,
        what="it",
        units=UNITS,
        onto=True,
    )
    with pytest.raises(ValueError, match="is damaged"):
        next(kept_members(path))


def test_where_there_is_nothing_to_keep_what_was_kept_stays(path):
    kept(path, archive("cache/a"))
    assert "a" in kept(path, archive(member("cache", tarfile.DIRTYPE)))


@pytest.mark.parametrize("damage", ["cut", "changed", "longer", "zeros", "empty"])
def test_a_damaged_file_gives_no_member(path, damage):
    kept(path, archive("cache/a"))
    content = path.read_bytes()
    changed = bytes([content[0] ^ 1]) + content[1:]
    other = {"cut": content[:-512], "changed": changed, "longer": content + bytes(512), "zeros": bytes(len(content))}
    path.write_bytes(other.get(damage, b""))
    with pytest.raises(ValueError, match="is damaged"):
        next(kept_members(path))


def test_too_much_is_an_error_that_leaves_no_file_of_its_own(path):
    with pytest.raises(TooMuchError):
        kept(path, archive(*(f"cache/{number}" for number in range(100))), limit=20_000)
    assert list(path.parent.iterdir()) == []


def test_half_an_archive_replaces_nothing(path):
    kept(path, archive("cache/a"))
    before = path.read_bytes()
    with pytest.raises(EngineError, match="it arrived incomplete"):
        kept(path, archive("cache/b", "cache/c")[:1200])
    assert [(one, one.read_bytes()) for one in path.parent.iterdir()] == [(path, before)]


@pytest.mark.parametrize(
    ("tool", "download", "other"),
    [
        ("pip", "http-v2/a/b/abc.body", "wheels/a/b/made-1-py3-none-any.whl"),
        ("pip", "http/a/b/abc", "selfcheck/abc"),
        ("uv", "wheels-v8/pypi/rich/15-py3-none-any.http", "sdists-v11/pypi/docopt/1/x/docopt-1-py3-none-any"),
        ("uv", "archive-v0/abc/poetry.lock", "wheels-v8/pypi/rich/15-py3-none-any.lock"),
        ("uv", "simple-v28/pypi/rich.rkyv", "wheels-v8/path/abc/one.msgpack"),
        ("uv", "simple-v28/index/abc/rich.rkyv", "git-v0/checkouts/abc/build/one.o"),
        ("npm", "_cacache/content-v2/sha512/a/b/c", "_cacache/tmp/a"),
        ("npm", "_cacache/index-v5/a/b/c", "_logs/debug.log"),
        ("cargo", "index.crates.io-1949cf8c6b5b557f/serde-1.0.0.crate", "index.crates.io-1949cf8c6b5b557f/x/y.crate"),
    ],
)
def test_downloads_are_told_from_what_was_made_here(tool, download, other):
    [pattern] = [one.kept for one in TOOLS if one.name == tool]
    assert pattern.fullmatch(download)
    assert not pattern.fullmatch(other)


@pytest.mark.parametrize(
    ("command", "files", "expected"),
    [
        ("pip install -e .", (), ["pip"]),
        ("pip install uv && uv sync", (), ["pip", "uv"]),
        ("npm ci", ("package.json",), ["npm"]),
        ("cargo fetch", ("Cargo.toml",), ["cargo"]),
        ("python3.11 -m build", ("Cargo.toml",), ["pip", "cargo"]),
        ("make deps", (), ["pip"]),
        ("true", (), []),
    ],
)
def test_a_tool_is_brought_its_downloads_where_it_is_likely_to_be_used(command, files, expected):
    assert [tool.name for tool in TOOLS if is_wanted(tool, command, files)] == expected


@pytest.mark.parametrize(
    ("image", "given", "left"),
    [
        ((), (), {"pip", "uv", "npm", "cargo"}),
        (("PIP_NO_CACHE_DIR=1",), (), {"uv", "npm", "cargo"}),
        ((), ("UV_LINK_MODE", "NPM_CONFIG_CACHE"), {"pip", "cargo"}),
    ],
)
def test_a_tool_whose_user_has_settled_its_cache_is_left_alone(image, given, left):
    assert {tool.name for tool in tools_of(Stage("install", ""), ImageConfig(env=image), given)} == left


def test_without_a_network_nothing_is_brought_that_could_not_be_had():
    assert tools_of(Stage("install", "", network=False), ImageConfig(), ()) == ()
