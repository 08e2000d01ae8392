"""What a checkpoint depends on in the source tree, and how that has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import field

from pytest_stagebuild.source.manifest import Changes, Manifest, folders_above, shown
from pytest_stagebuild.values import dataclass

JSON = Mapping[str, object]


@dataclass(frozen=True)
class Whole:
    """Every file that was sent; ``why`` says what kept the use of them from being traced, where that was asked for."""

    why: str = ""

    def changes(self, old: Manifest, now: Manifest) -> Changes:
        return now.changes_since(old)

    def describe(self, sent: Manifest) -> str:
        return f"all {sent.count} files" + (f" ({self.why})" if self.why else "")

    def to_json(self) -> JSON:
        return {"all": True, "why": self.why}


@dataclass(frozen=True)
class Matching:
    """The files that match one of these patterns.

    They are ``.gitignore`` patterns: ``*.toml`` matches in every folder, ``/setup.py`` at the top only.
    """

    globs: tuple[str, ...]

    def changes(self, old: Manifest, now: Manifest) -> Changes:
        return self._chosen(now).changes_since(self._chosen(old))

    def describe(self, sent: Manifest) -> str:
        return f"{len(self._chosen(sent).entries)} of {len(sent.entries)} files, which match {', '.join(self.globs)}"

    def to_json(self) -> JSON:
        return {"globs": list(self.globs)}

    def without_files(self, manifest: Manifest) -> list[str]:
        """The patterns that choose no file: what they were meant to choose is no input, whatever becomes of it."""
        from pathspec import GitIgnoreSpec

        alone = {text: GitIgnoreSpec.from_lines([text]) for text in self.globs if not text.startswith(("!", "#"))}
        return [text for text, pattern in alone.items() if not any(map(pattern.match_file, manifest.entries))]

    def _chosen(self, manifest: Manifest) -> Manifest:
        from pathspec import GitIgnoreSpec

        chosen = GitIgnoreSpec.from_lines(self.globs)
        return Manifest({path: entry for path, entry in manifest.entries.items() if chosen.match_file(path)})


@dataclass(frozen=True)
class Used:
    """What the command was seen to use: ``files``, and ``folders`` in which something happened ("" is the root).

    A used file counts with its content, type and executable bit. A folder counts with the names of what was sent in it,
    and the types, executable bits and link targets of that: so new, removed and renamed files count where the command
    could have noticed them. So do the root, the folders above a used file, and each link wherever it is: to look for a
    file, and to follow or read a link, leaves no event (https://man7.org/linux/man-pages/man7/inotify.7.html).
    """

    files: frozenset[str] = field(default_factory=frozenset)
    folders: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, files: Iterable[str], folders: Iterable[str], sent: Manifest) -> Used:
        """Of what was seen, what had been sent; with the folders that lead to it."""
        used = {path for path in files if path in sent.entries}
        used |= {path for path, entry in sent.entries.items() if entry.kind == "link"}
        known = {folder for folder in folders if folder in sent.listings}
        holding = known | {path.rpartition("/")[0] for path in used if sent.entries[path].kind != "link"}
        above = {folder for path in holding for folder in folders_above(path)}
        return cls(frozenset(used), frozenset({"", *holding, *above}))

    def changes(self, old: Manifest, now: Manifest) -> Changes:
        changed, removed = set(), set()
        for path in self.files:
            entry = now.entries.get(path)
            if entry is None:
                removed.add(path)
            elif entry != old.entries.get(path):
                changed.add(path)
        added: set[str] = set()
        for folder in self.folders:
            before, after = (manifest.listings.get(folder, {}) for manifest in (old, now))
            if before != after:
                top = f"{folder}/" if folder else ""
                added.update(top + name for name in after.keys() - before.keys())
                removed.update(top + name for name in before.keys() - after.keys())
                changed.update(top + name for name in after.keys() & before.keys() if after[name] != before[name])
        return Changes(tuple(sorted(added)), tuple(sorted(changed)), tuple(sorted(removed - changed)))

    def describe(self, sent: Manifest) -> str:
        said = f"{len(self.files)} of {len(sent.entries)} files"
        if self.files:
            said += f": {', '.join(_grouped(self.files, sent))}"
        if self.folders:
            names = [f"{shown(folder)}/" if folder else "./" for folder in sorted(self.folders)]
            said += f"; the names in {', '.join(names)}"
        return said

    def to_json(self) -> JSON:
        return {"files": sorted(self.files), "folders": sorted(self.folders)}


@dataclass(frozen=True)
class Unread:
    """Inputs that are read when they are asked for: in a record of which nothing else is needed yet."""

    read: Callable[[], Inputs]

    def changes(self, old: Manifest, now: Manifest) -> Changes:
        return self.read().changes(old, now)

    def describe(self, sent: Manifest) -> str:
        return self.read().describe(sent)

    def to_json(self) -> JSON:
        return self.read().to_json()


Inputs = Whole | Matching | Used | Unread


def inputs_from_json(value: object) -> Inputs:
    """Raises ``ValueError`` for anything that the ``to_json`` of none of them writes."""
    match value:
        case {"all": True, "why": str(why)}:
            return Whole(why)
        case {"globs": list(globs)} if _are_texts(globs):
            return Matching(tuple(globs))
        case {"files": list(files), "folders": list(folders)} if _are_texts(files) and _are_texts(folders):
            return Used(frozenset(files), frozenset(folders))
    raise ValueError("not the inputs of a checkpoint")


def _grouped(files: frozenset[str], sent: Manifest) -> list[str]:
    """The files, with each folder of which all are among them in their place."""
    parts = sorted(sent.entries.keys() - files)
    mixed = {above for path in parts for above in folders_above(path)}
    groups: dict[str, int] = {}
    for path in sorted(files):
        whole = next((folder for folder in folders_above(path) if folder not in mixed), None)
        group = f"{whole}/" if whole else path
        groups[group] = groups.get(group, 0) + 1
    return [f"{shown(group)} ({count})" if group.endswith("/") else shown(group) for group, count in groups.items()]


def _are_texts(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)
