"""The engines side by side, in one run: a disposable command, a checkpoint, and whole runs of an example.

    python benchmarks/engines.py [--engines docker local] [--runs N] [--megabytes N] [--json]

A disposable command is ``true`` in a sandbox that is made for it and removed, on the engine's own base image. A
checkpoint is the commit of a sandbox that holds so many megabytes in files of 1 MB and as many of 1 kB; removing the
sandbox counts too. Whole runs are ``pytest --stagebuild-source=examples/python-package`` in processes of their own,
without any other plugin: the first one makes everything, the base image aside; of the unchanged one, whose tests are
``true``, what an empty pytest run takes is given beside it. Medians; the runs of the engines alternate.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

from measuring import EXAMPLE, PYTEST, environment, spread

from pytest_stagebuild.engines import connect
from pytest_stagebuild.engines.protocol import Engine, StoredImage

GOALS = {
    "disposable run": 0.040,
    "checkpoint": 0.020,
    "unchanged run, less an empty pytest": 0.150,
}
"""Seconds that the local engine should stay below."""

LARGE = "for i in $(seq {count}); do head -c 1000000 /dev/urandom >l$i; head -c 1000 /dev/urandom >s$i; done"


Times = dict[str, dict[str, list[float]]]
"""Seconds, by what was done and the engine that did it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["docker", "local"])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    times: Times = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        in_process(times, chosen.engines, chosen.runs, chosen.megabytes)
        whole_runs(times, chosen.engines, chosen.runs, Path(folder))
    medians = {what: {name: statistics.median(all_) for name, all_ in by.items()} for what, by in times.items()}
    if chosen.json:
        print(json.dumps({"times": times, "medians": medians, "goals": GOALS}))
    else:
        table(medians, times, chosen.engines)
    return int(any(by.get("local", 0) > GOALS.get(what, float("inf")) for what, by in medians.items()))


def in_process(times: Times, names: list[str], runs: int, megabytes: int) -> None:
    """A disposable command and a checkpoint."""
    engines = {name: connect(name)[0] for name in names}
    images = {name: base(engine) for name, engine in engines.items()}
    for _ in range(runs):
        for name, engine in engines.items():
            taken(times, "disposable run", name, timed(partial(disposable, engine, images[name])))
    for _ in range(max(3, runs // 2)):
        for name, engine in engines.items():
            taken(times, "checkpoint", name, checkpoint(engine, images[name], megabytes))
    for engine in engines.values():
        engine.close()


def whole_runs(times: Times, names: list[str], runs: int, folder: Path) -> None:
    """Runs of the example, with the tests and without."""
    for number in range(max(3, runs // 2)):
        for name in names:
            project = folder / f"{name}-{number}"
            shutil.copytree(EXAMPLE, project, ignore=shutil.ignore_patterns(".stagebuild", "dist", "__pycache__"))
            taken(times, "first run", name, timed(partial(whole_run, name, project)))
            whole_run(name, project, "--stagebuild-test-cmd=true")
    empty = folder / "empty"
    empty.mkdir()
    for _ in range(runs):
        for name in names:
            nothing = timed(partial(pytest, empty, (0, 5)))
            unchanged = timed(partial(whole_run, name, folder / f"{name}-0", "--stagebuild-test-cmd=true"))
            taken(times, "empty pytest", name, nothing)
            taken(times, "unchanged run", name, unchanged)
            taken(times, "unchanged run, less an empty pytest", name, unchanged - nothing)


def taken(times: Times, what: str, engine: str, seconds: float) -> None:
    times.setdefault(what, {}).setdefault(engine, []).append(seconds)


def base(engine: Engine) -> StoredImage:
    name = engine.default_image or "python:3.11-slim"
    return engine.find_image(name) or engine.pull_image(name, lambda _: None)


def disposable(engine: Engine, image: StoredImage) -> None:
    with engine.sandbox(image, labels={}, network=True, life=600) as sandbox:
        sandbox.start()
        ended = sandbox.run("true", cwd="/", env={}, timeout=60, output=lambda *_: None)
        assert ended.code == 0


def checkpoint(engine: Engine, image: StoredImage, megabytes: int) -> float:
    with engine.sandbox(image, labels={}, network=True, life=600) as sandbox:
        sandbox.start()
        command = LARGE.format(count=megabytes)
        assert sandbox.run(command, cwd="/root", env={}, timeout=600, output=lambda *_: None, user="root").code == 0
        begun = time.monotonic()
        made = sandbox.commit(f"stagebuild/benchmark:{uuid.uuid4()}", {})
        sandbox.remove()
        seconds = time.monotonic() - begun
    engine.remove_image(made.id)
    return seconds


def whole_run(engine: str, project: Path, *arguments: str) -> None:
    pytest(project, (0,), "--stagebuild-source=.", f"--stagebuild-engine={engine}", *arguments)


def pytest(folder: Path, codes: tuple[int, ...], *arguments: str) -> None:
    # A salt of its own for each copy, or the second one would find the first one's checkpoints: of this benchmark's
    # last time too.
    own = [f"--stagebuild-env=COPY={folder}"] if arguments else []
    command = [*PYTEST, "-q", *arguments, *own]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(done.stdout + done.stderr)


def timed(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def table(medians: dict[str, dict[str, float]], times: Times, engines: list[str]) -> None:
    print(f"{'':<38}" + "".join(f"{name:>22}" for name in engines) + f"{'goal (local)':>15}")
    for what, by in medians.items():
        cells = "".join(f"{by[name] * 1000:9.0f} ms {spread(times[what][name]):>9}" for name in engines)
        goal = f"{GOALS[what] * 1000:8.0f} ms" if what in GOALS else ""
        print(f"{what:<38}{cells}{goal:>15}")


if __name__ == "__main__":
    sys.exit(main())
