"""Keys, records and the words for why a checkpoint does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.checkpoint import Record, explain, key_components, key_of
from pytest_stagebuild.inputs import Inputs, Matching, Used, Whole
from pytest_stagebuild.source.manifest import Entry, Manifest
from pytest_stagebuild.stage import Stage

STAGE = Stage("install", "pip install -e .", env={"A": "1"})
PATHS = st.lists(
    st.text("ab. \udcff\n", min_size=1, max_size=4).filter(lambda name: name.strip(".")), min_size=1, max_size=2
).map("/".join)
MANIFESTS = st.dictionaries(
    PATHS,
    st.builds(Entry, st.sampled_from(["file", "executable", "link"]), st.text("0123456789abcdef", max_size=4)),
    max_size=5,
).map(Manifest)


def components(stage: Stage = STAGE, **changed: object) -> dict[str, object]:
    given_ones: dict[str, object] = {
        "parent": "sha256:base",
        "project": "demo",
        "engine": "docker",
        "platform": "linux/amd64",
        "user": "",
        "secrets": ("TOKEN",),
        "salt": "",
    }
    return key_components(stage, **{**given_ones, **changed})  # type: ignore[arg-type]


def make_record(manifest: Manifest, **changed: object) -> Record:
    parts = components()
    record = Record(
        "uuid", "install", key_of(parts), parts, "sha256:base", ("sha256:a",), 1.5, Whole(), manifest, "1.0"
    )
    return replace(record, **changed)  # type: ignore[arg-type]


def test_the_key_of_a_known_stage_does_not_change_unless_the_schema_does() -> None:
    # When this fails, checkpoints that users have are no longer found: raise SCHEMA and say so in the changelog.
    assert key_of(components()) == "77f044eae0e22516c6a7d7d049308c16e1fdc96210ebcc01a9f5bbded9915aa1"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"parent": "sha256:other"}, "base image changed sha256:111 -> sha256:222"),
        ({"project": "other"}, "project renamed"),
        ({"platform": "linux/arm64"}, "platform changed"),
        ({"user": "app"}, "the base image's user changed"),
        ({"secrets": ()}, "secrets changed"),
        ({"salt": "x"}, "salt changed"),
        ({"version": "2"}, "version changed none -> 2"),
        ({"stage": replace(STAGE, command="true")}, "command changed"),
        ({"stage": replace(STAGE, network=False)}, "network setting changed"),
        ({"stage": replace(STAGE, env={"A": "2", "B": "3"})}, "environment changed (A, B)"),
        ({"stage": replace(STAGE, env={"A": ""})}, "environment changed (A)"),
        ({"stage": replace(STAGE, inputs=("*.toml",))}, "inputs setting changed"),
    ],
)
def test_each_part_changes_the_key_and_is_named_as_the_reason(changed: dict[str, object], reason: str) -> None:
    new, old = components(**changed), components()
    assert key_of(new) != key_of(old)
    assert explain(new, old, {"sha256:base": "sha256:111", "sha256:other": "sha256:222"}) == reason


def test_a_build_whose_parent_is_new_says_so() -> None:
    build = replace(STAGE, name="build")
    assert explain(components(build, parent="b"), components(build, parent="a"), {}) == "deps-installed is new"


def test_what_does_not_change_what_a_command_makes_does_not_change_its_key() -> None:
    assert key_of(components(replace(STAGE, timeout=5.0, detected=True))) == key_of(components())


def test_the_order_of_names_does_not_count() -> None:
    one = components(replace(STAGE, env={"A": "1", "B": "2"}), secrets=("X", "Y"))
    other = components(replace(STAGE, env={"B": "2", "A": "1"}), secrets=("Y", "X"))
    assert key_of(one) == key_of(other)


@given(MANIFESTS, st.sampled_from((Whole("no Python"), Matching(("*.py",)), Used(frozenset("ab"), frozenset(("",))))))
def test_a_record_survives_its_image(manifest: Manifest, inputs: Inputs) -> None:
    record = make_record(manifest, inputs=inputs)
    assert Record.from_bytes(record.to_bytes()) == record


@given(st.binary(max_size=200))
def test_what_is_not_a_whole_record_is_a_value_error(noise: bytes) -> None:
    whole = make_record(Manifest({"a": Entry("file", "1")})).to_bytes()
    for data in (noise, whole[: len(noise)], whole[:-1]):
        with pytest.raises(ValueError):  # noqa: PT011 - the type is the contract
            Record.from_bytes(data)


def test_a_record_whose_components_were_changed_is_refused() -> None:
    data = make_record(Manifest({})).to_bytes().replace(b"pip install", b"rm  install")
    with pytest.raises(ValueError, match="not a checkpoint's record"):
        Record.from_bytes(data)


@pytest.mark.parametrize(
    ("layers", "genuine"),
    [
        (("sha256:a",), True),
        (("sha256:a", "sha256:b"), True),
        (("sha256:a", "sha256:b", "sha256:c"), False),
        (("sha256:b",), False),
        ((), False),
    ],
)
def test_an_image_built_on_top_of_a_checkpoint_is_not_that_checkpoint(layers: tuple[str, ...], genuine: bool) -> None:
    assert make_record(Manifest({})).vouches_for(layers) is genuine


@given(MANIFESTS, MANIFESTS)
def test_with_all_inputs_any_difference_counts(before: Manifest, now: Manifest) -> None:
    assert bool(make_record(before).changes(now)) == (before.entries != now.entries)


def test_with_globs_only_what_matches_counts() -> None:
    manifest = Manifest({path: Entry("file", "1") for path in ("setup.py", "sub/setup.py", "src/a.py", "docs/x.md")})
    record = make_record(manifest, inputs=Matching(("/setup.py", "tests/")))
    edited = Manifest({**manifest.entries, "src/a.py": Entry("file", "2")})
    assert not record.changes(edited)
    assert str(record.changes(Manifest({**edited.entries, "setup.py": Entry("link", "1")}))) == "setup.py changed"
