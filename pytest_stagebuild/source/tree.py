"""A source tree as it was read at one moment, and what of it goes into a sandbox."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

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
from pytest_stagebuild.source.scan import ask_git, scan, skipped
from pytest_stagebuild.source.seen import STAMP, Seen, names_of, take_stamps
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from pytest_stagebuild.engines.protocol import Owner
    from pytest_stagebuild.source.git import Listing

_RACY: Final = 2_000_000_000
"""In nanoseconds, and the coarsest clock of a file system: a file this young can change again and look the same."""


@dataclass(frozen=True)
class SourceTree:
    """The files of ``root`` that are sent, with the digests of their content as it was read.

    ``how`` says for the header how they were found and how many they are; ``notes`` name what was skipped. By
    ``seen`` a later look at the tree knows what has not changed.
    """

    root: Path
    manifest: Manifest
    how: str
    notes: tuple[str, ...]
    seen: Seen = field(repr=False, compare=False)

    @classmethod
    def read(cls, root: Path, *, known: Seen | None = None, listing: Callable[[], Listing] | None = None) -> SourceTree:
        """Find and read the files of ``root``, but for those that are as they were when they were ``known``.

        ``listing`` gives git's answer, where :func:`~pytest_stagebuild.source.scan.ask_git` was called before.
        Raises :class:`SourceError` for a file that cannot be read, one that keeps changing, and a tree without files.
        """
        settled_until = time.time_ns() - _RACY
        with Folders(root) as folders:
            found = scan(root, folders, listing or partial(ask_git, root))
            stamps = take_stamps(folders, found.paths)
            if known and stamps == known.stamps and names_of(found.paths) == known.names and found.paths:
                return cls(root, known.manifest, found.how(known.count), found.notes, known)
            entries, specials = _entries(folders, found.paths, stamps, known)
        if not entries:
            raise SourceError(
                f"no files to send in the source {shown(str(root))} ({found.how(0)}). "
                "Give the folder of the project, and see that its ignore rules leave something."
            )
        manifest = Manifest({path_of(path): entry for path, entry in entries.items()})
        kept = [(path, number) for number, path in enumerate(found.paths) if path in entries]
        seen = Seen.of(
            [path for path, _ in kept],
            b"".join(stamps[number * STAMP : (number + 1) * STAMP] for _, number in kept),
            manifest,
            settled_until=settled_until,
        )
        notes = (*found.notes, *skipped(specials))
        return cls(root, manifest, found.how(manifest.count), notes, seen)

    def upload(self, parent: Manifest | None, *, owner: Owner, not_before: float, top: str = "src") -> Upload:
        """What a sandbox that holds ``parent`` needs in order to hold this tree under ``/top``; all of it for None.

        ``not_before`` is when the parent checkpoint was made, in seconds since the epoch: what has changed since is
        sent with a time after it.
        """
        return Upload(self.root, self.manifest, parent, owner=owner, not_before=not_before, top=top)


def _entries(
    folders: Folders, paths: Sequence[bytes], stamps: bytes, known: Seen | None
) -> tuple[dict[bytes, Entry], list[tuple[SpecialKind, bytes]]]:
    """The entries of the sorted ``paths``, read where they are not ``known``, and what has become no file."""
    entries: dict[bytes, Entry] = {}
    specials: list[tuple[SpecialKind, bytes]] = []
    here: bytes | None = None
    handle: int | None = None
    for path, known_entry in known.still(paths, stamps) if known else ((path, None) for path in paths):
        entry: Entry | Special | None = known_entry
        if known_entry is None:
            folder = path[: max(path.rfind(b"/"), 0)]
            if folder != here:
                here, handle = folder, folders.enter(folder)
            entry = _entry(handle, path) if handle is not None else None
        if isinstance(entry, Special):
            specials.append((entry.what, path))
        elif entry is not None:
            entries[path] = entry
    return entries, specials


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
