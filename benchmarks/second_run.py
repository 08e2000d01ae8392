"""Measures a run in which nothing has changed since the one before, and where its time goes.

    python benchmarks/second_run.py [--runs N] [--project DIR] [--json]

Runs ``pytest --stagebuild-source=.`` on a copy of an example once, and then again and again, without any other plugin.
What the tests inside say that they took is taken off. Ends with 1 where the median of the rest passed the limit.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import EXAMPLE, HERE, PYTEST, environment, steps

LIMIT = 2.5
"""What such a run may take beside the tests' own time, in seconds."""


def run(project: Path, aside: Path) -> dict[str, float]:
    """One run: the seconds that each of its steps took, in order, and those of the tests inside by themselves."""
    witness = aside / "witness.json"
    environ = environment(XDG_CACHE_HOME=str(aside / "cache"), PYTHONPATH=str(HERE), WITNESS=str(witness))
    command = [*PYTEST, "-p", "stagebuild_witness", "--stagebuild-source=."]
    start = time.time()
    finished = subprocess.run(command, cwd=project, env=environ, check=False, capture_output=True, text=True)
    end = time.time()
    if finished.returncode:
        raise SystemExit(finished.stdout + finished.stderr)
    done = json.loads(witness.read_text(encoding="utf-8"))["done"]
    found = steps(start, {**done, "process ended": end})
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
