"""Finds the JUnit XML files that a test command has left in its sandbox, and reads them there."""

from __future__ import annotations

import posixpath
import re
import shlex
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Final, cast

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Sandbox
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.execution import said_by
from pytest_stagebuild.results.events import Collected, Ended, Event, Session
from pytest_stagebuild.results.injection import TOLD
from pytest_stagebuild.results.junit import Ids, JUnitError, read_junit
from pytest_stagebuild.tar import IterableFile

_PATIENCE: Final = 120.0
"""Seconds in which the files must be found."""

_MOST: Final = 10_000
"""Files that are read."""

_SPECIAL: Final = re.compile(r"[*?\[]")


class JUnitFiles:
    """What the files that match ``globs`` tell; relative ones begin at ``/src``.

    ``problems`` are what could not be read, ``notes`` what else the user should know.
    """

    def __init__(self, sandbox: Sandbox, globs: Iterable[str], redact: Callable[[str], str]) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._sandbox = sandbox
        self._globs = tuple(globs)
        self._redact = redact

    def events(self, *, known: Callable[[str], bool]) -> Iterator[Event]:
        """The events of their tests, but for those that are ``known`` by their class and name (``a.b.C::name``)."""
        ids = Ids()
        for path in self._found():
            name = f"junit:{path}"
            begun = False
            try:
                pieces = self._sandbox.get(path)
                with tarfile.open(fileobj=IterableFile(pieces), mode="r|") as archive:
                    member = archive.next()
                    file = archive.extractfile(member) if member is not None and member.isreg() else None
                    if file is None:
                        self.problems.append(f"{path} is no file any more")
                        continue
                    for tested in read_junit(cast("BinaryIO", file), name, self._redact, ids):
                        if known(tested.id):
                            continue
                        if not begun:
                            begun = True
                            yield Session(name, "", "", WORKING_DIRECTORY, WORKING_DIRECTORY, distributed=False)
                        yield Collected(name, (tested.id,))
                        yield tested
            except (JUnitError, FileNotFoundError, tarfile.TarError) as error:
                self.problems.append(f"{path} cannot be read: {error}")
            if begun:
                yield Ended(name, None)

    def _found(self) -> list[str]:
        """The files that match and are newer than the beginning of the command, each once."""
        found: dict[str, None] = {}
        for glob in self._globs:
            pattern = posixpath.normpath(posixpath.join(WORKING_DIRECTORY, glob))
            matching = [path for path in self._candidates(pattern) if glob_expression(pattern).fullmatch(path)]
            if not matching:
                self.notes.append(f"no file that the test command wrote matches {glob!r}: no tests are reported by it")
            found.update(dict.fromkeys(sorted(matching)))
        if len(found) > _MOST:
            self.problems.append(f"{len(found)} files match, of which {_MOST} are read: name fewer of them in `junit`")
        return list(found)[:_MOST]

    def _candidates(self, pattern: str) -> list[str]:
        folder = posixpath.dirname(_SPECIAL.split(pattern, maxsplit=1)[0] + "x")
        # `find` knows no "**", and its "*" takes slashes too: it gives more than is meant.
        wanted = shlex.quote(re.sub(r"\*\*/", "*", pattern))
        command = f"find {shlex.quote(folder)} -type f -newer {TOLD} -path {wanted} -print 2>/dev/null; :"
        ended, said = said_by(self._sandbox, command, timeout=_PATIENCE)
        if ended.timed_out:
            raise EngineError(f"no files that match {pattern} were found within {_PATIENCE:g} s. Name them better.")
        return said.decode("utf-8", "surrogateescape").splitlines()


def glob_expression(pattern: str) -> re.Pattern[str]:
    """A glob as an expression: ``*`` and ``?`` stay in a folder, ``**/`` is any number of them."""
    parts: list[str] = []
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[!?[^\]/]+\])", pattern):
        match part:
            case "**/":
                parts.append("(?:.*/)?")
            case "**":
                parts.append(".*")
            case "*":
                parts.append("[^/]*")
            case "?":
                parts.append("[^/]")
            case _ if part.startswith("[") and part.endswith("]"):
                parts.append("[^" + part[2:] if part.startswith("[!") else part)
            case _:
                parts.append(re.escape(part))
    return re.compile("".join(parts), re.DOTALL)
