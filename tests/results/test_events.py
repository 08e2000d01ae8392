"""What is told from inside is read without trust in who wrote it."""

from __future__ import annotations

import contextlib
import json
import struct
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.results.events import (
    VERSION,
    Crash,
    Failed,
    NewerEvents,
    Phase,
    SuiteProperty,
    Tested,
    event_in,
)

TEST = {
    "event": "test",
    "session": "1",
    "id": "a.py::x",
    "location": ["a.py", 0, "x"],
    "phases": [
        {
            "when": "call",
            "outcome": "failed",
            "times": [500_000_000, 0, 0],
            "failure": {"text": "said hunter2", "crash": ["a.py", 3, "hunter2"]},
            "sections": [["Captured stdout call", "hunter2"]],
            "properties": [["k", "hunter2"], ["n", 1]],
        }
    ],
}


def line(**changed: object) -> bytes:
    return json.dumps({**TEST, **changed}).encode()


def test_a_test_is_read_with_its_phases_and_every_text_of_it_redacted():
    event = event_in(line(), lambda text: text.replace("hunter2", "***"))
    assert event == Tested(
        "1",
        "a.py::x",
        ("a.py", 0, "x"),
        (
            Phase(
                "call",
                "failed",
                0.5,
                why=Failed("said ***", Crash("a.py", 3, "***")),
                sections=(("Captured stdout call", "***"),),
                properties=(("k", "***"), ("n", 1)),
            ),
        ),
    )


def test_keywords_hold_until_others_are_told_and_are_redacted():
    phases = [
        {"when": "setup", "outcome": "passed", "keywords": ["x", "hunter2"]},
        {"when": "call", "outcome": "passed"},
        {"when": "teardown", "outcome": "failed", "keywords": ["x"], "failure": {"text": "why", "message": True}},
    ]
    event = event_in(line(phases=phases), lambda text: text.replace("hunter2", "***"))
    assert isinstance(event, Tested)
    assert [phase.keywords for phase in event.phases] == [("x", "***"), ("x", "***"), ("x",)]
    without = event_in(line())
    assert isinstance(without, Tested)
    assert without.phases[0].keywords == ()


PASSED = {
    "event": "passed",
    "session": "1",
    "id": "a.py::x",
    "location": ["a.py", 0, "x"],
    "times": struct.pack("<9d", 0.5, 1.0, 1.5, 0.25, 2.0, 2.25, 0.125, 3.0, 3.125).hex(),
    "keywords": ["x", "hunter2"],
}


def test_a_test_that_passed_is_read_with_its_phases():
    event = event_in(json.dumps(PASSED), lambda text: text.replace("hunter2", "***").replace("00", "***"))
    phases = (
        Phase("setup", "passed", 0.5, 1.0, 1.5, keywords=("x", "***")),
        Phase("call", "passed", 0.25, 2.0, 2.25, keywords=("x", "***")),
        Phase("teardown", "passed", 0.125, 3.0, 3.125, keywords=("x", "***")),
    )
    assert event == Tested("1", "a.py::x", ("a.py", 0, "x"), phases)


@pytest.mark.parametrize(
    "times",
    [None, "", "x" * 144, "00" * 71, *(struct.pack("<9d", *[0.0] * 8, wrong).hex() for wrong in (nan, inf, 1e300))],
)
def test_times_that_no_clock_shows_are_refused(times):
    with pytest.raises(ValueError, match=r"."):
        event_in(json.dumps({**PASSED, "times": times}))


def test_a_property_of_the_suite_is_read_and_redacted():
    told = {"event": "suite_property", "session": "1", "property": ["key", "hunter2"]}
    event = event_in(json.dumps(told).encode(), lambda text: text.replace("hunter2", "***"))
    assert event == SuiteProperty("1", ("key", "***"))
    with pytest.raises(ValueError, match=r"."):
        event_in(json.dumps({**told, "property": ["key"]}).encode())


@pytest.mark.parametrize(
    "changed",
    [
        {"id": 3},
        {"location": ["a.py", "0", "x"]},
        {"location": "a.py"},
        {"phases": None},
        {"phases": [3]},
        {"phases": [{"when": "call", "outcome": None}]},
        {"phases": [{"when": "call", "outcome": "failed", "times": ["long", 0, 0]}]},
        {"phases": [{"when": "call", "outcome": "failed", "times": [10**400, 0, 0]}]},
        {"phases": [{"when": "call", "outcome": "skipped", "skip": ["a.py"]}]},
        {"phases": [{"when": "call", "outcome": "passed", "keywords": "x"}]},
        {"phases": [{"when": "call", "outcome": "passed", "keywords": [1]}]},
    ],
)
def test_what_no_reporter_writes_is_refused(changed):
    with pytest.raises(ValueError, match=r"."):
        event_in(line(**changed))


NESTED = st.recursive(st.none() | st.text(), st.lists)


@given(st.binary(max_size=200) | NESTED.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_an_event_or_none_or_a_value_error(garbage):
    with contextlib.suppress(ValueError):
        assert event_in(garbage) is None


def test_a_line_that_is_nested_without_end_is_refused():
    with pytest.raises(ValueError, match="deep"):
        event_in(b"[" * 200_000)


def test_events_of_a_later_kind_are_left_alone_and_those_of_a_later_version_told():
    assert event_in(line(event="invented later")) is None
    session = {"event": "session", "session": "1", "v": VERSION + 1}
    with pytest.raises(NewerEvents):
        event_in(json.dumps(session).encode())


def test_a_text_that_cannot_be_encoded_is_shown_by_its_escapes():
    event = event_in(line(id="a.py::\ud800"))
    assert isinstance(event, Tested)
    assert event.id == "a.py::\\ud800"
