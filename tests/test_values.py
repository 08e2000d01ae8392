"""The package's own dataclasses are what the standard ones are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pytest_stagebuild import values


@values.dataclass(frozen=True)
class Ours:
    """A value with every kind of field there is."""

    name: str
    size: int = dataclasses.field(default=1, compare=False)
    parts: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Standard:
    """The same."""

    name: str
    size: int = dataclasses.field(default=1, compare=False)
    parts: list[int] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
    "arguments",
    [(("a",), {}), (("a", 2, [3]), {}), (("a",), {"parts": [1]}), ((), {"name": "a", "size": 4})],
)
def test_a_value_has_the_fields_it_was_given_and_the_defaults_of_the_others(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    positional, named = arguments
    ours, standard = Ours(*positional, **named), Standard(*positional, **named)
    assert dataclasses.asdict(ours) == dataclasses.asdict(standard)
    assert repr(ours) == repr(standard).replace("Standard", "Ours")


@pytest.mark.parametrize(
    "arguments",
    [((), {}), (("a", 1, [], 4), {}), (("a",), {"other": 1}), (("a",), {"name": "b"}), ((), {"size": 1})],
)
def test_what_does_not_fit_the_fields_is_refused(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    positional, named = arguments
    for kind in (Ours, Standard):
        with pytest.raises(TypeError):
            kind(*positional, **named)


@pytest.mark.parametrize("kind", [Ours, Standard])
def test_values_are_equal_by_the_fields_that_are_compared_and_only_to_their_own_kind(kind: Callable[..., Any]) -> None:
    assert kind("a", 1) == kind("a", 2)
    assert kind("a") != kind("b")
    assert Ours("a") != Standard("a")
    with pytest.raises(TypeError):
        hash(kind("a"))  # a list is in it
    assert hash(kind("a", 1, ())) == hash(kind("a", 2, ()))


@pytest.mark.parametrize("kind", [Ours, Standard])
def test_a_value_stays_as_it_was_made(kind: Callable[..., Any]) -> None:
    value = kind("a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.name = "b"
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.name
    assert dataclasses.replace(value, name="b").name == "b"
    assert value.name == "a"


def test_defaults_are_made_anew_for_each_value() -> None:
    assert Ours("a").parts is not Ours("a").parts
