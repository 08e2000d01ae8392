"""Which engine runs the sandboxes: the one that was asked for, or the first that answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pytest_stagebuild.engines.protocol import Engine
from pytest_stagebuild.errors import ConfigurationError, EngineUnavailable

EngineFactory = Callable[[], Engine]
"""Connects to an engine, or raises :class:`~pytest_stagebuild.errors.EngineUnavailable`."""


HOST_IMAGE: Final = "host"
"""The name of this machine's own system, as a base image of the local engine."""


def _docker() -> Engine:
    from pytest_stagebuild.engines.docker import DockerEngine

    return DockerEngine.connect()


def _local() -> Engine:
    from pytest_stagebuild.engines.local import LocalEngine

    return LocalEngine.connect()


BUILT_IN: Final[Mapping[str, EngineFactory]] = MappingProxyType({"docker": _docker, "local": _local})


def connect(
    name: str, *, preferred: str | None = None, factories: Mapping[str, EngineFactory] = BUILT_IN
) -> tuple[Engine, str]:
    """Connect to the engine ``name``; give it with the reason for the header.

    "auto" means ``preferred`` (the engine that the lockfile knows) if it answers, else the first of ``factories`` that
    does. Raises :class:`ConfigurationError` for an unknown name and :class:`EngineUnavailable` where none answers.
    """
    if name != "auto":
        if name not in factories:
            known = ", ".join(["auto", *factories])
            podman = " Podman is reached as docker is: point DOCKER_HOST at its socket." if name == "podman" else ""
            raise ConfigurationError(f"unknown engine {name!r}. Known: {known}.{podman}")
        return factories[name](), "asked for"
    order = list(factories)
    if preferred in factories:
        order.sort(key=lambda candidate: candidate != preferred)
    failures: dict[str, EngineUnavailable] = {}
    for candidate in order:
        try:
            engine = factories[candidate]()
        except EngineUnavailable as error:  # noqa: PERF203 - which of them answers is the question
            failures[candidate] = error
        else:
            why = "holds the lockfile's checkpoints" if candidate == preferred else "answers"
            others = f", {' and '.join(failures)} does not" if failures else ""
            return engine, f"auto: {candidate} {why}{others}"
    said = [f"{candidate}: {error}" for candidate, error in failures.items()]
    raise EngineUnavailable("\n".join(["none of the engines can be used here.", *said]))
