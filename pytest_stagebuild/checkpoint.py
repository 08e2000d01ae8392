"""A checkpoint: an image that a stage left, the key it stands under, and the record that proves it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Final

from pytest_stagebuild.inputs import Inputs, Unread, inputs_from_json
from pytest_stagebuild.source.manifest import Changes, Manifest
from pytest_stagebuild.stage import CHECKPOINT_NAMES, CheckpointStage, Stage
from pytest_stagebuild.values import dataclass

SCHEMA: Final = 2
"""Goes up whenever the same project would get another key, or a record another shape."""

LABEL: Final = "pytest-stagebuild."
RECORD_PATH: Final = "/.stagebuild/record.json"
RUN_FOLDER: Final = "/.stagebuild/run"
"""What commands need while they run and no checkpoint may hold: CA bundles, standard input, what watches them."""

WORKING_DIRECTORY: Final = "/src"

JSON = Mapping[str, object]


def key_components(
    stage: Stage,
    *,
    parent: str,
    project: str,
    engine: str,
    platform: str,
    user: str,
    secrets: Sequence[str],
    salt: str,
    version: str = "",
) -> dict[str, object]:
    """Everything besides the source tree that a checkpoint of ``stage`` depends on.

    ``parent`` is the base image's identity or the parent checkpoint's UUID; of secrets only the names count, since a
    digest of a short secret can be guessed back (https://github.com/dagger/dagger/issues/6368). ``version`` is the one
    worked out from git, where the stage depends on it.
    """
    return {
        "schema": SCHEMA,
        "stage": stage.name,
        "parent": parent,
        "project": project,
        "engine": engine,
        "platform": platform,
        "command": stage.command,
        "cwd": WORKING_DIRECTORY,
        "user": user,
        "network": stage.network,
        "env": dict(sorted(stage.env.items())),
        "secrets": sorted(secrets),
        "inputs": stage.inputs if isinstance(stage.inputs, str) else list(stage.inputs),
        "salt": salt,
        "version": version,
    }


def key_of(components: JSON) -> str:
    """The key that these components stand for: a sha256 in hexadecimal over their canonical JSON."""
    canonical = json.dumps(components, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(b"pytest-stagebuild-key\0" + canonical.encode()).hexdigest()


_COMPONENT_WORDS: Final[Mapping[str, str]] = {
    "schema": "a newer pytest-stagebuild",
    "project": "project renamed",
    "platform": "platform changed",
    "engine": "engine changed",
    "user": "the base image's user changed",
    "command": "command changed",
    "network": "network setting changed",
    "secrets": "secrets changed",
    "inputs": "inputs setting changed",
    "salt": "salt changed",
}


def explain(new: JSON, old: JSON, images: Mapping[str, str]) -> str:
    """Why a checkpoint made under ``old`` does not stand under ``new``, in the words of the summary.

    ``images`` gives the engine's id for a base image's identity, since that is what users know an image by. The base
    image and the environment come before the parent: they are causes, a new parent is a consequence.
    """
    if new.get("parent") != old.get("parent") and new.get("stage") == "install":
        before, now = (images.get(str(one.get("parent")), str(one.get("parent"))) for one in (old, new))
        return f"base image changed {_short(before)} -> {_short(now)}" if before != now else "base image changed"
    for name, words in _COMPONENT_WORDS.items():
        if new.get(name) != old.get(name):
            return words
    if new.get("env") != old.get("env"):
        return f"environment changed ({', '.join(_differing(new.get('env'), old.get('env')))})"
    if new.get("version") != old.get("version"):
        return f"version changed {old.get('version') or 'none'} -> {new.get('version') or 'none'}"
    if new.get("parent") != old.get("parent"):
        return "deps-installed is new"
    return "no checkpoint"


def _short(digest: str) -> str:
    if " " in digest:
        return digest  # a title
    algorithm, _, value = digest.rpartition(":")
    return f"{algorithm}:{value[:12]}" if algorithm else digest[:8]


def _differing(new: object, old: object) -> list[str]:
    new_names = new if isinstance(new, Mapping) else {}
    old_names = old if isinstance(old, Mapping) else {}
    return sorted(
        str(name) for name in new_names.keys() | old_names.keys() if new_names.get(name) != old_names.get(name)
    )


@dataclass(frozen=True)
class Record:
    """What an image carries about itself, so that any run can take it up without the lockfile.

    ``layers`` are those of the parent image: a checkpoint has these and at most one more, which an image that somebody
    built on top of it has not. ``version`` is the one from git that the stage was given.
    """

    uuid: str
    stage: CheckpointStage
    key: str
    components: JSON
    parent: str
    layers: tuple[str, ...]
    created: float
    inputs: Inputs
    manifest: Manifest
    version: str

    def changes(self, now: Manifest) -> Changes:
        """How the inputs have changed between this checkpoint and ``now``."""
        if self.manifest == now:
            return Changes()
        return self.inputs.changes(self.manifest, now)

    def vouches_for(self, layers: Sequence[str]) -> bool:
        """Whether an image with these layers can be the one that this record was written into."""
        ours = tuple(layers)
        return ours[: len(self.layers)] == self.layers and len(ours) <= len(self.layers) + 1

    def to_bytes(self) -> bytes:
        return self._with(manifest=self.manifest.to_json(), inputs=self.inputs.to_json())

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Raises ``ValueError`` for anything that is not a whole record of this schema."""
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("not a checkpoint's record")
        return cls._from(value, inputs_from_json(value.get("inputs")), Manifest.from_json(value.get("manifest")))

    def head(self) -> bytes:
        """The record without what there is of each file: it tells a tree of which nothing has changed, and is small."""
        return self._with(manifest=[self.manifest.digest, self.manifest.count], inputs=None)

    @classmethod
    def from_head(cls, data: bytes, whole: Callable[[], Record]) -> Record:
        """The record of which :meth:`head` gave this; ``whole`` gives all of it, when more is asked for.

        Raises ``ValueError`` for anything that :meth:`head` does not write.
        """
        match json.loads(data):
            case {"manifest": [str(digest), int(count)]} as value:
                manifest = Manifest.known(digest, count, lambda: whole().manifest.entries)
                return cls._from(value, Unread(lambda: whole().inputs), manifest)
        raise ValueError("not the head of a checkpoint's record")

    def _with(self, **values: object) -> bytes:
        value = {name.name: getattr(self, name.name) for name in fields(self)} | values | {"schema": SCHEMA}
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def _from(cls, value: JSON, inputs: Inputs, manifest: Manifest) -> Record:
        match value:
            case {
                "schema": int(schema),
                "uuid": str(uuid),
                "stage": "install" | "build" as stage,
                "key": str(key),
                "components": dict(components),
                "parent": str(parent),
                "layers": list(layers),
                "created": int() | float() as created,
                "version": str(version),
            } if schema == SCHEMA and key_of(components) == key:
                return cls(
                    uuid=uuid,
                    stage=stage,
                    key=key,
                    components=components,
                    parent=parent,
                    layers=tuple(str(layer) for layer in layers),
                    created=float(created),
                    inputs=inputs,
                    manifest=manifest,
                    version=version,
                )
        raise ValueError("not a checkpoint's record")


@dataclass(frozen=True)
class Checkpoint:
    """An entry of the lockfile. Times are in seconds since the epoch, ``size`` in bytes beyond its parent's.

    ``parent`` is the base image's identity digest or the parent checkpoint's UUID; ``image`` is the engine's id;
    ``engine`` its identity. ``components`` are what ``key`` is a digest of, kept so that a miss can be explained.
    """

    uuid: str
    stage: CheckpointStage
    key: str
    components: JSON
    parent: str
    engine: str
    project: str
    image: str
    created: float
    used: float
    size: int

    @property
    def name(self) -> str:
        """``deps-installed`` or ``build-complete``."""
        return CHECKPOINT_NAMES[self.stage]

    @property
    def short(self) -> str:
        """The first eight characters of the UUID, as messages show it."""
        return self.uuid[:8]

    def __str__(self) -> str:
        return f"{self.name} {self.short}"

    def to_json(self) -> dict[str, object]:
        return {name.name: getattr(self, name.name) for name in fields(self)}

    @classmethod
    def from_json(cls, value: object) -> Checkpoint:
        """Raises ``ValueError`` for anything that :meth:`to_json` does not write; unknown fields are ignored."""
        match value:
            case {
                "uuid": str(uuid),
                "stage": "install" | "build" as stage,
                "key": str(key),
                "components": dict(components),
                "parent": str(parent),
                "engine": str(engine),
                "project": str(project),
                "image": str(image),
                "created": int() | float() as created,
                "used": int() | float() as used,
                "size": int(size),
            }:
                return cls(uuid, stage, key, components, parent, engine, project, image, created, used, size)
        raise ValueError("not a checkpoint")


def labels_of(uuid: str, stage: str, key: str, parent: str, project: str) -> dict[str, str]:
    """The labels by which an engine finds a checkpoint's image; values are digests, words and a project's name."""
    return {
        LABEL + "schema": str(SCHEMA),
        LABEL + "uuid": uuid,
        LABEL + "stage": stage,
        LABEL + "key": key,
        LABEL + "parent": parent,
        LABEL + "project": project,
    }
