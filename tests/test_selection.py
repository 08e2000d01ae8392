"""What a command line selects: stages, host tests, tests inside."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.selection import Arguments, Place, Selection, check_reaches, classify, runs_pytest, select

FILES = (
    "pyproject.toml",
    "src/mod.py",
    "tests/conftest.py",
    "tests/test_a.py",
    "tests/host/test_h.py",
    "tests/test_i.py",
)
HOST = ("tests/host/test_h.py", "tests/test_i.py")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for path in FILES:
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).touch()
    return Place(tmp_path / "source", tmp_path / "source")


def sort(place: Place, *typed: str, host_tests: tuple[str, ...] = HOST) -> Arguments:
    return classify(typed, place, anchor=place.source / "pyproject.toml", files=FILES, host_tests=host_tests)


@pytest.mark.parametrize(
    ("typed", "inside"),
    [
        ("tests/test_a.py", "tests/test_a.py"),
        ("tests/test_a.py::test_x[a::b]", "tests/test_a.py::test_x[a::b]"),
        ("./tests//test_a.py::test_x", "tests/test_a.py::test_x"),
        ("tests/made_by_the_build.py", "tests/made_by_the_build.py"),
        ("/src/tests/test_a.py::test_x", "tests/test_a.py::test_x"),
        ("package.module", "package.module"),
    ],
)
def test_paths_and_ids_are_those_of_the_tests_inside(place, typed, inside):
    assert sort(place, typed) == Arguments(inner=(inside,))


def test_an_absolute_path_in_the_source_is_relative_inside(place):
    assert sort(place, f"{place.source}/tests/test_a.py::test_x").inner == ("tests/test_a.py::test_x",)


def test_a_path_is_relative_to_the_source_first_and_else_to_where_pytest_was_called(place):
    elsewhere = Place(place.source, place.source.parent)
    assert sort(elsewhere, "tests/test_a.py").inner == ("tests/test_a.py",)
    assert sort(elsewhere, "source/tests/test_a.py").inner == ("tests/test_a.py",)


@pytest.mark.parametrize("outside", ["../other/test_a.py", "/etc/passwd"])
def test_a_path_outside_the_source_is_an_error(place, outside):
    with pytest.raises(ConfigurationError, match=f"{outside} lies outside the source .* relative to the source"):
        sort(place, outside)


@pytest.mark.parametrize(
    ("typed", "stages"),
    [
        (["pyproject.toml::build"], ("build",)),
        (["pyproject.toml::test", "pyproject.toml::install"], ("test", "install")),
        (["pyproject.toml"], ("install", "build", "test")),
    ],
)
def test_stages_are_named_by_their_ids(place, typed, stages):
    assert sort(place, *typed) == Arguments(stages=stages)


def test_a_folder_means_the_host_tests_in_it_and_the_tests_inside(place):
    host = tuple(f"{place.source}/{path}" for path in HOST)
    assert sort(place, "tests") == Arguments(host=host, inner=("tests",))


def test_a_host_test_and_a_folder_of_nothing_else_are_not_passed_inside(place):
    assert sort(place, "tests/test_i.py::test_x") == Arguments(host=(f"{place.source}/tests/test_i.py::test_x",))
    assert sort(place, "tests/host") == Arguments(host=(f"{place.source}/tests/host/test_h.py",))


def options(**given: object) -> argparse.Namespace:
    pytests_own = {
        "keyword": "",
        "markexpr": "",
        "maxfail": 0,
        "lf": False,
        "failedfirst": False,
        "last_failed_no_failures": "all",
        "durations": None,
        "durations_min": None,
        "deselect": None,
        "ignore": None,
        "ignore_glob": None,
        "pyargs": False,
    }
    return argparse.Namespace(**{**pytests_own, **given})


def test_nothing_asked_for_leaves_the_pytest_inside_alone(place):
    assert select(options(), Arguments(), place, ()) == Selection()


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        ({"keyword": "a or b"}, {"keyword": "a or b"}),
        ({"markexpr": "not slow"}, {"markexpr": "not slow"}),
        ({"maxfail": 1}, {"maxfail": 1}),
        ({"lf": True, "last_failed_no_failures": "none"}, {"lf": True, "last_failed_no_failures": "none"}),
        ({"failedfirst": True}, {"failedfirst": True}),
        ({"durations": 5, "durations_min": 0.1}, {}),  # shown out here, of what is told from inside
        ({"tbstyle": "short", "showlocals": True}, {"tbstyle": "short", "showlocals": True}),
        ({"tbstyle": "auto"}, {}),
        ({"verbose": 2}, {"verbose": 2}),
        ({"verbose": -1}, {}),
        ({"capture": "no"}, {"capture": "no"}),
        ({"capture": "fd"}, {}),
        ({"deselect": ["tests/test_a.py::test_x"]}, {"deselect": ["tests/test_a.py::test_x"]}),
        ({"ignore": ["tests/test_a.py"]}, {"ignore": ["/src/tests/test_a.py"]}),
        ({"ignore_glob": ["*_slow.py"]}, {"ignore_glob": ["*_slow.py"]}),
        ({"pyargs": True}, {"pyargs": True}),
    ],
)
def test_options_that_mean_tests_are_passed_inside(place, given, passed):
    assert select(options(**given), Arguments(), place, ()).options == passed


def test_host_tests_are_left_out_inside(place):
    assert select(options(), Arguments(), place, HOST).options == {"ignore": [f"/src/{path}" for path in HOST]}


@pytest.mark.parametrize(
    ("command", "runs"),
    [
        ("pytest", True),
        ("python -m pytest -x", True),
        ("poetry run pytest --cov shelfmark", True),
        ("coverage run -m pytest;coverage report", True),
        ("py.test", True),
        ("cargo test", False),
        ("cat pytest-report.txt", False),
        ("python -m unittest", False),
    ],
)
def test_a_command_runs_pytest_if_it_says_so(command, runs):
    assert runs_pytest(command) is runs


def test_selecting_tests_with_a_command_that_runs_no_pytest_is_an_error(place):
    selection = select(options(keyword="x"), Arguments(inner=("tests/test_a.py",)), place, HOST)
    with pytest.raises(ConfigurationError, match=r"tests/test_a.py, -k cannot reach .* no pytest: cargo test. Leave"):
        check_reaches(selection, "cargo test")
    check_reaches(selection, "pytest")
    check_reaches(select(options(maxfail=1), Arguments(), place, HOST), "cargo test")


@pytest.mark.parametrize(
    "command", ["tox run -e py", "nox", "make test", "sh scripts/run-tests.sh", "./test", "python t.py"]
)
def test_what_starts_other_programs_may_run_a_pytest(place, command):
    check_reaches(Selection(typed=("-k",)), command)


@pytest.mark.parametrize(
    "command", ["python -m unittest", "cargo test", "npm test", "cmake --build .", "ctest", "go test ./..."]
)
def test_what_is_known_to_be_another_tool_does_not(place, command):
    with pytest.raises(ConfigurationError, match="runs no pytest"):
        check_reaches(Selection(typed=("-k",)), command)
