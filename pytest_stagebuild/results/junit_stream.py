"""Takes one testcase after the other out of a JUnit XML file, in little memory and without trust in who wrote it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

from pytest_stagebuild.errors import StagebuildError

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FILE_BYTES: Final = 1 << 30
"""The largest file that is read."""

KEPT_CHARACTERS: Final = 1 << 20
"""How much of the texts and attributes of one testcase is kept.

Each text may take half of what those before it have left; of a longer one, both ends are kept.
"""

DEEPEST: Final = 1_000
"""How many elements may be within one another; no tool is known that has more than ten."""

MOST_TESTCASES: Final = 1_000_000
MOST_PARTS: Final = 100_000
"""Elements and attributes in one testcase: a loop of Catch2 can fail thousands of times."""

MOST_ELEMENTS: Final = 10_000_000

MOST_NAMES: Final = 1_000
"""Different names of elements, attributes and prefixes. The parser remembers each; JUnit XML has about fifty."""

TOKEN_BYTES: Final = 8 << 20
"""The longest tag, with its attributes; the parser holds it as a whole, and old ones look at it again and again."""

_CHUNK: Final = 256 << 10
"""Read at once, in bytes: with 16 KiB an expat before 2.6.0 would need 30 times as long for the longest tag."""

_LONGEST_SECRET: Final = 64 << 10
"""In characters: what is dropped at a cut, since it may be a part of something that is to be redacted."""

_ROOTS: Final = ("testsuites", "testsuite")

_OTHER_FILE: Final = "name only the JUnit XML files of test tools"


class JUnitError(StagebuildError):
    """A file is no JUnit XML that can be used; the message says why, and what to do, but does not name the file."""


def testcases(file: BinaryIO, redact: Callable[[str], str]) -> Iterator[tuple[Element, str]]:
    """Each testcase, without the namespaces of its elements, and the name of the suite that it is in.

    Raises :class:`JUnitError`, once the testcases that were whole before that have been given.
    """
    from defusedxml.ElementTree import DefusedXMLParser

    cases = _Testcases(redact)
    parser = DefusedXMLParser(target=cases, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    size = 0
    more = True
    while more:
        chunk = file.read(_CHUNK)
        size += len(chunk)
        more = bool(chunk)
        problem: JUnitError | None = None
        try:
            _check(size)
            with _explained(redact):
                if more:
                    parser.feed(chunk)
                else:
                    parser.close()
            cases.went_by(len(chunk))
        except JUnitError as error:
            problem = error
        yield from cases.taken()
        if problem is not None:
            raise problem


def _check(size: int) -> None:
    if not size:
        raise JUnitError("it is empty: was the test tool stopped before it wrote its results?")
    if size > FILE_BYTES:
        raise JUnitError(f"it is larger than {FILE_BYTES >> 20:,} MiB: let the test tool write several files")


@contextlib.contextmanager
def _explained(redact: Callable[[str], str]) -> Iterator[None]:
    """Whatever the parser has to say about a file, as a :class:`JUnitError`."""
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException

    try:
        yield
    except ParseError as error:
        raise JUnitError(
            f"it is no well-formed XML ({redact(str(error))}): was the test tool stopped while it wrote it?"
        ) from error
    except DefusedXmlException as error:
        raise JUnitError(
            "it has a document type declaration, which attacks are made of: let the test tool write it without"
        ) from error
    except (LookupError, ValueError, Warning) as error:
        # From a codec of Python's, which pyexpat asks for the encodings that expat does not know.
        raise JUnitError(
            f"its encoding cannot be read ({redact(str(error))}): let the test tool write UTF-8"
        ) from error


class _Testcases:
    """Hears of the elements as they begin and end, and keeps those of testcases until they are taken.

    Its methods without a docstring are those that ElementTree's parser calls.
    """

    def __init__(self, redact: Callable[[str], str]) -> None:
        from xml.etree.ElementTree import Element

        self._new = Element
        self._redact = redact
        self._whole: list[tuple[Element, str]] = []
        self._suites: list[str] = []
        """For each element that is open, outside testcases, the name of the suite that it is or is in."""
        self._open: list[Element] = []
        """The testcase that is open, and what is open within it."""
        self._text: _Ends | None = None
        """Of the innermost one, as long as nothing else has begun within it."""
        self._left = KEPT_CHARACTERS
        self._parts = 0
        self._testcases = 0
        self._elements = 0
        self._names: set[str] = set()
        self._silent = 0

    def taken(self) -> list[tuple[Element, str]]:
        """The testcases that have ended since the last time."""
        taken, self._whole = self._whole, []
        return taken

    def went_by(self, size: int) -> None:
        """So many bytes were given to the parser."""
        self._silent += size
        if self._silent > TOKEN_BYTES + _CHUNK:
            raise JUnitError(f"it has a tag of more than {TOKEN_BYTES >> 20} MiB: let the test tool cut its messages")

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._silent = 0
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise _too_many(MOST_ELEMENTS, "elements")
        self._known(tag, *attributes)
        if len(self._suites) + len(self._open) >= DEEPEST:
            raise JUnitError(f"its elements are more than {DEEPEST:,} deep within one another: {_OTHER_FILE}")
        tag = tag.rpartition("}")[2]
        if self._open:
            self._start_part(tag, attributes)
        elif not self._suites and tag not in _ROOTS:
            raise JUnitError(
                f"its root is <{self._redact(tag[:40])}>, not <{_ROOTS[0]}> or <{_ROOTS[1]}>: {_OTHER_FILE}"
            )
        elif tag == "testcase":
            self._start_testcase(attributes)
        else:
            self._suites.append(self._suite_name(attributes.get("name", "")))

    def end(self, tag: str) -> None:
        self._silent = 0
        if not self._open:
            self._suites.pop()
            return
        self._end_text()
        element = self._open.pop()
        if not self._open:
            self._whole.append((element, self._suites[-1]))

    def data(self, text: str) -> None:
        self._silent = 0
        if self._text is not None:
            self._text.add(text)

    def start_ns(self, prefix: str, uri: str) -> None:
        self._known(prefix)

    def comment(self, text: str) -> None:
        self._silent = 0

    def pi(self, target: str, text: str) -> None:
        self._silent = 0

    def close(self) -> None:
        pass

    def _known(self, *names: str) -> None:
        self._names.update(names)
        if len(self._names) > MOST_NAMES:
            raise _too_many(MOST_NAMES, "different names of elements and attributes")

    def _suite_name(self, name: str) -> str:
        if name.strip():
            self._left = KEPT_CHARACTERS
            return self._kept(name)
        return self._suites[-1] if self._suites else ""

    def _start_testcase(self, attributes: dict[str, str]) -> None:
        self._testcases += 1
        if self._testcases > MOST_TESTCASES:
            raise _too_many(MOST_TESTCASES, "testcases")
        self._left = KEPT_CHARACTERS
        self._parts = 0
        self._text = None
        self._open.append(self._element("testcase", attributes))

    def _start_part(self, tag: str, attributes: dict[str, str]) -> None:
        self._parts += 1 + len(attributes)
        if self._parts > MOST_PARTS:
            raise _too_many(MOST_PARTS, "elements and attributes in one testcase")
        if tag == "testcase":
            raise JUnitError(f"it has a testcase within a testcase: {_OTHER_FILE}")
        self._end_text()
        element = self._element(tag, attributes)
        self._open[-1].append(element)
        self._open.append(element)
        self._text = _Ends(self._left // 2)

    def _element(self, tag: str, attributes: dict[str, str]) -> Element:
        return self._new(tag, {name: self._kept(value) for name, value in attributes.items() if "}" not in name})

    def _kept(self, text: str) -> str:
        ends = _Ends(self._left // 2)
        ends.add(text)
        return self._redacted(ends)

    def _end_text(self) -> None:
        if self._text is not None:
            self._open[-1].text = self._redacted(self._text)
        self._text = None

    def _redacted(self, ends: _Ends) -> str:
        text = ends.redacted(self._redact)
        self._left = max(0, self._left - len(text))
        return text


def _too_many(limit: int, what: str) -> JUnitError:
    return JUnitError(f"it has more than {limit:,} {what}: {_OTHER_FILE}")


class _Ends:
    """A text that comes in pieces, of which both ends are kept when it is longer than ``most`` characters."""

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._most = most
        self._head = ""
        self._pieces: list[str] = []
        self._held = 0
        self._size = 0

    def add(self, text: str) -> None:
        self._pieces.append(text)
        self._held += len(text)
        self._size += len(text)
        reach = self._half + _LONGEST_SECRET
        if self._held > 4 * reach:
            held = "".join(self._pieces)
            self._head = self._head or held[:reach]
            self._pieces = [held[-reach:]]
            self._held = reach

    def redacted(self, redact: Callable[[str], str]) -> str:
        """The text; in its middle a line says how much is missing there, if anything is."""
        held = "".join(self._pieces)
        if not self._head:
            held = redact(held)
            if len(held) <= self._most:
                return held
            head, tail = held, held
        else:
            # What is redacted may have been cut in two.
            head = redact(self._head)[:-_LONGEST_SECRET]
            tail = redact(held[-self._half - _LONGEST_SECRET :])[_LONGEST_SECRET:]
        head, tail = head[: self._half], tail[len(tail) - min(self._half, len(tail)) :]
        return f"{head}\n[... {self._size - len(head) - len(tail)} characters left out ...]\n{tail}"
