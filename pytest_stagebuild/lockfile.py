"""The lockfile: the index of checkpoints, which costs nothing when it is lost."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import SCHEMA, Checkpoint
from pytest_stagebuild.values import dataclass


@dataclass(frozen=True)
class Index:
    """What a lockfile says: checkpoints by UUID, and by engine what each base reference was last found to be."""

    checkpoints: Mapping[str, Checkpoint] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def under(self, engine: str, *, key: str | None = None, stage: str | None = None) -> list[Checkpoint]:
        """The checkpoints of one engine under a key or of a stage, the newest first."""
        found = [
            checkpoint
            for checkpoint in self.checkpoints.values()
            if checkpoint.engine == engine
            and (key is None or checkpoint.key == key)
            and (stage is None or checkpoint.stage == stage)
        ]
        return sorted(found, key=lambda checkpoint: checkpoint.created, reverse=True)

    def last_used(self, *, stage: str | None = None) -> Checkpoint | None:
        """Of all, or of those of a stage, the one that was used last."""
        found = (one for one in self.checkpoints.values() if stage is None or one.stage == stage)
        return max(found, key=lambda checkpoint: checkpoint.used, default=None)

    def with_checkpoint(self, checkpoint: Checkpoint) -> Index:
        return replace(self, checkpoints={**self.checkpoints, checkpoint.uuid: checkpoint})

    def with_uses(self, used: Mapping[str, float]) -> Index:
        """With the times at which checkpoints were used, in seconds since the epoch; of those that are still here."""
        known = {
            uuid: replace(self.checkpoints[uuid], used=at) for uuid, at in used.items() if uuid in self.checkpoints
        }
        return replace(self, checkpoints={**self.checkpoints, **known})

    def without(self, uuids: Iterable[str]) -> Index:
        gone = set(uuids)
        return replace(self, checkpoints={uuid: one for uuid, one in self.checkpoints.items() if uuid not in gone})

    def with_base(self, engine: str, reference: str, identity: str) -> Index:
        return replace(self, bases={**self.bases, engine: {**self.bases.get(engine, {}), reference: identity}})

    def to_bytes(self) -> bytes:
        value = {
            "schema": SCHEMA,
            "bases": {engine: dict(names) for engine, names in self.bases.items()},
            "checkpoints": {uuid: checkpoint.to_json() for uuid, checkpoint in self.checkpoints.items()},
        }
        return json.dumps(value, sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Index:
        """Raises :class:`NewerSchema` or ``ValueError`` for what this version cannot have written."""
        value = json.loads(data)
        if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
            raise ValueError("it is not a lockfile of pytest-stagebuild")
        if value["schema"] > SCHEMA:
            raise NewerSchema(value["schema"])
        checkpoints, bases = value.get("checkpoints"), value.get("bases")
        if not isinstance(checkpoints, dict) or not isinstance(bases, dict):
            raise ValueError("it lacks its tables")
        for engine, names in bases.items():
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise ValueError(f"its base images of {engine!r} are not names")
        return cls({uuid: Checkpoint.from_json(one) for uuid, one in checkpoints.items()}, bases)


class NewerSchema(ValueError):
    """The lockfile was written by a newer version, whose entries this one can neither read nor keep."""


class Lockfile:
    """A lockfile on disk. It is read and written whole, under a lock on a file beside it, and never loses entries
    of another process or another engine.

    Nothing here raises for what stands in the file or for a folder that cannot be written: ``warnings`` collects what
    the user should know, and the run goes on with what the engine knows.
    """

    def __init__(self, path: Path) -> None:
        # A lockfile that is a link stays one: replacing it would cut it off from what it points to.
        self.path = Path(os.path.realpath(path))
        self._remembered = Index()
        self._read_only = False
        self.warnings: list[str] = []

    def read(self) -> Index:
        """The index as it stands, together with what this run added and could not write."""
        try:
            data = _read(self.path)
        except FileNotFoundError:
            return self._remembered
        except OSError as error:
            self._warn(f"lockfile {self.path} cannot be read ({error.strerror}): the engine is asked instead")
            return self._remembered
        try:
            index = Index.from_bytes(data)
        except NewerSchema as error:
            self._read_only = True
            self._warn(
                f"lockfile {self.path} has schema {error}, newer than this version's {SCHEMA}: it is left alone, and "
                "checkpoints of this run are found again through the engine. Upgrade pytest-stagebuild to use it"
            )
            return self._remembered
        except (ValueError, RecursionError) as error:
            self._set_aside(data, error)
            return self._remembered
        return index if not self._read_only else self._merged(index)

    def update(self, change: Callable[[Index], Index]) -> Index:
        """Apply ``change`` to the index as it stands on disk at that moment, and write the result durably."""
        from filelock import FileLock, Timeout

        if not self._read_only:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(f"{self.path}.lock", timeout=60):
                    index = change(self.read())
                    if not self._read_only:
                        _sweep(self.path)
                        _write_durably(self.path, index.to_bytes())
                        return index
            except (OSError, Timeout) as error:
                self._read_only = True
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._warn(
                    f"lockfile {self.path} cannot be written ({reason}): checkpoints of this run are found again "
                    "through the engine. Make the file writable, or name another one with --stagebuild-lockfile"
                )
        self._remembered = change(self._remembered)
        return self._merged(self.read())

    def _merged(self, index: Index) -> Index:
        return Index({**index.checkpoints, **self._remembered.checkpoints}, {**index.bases, **self._remembered.bases})

    def _set_aside(self, data: bytes, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt-{time.strftime('%Y%m%d-%H%M%S')}")
        what = "holds merge-conflict marks" if b"<<<<<<<" in data else f"is corrupt ({error})"
        try:
            os.replace(self.path, aside)
        except OSError as failure:
            self._read_only = True
            self._warn(f"lockfile {self.path} {what} and cannot be moved away ({failure.strerror}): remove it by hand")
        else:
            self._warn(f"lockfile {self.path} {what}: set aside as {aside.name}; the engine is asked instead")

    def _warn(self, message: str) -> None:
        if message not in self.warnings:
            self.warnings.append(message)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no file")  # a FIFO would be waited for
    return path.read_bytes()


_SUFFIX: Final = ".tmp"


def _temporary(path: Path) -> str:
    """What the names of temporary files for ``path`` begin with."""
    return f".{path.name}."


def _sweep(path: Path) -> None:
    """Remove what writers that were killed have left beside ``path``; whoever holds the lock is the only writer."""
    for file in path.parent.iterdir():
        if file.name.startswith(_temporary(path)) and file.name.endswith(_SUFFIX):
            with contextlib.suppress(OSError):
                file.unlink()


def _write_durably(path: Path, data: bytes) -> None:
    """Replace ``path`` so that a crash leaves the old content or the new one (OSDI '14, "All file systems are not
    created equal": a rename without fsync can leave an empty file).
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_temporary(path), suffix=_SUFFIX)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
