"""Loaded by tox inside the container: lets the commands of an environment see what the reporter needs to be found.

TOX_OVERRIDE asks for that too, yet it does not reach environments with a ``pass_env`` or a ``PYTHONPATH`` of their own,
nor the first versions of tox 4, nor tox 3.
It stands alone: standard library and what comes with tox only, Python 3.7 or newer.
"""

from __future__ import annotations

import os
from pathlib import Path

import pluggy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HERE = str(Path(__file__).parent)
_NAME = "stagebuild_inside"

_hookimpl = pluggy.HookimplMarker("tox")


@_hookimpl(optionalhook=True)
def tox_before_run_commands(tox_env: Any) -> None:
    """Of tox 4: https://tox.wiki/en/stable/plugins.html."""
    try:
        tox_env.conf["set_env"].update(_added(tox_env.environment_variables))
    except Exception:  # noqa: BLE001 - the tests run all the same, and it will be said that no reports arrived
        return


@_hookimpl(optionalhook=True)
def tox_runtest_pre(venv: Any) -> None:
    """Of tox 3, before the commands of an environment."""
    setenv = venv.envconfig.setenv
    given = {name: os.environ[name] for name in venv.envconfig.passenv if name in os.environ}
    for name, value in _added({**given, **dict(setenv.items())}).items():
        setenv[name] = value


def _added(before: Any) -> dict[str, str]:
    """What the variables come to that carry the reporter, where they do not yet."""
    added = {}
    for variable, separator, ours in (("PYTHONPATH", os.pathsep, _HERE), ("PYTEST_PLUGINS", ",", _NAME)):
        theirs = before.get(variable, "")
        wanted = ours in os.environ.get(variable, "").split(separator)
        if variable == "PYTEST_PLUGINS" and "PYTEST_DISABLE_PLUGIN_AUTOLOAD" in before:
            wanted = True
        if wanted and ours not in theirs.split(separator):
            added[variable] = separator.join(filter(None, [ours, theirs]))
    return added
