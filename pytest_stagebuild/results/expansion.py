"""Turns what the tests inside tell into reports of this pytest, as if they had run here."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_stagebuild.observer import Silent
from pytest_stagebuild.output import without_colours
from pytest_stagebuild.results.events import (
    Collected,
    CollectReport,
    Crash,
    Ended,
    Event,
    Failed,
    Phase,
    Session,
    Skipped,
    Started,
    SuiteProperty,
    Tested,
    Warned,
)
from pytest_stagebuild.results.paths import Paths
from pytest_stagebuild.stage import Stage, StageResult

if TYPE_CHECKING:
    from _pytest._io import TerminalWriter  # pytest has no public name for it

SUBTEST: Final = "stagebuild_subtest"
"""The attribute of a report that says which subtest it is of, a str."""


class Expansion(Silent):
    """Hears of the tests inside, and calls the hooks of this run for each."""

    def __init__(self, session: pytest.Session, paths: Paths, *, show: bool) -> None:
        """``show`` where the terminal is to show each test; otherwise it only counts them."""
        self.silent = False
        self._session = session
        self._config = session.config
        self._paths = paths
        self._show = show
        self._sessions: dict[str, Session] = {}
        self._distributed: set[str] = set()
        self._stopped: dict[str, None] = {}

    @property
    def stopped(self) -> str:
        """Why tests inside were left out, as pytest says it; empty where none were."""
        return "; ".join(self._stopped)

    def stage_started(self, stage: Stage, reason: str) -> None:
        if stage.name == "test":
            self._sessions.clear()

    def stage_finished(self, result: StageResult) -> None:
        if result.stage == "test" and self._sessions and not result.told_by_its_tests:
            self._session.testscollected += 1  # it is reported all the same

    def heard(self, event: Event) -> None:
        hook = self._config.hook
        match event:
            case Session():
                self._begin(event)
            case Collected():
                self._count(event)
                if event.deselected and (reporter := self._terminal) is not None:
                    # For its count alone: plugins that hear of the items themselves would ask them for more.
                    # Some ask whatever is there for its attributes.
                    unnamed = SimpleNamespace(nodeid="")
                    reporter.stats.setdefault("deselected", []).extend([unnamed] * event.deselected)
            case Started() if self._show:
                nodeid, location = self._place(event)
                hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
            case Tested():
                self._report(event)
            case CollectReport() if event.phase.outcome != "passed":
                self._report_collection(event)
            case Warned():
                self._record_warning(event)
            case SuiteProperty(property=(key, value)):
                self._record_property(key, value)
            case Ended() if event.stopped:
                self._stopped[event.stopped] = None

    @property
    def _terminal(self) -> pytest.TerminalReporter | None:
        reporter: pytest.TerminalReporter | None = self._config.pluginmanager.get_plugin("terminalreporter")
        return reporter

    def _begin(self, event: Session) -> None:
        if not self._sessions:
            self._session.testscollected -= 1  # the stage's own item, which the tests stand for
        self._sessions[event.name] = event
        if event.distributed and (reporter := self._terminal) is not None:
            reporter.showfspath = False  # tests of several files take turns

    def _count(self, event: Collected) -> None:
        """What pytest's percentages are of, which take a test that several workers run for one."""
        if event.name not in self._distributed:
            self._session.testscollected += len(event.ids)
        if self._of(event.name).distributed:
            self._distributed.add(event.name)

    def _place(self, event: Started | Tested) -> tuple[str, tuple[str, int | None, str]]:
        root = self._of(event.name).root
        return self._paths.nodeid(event.id, root), self._paths.location(event.location, root)

    def _of(self, name: str) -> Session:
        return self._sessions.get(name) or Session(name, "", "", "/src", "/src", distributed=False)

    def _report(self, event: Tested) -> None:
        hook = self._config.hook
        nodeid, location = self._place(event)
        phases = list(event.phases)
        if phases[-1:] and phases[-1].when != "teardown":  # a process that died: others wait for the last phase
            phases.append(Phase("teardown", "passed", stop=phases[-1].stop))
        self.silent = not self._show
        try:
            for phase in phases:
                hook.pytest_runtest_logreport(report=self._test_report(event.name, nodeid, location, phase))
        finally:
            self.silent = False
        if self._show:
            hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)

    def _test_report(
        self, name: str, nodeid: str, location: tuple[str, int | None, str], phase: Phase
    ) -> pytest.TestReport:
        report = pytest.TestReport(
            nodeid=nodeid,
            location=location,
            keywords=dict.fromkeys(phase.keywords, 1),
            outcome=phase.outcome,  # type: ignore[arg-type] # plugins have outcomes of their own
            longrepr=self._longrepr(name, phase),
            when=phase.when,  # type: ignore[arg-type] # it is no collection
            sections=phase.sections,
            duration=phase.duration,
            start=phase.start,
            stop=phase.stop,
            user_properties=phase.properties,
        )
        if phase.xfail is not None:
            report.wasxfail = phase.xfail
        if phase.subtest is not None:
            setattr(report, SUBTEST, str(phase.subtest))
            report.location = (location[0], location[1], f"{location[2]} {phase.subtest}")
        return report

    def _longrepr(self, name: str, phase: Phase) -> Any:  # noqa: ANN401 - pytest takes whatever has what it asks for
        folder = self._of(name).cwd
        match phase.why:
            case Failed(text=text, message=True):
                return text
            case Failed(text=text, crash=crash):
                if crash is not None:
                    crash = Crash(self._paths.shown(crash.path, folder), crash.line, crash.message)
                return InnerFailure(self._paths.text(text, folder), crash)
            case Skipped(path=path, line=line, reason=reason):
                return self._paths.shown(path, folder), line, reason
        return None

    def _report_collection(self, event: CollectReport) -> None:
        outcome = "skipped" if event.phase.outcome == "skipped" else "failed"
        report = pytest.CollectReport(
            nodeid=self._paths.nodeid(event.id, self._of(event.name).root),
            outcome=outcome,  # type: ignore[arg-type]
            longrepr=self._longrepr(event.name, event.phase),
            result=[],
            sections=event.phase.sections,
        )
        reporter = self._terminal
        # On a terminal it would say that it is collecting.
        hook = self._config.pluginmanager.subset_hook_caller("pytest_collectreport", [reporter] if reporter else [])
        hook(report=report)
        if reporter is not None:
            reporter.stats.setdefault("skipped" if outcome == "skipped" else "error", []).append(report)

    def _record_warning(self, event: Warned) -> None:
        category = type(event.category, (Warning,), {})
        session = self._of(event.name)
        message = warnings.WarningMessage(
            category(event.message), category, self._paths.shown(event.file, session.cwd), event.line
        )
        nodeid = self._paths.nodeid(event.id, session.root) if event.id else ""
        self._config.hook.pytest_warning_recorded.call_historic(
            kwargs={"warning_message": message, "when": event.when, "nodeid": nodeid, "location": None}
        )

    def _record_property(self, name: str, value: object) -> None:
        """Where JUnit XML is written: what its fixture records with has no other public way in."""
        for plugin in self._config.pluginmanager.get_plugins():
            if (record := getattr(plugin, "add_global_property", None)) is not None:
                record(name, value)


class InnerFailure:
    """What pytest takes for a representation of a failure: its text, and where the test failed."""

    def __init__(self, text: str, crash: Crash | None) -> None:
        self.text = text
        if crash is not None:
            self.reprcrash = InnerCrash(crash)

    def to_json(self) -> object:
        """What a report says of it as data, as ``_pytest/reports.py`` writes failures: this one as its lines alone."""
        crash: InnerCrash | None = getattr(self, "reprcrash", None)
        if crash is None:
            return str(self)
        entry = {"type": "ReprEntryNative", "data": {"lines": str(self).splitlines(keepends=True), "style": "native"}}
        traceback = {"reprentries": [entry], "extraline": None, "style": "native"}
        place = {"path": crash.path, "lineno": crash.lineno, "message": crash.message}
        chain = [[traceback, place, None]]
        return {"reprcrash": place, "reprtraceback": traceback, "sections": [], "chain": chain}

    def toterminal(self, tw: TerminalWriter) -> None:
        tw.line(self.text if tw.hasmarkup else without_colours(self.text))

    def __str__(self) -> str:
        return without_colours(self.text).strip()


class InnerCrash:
    """Where and why, as pytest's short summary shows it."""

    def __init__(self, crash: Crash) -> None:
        self.path = crash.path
        self.lineno = crash.line
        self.message = crash.message

    def __str__(self) -> str:
        """What ``--tb=line`` shows: the message's first line."""
        first, _, _ = self.message.partition("\n")
        return f"{self.path}:{self.lineno}: {first}"
