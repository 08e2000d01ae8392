"""A source tree as it was read at one moment, and what of it goes into a sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from pytest_stagebuild.engines.protocol import Owner


@dataclass(frozen=True)
class SourceTree:
    """The files of ``root`` that are sent, with the digests of their content as it was read.

    ``how`` says for the header how they were found and how many they are; ``notes`` name what was skipped.
    """

    root: Path
    manifest: Manifest
    how: str
    notes: tuple[str, ...]

    @classmethod
    def read(cls, root: Path) -> SourceTree:
        """Find and read the files of ``root``.

        Raises :class:`SourceError` for a file that cannot be read, one that keeps changing, and a tree without files.
        """
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
                entry = None if handle is None else _entry(handle, path)
                if isinstance(entry, Special):
                    specials.append((entry.what, path))
                elif entry is not None:
                    entries[path_of(path)] = entry
        if not entries:
            raise SourceError(
                f"no files to send in the source {shown(str(root))} ({found.how(0)}). "
                "Give the folder of the project, and see that its ignore rules leave something."
            )
        notes = (*found.notes, *skipped(specials))
        return cls(root, Manifest(entries), found.how(len(entries)), notes)

    def upload(self, parent: Manifest | None, *, owner: Owner, not_before: float, top: str = "src") -> Upload:
        """What a sandbox that holds ``parent`` needs in order to hold this tree under ``/top``; all of it for None.

        ``not_before`` is when the parent checkpoint was made, in seconds since the epoch: what has changed since is
        sent with a time after it.
        """
        return Upload(self.root, self.manifest, parent, owner=owner, not_before=not_before, top=top)


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
