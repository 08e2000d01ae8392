"""One pytest session's pipeline: opened when it is first needed, shared by fixtures and stage items, summed up once."""

from __future__ import annotations

import contextlib
import os
import uuid as uuids
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from pytest_stagebuild.ahead import Soon
from pytest_stagebuild.checkpoint import Checkpoint
from pytest_stagebuild.engines import BUILT_IN, HOST_IMAGE, connect
from pytest_stagebuild.engines.protocol import Engine, PullProgress
from pytest_stagebuild.errors import EngineError, StagebuildError, StageFailed
from pytest_stagebuild.execution import MANY_FILES
from pytest_stagebuild.interrupts import Interrupts, end_with_parent, held_back
from pytest_stagebuild.live import LiveView
from pytest_stagebuild.lockfile import Lockfile
from pytest_stagebuild.observer import Observer, Silent
from pytest_stagebuild.options import Settings, command_line, load_settings
from pytest_stagebuild.pipeline import Pipeline, guessed, prune_checkpoints
from pytest_stagebuild.results.events import Event
from pytest_stagebuild.runs import RunFolder
from pytest_stagebuild.sandboxes import Guess
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.source.scan import ask_git
from pytest_stagebuild.source.seen import Seen
from pytest_stagebuild.stage import (
    STAGES,
    BaseImage,
    Outcome,
    RunReport,
    Stage,
    StageName,
    StageResult,
    result_from_json,
    result_to_json,
)
from pytest_stagebuild.state import StateFolder, cache_folder
from pytest_stagebuild.terminal import resume_arguments, summary

if TYPE_CHECKING:
    from pathlib import Path

    from pytest_stagebuild.image import Image
    from pytest_stagebuild.source.git import Listing

_TELLING: Final[tuple[Outcome, ...]] = ("skipped", "cached", "forced", "ran", "interrupted", "error", "failed")
"""Outcomes by how much they tell: of what several workers say about a stage, the last of these is shown."""


class StagebuildSession:
    """What fixtures and stage items of one pytest process share."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        self._live: LiveView | None = None
        self._opened: Pipeline | None = None
        self._why_engine = ""
        self._heard: list[RunReport] = []
        self._report: RunReport | None = None
        self.interrupts = Interrupts()
        self._failure_shown = False
        self._listening: list[Observer] = []
        self.guess: Guess | None = None
        """What the engine has begun with."""
        self.run_id: str = self._worker["stagebuild"] if self._worker else uuids.uuid4().hex

    @cached_property
    def settings(self) -> Settings:
        return load_settings(
            command_line(self._config.option),
            default_source=self._config.rootpath,
            environ=os.environ,
            invocation_dir=self._config.invocation_params.dir,
        )

    @cached_property
    def _seen_file(self) -> Path:
        return StateFolder.of(self.settings.source).seen

    @cached_property
    def _seen_before(self) -> Seen | None:
        return Seen.load(self._seen_file)

    @cached_property
    def _listing(self) -> Soon[Listing]:
        """Git's answer, for which it needs a while."""
        return Soon(partial(ask_git, self.settings.source))

    @cached_property
    def tree(self) -> SourceTree:
        known = self._seen_before
        tree = SourceTree.read(self.settings.source, known=known, listing=self._listing.get)
        if tree.seen is not known:
            tree.seen.save(self._seen_file)
        return tree

    @cached_property
    def lockfile(self) -> Lockfile:
        """The one that the pipeline works with: what it warns of when the engine is chosen must not be lost."""
        return Lockfile(self.settings.lockfile)

    @cached_property
    def engine(self) -> Engine:
        factories = dict(BUILT_IN)
        for registered in self._config.hook.pytest_stagebuild_engines(config=self._config):
            factories.update(registered)
        newest = self.lockfile.read().last_used()
        preferred = newest.engine.partition(":")[0] if newest else None
        wanted, image = self.settings.engine, self.settings.image
        if wanted == "auto" and self.settings.image_given and (image == HOST_IMAGE or image.startswith("/")):
            engine, _ = connect("local", factories=factories)
            self._why_engine = f"the only one for the image {image}"
            return engine
        engine, self._why_engine = connect(wanted, preferred=preferred, factories=factories)
        return engine

    @property
    def why_engine(self) -> str:
        """Why this engine was chosen."""
        return self._why_engine

    @property
    def streams(self) -> bool:
        """Whether the output of commands is shown as it comes."""
        return self._config.get_verbosity() > 0 or self.uncaptured_tests

    @property
    def uncaptured_tests(self) -> bool:
        """Whether the output of tests is not captured (``-s``)."""
        return bool(self._config.getoption("capture", "no") == "no")

    def begin(self) -> None:
        """Connect to the engine while git lists the source. Where it will take a while to read it, have the engine
        begin with what this run will probably need.

        What it begins with for nothing costs a run less than a tenth of a second; else nothing is begun.
        """
        self.interrupts.catch(ctrl_c=True)
        _, engine = self._listing, self.engine
        if self._seen_before is None or self._seen_before.count < MANY_FILES:
            return
        with held_back():  # or there might be a sandbox that nobody knows of
            self.guess = guessed(self.settings, engine, self.lockfile)

    @property
    def pipeline(self) -> Pipeline:
        if self._opened is None:
            # Everything that a user can get wrong comes before the engine is asked to do anything.
            settings, tree = self.settings, self.tree
            if self._worker is not None:
                end_with_parent()
            else:
                # Fixtures are guests in somebody else's run, where Ctrl-C does what it always does.
                self.interrupts.catch(ctrl_c=self._config.option.stagebuild_source is not None)
            self._opened = Pipeline(
                settings, self.engine, tree, os.environ, self._observer(), self.run_id, self.lockfile
            )
        return self._opened

    def image(self, name: Literal["base", "install", "build"]) -> Image:
        """What a fixture gives. A failure becomes an error of the test in one line; the summary tells the rest."""
        try:
            with self.uncaptured():
                try:
                    return self.pipeline.image(name)
                finally:
                    if self._live:
                        self._live.end_line()  # pytest goes on in the test's own line
        except StageFailed as failed:
            failure = failed.result.failure
            cause = failure.cause if failure else "failed"
            ended = "failed" if failed.result.outcome == "failed" else "was not made"
            words = f"stage {failed.result.stage} {ended} ({cause}): see the stagebuild summary"
        except StagebuildError as error:
            words = str(error)
        # Out here, where pytest has no other error to show above this one.
        pytest.fail(words, pytrace=False)

    @contextlib.contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Let what is written here be seen while a test or a stage runs."""
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture and not self._worker else contextlib.nullcontext():
            if self._live:
                self._live.begin()
            try:
                yield
            finally:
                if self._live:
                    self._live.stop()

    def listen(self, observer: Observer) -> None:
        """Have it told what the pipeline does. To be called before that is opened."""
        self._listening.append(observer)

    def failure_shown(self) -> None:
        """The failed stage's output has been shown among pytest's failures; the summary need not repeat it."""
        self._failure_shown = True

    def hear(self, told: str, run_id: str) -> None:
        """Take over what a worker of this run reports at its end."""
        self.run_id = run_id
        self._heard.append(_report_from_text(told))

    def finish(self) -> None:
        """End the run: clean up, and tell the controlling process if this is a worker of pytest-xdist."""
        if self._opened is not None:
            with held_back():
                self._opened.close(prune=self._worker is None)
            self._report = self._opened.report()
        elif any(report.checkpoint_count > self.settings.keep for report in self._heard):
            # No worker knows whether it is the last one.
            with held_back(), contextlib.suppress(EngineError):
                pruned = prune_checkpoints(self.settings, self.engine, self.lockfile)
                self._heard.append(RunReport(base=None, results=(), notes=(pruned,) if pruned else ()))
        if self._worker is not None and self._report is not None:
            self._config.workeroutput["stagebuild"] = _report_to_text(self._report)  # type: ignore[attr-defined]

    def write_summary(self, reporter: pytest.TerminalReporter) -> None:
        reports = [*self._heard, *([self._report] if self._report else [])]
        if not reports or self._config.option.stagebuild_plan or self._config.option.collectonly:
            return
        report = _merged(reports)
        if report.base is None and not report.notes:
            return
        reporter.write_sep("=", "stagebuild")
        arguments = resume_arguments([str(argument) for argument in self._config.invocation_params.args])
        seen = self._failure_shown or (self._live is not None and self.streams)
        for line in summary(report, arguments, show_output=not seen, show_hint=not self._failure_shown):
            markup = {"good": {"green": True}, "bad": {"red": True}, "warning": {"yellow": True}, "plain": {}}
            reporter.write_line(line.text, **markup[line.markup])

    def wind_up(self) -> None:
        """An interrupt has arrived where it is dealt with; after another one, nothing more is done."""
        with held_back():
            if self._opened is not None:
                self._opened.remove_sandboxes()
            self._discard_guess()
        self.interrupts.wind_up()

    def close(self) -> None:
        if self._opened is not None:  # a session that was not begun to its end is not finished
            with held_back():
                self._opened.close(prune=False)
        with held_back():
            self._discard_guess()
        if "engine" in self.__dict__:
            self.engine.close()
        if self._worker is None and (self._opened or self._heard):
            RunFolder(cache_folder() / "runs", self.run_id).remove()
        self.interrupts.release()

    def _discard_guess(self) -> None:
        if self.guess is not None:
            self.guess.sandbox.discard()

    def _observer(self) -> Observer:
        observers: list[Observer] = [_Hooks(self._config), *self._listening]
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and self._worker is None and not self._config.option.collectonly:
            self._live = LiveView(
                reporter, stream=self.streams, raw=self.uncaptured_tests, verbosity=self._config.get_verbosity()
            )
            observers.insert(0, self._live)
        return _All(observers)


def _merged(reports: list[RunReport]) -> RunReport:
    """One report of what several processes of a run did."""
    if len(reports) == 1:
        return reports[0]
    best: dict[StageName, StageResult] = {}
    for result in (result for report in reports for result in report.results):
        known = best.get(result.stage)
        if known is None or _TELLING.index(result.outcome) > _TELLING.index(known.outcome):
            best[result.stage] = result
    results = tuple(best[name] for name in STAGES if name in best)
    points = {point.uuid: point for report in reports for point in report.rollback_points}
    notes = {note: None for report in reports for note in report.notes}
    largest = max(reports, key=lambda report: report.checkpoint_count)
    return replace(
        largest,
        base=next((report.base for report in reports if report.base), None),
        results=results,
        rollback_points=tuple(sorted(points.values(), key=lambda point: STAGES.index(point.stage), reverse=True)),
        notes=tuple(notes),
    )


def _report_to_text(report: RunReport) -> str:
    import json

    return json.dumps(
        {
            "base": asdict(report.base) if report.base else None,
            "results": [result_to_json(result) for result in report.results],
            "points": [point.to_json() for point in report.rollback_points],
            "notes": list(report.notes),
            "count": report.checkpoint_count,
            "bytes": report.checkpoint_bytes,
        }
    )


def _report_from_text(text: str) -> RunReport:
    import json

    told = json.loads(text)
    return RunReport(
        base=BaseImage(**told["base"]) if told["base"] else None,
        results=tuple(result_from_json(result) for result in told["results"]),
        rollback_points=tuple(Checkpoint.from_json(point) for point in told["points"]),
        notes=tuple(told["notes"]),
        checkpoint_count=told["count"],
        checkpoint_bytes=told["bytes"],
    )


class _Hooks(Silent):
    """Passes on what happens to whoever implements the hooks."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def stage_started(self, stage: Stage, reason: str) -> None:
        self._config.hook.pytest_stagebuild_stage_start(config=self._config, stage=stage, reason=reason)

    def step(self, stage: StageName, done: str) -> None:
        self._config.hook.pytest_stagebuild_step(config=self._config, stage=stage, step=done)

    def stage_finished(self, result: StageResult) -> None:
        self._config.hook.pytest_stagebuild_stage_finish(config=self._config, result=result)

    def checkpoint_made(self, checkpoint: Checkpoint) -> None:
        self._config.hook.pytest_stagebuild_checkpoint(config=self._config, checkpoint=checkpoint)


class _All:
    """Tells several observers, in their order."""

    def __init__(self, observers: list[Observer]) -> None:
        self._observers = observers

    def pulling(self, progress: PullProgress) -> None:
        for one in self._observers:
            one.pulling(progress)

    def base_ready(self, base: BaseImage) -> None:
        for one in self._observers:
            one.base_ready(base)

    def waiting(self, stage: StageName, holder: str) -> None:
        for one in self._observers:
            one.waiting(stage, holder)

    def stage_started(self, stage: Stage, reason: str) -> None:
        for one in self._observers:
            one.stage_started(stage, reason)

    def step(self, stage: StageName, done: str) -> None:
        for one in self._observers:
            one.step(stage, done)

    def output(self, stage: StageName, text: str) -> None:
        for one in self._observers:
            one.output(stage, text)

    def heard(self, event: Event) -> None:
        for one in self._observers:
            one.heard(event)

    def stage_finished(self, result: StageResult) -> None:
        for one in self._observers:
            one.stage_finished(result)

    def checkpoint_made(self, checkpoint: Checkpoint) -> None:
        for one in self._observers:
            one.checkpoint_made(checkpoint)
