"""What the pytest inside tells, one JSON object a line: the schema, and its reading without trust in who wrote it.

Versions of the pytest inside and of the one outside may differ, so these are forms of our own. ``VERSION`` grows when
an older reader would misunderstand; what it does not know in an object it leaves alone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Final, Literal, cast

from pytest_stagebuild.values import dataclass

VERSION: Final = 2

Property = tuple[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Crash:
    """Where a test failed (a path inside, a line from 1), and the first line or more of why."""

    path: str
    line: int
    message: str


@dataclass(frozen=True)
class Failed:
    """The traceback as text, with colours if they were asked for; or only a ``message``."""

    text: str
    crash: Crash | None = None
    message: bool = False


@dataclass(frozen=True)
class Skipped:
    """Where a test was skipped, and why."""

    path: str
    line: int
    reason: str


@dataclass(frozen=True)
class Subtest:
    """What tells a subtest from the others of its test."""

    message: str | None
    parameters: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        words = [f"[{self.message}]"] if self.message is not None else []
        if self.parameters:
            words.append(f"({', '.join(f'{name}={value}' for name, value in self.parameters)})")
        return " ".join(words) or "(<subtest>)"


@dataclass(frozen=True)
class Phase:
    """One report of pytest: set-up, call or teardown of a test, or a collection.

    ``duration`` is in seconds, ``start`` and ``stop`` in seconds since the epoch. ``outcome`` is one of pytest's, or
    what a plugin has made of it ("rerun"). ``xfail`` is None where no failure was expected. ``keywords`` are the names
    that ``-k`` and ``-m`` go by.
    """

    when: Literal["setup", "call", "teardown", "collect"]
    outcome: str
    duration: float = 0.0
    start: float = 0.0
    stop: float = 0.0
    why: Failed | Skipped | None = None
    xfail: str | None = None
    sections: tuple[tuple[str, str], ...] = ()
    properties: tuple[Property, ...] = ()
    subtest: Subtest | None = None
    keywords: tuple[str, ...] = ()


Location = tuple[str, int | None, str]
"""As pytest has it: a path relative to its rootdir, a line from 0, a name."""


@dataclass(frozen=True)
class Session:
    """A pytest began, in the folder ``cwd`` and with the rootdir ``root``; ``distributed`` over several processes."""

    name: str
    pytest: str
    python: str
    root: str
    cwd: str
    distributed: bool


@dataclass(frozen=True)
class Collected:
    """What it is going to run; ``chains`` has the kinds and names of each test's nodes, where it only collects.

    ``note`` is what pytest says of tests that failed before, where it goes by them.
    """

    name: str
    ids: tuple[str, ...]
    deselected: int = 0
    chains: tuple[tuple[tuple[str, str], ...], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class CollectReport:
    """A file or class that could not be collected, or was skipped; or that can be again, with the tests in it."""

    name: str
    id: str
    phase: Phase
    ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Started:
    """A test begins."""

    name: str
    id: str
    location: Location


@dataclass(frozen=True)
class Tested:
    """A test has ended."""

    __test__ = False  # pytest takes classes of such a name for tests

    name: str
    id: str
    location: Location
    phases: tuple[Phase, ...]


@dataclass(frozen=True)
class Warned:
    """A warning that pytest recorded; ``when`` and ``id`` as in its hook."""

    name: str
    category: str
    message: str
    file: str
    line: int
    when: Literal["config", "collect", "runtest"] = "runtest"
    id: str = ""


@dataclass(frozen=True)
class SuiteProperty:
    """What ``record_testsuite_property`` was given."""

    name: str
    property: Property


@dataclass(frozen=True)
class InternalError:
    """The pytest inside has failed itself."""

    name: str
    text: str


@dataclass(frozen=True)
class Ended:
    """It is over, with pytest's exit code; ``stopped`` is what pytest prints between exclamation marks where tests were
    left out ("stopping after 1 failures").
    """

    name: str
    exit: int | None
    stopped: str = ""


Event = Session | Collected | CollectReport | Started | Tested | Warned | SuiteProperty | InternalError | Ended


class NewerEvents(Exception):
    """The events are of a version that is not known here."""


def event_in(line: str | bytes, redact: Callable[[str], str] = str) -> Event | None:  # noqa: C901, PLR0912 - one case for each
    """The event in a line, every text of it given through ``redact``; None for an event that is not known here.

    Raises :class:`NewerEvents`, or ``ValueError`` for what no reporter writes.
    """
    try:
        value = json.loads(line)
    except RecursionError as error:
        raise ValueError("it is too deep") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    told = _Told(value, redact)
    name = told.text("session")
    match value.get("event"):
        case "session":
            if value.get("v") != VERSION:
                raise NewerEvents(str(value.get("v")))
            pytest, python, root, cwd = (told.text(part) for part in ("pytest", "python", "root", "cwd"))
            return Session(name, pytest, python, root, cwd, distributed=value.get("distributed") is True)
        case "collected":
            chains = tuple(tuple(told.pair(node) for node in _list(chain)) for chain in _list(value.get("chains", [])))
            note = told.text("note") if "note" in value else ""
            return Collected(name, told.texts("ids"), _int(value.get("deselected", 0)), chains, note)
        case "collect":
            return CollectReport(name, told.text("id"), _phase(told.inner("phase")), told.texts("ids"))
        case "start":
            return Started(name, told.text("id"), told.location())
        case "passed":
            return Tested(name, told.text("id"), told.location(), _passed(told))
        case "test":
            return Tested(name, told.text("id"), told.location(), tuple(_phases(told)))
        case "warning":
            return _warned(told)
        case "suite_property":
            return SuiteProperty(name, _property(told, value.get("property")))
        case "internal_error":
            return InternalError(name, told.text("text"))
        case "end":
            code = value.get("exit")
            return Ended(name, None if code is None else _int(code), told.text("stopped"))
    return None


def _warned(told: _Told) -> Warned:
    when = told.value.get("when")
    known: Literal["config", "collect", "runtest"] = when if when in ("config", "collect") else "runtest"
    category, message, file = (told.text(part) for part in ("category", "message", "file"))
    return Warned(told.text("session"), category, message, file, _int(told.value.get("line")), known, told.text("id"))


class _Told:
    """An object that was told, and its texts."""

    def __init__(self, value: Mapping[str, object], redact: Callable[[str], str]) -> None:
        self.value = value
        self._redact = redact

    def plain(self, value: object) -> str:
        if not isinstance(value, str):
            raise ValueError(f"{value!r:.40} is no text")
        if not value.isascii():
            # What cannot be encoded cannot be shown either, nor written into a report.
            value = value.encode("utf-8", "backslashreplace").decode()
        return self._redact(value)

    def text(self, name: str) -> str:
        return self.plain(self.value.get(name))

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self.plain(one) for one in _list(self.value.get(name, [])))

    def inner(self, name: str) -> _Told:
        return self.of(self.value.get(name))

    def of(self, value: object) -> _Told:
        return _Told(_object(value), self._redact)

    def pair(self, value: object) -> tuple[str, str]:
        first, second = _list(value, 2)
        return self.plain(first), self.plain(second)

    def pairs(self, name: str) -> tuple[tuple[str, str], ...]:
        return tuple(self.pair(one) for one in _list(self.value.get(name, [])))

    def location(self) -> Location:
        path, line, domain = _list(self.value.get("location"), 3)
        return self.plain(path), None if line is None else _int(line), self.plain(domain)


_PLAIN: Final = {"when", "outcome", "times", "keywords"}


_TIMES: Final = struct.Struct("<9d")
"""Duration, start and stop of each phase."""

_LATEST: Final = float(1 << 33)
"""Seconds since the epoch."""


def _passed(told: _Told) -> tuple[Phase, ...]:
    """The three phases of a test that passed and left nothing else to tell."""
    times = told.value.get("times")
    try:
        a, b, c, d, e, f, g, h, i = found = _TIMES.unpack(bytes.fromhex(times if isinstance(times, str) else ""))
    except struct.error as error:
        raise ValueError(str(error)) from None
    if not isfinite(sum(found)) or max(found) > _LATEST or min(found) < -_LATEST:
        raise ValueError("it is no time of ours")
    keywords = told.texts("keywords")
    return (
        Phase("setup", "passed", a, b, c, keywords=keywords),
        Phase("call", "passed", d, e, f, keywords=keywords),
        Phase("teardown", "passed", g, h, i, keywords=keywords),
    )


def _phases(told: _Told) -> Iterator[Phase]:
    keywords: tuple[str, ...] = ()
    for one in _list(told.value.get("phases")):
        phase = told.of(one)
        if "keywords" in phase.value:
            keywords = phase.texts("keywords")
        yield _phase(phase, keywords)


def _phase(told: _Told, keywords: tuple[str, ...] = ()) -> Phase:
    value = told.value
    told_when = value.get("when")
    # A worker of pytest-xdist that died is told of as "???".
    known = told_when if told_when in ("setup", "teardown", "collect") else "call"
    when = cast("Literal['setup', 'call', 'teardown', 'collect']", known)
    outcome = told.text("outcome")
    duration, start, stop = (_seconds(one) for one in _list(value.get("times", [0, 0, 0]), 3))
    if value.keys() <= _PLAIN:  # as most are
        return Phase(when, outcome, duration, start, stop, keywords=keywords)
    return Phase(
        when,
        outcome,
        duration,
        start,
        stop,
        keywords=keywords,
        why=_why(told),
        xfail=told.text("xfail") if "xfail" in value else None,
        sections=told.pairs("sections"),
        properties=tuple(_property(told, one) for one in _list(value.get("properties", []))),
        subtest=_subtest(told.inner("subtest")) if "subtest" in value else None,
    )


def _why(told: _Told) -> Failed | Skipped | None:
    if "skip" in told.value:
        path, line, reason = _list(told.value["skip"], 3)
        return Skipped(told.plain(path), _int(line), told.plain(reason))
    if "failure" in told.value:
        failure = told.inner("failure")
        crash = None
        if failure.value.get("crash") is not None:
            path, line, message = _list(failure.value["crash"], 3)
            crash = Crash(told.plain(path), _int(line), told.plain(message))
        return Failed(failure.text("text"), crash, failure.value.get("message") is True)
    return None


def _property(told: _Told, value: object) -> Property:
    name, content = _list(value, 2)
    if content is None or isinstance(content, (bool, int, float)):
        return told.plain(name), content
    return told.plain(name), told.plain(content)


def _subtest(told: _Told) -> Subtest:
    message = told.value.get("message")
    return Subtest(None if message is None else told.plain(message), told.pairs("parameters"))


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no object")
    return value


def _list(value: object, length: int | None = None) -> list[object]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        raise ValueError(f"{value!r:.40} is no list of {'any' if length is None else length} parts")
    return value


def _int(value: object) -> int:
    if not isinstance(value, int):
        raise ValueError(f"{value!r:.40} is no whole number")
    return value


def _seconds(nanoseconds: object) -> float:
    value = _int(nanoseconds)
    if abs(value) >= 1 << 63:
        raise ValueError("it is no time of ours")
    return value / 1e9
