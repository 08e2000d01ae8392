"""What install and build use of real projects, and what runs again after an edit: a table for the explanation of reuse.

python benchmarks/traced_inputs.py [PROJECT...]

Downloads the source distributions, takes each through install and build, edits one file at a time and looks what runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from subjects import from_pypi

PROJECTS = (
    ("itsdangerous==2.2.0", "flit", "python -m build"),
    ("itsdangerous==2.2.0", "flit", "python -m build --wheel"),
    ("tabulate==0.9.0", "setuptools", "python -m build"),
    ("humanize==4.13.0", "hatchling", "python -m build"),
    ("tomlkit==0.13.3", "poetry-core", "python -m build"),
)
DEPENDS = re.compile(r"^stagebuild (install|build): depends on (\d+) of (\d+) files", re.MULTILINE)
ROW = re.compile(r"^(install|build) .*  (CACHED|ran) ", re.MULTILINE)


def main() -> None:
    print("| project | backend | build | sent | used by install | by build | module | test | README | pyproject.toml |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for requirement, backend, build in PROJECTS:
        if sys.argv[1:] and not requirement.startswith(tuple(sys.argv[1:])):
            continue
        with tempfile.TemporaryDirectory() as folder:
            root = from_pypi(requirement, Path(folder))
            first = run(root, build)
            used = {stage: int(count) for stage, count, _ in DEPENDS.findall(first)}
            sent = DEPENDS.findall(first)[0][2]
            cells = [requirement.replace("==", " "), backend, f"`{build}`", sent, used["install"], used["build"]]
            cells += [
                reran(root, build, path)
                for path in (module_of(root), test_of(root), readme_of(root), root / "pyproject.toml")
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            run(root, build, "--stagebuild-prune=0")


def run(root: Path, build: str, *more: str) -> str:
    command = [sys.executable, "-m", "pytest", "-v", "--stagebuild-source=.", "--stagebuild-test-cmd=true"]
    command += [f"--stagebuild-build-cmd={build}", *more]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        sys.exit(f"{root.name}:\n{done.stdout}{done.stderr}")
    return done.stdout


def reran(root: Path, build: str, path: Path | None) -> str:
    """The stages that run after an edit of this file that changes nothing of its meaning."""
    if path is None:
        return "none in it"
    before = path.read_bytes()
    path.write_bytes(before + b"\n")
    outcomes = dict(ROW.findall(run(root, build)))
    path.write_bytes(before)
    ran = [stage for stage, outcome in outcomes.items() if outcome == "ran"]
    print(json.dumps([root.name, str(path.relative_to(root)), outcomes]), file=sys.stderr, flush=True)
    return ", ".join(ran) or "nothing"


def module_of(root: Path) -> Path:
    """The largest module that is not a package's own."""
    tops = [init.parent for init in sorted(root.glob("src/*/__init__.py")) + sorted(root.glob("*/__init__.py"))]
    packages = [top for top in tops if top.name not in {"tests", "docs"}]
    modules = [path for top in packages for path in top.rglob("*.py") if path.name != "__init__.py"]
    modules = (
        modules or [path for path in root.glob("*.py") if path.name != "setup.py"] or [packages[0] / "__init__.py"]
    )
    return max(modules, key=lambda path: path.stat().st_size)


def test_of(root: Path) -> Path | None:
    return min((path for path in root.rglob("test_*.py") if ".stagebuild" not in path.parts), default=None)


def readme_of(root: Path) -> Path:
    return min(root.glob("README*"))


if __name__ == "__main__":
    main()
