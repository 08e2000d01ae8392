"""A context that is entered by a thread of its own, and left by whoever takes it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pytest_stagebuild.ahead import Ahead, Soon


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opening(said: list[str]):
    @contextmanager
    def open_it(step: Callable[[str], None]) -> Iterator[str]:
        step("created")
        said.append("entered by us" if threading.current_thread() is threading.main_thread() else "entered")
        try:
            yield "sandbox"
        except ValueError as error:
            said.append(f"left by {error}")
            raise
        else:
            said.append("left")

    return open_it


def test_it_is_entered_while_something_else_goes_on(opening, said: list[str]) -> None:
    waiting = threading.Event()

    @contextmanager
    def slow(step: Callable[[str], None]) -> Iterator[str]:
        waiting.wait()
        with opening(step) as value:
            yield value

    ahead = Ahead(slow)
    said.append("something else")
    waiting.set()
    with ahead.taken(lambda _: None) as value:
        assert value == "sandbox"
        said.append("used")
    assert said == ["something else", "entered", "used", "left"]


def test_its_steps_are_told_to_whoever_takes_it(opening) -> None:
    told: list[tuple[str, threading.Thread]] = []
    with Ahead(opening).taken(lambda step: told.append((step, threading.current_thread()))):
        assert told == [("created", threading.current_thread())]


def test_an_error_of_the_taker_is_seen_by_the_context(opening, said: list[str]) -> None:
    with pytest.raises(ValueError, match="ours"), Ahead(opening).taken(lambda _: None):
        raise ValueError("ours")
    assert said == ["entered", "left by ours"]


def test_what_entering_raises_is_raised_for_whoever_takes_it() -> None:
    @contextmanager
    def broken(step: Callable[[str], None]) -> Iterator[str]:
        step("created")
        raise OSError("no engine")
        yield ""

    told: list[str] = []
    with pytest.raises(OSError, match="no engine"), Ahead(broken).taken(told.append):
        pass
    assert told == []


def test_what_nobody_takes_is_left_all_the_same(opening, said: list[str]) -> None:
    ahead = Ahead(opening)
    ahead.discard()
    ahead.discard()
    assert said == ["entered", "left"]


def test_what_was_taken_is_not_left_twice(opening, said: list[str]) -> None:
    ahead = Ahead(opening)
    with ahead.taken(lambda _: None):
        pass
    ahead.discard()
    assert said == ["entered", "left"]


def test_what_computes_gives_way_soon_while_something_is_begun_ahead() -> None:
    usual = sys.getswitchinterval()
    go_on = threading.Event()
    one, two = Soon(go_on.wait), Soon(sys.getswitchinterval)
    assert two.get() < usual
    assert sys.getswitchinterval() < usual
    go_on.set()
    one.get()
    assert sys.getswitchinterval() == usual
