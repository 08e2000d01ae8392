from __future__ import annotations

import time

import pytest

import lapse


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("45s", 45), ("1h 30m", 5400), ("1h30m", 5400), ("2d 1s", 172801), (" 5 m ", 300)]
)
def test_reads_what_people_write(text: str, seconds: int) -> None:
    assert lapse.parse(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5", "5 parsecs", "30m 1h", "1h 1h"])
def test_refuses_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a duration|out of order"):
        lapse.parse(text)


def test_writes_what_it_reads() -> None:
    for seconds in range(0, 200_000, 7):
        assert lapse.parse(lapse.words(seconds)) == seconds


def test_no_duration_is_negative() -> None:
    with pytest.raises(ValueError, match="negative"):
        lapse.words(-1)


def test_a_stopwatch_measures_its_block() -> None:
    with lapse.Stopwatch() as watch:
        time.sleep(0.5)
    assert watch.seconds >= 0.5
