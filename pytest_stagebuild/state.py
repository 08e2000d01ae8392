"""Where a run keeps what it knows: ``SOURCE/.stagebuild`` for the project, the user's cache folder for the machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import Record
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.values import dataclass

_TAG: Final = """\
Signature: 8a477f597d28d172789f06886806bc55
# This folder belongs to pytest-stagebuild and can be deleted.
"""
"""https://bford.info/cachedir/"""


_HEAD: Final = ".head"
"""What the heads of records end with; in front of one stands a checksum of the whole record."""


@dataclass(frozen=True)
class StateFolder:
    """``SOURCE/.stagebuild``: logs, artifacts, and copies of the checkpoints' records.

    Where the source cannot be written, a folder of the user's cache takes its place, and ``note`` says so.
    """

    path: Path
    note: str = ""

    @classmethod
    def of(cls, source: Path) -> StateFolder:
        path = source / ".stagebuild"
        try:
            make_cache(path)
        except OSError as error:
            name = hashlib.sha256(os.fsencode(source)).hexdigest()[:16]
            instead = cache_folder() / "sources" / name
            make_cache(instead)
            return cls(instead, f"{path} cannot be written ({error.strerror}): logs and artifacts go to {instead}")
        return cls(path)

    @property
    def artifacts(self) -> Path:
        return self.path / "artifacts"

    def remove_old_artifacts(self) -> str:
        """Remove those of an earlier run, so that nobody takes them for this one's; what hinders it, or nothing."""
        try:
            if not self.artifacts.is_symlink():
                shutil.rmtree(self.artifacts)
        except FileNotFoundError:
            pass
        except OSError as error:
            return f"old artifacts in {self.artifacts} cannot be removed ({error}); remove them by hand"
        return ""

    @property
    def last_failed(self) -> Path:
        return self.path / "last-failed.json"

    @property
    def seen(self) -> Path:
        """How the source tree's files stood when it was last read."""
        return self.path / "tree"

    def record(self, uuid: str) -> Record | None:
        """The copy of a checkpoint's record, or None where there is no whole one.

        What it holds of each file is read when it is asked for.
        """
        path = self._record_path(uuid)
        whole = cache(lambda: Record.from_bytes(path.read_bytes()))

        def whole_or_error() -> Record:
            try:
                return whole()
            except (OSError, ValueError) as error:
                raise StagebuildError(f"the record {path} is damaged ({error}): remove it and run again") from error

        try:
            record = self._known_by_head(path, whole_or_error) or whole()
        except (OSError, ValueError):
            return None
        return record if record.uuid == uuid else None

    def _known_by_head(self, path: Path, whole: Callable[[], Record]) -> Record | None:
        with contextlib.suppress(OSError, ValueError):
            checksum, _, head = path.with_suffix(_HEAD).read_bytes().partition(b"\n")
            if checksum == _checksum(path.read_bytes()):
                return Record.from_head(head, whole)
        return None

    def keep_record(self, record: Record) -> None:
        """Keep a copy of a record; one that cannot be kept is read from its image instead."""
        path = self._record_path(record.uuid)
        data = record.to_bytes()
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            for file, content in ((path, data), (path.with_suffix(_HEAD), _checksum(data) + b"\n" + record.head())):
                temporary = file.with_suffix(f"{file.suffix}.{os.getpid()}.tmp")
                temporary.write_bytes(content)
                os.replace(temporary, file)

    def drop_record(self, uuid: str) -> None:
        for file in (self._record_path(uuid), self._record_path(uuid).with_suffix(_HEAD)):
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)

    def _record_path(self, uuid: str) -> Path:
        return self.path / "records" / f"{uuid}.json"


def _checksum(data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data)


def make_cache(path: Path, mode: int = 0o777) -> None:
    """Make a folder that says of itself that it is no part of a source that it lies in."""
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    for name, text in ((".gitignore", "*\n"), ("CACHEDIR.TAG", _TAG)):
        if not (path / name).exists():
            (path / name).write_text(text)
    if not os.access(path, os.W_OK):
        raise PermissionError(13, "Permission denied", str(path))


def cache_folder() -> Path:
    """A folder of the user's own on a local file system, for locks that clones and worktrees share."""
    import platformdirs

    wanted = Path(platformdirs.user_cache_dir("pytest-stagebuild"))
    with contextlib.suppress(OSError):
        make_cache(wanted, 0o700)
        return wanted
    instead = Path(tempfile.gettempdir(), f"pytest-stagebuild-{os.getuid() if hasattr(os, 'getuid') else 'user'}")
    instead.mkdir(exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and instead.stat().st_uid != os.getuid():
        raise StagebuildError(
            f"{wanted} cannot be written, and {instead} belongs to somebody else: "
            "set XDG_CACHE_HOME to a folder of yours"
        )
    return instead


@dataclass(frozen=True)
class SingleFlight:
    """One process at a time for each key, so that what several runs need is made once.

    The lock is an OS lock on a file under ``folder``: it ends with its holder, ``kill -9`` included. The file stays,
    since removing a locked file would let a third process lock another one of the same name.
    """

    folder: Path
    wait_limit: float = 6 * 3600.0

    @contextlib.contextmanager
    def hold(self, key: str, what: str, waiting: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of ``key``; ``waiting`` is told once who holds it when it is not free at once."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(self.folder / f"{key[:40]}.lock")
        holder = self.folder / f"{key[:40]}.holder"
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            waiting(_holder_in_words(holder))
            try:
                lock.acquire(timeout=self.wait_limit)
            except Timeout:
                raise StagebuildError(
                    f"waited {self.wait_limit / 3600:.0f} h for {_holder_in_words(holder)}: "
                    "end that process and run again"
                ) from None
        try:
            with contextlib.suppress(OSError):
                holder.write_text(json.dumps({"pid": os.getpid(), "what": what, "since": time.time()}))
            yield
        finally:
            lock.release()


def _holder_in_words(path: Path) -> str:
    try:
        match json.loads(path.read_text()):
            case {"pid": int(pid), "what": str(what), "since": int() | float() as since}:
                clock = time.strftime("%H:%M:%S", time.localtime(since))
                return f"process {pid}, which has been at {what} since {clock}"
    except (OSError, ValueError):
        pass
    return "another process"
