"""Reading what a command prints without being woken for every letter of it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_WAITED: Final = 0.0001
"""Seconds from which on a call counts as one that had to wait."""

_OFTEN: Final = 50
_WITHIN: Final = 0.5
_REST: Final = 0.02
"""After so many waits within so many seconds, the next ones are each followed by so many seconds' rest."""


def paced(wait: Callable[P, T], *, may_rest: Callable[[], bool] = lambda: True) -> Callable[P, T]:
    """A call that waits for something to read, with a rest after each where it has had to wait often of late.

    Tests print a letter each. Whoever wakes for each of them, and makes those wake who pass it on, takes the processor
    from the very tests: a twentieth of the time of trivial ones. What comes seldom, or in one go, is not held up;
    nor is anything as long as it must not be, by ``may_rest``.
    """
    waits: deque[float] = deque(maxlen=_OFTEN)

    def waiting(*args: P.args, **kwargs: P.kwargs) -> T:
        begun = time.monotonic()
        found = wait(*args, **kwargs)
        now = time.monotonic()
        if now - begun > _WAITED:
            waits.append(now)
            if len(waits) == _OFTEN and now - waits[0] < _WITHIN and may_rest():
                time.sleep(_REST)
        return found

    return waiting
