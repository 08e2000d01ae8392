"""How the reporter gets into the pytest inside: files beside the source, and a few variables of its environment."""

from __future__ import annotations

import json
import marshal
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from functools import cache
from importlib.abc import InspectLoader
from importlib.machinery import PathFinder
from importlib.resources import files
from importlib.util import MAGIC_NUMBER
from types import CodeType
from typing import Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.results import inside as programs
from pytest_stagebuild.results.channel import INSIDE
from pytest_stagebuild.selection import Selection
from pytest_stagebuild.values import dataclass

TOLD: Final = f"{INSIDE}/told.json"
"""The file that says what was selected; it is as old as the sandbox."""

_MODULE: Final = "stagebuild_inside"
_TOX_MODULE: Final = "stagebuild_tox"

_NO_FILE: Final = "<stagebuild>"

_LOADER: Final = f'''"""PYTEST_DONT_REWRITE"""
import importlib.util, marshal
_path = __file__.rpartition("/")[0] + "/reporter"
with open(_path + ".compiled", "rb") as _file:
    _code = _file.read()
if _code.startswith(importlib.util.MAGIC_NUMBER):
    _code = marshal.loads(_code[len(importlib.util.MAGIC_NUMBER):])
else:
    with open(_path, "rb") as _file:
        _code = compile(_file.read(), "{_NO_FILE}", "exec", dont_inherit=True)
exec(_code)
'''
"""The module: what it does comes from no file of Python's, or it would stand in the user's coverage. For a Python like
the one out here it comes compiled, which saves each pytest inside 6 ms.
"""

_DISTRIBUTION: Final = {
    "METADATA": "Metadata-Version: 2.1\nName: stagebuild-inside\nVersion: 1\n",
    "entry_points.txt": f"[pytest11]\n{_MODULE} = {_MODULE}\n\n[tox]\n{_TOX_MODULE} = {_TOX_MODULE}\n",
}
"""What makes pytest and tox find their modules. Named in PYTEST_PLUGINS pytest's would be found too, but a Python that
ignores PYTHONPATH (``python -I -m pytest``) would then have to fail for want of it."""

_NO_AUTOLOAD: Final = re.compile(r"PYTEST_DISABLE_PLUGIN_AUTOLOAD|--disable-plugin-autoload")

_PASSED_BY_TOX: Final = "PYTHONPATH,PYTEST_PLUGINS"
_TOX_SECTIONS: Final = ("testenv", "env_run_base")
"""Of ``tox.ini`` and ``tox.toml``: https://tox.wiki/en/stable/config.html#overriding-configuration-from-the-command-line"""


@dataclass(frozen=True)
class Told:
    """What the pytest inside is told besides the selection.

    ``last_failed`` are the ids of the tests that failed before. ``color`` asks for tracebacks with colours, ``width``
    for lines across so many columns.
    """

    selection: Selection
    last_failed: Sequence[str] = ()
    color: bool = False
    width: int = 80
    options: Mapping[str, object] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """The files that a sandbox needs for it, by their path."""
        told = {
            "source": WORKING_DIRECTORY,
            "report": True,
            "paths": list(self.selection.paths),
            "options": {**self.selection.options, **self.options},
            "color": self.color,
            "width": self.width,
        }
        if self.last_failed and {"lf", "failedfirst"} & self.selection.options.keys():
            told["last_failed"] = list(self.last_failed)
        folder = files(programs)
        return {
            f"{INSIDE}/{_MODULE}.py": _LOADER.encode(),
            f"{INSIDE}/reporter": folder.joinpath(f"{_MODULE}.py").read_bytes(),
            f"{INSIDE}/reporter.compiled": _compiled(),
            f"{INSIDE}/{_TOX_MODULE}.py": folder.joinpath(f"{_TOX_MODULE}.py").read_bytes(),
            TOLD: json.dumps(told).encode(),
            **{f"{INSIDE}/{_MODULE}-1.dist-info/{name}": text.encode() for name, text in _DISTRIBUTION.items()},
        }

    def environment(self, command: str, inside: Mapping[str, str]) -> dict[str, str]:
        """The variables that carry it into the pytest of ``command``, which otherwise has those of ``inside``."""
        override = [inside.get("TOX_OVERRIDE"), *(f"{name}.pass_env+={_PASSED_BY_TOX}" for name in _TOX_SECTIONS)]
        variables = {
            "PYTHONPATH": os.pathsep.join(filter(None, [INSIDE, inside.get("PYTHONPATH")])),
            "TOX_OVERRIDE": ";".join(filter(None, override)),
        }
        if _NO_AUTOLOAD.search(command) or "PYTEST_DISABLE_PLUGIN_AUTOLOAD" in inside:
            variables["PYTEST_PLUGINS"] = ",".join(filter(None, [_MODULE, inside.get("PYTEST_PLUGINS")]))
        return variables


@cache
def _compiled() -> bytes:
    """The reporter as this Python compiles it, after the number that tells Pythons apart; kept as all modules are.

    Found past the finder of pytest, which would have its assertions written anew.
    """
    found = PathFinder.find_spec(f"{programs.__name__}.{_MODULE}", programs.__path__)
    code = found.loader.get_code(found.name) if found and isinstance(found.loader, InspectLoader) else None
    return MAGIC_NUMBER + marshal.dumps(_of_no_file(code)) if code else b""


def _of_no_file(code: CodeType) -> CodeType:
    constants = (_of_no_file(one) if isinstance(one, CodeType) else one for one in code.co_consts)
    return code.replace(co_filename=_NO_FILE, co_consts=tuple(constants))
