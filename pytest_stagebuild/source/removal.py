"""The script that removes from a sandbox what has gone from the source tree."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from pytest_stagebuild.source.archive import Upload
from pytest_stagebuild.source.manifest import folders_above, raw_path

_AT_ONCE: Final = 200
"""How many paths one command gets; a kernel allows 128 KiB in one argument and 2 MiB in all of them."""


def removal_script(upload: Upload) -> bytes:
    """A POSIX shell script that removes ``upload.removed`` and then the ``removed_folders`` that are empty.

    To be run after the upload was extracted; it ends with 0. Nothing is deleted through a symbolic link, whoever has
    put it there, and no folder is deleted with anything in it.
    """
    lines = [b"cd " + _quoted(b"/" + raw_path(upload.top)) + b" 2>/dev/null || exit 0\n"]
    lines += _removals(upload)
    lines += [
        _guarded(folder, b"rmdir " + _quoted(_relative(folder)) + b" 2>/dev/null") for folder in upload.removed_folders
    ]
    lines.append(b"exit 0\n")
    return b"".join(lines)


def _removals(upload: Upload) -> Iterator[bytes]:
    now = upload.manifest
    gone = [
        path
        for path in upload.removed
        if path not in now.folders and now.entries.keys().isdisjoint(folders_above(path))
    ]
    for folder, paths in groupby(gone, key=lambda path: path.rpartition("/")[0]):
        names = [_quoted(_relative(path)) for path in paths]
        for start in range(0, len(names), _AT_ONCE):
            command = b"rm -f " + b" ".join(names[start : start + _AT_ONCE]) + b" 2>/dev/null"
            yield _guarded(f"{folder}/" if folder else "", command)


def _guarded(path: str, command: bytes) -> bytes:
    """``command``, run only where every folder above ``path`` is one and no link."""
    tests = []
    for folder in folders_above(path):
        name = _quoted(_relative(folder))
        tests.append(b"[ -d " + name + b" ] && [ ! -L " + name + b" ]")
    return b" && ".join([*tests, command]) + b"\n"


def _relative(path: str) -> bytes:
    return b"./" + raw_path(path)


def _quoted(word: bytes) -> bytes:
    return b"'" + word.replace(b"'", b"'\\''") + b"'"
