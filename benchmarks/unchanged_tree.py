"""Measures how long it takes to decide that nothing has changed, in trees of 1,000 to 100,000 files.

    python benchmarks/unchanged_tree.py [--files N ...] [--runs N] [--json]

Makes a tree of small Python files, all tracked by git, and for each of the two checkpoints a record that depends on
every file. Each run is a process of its own that does what a run of the plugin does between the settings and the first
stage: it reads what is known of the tree, lists and stats its files, reads both records and compares. Beside it stand
``git status`` on the same tree, what the first look takes, which reads every file, and the memory of the process at its
peak, pytest not counted. Medians; ends with 1 where one of them passed its limit.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMITS = {10_000: 0.15, 100_000: 1.0}
"""Seconds, by the number of files."""

MEMORY = 150
"""MiB."""

UUIDS = ("3f2c1a9e-0000-4000-8000-000000000000", "3f2c1a9e-0000-4000-8000-000000000001")


def make_tree(root: Path, count: int) -> None:
    """``count`` files of 0.4 kB, fifty in a folder, in a repository that has them all."""
    for number in range(count):
        folder = root / f"package{number // 1000}" / f"part{number // 50 % 20}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"module{number}.py").write_text(f"number = {number}\n" + "x = 1\n" * 60)
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for call in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *call], check=True)


def look(root: Path) -> dict[str, float]:
    """Decide whether anything has changed; where nothing is known, see to it that the next look knows."""
    from pytest_stagebuild.checkpoint import Record, key_of
    from pytest_stagebuild.inputs import Used
    from pytest_stagebuild.source import SourceTree
    from pytest_stagebuild.source.seen import Seen
    from pytest_stagebuild.state import StateFolder

    began = time.perf_counter()
    state = StateFolder.of(root)
    known = Seen.load(state.seen)
    tree = SourceTree.read(root, known=known)
    if tree.seen is not known:
        tree.seen.save(state.seen)
    changed = False
    for uuid in UUIDS:
        record = state.record(uuid)
        if record is None:
            used = Used(frozenset(tree.manifest.entries), frozenset(tree.manifest.folders))
            state.keep_record(
                Record(uuid, "install", key_of({}), {}, "", (), time.time(), used, tree.manifest, version="")
            )
            changed = True
        else:
            changed = changed or bool(record.changes(tree.manifest))
    return {
        "seconds": time.perf_counter() - began,
        "changed": changed,
        "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_a_process(root: Path) -> dict[str, float]:
    asked = [sys.executable, __file__, "--look", str(root)]
    found: dict[str, float] = json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    return found


def measure(count: int, runs: int) -> dict[str, float]:
    """Medians, in seconds and MiB."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "tree")
        make_tree(root, count)
        time.sleep(2.5)  # files younger than that are read again, since they may change and look the same
        first = in_a_process(root)
        looks, git = [], []
        for _ in range(runs):
            looks.append(in_a_process(root))
            began = time.perf_counter()
            subprocess.run(["git", "-C", str(root), "status", "--short"], check=True, capture_output=True)
            git.append(time.perf_counter() - began)
        if any(one["changed"] for one in looks):
            raise SystemExit("a change was seen where there was none")
    return {
        "files": count,
        "first look": first["seconds"],
        "nothing changed": statistics.median(one["seconds"] for one in looks),
        "git status": statistics.median(git),
        "MiB": max(one["MiB"] for one in looks),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=int, default=[1000, 10_000, 100_000])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--look", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.look:
        print(json.dumps(look(chosen.look)))
        return 0
    found = [measure(count, chosen.runs) for count in chosen.files]
    if chosen.json:
        print(json.dumps(found))
    else:
        print(f"{'files':>8} {'first look':>12} {'nothing changed':>16} {'limit':>8} {'git status':>12} {'memory':>9}")
        for one in found:
            limit = LIMITS.get(int(one["files"]))
            print(
                f"{one['files']:>8} {one['first look']:>10.2f} s {one['nothing changed']:>14.3f} s "
                f"{f'{limit:.2f} s' if limit else '':>8} {one['git status']:>10.3f} s {one['MiB']:>5.0f} MiB"
            )
    passed = (one["nothing changed"] <= LIMITS.get(int(one["files"]), 60) and one["MiB"] <= MEMORY for one in found)
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
