"""Loaded by the pytest inside the container: makes it run what was selected outside.

It stands alone: standard library and pytest only, Python 3.7 and pytest 6 or newer. Its variables and its path entry
are gone once it is imported, so that neither the tests nor what they start can see them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

_NAME = __name__.rpartition(".")[2]


def _leave_no_trace() -> None:
    here = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry != here]
    for variable, separator, ours in (("PYTHONPATH", os.pathsep, here), ("PYTEST_PLUGINS", ",", _NAME)):
        left = [part for part in os.environ.pop(variable, "").split(separator) if part != ours]
        if any(left):
            os.environ[variable] = separator.join(left)


_selected = json.loads(os.environ.pop("STAGEBUILD_SELECTION", "{}"))
_leave_no_trace()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before anything has looked at the options, and before pytest-xdist passes them on to its workers."""
    for name, value in _selected.get("options", {}).items():
        before = getattr(config.option, name, None)
        setattr(config.option, name, (before or []) + value if isinstance(value, list) else value)
    if _selected.get("paths"):
        config.args[:] = _selected["paths"]
