"""A source tree as it was read at one moment, and what of it goes into a sandbox."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source.archive import Upload
from pytest_stagebuild.source.manifest import Entry, Manifest, path_of, shown
from pytest_stagebuild.source.reading import (
    ATTEMPTS,
    Folders,
    LargeFile,
    Loaded,
    Special,
    SpecialKind,
    kept_changing,
    load,
)
from pytest_stagebuild.source.scan import scan, skipped
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from pytest_stagebuild.engines.protocol import Owner

_RACY: Final = 2_000_000_000
"""In nanoseconds, and the coarsest clock of a file system: a file this young can change again and look the same."""


class Stamp(NamedTuple):
    """What a file that has not changed keeps. No program sets the time of the last change of its inode."""

    device: int
    inode: int
    mode: int
    size: int
    modified: int
    changed: int


@dataclass(frozen=True)
class SourceTree:
    """The files of ``root`` that are sent, with the digests of their content as it was read.

    ``how`` says for the header how they were found and how many they are; ``notes`` name what was skipped. ``settled``
    are the files that no edit can have left with the stamp that they have: https://git-scm.com/docs/racy-git.
    """

    root: Path
    manifest: Manifest
    how: str
    notes: tuple[str, ...]
    settled: Mapping[bytes, tuple[Stamp, Entry]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, root: Path, *, known: SourceTree | None = None) -> SourceTree:
        """Find and read the files of ``root``, but for those that are as they were when ``known`` was read.

        Raises :class:`SourceError` for a file that cannot be read, one that keeps changing, and a tree without files.
        """
        before = known.settled if known else {}
        settled: dict[bytes, tuple[Stamp, Entry]] = {}
        settled_until = time.time_ns() - _RACY
        entries: dict[str, Entry] = {}
        specials: list[tuple[SpecialKind, bytes]] = []
        with Folders(root) as folders:
            found = scan(root, folders)
            here: bytes | None = None
            handle: int | None = None
            for path in found.paths:
                folder = path[: max(path.rfind(b"/"), 0)]
                if folder != here:
                    here, handle = folder, folders.enter(folder)
                if handle is None:
                    continue
                stamp = _stamp(handle, path)
                last_stamp, last_entry = before.get(path, (None, None))
                entry = last_entry if stamp and stamp == last_stamp else _entry(handle, path)
                if isinstance(entry, Special):
                    specials.append((entry.what, path))
                elif entry is not None:
                    entries[path_of(path)] = entry
                    if stamp and max(stamp.modified, stamp.changed) < settled_until:
                        settled[path] = stamp, entry
        if not entries:
            raise SourceError(
                f"no files to send in the source {shown(str(root))} ({found.how(0)}). "
                "Give the folder of the project, and see that its ignore rules leave something."
            )
        notes = (*found.notes, *skipped(specials))
        return cls(root, Manifest(entries), found.how(len(entries)), notes, settled)

    def upload(self, parent: Manifest | None, *, owner: Owner, not_before: float, top: str = "src") -> Upload:
        """What a sandbox that holds ``parent`` needs in order to hold this tree under ``/top``; all of it for None.

        ``not_before`` is when the parent checkpoint was made, in seconds since the epoch: what has changed since is
        sent with a time after it.
        """
        return Upload(self.root, self.manifest, parent, owner=owner, not_before=not_before, top=top)


def _stamp(folder: int, path: bytes) -> Stamp | None:
    try:
        found = os.stat(path[path.rfind(b"/") + 1 :], dir_fd=folder, follow_symlinks=False)
    except OSError:
        return None  # reading it says what is wrong
    return Stamp(found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _entry(folder: int, path: bytes) -> Entry | Special | None:
    for _ in range(ATTEMPTS):
        found = load(folder, path)
        if not isinstance(found, LargeFile):
            return Entry(found.kind, found.digest) if isinstance(found, Loaded) else found
        for _piece in found:
            pass
        if found.stable:
            return Entry(found.kind, found.digest)
    raise kept_changing(path)
