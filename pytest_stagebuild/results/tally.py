"""Counts what the tests inside came to, and says what is missing."""

from __future__ import annotations

from collections import Counter
from functools import cached_property

from pytest_stagebuild.results.events import (
    Collected,
    CollectReport,
    Ended,
    Event,
    InternalError,
    Session,
    Started,
    Tested,
)
from pytest_stagebuild.values import dataclass

_NAMED = 5

_NO_TESTS = 5
"""https://docs.pytest.org/en/stable/reference/exit-codes.html"""


@dataclass(frozen=True)
class TestCounts:
    """How many tests reported, how many of them failed, and how many files or classes could not be collected."""

    __test__ = False

    reported: int
    failed: int
    uncollected: int = 0

    @property
    def any(self) -> bool:
        """Whether there is anything to report."""
        return bool(self.reported or self.uncollected)

    def __str__(self) -> str:
        tests = f"{self.reported} test{'s' if self.reported != 1 else ''}"
        errors = f"{self.uncollected} error{'s' if self.uncollected != 1 else ''} in collection"
        if self.uncollected and not self.reported:
            return errors
        ran = f"{self.failed} of {tests} failed" if self.failed else tests
        return f"{ran}, {errors}" if self.uncollected else ran


class Tally:
    """What has been told of a run's tests so far."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._collected: dict[str, Counter[str]] = {}
        self._running: dict[str, dict[str, None]] = {}
        self._over: dict[str, Ended] = {}
        self._reported = 0
        self._failed = 0
        self._uncollected: set[tuple[str, str]] = set()
        self._broken = ""
        self._unread = ""

    def take(self, event: Event) -> None:
        match event:
            case Session():
                self._sessions[event.name] = event
            case Collected():
                self._collected.setdefault(event.name, Counter()).update(event.ids)
            case Started():
                self._running.setdefault(event.name, {})[event.id] = None
            case Tested():
                self._reported += 1
                self._running.get(event.name, {}).pop(event.id, None)
                self._collected.setdefault(event.name, Counter())[event.id] -= 1
                self._failed += any(phase.outcome == "failed" for phase in event.phases)
            case CollectReport():
                if event.phase.outcome == "failed":
                    self._uncollected.add((event.name, event.id))
            case InternalError():
                self._broken = self._broken or event.text.strip().rpartition("\n")[2]
            case Ended():
                self._over[event.name] = event

    @property
    def told(self) -> bool:
        """Whether any pytest inside has reported that it began."""
        return bool(self._sessions or self._unread)

    @property
    def counts(self) -> TestCounts:
        return TestCounts(self._reported, self._failed, len(self._uncollected))

    @property
    def no_tests(self) -> bool:
        """Whether the tests inside were none, and nothing else was wrong."""
        return self.told and not (self._reported or self._uncollected or self._broken or self._unread)

    @property
    def ended_without_tests(self) -> bool:
        """Whether a pytest inside found none to run."""
        return any(ended.exit == _NO_TESTS for ended in self._over.values())

    def knows(self, name: str) -> bool:
        """Whether a test with this class and name in JUnit XML (``tests.test_a.TestC::test_m``) had reported by itself
        when this was first asked.
        """
        return name in self._names_in_junit

    @cached_property
    def _names_in_junit(self) -> frozenset[str]:
        collected = self._collected.values()
        return frozenset(_as_in_junit(one) for ids in collected for one, left in ids.items() if left <= 0)

    def give_up(self, problem: str) -> None:
        """Something that would have told of tests could not be read."""
        self._unread = self._unread or problem

    def problem(self) -> str:
        """What is wrong besides tests that failed: nothing is, or a few words."""
        if self._unread:
            return self._unread
        if self._broken:
            return f"internal error of the pytest inside: {self._broken}"
        for name in self._sessions:
            missing = self._missing(name)
            if name not in self._over:
                running = list(self._running.get(name, {}))
                while_ = f" while it ran {_named(running)}" if running else ""
                left = [one for one in missing if one not in running]
                more = f"; {len(left)} more did not report" if left else ""
                return f"the pytest inside ended without a word{while_}{more}"
            if missing and not self._over[name].stopped:
                many = "1 test that was" if len(missing) == 1 else f"{len(missing)} tests that were"
                return f"{many} collected did not report: {_named(missing)}"
        return ""

    def _missing(self, name: str) -> list[str]:
        return [one for one, count in self._collected.get(name, Counter()).items() if count > 0]


def _as_in_junit(identifier: str) -> str:
    """How pytest names a test there (``_pytest/junitxml.py``, ``mangle_test_address``)."""
    identifier, bracket, parameters = identifier.partition("[")
    path, *classes = identifier.split("::")
    name = classes.pop() if classes else ""
    return ".".join([path.replace("/", ".").removesuffix(".py"), *classes]) + f"::{name}{bracket}{parameters}"


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + more
