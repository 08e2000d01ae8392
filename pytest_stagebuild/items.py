"""The stages as pytest items, and their run: nothing that wraps, repeats or times tests comes near them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from pytest_stagebuild.stage import StageName, StageResult
from pytest_stagebuild.terminal import outcome_word

WORD: Final = "stagebuild_word"
"""The attribute of a report that says what became of its stage, a str."""


class StageFile(pytest.File):
    """The file that stage items are named after; it is not collected, they are put into the session."""

    def collect(self) -> list[pytest.Item]:
        return []


class StageItem(pytest.Item):
    """A stage: ``pyproject.toml::install`` and so on."""

    def __init__(self, *, stage: StageName, make: Callable[[], StageResult], **arguments: object) -> None:
        super().__init__(name=stage, **arguments)  # type: ignore[arg-type]
        self.stage: StageName = stage
        self.result: StageResult | None = None
        self._make = make

    def runtest(self) -> None:
        self.result = self._make()
        self.user_properties.extend(_properties(self.result))
        if self.result.outcome == "skipped":
            pytest.skip(self.result.reason)
        if self.result.failure is not None:
            raise StageItemFailed(self.result)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        if not isinstance(excinfo.value, StageItemFailed):
            return str(super().repr_failure(excinfo))
        failure = excinfo.value.failure
        log = f"\nlog: {failure.log}" if failure.log else ""
        return "\n".join(part for part in (failure.tail, "", f"{failure.stage}: {failure.cause}", failure.hint) if part) + log

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.stage


class StageItemFailed(Exception):
    """Carries a failed stage's result from an item's run to its report."""

    def __init__(self, result: StageResult) -> None:
        assert result.failure is not None
        super().__init__(str(result.failure))
        self.failure = result.failure
        self.is_error = result.outcome == "error"


def make_items(
    session: pytest.Session, anchor: Path, stages: tuple[StageName, ...], make: Callable[[StageName], StageResult]
) -> list[StageItem]:
    """An item for each stage, named after ``anchor``, in order."""
    file = StageFile.from_parent(session, path=anchor)

    def maker(stage: StageName) -> Callable[[], StageResult]:
        return lambda: make(stage)

    return [StageItem.from_parent(file, stage=stage, make=maker(stage)) for stage in stages]


def run_item(item: StageItem) -> None:
    """What ``pytest_runtest_protocol`` does for a stage item: one run, and the reports of a test.

    An engine that fails is an ERROR of the item rather than a failure, so its report is one of the set-up.
    """
    hook = item.ihook
    call = pytest.CallInfo.from_call(item.runtest, when="call", reraise=(pytest.exit.Exception, KeyboardInterrupt))
    is_error = call.excinfo is not None and getattr(call.excinfo.value, "is_error", False)
    nothing = pytest.CallInfo.from_call(lambda: None, when="setup")
    if is_error:
        call.when = "setup"
    for one in [call] if is_error else [nothing, call]:
        _report(item, one)
    _report(item, pytest.CallInfo.from_call(lambda: None, when="teardown"))
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _report(item: StageItem, call: pytest.CallInfo[None]) -> None:
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if call.excinfo is not None or call.when == "call":
        setattr(report, WORD, outcome_word(item.result.outcome) if item.result else "")
    item.ihook.pytest_runtest_logreport(report=report)
    if call.excinfo is not None and not call.excinfo.errisinstance(pytest.skip.Exception):
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)


def _properties(result: StageResult) -> list[tuple[str, object]]:
    properties: list[tuple[str, object]] = [("stagebuild_stage", result.stage), ("stagebuild_outcome", result.outcome)]
    if result.checkpoint:
        properties.append(("stagebuild_checkpoint", result.checkpoint.uuid))
    if result.reason:
        properties.append(("stagebuild_reason", result.reason))
    return properties
