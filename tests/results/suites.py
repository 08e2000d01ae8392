"""A small project whose tests come to everything that a test can come to, and what they come to."""

from __future__ import annotations

FILES = {
    "pytest.ini": "[pytest]\nmarkers = chosen\n",
    "test_outcomes.py": """\
import warnings

import pytest


def test_passes(record_property, record_testsuite_property):
    record_testsuite_property("release", 7)
    record_property("number", 1)
    record_property("text", "\\u00e9")


def test_fails():
    print("printed before it failed")
    left = {"a": 1}
    assert left == {"a": 2}


@pytest.fixture
def broken_setup():
    raise RuntimeError("broken set-up")


def test_error_in_setup(broken_setup): ...


@pytest.fixture
def broken_teardown():
    yield
    raise RuntimeError("broken teardown")


def test_error_in_teardown(broken_teardown): ...


@pytest.mark.skip(reason="not today")
def test_skipped(): ...


def test_skips_itself():
    pytest.skip("not here")


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert False


@pytest.mark.xfail(reason="known", strict=True)
def test_xpasses_strictly(): ...


@pytest.mark.xfail(reason="known")
def test_xpasses(): ...


@pytest.mark.parametrize("text", ["a::b", "c d", "[e]", "\\u00e9", "x/y", "-k"])
def test_named(text): ...


def test_warns():
    warnings.warn("careful", DeprecationWarning)


class TestClass:
    def test_method(self): ...
""",
    "test_absent.py": "import pytest\npytest.skip('no module of that name', allow_module_level=True)\n",
    "test_text.txt": ">>> 1 + 1\n3\n",
}

OUTCOMES = {
    "test_outcomes.py::test_passes": "passed passed passed",
    "test_outcomes.py::test_fails": "passed failed passed",
    "test_outcomes.py::test_error_in_setup": "failed passed",
    "test_outcomes.py::test_error_in_teardown": "passed passed failed",
    "test_outcomes.py::test_skipped": "skipped passed",
    "test_outcomes.py::test_skips_itself": "passed skipped passed",
    "test_outcomes.py::test_xfails": "passed skippedx passed",
    "test_outcomes.py::test_xpasses_strictly": "passed failed passed",
    "test_outcomes.py::test_xpasses": "passed passedx passed",
    "test_outcomes.py::test_named[a::b]": "passed passed passed",
    "test_outcomes.py::test_named[c d]": "passed passed passed",
    "test_outcomes.py::test_named[[e]]": "passed passed passed",
    "test_outcomes.py::test_named[\\xe9]": "passed passed passed",
    "test_outcomes.py::test_named[x/y]": "passed passed passed",
    "test_outcomes.py::test_named[-k]": "passed passed passed",
    "test_outcomes.py::test_warns": "passed passed passed",
    "test_outcomes.py::TestClass::test_method": "passed passed passed",
    "test_text.txt::test_text.txt": "passed failed passed",
}
