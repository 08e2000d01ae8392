"""What the benchmarks share: the environment of the pytests that they start, and how figures are given."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider")

HERE = Path(__file__).resolve().parent

EXAMPLE = HERE.parent / "examples" / "python-package"


def environment(**more: str) -> dict[str, str]:
    """This process's environment, for a pytest that loads our plugin and no other."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else every module is compiled anew, as no user's is
    return environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_stagebuild.plugin"} | more


def steps(begun: float, done: Mapping[str, float]) -> dict[str, float]:
    """The seconds that each step took, in order, of the times at which each was done."""
    found = {}
    for name, at in sorted(done.items(), key=lambda one: one[1]):
        found[name], begun = at - begun, at
    return found


def spread(values: Sequence[float], factor: float = 1000, digits: int = 0) -> str:
    """The lowest and the highest, in milliseconds unless told otherwise."""
    return f"{min(values) * factor:.{digits}f}-{max(values) * factor:.{digits}f}"
