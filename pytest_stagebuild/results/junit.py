"""What other test tools have left of their tests as JUnit XML, told as the pytest inside tells of its own.

There is no standard. The forms that are known here are those of cargo-nextest, jest-junit, go-junit-report, Maven
Surefire, CTest, GoogleTest and pytest; https://github.com/testmoapp/junitxml compares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final, Literal, get_args

from pytest_stagebuild.results.events import Crash, Failed, Location, Phase, Property, Skipped, Tested
from pytest_stagebuild.results.junit_stream import JUnitError, testcases
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from junitparser.junitparser import Result
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

When = Literal["setup", "call", "teardown"]
_WHEN: Final[tuple[When, ...]] = get_args(When)


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
    location = (holder, _line(element.get("line")), name)
    identifier = ids.own(f"{holder}::{name}" if holder else name)
    return Tested(session, identifier, location, _phases(case, element, location))


@dataclass(frozen=True)
class _Came:
    """What a phase came to."""

    outcome: str
    why: Failed | Skipped | None = None
    xfail: str | None = None


_PASSED: Final = _Came("passed")


def _phases(case: TestCase, element: Element, location: Location) -> tuple[Phase, ...]:
    came = _came(case, element, location)
    sections, properties = tuple(_sections(case)), tuple(_properties(case))
    # Where the set-up fails, pytest has no call; and what was captured is in every report from there on.
    timed: When = "setup" if "setup" in came else "call"
    phases: list[Phase] = []
    for when in _WHEN:
        if when == "call" != timed:
            continue
        what = came.get(when, _PASSED)
        duration = _seconds(element.get("time")) if when == timed else 0.0
        captured = sections if when in (timed, "teardown") else ()
        phases.append(
            Phase(
                when,
                what.outcome,
                duration,
                why=what.why,
                xfail=what.xfail,
                sections=captured,
                properties=properties,
            )
        )
    return tuple(phases)


def _came(case: TestCase, element: Element, location: Location) -> dict[When, _Came]:
    """What the phases came to that did not pass."""
    import junitparser

    broken: dict[When, list[Result]] = {}
    for failure in case.iterchildren(junitparser.Failure):
        broken.setdefault("call", []).append(failure)
    for error in case.iterchildren(junitparser.Error):
        broken.setdefault(_when(error.message or ""), []).append(error)
    if "setup" in broken:
        broken["setup"] += broken.pop("call", [])
    if broken:
        return {when: _Came("failed", _failed(results, location)) for when, results in broken.items()}
    for skipped in case.iterchildren(junitparser.Skipped):
        reason = (skipped.message or skipped.text or "").strip()
        if skipped.type == "pytest.xfail":
            return {"call": _Came("skipped", xfail=reason)}
        return {"call": _skipped(reason, location)}
    words = [(element.get(name) or "").strip().lower() for name in ("status", "result")]
    said = {_STATUS[word]: word for word in reversed(words) if word in _STATUS}
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
    texts = [_text(result) for result in results]
    message = (results[0].message or "").strip() or texts[0].partition("\n")[0]
    return Failed("\n\n".join(texts), _crash(message, location))


def _text(result: Result) -> str:
    """All that a failure says, each thing once."""
    message, text = (result.message or "").strip(), (result.text or "").rstrip()
    lines = text.split("\n")
    while lines and not lines[0].strip():
        del lines[0]
    text = "\n".join(lines)
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


def _sections(case: TestCase) -> Iterator[tuple[str, str]]:
    """What the test wrote, and what came of the times that it was run before."""
    from junitparser import SystemErr, SystemOut
    from junitparser.xunit2 import FlakyError, FlakyFailure, RerunError, RerunFailure

    for kind, stream in ((SystemOut, "stdout"), (SystemErr, "stderr")):
        texts = [part.text for part in case.iterchildren(kind) if (part.text or "").strip()]
        if texts:
            yield f"Captured {stream} call", "\n".join(texts)
    for before in (FlakyFailure, FlakyError, RerunFailure, RerunError):
        for run in case.iterchildren(before):
            texts = [_text(run), run.stack_trace, run.system_out, run.system_err]
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
