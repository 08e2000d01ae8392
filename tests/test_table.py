from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.table import (
    STAGE_KEYS,
    TABLE_KEYS,
    StageTable,
    Table,
    Variable,
    parse_table,
    read_table,
    read_toml,
)


def parsed(**values: object) -> Table:
    return parse_table(values, file="pyproject.toml", prefix="tool.stagebuild")


def refusal(**values: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parsed(**values)
    return str(caught.value)


def read(source: Path) -> Table:
    return read_table(source, read_toml(source / "pyproject.toml"))


def test_every_key_arrives(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        """
        [tool.stagebuild]
        image = "tag:debian:bookworm"
        install_cmd = "make deps"
        engine = "docker"
        timeout = 60
        env = { MODE = "ci" }
        secrets = ["TOKEN"]
        artifacts = ["coverage.xml"]
        host_tests = ["tests/host"]
        lockfile = "state/lock.json"
        keep = 3
        pass_host_env = false
        salt = "2"

        [tool.stagebuild.build]
        command = "make"
        timeout = 1.5
        env = ["A=1=2", "B"]
        network = false
        inputs = ["src/**"]
        """
    )
    table = read(tmp_path)
    assert table == Table(
        file="pyproject.toml",
        image="tag:debian:bookworm",
        engine="docker",
        timeout=60.0,
        env=(Variable("MODE", "ci"),),
        secrets=("TOKEN",),
        artifacts=("coverage.xml",),
        host_tests=("tests/host",),
        lockfile="state/lock.json",
        keep=3,
        pass_host_env=False,
        salt="2",
        stages={
            "install": StageTable(command="make deps"),
            "build": StageTable("make", 1.5, (Variable("A", "1=2"), Variable("B", None)), False, ("src/**",)),
            "test": StageTable(),
        },
    )


def test_a_project_without_a_table_has_no_wishes(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\nline-length = 100\n")
    assert read(tmp_path) == Table()


def test_stagebuild_toml_is_the_table_itself(tmp_path: Path) -> None:
    (tmp_path / "stagebuild.toml").write_text('image = "debian"\n[test]\ncommand = "make check"\n')
    table = read(tmp_path)
    assert (table.file, table.image, table.stages["test"].command) == ("stagebuild.toml", "debian", "make check")


def test_two_tables_are_refused_and_both_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.stagebuild]\n")
    (tmp_path / "stagebuild.toml").write_text("")
    with pytest.raises(ConfigurationError, match=r"\[tool\.stagebuild\] in .*pyproject\.toml and a stagebuild\.toml"):
        read(tmp_path)


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = \n")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not valid TOML: .*line 2"):
        read(tmp_path)


def test_a_file_that_is_not_utf8_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_bytes(b"[project]\n# caf\xe9\n")
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml is not UTF-8 \(at line 2\)"):
        read(tmp_path)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").mkdir()
    with pytest.raises(ConfigurationError, match=r"pyproject\.toml cannot be read: Is a directory"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"instal_cmd": "x"},
            (
                "pyproject.toml: key `instal_cmd` in [tool.stagebuild] is unknown. "
                "Did you mean `install_cmd`? Correct it and run again."
            ),
        ),
        (
            {"build": {"time_out": 3}},
            (
                "pyproject.toml: key `time_out` in [tool.stagebuild.build] is unknown. "
                "Did you mean `timeout`? Correct it and run again."
            ),
        ),
        (
            {"install": {"image": "debian"}},
            (
                "pyproject.toml: key `image` in [tool.stagebuild.install] belongs in the table above it. "
                "Move it and run again."
            ),
        ),
        (
            {"network": False},
            (
                "pyproject.toml: key `network` in [tool.stagebuild] belongs in [install], [build] or [test] below it. "
                "Move it and run again."
            ),
        ),
        (
            {"build_cmd": "make", "build": {"command": "make"}},
            (
                "pyproject.toml: key `build_cmd` in [tool.stagebuild] excludes `command` in [tool.stagebuild.build], "
                "which is set too. Keep one of them and run again."
            ),
        ),
        (
            {"test": {"inputs": "all"}},
            (
                "pyproject.toml: key `inputs` in [tool.stagebuild.test] has no meaning: this stage leaves no "
                "checkpoint to reuse. Remove it and run again."
            ),
        ),
        (
            {"test_cmd": " "},
            (
                "pyproject.toml: key `test_cmd` in [tool.stagebuild] is empty. "
                "Write `true` for a stage that has nothing to do and run again."
            ),
        ),
    ],
)
def test_a_refusal_names_file_key_and_remedy(values: dict[str, object], message: str) -> None:
    assert refusal(**values) == message


def test_an_unknown_key_that_is_like_no_other_is_told_the_known_ones() -> None:
    message = refusal(zzz=1)
    assert all(key in message for key in TABLE_KEYS)


def test_at_the_top_of_stagebuild_toml_no_table_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"^stagebuild\.toml: key `imge` is unknown\. Did you mean `image`"):
        parse_table({"imge": "debian"}, file="stagebuild.toml", prefix="")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("image", 3, "must be a string, not 3"),
        ("image", "a\0b", "holds a NUL character"),
        ("timeout", True, "must be a positive number of seconds, not True"),
        ("timeout", 0, "must be a positive number of seconds, not 0"),
        ("timeout", float("nan"), "must be a positive number of seconds, not nan"),
        ("timeout", float("inf"), "must be a positive number of seconds, not inf"),
        ("timeout", 10**400, "must be a positive number of seconds"),
        ("timeout", "60", "must be a positive number of seconds, not '60'"),
        ("isolate", "each", 'must be "stage", "file" or "test"'),
        ("downloads", "none", 'must be "keep" or "fresh"'),
        ("jobs", 0, "must be a whole number from 1, not 0"),
        ("junit", "r.xml", "must be a list of strings"),
        ("keep", 0, "must be a whole number from 1, not 0"),
        ("keep", True, "must be a whole number from 1, not True"),
        ("pass_host_env", "no", "must be true or false, not 'no'"),
        ("secrets", "TOKEN", "must be a list of strings, not 'TOKEN'"),
        ("secrets", ["A-B"], "names no environment variable: 'A-B'"),
        ("artifacts", [1], "must be a list of strings, not [1]"),
        ("artifacts", [""], "holds an empty string"),
        ("env", {"A": 1}, "gives A a value that is not a string"),
        ("env", {"1A": "x"}, "names no environment variable: '1A'"),
        ("env", ["=x"], "must hold NAME or NAME=VALUE"),
        ("build", {"inputs": "src"}, """must be "traced", "all" or a list of globs, not 'src'"""),
        ("build", "make", "[tool.stagebuild.build] must be a table, not 'make'"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(key: str, value: object, expected: str) -> None:
    message = refusal(**{key: value})
    assert expected in message
    assert key in message


def test_a_refused_variable_does_not_show_its_value() -> None:
    assert "hunter2" not in refusal(env=["A-B=hunter2"])
    assert "hunter2" not in refusal(secrets=["TOKEN=hunter2"])


def test_a_salt_may_be_empty() -> None:
    assert parsed(salt="").salt == ""


def test_no_inputs_at_all_are_a_choice() -> None:
    assert parsed(install={"inputs": []}).stages["install"].inputs == ()


scalars = (
    st.text(max_size=12)
    | st.sampled_from(["all", "traced", "A", "A=1", "true"])
    | st.integers()
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.booleans()
    | st.datetimes()
)
keys = st.sampled_from([*TABLE_KEYS, *STAGE_KEYS]) | st.text(max_size=8)
toml = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@settings(deadline=None)
@given(st.dictionaries(keys, toml, max_size=5) | toml)
def test_whatever_a_table_holds_is_read_or_refused(value: object) -> None:
    try:
        table = parse_table(value, file="pyproject.toml", prefix="tool.stagebuild")
    except ConfigurationError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert table.timeout is None or table.timeout > 0
        assert set(table.stages) == {"install", "build", "test"}
    assert refusal == "" or "pyproject.toml" in refusal
