"""The tests inside report in whatever way the test command starts pytest, and where they cannot, the run says so."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow

FILES = {
    "test_a.py": "def test_one(): ...\ndef test_two(): ...\n",
    "run-tests.sh": 'set -eu\ncd /src\nfor _ in once; do python -m pytest "$@"; done\n',
    "Makefile": "test:\n\tpython -m pytest\n",
    "noxfile.py": """\
import nox

@nox.session(venv_backend="none")
def tests(session):
    session.run("python", "-m", "pytest")
""",
    "tox.ini": """\
[tox]
env_list = plain, own, path, plugins

[testenv]
skip_install = true
allowlist_externals = *
commands = {env:PYTEST}

[testenv:own]
pass_env = HOME

[testenv:path]
set_env = PYTHONPATH = /theirs

[testenv:plugins]
set_env = PYTEST_DISABLE_PLUGIN_AUTOLOAD = 1
""",
    "toml/tox.toml": """\
env_list = ["plain", "own"]

[env_run_base]
skip_install = true
allowlist_externals = ["*"]
change_dir = "/src"
commands = [["{env:PYTEST}"]]

[env.own]
pass_env = ["HOME"]
""",
}


@pytest.fixture(scope="module")
def shared(new_shared_project):
    project = new_shared_project(install_cmd="pip install coverage nox pytest tox uv", build_cmd="true")
    table = (project.root / "pyproject.toml").read_text()
    stages = 'install.inputs = ["pyproject.toml"]\nbuild.inputs = ["pyproject.toml"]\n'
    project.write({"pyproject.toml": table + stages, **FILES})
    run = project.stagebuild()
    assert run.code == 0, run.output
    return project


TOX = "PYTEST=$(command -v pytest) tox run"
"""The environments of tox need none of their own."""

REACHED = [
    "pytest",
    "python -m pytest",
    "cd /tmp && python -m pytest /src",
    "sh run-tests.sh --verbose",
    "env PYTHONPATH=/theirs:$PYTHONPATH pytest",
    "make test",
    "nox",
    "uv run --no-project --active pytest",
    "coverage run -m pytest && coverage report --fail-under=100",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 python -m pytest -p no:cacheprovider",
    f"{TOX} -e plain",
    f"{TOX} -e own",
    f"{TOX} -e path",
    f"{TOX} -e plugins",
    f"{TOX} -c toml/tox.toml -e plain",
    f"{TOX} -c toml/tox.toml -e own",
    "python -c 'import sys, pytest; sys.exit(pytest.main())'",
]

KEPT_OUT = ["env -i PATH=$PATH pytest", "python -I -m pytest", "PYTHONPATH=/theirs pytest"]


@pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")
@pytest.mark.parametrize("command", REACHED)
def test_the_tests_report_and_are_selected(shared, command):
    # Each id can be pasted, and the other test does not run.
    run = shared.stagebuild("-v", "test_a.py::test_two", f"--stagebuild-test-cmd={command}")
    assert run.code == 0, run.output
    assert [line.split()[:2] for line in run.lines if line.startswith("test_a.py::") and "PASSED" in line][-1:] == [
        ["test_a.py::test_two", "PASSED"]
    ], run.output
    assert "test_one" not in run.output
    assert "no reports arrived" not in run.output
    assert "3 passed" in run.lines[-1]


@pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")
@pytest.mark.parametrize("command", KEPT_OUT)
def test_where_nothing_reaches_pytest_its_tests_are_one_item_and_none_is_selected(shared, command):
    run = shared.stagebuild(f"--stagebuild-test-cmd={command}")
    assert run.code == 0, run.output
    assert "no reports arrived from the pytest of the test command" in run.output
    assert "3 passed" in run.lines[-1]

    selected = shared.stagebuild("-k", "test_two", f"--stagebuild-test-cmd={command}")
    assert selected.code == 1, selected.output
    assert selected.outcomes()["test"] == "FAILED"
    assert "not the selected tests" in selected.output
