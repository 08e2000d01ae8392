"""The stages of a run and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from pytest_stagebuild.checkpoint import Checkpoint
    from pytest_stagebuild.results.tally import TestCounts

StageName = Literal["install", "build", "test"]
"""The stages that run a command; the base image comes before them and runs none."""

CheckpointStage = Literal["install", "build"]

STAGES: Final[tuple[StageName, ...]] = ("install", "build", "test")
CHECKPOINT_NAMES: Final[Mapping[CheckpointStage, str]] = {"install": "deps-installed", "build": "build-complete"}

Outcome = Literal["cached", "forced", "ran", "failed", "error", "interrupted", "skipped"]
"""cached: reused because nothing changed. forced: reused because the user said so. failed: the user's command
failed. error: the engine did. interrupted: the user or a signal ended the run. skipped: a stage before it did not
succeed."""

InputsSetting = Literal["traced", "all"] | tuple[str, ...]
"""What a stage depends on in the source tree: what its command is seen to use, every file, or those that match one of
these ``.gitignore`` patterns."""


@dataclass(frozen=True)
class Stage:
    """What a stage is to do.

    ``command`` is run by ``/bin/sh -c`` in ``/src``, with ``env`` added to the image's environment. ``timeout`` is in
    seconds. ``detected`` is true where the command was worked out from the project rather than given.
    """

    name: StageName
    command: str
    detected: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    network: bool = True
    timeout: float = 1800.0
    inputs: InputsSetting = "traced"


@dataclass(frozen=True)
class Failure:
    """How a stage failed, in words.

    ``cause`` is short ("exit 1", "timed out after 5 s"); ``hint`` says more where there is more to say ("command not
    found: ..."); ``tail`` is the end of the command's output. ``by_tests`` is true where tests failed that are shown
    by themselves, and nothing else is wrong.
    """

    stage: StageName
    cause: str
    hint: str = ""
    log: Path | None = None
    tail: str = ""
    by_tests: bool = False

    def __str__(self) -> str:
        log = f", log: {self.log}" if self.log else ""
        return f"stage {self.stage} failed ({self.cause}){log}" + (f"\n{self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Sent:
    """How many files of the source were sent, and the bytes that they hold."""

    files: int
    size: int

    def __str__(self) -> str:
        return f"{self.files} file{'' if self.files == 1 else 's'}, {self.size / 1e6:.1f} MB"


@dataclass(frozen=True)
class StageResult:
    """What became of a stage.

    ``duration`` is in seconds. ``reason`` says why it ran ("first run", "setup.py changed") or, for a skipped one,
    what it waited for. ``notes`` are for the user to read once ("left running and ended: sleep 100"). ``tests`` are
    those that reported by themselves, None where none was heard of. ``sent`` is what
    of the source went into the sandbox, None where nothing ran. ``dependence`` works out :attr:`depends_on`.
    """

    stage: StageName
    command: str
    outcome: Outcome
    duration: float = 0.0
    reason: str = ""
    checkpoint: Checkpoint | None = None
    failure: Failure | None = None
    log: Path | None = None
    notes: tuple[str, ...] = ()
    tests: TestCounts | None = None
    sent: Sent | None = None
    dependence: Callable[[], str] = field(default=str, repr=False, compare=False)

    @property
    def depends_on(self) -> str:
        """What of the source its checkpoint depends on: ``2 of 9 files: a.py, b.py``."""
        return self.dependence()

    @property
    def told_by_its_tests(self) -> bool:
        """Whether tests have reported by themselves, and there is nothing else to report."""
        if self.tests is None or not self.tests.any:
            return False
        return self.failure is None or self.failure.by_tests


@dataclass(frozen=True)
class BaseImage:
    """The base image of a run: the name that was asked for, the engine's id for it, and its identity digest.

    ``title`` is what is shown of it in place of the id.
    """

    reference: str
    id: str
    identity: str
    title: str = ""


@dataclass(frozen=True)
class RunReport:
    """Everything that the summary tells about a run; ``checkpoint_bytes`` counts shared layers once for each."""

    base: BaseImage | None
    results: tuple[StageResult, ...]
    rollback_points: tuple[Checkpoint, ...] = ()
    notes: tuple[str, ...] = ()
    checkpoint_count: int = 0
    checkpoint_bytes: int = 0


def result_to_json(result: StageResult) -> dict[str, object]:
    """A result as JSON, for another process of the same run."""
    failure = result.failure
    return {
        "stage": result.stage,
        "command": result.command,
        "outcome": result.outcome,
        "duration": result.duration,
        "reason": result.reason,
        "checkpoint": result.checkpoint.to_json() if result.checkpoint else None,
        "failure": failure and [failure.cause, failure.hint, str(failure.log) if failure.log else None, failure.tail],
        "log": str(result.log) if result.log else None,
        "notes": list(result.notes),
    }


def result_from_json(value: object) -> StageResult:
    """Raises ``ValueError`` for anything that :func:`result_to_json` does not write."""
    from pytest_stagebuild.checkpoint import Checkpoint

    match value:
        case {
            "stage": "install" | "build" | "test" as stage,
            "command": str(command),
            "outcome": "cached" | "forced" | "ran" | "failed" | "error" | "interrupted" | "skipped" as outcome,
            "duration": int() | float() as duration,
            "reason": str(reason),
            "checkpoint": checkpoint,
            "failure": failed,
            "log": log,
            "notes": list(notes),
        }:
            failure = None
            if failed is not None:
                cause, hint, failure_log, tail = failed
                failure = Failure(stage, cause, hint, Path(failure_log) if failure_log else None, tail)
            return StageResult(
                stage,
                command,
                outcome,
                float(duration),
                reason,
                Checkpoint.from_json(checkpoint) if checkpoint is not None else None,
                failure,
                Path(log) if log else None,
                tuple(str(note) for note in notes),
            )
    raise ValueError("not a stage's result")
