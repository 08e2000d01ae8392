"""Old and new pytests tell the same of the same tests, with plugins beside the reporter that change how tests run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from by_hand import Heard, Place, check_whole
from suites import FILES, OUTCOMES

from pytest_stagebuild.results.events import Collected, Session, Skipped, Subtest, SuiteProperty, Warned

pytestmark = pytest.mark.slow

PLUGINS = ("pytest-cov", "pytest-randomly", "pytest-rerunfailures", "pytest-subtests", "pytest-xdist")

OLD = {"3.7": "6.0", "3.8": "6.0", "3.9": "6.1", "3.10": "6.2.5", "3.11": "6.2.5"}
"""The oldest pytest for each Python; those that are not here have none before 7."""


def _with_pytest(version: str) -> tuple[str, str]:
    """A Python for a pytest, and that pytest: the oldest one of both that this machine can have."""
    if version != "oldest":
        return sys.executable, version
    for name, oldest in OLD.items():
        found = shutil.which(f"python{name}")
        if found and subprocess.run([found, "-c", "import venv"], check=False, capture_output=True).returncode == 0:
            return found, oldest
    return sys.executable, "7.4"


@pytest.fixture(scope="module", params=["oldest", "7.4", "8.4", "newest"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtual environment with that pytest and the plugins."""
    base, version = _with_pytest(request.param)
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([base, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    wanted = "pytest" if version == "newest" else f"pytest=={version}" + ".*" * (version.count(".") == 1)
    # pytest has subtests of its own from 9 on.
    plugins = [name for name in PLUGINS if version != "newest" or name != "pytest-subtests"]
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted, *plugins]
    subprocess.run(install, check=True)
    return python


@pytest.fixture
def place(place: Place, python: str) -> Place:
    place.python = python
    return place


@pytest.fixture
def in_order(place: Place) -> Heard:
    place.write(FILES)
    return place.pytest("-p", "no:randomly")


def test_the_same_tests_come_to_the_same(in_order):
    check_whole(in_order)
    assert in_order.outcomes() == OUTCOMES
    assert list(in_order.outcomes()) == list(OUTCOMES)

    call = in_order.test("test_outcomes.py::test_fails")["call"]
    assert "E       AssertionError: assert {'a': 1} == {'a': 2}" in call.why.text
    assert call.why.crash.line == 15
    assert call.sections == (("Captured stdout call", "printed before it failed\n"),)
    assert call.start <= call.stop
    skipped = in_order.test("test_outcomes.py::test_skips_itself")["call"].why
    assert isinstance(skipped, Skipped)
    assert skipped.reason == "Skipped: not here"
    assert in_order.test("test_outcomes.py::test_passes")["teardown"].properties == (("number", 1), ("text", "é"))
    assert in_order.one(SuiteProperty).property == ("release", 7)
    [warned] = [event for event in in_order.all(Warned) if event.message == "careful"]
    assert warned.id == "test_outcomes.py::test_warns"


def test_distributed_they_come_to_the_same(place):
    place.write(FILES)
    heard = place.pytest("-n2")
    check_whole(heard)
    assert heard.outcomes() == OUTCOMES
    assert heard.one(Session).distributed


@pytest.mark.parametrize(("dist", "times"), [("each", 2), ("loadgroup", 1)])
def test_workers_that_share_tests_in_other_ways_tell_each_by_its_own_id(place, dist, times):
    grouped = "import pytest\n@pytest.mark.xdist_group('db')\n@pytest.mark.parametrize('n', [1, 2])\n"
    place.write({"test_a.py": grouped + "def test_a(n): ...\ndef test_b(): ...\n"})
    heard = place.pytest("-n2", f"--dist={dist}", "-p", "no:randomly")
    assert heard.code == 0
    ids = ["test_a.py::test_a[1]", "test_a.py::test_a[2]", "test_a.py::test_b"]
    assert (
        sorted(heard.ids) == sorted(one for event in heard.all(Collected) for one in event.ids) == sorted(times * ids)
    )
    assert set(heard.outcomes().values()) == {"passed passed passed"}


def test_selection_reaches_workers(place):
    place.write(FILES)
    heard = place.pytest("-n2", paths=["test_outcomes.py"], options={"keyword": "test_named and not test_fails"})
    assert sorted(heard.ids) == sorted(name for name in OUTCOMES if "test_named" in name)


def test_a_shuffled_run_is_told_in_its_order(place):
    place.write(FILES)
    heard = place.pytest("-v")
    check_whole(heard)
    assert heard.outcomes() == OUTCOMES
    assert "-randomly-seed=" in heard.output


def test_reruns_are_told_with_their_test(place):
    place.write(
        {
            "test_a.py": """\
import os

def test_flaky():
    if not os.path.exists("seen"):
        open("seen", "w").close()
        assert False
"""
        }
    )
    heard = place.pytest("--reruns=2", "-p", "no:randomly")
    check_whole(heard)
    assert heard.code == 0
    [outcomes] = heard.outcomes().values()
    assert outcomes.split().count("rerun") == 1
    assert "failed" not in outcomes
    assert outcomes.endswith("passed passed passed")


def test_subtests_are_told_apart(place):
    place.write(
        {
            "test_a.py": """\
def test_parts(subtests):
    for number in range(2):
        with subtests.test("part", number=number):
            assert number != 1
"""
        }
    )
    [test] = place.pytest().tests
    apart = [(phase.outcome, phase.subtest) for phase in test.phases if phase.subtest is not None]
    assert apart == [
        ("passed", Subtest("part", (("number", "0"),))),
        ("failed", Subtest("part", (("number", "1"),))),
    ]


@pytest.mark.parametrize("how", ["coverage run", "pytest --cov"])
def test_coverage_does_not_measure_the_reporter(place, how):
    place.write({"test_a.py": "def test_a(): ...\n"})
    module, *arguments = how.split()
    command = [place.python, "-m", module, *arguments, *(["-m", "pytest"] if module == "coverage" else [])]
    heard = place.run([*command, "-p", "no:cacheprovider"])
    assert heard.ids == ["test_a.py::test_a"], heard.output
    report = subprocess.run(
        [place.python, "-m", "coverage", "report"], cwd=place.root, check=True, capture_output=True, text=True
    ).stdout
    measured = [line.split()[0] for line in report.splitlines() if ".py" in line]
    assert measured == ["test_a.py"]


def test_the_reporter_compiles_on_the_oldest_python(place):
    folder = Path(__file__).parents[2] / "pytest_stagebuild" / "results" / "inside"
    for path in folder.glob("*.py"):
        script = f"compile(open({os.fspath(path)!r}).read(), 'x', 'exec')"
        assert subprocess.run([place.python, "-W", "error", "-c", script], check=False).returncode == 0
