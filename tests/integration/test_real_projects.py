"""Source distributions from PyPI, as their authors made them, with nothing but ``--stagebuild-source``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SDISTS = ("itsdangerous==2.2.0", "tomli==2.2.1")


@pytest.fixture(scope="session")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their unpacked folders, each under its project's name."""
    folder = tmp_path_factory.mktemp("sdists")
    names = [sdist.partition("==")[0] for sdist in SDISTS]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, f"--no-binary={','.join(names)}", *SDISTS], cwd=folder, check=True)
    for name in names:
        [archive] = folder.glob(f"{name}-*.tar.gz")
        (folder / name).mkdir()
        subprocess.run(["tar", "-xzf", archive, "--strip-components=1", "-C", folder / name], check=True)
    return folder


@pytest.fixture(scope="module")
def itsdangerous(new_copy, sdists: Path):
    return new_copy(sdists / "itsdangerous")


@pytest.fixture(scope="module")
def tomli(new_copy, sdists: Path):
    return new_copy(sdists / "tomli")


def passed_inside(project) -> int:
    log = (project.root / ".stagebuild" / "logs" / "test.log").read_text()
    return int(re.findall(r"(\d+) passed", log)[-1])


def test_a_project_passes_all_stages_and_is_reused(itsdangerous):
    first = itsdangerous.stagebuild(*itsdangerous.apart)
    assert first.code == 0, first.output
    assert first.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert "pip install -e . -r requirements/tests.txt build pytest  (detected)" in first.output
    assert passed_inside(itsdangerous) > 100

    second = itsdangerous.stagebuild(*itsdangerous.apart)
    assert second.code == 0, second.output
    assert second.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert passed_inside(itsdangerous) > 100


def test_what_was_built_is_in_the_checkpoint(itsdangerous):
    """Its own tests are of the installed package; this one installs what was built."""
    command = (
        "pip uninstall -qy itsdangerous && pip install -q --no-index dist/*.whl && cd / && python -m pytest -q /src"
    )
    run = itsdangerous.stagebuild(*itsdangerous.apart, f"--stagebuild-test-cmd={command}")
    assert run.code == 0, run.output
    assert run.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert passed_inside(itsdangerous) > 100


def test_a_project_that_ships_no_tests_is_told_so(tomli):
    run = tomli.stagebuild(*tomli.apart)
    assert run.code == 5
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "FAILED"}
    assert "test: no tests were collected (exit 5)" in run.output
    assert "The pytest in the container found no tests: check its arguments and testpaths." in run.output


def test_tests_that_are_added_run_on_what_was_built_before(tomli):
    test = "import tomli\n\n\ndef test_it():\n    assert tomli.loads('a = [1]') == {'a': [1]}\n"
    tomli.write({"tests/test_added.py": test})
    run = tomli.stagebuild(*tomli.apart, "--stagebuild-from=build-complete")
    assert run.code == 0, run.output
    assert run.outcomes() == {"install": "CACHED", "build": "FORCED", "test": "ran"}
    assert passed_inside(tomli) == 1
