"""Ignore rules: what ``.gitignore``, ``.dockerignore`` and our own list keep out of the tree, as pure functions."""

from __future__ import annotations

import posixpath
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from pytest_stagebuild.values import dataclass

LEFT_OUT: Final = frozenset(
    (b".git", b".stagebuild", b"__pycache__", b".tox", b".nox", b"node_modules", b".pytest_cache")
)
"""Names that are never part of the source tree, wherever they stand."""

CACHE_TAG: Final = b"CACHEDIR.TAG"
CACHE_SIGNATURE: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""What a CACHEDIR.TAG must begin with (https://bford.info/cachedir/)."""

VENV_MARK: Final = b"pyvenv.cfg"

_BOM: Final = b"\xef\xbb\xbf"

_Matcher = Callable[[str], bool]

_POSIX_CLASSES: Final = {
    "[:alnum:]": "a-zA-Z0-9",
    "[:alpha:]": "a-zA-Z",
    "[:blank:]": " \t",
    "[:digit:]": "0-9",
    "[:lower:]": "a-z",
    "[:space:]": " \t\n\v\f\r",
    "[:upper:]": "A-Z",
    "[:xdigit:]": "0-9a-fA-F",
}


@dataclass(frozen=True)
class Rule:
    """A line of an ignore file. ``keeps`` is true for one that begins with ``!``."""

    keeps: bool
    matches: _Matcher
    by_name: bool = False
    folders_only: bool = False


class GitIgnore:
    """The rules of one ``.gitignore``, which hold for the folder it stands in and everything below.

    A folder that is ignored is not looked into, so each path is judged by itself and never by what stands above it,
    as git does (https://git-scm.com/docs/gitignore). Paths are text with a character for each byte
    (``path.decode("latin-1")``): git matches bytes, so that its ``?`` does not match a letter that takes two.
    """

    def __init__(self, content: bytes) -> None:
        self._rules = tuple(reversed(list(_gitignore_rules(content))))

    def verdict(self, path: str, name: str, *, is_folder: bool) -> bool | None:
        """Whether ``path``, relative to the folder of this file, is ignored; None where no line speaks of it.

        ``name`` is the last component of ``path``, which has no slash at its end even for a folder.
        """
        for rule in self._rules:
            if (is_folder or not rule.folders_only) and rule.matches(name if rule.by_name else path):
                return not rule.keeps
        return None


def _gitignore_rules(content: bytes) -> Iterator[Rule]:
    for raw in content.removeprefix(_BOM).decode("latin-1").split("\n"):
        line = _without_trailing_spaces(raw.removesuffix("\r"))
        if not line or line.startswith("#"):
            continue
        keeps = line.startswith("!")
        pattern = line[1:] if keeps else line
        folders_only = pattern.endswith("/")
        pattern = pattern.removesuffix("/")
        while pattern.startswith("**/"):
            rest = pattern.removeprefix("**/")
            if "/" in rest and not rest.startswith("**/"):
                break
            pattern = rest
        if not pattern or pattern.endswith("/"):
            continue
        by_name = "/" not in pattern
        matches = _git_pattern(pattern, whole=not pattern.endswith("/**"))
        if matches is not None:
            yield Rule(keeps, matches, by_name, folders_only)


def _without_trailing_spaces(line: str) -> str:
    """Git's rule: spaces alone, and not one that a backslash quotes."""
    end = at = 0
    while at < len(line):
        quoted = line[at] == "\\"
        at += 2 if quoted else 1
        if quoted or line[at - 1] != " ":
            end = at
    return line[:end]


def _git_pattern(pattern: str, *, whole: bool) -> _Matcher | None:
    """What git's wildmatch does with ``pattern``; None for one that can match nothing.

    ``pathspec`` lets a pattern match whatever lies below what it names as well. Where ``whole`` is true the match must
    reach the end of the path instead, for git judges each level by itself.
    """
    from pathspec import GitIgnoreSpec

    for name, characters in _POSIX_CLASSES.items():
        pattern = pattern.replace(name, characters)
    if pattern.endswith("\\ "):
        pattern = pattern[:-2] + "[ ]"
    elif pattern[-1].isspace():
        # pathspec strips what git keeps.
        pattern = f"{pattern[:-1]}[{pattern[-1]}]"
    if pattern[0] in "!#":
        pattern = "\\" + pattern
    try:
        with warnings.catch_warnings():
            # re warns of brackets that other languages read as set operations; git does not.
            warnings.simplefilter("ignore")
            (compiled,) = GitIgnoreSpec.from_lines([pattern]).patterns
    except (ValueError, re.error):
        return None
    if compiled.include is None:
        return None
    match = compiled.match_file
    if not whole or "/" not in pattern:
        return lambda path: match(path) is not None

    def matches_whole(path: str) -> bool:
        found = match(path)
        return found is not None and found.match.end() == len(path)

    return matches_whole


class DockerIgnore:
    """The rules of the ``.dockerignore`` at the root.

    Every pattern is anchored at the root, one that matches a folder speaks for everything below it, and the last that
    speaks wins (https://docs.docker.com/build/concepts/context/#dockerignore-files). Not through ``pathspec``, whose
    patterns are git's: there ``*`` stops at what it names, and inside a component ``**`` is ``*``.
    """

    def __init__(self, content: bytes = b"") -> None:
        self._rules: list[Rule] = []
        self._kept: list[str] = []
        for raw in content.removeprefix(_BOM).decode("utf-8", "surrogateescape").split("\n"):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            keeps = line.startswith("!")
            pattern = posixpath.normpath(line.removeprefix("!").strip()).lstrip("/")
            if not pattern or pattern == ".":
                continue
            try:
                expression = re.compile(_docker_pattern(pattern), re.DOTALL)
            except re.error:
                continue
            self._rules.append(Rule(keeps, partial(_matches_fully, expression)))
            if keeps:
                self._kept.append(re.split(r"[*?\[\\]", pattern, maxsplit=1)[0])

    @property
    def nothing_said(self) -> tuple[bool, ...]:
        """What has matched of the root: nothing yet."""
        return (False,) * len(self._rules)

    def matched(self, path: str, above: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which rules match ``path`` or a folder that it lies in; ``above`` is the same of its own folder."""
        return tuple(known or rule.matches(path) for known, rule in zip(above, self._rules, strict=True))

    def ignores(self, matched: tuple[bool, ...]) -> bool:
        """Whether a path with these matches is left out."""
        for rule, does in zip(reversed(self._rules), reversed(matched), strict=True):
            if does:
                return not rule.keeps
        return False

    def may_keep_below(self, folder: str) -> bool:
        """Whether an exception could name something inside this ignored folder."""
        inside = folder + "/"
        return any(kept.startswith(inside) or inside.startswith(kept) for kept in self._kept)


def _matches_fully(expression: re.Pattern[str], path: str) -> bool:
    return expression.fullmatch(path) is not None


def _docker_pattern(pattern: str) -> str:
    """A regular expression that matches what ``pattern`` names, itself and not what lies below.

    As moby's patternmatcher has it: ``**`` crosses slashes, also zero of them, even inside a component
    (https://github.com/moby/patternmatcher/blob/main/patternmatcher.go).
    """
    suffix = pattern.removeprefix("**")
    if suffix != pattern and not suffix.startswith("/") and not re.search(r"[*?\\\[\]]", suffix):
        return ".*" + re.escape(suffix)
    expression = ""
    at = 0
    while at < len(pattern):
        sign = pattern[at]
        at += 1
        if sign == "*" and pattern.startswith("*", at):
            at += 1
            if pattern.startswith("/", at):
                at += 1
            expression += ".*" if at >= len(pattern) else "(?:.*/)?"
        elif sign == "*":
            expression += "[^/]*"
        elif sign == "?":
            expression += "[^/]"
        elif sign == "\\" and at < len(pattern):
            expression += re.escape(pattern[at])
            at += 1
        elif sign == "[" and (close := pattern.find("]", at + 1)) > 0:
            inner = pattern[at:close].replace("[", "\\[")
            expression += f"[{inner}]"
            at = close + 1
        else:
            expression += re.escape(sign)
    return expression
