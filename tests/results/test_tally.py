"""What a run's tests come to, and what is missing."""

from __future__ import annotations

import pytest

from pytest_stagebuild.results.events import (
    Collected,
    CollectReport,
    Ended,
    InternalError,
    Phase,
    Session,
    Started,
    Tested,
)
from pytest_stagebuild.results.last_failed import LastFailed
from pytest_stagebuild.results.tally import Tally

BEGUN = Session("1", "9.2", "3.11", "/src", "/src", distributed=False)
ALL = Collected("1", ("a.py::x", "a.py::y", "a.py::z"))


def reported(name: str, outcome: str = "passed", session: str = "1") -> Tested:
    return Tested(session, name, ("a.py", 0, "x"), (Phase("call", outcome),))


def begun(name: str) -> Started:
    return Started("1", name, ("a.py", 0, "x"))


def tally(*events) -> Tally:
    made = Tally()
    for event in events:
        made.take(event)
    return made


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([reported("a.py::x"), reported("a.py::y"), reported("a.py::z"), Ended("1", 0)], ""),
        ([reported("a.py::x"), Ended("1", 1, "stopping after 1 failures")], ""),
        (
            [reported("a.py::x"), reported("a.py::z"), Ended("1", 0)],
            "1 test that was collected did not report: a.py::y",
        ),
        ([Ended("1", 0)], "3 tests that were collected did not report: a.py::x, a.py::y, a.py::z"),
        (
            [reported("a.py::x"), begun("a.py::y")],
            "the pytest inside ended without a word while it ran a.py::y; 1 more did not report",
        ),
        ([reported("a.py::x"), reported("a.py::y"), reported("a.py::z")], "the pytest inside ended without a word"),
        ([InternalError("1", "File x\nE: no"), Ended("1", 3)], "internal error of the pytest inside: E: no"),
    ],
)
def test_what_is_wrong_besides_failed_tests(events, problem):
    assert tally(BEGUN, ALL, *events).problem() == problem


def test_each_test_counts_once_for_each_pytest_that_ran_it():
    counts = tally(BEGUN, reported("a.py::x"), reported("a.py::y", "failed"), reported("a.py::y", "failed", "2")).counts
    assert (counts.reported, counts.failed) == (3, 2)
    assert str(counts) == "2 of 3 tests failed"


def test_each_test_counts_once_for_each_worker_that_ran_it():
    made = tally(BEGUN, ALL, ALL, *(reported(f"a.py::{name}", "failed") for name in "xxyz"))
    assert str(made.counts) == "4 of 4 tests failed"
    made.take(Ended("1", 1))
    assert made.problem() == "2 tests that were collected did not report: a.py::y, a.py::z"


def test_what_could_not_be_collected_is_no_test():
    broken = CollectReport("1", "a.py", Phase("collect", "failed"))
    assert str(tally(BEGUN, broken).counts) == "1 error in collection"
    another = CollectReport("1", "b.py", Phase("collect", "failed"))
    assert str(tally(BEGUN, broken, another, reported("c.py::x")).counts) == "1 test, 2 errors in collection"
    assert not tally(BEGUN, broken, Ended("1", 2)).no_tests


def test_a_test_is_known_by_its_name_in_junit_xml():
    made = tally(BEGUN, reported("tests/sub/test_a.py::TestC::test_m[a::b/c.py]"))
    assert made.knows("tests.sub.test_a.TestC::test_m[a::b/c.py]")
    assert not made.knows("tests.sub.test_a::test_m")


def test_what_failed_is_kept_until_it_passes(tmp_path):
    def after(*events) -> tuple[str, ...]:
        kept = LastFailed(tmp_path / "kept.json")
        for event in events:
            kept.take(event)
        kept.keep()
        return LastFailed(tmp_path / "kept.json").ids

    assert after(reported("a.py::x", "failed"), reported("a.py::y", "failed")) == ("a.py::x", "a.py::y")
    assert after() == ("a.py::x", "a.py::y")
    assert after(reported("a.py::x")) == ("a.py::y",)
    assert after(reported("a.py::y", "failed"), reported("a.py::y", session="another environment")) == ("a.py::y",)
    (tmp_path / "kept.json").write_text("{")
    assert after(reported("a.py::z", "failed")) == ("a.py::z",)
