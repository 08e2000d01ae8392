"""A checkpoint: an image that a stage left, the key it stands under, and the record that proves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_stagebuild.stage import CHECKPOINT_NAMES, CheckpointStage


@dataclass(frozen=True)
class Checkpoint:
    """An entry of the lockfile. Times are in seconds since the epoch, ``size`` in bytes.

    ``parent`` is the base image's identity digest or the parent checkpoint's UUID; ``image`` is the engine's id.
    ``components`` are what ``key`` is a digest of, kept so that a miss can be explained.
    """

    uuid: str
    stage: CheckpointStage
    key: str
    components: Mapping[str, object]
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
