"""The hooks that other plugins and conftest files can implement.

A conftest file of the project takes part only in runs without ``--stagebuild-source``: with it, the project's conftest
files belong to the container. A plugin that is installed, or named with ``-p``, takes part in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_stagebuild.checkpoint import Checkpoint
    from pytest_stagebuild.engines.protocol import Engine
    from pytest_stagebuild.stage import Stage, StageName, StageResult


@pytest.hookspec
def pytest_stagebuild_engines(config: pytest.Config) -> Mapping[str, Callable[[], Engine]]:  # type: ignore[empty-body]
    """Register engines: names for ``--stagebuild-engine``, each with a function that connects to it.

    The function raises :class:`~pytest_stagebuild.errors.EngineUnavailable` where the engine does not answer.
    """


@pytest.hookspec
def pytest_stagebuild_stage_start(config: pytest.Config, stage: Stage, reason: str) -> None:
    """The command of a stage is about to run; ``reason`` says why no checkpoint was reused."""


@pytest.hookspec
def pytest_stagebuild_step(config: pytest.Config, stage: StageName, step: str) -> None:
    """A step of a stage is done: "created", "source sent", "started", "command ended", "processes ended", "downloads
    kept", "secrets searched", "record written", "committed", "recorded".
    """


@pytest.hookspec
def pytest_stagebuild_stage_finish(config: pytest.Config, result: StageResult) -> None:
    """A stage was reused, ran, failed or was skipped."""


@pytest.hookspec
def pytest_stagebuild_checkpoint(config: pytest.Config, checkpoint: Checkpoint) -> None:
    """A checkpoint was made and recorded."""
