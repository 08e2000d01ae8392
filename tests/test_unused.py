"""Installed and not asked for, the plugin is as good as not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_stagebuild.plugin

PACKAGE = Path(pytest_stagebuild.plugin.__file__).parent

WITNESS = """
import json, os, sys

events = []

def see(event, arguments):
    if event in ("open", "socket.connect", "subprocess.Popen") or event.startswith(("os.", "shutil.")):
        events.append([event, str(arguments[0]) if arguments else "", str(arguments[1]) if event == "open" else ""])

sys.addaudithook(see)

def pytest_unconfigure():
    seen = list(events)
    with open(os.environ["WITNESS"], "w") as file:
        json.dump({"modules": sorted(sys.modules), "events": seen}, file)
"""


@dataclass(frozen=True)
class Seen:
    """Of a pytest process: the modules it had imported at its end, and what it did to files, sockets and processes."""

    modules: frozenset[str]
    events: frozenset[tuple[str, str, str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "package").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n[tool.stagebuild]\nkeep = 3\n')
    (root / "package/__init__.py").write_text("")
    (root / "test_it.py").write_text("import package\n\ndef test_it():\n    pass\n")
    return root


def watched(project: Path, *options: str) -> Seen:
    """Run pytest in ``project`` under an audit hook (https://docs.python.org/3/library/audit_events.html)."""
    aside = project.parent
    (aside / "witness.py").write_text(WITNESS)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {"PYTHONPATH": str(aside), "PYTHONDONTWRITEBYTECODE": "1", "XDG_CACHE_HOME": str(aside / "cache")}
    environ["WITNESS"] = str(aside / "seen.json")
    # pytest-metadata, which pytest-html needs, reads the version of every plugin that is there.
    without = [argument for name in ("cacheprovider", "html", "metadata") for argument in ("-p", f"no:{name}")]
    subprocess.run(
        # Without capture, for which Python tries out where temporary files go.
        [sys.executable, "-m", "pytest", "-qs", "-p", "witness", *without, *options],
        cwd=project,
        env=environ,
        check=True,
        capture_output=True,
    )
    seen = json.loads((aside / "seen.json").read_text())
    return Seen(frozenset(seen["modules"]), frozenset(map(tuple, seen["events"])))


def test_a_run_that_does_not_ask_for_the_plugin_imports_no_more_than_its_flags(project: Path) -> None:
    more = watched(project).modules - watched(project, "-p", "no:stagebuild").modules

    assert "pytest_stagebuild.plugin" in more
    assert more <= {
        "pytest_stagebuild",
        "pytest_stagebuild.plugin",
        "pytest_stagebuild.flags",
        "pytest_stagebuild.hooks",
    }


def test_a_run_that_does_not_ask_for_the_plugin_touches_no_file_but_the_plugin_s_own(project: Path) -> None:
    before = sorted(project.rglob("*"))

    more = watched(project).events - watched(project, "-p", "no:stagebuild").events

    assert any(Path(path).is_relative_to(PACKAGE) for _, path, _ in more)
    assert not {(event, path) for event, path, _ in more if not Path(path).is_relative_to(PACKAGE)}
    assert {mode for event, _, mode in more if event == "open"} <= {"r", "rb"}
    assert sorted(project.rglob("*")) == before
    assert not (project.parent / "cache").exists()
