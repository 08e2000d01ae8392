"""An attempt at a stage: what is known of it while it is made, and what it comes to, whichever way it ends."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.engines.protocol import CommandExit
from pytest_stagebuild.errors import EngineError, StagebuildError
from pytest_stagebuild.execution import StageRun
from pytest_stagebuild.output import StageLog
from pytest_stagebuild.results.tally import Tally
from pytest_stagebuild.selection import runs_pytest
from pytest_stagebuild.stage import Failure, Outcome, Stage, StageResult

NO_TESTS_COLLECTED: Final = "no tests were collected (exit 5)"

NO_TESTS: Final = 5
"""https://docs.pytest.org/en/stable/reference/exit-codes.html"""

_SEARCHED: Final = 200
"""Lines at the end of the output in which the cause of a failure is looked for."""


_EXITS_OF_TESTS: Final = (0, 1)
"""With which a pytest ends that has run tests."""

_NO_TESTS_HINT: Final = "The pytest in the container found no tests: check its arguments and testpaths."
_EACH_TAKES_ALL: Final = (
    "Where the test command runs pytest more than once, each takes the whole selection, and one that finds nothing of "
    "it ends with 5: give the one that is meant with --stagebuild-test-cmd."
)
_NOTHING_TOLD: Final = (
    "no reports arrived from the pytest of the test command, so its tests are one item: `env -i`, `python -I`, a "
    "PYTHONPATH of its own and the like keep out what the run adds to its environment"
)
_NOT_SELECTED: Final = (
    "What was selected did not reach the pytest of the test command: `env -i`, `python -I`, a PYTHONPATH of its own "
    "and the like keep out what the run adds to its environment. Leave the selection out, or put it into the test "
    "command."
)


@dataclass
class Attempt:
    """A stage that is being made, in a run whose first stage runs the command ``install``.

    ``reason`` says why no checkpoint was reused, once that is known.
    """

    stage: Stage
    install: str
    reason: str = ""
    _started: float = field(default_factory=time.monotonic)
    _log: StageLog | None = None

    @contextlib.contextmanager
    def logged(self, log: StageLog) -> Iterator[StageLog]:
        """Count the time from here on, and take the stage's output."""
        self._started, self._log = time.monotonic(), log
        with log:
            yield log

    def succeeded(self, *, checkpoint: Checkpoint | None = None, notes: tuple[str, ...] = ()) -> StageResult:
        return self._result("ran", checkpoint=checkpoint, notes=notes)

    def failed(self, run: StageRun, notes: tuple[str, ...]) -> StageResult:
        """The user's command failed, or left what must not be kept."""
        if run.leak is not None:
            cause = f"the secret {run.leak.name} is in {run.leak.path}"
            hint = (
                f"The command wrote it there ({run.leak.form}); a checkpoint would keep it. "
                "Let the command remove the file, or not write the secret into it."
            )
        else:
            cause = cause_of(run.exit, self.stage.timeout)
            hint = self._hint(run.exit)
        return self._result("failed", failure=self._failure(cause, hint), notes=notes)

    def tested(self, run: StageRun, selected: tuple[str, ...], notes: tuple[str, ...]) -> StageResult:
        """The test command has ended: what it comes to, by its exit code and by what its tests have told.

        ``selected`` are the words that chose among its tests.
        """
        code, tally = run.exit.code, run.tally
        ended_well = code == 0 and not run.exit.timed_out
        if tally is None or not tally.told:
            if selected and code in _EXITS_OF_TESTS and not run.exit.timed_out:
                return self._result(
                    "failed", failure=self._failure("not the selected tests", _NOT_SELECTED), notes=notes
                )
            if code == NO_TESTS and runs_pytest(self.stage.command):
                return self._result("failed", failure=self._failure(NO_TESTS_COLLECTED, _NO_TESTS_HINT), notes=notes)
            if runs_pytest(self.stage.command) and code in _EXITS_OF_TESTS and not run.exit.timed_out:
                notes = (*notes, _NOTHING_TOLD)
            return self.succeeded(notes=notes) if ended_well else self.failed(run, notes)
        failure = self._failure_of_tests(run.exit, tally, selected)
        result = self._result("failed" if failure else "ran", failure=failure, notes=notes)
        return replace(result, tests=tally.counts)

    def _failure_of_tests(self, ended: CommandExit, tally: Tally, selected: tuple[str, ...]) -> Failure | None:
        ended_well = ended.code == 0 and not ended.timed_out
        cause = cause_of(ended, self.stage.timeout)
        chosen = f"are selected by {', '.join(selected)}. {_EACH_TAKES_ALL}"
        if ended.timed_out:
            return self._failure(cause, " ".join(filter(None, [self._hint(ended), _sentence(tally.problem())])))
        if tally.no_tests and ended.code == NO_TESTS:
            hint = f"The pytest in the container found no tests that {chosen}" if selected else _NO_TESTS_HINT
            return self._failure(NO_TESTS_COLLECTED, hint)
        if problem := tally.problem():
            return self._failure("tests are missing" if ended_well else cause, _sentence(problem))
        if tally.counts.failed or tally.counts.uncollected:
            return replace(self._failure(cause), by_tests=True)
        if ended.code == NO_TESTS and selected and tally.ended_without_tests:
            return self._failure(cause, f"No test failed, but one pytest found no tests that {chosen}")
        if not ended_well:
            hint = self._hint(ended) or "No test failed: the command ended so for another reason, which its log has."
            return self._failure(cause, hint)
        return None

    def _hint(self, ended: CommandExit) -> str:
        from pytest_stagebuild.hints import hint_in  # many expressions to compile, for failures only

        output = self._log.tail(_SEARCHED) if self._log else ""
        return hint_for(ended, self.stage) or hint_in(output, self.stage, self.install)

    def broken_off_by(self, error: BaseException) -> StageResult:
        """Something else than the user's command ended the stage."""
        match error:
            case EngineError():
                return self._result("error", failure=self._failure("engine error", str(error)))
            case StagebuildError():
                return self._result("error", failure=self._failure("error", str(error)))
            case OSError():
                return self._result("error", failure=self._failure("error", f"{error}. Mend that, then run again."))
            case Exception():
                return self._result("error", failure=self._failure("error", f"{type(error).__name__}: {error}"))
            case _:
                return self._result("interrupted", failure=self._failure("interrupted"))

    def _failure(self, cause: str, hint: str = "") -> Failure:
        path, tail = (self._log.path, self._log.tail()) if self._log else (None, "")
        return Failure(self.stage.name, cause, hint, path, tail)

    def _result(
        self,
        outcome: Outcome,
        *,
        checkpoint: Checkpoint | None = None,
        failure: Failure | None = None,
        notes: tuple[str, ...] = (),
    ) -> StageResult:
        return StageResult(
            self.stage.name,
            self.stage.command,
            outcome,
            time.monotonic() - self._started,
            self.reason,
            checkpoint,
            failure,
            self._log.path if self._log else None,
            (*notes, *([self._log.problem] if self._log and self._log.problem else [])),
        )


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def cause_of(ended: CommandExit, timeout: float) -> str:
    """How a command failed, in a few words."""
    if ended.timed_out:
        return f"timed out after {timeout:g} s"
    if ended.out_of_memory:
        return "killed for memory (137)" if ended.code == 137 else f"exit {ended.code}, ran out of memory"
    match ended.code:
        case 126:
            return "command not executable (126)"
        case 127:
            return "command not found (127)"
        case 139:
            return "segmentation fault (139)"
        case code if 128 < code <= 192:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(code - 128).name} ({code})"
    return f"exit {ended.code}"


def hint_for(ended: CommandExit, stage: Stage) -> str:
    """What to do about a failure that its cause does not explain by itself."""
    if ended.timed_out:
        return f"Give the stage more time with --stagebuild-timeout or the key timeout, now {stage.timeout:g} s."
    if ended.out_of_memory:
        return "The kernel ended it since memory ran out: give the engine more memory, or let the command use less."
    match ended.code:
        case 127:
            return (
                "A command that it names is not in the image: install it in an earlier stage, or choose an image that "
                "has it."
            )
        case 126:
            return "A file that it names cannot be executed: check its executable bit and its first line."
        case 137:
            return "Somebody killed it (SIGKILL); the kernel does so too when the whole machine is short of memory."
        case _:
            return ""
