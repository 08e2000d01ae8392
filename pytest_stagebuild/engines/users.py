"""Which numeric user and group an image's USER means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.errors import EngineError

ROOT: Final = ("", "0", "root", "0:0", "root:root", "0:root", "root:0")
"""How root is written, as long as the image's /etc/passwd does not name another so."""


def resolve_user(user: str, passwd: str, group: str) -> Owner:
    """The owner that ``user`` (``NAME``, ``UID``, either with ``:GROUP`` or ``:GID``, or nothing) means.

    ``passwd`` and ``group`` are the texts of the image's /etc/passwd and /etc/group, empty where it has none. The rules
    are those of https://docs.docker.com/reference/dockerfile/#user: a number need not be listed, and a user that is not
    listed has group 0. Raises :class:`EngineError` for a name that is not listed.
    """
    name, _, group_name = user.partition(":")
    uid, gid = 0, 0
    if name:
        entry = next((fields for fields in _entries(passwd, 4) if name in (fields[0], fields[2])), None)
        if entry:
            uid, gid = int(entry[2]), int(entry[3])
        else:
            uid = _number(name, f"its USER is {user!r}, and its /etc/passwd has no user {name!r}")
    if group_name:
        listed = next((fields for fields in _entries(group, 3) if group_name in (fields[0], fields[2])), None)
        problem = f"its USER is {user!r}, and its /etc/group has no group {group_name!r}"
        gid = int(listed[2]) if listed else _number(group_name, problem)
    return Owner(uid, gid)


def _entries(text: str, numbers_at: int) -> Iterator[list[str]]:
    """The lines of a passwd or group file whose numeric fields are numbers, parted."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) >= numbers_at and all(field.isdecimal() for field in fields[2:numbers_at]):
            yield fields


def _number(text: str, problem: str) -> int:
    if not text.isdecimal():
        raise EngineError(f"nothing can run on the image: {problem}. Add it to the image, or give a number as USER.")
    return int(text)
