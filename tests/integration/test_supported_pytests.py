"""Every supported pytest, with much used plugins installed and configured: none of them touches a stage."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_stagebuild.takeover import WAY_ROUND

HERE = Path(__file__).parents[2]

PLUGINS = (
    "anyio",
    "pytest-asyncio",
    "pytest-benchmark",
    "pytest-cov",
    "pytest-html",
    "pytest-instafail",
    "pytest-mock",
    "pytest-order",
    "pytest-randomly",
    "pytest-repeat",
    "pytest-rerunfailures",
    "pytest-socket",
    "pytest-sugar",
    "pytest-timeout",
    "pytest-xdist",
)

CONFIGURATION = """
[tool.pytest.ini_options]
addopts = "-n2 --reruns=2 --cov=x --strict-markers --disable-socket --count=2 --no-such-option -k=no"
required_plugins = ["pytest-nowhere>=99"]
timeout = 0.5
asyncio_mode = "auto"
xfail_strict = true
filterwarnings = ["error"]
testpaths = ["nowhere"]
no_such_key = "x"
"""

TYPED = ("--reruns=2", "--timeout=0.5", "-n2", "--count=2", "--strict-markers", "-p", "randomly", "--instafail", "--nf")


@pytest.fixture(scope="module", params=["8.0", "8.4", "9.0", "9.1", "newest"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A virtual environment with that pytest, the plugins and ours."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = str(folder / "bin" / "python")
    version = "pytest" if request.param == "newest" else f"pytest=={request.param}.*"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", version, *PLUGINS, str(HERE)]
    subprocess.run(install, check=True)
    return python


@pytest.fixture
def counting(new_project):
    """A project whose stages count their runs outside of the container's reach: by what they print."""
    project = new_project(
        install_cmd="sleep 1; echo installing",
        build_cmd="test ! -e broken",
        test_cmd="sleep 1; test ! -e failing",
    )
    table = (project.root / "pyproject.toml").read_text()
    project.write(
        {
            "pyproject.toml": table + CONFIGURATION,
            "conftest.py": "import a_dependency_that_the_host_has_not\n",
            "tests/host/test_images.py": "def test_image(build_image):\n    assert build_image.stage == 'build'\n",
        }
    )
    return project


@pytest.mark.slow
def test_no_plugin_touches_a_stage(counting, python: str, tmp_path: Path):
    report = tmp_path / "report.xml"
    run = counting.stagebuild(*TYPED, f"--junitxml={report}", plain=False, python=python)
    assert run.code == 0, run.output
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert "a run with --stagebuild-source is not distributed: -n and --dist are without effect" in run.output
    cases = [(case.get("name"), len(case)) for case in ET.parse(report).iter("testcase")]
    # The stages once each and first, with their properties; the host test as often as pytest-repeat was told to.
    assert cases[:3] == [("install", 1), ("build", 1), ("test", 1)]
    assert sorted(name for name, _ in cases[3:]) == ["test_image[1-2]", "test_image[2-2]"]

    counting.write({"failing": ""})
    failed = counting.stagebuild(*TYPED, plain=False, python=python)
    assert failed.code == 1, failed.output
    assert failed.outcomes() == {"install": "ran", "build": "ran", "test": "FAILED"}
    assert failed.output.count("stagebuild test: FAILED") == 1
    assert "rerun" not in failed.lines[-1]


@pytest.fixture(scope="module")
def failing_tests(new_shared_project):
    project = new_shared_project(install_cmd="pip install --no-compile pytest", build_cmd="true", test_cmd="pytest")
    project.write(
        {
            "test_a.py": "import warnings\n"
            "def test_fails(): assert [1] == [2]\n"
            "def test_warns(): warnings.warn('old')\n"
            "def test_subtests(subtests):\n    with subtests.test(number=1): assert 0\n",
        }
    )
    return project


@pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")
@pytest.mark.slow
def test_each_of_them_shows_the_tests_inside(failing_tests, python: str, tmp_path: Path):
    report = tmp_path / "report.xml"
    run = failing_tests.stagebuild("--junitxml", str(report), python=python)
    assert run.code == 1, run.output
    assert "\ntest_a.py F.uF" in run.output
    assert "\n    def test_fails():" not in run.output
    assert "\n>   def test_fails(): assert [1] == [2]\n" in run.output
    assert "\ntest_a.py:2: AssertionError\n" in run.output
    assert "\ntest_a.py::test_warns\n  test_a.py:3: UserWarning: old\n" in run.output
    assert "FAILED test_a.py::test_fails - assert [1] == [2]" in run.output
    assert "SUBFAILED(number=1) test_a.py::test_subtests - assert 0" in run.output
    assert "3 failed, 3 passed, 1 warning" in run.lines[-1]
    names = [case.get("name") for case in ET.parse(report).iter("testcase")]
    assert names == ["install", "build", "test_fails", "test_warns", "test_subtests"]
    listed = failing_tests.stagebuild("--collect-only", "-q", python=python)
    assert "test_a.py::test_warns" in listed.lines


def test_configuration_that_pytest_enforces_before_any_plugin_can_act_has_a_way_round(counting):
    table = (counting.root / "pyproject.toml").read_text()
    minimum = '[tool.pytest.ini_options]\nminversion = "99"\nfilterwarnings = ["error", "error::nowhere.Warning"]\n'
    counting.write({"pyproject.toml": table.partition("[tool.pytest.ini_options]")[0] + minimum})
    with counting.start("--stagebuild-source=.") as refused:
        refused.communicate()
    assert refused.returncode != 0
    run = counting.pytest(*shlex.split(WAY_ROUND)[1:])
    assert run.code == 0, run.output
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
