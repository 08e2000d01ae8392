"""What a container holds beyond its image, read without having the whole of it sent."""

from __future__ import annotations

import posixpath
import re
import tarfile
from collections.abc import Generator, Iterator, Mapping
from typing import Final

from pytest_stagebuild.engines.docker.connection import PATIENT, Connection, engine_errors
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.tar import IterableFile, content_of

_ADDED: Final = 1
_DELETED: Final = 2
"""https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerChanges"""

_MOST_REQUESTS: Final = 300
"""At about 10 ms each; beyond them all files of the container are had in one: about 7 ms for each MB."""


def changed_files(connection: Connection, container: str) -> Iterator[tuple[str, Iterator[bytes]]]:
    """See :meth:`~pytest_stagebuild.engines.protocol.Sandbox.changed_files`."""
    with engine_errors("list the changed files"):
        differences = connection.ask_for_list(f"/containers/{container}/changes", timeout=PATIENT)
    kinds = {str(one["Path"]): int(one["Kind"]) for one in differences if one["Kind"] != _DELETED}
    tops = _tops(kinds)
    # The engine's list has U+FFFD for what is not UTF-8, and finds nothing by such a name.
    if len(tops) > _MOST_REQUESTS or any("\N{REPLACEMENT CHARACTER}" in top for top in tops):
        with engine_errors("export the files"):
            exported = connection.open("GET", f"/containers/{container}/export")
        yield from _members(exported.pieces(), "/", kinds)
        return
    for top in tops:
        with engine_errors(f"give {top}"):
            archive = connection.archive(container, top)
        yield from _members(archive.pieces(), posixpath.dirname(top), kinds)


def _tops(kinds: Mapping[str, int]) -> list[str]:
    """The fewest paths below which everything lies that was added or changed, and little else."""
    above = {posixpath.dirname(path) for path in kinds}
    tops = []
    for path, kind in sorted(kinds.items()):
        if kind == _ADDED:
            # What an added folder holds comes with it.
            if kinds.get(posixpath.dirname(path)) != _ADDED:
                tops.append(path)
        elif path not in above:
            # A file; or a folder in which nothing is new, of which the first header is read and no more.
            tops.append(path)
    return tops


def _members(
    pieces: Generator[bytes, None, None], folder: str, kinds: Mapping[str, int]
) -> Iterator[tuple[str, Iterator[bytes]]]:
    try:
        with (
            engine_errors("give the changed files"),
            tarfile.open(fileobj=IterableFile(pieces), mode="r|", bufsize=1 << 20) as archive,
        ):
            for number, member in enumerate(archive):
                path = posixpath.join(folder, member.name.removeprefix("./").strip("/"))
                kind = kinds.get(_as_json_has_it(path))
                if member.isdir() and number == 0 and folder != "/" and kind != _ADDED:
                    return
                if kind == _ADDED or (kind is not None and not member.isdir()):
                    yield path, content_of(archive, member)
    except tarfile.TarError as error:
        raise EngineError(f"the engine gave a broken archive: {error}. Run again.") from error
    finally:
        pieces.close()


def _as_json_has_it(path: str) -> str:
    """The path as the engine's list of differences has it: each byte that is not UTF-8 is replaced there."""
    return re.sub("[\udc80-\udcff]", "\N{REPLACEMENT CHARACTER}", path)
