"""Measures what the plugin costs a pytest run that does not ask for it.

    python benchmarks/startup.py [--pairs N] [--json]

Runs pytest on one empty test with the plugin installed and with ``-p no:stagebuild``, in turn and without any other
plugin. Each run is a fork of a process that has imported pytest, so that neither the interpreter's start nor pytest's
own blurs what is a hundredth of them. Ends with 1 where the difference passed the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import pytest

LIMIT = 5.0
"""What the plugin may cost such a run, in milliseconds."""

WITH: tuple[str, ...] = ()
WITHOUT = ("-pno:stagebuild",)

_FORM = struct.Struct("dd")


class Cost(NamedTuple):
    """Of a run, in milliseconds: by the clock, and on the processor."""

    clock: float
    processor: float


def run(folder: Path, options: tuple[str, ...]) -> Cost:
    """Run pytest in ``folder``, in a fork of this process."""
    others = {point.name for point in entry_points(group="pytest11")} - {"stagebuild"}
    quiet = [f"-pno:{name}" for name in (*sorted(others), "cacheprovider")]
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        clock, processor = time.perf_counter(), time.process_time()
        code = int(pytest.main(["-q", *quiet, *options]))
        os.write(writing, _FORM.pack(time.perf_counter() - clock, time.process_time() - processor))
        os._exit(code)
    os.close(writing)
    with open(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"pytest ended with {os.waitstatus_to_exitcode(status)}")
    clock, processor = _FORM.unpack(told)
    return Cost(clock * 1000, processor * 1000)


def measure(folder: Path, pairs: int) -> dict[str, float]:
    """Medians over ``pairs`` of runs, in milliseconds; the two of a pair stand next to each other in time."""
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (folder / "test_nothing.py").write_text("def test_nothing():\n    pass\n", encoding="utf-8")
    for options in (WITH, WITHOUT):  # the first run of each writes what Python and pytest compile
        run(folder, options)
    costs: dict[tuple[str, ...], list[Cost]] = {WITH: [], WITHOUT: []}
    for number in range(pairs):
        for options in (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH):
            costs[options].append(run(folder, options))
    found = {}
    for field in Cost._fields:
        ours, others = ([float(getattr(cost, field)) for cost in costs[options]] for options in (WITH, WITHOUT))
        found[f"with, {field}"] = statistics.median(ours)
        found[f"without, {field}"] = statistics.median(others)
        found[f"difference, {field}"] = statistics.median(a - b for a, b in zip(ours, others, strict=True))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=200, help="how many runs with the plugin, and as many without")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    sys.dont_write_bytecode = False
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="stagebuild-startup-") as folder:
        found = measure(Path(folder), options.pairs)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:22} {value:8.1f} ms")
    cost = found["difference, processor"]
    if cost >= LIMIT:
        print(f"the plugin costs {cost:.1f} ms, more than {LIMIT:.0f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
