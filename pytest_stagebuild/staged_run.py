"""A run with ``--stagebuild-source``: what is collected, what is passed inside, and what is shown of it."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
from collections.abc import Generator, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypedDict

import pytest

from pytest_stagebuild.attempt import NO_TESTS_COLLECTED
from pytest_stagebuild.base import wanted_image
from pytest_stagebuild.errors import ConfigurationError, EngineError, StagebuildError
from pytest_stagebuild.host_tests import find_host_tests
from pytest_stagebuild.items import WORD, StageFile, StageItem, run_item
from pytest_stagebuild.results.events import CollectReport, Session
from pytest_stagebuild.results.expansion import SUBTEST, Expansion, InnerFailure
from pytest_stagebuild.results.paths import Paths
from pytest_stagebuild.selection import Arguments, Place, Selection, check_reaches, classify, select
from pytest_stagebuild.session import StagebuildSession
from pytest_stagebuild.stage import STAGES, StageName, StageResult
from pytest_stagebuild.terminal import header, plan

_LETTERS = {"passed": ".", "failed": "F", "error": "E", "skipped": "s"}
_NO_TESTS: int = pytest.ExitCode.NO_TESTS_COLLECTED


class _Appearance(TypedDict):
    """How tracebacks are to look: whether they have colours, and how many columns."""

    colours: bool
    width: int


class StagedRun:
    """The plugin object of such a run; registered only for one."""

    def __init__(self, config: pytest.Config, stagebuild: StagebuildSession, *, undistributed: bool) -> None:
        self._config = config
        self._stagebuild = stagebuild
        self._undistributed = undistributed
        self._items: list[StageItem] = []
        self._tested_here = False
        self._expansion: Expansion | None = None
        self._not_listed = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        with _as_usage_error():
            _refuse_without_meaning(self._config)
            if not (self._config.option.stagebuild_plan or self._config.option.collectonly):
                self._stagebuild.begin()
            check_reaches(self._selection, self._stagebuild.settings.stages["test"].command)
            self._expansion = Expansion(session, self._paths, show=not self._stagebuild.uncaptured_tests)
            self._stagebuild.listen(self._expansion)
            try:
                _ = self._stagebuild.pipeline
            except EngineError as error:
                if not self._config.option.collectonly:
                    raise
                self._not_listed = str(error)
        if not self._host_tests and (last_failed := self._config.pluginmanager.get_plugin("lfplugin")) is not None:
            # What it remembers are the tests inside, which it would miss among those that are collected here.
            self._config.pluginmanager.unregister(last_failed)
        # What pytest collects by itself: with nothing to collect, nothing.
        self._config.args[:] = [] if self._config.option.stagebuild_plan else self._host_arguments
        if not (self._config.option.stagebuild_plan or self._config.option.collectonly) and "test" in self._stages:
            self._stagebuild.pipeline.begin(self._selection, guess=self._stagebuild.guess, **self._appearance)
        if not self._host_tests:
            _end_without_collecting()

    def pytest_report_header(self) -> list[str]:
        stagebuild = self._stagebuild
        more = []
        if self._host_tests:
            more.append(f"{len(self._host_tests)} host test files run here: {', '.join(self._host_tests[:3])}")
        if self._undistributed:
            more.append("a run with --stagebuild-source is not distributed: -n and --dist are without effect")
        if self._not_listed:
            settings = stagebuild.settings
            return header(settings, "none", "--collect-only", stagebuild.tree.how, settings.image, more)
        engine = stagebuild.engine.describe()
        if stagebuild.pipeline.version:
            more.append(f"version {stagebuild.pipeline.version}, worked out here")
        image = wanted_image(stagebuild.settings, stagebuild.engine)
        return header(stagebuild.settings, engine, stagebuild.why_engine, stagebuild.tree.how, image, more)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection(self) -> Generator[None, object, object]:
        with _as_usage_error():
            if not self._config.option.collectonly:
                with self._stagebuild.uncaptured():
                    self._stagebuild.pipeline.base()
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> Generator[None, None, None]:
        # Called right after every plugin has had its say about the items: none of them sees a stage to deselect,
        # reorder or mark.
        self._tested_here = bool(session.items)
        if not self._config.option.stagebuild_plan:
            file = StageFile.from_parent(session, path=self._anchor, nodeid=self._anchor_id)
            file.stages = self._stages
            file.make = self._make
            file.output_seen = self._stagebuild.streams
            file.output_of_tests_seen = self._stagebuild.uncaptured_tests
            self._items = [item for item in session.genitems(file) if isinstance(item, StageItem)]
            session.items[:0] = self._items
            if self._config.option.collectonly and "test" in self._stages:
                session.items[len(self._items) : len(self._items)] = self._tests_inside(session)
        return (yield)

    def pytest_report_collectionfinish(self) -> list[str]:
        return [f"stagebuild: the tests inside cannot be listed: {self._not_listed}"] if self._not_listed else []

    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        if not self._config.option.stagebuild_plan:
            return None
        pipeline = self._stagebuild.pipeline
        with _as_usage_error():
            lines = plan(pipeline.plan(), pipeline.base().base.reference)
        if (reporter := self._config.pluginmanager.get_plugin("terminalreporter")) is not None:
            for text in (*(line.text for line in lines), *(f"note: {note}" for note in pipeline.report().notes)):
                reporter.write_line(text)
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        if not isinstance(item, StageItem):
            return None
        if self._config.getoption("setuponly", default=False) or self._config.getoption("setupplan", default=False):
            return True
        with self._stagebuild.uncaptured():
            run_item(item)
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Generator[None, Any, Any]:
        theirs = yield
        status = self._own_status(report) or theirs
        return (status[0], "", "") if self._expansion and self._expansion.silent else status

    def _own_status(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        if (subtest := getattr(report, SUBTEST, None)) is not None:
            return self._subtest_status(report, subtest)
        if report.outcome == "rerun":  # type: ignore[comparison-overlap] # pytest-rerunfailures has it
            return "rerun", "R", "RERUN"
        word = getattr(report, WORD, None)
        if word is None:
            return None
        category = "error" if report.when == "setup" and report.failed else report.outcome
        # A letter only where no live line has said it: it would stand between them.
        letter = _LETTERS[category] if self._config.get_verbosity() < 0 else ""
        return category, letter, word.upper()

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, Any, dict[str, Any] | None]:
        told: dict[str, Any] | None = yield
        if told is not None and isinstance(report.longrepr, InnerFailure):
            told["longrepr"] = report.longrepr.to_json()
        return told

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        self._stagebuild.wind_up()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self._config.option.stagebuild_plan and exitstatus == _NO_TESTS:
            session.exitstatus = pytest.ExitCode.OK
        if exitstatus == pytest.ExitCode.TESTS_FAILED and self._only_no_tests(session):
            session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        if self._expansion and self._expansion.stopped and not (session.shouldfail or session.shouldstop):
            # The exit code is settled, and what is left to do with this is to print it.
            session.shouldstop = self._expansion.stopped

    def _subtest_status(self, report: pytest.TestReport, subtest: str) -> tuple[str, str, str]:
        """As pytest's own: https://docs.pytest.org/en/stable/how-to/subtests.html."""
        if report.failed:
            return "failed", "u", f"SUBFAILED{subtest}"
        if self._config.get_verbosity() == 0:  # below it they are shown again
            return "", "", ""
        if report.skipped and hasattr(report, "wasxfail"):
            return "xfailed", "y", f"SUBXFAIL{subtest}"
        return (
            ("skipped", "-", f"SUBSKIPPED{subtest}")
            if report.skipped
            else ("subtests passed", "u", f"SUBPASSED{subtest}")
        )

    @property
    def _paths(self) -> Paths:
        return Paths(self._stagebuild.settings.source, self._config.rootpath, self._config.invocation_params.dir)

    def _tests_inside(self, session: pytest.Session) -> list[pytest.Item]:
        """The tests inside, to be listed, where that needs no stage to be made."""
        from pytest_stagebuild.results.listing import listed_items

        if self._not_listed:
            return []
        try:
            events = self._stagebuild.pipeline.collect(self._selection)
        except StagebuildError as error:
            self._not_listed = str(error)
            return []
        if self._expansion:
            for event in events:
                if isinstance(event, CollectReport | Session):
                    self._expansion.heard(event)
        items = listed_items(session, events, self._paths)
        report = pytest.CollectReport(self._anchor_id, "passed", None, list(items))
        self._config.hook.pytest_collectreport(report=report)
        return items

    @cached_property
    def _host_tests(self) -> tuple[str, ...]:
        settings = self._stagebuild.settings
        return find_host_tests(self._stagebuild.tree.manifest.entries, settings.source, settings.host_tests)

    @cached_property
    def _place(self) -> Place:
        return Place(self._stagebuild.settings.source, self._config.invocation_params.dir)

    @cached_property
    def _arguments(self) -> Arguments:
        typed = list(self._config.args) if self._config.args_source is pytest.Config.ArgsSource.ARGS else []
        return classify(
            typed,
            self._place,
            anchor=self._anchor,
            files=self._stagebuild.tree.manifest.entries,
            host_tests=self._host_tests,
        )

    @cached_property
    def _selection(self) -> Selection:
        return select(self._config.option, self._arguments, self._place, self._host_tests)

    @property
    def _anchor(self) -> Path:
        return self._stagebuild.settings.anchor or self._stagebuild.settings.source

    @property
    def _anchor_id(self) -> str:
        # Given to pytest, which otherwise makes "::NAME" or "../x" of a path outside the rootdir, by version.
        return Path(os.path.relpath(self._anchor, self._config.rootpath)).as_posix()

    @property
    def _host_arguments(self) -> list[str]:
        arguments = self._arguments
        if arguments.host or arguments.inner or arguments.stages:
            return list(arguments.host)
        return [str(self._stagebuild.settings.source / path) for path in self._host_tests]

    @property
    def _stages(self) -> tuple[StageName, ...]:
        arguments = self._arguments
        if arguments.stages and not arguments.inner:
            return tuple(name for name in STAGES if name in arguments.stages)
        if arguments.host and not arguments.inner:
            return ()
        return STAGES

    def _make(self, stage: StageName) -> StageResult:
        pipeline = self._stagebuild.pipeline
        if stage == "test":
            result = pipeline.test(self._selection, tested_elsewhere=self._tested_here, **self._appearance)
        else:
            result = pipeline.result(stage)
        if result.failure:
            self._stagebuild.failure_shown()
        return result

    @property
    def _appearance(self) -> _Appearance:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None:
            return {"colours": False, "width": 80}
        return {"colours": reporter.hasmarkup, "width": self._config.get_terminal_writer().fullwidth}

    def _only_no_tests(self, session: pytest.Session) -> bool:
        """Whether all that failed is that the inner pytest found no tests."""
        failed = [item for item in self._items if item.result and item.result.failure]
        return session.testsfailed == 1 and [
            item.result.failure.cause for item in failed if item.result and item.result.failure
        ] == [NO_TESTS_COLLECTED]


@cache
def _end_without_collecting() -> None:
    """Have Python end without looking through all that was imported, which takes 0.1 to 0.2 s and finds nothing that
    does not end with the process.
    """
    if hasattr(gc, "freeze"):  # PyPy has no such
        atexit.register(gc.freeze)


@contextlib.contextmanager
def _as_usage_error() -> Iterator[None]:
    """Errors that end a run before anything has run: pytest prints them in one line and exits with 4."""
    try:
        yield
    except StagebuildError as error:
        raise pytest.UsageError(str(error)) from None


_WITHOUT_MEANING = {"usepdb": "--pdb", "trace": "--trace", "stepwise": "--stepwise"}


def _refuse_without_meaning(config: pytest.Config) -> None:
    """Options that would act on the stages, while whoever typed them means the tests inside the container."""
    for option, name in _WITHOUT_MEANING.items():
        if config.getoption(option, default=False):
            raise ConfigurationError(
                f"{name} does not reach the tests in the container: leave it out, or run pytest without "
                "--stagebuild-source"
            )
