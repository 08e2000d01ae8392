from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.source import Entry, Manifest, shown
from pytest_stagebuild.source.manifest import path_of, raw_path

names = st.binary(min_size=1, max_size=6).filter(lambda raw: not {b"/"[0], 0} & set(raw) and raw not in (b".", b".."))
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: path_of(b"/".join(parts)))
entries = st.builds(Entry, st.sampled_from(["file", "executable", "link"]), st.text("0123456789abcdef", max_size=4))
manifests = st.dictionaries(paths, entries, max_size=8).map(Manifest)


@given(manifests)
def test_a_manifest_survives_json(manifest: Manifest) -> None:
    text = json.dumps(manifest.to_json())

    assert Manifest.from_json(json.loads(text)) == manifest


@given(manifests, manifests)
def test_the_changes_lead_from_the_older_manifest_to_the_newer(older: Manifest, newer: Manifest) -> None:
    changes = newer.changes_since(older)

    rebuilt = {path: entry for path, entry in older.entries.items() if path not in changes.removed}
    rebuilt |= {path: newer.entries[path] for path in changes.added + changes.changed}
    assert rebuilt == newer.entries
    assert bool(changes) == (older != newer)
    assert not set(changes.added) & older.entries.keys()
    assert all(older.entries[path] != newer.entries[path] for path in changes.changed)


@given(manifests, manifests)
def test_the_digest_tells_manifests_apart(one: Manifest, other: Manifest) -> None:
    assert (one.digest == other.digest) == (one == other)


@given(st.binary())
def test_a_path_keeps_every_byte(raw: bytes) -> None:
    assert raw_path(path_of(raw)) == raw


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"a": None},
        {"a": ["file"]},
        {"a": ["folder", "00"]},
        {"a": ["file", 0]},
        {"": ["file", "00"]},
        {"/etc/passwd": ["file", "00"]},
        {"../a": ["file", "00"]},
        {"a/../../b": ["file", "00"]},
        {"a//b": ["file", "00"]},
        {"a/": ["file", "00"]},
        {"a\0b": ["file", "00"]},
    ],
)
def test_what_no_manifest_writes_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="manifest"):
        Manifest.from_json(value)


@given(st.binary())
def test_a_shown_path_can_be_printed_anywhere(raw: bytes) -> None:
    text = shown(path_of(raw))

    assert text.isprintable()
    text.encode("utf-8")


def test_a_shown_path_names_bytes_and_control_characters() -> None:
    assert shown(path_of("schön/\x1b[31m\n".encode() + b"\xff")) == "schön/\\x1b[31m\\n\\xff"


def test_changes_name_the_first_and_count_the_rest() -> None:
    old = Manifest({"a": Entry("file", "0"), "b": Entry("file", "0")})
    new = Manifest({"a": Entry("file", "1"), path_of(b"\xff"): Entry("file", "0")})

    assert str(new.changes_since(old)) == "a changed and 2 more"
    assert str(Manifest({}).changes_since(Manifest({path_of(b"\xff"): Entry("link", "0")}))) == "\\xff removed"
    assert str(old.changes_since(old)) == "nothing changed"
