"""Artifacts: files out of a sandbox, put beside the user's own without trusting the archive they come in."""

from __future__ import annotations

import os
import posixpath
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Sandbox
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.untrusted import HEADER_BYTES, members_in, pieces_of
from pytest_stagebuild.values import dataclass

_WHAT: Final = "the artifacts"

_NAME_BYTES: Final = 255
_PATH_BYTES: Final = 2048
_DEPTH: Final = 128
_NOTES: Final = 20


class ArtifactError(StagebuildError):
    """Artifacts are too many or too large, or cannot be put where they should go."""


@dataclass(frozen=True)
class Extracted:
    """The files that were put in place, in the order of the archive, and what was left out and why."""

    paths: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def extract(
    tar_stream: Iterator[bytes], destination: Path, *, limit_bytes: int = 2 << 30, limit_files: int = 100_000
) -> Extracted:
    """Put the files and folders of a tar under ``destination``, each replacing what stood there by its name.

    The archive was written by whoever controls the sandbox. Only regular files and folders are taken, with modes 0644
    or 0755 and owned by the caller; links, devices, FIFOs and names that lead elsewhere are left out, with a note.
    Nothing is written through a link that stands in ``destination``. The members at the top of the archive are put in
    place whole, one after the other and only once everything was read: after an error all is as it was.

    Raises :class:`ArtifactError` where there are more than ``limit_files`` members or ``limit_bytes`` bytes, or where
    ``destination`` cannot be written, and :class:`~pytest_stagebuild.errors.EngineError` where the stream is no tar or
    ends early.
    """
    extraction = _Extraction(limit_bytes, limit_files)
    members = members_in(
        tar_stream,
        # The headers and padding of that many members stay under the second term.
        limit=limit_bytes + limit_files * 4096 + HEADER_BYTES,
        too_large=lambda: _too_large(limit_bytes),
        what=_WHAT,
    )
    try:
        if destination.is_symlink():
            raise ArtifactError(
                f"{destination} is a symbolic link and artifacts are not written through one; remove it"
            )
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
        try:
            extraction.take(members, work / "new")
            _put_in_place(work, destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"artifacts cannot be written to {destination}: {error.strerror}; make room there, or make it writable"
        ) from error
    return Extracted(tuple(destination / path for path in extraction.files), extraction.notes())


def take_artifacts(sandbox: Sandbox, wanted: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Copy what the tests left at the paths ``wanted`` into ``folder``, and give what is to be noted about that.

    A path below ``/src`` keeps its place relative to that, any other one its place below ``/``. How the tests ended
    stands whatever becomes of their artifacts.
    """
    notes: list[str] = []
    for one in wanted:
        path = posixpath.normpath(posixpath.join(WORKING_DIRECTORY, one))
        below_source = path.startswith(WORKING_DIRECTORY + "/")
        place = posixpath.relpath(path, WORKING_DIRECTORY if below_source else "/")
        try:
            notes += extract(sandbox.get(path), folder / posixpath.dirname(place)).notes
        except FileNotFoundError:
            notes.append(f"artifact {one} was not there after the tests")
        except StagebuildError as error:
            notes.append(f"artifact {one} was not copied out: {error}")
    return tuple(notes)


class _Extraction:
    """What has come out of an archive so far."""

    def __init__(self, limit_bytes: int, limit_files: int) -> None:
        self.files: dict[str, None] = {}
        self._limit_bytes = limit_bytes
        self._limit_files = limit_files
        self._bytes = 0
        self._notes: list[str] = []
        self._left_out = 0

    def take(self, members: Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]], root: Path) -> None:
        _make_folder(root)
        for number, (member, content) in enumerate(members):
            if number == self._limit_files:
                raise ArtifactError(f"the artifacts are more than {number} files; name fewer of them in `artifacts`")
            path = "/".join(part for part in member.name.split("/") if part not in ("", "."))
            problem = _problem(member, path) or self._store(root, path, member, content)
            if problem:
                self._leave_out(member.name, problem)

    def notes(self) -> tuple[str, ...]:
        more = self._left_out - len(self._notes)
        return (*self._notes, *([f"{more} more were left out"] if more else []))

    def _store(self, root: Path, path: str, member: tarfile.TarInfo, content: IO[bytes] | None) -> str:
        """Write a member, or say why not: its place is taken by something of another kind."""
        target = root / path
        try:
            _make_folder(target if content is None else target.parent)
            if content is None:
                return ""
            # The archive may hold a file twice; the later one counts.
            target.unlink(missing_ok=True)
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return "it is both a file and a folder"
        with os.fdopen(descriptor, "wb") as file:
            for piece in pieces_of(content, _WHAT):
                self._bytes += len(piece)
                if self._bytes > self._limit_bytes:
                    raise _too_large(self._limit_bytes)
                file.write(piece)
            os.fchmod(descriptor, 0o755 if member.mode & 0o100 else 0o644)
        self.files[path] = None
        return ""

    def _leave_out(self, name: str, problem: str) -> None:
        self._left_out += 1
        if len(self._notes) < _NOTES:
            self._notes.append(f"{name[:300]!r} was left out: {problem}")


def _problem(member: tarfile.TarInfo, path: str) -> str:
    """Why a member cannot be taken, or nothing."""
    kinds = {
        "a symbolic link": member.issym(),
        "a hard link": member.islnk(),
        "a device": member.ischr() or member.isblk(),
        "a FIFO": member.isfifo(),
        "of an unknown kind": not (member.isreg() or member.isdir()),
    }
    parts = path.split("/")
    names = {
        "its path is absolute": member.name.startswith("/"),
        "its path leads out of the archive": ".." in parts,
        "it has no name": not path and not member.isdir(),
        "its name holds a NUL": "\0" in path,
        f"its name is longer than {_NAME_BYTES} bytes": any(len(os.fsencode(part)) > _NAME_BYTES for part in parts),
        f"its path is longer than {_PATH_BYTES} bytes": len(os.fsencode(path)) > _PATH_BYTES,
        f"it is more than {_DEPTH} folders deep": len(parts) > _DEPTH,
    }
    kind = next((f"it is {kind}" for kind, is_so in kinds.items() if is_so), "")
    return kind or next((problem for problem, is_so in names.items() if is_so), "")


def _make_folder(path: Path) -> None:
    """Like ``mkdir -p``, with modes that do not depend on the umask."""
    try:
        path.mkdir()
    except FileNotFoundError:
        _make_folder(path.parent)
        path.mkdir()
    except FileExistsError:
        if path.is_dir():
            return
        raise
    path.chmod(0o755)


def _put_in_place(work: Path, destination: Path) -> None:
    destination.mkdir(exist_ok=True)
    aside = work / "old"
    aside.mkdir()
    for new in sorted((work / "new").iterdir()):
        target = destination / new.name
        try:
            new.rename(target)
        except OSError:
            # A folder does not replace what is there, and nothing replaces a folder that holds something.
            if not os.path.lexists(target):
                raise
            target.rename(aside / new.name)
            try:
                new.rename(target)
            except OSError:
                (aside / new.name).rename(target)
                raise


def _too_large(limit: int) -> ArtifactError:
    return ArtifactError(f"the artifacts are larger than {limit} bytes; name fewer of them in `artifacts`")
