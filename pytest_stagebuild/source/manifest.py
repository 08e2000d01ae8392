"""The manifest: the files of a source tree with their digests, as they were sent."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Literal

from pytest_stagebuild.values import dataclass

Kind = Literal["file", "executable", "link"]


def path_of(raw: bytes) -> str:
    """A path as manifests hold it: UTF-8 whatever the locale says, other bytes as surrogate escapes (PEP 383)."""
    return raw.decode("utf-8", "surrogateescape")


def raw_path(path: str) -> bytes:
    """The bytes of a path that :func:`path_of` gave."""
    return path.encode("utf-8", "surrogateescape")


def shown(path: str) -> str:
    """A path for messages: bytes that are not UTF-8 and control characters become escapes."""
    if path.isprintable():
        return path
    text = raw_path(path).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


_CLIMBING = frozenset(("", ".", ".."))


@dataclasses.dataclass(frozen=True)  # the standard one: of a large tree there are 100,000, made and compared
class Entry:
    """A file as git counts it: its type, executable bit, and content or link target.

    ``digest`` is the sha256 of a file's content, or of a link's target, in hexadecimal.
    """

    kind: Kind
    digest: str


class Manifest:
    """The files of a source tree: POSIX paths relative to its root, with their entries.

    Paths hold bytes that are not UTF-8 as surrogate escapes (:func:`path_of`).
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self._entries: Callable[[], Mapping[str, Entry]] = lambda: entries
        self.count = len(entries)

    @classmethod
    def known(cls, digest: str, count: int, entries: Callable[[], Mapping[str, Entry]]) -> Manifest:
        """One of this digest and so many files, whose ``entries`` are made when they are asked for.

        Of 100,000 files that takes a third of a second, and a run in which nothing has changed asks for none.
        """
        manifest = cls({})
        manifest._entries = entries
        manifest.count = count
        manifest.digest = digest
        return manifest

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries()

    @cached_property
    def digest(self) -> str:
        """A sha256 over all paths and entries, in hexadecimal."""
        entries = self.entries
        lines = [f"{path}\0{entries[path].kind} {entries[path].digest}\n" for path in sorted(entries)]
        return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Manifest) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Manifest({dict(self.entries)!r})"

    @cached_property
    def folders(self) -> frozenset[str]:
        """The folders that the paths lie in, without the root."""
        folders: set[str] = set()
        for path in self.entries:
            folder = path.rpartition("/")[0]
            while folder and folder not in folders:
                folders.add(folder)
                folder = folder.rpartition("/")[0]
        return frozenset(folders)

    @cached_property
    def listings(self) -> Mapping[str, Mapping[str, str]]:
        """What lies in each folder ("" is the root): names, with what of each shows without opening it."""
        listings: dict[str, dict[str, str]] = {"": {}}
        for path, entry in self.entries.items():
            folder, _, name = path.rpartition("/")
            shows = f"link {entry.digest}" if entry.kind == "link" else entry.kind
            while folder not in listings:
                listings[folder] = {name: shows}
                folder, _, name = folder.rpartition("/")
                shows = "folder"
            listings[folder][name] = shows
        return listings

    def changes_since(self, older: Manifest) -> Changes:
        """What this manifest has otherwise than ``older``."""
        if self.digest == older.digest:
            return Changes()
        return Changes(
            added=tuple(sorted(self.entries.keys() - older.entries.keys())),
            changed=tuple(
                sorted(path for path, entry in self.entries.items() if older.entries.get(path, entry) != entry)
            ),
            removed=tuple(sorted(older.entries.keys() - self.entries.keys())),
        )

    def to_json(self) -> dict[str, list[str]]:
        return {path: [entry.kind, entry.digest] for path, entry in sorted(self.entries.items())}

    @classmethod
    def from_json(cls, value: object) -> Manifest:
        """Raises ``ValueError`` for anything that :meth:`to_json` does not write.

        A record may come from an image that others have changed, and the paths in it are paths that we delete: one
        that is absolute or climbs out of the tree is refused.
        """
        if not isinstance(value, dict):
            raise ValueError("a manifest is an object")
        entries: dict[str, Entry] = {}
        for path, fields in value.items():
            if not isinstance(path, str) or not path or "\0" in path or not _CLIMBING.isdisjoint(path.split("/")):
                raise ValueError(f"not a path of a manifest: {path!r}")
            match fields:
                case ["file" | "executable" | "link" as kind, str() as digest]:
                    entries[path] = Entry(kind, digest)
                case _:
                    raise ValueError(f"not an entry of a manifest: {path!r}: {fields!r}")
        return cls(entries)


def folders_above(path: str) -> list[str]:
    """The folders that ``path`` lies in, the outermost first, without the root."""
    return [path[:end] for end, sign in enumerate(path) if sign == "/"]


@dataclass(frozen=True)
class Changes:
    """The paths in which one manifest differs from an older one, each tuple sorted."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Each path with the word for what happened to it."""
        for path in self.changed:
            yield path, "changed"
        for path in self.added:
            yield path, "added"
        for path in self.removed:
            yield path, "removed"

    def __str__(self) -> str:
        """The first of them in words, and how many more: ``src/a.py changed and 3 more``."""
        named = [f"{shown(path)} {what}" for path, what in self]
        if not named:
            return "nothing changed"
        return named[0] + (f" and {len(named) - 1} more" if len(named) > 1 else "")
