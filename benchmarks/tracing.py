"""What it costs to trace a stage: the same command with inputs "traced" and "all", by turns.

Compared is the time from the started sandbox to the written record; what comes before and after, sending the source and
the commit, is the same for both and varies by more than the difference.

python benchmarks/tracing.py [--files N] [--folders N] [--runs N]

Ends with 1 where the difference of the medians passes the limit: 5 % of the stage or 100 ms, whichever is larger.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

from pytest_stagebuild.engines import connect
from pytest_stagebuild.observer import Silent
from pytest_stagebuild.options import CommandLine, load_settings
from pytest_stagebuild.pipeline import Pipeline
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.stage import StageName

COMMANDS = {
    "nothing": "true",
    "all files read": "find . -type f -exec cat {} + | sha256sum",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--folders", type=int, default=500)
    parser.add_argument("--runs", type=int, default=7)
    chosen = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        root = Path(folder) / "source"
        for number in range(chosen.files):
            path = root / f"d{number % chosen.folders}" / f"f{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"number = {number}\n" * 20)
        print(f"{chosen.files} files in {chosen.folders} folders, medians of {chosen.runs} runs")
        print(f"{'command':<16} {'all':>8} {'traced':>8} {'cost':>8} {'limit':>8}")
        for name, command in COMMANDS.items():
            times: dict[str, list[float]] = {"all": [], "traced": []}
            whole: list[float] = []
            for _ in range(chosen.runs):
                for inputs, taken in times.items():
                    seconds, all_of_it = stage(root, command, inputs)
                    taken.append(seconds)
                    whole.append(all_of_it)
            medians = {inputs: statistics.median(taken) for inputs, taken in times.items()}
            cost, limit = medians["traced"] - medians["all"], max(0.1, 0.05 * statistics.median(whole))
            failed |= cost > limit
            took = " ".join(f"{median:7.3f}s" for median in medians.values())
            print(f"{name:<16} {took} {cost * 1000:6.0f}ms {limit * 1000:6.0f}ms")
    return int(failed)


class Steps(Silent):
    """When each step of the stage was done."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def step(self, stage: StageName, done: str) -> None:
        self.times[done] = time.monotonic()


def stage(root: Path, command: str, inputs: str) -> tuple[float, float]:
    """The seconds from the started sandbox to the written record, and those of the whole stage."""
    salt = uuid.uuid4().hex
    (root / "stagebuild.toml").write_text(
        f'salt = "{salt}"\nbuild_cmd = "true"\ntest_cmd = "true"\n'
        f"[install]\ncommand = {json.dumps(command)}\ninputs = {json.dumps(inputs)}\n"
    )
    settings = load_settings(CommandLine(source=str(root)), default_source=root, environ={}, invocation_dir=root)
    engine, _ = connect("docker")
    steps = Steps()
    pipeline = Pipeline(settings, engine, SourceTree.read(root), {}, steps, salt)
    result = pipeline.result("install")
    pipeline.close(prune=False)
    if result.outcome != "ran" or result.checkpoint is None or any("not traced" in note for note in pipeline.notes):
        sys.exit(f"{result} {pipeline.notes}")
    engine.remove_image(result.checkpoint.image)
    engine.close()
    return steps.times["record written"] - steps.times["started"], result.duration


if __name__ == "__main__":
    sys.exit(main())
