"""What counts as a change of what a command used."""

from __future__ import annotations

import pytest

from pytest_stagebuild.inputs import Inputs, Matching, Used, Whole, inputs_from_json
from pytest_stagebuild.source.manifest import Entry, Manifest

SENT = Manifest(
    {
        "README.md": Entry("file", "r"),
        "pkg/a.py": Entry("file", "a"),
        "pkg/b.py": Entry("file", "b"),
        "pkg/deep/c.py": Entry("executable", "c"),
        "tests/test_a.py": Entry("file", "t"),
        "link": Entry("link", "pkg"),
    }
)


def with_file(path: str, entry: Entry | None) -> Manifest:
    entries = {**SENT.entries, path: entry}
    return Manifest({path: entry for path, entry in entries.items() if entry})


READS_A = Used.of(["pkg/a.py"], [], SENT)


def test_a_used_file_brings_the_folders_that_lead_to_it_and_every_link() -> None:
    assert Used(frozenset({"pkg/a.py", "link"}), frozenset({"", "pkg"})) == READS_A


def test_what_was_not_sent_is_no_input() -> None:
    assert Used.of(["made.py", "pkg/made.py"], ["build", "pkg"], SENT).files == {"link"}
    assert Used.of([], ["build", "build/lib"], SENT).folders == {""}


@pytest.mark.parametrize(
    ("path", "entry", "change"),
    [
        ("pkg/a.py", Entry("file", "new"), "pkg/a.py changed"),
        ("pkg/a.py", Entry("executable", "a"), "pkg/a.py changed"),
        ("pkg/a.py", None, "pkg/a.py removed"),
        # What lies beside a used file may have been looked for.
        ("pkg/b.py", Entry("executable", "b"), "pkg/b.py changed"),
        ("pkg/b.py", Entry("link", "b"), "pkg/b.py changed"),
        ("pkg/b.py", None, "pkg/b.py removed"),
        ("pkg/new.py", Entry("file", "n"), "pkg/new.py added"),
        ("pkg/new/n.py", Entry("file", "n"), "pkg/new added"),
        ("new.md", Entry("file", "n"), "new.md added"),
        ("link", Entry("link", "tests"), "link changed"),
        ("link", Entry("file", "pkg"), "link changed"),
    ],
)
def test_a_change_that_the_command_could_have_seen_counts(path: str, entry: Entry | None, change: str) -> None:
    assert str(READS_A.changes(SENT, with_file(path, entry))) == change


@pytest.mark.parametrize(
    ("path", "entry"),
    [
        ("pkg/b.py", Entry("file", "new")),
        ("README.md", Entry("file", "new")),
        ("tests/test_a.py", Entry("executable", "new")),
        ("tests/test_b.py", Entry("file", "new")),
        ("pkg/deep/c.py", Entry("file", "c")),
        ("pkg/deep/d.py", Entry("file", "d")),
    ],
)
def test_a_change_that_it_could_not_see_does_not(path: str, entry: Entry) -> None:
    assert not READS_A.changes(SENT, with_file(path, entry))


def test_a_folder_that_becomes_a_file_counts_where_its_name_was_seen() -> None:
    now = Manifest(
        {
            **{path: entry for path, entry in SENT.entries.items() if path != "tests/test_a.py"},
            "tests": Entry("file", "x"),
        }
    )
    assert str(Used.of([], [""], SENT).changes(SENT, now)) == "tests changed"


def test_a_command_that_uses_nothing_depends_on_links_and_the_names_at_the_top() -> None:
    nothing = Used.of([], [], SENT)
    assert not nothing.changes(SENT, with_file("README.md", Entry("file", "new")))
    assert not nothing.changes(SENT, with_file("pkg/new.py", Entry("file", "new")))
    assert str(nothing.changes(SENT, with_file("new.md", Entry("file", "new")))) == "new.md added"
    assert str(nothing.changes(SENT, with_file("link", Entry("link", "other")))) == "link changed"


@pytest.mark.parametrize("inputs", [Whole(), Whole("no Python"), Matching(("*.py", "!a.py")), READS_A, Used()])
def test_inputs_survive_their_record(inputs: object) -> None:
    assert inputs_from_json(inputs.to_json()) == inputs


@pytest.mark.parametrize(
    "value",
    [
        None,
        "all",
        {},
        {"all": True},
        {"all": False, "why": ""},
        {"globs": [1]},
        {"files": ["a"]},
        {"files": [1], "folders": []},
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not the inputs"):
        inputs_from_json(value)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (Whole(), "all 6 files"),
        (Whole("no Python"), "all 6 files (no Python)"),
        (Matching(("*.py",)), "4 of 6 files, which match *.py"),
        (READS_A, "2 of 6 files: link, pkg/a.py; the names in ./, pkg/"),
        (
            Used.of(["pkg/a.py", "pkg/b.py", "pkg/deep/c.py", "README.md"], [], SENT),
            "5 of 6 files: README.md, link, pkg/ (3); the names in ./, pkg/, pkg/deep/",
        ),
    ],
)
def test_inputs_in_words(inputs: Inputs, words: str) -> None:
    assert inputs.describe(SENT) == words
