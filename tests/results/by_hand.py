"""A pytest that reports with what a sandbox is given for it, started by hand: without an engine, in a process here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pytest_stagebuild.results.channel import INSIDE
from pytest_stagebuild.results.events import Collected, Ended, Event, Phase, Session, Tested, event_in
from pytest_stagebuild.results.injection import Told
from pytest_stagebuild.selection import Selection

LONGEST = 120.0

Kind = TypeVar("Kind", bound=Event)


@dataclass(frozen=True)
class Heard:
    """What was told in a run, and what its command printed."""

    events: tuple[Event, ...]
    code: int
    output: str

    def all(self, kind: type[Kind]) -> list[Kind]:
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[Kind]) -> Kind:
        found = self.all(kind)
        assert len(found) == 1, (found, self.output)
        return found[0]

    @property
    def tests(self) -> list[Tested]:
        return self.all(Tested)

    @property
    def ids(self) -> list[str]:
        """Of the tests that ended, in that order."""
        return [event.id for event in self.tests]

    def test(self, identifier: str) -> dict[str, Phase]:
        """Its phases by their names."""
        [event] = [event for event in self.tests if event.id == identifier]
        return {phase.when: phase for phase in event.phases}

    def outcomes(self) -> dict[str, str]:
        """What each test came to: its phases' outcomes, with what is special about them."""
        return {event.id: " ".join(map(_word, event.phases)) for event in self.tests}


def _word(phase: Phase) -> str:
    marks = "x" if phase.xfail is not None else ""
    part = f"({phase.subtest})" if phase.subtest is not None else ""
    return f"{phase.outcome}{marks}{part}"


def environment() -> dict[str, str]:
    """That of this process, without what pytest and pytest-xdist have put there for the tests of this suite."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON", "COV"))}


@dataclass
class Place:
    """A project in ``root`` and, beside it, what the reporter is told and tells."""

    root: Path
    beside: Path
    python: str = sys.executable
    environ: dict[str, str] = field(default_factory=environment)

    def write(self, files: Mapping[str, str]) -> None:
        for path, content in files.items():
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(content, encoding="utf-8")

    def pytest(self, *arguments: str, **how: object) -> Heard:
        return self.run([self.python, "-m", "pytest", *arguments], **how)  # type: ignore[arg-type]

    def run(
        self,
        command: Sequence[str],
        *,
        paths: Sequence[str] = (),
        options: Mapping[str, object] | None = None,
        last_failed: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Heard:
        """Run it on what was selected, and read what it tells."""
        told = Told(Selection(tuple(paths), dict(options or {})), last_failed)
        for path, content in told.files().items():
            target = self.beside / os.path.relpath(path, INSIDE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        selected = json.loads((self.beside / "told.json").read_text())
        (self.beside / "told.json").write_text(json.dumps({**selected, "source": str(self.root)}))
        reports = self.beside / "reports"
        reports.write_bytes(b"")

        given = {**self.environ, **(env or {})}
        carried = told.environment(" ".join(command), given)
        ended = subprocess.run(
            command,
            check=False,
            cwd=cwd or self.root,
            env={**given, **{name: value.replace(INSIDE, str(self.beside)) for name, value in carried.items()}},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=LONGEST,
        )
        events = tuple(event for line in reports.read_bytes().splitlines() if (event := event_in(line)) is not None)
        return Heard(events, ended.returncode, ended.stdout)


def check_whole(told: Heard) -> None:
    """One pytest began and ended, and what it collected is what has ended."""
    session, ended, collected = told.one(Session), told.one(Ended), told.one(Collected)
    assert {session.name} == {ended.name} == {collected.name} == {event.name for event in told.events}
    assert ended.exit == told.code
    assert sorted(collected.ids) == sorted(told.ids)
