"""Which files belong to a source tree: git's view where it has one, a walk elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pytest_stagebuild.source import git
from pytest_stagebuild.source.git import Listing, Refused
from pytest_stagebuild.source.manifest import path_of, shown
from pytest_stagebuild.source.reading import Folders, SpecialKind
from pytest_stagebuild.source.walk import Found, walk
from pytest_stagebuild.values import dataclass

_NAMED: Final = 10
"""How many skipped things are named one by one."""


@dataclass(frozen=True)
class Scan:
    """The paths of files and links, relative to the root and sorted; ``reason`` says why git was not asked."""

    paths: tuple[bytes, ...]
    reason: str
    notes: tuple[str, ...]

    def how(self, count: int) -> str:
        """For the header: ``166 files, by git``."""
        files = f"{count} file" + ("" if count == 1 else "s")
        return f"{files}, by a walk: {self.reason}" if self.reason else f"{files}, by git"


def ask_git(root: Path) -> Listing:
    """What git lists in ``root``. Raises :class:`Refused` where it does not, and :class:`SourceError`."""
    return git.ask(os.path.realpath(os.fsencode(root)))


def scan(root: Path, folders: Folders, listing: Callable[[], Listing]) -> Scan:
    """Find the files of the tree that ``folders`` was opened on; ``listing`` gives what :func:`ask_git` does."""
    found = Found()
    reason = ""
    try:
        listed = listing()
        if not listed.tracked:
            reason = "git tracks nothing here"
    except Refused as refusal:
        reason = str(refusal)
    if reason:
        walk(folders, b"", found)
    else:
        git.view(os.path.realpath(os.fsencode(root)), folders, b"", listed, found)
    return Scan(tuple(sorted(set(found.paths))), reason, tuple(_notes(found)))


def _notes(found: Found) -> list[str]:
    notes = [f"walked {_folder(path)} ({reason})" for path, reason in found.walked]
    for path, mark, count in found.left_out:
        files = f"{count} tracked file" + ("" if count == 1 else "s")
        notes.append(f"left out {_folder(path)} with {files} ({mark})")
    notes += skipped(found.specials)
    return notes


def skipped(specials: list[tuple[SpecialKind, bytes]]) -> list[str]:
    """A note for each of the first few, and one for how many more there are."""
    notes = [f"skipped {what} {shown(path_of(path))}" for what, path in sorted(specials, key=lambda pair: pair[1])]
    if len(notes) > _NAMED:
        notes[_NAMED:] = [f"skipped {len(notes) - _NAMED} more sockets, FIFOs and devices"]
    return notes


def _folder(path: bytes) -> str:
    return shown(path_of(path)) + "/"
