"""The files of a tree as git sees them: tracked, and untracked but not ignored."""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

from pytest_stagebuild.errors import SourceError
from pytest_stagebuild.source.ignore import LEFT_OUT
from pytest_stagebuild.source.reading import Folders
from pytest_stagebuild.source.walk import Found, What, join, list_folder, mark_of, walk
from pytest_stagebuild.values import dataclass

_KEPT_VARIABLES: Final = (
    "GIT_CONFIG_GLOBAL",
    "GIT_CONFIG_SYSTEM",
    "GIT_CONFIG_NOSYSTEM",
    "GIT_CONFIG_COUNT",
    "GIT_CONFIG_KEY_",
    "GIT_CONFIG_VALUE_",
    "GIT_EXEC_PATH",
)
"""The user's own configuration. Others, as a git hook sets them, would point git at another repository."""

_GIT: Final = ("git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
"""A repository's configuration can name programs to run for these (https://git-scm.com/docs/git-config)."""


class Refused(Exception):
    """Git gives no view of a folder; the message says why, in a few words."""


@dataclass(frozen=True)
class Listing:
    """What git lists below a folder: paths relative to it. A nested repository ends with a slash."""

    tracked: frozenset[bytes]
    untracked: frozenset[bytes]


def git_environment(ceiling: bytes | None = None) -> dict[str, str]:
    """The environment for git; it looks for no repository at or above ``ceiling``."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith(_KEPT_VARIABLES)
    }
    kept |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}
    if ceiling is not None:
        kept["GIT_CEILING_DIRECTORIES"] = os.fsdecode(ceiling)
    return kept


def ask(folder: bytes, *, nested: bool = False) -> Listing:
    """Git's listing of ``folder``. A ``nested`` one must be a repository itself.

    Raises :class:`Refused` where git does not answer, and :class:`SourceError` for a folder that git cannot read.
    """
    environment = git_environment(folder.rpartition(b"/")[0] if nested else None)
    calls = (("ls-files", "-z", "--cached"), ("ls-files", "-z", "--others", "--exclude-standard"))
    try:
        running = [
            subprocess.Popen(
                [*_GIT, "-C", folder, *call],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for call in calls
        ]
    except OSError as error:
        raise Refused("no git command" if isinstance(error, FileNotFoundError) else f"git: {error.strerror}") from error
    answers = [process.communicate() for process in running]
    for process, (_, complaint) in zip(running, answers, strict=True):
        if process.returncode:
            raise Refused(_reason(complaint))
    for line in answers[1][1].decode("utf-8", "replace").splitlines():
        if "could not open directory" in line:
            raise SourceError(
                f"git cannot read a folder of the source ({line.removeprefix('warning: ')}). "
                "Make it readable for the user who runs pytest, or leave it out by a rule in .gitignore."
            )
    tracked, untracked = (frozenset(filter(None, output.split(b"\0"))) for output, _ in answers)
    return Listing(tracked, untracked - tracked)


def _reason(complaint: bytes) -> str:
    """The first line of what git said, without the folder that it speaks of."""
    lines = complaint.decode("utf-8", "replace").strip().splitlines() or ["no answer"]
    line = next((line for line in lines if line.startswith("fatal: ")), lines[0]).removeprefix("fatal: ")
    if line.startswith("not a git repository"):
        return "not a git repository"
    return "git: " + line.removeprefix("detected ")


def view(root: bytes, folders: Folders, top: bytes, listing: Listing, found: Found) -> None:
    """Add what ``listing`` names below ``top`` to ``found``, with the repositories nested in it."""
    repository = _Repository(root, folders, top, listing, found)
    repository.add_files()
    repository.add_specials()
    for path in repository.nested:
        _add_nested(root, folders, path, found)


def _add_nested(root: bytes, folders: Folders, top: bytes, found: Found) -> None:
    """Add what is in a submodule or another repository inside the tree."""
    handle = folders.enter(top)
    if handle is None:
        return
    names = list_folder(handle, top)
    # A tracked file that has become a folder is listed like a submodule, and what is in it is listed as well.
    if b".git" not in names or mark_of(handle, top, names) is not None:
        return
    try:
        listing = ask(join(root, top), nested=True)
    except Refused as refusal:
        found.walked.append((top, str(refusal)))
        walk(folders, top, found)
    else:
        view(root, folders, top, listing, found)


class _Repository:
    """One repository's listing, on its way into ``found``; the paths of its listing are relative to ``top``."""

    def __init__(self, root: bytes, folders: Folders, top: bytes, listing: Listing, found: Found) -> None:
        self._root = root
        self._folders = folders
        self._top = top
        self._tracked = listing.tracked
        self._found = found
        self._wanted = _by_folder(listing.tracked | listing.untracked)
        self._unknown: dict[bytes, What] = {}
        self.nested: list[bytes] = []

    def add_files(self) -> None:
        left_out: Counter[tuple[bytes, str]] = Counter()
        dropped: tuple[bytes, str] | None = None
        # With the slash, what lies in a folder comes right after it.
        for folder in sorted(self._wanted, key=lambda path: path + b"/"):
            wanted = self._wanted[folder]
            if dropped is None or not folder.startswith(dropped[0] + b"/"):
                handle = self._folders.enter(self._path(folder))
                if handle is None:
                    continue
                names = list_folder(handle, self._path(folder))
                last = folder.rpartition(b"/")[2]
                mark = last.decode() if last in LEFT_OUT else mark_of(handle, folder, names)
                if mark is None:
                    self._add_folder(folder, names)
                    continue
                dropped = folder, mark
            left_out[dropped] += sum(join(folder, name) in self._tracked for name in wanted)
        self._found.left_out += [(self._path(path), mark, count) for (path, mark), count in left_out.items() if count]

    def _add_folder(self, folder: bytes, names: Mapping[bytes, What]) -> None:
        wanted = self._wanted[folder]
        found = self._found
        for name in wanted - LEFT_OUT:
            path = self._path(join(folder, name))
            match names.get(name):
                case "file" | "link":
                    found.paths.append(path)
                case "folder":
                    self.nested.append(path)
                case "FIFO" | "socket" | "device" as what:
                    found.specials.append((what, path))
        for name in _unlisted(names):
            path = join(folder, name)
            if name not in wanted and path not in self._wanted:
                self._unknown[path] = names[name]

    def add_specials(self) -> None:
        """Add sockets and their like. Git does not speak of them; those that it does not ignore are to be named."""
        unknown = self._unknown
        while unknown:
            ignored = _ignored(join(self._root, self._top), unknown)
            deeper: dict[bytes, What] = {}
            for path, what in unknown.items():
                if path in ignored:
                    continue
                match what:
                    case "folder":
                        deeper |= self._unlisted_below(path)
                    case "FIFO" | "socket" | "device":
                        self._found.specials.append((what, self._path(path)))
            unknown = deeper

    def _unlisted_below(self, folder: bytes) -> dict[bytes, What]:
        path = self._path(folder)
        handle = self._folders.enter(path)
        if handle is None:
            return {}
        names = list_folder(handle, path)
        if mark_of(handle, path, names) is not None:
            return {}
        return {join(folder, name): names[name] for name in _unlisted(names)}

    def _path(self, path: bytes) -> bytes:
        """A path of the listing as one of the whole tree."""
        return join(self._top, path) if path else self._top


def _by_folder(paths: Iterable[bytes]) -> dict[bytes, set[bytes]]:
    """The folders of ``paths`` and all folders above them, with the names that are listed there."""
    folders: dict[bytes, set[bytes]] = {b"": set()}
    for path in paths:
        folder, _, name = path.rstrip(b"/").rpartition(b"/")
        if folder not in folders:
            above = folder
            while above not in folders:
                folders[above] = set()
                above = above.rpartition(b"/")[0]
        folders[folder].add(name)
    return folders


def _unlisted(names: Mapping[bytes, What]) -> list[bytes]:
    """The names of which git does not speak one by one: folders, sockets and their like."""
    return [name for name, what in names.items() if what not in ("file", "link") and name not in LEFT_OUT]


def _ignored(folder: bytes, paths: Iterable[bytes]) -> frozenset[bytes]:
    """Those of ``paths`` that git ignores; all of them where it does not say."""
    everything = list(paths)
    done = subprocess.run(
        [*_GIT, "-C", folder, "check-ignore", "-z", "--stdin"],
        env=git_environment(),
        input=b"".join(path + b"\0" for path in everything),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode not in (0, 1):
        return frozenset(everything)
    return frozenset(done.stdout.split(b"\0"))
