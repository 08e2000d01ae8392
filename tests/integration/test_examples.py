"""Every example, run as its README says, on a copy."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from grounds import on_each_engine

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2]
RAN = {"install": "ran", "build": "ran", "test": "ran"}
REUSED = {"install": "CACHED", "build": "CACHED", "test": "ran"}


@pytest.fixture(scope="module")
def python_package(new_copy):
    return new_copy(HERE / "examples" / "python-package")


@pytest.fixture(scope="module")
def fixtures(new_copy):
    return new_copy(HERE / "examples" / "fixtures")


def log(project, stage: str) -> str:
    return (project.root / ".stagebuild" / "logs" / f"{stage}.log").read_text()


@on_each_engine
def test_python_package_is_taken_through_all_stages_and_reused(python_package):
    first = python_package.stagebuild(*python_package.apart)
    assert first.code == 0, first.output
    assert first.outcomes() == RAN
    assert re.search(r"\b15 passed", log(python_package, "test"))

    second = python_package.stagebuild(*python_package.apart)
    assert second.code == 0, second.output
    assert second.outcomes() == REUSED


@pytest.mark.parametrize("ground", ["docker"], indirect=True)
def test_tox_runs_python_package_with_the_checkout_that_is_named(python_package):
    tox = [sys.executable, "-m", "tox", "run", "-q", "--", *python_package.apart]
    run = subprocess.run(
        tox,
        cwd=python_package.root,
        env={**python_package.environ, "STAGEBUILD": str(HERE)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "install  pip install -e '.[test]' build pytest" in run.stdout
    assert "17 passed" in run.stdout


def test_poetry_package_brings_its_coverage_out(new_copy):
    project = new_copy(HERE / "examples" / "poetry-package")
    run = project.stagebuild(*project.apart)
    assert run.code == 0, run.output
    assert run.outcomes() == RAN
    assert "shelfmark-1.0.0-py3-none-any.whl" in log(project, "build")
    coverage = ET.parse(project.root / ".stagebuild" / "artifacts" / "coverage.xml").getroot()
    assert float(coverage.attrib["line-rate"]) > 0.9


def test_rust_crate_is_built_and_tested_on_an_image_with_cargo(new_copy):
    project = new_copy(HERE / "examples" / "rust-crate")
    run = project.stagebuild(*project.apart)
    assert run.code == 0, run.output
    assert run.outcomes() == RAN
    assert "rust:1-slim" in run.output
    assert log(project, "test").count("test result: ok") == 4
    assert project.stagebuild(*project.apart).outcomes() == REUSED


@on_each_engine
def test_fixtures_run_beside_the_tests_in_the_container(fixtures):
    run = fixtures.stagebuild(*fixtures.apart)
    assert run.code == 0, run.output
    assert run.outcomes() == RAN
    assert "1 host test files run here: tests/test_images.py" in run.output
    assert re.search(r"\b2 passed", log(fixtures, "test"))
    assert "tests/test_images.py" not in log(fixtures, "test")


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_fixtures_run_alone_and_the_images_are_made_for_those_that_ask(fixtures):
    run = fixtures.pytest("-rA", *fixtures.apart)
    assert run.code == 0, run.output
    assert "7 passed" in run.output
    assert "PASSED tests/test_images.py::test_the_wheel_is_enough" in run.output
