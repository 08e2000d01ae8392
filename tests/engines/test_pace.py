"""How often somebody who reads what a command prints is woken."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_stagebuild.engines import pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(pace, "time", clock)
    return clock


def waits_in_a_second(clock: SimpleNamespace, every: float) -> int:
    """How often a reader has to wait for something that comes once in ``every`` seconds, and is read with the rest."""
    comes = every

    def wait() -> None:
        nonlocal comes
        clock.now = max(clock.now, comes)
        while comes <= clock.now:
            comes += every

    waiting = pace.paced(wait)
    count = 0
    while clock.now < 1.0:
        waiting()
        count += 1
    return count


def test_a_flood_of_letters_does_not_wake_the_reader_for_each(clock):
    assert waits_in_a_second(clock, every=0.0004) in range(50, 250)


def test_what_comes_seldom_is_read_as_it_comes(clock):
    assert waits_in_a_second(clock, every=0.05) in (20, 21)


def test_what_is_there_already_is_read_without_a_rest(clock):
    waiting = pace.paced(lambda: None)
    for _ in range(1000):
        waiting()
    assert clock.now == 0.0


def test_where_somebody_waits_for_an_answer_there_is_no_rest(clock):
    def wait() -> None:
        clock.now += 0.001

    waiting = pace.paced(wait, may_rest=lambda: False)
    for _ in range(100):
        waiting()
    assert clock.now == pytest.approx(0.1)
