"""What other test tools have left of their tests as JUnit XML, told as the pytest inside tells of its own.

There is no standard. The forms that are known here are those of cargo-nextest, jest-junit, go-junit-report, Maven
Surefire, CTest, GoogleTest and pytest; https://github.com/testmoapp/junitxml compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

from pytest_stagebuild.results.events import Crash, Failed, Location, Phase, Property, Skipped, Tested
from pytest_stagebuild.results.junit_stream import JUnitError, testcases
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from junitparser.junitparser import Result, System
    from junitparser.xunit2 import TestCase

__all__ = ["Ids", "JUnitError", "read_junit"]

NAME_CHARACTERS: Final = 2_000
"""How long each part of an id may be; of a longer one, both ends are kept."""

_NAMELESS: Final = "(no name)"

_LONGEST: Final = 366 * 24 * 3600.0
"""In seconds; a longer time is a mistake of the tool, and more than the formats of reports are made for."""

_THOUSANDS: Final = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
"""How Surefire writes a time of more than 999 seconds."""

_STATUS: Final[dict[str, Literal["skipped", "failed"]]] = {
    # https://google.github.io/googletest/advanced.html#generating-an-xml-report has "notrun" for disabled tests.
    **dict.fromkeys(("notrun", "disabled", "suppressed", "skipped", "ignored"), "skipped"),
    **dict.fromkeys(("fail", "failed", "failure", "error", "errored", "timeout"), "failed"),
}
"""What the attributes "status" and "result" say of a testcase that has no element to say it."""

_FIXTURE: Final = re.compile(r"(?i)(?:(?:failed|error) (?:on|at|in|during) |test )?(set-?up|tear-?down)\b")
"""How the message of an error begins that is none of the test's own: pytest's "failed on setup with ..."."""

_BLANK_LINES: Final = re.compile(r"\A(?:[ \t\r]*\n)+")

When = Literal["setup", "call", "teardown"]


class Ids:
    """The ids that were given to tests, so that each is given once."""

    def __init__(self) -> None:
        self._given: dict[str, int] = {}

    def own(self, identifier: str) -> str:
        """``identifier``; with ``[2]`` and so on behind it, where it was given before."""
        given = self._given
        if identifier not in given:
            given[identifier] = 1
            return identifier
        count = given[identifier] + 1
        while (own := f"{identifier}[{count}]") in given:
            count += 1
        given[identifier] = count
        given[own] = 1
        return own


def read_junit(
    file: BinaryIO, session: str, redact: Callable[[str], str] = str, ids: Ids | None = None
) -> Iterator[Tested]:
    """Every testcase in a JUnit XML file, in its order, as an event of the session ``session``.

    Its id is ``FILE::NAME``, ``CLASSNAME::NAME`` or ``SUITE::NAME``, by what the file has; ``ids`` are those of other
    files of the same run. Every text is given through ``redact``. Times are in seconds; one that is no number counts as
    0. Memory is bounded by :data:`~pytest_stagebuild.results.junit_stream.KEPT_CHARACTERS`, and grows by the ids.

    Raises :class:`JUnitError` for what is no JUnit XML, could harm, or is too large, after the testcases that came
    whole before that.
    """
    ids = ids or Ids()
    for element, suite in testcases(file, redact):
        yield _tested(element, suite, session, ids)


def _tested(element: Element, suite: str, session: str, ids: Ids) -> Tested:
    from junitparser.xunit2 import TestCase

    case = TestCase.fromelem(element)
    file, classname = _name(element.get("file")), _name(case.classname)
    name = _name(case.name) or _NAMELESS
    holder = file or classname or _name(suite)
    # The id does not end in the domain, of which pytest would replace the full stops: "adds 1::5".
    location = (holder, _line(element.get("line")), f"{holder} {name}".strip())
    identifier = ids.own(f"{holder}::{name}" if holder else name)
    # Not those of an earlier run, which are within its own element.
    kinds: Mapping[str, type[Any]] = TestCase.ITER_TYPES
    parts = [kinds[part.tag].fromelem(part) for part in element if part.tag in kinds]
    properties = tuple(_properties(case)) if len(element) else ()
    return Tested(session, identifier, location, _phases(element, parts, properties, location))


@dataclass(frozen=True)
class _Came:
    """What a phase came to."""

    outcome: str
    why: Failed | Skipped | None = None
    xfail: str | None = None


_PASSED: Final = _Came("passed")
_SET_UP: Final = Phase("setup", "passed")
_TORN_DOWN: Final = Phase("teardown", "passed")


def _phases(
    element: Element, parts: list[Result | System], properties: tuple[Property, ...], location: Location
) -> tuple[Phase, ...]:
    came = _came(element, parts, location)
    sections = tuple(_sections(parts)) if parts else ()

    def phase(when: When, duration: float = 0.0) -> Phase:
        what = came.get(when, _PASSED)
        return Phase(
            when, what.outcome, duration, why=what.why, xfail=what.xfail, sections=sections, properties=properties
        )

    # Where the set-up fails, pytest has no call; and its last report has all that was captured before.
    seconds = _seconds(element.get("time"))
    first = (phase("setup", seconds),) if "setup" in came else (_SET_UP, phase("call", seconds))
    return (*first, phase("teardown") if sections or properties or "teardown" in came else _TORN_DOWN)


def _came(element: Element, parts: list[Result | System], location: Location) -> dict[When, _Came]:
    """What the phases came to that did not pass."""
    from junitparser import Error, Failure
    from junitparser import Skipped as SkippedResult

    broken: dict[When, list[Result]] = {}
    for part in parts:
        if isinstance(part, (Failure, Error)):
            broken.setdefault(_when(part.message or "") if isinstance(part, Error) else "call", []).append(part)
    if "setup" in broken:
        broken["setup"] += broken.pop("call", [])
    if broken:
        return {when: _Came("failed", _failed(results, location)) for when, results in broken.items()}
    for part in parts:
        if isinstance(part, SkippedResult):
            reason = " ".join((_message(part) or part.text or "").split())
            xfailed = part.type == "pytest.xfail"
            return {"call": _Came("skipped", xfail=reason) if xfailed else _skipped(reason, location)}
    return _came_by_status(element, location)


def _came_by_status(element: Element, location: Location) -> dict[When, _Came]:
    words = [(element.get(name) or "").strip().lower() for name in ("status", "result")]
    said = {_STATUS[word]: word for word in words if word in _STATUS}
    if "failed" in said:
        text = f"{said['failed']}, and no more is said of it"
        return {"call": _Came("failed", Failed(text, _crash(text, location)))}
    if "skipped" in said:
        return {"call": _skipped(said["skipped"], location)}
    return {}


def _when(message: str) -> When:
    found = _FIXTURE.match(message.lstrip())
    if found is None:
        return "call"
    return "setup" if found[1].lower().startswith("set") else "teardown"


def _failed(results: list[Result], location: Location) -> Failed:
    texts = [_text(result, result.text) for result in results]
    message = _message(results[0]) or texts[0].partition("\n")[0].strip()
    return Failed("\n\n".join(texts), _crash(message, location))


def _message(result: Result) -> str:
    """The message, where it says more than the name of its element; go-junit-report's does not."""
    message = (result.message or "").strip()
    return "" if message.lower() in {"failed", "skipped"} else message


def _text(result: Result, text: str | None) -> str:
    """All that a failure with this text says, each thing once."""
    message, text = _message(result), _BLANK_LINES.sub("", (text or "").rstrip())
    if not text:
        kind = (result.type or "").strip()
        words = [message] if message.startswith(kind) else [kind, message]
        return ": ".join(filter(None, words)) or "failed, and no more is said of it"
    # In an attribute, a line break has become a space.
    return text if " ".join(message.split()) in " ".join(text.split()) else f"{message}\n\n{text}"


def _crash(message: str, location: Location) -> Crash:
    path, line, _ = location
    return Crash(path, 1 if line is None else line + 1, message)


def _skipped(reason: str, location: Location) -> _Came:
    path, line, _ = location
    return _Came("skipped", Skipped(path, 1 if line is None else line + 1, reason))


def _sections(parts: list[Result | System]) -> Iterator[tuple[str, str]]:
    """What the test wrote, and what came of the times that it was run before."""
    from junitparser import SystemErr, SystemOut
    from junitparser.xunit2 import InterimResult

    for kind, stream in ((SystemOut, "stdout"), (SystemErr, "stderr")):
        written = [part.text for part in parts if isinstance(part, kind) and (part.text or "").strip()]
        if written:
            yield f"Captured {stream} call", "\n".join(written)
    for part in parts:
        if isinstance(part, InterimResult):
            texts = [_text(part, part.stack_trace or part.text), part.system_out, part.system_err]
            yield "Failed before", "\n\n".join(text.strip("\n") for text in texts if (text or "").strip())


def _properties(case: TestCase) -> Iterator[Property]:
    for one in case.properties():
        if (one.name or "").strip():
            yield one.name, one.value or ""


def _name(text: str | None) -> str:
    """A part of an id: on one line, and shown as it is."""
    text = (text or "").strip()
    if len(text) > NAME_CHARACTERS:
        text = f"{text[: NAME_CHARACTERS // 2]}...{text[-NAME_CHARACTERS // 2 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _line(text: str | None) -> int | None:
    """A line from 0, as pytest counts; the others count from 1."""
    text = (text or "").strip()
    return max(0, int(text) - 1) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _seconds(text: str | None) -> float:
    text = (text or "").strip()
    number = text.replace(",", "" if _THOUSANDS.fullmatch(text) else ".")
    try:
        seconds = abs(float(number)) if not number.startswith("-") else 0.0
    except ValueError:
        return 0.0
    return seconds if seconds <= _LONGEST else 0.0  # which NaN is not either
