"""The engine that is part of this package: it needs Linux and nothing else."""

from __future__ import annotations

from pytest_stagebuild.engines.local.engine import LocalEngine

__all__ = ["LocalEngine"]
