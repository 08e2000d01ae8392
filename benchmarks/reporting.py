"""What it costs the tests inside that they report, and what the run outside takes beside them.

    python benchmarks/reporting.py [--engines local docker] [--pairs N] [--tests N] [--json]
    python benchmarks/reporting.py --instructions [--tests N]

Pairs of runs of a suite of trivial tests, each in a disposable sandbox off one checkpoint, with and without the
reporter, which of them first by turns: for the other of a pair its folder is taken out of PYTHONPATH, and all else is
the same. Of each the wall and CPU time of the pytest inside are taken, from its start to its end, and the wall time of
the whole run outside. In a third run the reporter writes to a file that nobody reads: what "reported" takes longer than
this "unread" comes of the work outside, which goes on at the same time and shares the processor's caches and cores.
Medians; what two runs without the reporter, one after the other, differ by is the noise. Ends with 1 where the median
of the pairs' ratios of wall time inside passed the goal. The CPU time says the same with less noise where other work
goes on.

With ``--instructions``, no time is taken: counted is what the reporter makes the processor do (valgrind), in a pytest
of this Python without an engine. However busy a machine is, that is the same within 0.1 %; the work outside, which
shows the reports at the same time, is no part of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from measuring import PYTEST, environment, spread

from pytest_stagebuild.checkpoint import LABEL
from pytest_stagebuild.engines import connect
from pytest_stagebuild.results.channel import INSIDE, REPORTS
from pytest_stagebuild.results.injection import Told
from pytest_stagebuild.selection import Selection

GOAL = 1.10
"""Of the time with the reporter to that without it."""

FILES = 20

TIMED = """\
import json, os, shutil, subprocess, sys, time
if sys.argv[1] != "reported":
    paths = os.environ.pop("PYTHONPATH", "").split(os.pathsep)
    [folder] = [path for path in paths if os.path.exists(os.path.join(path, "stagebuild_inside.py"))]
    paths.remove(folder)
    if sys.argv[1] == "unread":
        paths.append(shutil.copytree(folder, "/tmp/copy"))
    os.environ.update({"PYTHONPATH": os.pathsep.join(paths)} if any(paths) else {})
begun = time.monotonic()
code = subprocess.call(sys.argv[2:])
wall, cpu = time.monotonic() - begun, os.times()
print("\\nTIMES", json.dumps([wall, cpu.children_user + cpu.children_system]), flush=True)
sys.exit(code)
"""

PROJECT = "stagebuild-reporting-benchmark"

TABLE = f"""\
[project]
name = "{PROJECT}"
version = "1"

[tool.stagebuild]
install_cmd = "pip install pytest"
build_cmd = "true"
install.inputs = ["pyproject.toml"]
build.inputs = ["pyproject.toml"]
"""

MEASURES = ("pytest inside, wall", "pytest inside, CPU", "whole run outside", "outside less inside")

HOWS = ("alone", "unread", "reported")

Times = dict[str, dict[str, list[float]]]
"""Seconds, by what was measured and whether it was "alone", "unread" or "reported"."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["local"])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--instructions", action="store_true")
    chosen = parser.parse_args()
    if chosen.instructions:
        return count(chosen.tests)
    with tempfile.TemporaryDirectory(prefix="stagebuild-reporting-") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        project = Path(folder, "project")
        make(project, chosen.tests)
        times = {engine: measure(project, engine, chosen.pairs, chosen.tests) for engine in chosen.engines}
    found = {engine: ratios(by) for engine, by in times.items()}
    if chosen.json:
        print(json.dumps({"times": times, "ratios": found, "goal": GOAL}))
    else:
        for engine in chosen.engines:
            table(engine, times[engine], found[engine])
    return int(any(statistics.median(by[MEASURES[0]]) > GOAL for by in found.values()))


def make(project: Path, tests: int) -> None:
    project.mkdir()
    (project / "pyproject.toml").write_text(TABLE)
    (project / "timed.py").write_text(TIMED)
    for number in range(FILES):
        names = range(number, tests, FILES)
        (project / f"test_{number:02}.py").write_text("".join(f"def test_{name}():\n    pass\n\n\n" for name in names))


def count(tests: int) -> int:
    with tempfile.TemporaryDirectory(prefix="stagebuild-reporting-") as folder:
        project, beside = Path(folder, "project"), Path(folder, "beside")
        make(project, tests)
        told = Told(Selection())
        for path, content in {**told.files(), REPORTS: b""}.items():
            target = beside / Path(path).relative_to(INSIDE)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        alone = instructions(project, {})
        with_reports = instructions(project, {"PYTHONPATH": str(beside), "PYTEST_PLUGINS": "stagebuild_inside"})
        if (told_of := (beside / "reports").read_bytes().count(b'{"event":"passed"')) != tests:
            sys.exit(f"{told_of} of {tests} tests were told of")
    ratio = with_reports / alone
    print(f"{tests} tests: {alone / 1e6:.0f} million instructions, with reports {with_reports / 1e6:.0f}: {ratio:.3f}")
    return int(ratio > GOAL)


def instructions(project: Path, env: Mapping[str, str]) -> int:
    counted = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    environ = environment(PYTHONHASHSEED="0", **{"PYTEST_PLUGINS": "", **env})
    command = [*counted, *PYTEST]
    try:
        done = subprocess.run(command, cwd=project, env=environ, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit("there is no valgrind: apt-get install valgrind")
    found = re.search(r"I +refs: +([\d,]+)", done.stderr)
    if done.returncode or found is None:
        sys.exit(done.stdout + done.stderr)
    return int(found[1].replace(",", ""))


def measure(project: Path, engine: str, pairs: int, tests: int) -> Times:
    times: Times = {what: {how: [] for how in HOWS} for what in MEASURES}
    run(project, engine, "reported", tests)
    for number in range(pairs):
        for how in (*HOWS[number % len(HOWS) :], *HOWS[: number % len(HOWS)]):
            for what, seconds in zip(MEASURES, run(project, engine, how, tests), strict=True):
                times[what][how].append(seconds)
    with closing(connect(engine)[0]) as connected:
        for image in connected.images_with({LABEL + "project": PROJECT}):
            connected.remove_image(image.id)
    return times


def run(project: Path, engine: str, how: str, tests: int) -> tuple[float, ...]:
    """One run outside: the seconds of each measure."""
    options = [
        "--stagebuild-source=.",
        f"--stagebuild-engine={engine}",
        f"--stagebuild-env=COPY={project}",  # checkpoints of its own
        f"--stagebuild-test-cmd=python timed.py {how} python -m pytest",
    ]
    begun = time.monotonic()
    command = [*PYTEST, *options]
    # To a file: to read along from a pipe would take this process time of the same processor.
    with tempfile.TemporaryFile("w+") as output:
        code = subprocess.call(command, cwd=project, env=environment(), stdout=output, stderr=output)
        outside = time.monotonic() - begun
        output.seek(0)
        printed = output.read()
    log = (project / ".stagebuild" / "logs" / "test.log").read_text()
    # Each has told or not, as it should: or the one would be compared with itself.
    passed = f"{tests + 2} passed in" if how == "reported" else "3 passed in"
    if code or passed not in printed or f"{tests} passed in" not in log:
        sys.exit(printed)
    wall, cpu = json.loads(log.rpartition("TIMES ")[2].splitlines()[0])
    return wall, cpu, outside, outside - wall


def ratios(times: Times) -> dict[str, list[float]]:
    """By measure, of each pair, the time with the reporter to that without; "noise" of one without to the next."""
    found = {
        what: [one / other for one, other in zip(by["reported"], by["alone"], strict=True)]
        for what, by in times.items()
    }
    alone = times[MEASURES[0]]["alone"]
    wall = times[MEASURES[0]]
    cpu = times[MEASURES[1]]
    found["unread, wall"] = [one / other for one, other in zip(wall["unread"], wall["alone"], strict=True)]
    found["unread, CPU"] = [one / other for one, other in zip(cpu["unread"], cpu["alone"], strict=True)]
    found["noise"] = [after / before for before, after in itertools.pairwise(alone)]
    return found


def table(engine: str, times: Times, found: dict[str, list[float]]) -> None:
    print(f"{engine:<24}{'alone':>22}{'unread':>22}{'reported':>22}{'ratio':>22}{'goal':>8}")
    for what in MEASURES:
        cells = "".join(
            f"{statistics.median(values) * 1000:9.0f} ms {spread(values, 1000, 0):>9}"
            for values in times[what].values()
        )
        ratio = f"{statistics.median(found[what]):10.3f} {spread(found[what], 1, 2):>11}"
        print(f"{what:<24}{cells}{ratio}{f'{GOAL:8.2f}' if what == MEASURES[0] else ''}")
    for what in ("unread, wall", "unread, CPU", "noise"):
        if values := found[what]:
            print(f"{what:<90}{statistics.median(values):10.3f} {spread(values, 1, 2):>11}")
    print()


if __name__ == "__main__":
    sys.exit(main())
