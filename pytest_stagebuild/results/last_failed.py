"""What ``--lf`` and ``--ff`` go by, kept from one disposable container to the next.

pytest keeps it in its cache, which ends with the container: https://docs.pytest.org/en/stable/how-to/cache.html. Only
the default ``cache_dir`` is looked at.
"""

from __future__ import annotations

import contextlib
import io
import posixpath
import tarfile
import time
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Owner, Sandbox
from pytest_stagebuild.tar import read_file

_INSIDE: Final = f"{WORKING_DIRECTORY}/.pytest_cache/v/cache/lastfailed"
_LARGEST: Final = 64 * 2**20
"""Bytes. Whatever is larger is no list of failed tests."""


def bring_in(sandbox: Sandbox, kept: Path) -> None:
    """Give the tests in a sandbox what the last ones left in the file ``kept``."""
    with contextlib.suppress(FileNotFoundError):
        sandbox.put([_archive(kept.read_bytes(), sandbox.owner)])


def take_out(sandbox: Sandbox, kept: Path) -> None:
    """Keep in the file ``kept`` what the tests in a sandbox left."""
    archive = bytearray()
    try:
        for piece in sandbox.get(_INSIDE):
            archive += piece
            if len(archive) > _LARGEST:
                return
        kept.write_bytes(read_file(bytes(archive)))
    except (FileNotFoundError, ValueError, tarfile.TarError):
        kept.unlink(missing_ok=True)


def _archive(content: bytes, owner: Owner) -> bytes:
    buffer = io.BytesIO()
    folders = [_INSIDE]
    while (above := posixpath.dirname(folders[0])) != WORKING_DIRECTORY:
        folders.insert(0, above)
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in folders:
            header = tarfile.TarInfo(path[1:])
            header.uid, header.gid, header.mtime = owner.uid, owner.gid, int(time.time())
            if path == _INSIDE:
                header.size, header.mode = len(content), 0o644
                tar.addfile(header, io.BytesIO(content))
            else:
                header.type, header.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(header)
    return buffer.getvalue()
