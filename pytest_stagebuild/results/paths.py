"""Names of the tests inside, and of their files, as they are called out here."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import field
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.results.events import Location
from pytest_stagebuild.values import dataclass

_CODES: Final = r"(?:\x1b\[[\d;]*m)*"

_PLACE: Final = re.compile(rf"(?m)^({_CODES})([^\s:\x1b\"'<][^:\n\x1b]*)({_CODES}:\d+: )")
"""How pytest ends the part of a traceback that is in one function: ``tests/test_a.py:3: AssertionError``."""

_FRAME: Final = re.compile(rf"(?m)(^{_CODES}(?:E )?\s*File \"|importing test module ')([^\"'\n]+)(\", line \d+|')")
"""How Python begins it, in what pytest shows of a SyntaxError too, and how pytest names a file that it could not
import."""


@dataclass(frozen=True)
class Paths:
    """Where the source is out here, what ids are relative to, and where pytest was called."""

    source: Path
    rootpath: Path
    invocation_dir: Path
    _known: dict[tuple[str, str], str] = field(default_factory=dict, compare=False)
    """The files of ids, which all tests of a file have in common."""

    def nodeid(self, identifier: str, root: str) -> str:
        """The id out here of a test whose id is relative to ``root`` inside.

        Of one that lies outside the source, the id has its whole path inside.
        """
        path, separator, rest = identifier.partition("::")
        known = self._known.get((root, path))
        if known is None:
            inside = posixpath.normpath(posixpath.join(root, path))
            found = self._here(inside)
            known = self._known[root, path] = _relative(found, self.rootpath) if found else inside
        return known + separator + rest

    def location(self, location: Location, root: str) -> Location:
        path, line, domain = location
        return self.nodeid(path, root), line, domain

    def shown(self, path: str, folder: str) -> str:
        """A file inside, relative to ``folder``, as one would type it out here."""
        found = self._here(posixpath.normpath(posixpath.join(folder, path)))
        return path if found is None else self._typed(found)

    def text(self, text: str, folder: str) -> str:
        """A traceback that was made in ``folder`` inside, with the paths of the user's own files."""

        def own(match: re.Match[str]) -> str:
            found = self._here(posixpath.normpath(posixpath.join(folder, match[2])))
            return match[0] if found is None or not found.exists() else f"{match[1]}{self._typed(found)}{match[3]}"

        return _FRAME.sub(own, _PLACE.sub(own, text))

    def _here(self, inside: str) -> Path | None:
        if inside == WORKING_DIRECTORY:
            return self.source
        if not inside.startswith(WORKING_DIRECTORY + "/"):
            return None
        return self.source / inside[len(WORKING_DIRECTORY) + 1 :]

    def _typed(self, path: Path) -> str:
        relative = _relative(path, self.invocation_dir)
        return str(path) if relative.startswith("..") else relative


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
