"""What is put into a sandbox and its environment for the pytest inside."""

from __future__ import annotations

import json
import os
from importlib.util import MAGIC_NUMBER
from pathlib import Path

import pytest

import pytest_stagebuild
from pytest_stagebuild.results.injection import Told
from pytest_stagebuild.selection import Selection

FOLDER = "/.stagebuild/run/inside"


def told(**given):
    return json.loads(Told(**{"selection": Selection(), **given}).files()[f"{FOLDER}/told.json"])


def test_what_was_selected_lies_beside_the_reporter():
    selected = told(selection=Selection(("tests/test_a.py",), {"keyword": "x"}))
    assert selected["paths"] == ["tests/test_a.py"]
    assert selected["options"] == {"keyword": "x"}


@pytest.mark.parametrize(("options", "passed"), [({"lf": True}, True), ({"failedfirst": True}, True), ({}, False)])
def test_what_failed_before_is_told_to_those_who_ask(options, passed):
    assert ("last_failed" in told(selection=Selection((), options), last_failed=("a.py::x",))) is passed


def test_pytest_finds_the_reporter_by_its_entry_point():
    files = Told(Selection()).files()
    assert files[f"{FOLDER}/stagebuild_inside-1.dist-info/entry_points.txt"] == (
        b"[pytest11]\nstagebuild_inside = stagebuild_inside\n\n[tox]\nstagebuild_tox = stagebuild_tox\n"
    )


def test_the_reporter_comes_compiled_too_and_names_no_file_of_this_machine():
    compiled = Told(Selection()).files()[f"{FOLDER}/reporter.compiled"]
    assert compiled.startswith(MAGIC_NUMBER)
    assert b"<stagebuild>" in compiled
    assert os.fsencode(Path(pytest_stagebuild.__file__).parent) not in compiled


@pytest.mark.parametrize(
    ("command", "inside", "expected"),
    [
        ("pytest", {}, {"PYTHONPATH": FOLDER}),
        ("pytest", {"PYTHONPATH": "/image"}, {"PYTHONPATH": f"{FOLDER}:/image"}),
        (
            "pytest",
            {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "theirs"},
            {"PYTHONPATH": FOLDER, "PYTEST_PLUGINS": "stagebuild_inside,theirs"},
        ),
        ("PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 pytest", {}, {"PYTHONPATH": FOLDER, "PYTEST_PLUGINS": "stagebuild_inside"}),
        ("pytest --disable-plugin-autoload", {}, {"PYTHONPATH": FOLDER, "PYTEST_PLUGINS": "stagebuild_inside"}),
    ],
)
def test_the_environment_is_added_to_and_not_replaced(command, inside, expected):
    variables = Told(Selection()).environment(command, inside)
    assert {name: value for name, value in variables.items() if name != "TOX_OVERRIDE"} == expected


@pytest.mark.parametrize("before", [{}, {"TOX_OVERRIDE": "testenv.x=1"}])
def test_tox_passes_it_on(before):
    passed = "pass_env+=PYTHONPATH,PYTEST_PLUGINS"
    override = Told(Selection()).environment("tox", before)["TOX_OVERRIDE"]
    assert override.split(";") == [*before.values(), f"testenv.{passed}", f"env_run_base.{passed}"]
