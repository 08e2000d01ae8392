"""The checkpoints that the lockfile and the engine know, and which of them a stage may reuse."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from pytest_stagebuild.checkpoint import LABEL, RECORD_PATH, SCHEMA, Checkpoint, Record, explain, key_of
from pytest_stagebuild.engines.owner import Process, provably_gone, start_of, this_process
from pytest_stagebuild.engines.protocol import Engine, StoredImage
from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.lockfile import Index, Lockfile
from pytest_stagebuild.source.manifest import Changes, Manifest
from pytest_stagebuild.stage import CHECKPOINT_NAMES, CheckpointStage
from pytest_stagebuild.state import StateFolder
from pytest_stagebuild.tar import read_file
from pytest_stagebuild.values import dataclass

_READING_LIFE: Final = 300.0

_STAGE_BY_NAME: Final = {name: stage for stage, name in CHECKPOINT_NAMES.items()}

_RUN: Final = ".run"
"""What the marks of runs end with; those of lockfiles have no such end."""


@dataclass(frozen=True)
class Found:
    """A checkpoint that may be reused, with its record and its image."""

    checkpoint: Checkpoint
    record: Record
    image: StoredImage


@dataclass(frozen=True)
class Missed:
    """No checkpoint may be reused, and why."""

    reason: str


@dataclass(frozen=True)
class Pruned:
    """The checkpoints whose images were removed, and those that were left to another worktree, which uses them."""

    removed: list[Checkpoint]
    left: list[Checkpoint]

    def __str__(self) -> str:
        """What a run says of it; empty where nothing was pruned."""
        said = []
        if self.removed:
            said.append(f"pruned {len(self.removed)} checkpoints: {', '.join(map(str, self.removed))}")
        if self.left:
            said.append(f"left to another worktree, which uses them: {', '.join(map(str, self.left))}")
        return "; ".join(said)


class CheckpointStore:
    """All checkpoints of one project on one engine, as one source tree sees them.

    ``uses`` is a folder of the user's own in which every lockfile marks the checkpoints that it lists, and every run
    those that it works with: pruning in one worktree leaves those of another alone, and of a run that goes on.
    """

    def __init__(self, engine: Engine, lockfile: Lockfile, state: StateFolder, project: str, uses: Path) -> None:
        self._engine = engine
        self._lockfile = lockfile
        self._state = state
        self._project = project
        self._uses = uses
        self._held: set[Path] = set()
        self._used: dict[str, float] = {}
        self._compared: tuple[Manifest | None, dict[str, str]] = (None, {})

    def find(self, components: Mapping[str, object], manifest: Manifest) -> Found | Missed:
        """The newest checkpoint under the key of ``components`` whose inputs are as ``manifest`` has them."""
        key = key_of(components)
        index = self._lockfile.read()
        gone, first_change = False, ""
        for checkpoint in index.under(self._engine.identity, key=key):
            match self._as_listed(checkpoint, manifest):
                case Found() as found:
                    return found
                case None:
                    gone = True
                    self._forget(checkpoint)
                case change:
                    first_change = first_change or change
        unknown = {LABEL + "key": key, LABEL + "schema": str(SCHEMA)}
        for image in self._engine.images_with(unknown, but={one.image for one in index.checkpoints.values()}):
            uuid = image.labels.get(LABEL + "uuid", "")
            if uuid in index.checkpoints or (record := self._read_record(image, uuid)) is None or record.key != key:
                continue
            checkpoint = self._adopt(image, record)
            self._hold(checkpoint.uuid)
            if changes := record.changes(manifest):
                first_change = first_change or str(changes)
            else:
                return Found(checkpoint, record, image)
        if gone:
            return Missed("checkpoint image is gone")
        return Missed(first_change or self._why_no_key(components, index))

    def _as_listed(self, checkpoint: Checkpoint, manifest: Manifest) -> Found | str | None:
        """A checkpoint of the lockfile, or what has changed since it was made; None where there is nothing of it."""
        if self._compared[0] is not manifest:
            self._compared = (manifest, {})
        changed = self._compared[1]
        if checkpoint.uuid in changed:  # as a first look has found, and it takes 5 ms to compare large trees
            return changed[checkpoint.uuid]
        record = self._state.record(checkpoint.uuid)
        record = record if record and record.key == checkpoint.key else None
        image = None if record else self._image_of(checkpoint)
        if record is None and image is not None:
            record = self._read_record(image, checkpoint.uuid)
        if record is None:
            return None
        if changes := record.changes(manifest):
            return changed.setdefault(checkpoint.uuid, str(changes))
        image = self._held_image_of(checkpoint)
        return Found(self._touched(checkpoint), record, image) if image else None

    def _why_no_key(self, components: Mapping[str, object], index: Index) -> str:
        others = index.under(self._engine.identity, stage=str(components["stage"]))
        if not others:
            return "first run"
        images = index.bases.get(self._engine.identity, {})
        return explain(components, max(others, key=lambda other: other.used).components, images)

    def chosen(self, wanted: str, components: Mapping[CheckpointStage, Mapping[str, object]]) -> Found:
        """The checkpoint that ``--stagebuild-from`` names: by UUID, by a prefix of one, or by its name.

        A name means the newest one of this source whose command, environment and base image are those of
        ``components``. Raises :class:`ConfigurationError`, with those that exist, where there is none.
        """
        candidates = self._meant(wanted, components)
        if not candidates and self._adopt_meant(wanted):
            candidates = self._meant(wanted, components)
        for checkpoint in candidates:
            image = self._held_image_of(checkpoint)
            record = image and (self._state.record(checkpoint.uuid) or self._read_record(image, checkpoint.uuid))
            if image and record:
                return Found(self._touched(checkpoint), record, image)
        known = self._lockfile.read().under(self._engine.identity)
        remaining = [one for one in known if self._image_of(one)]
        if candidates:
            problem = f"the image of {candidates[0]} is gone"
        elif any(one.name == wanted for one in known):
            problem = "none was made with this command, environment and base image; a UUID means one as it is"
        else:
            problem = "there is no such checkpoint"
        raise ConfigurationError(f"--stagebuild-from={wanted}: {problem}. {_choices(remaining)}")

    def _meant(self, wanted: str, components: Mapping[CheckpointStage, Mapping[str, object]]) -> list[Checkpoint]:
        known = self._lockfile.read().under(self._engine.identity)
        if stage := _STAGE_BY_NAME.get(wanted):
            parts = components[stage]
            return [
                one
                for one in known
                if one.stage == stage
                and all(one.components.get(part) == parts[part] for part in ("command", "env", "project"))
                and self.stands_on(one, str(parts["parent"]))
            ]
        candidates = [one for one in known if len(wanted) >= 4 and one.uuid.startswith(wanted.lower())]
        if len({one.uuid for one in candidates}) > 1:
            raise ConfigurationError(
                f"--stagebuild-from={wanted} means more than one checkpoint: {_listed(candidates)}. "
                "Give more of the UUID"
            )
        return candidates

    def stands_on(self, checkpoint: Checkpoint, base: str) -> bool:
        """Whether a checkpoint was made, with the one below it, on the base image of this identity or UUID."""
        below = checkpoint if checkpoint.stage == "install" else self.by_uuid(checkpoint.parent)
        return below is not None and below.parent == base

    def by_uuid(self, uuid: str) -> Checkpoint | None:
        """The checkpoint of this UUID, or of the only one that begins so."""
        found = [one for one in self._lockfile.read().under(self._engine.identity) if one.uuid.startswith(uuid)]
        if not found and len(uuid) == 36:
            for image in self._engine.images_with({LABEL + "uuid": uuid}):
                if record := self._read_record(image, uuid):
                    return self._adopt(image, record)
        return found[0] if len(found) == 1 else None

    def opened(self, checkpoint: Checkpoint) -> Found | None:
        """A checkpoint with its record and image, or None where the image is gone."""
        image = self._held_image_of(checkpoint)
        record = image and (self._state.record(checkpoint.uuid) or self._read_record(image, checkpoint.uuid))
        return Found(checkpoint, record, image) if image and record else None

    def add(self, checkpoint: Checkpoint, record: Record) -> None:
        """Record a checkpoint that was just made, or found again."""
        self._state.keep_record(record)
        self._lockfile.update(lambda index: index.with_checkpoint(checkpoint))
        self._hold(checkpoint.uuid)
        self._mark(checkpoint.uuid)

    def totals(self) -> tuple[int, int]:
        """How many checkpoints of this source there are, and their bytes beyond their parents'."""
        known = self._lockfile.read().under(self._engine.identity)
        sizes = {one.image: one.size for one in known}
        # An engine may not have counted the bytes yet when a checkpoint was made.
        for project in {one.project for one in known if not one.size}:
            images = self._engine.images_with({LABEL + "project": project})
            sizes |= {image.id: image.own_size for image in images if not sizes.get(image.id, 1)}
        return len(known), sum(sizes.values())

    def prune(self, keep: int) -> Pruned:
        """Remove all but the ``keep`` most recently used checkpoints of each stage.

        What others build on stays, and what a run works with that goes on; what another worktree uses leaves this
        lockfile alone.
        """
        removed: list[Checkpoint] = []
        left: list[Checkpoint] = []
        for stage in ("build", "install"):  # children first: an engine refuses to remove what something is built on
            known = self._lockfile.read().under(self._engine.identity, stage=stage)
            ours = [one for one in known if one.project == self._project]
            for checkpoint in sorted(ours, key=lambda one: one.used, reverse=True)[keep:]:
                if self._held_by_others(checkpoint.uuid):
                    continue
                if self._used_elsewhere(checkpoint.uuid):
                    self._forget(checkpoint)
                    left.append(checkpoint)
                elif self._engine.remove_image(checkpoint.image):
                    self._forget(checkpoint)
                    removed.append(checkpoint)
        return Pruned(removed, left)

    def release(self) -> None:
        """The run is over: record when it used what it worked with, which may be pruned from now on."""
        if self._used:
            self._lockfile.update(lambda index: index.with_uses(self._used))
            self._used = {}
        for mark in self._held:
            with contextlib.suppress(OSError):
                mark.unlink()
                mark.parent.rmdir()
        self._held.clear()

    def _held_image_of(self, checkpoint: Checkpoint) -> StoredImage | None:
        # Held first: who prunes at this moment either sees the mark, or is seen to have removed the image.
        self._hold(checkpoint.uuid)
        return self._image_of(checkpoint)

    def _image_of(self, checkpoint: Checkpoint) -> StoredImage | None:
        image = self._engine.find_image(checkpoint.image)
        labelled = image is not None and image.labels.get(LABEL + "uuid") == checkpoint.uuid
        return image if labelled and image is not None and image.labels.get(LABEL + "key") == checkpoint.key else None

    def _read_record(self, image: StoredImage, uuid: str) -> Record | None:
        try:
            with self._engine.sandbox(image, labels={}, network=False, life=_READING_LIFE) as sandbox:
                record = Record.from_bytes(read_file(b"".join(sandbox.get(RECORD_PATH))))
        except (FileNotFoundError, ValueError, tarfile.TarError):
            return None
        if record.uuid != uuid or not record.vouches_for(image.layers):
            return None
        self._state.keep_record(record)
        return record

    def _adopt(self, image: StoredImage, record: Record) -> Checkpoint:
        """Take up a checkpoint that the engine has and the lockfile has not."""
        checkpoint = Checkpoint(
            uuid=record.uuid,
            stage=record.stage,
            key=record.key,
            components=record.components,
            parent=record.parent,
            engine=self._engine.identity,
            project=str(record.components.get("project", "")),
            image=image.id,
            created=record.created,
            used=time.time(),
            size=self._bytes_beyond_parent(image, record.layers),
        )
        self.add(checkpoint, record)
        return checkpoint

    def _bytes_beyond_parent(self, image: StoredImage, layers: tuple[str, ...]) -> int:
        parents = [one for one in self._lockfile.read().checkpoints.values() if one.engine == self._engine.identity]
        for one in parents:
            stored = self._engine.find_image(one.image)
            if stored is not None and stored.layers == layers:
                return max(0, image.size - stored.size)
        return image.size

    def _adopt_meant(self, wanted: str) -> bool:
        """Take up what the engine has of this project by that name or UUID: the lockfile may be lost, or another
        worktree's; of a lost one, everything is taken up, to choose from.
        """
        index = self._lockfile.read()
        lost = not index.under(self._engine.identity)
        adopted = False
        for image in self._engine.images_with({LABEL + "project": self._project, LABEL + "schema": str(SCHEMA)}):
            uuid = image.labels.get(LABEL + "uuid", "")
            meant = uuid.startswith(wanted.lower()) or image.labels.get(LABEL + "stage") == _STAGE_BY_NAME.get(wanted)
            if uuid not in index.checkpoints and (lost or meant) and (record := self._read_record(image, uuid)):
                self._adopt(image, record)
                adopted = True
        return adopted

    def _touched(self, checkpoint: Checkpoint) -> Checkpoint:
        self._used[checkpoint.uuid] = time.time()
        return replace(checkpoint, used=self._used[checkpoint.uuid])

    def _forget(self, checkpoint: Checkpoint) -> None:
        self._lockfile.update(lambda index: index.without([checkpoint.uuid]))
        self._state.drop_record(checkpoint.uuid)
        with contextlib.suppress(OSError):
            (self._uses / checkpoint.uuid / self._mark_name).unlink(missing_ok=True)
            (self._uses / checkpoint.uuid).rmdir()

    @property
    def _mark_name(self) -> str:
        return hashlib.sha256(os.fsencode(self._lockfile.path)).hexdigest()[:16]

    def _mark(self, uuid: str) -> None:
        with contextlib.suppress(OSError):
            (self._uses / uuid).mkdir(parents=True, exist_ok=True)
            (self._uses / uuid / self._mark_name).write_bytes(os.fsencode(self._lockfile.path))

    def _used_elsewhere(self, uuid: str) -> bool:
        with contextlib.suppress(OSError):
            for mark in (self._uses / uuid).iterdir():
                if mark.name == self._mark_name or mark.suffix == _RUN:
                    continue
                other = Path(os.fsdecode(mark.read_bytes()))
                if other.exists() and uuid.encode() in other.read_bytes():
                    return True
        return False

    def _hold(self, uuid: str) -> None:
        process = this_process()
        mark = self._uses / uuid / f"{process.pid}{_RUN}"
        with contextlib.suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(process.to_label())
            self._held.add(mark)

    def _held_by_others(self, uuid: str) -> bool:
        """Whether a run that goes on works with a checkpoint; the marks of those that were killed are removed."""
        here = this_process()
        for mark in (self._uses / uuid).glob(f"*{_RUN}"):
            with contextlib.suppress(OSError):
                holder = Process.from_label(mark.read_text())
                if holder is None or provably_gone(holder, here, start_of):
                    mark.unlink()
                elif holder != here:
                    return True
        return False


def describe_changes(changes: Changes, limit: int = 5) -> str:
    """Up to ``limit`` changed paths in words, for a warning."""
    named = [f"{path} {what}" for path, what in changes]
    more = f" and {len(named) - limit} more" if len(named) > limit else ""
    return ", ".join(named[:limit]) + more


def _listed(checkpoints: list[Checkpoint]) -> str:
    return ", ".join(f"{one.name} {one.uuid}" for one in checkpoints)


def _choices(checkpoints: list[Checkpoint]) -> str:
    if not checkpoints:
        return (
            "There are no checkpoints of this source yet: run without --stagebuild-from, or with --stagebuild-from=base"
        )
    listed = "".join(f"\n  {one.name} {one.uuid}" for one in checkpoints)
    return f"Those that exist:\n  base{listed}"
