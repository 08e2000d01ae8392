"""The files of a tree as a walk finds them, by the rules of its ignore files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Literal

from pytest_stagebuild.source.ignore import CACHE_SIGNATURE, CACHE_TAG, LEFT_OUT, VENV_MARK, DockerIgnore, GitIgnore
from pytest_stagebuild.source.manifest import path_of
from pytest_stagebuild.source.reading import Folders, SpecialKind, read_text_file, special_kind, unreadable
from pytest_stagebuild.values import dataclass

What = Literal["file", "folder", "link"] | SpecialKind


@dataclasses.dataclass
class Found:
    """What a scan has found: paths of files and links, and what is named because it is not sent.

    ``left_out`` are folders with tracked files in them, the mark that leaves them out, and how many files those are.
    ``walked`` are repositories inside the tree for which git did not answer, and why.
    """

    paths: list[bytes] = field(default_factory=list)
    specials: list[tuple[SpecialKind, bytes]] = field(default_factory=list)
    left_out: list[tuple[bytes, str, int]] = field(default_factory=list)
    walked: list[tuple[bytes, str]] = field(default_factory=list)


def join(folder: bytes, name: bytes) -> bytes:
    """The path of ``name`` in ``folder``, which is empty for the root."""
    return folder + b"/" + name if folder else name


def list_folder(folder: int, path: bytes) -> dict[bytes, What]:
    """The names in the folder that is open as ``folder``, in no order, with what each is."""
    found: dict[bytes, What] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                what: What
                if entry.is_file(follow_symlinks=False):
                    what = "file"
                elif entry.is_dir(follow_symlinks=False):
                    what = "folder"
                elif entry.is_symlink():
                    what = "link"
                else:
                    try:
                        what = special_kind(entry.stat(follow_symlinks=False).st_mode)
                    except FileNotFoundError:
                        continue
                found[os.fsencode(entry.name)] = what
    except OSError as error:
        raise unreadable(path, error) from error
    return found


def mark_of(folder: int, path: bytes, names: Mapping[bytes, What]) -> str | None:
    """The file by which a folder says that it is a cache or a virtual environment, if it holds one.

    The root is the source whatever it holds.
    """
    if not path:
        return None
    if names.get(VENV_MARK) == "file":
        return VENV_MARK.decode()
    if names.get(CACHE_TAG) == "file":
        content = read_text_file(folder, join(path, CACHE_TAG))
        if content is not None and content.startswith(CACHE_SIGNATURE):
            return CACHE_TAG.decode()
    return None


@dataclass(frozen=True)
class _Level:
    """A folder that is still to be walked, with the ignore files that hold there, the nearest first."""

    path: bytes
    rules: tuple[tuple[int, GitIgnore], ...]
    docker: tuple[bool, ...]


def walk(folders: Folders, top: bytes, found: Found) -> None:
    """Add what is below ``top`` to ``found``.

    ``.gitignore`` files count wherever they stand, as in git; a ``.dockerignore`` at the root counts as in Docker. A
    path is left out when either says so.
    """
    docker = DockerIgnore()
    if not top and (root := folders.enter(top)) is not None:
        docker = DockerIgnore(read_text_file(root, b".dockerignore") or b"")
    waiting = [_Level(top, (), docker.nothing_said)]
    while waiting:
        level = waiting.pop()
        handle = folders.enter(level.path)
        if handle is None:
            continue
        names = list_folder(handle, level.path)
        if level.path != top and mark_of(handle, level.path, names):
            continue
        rules = level.rules
        if names.get(b".gitignore") == "file":
            content = read_text_file(handle, join(level.path, b".gitignore"))
            rules = ((len(join(level.path, b"")), GitIgnore(content or b"")), *rules)
        waiting.extend(reversed(list(_sort_out(level, names, rules, docker, found))))


def _sort_out(
    level: _Level,
    names: Mapping[bytes, What],
    rules: tuple[tuple[int, GitIgnore], ...],
    docker: DockerIgnore,
    found: Found,
) -> Iterator[_Level]:
    """Add the files among ``names`` to ``found`` and give the folders to walk."""
    for name in sorted(names):
        if name in LEFT_OUT:
            continue
        what = names[name]
        path = join(level.path, name)
        is_folder = what == "folder"
        if rules and _ignored_by_git(rules, path, name, is_folder=is_folder):
            continue
        matched = level.docker
        if matched:
            text = path_of(path)
            matched = docker.matched(text, matched)
            if docker.ignores(matched) and not (is_folder and docker.may_keep_below(text)):
                continue
        match what:
            case "folder":
                yield _Level(path, rules, matched)
            case "file" | "link":
                found.paths.append(path)
            case "FIFO" | "socket" | "device":
                found.specials.append((what, path))


def _ignored_by_git(rules: tuple[tuple[int, GitIgnore], ...], path: bytes, name: bytes, *, is_folder: bool) -> bool:
    text = path.decode("latin-1")
    last = name.decode("latin-1")
    for start, rule in rules:
        verdict = rule.verdict(text[start:], last, is_folder=is_folder)
        if verdict is not None:
            return verdict
    return False
