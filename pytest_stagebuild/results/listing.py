"""The tests inside as nodes of this pytest, for ``--collect-only``: to be listed, never to be run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

import pytest

from pytest_stagebuild.results.events import Collected, Event, Session
from pytest_stagebuild.results.paths import Paths


class _Listed:
    """How a node is shown: by the kind that it has inside."""

    kind: str
    name: str

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name}>"


class ListedCollector(_Listed, pytest.Collector):
    """A folder, file or class of tests inside."""

    def collect(self) -> Iterator[NoReturn]:
        return iter(())


class ListedItem(_Listed, pytest.Item):
    """A test inside."""

    def runtest(self) -> NoReturn:
        raise NotImplementedError("a test that is only listed")


def listed_items(session: pytest.Session, events: Iterable[Event], paths: Paths) -> list[pytest.Item]:
    """The tests that were collected inside, below nodes for what they are in there."""
    roots: dict[str, str] = {}
    known: dict[tuple[tuple[str, str], ...], pytest.Collector] = {}
    items: list[pytest.Item] = []
    for event in events:
        if isinstance(event, Session):
            roots[event.name] = event.root
        elif isinstance(event, Collected):
            for identifier, chain in zip(event.ids, event.chains, strict=False):
                nodeid = paths.nodeid(identifier, roots.get(event.name, ""))
                items.append(_item(session, nodeid, chain, known))
    return items


def _item(
    session: pytest.Session,
    nodeid: str,
    chain: tuple[tuple[str, str], ...],
    known: dict[tuple[tuple[str, str], ...], pytest.Collector],
) -> pytest.Item:
    parent: pytest.Collector = session
    for depth in range(1, len(chain)):
        above = chain[:depth]
        if above not in known:
            # Only tests are named by their ids here.
            node = ListedCollector.from_parent(parent, name=above[-1][1], nodeid=f"{nodeid.partition('::')[0]}#{depth}")
            node.kind = above[-1][0]
            known[above] = node
        parent = known[above]
    item = ListedItem.from_parent(parent, name=chain[-1][1] if chain else nodeid, nodeid=nodeid)
    item.kind = chain[-1][0] if chain else "Item"
    return item
