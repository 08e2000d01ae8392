"""What is seen while a run goes on: a line as each stage starts and ends, and on a terminal one that moves."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.engines.protocol import PullProgress
from pytest_stagebuild.output import ForeignText, clean_line, fitted
from pytest_stagebuild.results.events import Collected, Event, Session
from pytest_stagebuild.selection import runs_pytest
from pytest_stagebuild.stage import BaseImage, Stage, StageName, StageResult
from pytest_stagebuild.terminal import outcome_word

if TYPE_CHECKING:
    import pytest

_TICK: Final = 0.2
_HELD: Final = 10_000
_PULL_EVERY: Final = 5.0
"""Seconds between two lines about a pull where lines cannot be rewritten."""


class LiveView:
    """An observer that writes to pytest's terminal.

    With a ``verbosity`` above 0 it tells what the stages depend on, and below 0 it is silent. ``stream`` passes the
    commands' output on as it comes, but for that of tests which report by themselves: this one only where it is
    ``raw``. Otherwise, on a terminal, the running stage shows its elapsed time and the last line of its output.
    Everything is written between the reports of pytest, never into one.
    """

    def __init__(self, reporter: pytest.TerminalReporter, *, stream: bool, raw: bool, verbosity: int) -> None:
        quiet = verbosity < 0
        self._reporter = reporter
        self._stream = stream
        self._raw = raw
        self._reporting = False
        self._held: deque[str] | None = None
        self._detailed = verbosity > 0
        self._quiet = quiet
        self._moving = reporter.isatty and not stream and not quiet
        self._lock = threading.RLock()
        self._foreign = ForeignText()
        self._status = ""
        self._on_new_line = False
        self._streamed = False
        self._wrote = False
        self._last_line = ""
        self._stage = ""
        self._since = 0.0
        self._pull_said = 0.0
        self._stopped = threading.Event()
        self._ticker: threading.Thread | None = None

    def pulling(self, progress: PullProgress) -> None:
        total = f" of {progress.total / 1e6:.1f}" if progress.total else ""
        said = f"pulling {progress.reference}: {progress.received / 1e6:.1f}{total} MB"
        if self._moving:
            self._show(said)
        elif time.monotonic() - self._pull_said > _PULL_EVERY:
            self._pull_said = time.monotonic()
            self._line(said)

    def base_ready(self, base: BaseImage) -> None:
        self._clear()

    def waiting(self, stage: StageName, holder: str) -> None:
        self._line(f"{stage}: waiting for {holder}")

    def stage_started(self, stage: Stage, reason: str) -> None:
        self._line(f"{stage.name}: {stage.command}" + (f"  ({reason})" if reason else ""))
        self._stage, self._since, self._last_line = stage.name, time.monotonic(), ""
        if self._stream and not self._raw and stage.name == "test" and runs_pytest(stage.command):
            # Its tests will report by themselves, it is to be hoped: what is printed comes sooner than what is told.
            self._held = deque(maxlen=_HELD)
        if self._moving:
            self._stopped.clear()
            self._ticker = threading.Thread(target=self._tick, name="stagebuild-live", daemon=True)
            self._ticker.start()

    def step(self, stage: StageName, done: str) -> None: ...

    def output(self, stage: StageName, text: str) -> None:
        if self._reporting:
            return
        if self._held is not None:
            self._held.append(text)
        elif self._stream:
            with self._lock:
                self._begin_line(unless=self._streamed)
                text = self._foreign.feed(text)
                self._reporter.write(text, flush=True)
                self._streamed, self._on_new_line = True, text.endswith("\n")
        elif self._moving:
            lines = [line for line in text.splitlines() if line.strip()]
            if lines:
                self._last_line = lines[-1]

    def heard(self, event: Event) -> None:
        """From here on the tests' reports are what is seen, and the command's own output only where all of it is.

        Not even once they are over: what was printed before may arrive later.
        """
        if isinstance(event, Session):
            self.stop()
            self._held = None
            if (event.distributed or not event.pytest) and not self._raw:
                self.end_line()  # before letters that no name of a file goes before
            self._reporting, self._on_new_line = not self._raw, self._raw and self._on_new_line
        elif isinstance(event, Collected) and event.note and not self._raw:
            self._line(event.note, by="")

    def checkpoint_made(self, checkpoint: Checkpoint) -> None: ...

    def stage_finished(self, result: StageResult) -> None:
        self.stop()
        self._reporting = False
        if self._held is not None:
            held, self._held = self._held, None
            self.output(result.stage, "".join(held))
        if ended := self._foreign.end():
            self._reporter.write(ended)
        said = f"{result.stage}: {outcome_word(result.outcome)}"
        if result.outcome == "skipped":
            said += f", {result.reason}"
        else:
            said += f" {result.duration:.1f}s"
            said += f", {result.failure.cause}" if result.failure else ""
            said += f", {result.checkpoint}" if result.checkpoint else ""
        self._line(said)
        if self._detailed and result.sent:
            self._line(f"{result.stage}: sent {result.sent}")
        if self._detailed and result.depends_on:
            self._line(f"{result.stage}: depends on {result.depends_on}")

    def begin(self) -> None:
        """Something else may have been written since the last line."""
        self._on_new_line, self._wrote = False, False

    def end_line(self) -> None:
        """End the last line, before something that does not begin with a newline itself."""
        if self._wrote and not self._on_new_line:
            self._reporter.write("\n", flush=True)

    def stop(self) -> None:
        """End the moving line, whatever happened."""
        if self._ticker is not None:
            self._stopped.set()
            self._ticker.join()
            self._ticker = None
        self._clear()

    def _tick(self) -> None:
        while not self._stopped.wait(_TICK):
            self._show(f"{self._stage} {time.monotonic() - self._since:.1f}s  {clean_line(self._last_line)}")

    def _line(self, text: str, by: str = "stagebuild ") -> None:
        if self._quiet:
            return
        with self._lock:
            self._begin_line()
            self._reporter.write(f"{by}{text}", flush=True)
            self._on_new_line = False

    def _show(self, text: str) -> None:
        with self._lock:
            self._begin_line()
            self._status = fitted(text, max(20, shutil.get_terminal_size().columns - 1))
            _write_past_pytest(self._status)
            self._on_new_line = False

    def _begin_line(self, *, unless: bool = False) -> None:
        """Go to an empty line. As with pytest's own, a line begins with a newline rather than ending with one."""
        self._clear()
        if not self._on_new_line and not unless:
            self._reporter.write("\n")
        self._streamed, self._wrote = False, True

    def _clear(self) -> None:
        with self._lock:
            if self._status:
                self._status = ""
                _write_past_pytest("\r\x1b[K")
                self._on_new_line = True


def _write_past_pytest(text: str) -> None:
    """Write what will be erased: pytest counts the characters of a line, to put its percentages at the right end."""
    sys.stdout.write(text)
    sys.stdout.flush()
