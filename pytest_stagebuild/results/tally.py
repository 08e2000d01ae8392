"""Counts what the tests inside came to, and says what is missing."""

from __future__ import annotations

from collections import Counter

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


@dataclass(frozen=True)
class TestCounts:
    """How many tests reported, and how many of them failed; files that could not be collected count as failed."""

    __test__ = False

    reported: int
    failed: int

    def __str__(self) -> str:
        tests = f"{self.reported} test{'s' if self.reported != 1 else ''}"
        return f"{self.failed} of {tests} failed" if self.failed else tests


class Tally:
    """What has been told of a run's tests so far."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}
        self._collected: dict[str, Counter[str]] = {}
        self._running: dict[str, dict[str, None]] = {}
        self._over: dict[str, Ended] = {}
        self._reported = 0
        self._failed: set[tuple[str, str]] = set()
        self._broken = ""
        self._unread = ""
        self._names: set[str] = set()

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
                self._names.add(_as_in_junit(event.id))
                self._running.get(event.name, {}).pop(event.id, None)
                self._collected.setdefault(event.name, Counter())[event.id] -= 1
                if any(phase.outcome == "failed" for phase in event.phases):
                    self._failed.add((event.name, event.id))
            case CollectReport():
                if event.phase.outcome == "failed":
                    self._failed.add((event.name, event.id))
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
        return TestCounts(self._reported, len(self._failed))

    @property
    def no_tests(self) -> bool:
        """Whether the tests inside were none, and nothing else was wrong."""
        return self.told and not (self._reported or self._failed or self._broken or self._unread)

    def knows(self, name: str) -> bool:
        """Whether a test with this class and name in JUnit XML (``tests.test_a.TestC::test_m``) has reported."""
        return name in self._names

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
