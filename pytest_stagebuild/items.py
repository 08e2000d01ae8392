"""The stages as pytest items, and their run: nothing that wraps, repeats or times tests comes near them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest

from pytest_stagebuild.stage import Failure, StageName, StageResult
from pytest_stagebuild.terminal import outcome_word, shown_path

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr  # pytest has no public name for it

WORD: Final = "stagebuild_word"
"""The attribute of a report that says what became of its stage, a str."""


class StageFile(pytest.File):
    """The file that stage items are named after, ``pyproject.toml`` for one; what is in it plays no part.

    ``output_seen`` is true where the commands' output has been shown as it came, ``output_of_tests_seen`` where that of
    tests which report by themselves has.
    """

    stages: tuple[StageName, ...] = ()
    make: Callable[[StageName], StageResult]
    output_seen: bool
    output_of_tests_seen: bool

    def collect(self) -> Iterator[StageItem]:
        for stage in self.stages:
            item = StageItem.from_parent(self, name=stage)
            if self.config.pluginmanager.hasplugin("timeout"):
                # pytest-timeout wraps the protocol; without it the mark would be an unknown one.
                item.add_marker(pytest.mark.timeout(0))
            yield item


class StageItem(pytest.Item):
    """A stage: ``pyproject.toml::install`` and so on."""

    parent: StageFile
    result: StageResult | None = None

    @property
    def told_by_its_tests(self) -> bool:
        """Whether there are reports of its tests, and nothing else to report."""
        return self.result is not None and self.result.told_by_its_tests

    def runtest(self) -> None:
        self.result = self.parent.make(self.name)  # type: ignore[arg-type]
        self.user_properties.extend(_properties(self.result))
        if self.result.outcome == "skipped":
            pytest.skip(self.result.reason)
        if self.result.failure is not None:
            raise StageItemFailed(self.result.failure, is_error=self.result.outcome == "error")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str | TerminalRepr:
        if not isinstance(excinfo.value, StageItemFailed):
            return super().repr_failure(excinfo)  # somebody's mistake, ours or that of another plugin
        failure = excinfo.value.failure
        log = f"log: {shown_path(failure.log)}" if failure.log else ""
        # The short summary shows the first line.
        parts = [f"{failure.stage}: {failure.cause}", failure.hint, log]
        tested = self.result is not None and self.result.tests is not None
        seen = self.parent.output_of_tests_seen if tested else self.parent.output_seen
        tail = ["", failure.tail] if failure.tail and not seen else []
        return "\n".join([*filter(None, parts), *tail])

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name


class StageItemFailed(Exception):
    """Carries a failed stage's result from an item's run to its report."""

    def __init__(self, failure: Failure, *, is_error: bool) -> None:
        super().__init__(str(failure))
        self.failure = failure
        self.is_error = is_error


def run_item(item: StageItem) -> None:
    """What ``pytest_runtest_protocol`` does for a stage item: one run, and the reports of a test.

    An engine that fails is an ERROR of the item rather than a failure, so its report is one of the set-up.
    """
    ran = _phase("call", item.runtest)
    if item.told_by_its_tests:
        return
    if ran.excinfo is not None and getattr(ran.excinfo.value, "is_error", False):
        ran.when = "setup"
        _report(item, ran)
    else:
        _report(item, _phase("setup"))
        _report(item, ran)
    _report(item, _phase("teardown"))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _phase(
    when: Literal["setup", "call", "teardown"], function: Callable[[], None] = lambda: None
) -> pytest.CallInfo[None]:
    return pytest.CallInfo.from_call(function, when=when, reraise=(pytest.exit.Exception, KeyboardInterrupt))


def _report(item: StageItem, call: pytest.CallInfo[None]) -> None:
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if item.result and (call.excinfo is not None or call.when == "call"):
        setattr(report, WORD, outcome_word(item.result.outcome))
    failed = call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception)
    if failed and call.excinfo is not None:
        # pytest asks `repr_failure` for the phase "call" alone.
        report.longrepr = item.repr_failure(call.excinfo)
    item.ihook.pytest_runtest_logreport(report=report)
    if failed:
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)


def _properties(result: StageResult) -> list[tuple[str, object]]:
    properties: list[tuple[str, object]] = [("stagebuild_stage", result.stage), ("stagebuild_outcome", result.outcome)]
    if result.checkpoint:
        properties.append(("stagebuild_checkpoint", result.checkpoint.uuid))
    if result.reason:
        properties.append(("stagebuild_reason", result.reason))
    return properties
