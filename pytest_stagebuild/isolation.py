"""Each test file, or each test, in a disposable sandbox of its own: collected once, and reported in that order."""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import field, replace
from pathlib import Path
from typing import Final

from pytest_stagebuild.attempt import cause_of
from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import CommandExit, OutputSink, Sandbox, Stream
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.execution import StageRun
from pytest_stagebuild.results.events import (
    Collected,
    CollectReport,
    Ended,
    Event,
    Failed,
    InternalError,
    Phase,
    Session,
    Started,
    SuiteProperty,
    Tested,
    Warned,
)
from pytest_stagebuild.results.tally import Tally
from pytest_stagebuild.selection import Selection
from pytest_stagebuild.testrun import Suite, run_tests
from pytest_stagebuild.values import dataclass

_CHOOSING: Final = ("keyword", "markexpr", "deselect", "lf", "failedfirst", "last_failed_no_failures", "maxfail")
"""What has had its effect once the tests are collected, or has it out here."""

_LONGEST_OUTPUT: Final = 8 << 20
"""Bytes of a sandbox's output that wait for those before it."""

_OK: Final = 0
_FAILED: Final = 1
_NO_TESTS: Final = 5
"""https://docs.pytest.org/en/stable/reference/exit-codes.html"""

_KILLED: Final = 137


@dataclass(frozen=True)
class Unit:
    """The tests that share a sandbox: a file or a single test, with the ids that belong to it."""

    name: str
    ids: tuple[str, ...]


@dataclass(frozen=True)
class Isolated:
    """What a unit came to: the events of its tests, what the command printed, and how it ended."""

    unit: Unit
    events: tuple[Event, ...] = ()
    output: tuple[tuple[Stream, bytes], ...] = ()
    exit: CommandExit = field(default_factory=lambda: CommandExit(_OK, 0.0))
    surprises: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def units_of(ids: Sequence[str], by: str) -> list[Unit]:
    """The tests parted into units, in the order in which their first ones were collected."""
    together: dict[str, list[str]] = {}
    for one in dict.fromkeys(ids):
        together.setdefault(one if by == "test" else one.partition("::")[0], []).append(one)
    return [Unit(name, tuple(members)) for name, members in together.items()]


def run_isolated(
    suite: Suite,
    *,
    output: OutputSink,
    heard: Callable[[Event], None],
    step: Callable[[str], None],
    artifacts: Path,
) -> StageRun:
    """Collect the tests in one sandbox and run each unit in another; ``heard`` is called by the calling thread alone.

    ``settings.jobs`` sandboxes run at a time. The time limit of the stage is that of all together.
    """
    deadline = time.monotonic() + suite.stage.timeout
    # Never more sandboxes than are to run at a time, and those that are being removed count.
    suite = replace(suite, workplace=replace(suite.workplace, behind=None))
    collection: list[Event] = []
    collect = replace(suite.told, options={**suite.told.options, "collectonly": True})
    run = run_tests(replace(suite, told=collect), output=output, heard=collection.append)
    run.tally = tally = Tally()

    def hear(event: Event) -> None:
        tally.take(event)
        heard(event)

    sessions = [event for event in collection if isinstance(event, Session)]
    if len(sessions) != 1 or run.exit.code not in (_OK, _NO_TESTS):
        # Nothing was told, or the collection failed: that is then what there is to report.
        for event in collection:
            hear(replace(event, ids=()) if isinstance(event, Collected) else event)
        if len(sessions) > 1:
            run.notes += ("the test command runs pytest more than once, and each would run all units: nothing was run",)
            run.exit = replace(run.exit, code=run.exit.code or _FAILED)
        return run
    for event in collection:
        if not isinstance(event, Ended):
            hear(event)
    ids = [one for event in collection if isinstance(event, Collected) for one in event.ids]
    work = _Work(suite, sessions[0], deadline, artifacts)
    most = int(str(suite.told.selection.options.get("maxfail", 0)))
    settings = suite.workplace.settings
    with work.running(units_of(ids, settings.isolate), settings.jobs) as results:
        stopped = _add_up(results, run, hear, output, most, {_told_once(event) for event in collection})
    hear(Ended(sessions[0].name, run.exit.code, stopped))
    step("command ended")
    return run


def _add_up(
    results: Iterable[Isolated],
    run: StageRun,
    hear: Callable[[Event], None],
    output: OutputSink,
    most: int,
    known: set[object],
) -> str:
    """Take what the units came to into ``run``, until ``most`` tests have failed; say why any were left out."""
    failed = 0
    for result in results:
        for stream, piece in result.output:
            output(stream, piece)
        for event in result.events:
            if (once := _told_once(event)) is not None:
                if once in known:
                    continue
                known.add(once)
            hear(event)
            failed += isinstance(event, Tested) and any(phase.outcome == "failed" for phase in event.phases)
        run.notes += tuple(note for note in result.notes if note not in run.notes)
        run.surprises = tuple(dict.fromkeys([*run.surprises, *result.surprises]))
        timed_out = run.exit.timed_out or result.exit.timed_out
        run.exit = replace(run.exit, code=run.exit.code or result.exit.code, timed_out=timed_out)
        if timed_out:
            return "the time was up"
        if most and failed >= most:
            return f"stopping after {failed} failures"
    return ""


def _told_once(event: Event) -> object:
    """What tells a warning, or a property of the suite, from others: several sandboxes give the same ones."""
    match event:
        case Warned():
            return event.category, event.message, event.file, event.line, event.id
        case SuiteProperty():
            return event.property
    return None


class _Work:
    """Runs units in threads, and gives what they come to in order."""

    def __init__(self, suite: Suite, session: Session, deadline: float, artifacts: Path) -> None:
        self._suite = suite
        self._session = session
        self._deadline = deadline
        self._artifacts = artifacts
        self._living: list[Sandbox] = []
        self._lock = threading.Lock()
        self._over = False

    @contextlib.contextmanager
    def running(self, units: Sequence[Unit], jobs: int) -> Iterator[Iterator[Isolated]]:
        """What the units come to, one after the other; those that nobody waited for are broken off at the end."""
        with ThreadPoolExecutor(jobs, thread_name_prefix="stagebuild-isolated") as pool:
            futures = [pool.submit(self._run, unit) for unit in units]
            try:
                yield self._in_order(futures)
            finally:
                self._break_off(futures)

    def _in_order(self, futures: Iterable[Future[Isolated]]) -> Iterator[Isolated]:
        for future in futures:
            # In pieces: a wait without an end cannot be interrupted everywhere.
            while not future.done():
                wait([future], timeout=1)
            yield future.result()

    def _break_off(self, futures: Iterable[Future[Isolated]]) -> None:
        self._over = True
        for future in futures:
            future.cancel()
        with self._lock:
            living = list(self._living)
        for sandbox in living:
            with contextlib.suppress(EngineError):
                sandbox.end_processes()

    def _run(self, unit: Unit) -> Isolated:
        left = self._deadline - time.monotonic()
        if self._over or left <= 0:
            return Isolated(unit, exit=CommandExit(_KILLED, 0.0, timed_out=True))
        told: list[Event] = []
        said: list[tuple[Stream, bytes]] = []
        mine: list[Sandbox] = []

        def opened(sandbox: Sandbox) -> None:
            with self._lock:
                mine.append(sandbox)
                self._living.append(sandbox)
            if self._over:
                raise EngineError("the run is over")

        room = _LONGEST_OUTPUT

        def keep(stream: Stream, piece: bytes) -> None:
            nonlocal room
            if room > 0:
                said.append((stream, piece))
                room -= len(piece)

        options = {name: value for name, value in self._suite.told.selection.options.items() if name not in _CHOOSING}
        selection = Selection(tuple(self._from_source(one) for one in unit.ids), options)
        try:
            run = run_tests(
                replace(self._suite, told=replace(self._suite.told, selection=selection)),
                output=keep,
                heard=told.append,
                artifacts=self._artifacts / _as_folder(unit.name),
                timeout=left,
                opened=opened,
            )
        finally:
            with self._lock:
                self._living = [sandbox for sandbox in self._living if sandbox not in mine]
        return Isolated(unit, tuple(self._judged(unit, told, run)), tuple(said), run.exit, run.surprises, run.notes)

    def _from_source(self, identifier: str) -> str:
        """An id, which is relative to pytest's rootdir, relative to where the source is."""
        path, separator, rest = identifier.partition("::")
        return posixpath.relpath(posixpath.join(self._session.root, path), WORKING_DIRECTORY) + separator + rest

    def _judged(self, unit: Unit, told: Iterable[Event], run: StageRun) -> Iterator[Event]:
        """What was told of the unit's own tests, as told in the session that collected them; and of those that did not
        report, that they did not.
        """
        running: dict[str, Started] = {}
        reported: set[str] = set()
        for event in told:
            match event:
                case Started() if event.id in unit.ids:
                    running[event.id] = event
                case Tested() if event.id in unit.ids:
                    if started := running.pop(event.id, None):
                        yield replace(started, name=self._session.name)
                    reported.add(event.id)
                    yield replace(event, name=self._session.name)
                case CollectReport() | InternalError() | SuiteProperty() | Warned():
                    yield replace(event, name=self._session.name)
        for one in unit.ids:
            if one not in reported:
                why = "while this test ran" if one in running else "before this test had run"
                message = f"the pytest in its container ended {why}: {cause_of(run.exit, self._suite.stage.timeout)}"
                path, _, name = one.partition("::")
                location = running[one].location if one in running else (path, None, name.replace("::", "."))
                phases = (Phase("call", "failed", why=Failed(message, message=True)),)
                yield Tested(self._session.name, one, location, phases)


def _as_folder(name: str) -> str:
    """The name of a unit as that of a folder, which no other unit has."""
    plain = re.sub(r"[^\w.\[\]-]+", "_", name)[:100].strip(".") or "_"
    return (
        plain if plain == name else f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    )
