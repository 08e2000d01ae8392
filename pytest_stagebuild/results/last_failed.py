"""What ``--lf`` and ``--ff`` go by, kept on the host from one disposable container to the next.

pytest keeps it in its cache, which ends with the container: https://docs.pytest.org/en/stable/how-to/cache.html. The
rules are those of its plugin, ``_pytest/cacheprovider.py``; a test that fails in one pytest of a run and passes in
another (tox) has failed.
"""

from __future__ import annotations

import json
from pathlib import Path

from pytest_stagebuild.results.events import CollectReport, Event, Tested


class LastFailed:
    """The ids, as they are inside, of the tests that failed when they last ran, in the file ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed = _read(path)
        self._now: set[str] = set()
        self._told = False

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._failed)

    def take(self, event: Event) -> None:
        match event:
            case Tested():
                self._told = True
                for phase in event.phases:
                    if phase.outcome == "failed":
                        self._add(event.id)
                    elif phase.outcome == "skipped" or (phase.outcome == "passed" and phase.when == "call"):
                        self._drop(event.id)
            case CollectReport():
                self._told = True
                if event.phase.outcome == "failed":
                    self._add(event.id)
                elif event.id in self._failed:
                    self._drop(event.id)
                    self._failed.update(dict.fromkeys(event.ids))

    def keep(self) -> None:
        """Write it, where anything was told."""
        if self._told:
            self._path.write_text(json.dumps(list(self._failed)), encoding="utf-8")

    def _add(self, identifier: str) -> None:
        self._failed[identifier] = None
        self._now.add(identifier)

    def _drop(self, identifier: str) -> None:
        if identifier not in self._now:
            self._failed.pop(identifier, None)


def _read(path: Path) -> dict[str, None]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict.fromkeys(map(str, value)) if isinstance(value, (list, dict)) else {}
