"""Frozen dataclasses that cost a run next to nothing to define.

The standard decorator writes, compiles and runs the source of six methods for each class: 0.8 ms, which for the classes
of this package was a quarter of what an unchanged run takes beyond pytest. Here the methods are written once and look
at the fields. The classes are dataclasses all the same: to ``replace``, to ``asdict`` and to type checkers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

__all__ = ["dataclass"]

T = TypeVar("T")

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool) -> Callable[[type[T]], type[T]]:
        """``dataclasses.dataclass(frozen=True)``; there is no other form of it here."""
        if not frozen:
            raise TypeError("only frozen ones are made here")
        return _made


def _made(plain: type[T]) -> type[T]:
    made = dataclasses.dataclass(init=False, repr=False, eq=False)(plain)
    fields = dataclasses.fields(made)  # type: ignore[arg-type]
    names = tuple(field.name for field in fields)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    factories = {
        field.name: field.default_factory for field in fields if field.default_factory is not dataclasses.MISSING
    }
    known = frozenset(names)

    def initialise(self: object, *values: object, **named: object) -> None:
        own = vars(self)
        own.update(defaults)
        own.update(zip(names, values, strict=False))
        own.update(named)
        for name, factory in factories.items():
            if name not in own:
                own[name] = factory()
        given_twice = named and not named.keys().isdisjoint(names[: len(values)])
        if len(own) != len(names) or len(values) > len(names) or given_twice or not named.keys() <= known:
            raise TypeError(f"{made.__name__} has the fields {', '.join(names)}; it was given {values} and {named}")

    compared = tuple(field.name for field in fields if field.compare)
    methods: dict[str, Callable[..., Any]] = {
        "__init__": initialise,
        "__repr__": lambda self: f"{made.__name__}({', '.join(f'{name}={vars(self)[name]!r}' for name in names)})",
        "__eq__": lambda self, other: (
            all(vars(self)[name] == vars(other)[name] for name in compared)
            if other.__class__ is self.__class__
            else NotImplemented
        ),
        "__hash__": lambda self: hash(tuple(vars(self)[name] for name in compared)),
        "__setattr__": _refuse,
        "__delattr__": _refuse,
    }
    for name, method in methods.items():
        setattr(made, name, method)
    return made


def _refuse(self: object, name: str, value: object = None) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__}.{name} is what it was made with")
