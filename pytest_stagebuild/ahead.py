"""What takes a while and nothing waits for yet, begun in a thread of its own."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final, Generic, TypeVar

T = TypeVar("T")


class _Attention:
    """Lets threads that mostly wait go on soon after what they wait for has come.

    As long as another one computes, Python gives way to each of them but every 5 ms.
    """

    _INTERVAL: Final = 0.0005

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted_by: set[object] = set()
        self._usual = 0.0

    def begin(self, whom: object) -> None:
        with self._lock:
            if not self._wanted_by:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, self._INTERVAL))
            self._wanted_by.add(whom)

    def end(self, whom: object) -> None:
        with self._lock:
            if whom in self._wanted_by:
                self._wanted_by.remove(whom)
                if not self._wanted_by:
                    sys.setswitchinterval(self._usual)


_attention: Final = _Attention()


class Soon(Generic[T]):
    """What a function gives, asked for in a thread; what it raises is raised where that is wanted."""

    def __init__(self, asked: Callable[[], T]) -> None:
        self._asked = asked
        self._given: list[T] = []
        self._problem: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name="stagebuild-ahead", daemon=True)
        try:
            _attention.begin(self)
            self._thread.start()
        except BaseException:
            _attention.end(self)
            raise

    def _ask(self) -> None:
        try:
            self._given.append(self._asked())
        except BaseException as error:  # noqa: BLE001 - it belongs to the thread that wants it
            self._problem = error
        finally:
            _attention.end(self)

    def get(self) -> T:
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return self._given[0]


class Ahead(Generic[T]):
    """A context that is being entered; it is left by whoever takes it, or when it is discarded.

    ``opening`` is given a function to which it tells its steps; they are told to whoever takes it, by that thread.
    """

    def __init__(self, opening: Callable[[Callable[[str], None]], AbstractContextManager[T]]) -> None:
        self._steps: list[str] = []
        self._context = opening(self._steps.append)
        self._entered = Soon(self._context.__enter__)
        self.is_taken = False
        """By whoever uses it, or by whoever has discarded it."""

    def entered(self) -> T:
        """Wait until it is entered, and leave it to whoever has begun it; what that raised is raised here."""
        return self._entered.get()

    @contextmanager
    def taken(self, step: Callable[[str], None]) -> Iterator[T]:
        """Wait until it is entered; what that raised is raised here."""
        entered = self.entered()
        for one in self._steps:
            step(one)
        self.is_taken = True
        with _Entered(self._context, entered) as value:
            yield value

    def discard(self) -> None:
        """Leave it, where nobody has taken it. What goes wrong then is of no consequence to a run."""
        with suppress(Exception):
            self._entered.get()
            if not self.is_taken:
                self.is_taken = True
                self._context.__exit__(None, None, None)


class _Entered(AbstractContextManager[T]):
    """A context that somebody else has entered."""

    def __init__(self, context: AbstractContextManager[T], value: T) -> None:
        self._value = value
        self._context = context

    def __enter__(self) -> T:
        return self._value

    def __exit__(self, *error: object) -> bool | None:
        return self._context.__exit__(*error)  # type: ignore[arg-type]
