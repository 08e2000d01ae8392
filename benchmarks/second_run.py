"""Measures a run in which nothing has changed since the one before, and where its time goes.

    python benchmarks/second_run.py [--runs N] [--project DIR] [--json]

Runs ``pytest --stagebuild-source=.`` on a copy of an example once, and then again and again, without any other plugin.
What the tests inside say that they took is taken off. Ends with 1 where the median of the rest passed the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path

LIMIT = 2.5
"""What such a run may take beside the tests' own time, in seconds."""

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "python-package"

WITNESS = '''
"""Writes down when the run came to where: seconds since the epoch by the name of what was just done."""

import json, os, time

import pytest

done = {"python and pytest imported": time.time()}


def pytest_configure():
    done["pytest configured"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart():
    yield
    done["engine connected, source read"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    yield
    done["collected, base image found"] = time.time()


def pytest_stagebuild_stage_finish(result):
    if result.stage != "test":
        done[f"{result.stage}: {result.outcome}"] = time.time()


def pytest_stagebuild_step(stage, step):
    done[f"{stage}: {step}"] = time.time()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtestloop():
    yield
    done["test: sandbox removed"] = time.time()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    done["summed up"] = time.time()
    with open(os.environ["WITNESS"], "w") as file:
        json.dump(done, file)
'''


def run(project: Path, aside: Path) -> dict[str, float]:
    """One run: the seconds that each of its steps took, in order, and those of the tests inside by themselves."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environ |= {"XDG_CACHE_HOME": str(aside / "cache"), "PYTHONPATH": str(aside), "WITNESS": str(aside / "done.json")}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    others = {point.name for point in entry_points(group="pytest11")} - {"stagebuild"}
    quiet = [f"-pno:{name}" for name in sorted(others)]
    command = [sys.executable, "-m", "pytest", *quiet, "-p", "stagebuild_witness", "--stagebuild-source=."]
    start = time.time()
    finished = subprocess.run(command, cwd=project, env=environ, check=False, capture_output=True, text=True)
    end = time.time()
    if finished.returncode:
        raise SystemExit(finished.stdout + finished.stderr)
    found: dict[str, float] = {}
    before = start
    for name, at in {**json.loads((aside / "done.json").read_text(encoding="utf-8")), "process ended": end}.items():
        found[name] = at - before
        before = at
    log = (project / ".stagebuild/logs/test.log").read_text(encoding="utf-8")
    found["all"] = end - start
    found["the tests inside"] = float(re.findall(r"\bin (\d+\.\d+)s\b", log)[-1])
    found["all but these"] = found["all"] - found["the tests inside"]
    return found


def remove_checkpoints(project: Path, since: float) -> None:
    """Remove the images that were made in ``project`` after ``since``."""
    lockfile = project / ".stagebuild/stagebuild.lock"
    if not lockfile.exists():
        return
    known = json.loads(lockfile.read_text(encoding="utf-8"))["checkpoints"].values()
    made = [one for one in known if one["created"] >= since]
    for one in sorted(made, key=lambda one: one["created"], reverse=True):
        subprocess.run(["docker", "rmi", "-f", one["image"]], check=False, stdout=subprocess.DEVNULL)


def measure(source: Path, runs: int) -> dict[str, float]:
    """Medians in seconds over ``runs`` runs after a first one."""
    with tempfile.TemporaryDirectory(prefix="stagebuild-second-run-") as folder:
        aside, project = Path(folder), Path(folder, "project")
        (aside / "stagebuild_witness.py").write_text(WITNESS, encoding="utf-8")
        shutil.copytree(source, project, ignore=shutil.ignore_patterns(".stagebuild", ".git", "dist"))
        start = time.time()
        try:
            first = run(project, aside)
            print(f"first run: {first['all']:.1f} s", file=sys.stderr)
            costs = [run(project, aside) for _ in range(runs)]
        finally:
            remove_checkpoints(project, start)
    return {name: statistics.median(cost[name] for cost in costs) for name in costs[0]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=11, help="how many runs after the first")
    parser.add_argument("--project", type=Path, default=EXAMPLE, help="the project to run, of which a copy is made")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    found = measure(options.project, options.runs)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:32} {value:7.3f} s")
    rest = found["all but these"]
    if rest >= LIMIT:
        print(f"the second run took {rest:.2f} s beside its tests, more than {LIMIT}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
