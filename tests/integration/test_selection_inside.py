"""Paths, ids and options on the command line reach the tests inside, whatever the test command says itself."""

from __future__ import annotations

import pytest

TESTS = {
    "tests/conftest.py": "",
    "tests/test_one.py": """\
import os
import sys

import pytest

def test_first(): ...

@pytest.mark.parametrize("text", ["a::b", "c d"])
def test_second(text): ...

def test_environment_is_clean():
    assert not [name for name in os.environ if name.startswith("STAGEBUILD")]
    assert "PYTHONPATH" not in os.environ
    assert "PYTEST_PLUGINS" not in os.environ
    assert not [entry for entry in sys.path if "stagebuild" in entry]
""",
    "tests/test_two.py": """\
import os
import pytest

@pytest.mark.slow
def test_third(): ...

def test_fails(): assert not os.path.exists("fail")
""",
}


@pytest.fixture(scope="module")
def shared(new_shared_project):
    project = new_shared_project(
        install_cmd="pip install --no-compile pytest",
        build_cmd="true",
        test_cmd="pytest -v tests/test_one.py",
        install={"inputs": ["pyproject.toml"]},
        build={"inputs": ["pyproject.toml"]},
    )
    table = (project.root / "pyproject.toml").read_text()
    for stage in ("install", "build"):
        table = table.replace(f'{stage} = {{"inputs": ["pyproject.toml"]}}', f'{stage}.inputs = ["pyproject.toml"]')
    project.write({"pyproject.toml": table + '[tool.pytest.ini_options]\nmarkers = ["slow"]\n', **TESTS})
    assert project.stagebuild().code == 0
    return project


def ran(run) -> list[str]:
    """The ids of the tests that ran inside, as the log of their pytest has them."""
    words = (" PASSED", " FAILED")
    return [
        line.partition(word)[0] for line in run.lines for word in words if word in line and line.startswith("tests/")
    ]


ONE = [
    "tests/test_one.py::test_first",
    "tests/test_one.py::test_second[a::b]",
    "tests/test_one.py::test_second[c d]",
    "tests/test_one.py::test_environment_is_clean",
]
TWO = ["tests/test_two.py::test_third", "tests/test_two.py::test_fails"]


@pytest.mark.parametrize(
    ("ground", "arguments", "expected"),
    [
        ("docker", [], ONE),
        ("docker", ["tests/test_two.py"], TWO),
        ("docker", ["tests"], ONE + TWO),
        ("docker", ["tests/test_one.py::test_second[c d]", "tests/test_two.py::test_third"], [ONE[2], TWO[0]]),
        ("docker", ["tests", "-k", "second or third"], ONE[1:3] + TWO[:1]),
        ("docker", ["tests", "-m", "slow"], TWO[:1]),
        (
            "docker",
            ["tests", "--deselect", "tests/test_one.py::test_second", "--deselect=tests/test_two.py"],
            [ONE[0], ONE[3]],
        ),
        ("docker", ["tests", "--ignore=tests/test_one.py"], TWO),
        ("docker", ["-k", "environment"], ONE[3:]),
        ("local", [], ONE),
        ("local", ["tests/test_one.py::test_second[c d]", "tests/test_two.py::test_third"], [ONE[2], TWO[0]]),
    ],
    indirect=["ground"],
    scope="module",
)
def test_what_is_selected_outside_runs_inside(shared, arguments, expected):
    run = shared.stagebuild("-v", *arguments)
    assert run.code == 0, run.output
    assert ran(run) == expected


def test_the_first_failure_ends_the_tests_inside(shared):
    shared.write({"fail": ""})
    try:
        run = shared.stagebuild("-v", "-x", "tests/test_two.py::test_fails", "tests/test_two.py::test_third")
        assert run.code == 1
        assert ran(run) == TWO[1:]
        assert shared.stagebuild("-v", "tests/test_two.py").code == 1
    finally:
        (shared.root / "fail").unlink()

    # The host remembers what failed in a container that is gone.
    run = shared.stagebuild("-v", "--lf", "tests")
    assert run.code == 0
    assert ran(run) == TWO[1:]
    assert not (shared.root / ".pytest_cache").exists()


def test_what_pytest_says_of_the_last_failures_is_said_out_here_on_a_line_of_its_own(shared):
    said = "run-last-failure: rerun previous 1 failure (skipped 1 file)"
    shared.write({"fail": ""})
    try:
        assert shared.stagebuild("tests").code == 1
        for options in ((), ("-v",)):
            run = shared.stagebuild("--lf", *options, "tests")
            assert said in run.lines, run.output
        assert "run-last-failure" not in shared.stagebuild("--lf", "-q", "tests").output
    finally:
        (shared.root / "fail").unlink()
        assert shared.stagebuild("tests").code == 0


def test_durations_are_those_of_the_tests_inside(shared):
    run = shared.stagebuild("-v", "--durations=3", "-vv")
    assert "slowest 3 durations" in run.output


def test_selecting_nothing_inside_is_pytests_exit_code_5(shared):
    run = shared.stagebuild("-k", "nothing_of_that_name")
    assert run.code == 5
    assert "no tests were collected (exit 5)" in run.output


def test_tests_cannot_be_selected_where_the_command_runs_no_pytest(shared):
    run = shared.stagebuild("-k", "first", "--stagebuild-test-cmd=python -m unittest")
    assert run.code == 4
    assert run.output.strip().endswith(
        "ERROR: -k cannot reach the tests inside, for the test command runs no pytest: python -m unittest. "
        "Leave it out, or give a command that selects the tests with --stagebuild-test-cmd."
    )


def test_a_path_outside_the_source_is_a_usage_error(shared):
    run = shared.stagebuild("../elsewhere/test_x.py")
    assert run.code == 4
    assert "ERROR: ../elsewhere/test_x.py lies outside the source" in run.output


def test_stages_can_be_named_by_their_ids(shared):
    run = shared.stagebuild("pyproject.toml::build")
    assert run.code == 0
    assert "collected 1 item" in run.output
    assert run.outcomes() == {"install": "CACHED", "build": "CACHED"}
