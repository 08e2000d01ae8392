"""The errors of the package.

::

    StagebuildError
    ├── ConfigurationError      an option, a key or a source that cannot be used
    ├── SourceError             a file of the source tree that cannot be read as it is
    ├── EngineError             the engine failed, or we failed to use it
    │   ├── EngineUnavailable   no engine answers
    │   └── ImageUnavailable    the base image is neither here nor to be had
    └── StageFailed             the user's own command failed

``EngineError`` and ``StageFailed`` must never be mistaken for each other: the first says nothing about
the project under test, the second says nothing about the engine. Every message ends with what to do next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_stagebuild.stage import StageResult


class StagebuildError(Exception):
    """The root of every error that this package raises on purpose."""


class ConfigurationError(StagebuildError):
    """An option, a key of the table, or the source folder cannot be used."""


class SourceError(StagebuildError):
    """A file of the source tree cannot be read, or will not stay as it is while it is read."""


class EngineError(StagebuildError):
    """The engine failed, which says nothing about the project under test."""


class EngineUnavailable(EngineError):
    """No engine answers at any of the addresses that were tried."""


class ImageUnavailable(EngineError):
    """An image is neither known to the engine nor can it be pulled."""


class StageFailed(StagebuildError):
    """The command of a stage failed; ``result`` says which one and how."""

    def __init__(self, result: StageResult) -> None:
        super().__init__(str(result.failure))
        self.result = result
