"""The sandboxes of a run that are begun before their time, or stay beyond it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from pytest_stagebuild.ahead import Ahead
from pytest_stagebuild.engines.protocol import Sandbox
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.execution import Begun, Ground
from pytest_stagebuild.interrupts import held_back
from pytest_stagebuild.source import Upload
from pytest_stagebuild.testrun import Suite
from pytest_stagebuild.values import dataclass

_KEPT_AT_MOST: Final = 16 << 20
"""Bytes in a sandbox that has stayed: to remove more takes longer than it saves, and is better done meanwhile."""


@dataclass(frozen=True)
class Guess:
    """What the tests of this run will stand on if nothing has changed, and a sandbox on it."""

    image: str
    sandbox: Ahead[Sandbox]


@dataclass(frozen=True)
class _OfTests:
    """A sandbox for these tests."""

    suite: Suite
    sandbox: Ahead[tuple[Sandbox, Upload]]


class Sandboxes:
    """Those of one run, begun, kept and being removed.

    ``note`` is told of one that was not removed; ``network`` is whether the tests have one.
    """

    def __init__(self, note: Callable[[str], None], *, network: bool) -> None:
        self._note = note
        self._tests_network = network
        self._of_stage: Begun | None = None
        self._of_tests: _OfTests | None = None
        self._network: Ahead[Sandbox] | None = None
        self._kept: Callable[[], object] | None = None
        self._predecessor: Sandbox | None = None
        self._behind: list[threading.Thread] = []

    @property
    def any_begun(self) -> bool:
        """Whether one has been begun in this run."""
        return self._of_stage is not None or self._of_tests is not None

    def begin_tests(self, suite: Suite, *, guess: Guess | None = None) -> None:
        """Have that of the tests made while other things go on; a ``guess`` is one without what is sent to it."""
        if self._of_tests is not None:  # for what they were to stand on before something was made anew
            self.remove_behind(self._of_tests.sandbox.discard)
        begun, after = guess.sandbox if guess else None, self.predecessor()
        with held_back():  # or there might be one that nobody knows of
            self._of_tests = _OfTests(suite, Ahead(partial(suite.sandbox, begun=begun, after=after)))

    def begin_stage(self, begin: Callable[[], Begun]) -> None:
        """The same for a stage that has to run."""
        with held_back():
            self._of_stage = begin()

    def for_stage(self, key: str, ground: Ground) -> Begun | None:
        """What was begun for a checkpoint with this key on this ground, if nobody has used it."""
        begun = self._of_stage
        if begun is None or begun.sandbox.is_taken:
            return None
        return begun if begun.key == key and begun.ground == ground else None

    def for_tests(self, suite: Suite) -> Ahead[tuple[Sandbox, Upload]] | None:
        """What was begun for these tests; it is removed where it was for others."""
        begun = self._of_tests
        if begun is None or begun.sandbox.is_taken:
            return None
        if begun.suite == suite:
            return begun.sandbox
        begun.sandbox.discard()
        return None

    def made_elsewhere(self, key: str) -> None:
        """Remove what was begun for a stage that somebody else has made meanwhile."""
        if self._of_stage is not None and self._of_stage.key == key:
            self.remove_behind(self._of_stage.sandbox.discard)
            self._of_stage = None

    def begin_network(self, begin: Callable[[], Ahead[Sandbox]]) -> None:
        """Have a sandbox made whose network is that of those to come."""
        with held_back():
            self._network = begin()

    def predecessor(self) -> Sandbox | None:
        """One whose work is done, and whose network the next may take over; one that is being made is waited for."""
        if self._predecessor is None and self._network is not None:
            with suppress(Exception):  # there is a network without it
                self._predecessor = self._network.entered()
        return self._predecessor

    def leave(self, sandbox: Sandbox, remove: Callable[[], object]) -> None:
        """Its work is done: have it stay where the tests may take over its network, and that is its own."""
        lender = sandbox.lends(network=self._tests_network)
        if lender is sandbox:
            self._kept = remove
        else:
            self.remove_behind(remove)
        self._predecessor = sandbox if lender else None

    def settle(self, size: int | None) -> None:
        """Remove what has stayed where it had better not: a stage has left so many bytes, or None where it failed."""
        if size is None:
            self.release()
        elif size > _KEPT_AT_MOST:
            self._remove_kept()

    def release(self) -> None:
        """Remove what has stayed for the sake of its network."""
        self._remove_kept()
        if self._network is not None:
            self.remove_behind(self._network.discard)
        self._network = self._predecessor = None

    def _remove_kept(self) -> None:
        # Forgotten when it is being removed: an interrupt may come in between, and to remove it twice does no harm.
        if self._kept is not None:
            self._predecessor = None
            self.remove_behind(self._kept)
            self._kept = None

    def remove_behind(self, remove: Callable[[], object]) -> None:
        """Remove one while the run goes on."""

        def removing() -> None:
            try:
                remove()
            except EngineError as error:  # the next run comes to it
                self._note(f"a sandbox was not removed: {error}")

        with held_back():
            self._behind.append(threading.Thread(target=removing, name="stagebuild-removal", daemon=True))
            self._behind[-1].start()

    def discard(self) -> None:
        """Remove what nobody has taken, and what has stayed."""
        self.release()
        if self._of_tests is not None:
            self._of_tests.sandbox.discard()
            self._of_tests = None
        if self._of_stage is not None:
            self._of_stage.sandbox.discard()
            self._of_stage = None

    def wait(self) -> None:
        """Wait until those are gone that are being removed."""
        for thread in self._behind:
            thread.join()
