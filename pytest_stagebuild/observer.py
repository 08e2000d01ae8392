"""What a pipeline tells while it works; the terminal and the plugin's hooks listen."""

from __future__ import annotations

from typing import Protocol

from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.engines.protocol import PullProgress
from pytest_stagebuild.results.events import Event
from pytest_stagebuild.stage import BaseImage, Stage, StageName, StageResult


class Observer(Protocol):
    """Called from the thread that runs the pipeline, but for ``output``, which the engine's reading thread calls."""

    def pulling(self, progress: PullProgress) -> None: ...

    def base_ready(self, base: BaseImage) -> None: ...

    def waiting(self, stage: StageName, holder: str) -> None:
        """Another process holds the lock of this stage's key."""

    def stage_started(self, stage: Stage, reason: str) -> None:
        """The command of a stage is about to run; ``reason`` says why no checkpoint was reused."""

    def step(self, stage: StageName, done: str) -> None:
        """A step of a stage is done: "created", "source sent", "started", "command ended", and so on."""

    def output(self, stage: StageName, text: str) -> None: ...

    def heard(self, event: Event) -> None:
        """A test inside, or its pytest, tells something."""

    def stage_finished(self, result: StageResult) -> None: ...

    def checkpoint_made(self, checkpoint: Checkpoint) -> None: ...


class Silent:
    """An observer for those who want none."""

    def pulling(self, progress: PullProgress) -> None: ...
    def base_ready(self, base: BaseImage) -> None: ...
    def waiting(self, stage: StageName, holder: str) -> None: ...
    def stage_started(self, stage: Stage, reason: str) -> None: ...
    def step(self, stage: StageName, done: str) -> None: ...
    def output(self, stage: StageName, text: str) -> None: ...
    def heard(self, event: Event) -> None: ...
    def stage_finished(self, result: StageResult) -> None: ...
    def checkpoint_made(self, checkpoint: Checkpoint) -> None: ...
