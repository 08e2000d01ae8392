"""Carry a project through base image, install, build and test in containers, and reuse what has not changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagebuild.errors import (
        ConfigurationError,
        EngineError,
        EngineUnavailable,
        ImageUnavailable,
        SourceError,
        StagebuildError,
        StageFailed,
    )
    from pytest_stagebuild.image import Image, RunResult

__all__ = [
    "ConfigurationError",
    "EngineError",
    "EngineUnavailable",
    "Image",
    "ImageUnavailable",
    "RunResult",
    "SourceError",
    "StageFailed",
    "StagebuildError",
]


def __getattr__(name: str) -> object:
    # The plugin is loaded in every pytest run, and with it this module: what only some need is imported when asked for.
    if name in ("Image", "RunResult"):
        from pytest_stagebuild import image

        return getattr(image, name)
    if name in __all__:
        from pytest_stagebuild import errors

        return getattr(errors, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
