"""Measures the sync of a source tree into a container: times, bytes, and the memory of the process that does it.

    python benchmarks/sync.py [--size MIB] [--count FILES] [--image NAME] [--json]

Makes a tree in a temporary folder, reads it, uploads it to a container that was created and not started, changes some
of its files, and reads and uploads again. Beside it stands what ``docker cp`` takes for the same archive from a file:
what the engine itself needs. Ends with 1 where the memory passed the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MIB = 1024 * 1024
LIMIT = 150
"""What the process may use at most, in MiB."""


def make_tree(root: Path, size: int, count: int) -> None:
    """``count`` files that together have ``size`` bytes: most are small, a few larger than what is held in memory."""
    source = random.Random(0)
    weights = [source.paretovariate(1.2) for _ in range(count)]
    scale = size / sum(weights)
    left = size
    pool = source.randbytes(4 * MIB)
    for number, weight in enumerate(weights):
        length = left if number == count - 1 else min(left, int(weight * scale))
        left -= length
        path = root / f"package{number % 97}" / f"part{number % 11}" / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            # No two files have the same content.
            file.write((b"%d\n" % number)[:length])
            for start in range(file.tell(), length, len(pool)):
                file.write(pool[: length - start])
    git = ["git", "-C", os.fspath(root), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    (root / ".git/info/exclude").write_text("*.pyc\n")
    # Git's own objects would double the tree; a tracked file is all that it needs to have a view.
    subprocess.run([*git, "add", "package0/part0/module0.py"], check=True)


def measure(root: Path, image: str, changed: int) -> dict[str, float | int | str]:
    """Sync ``root`` twice; times in seconds, sizes in bytes, memory in MiB."""
    import docker

    from pytest_stagebuild.engines.protocol import Owner
    from pytest_stagebuild.source import SourceTree

    found: dict[str, float | int | str] = {}

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        found[name] = round(time.perf_counter() - start, 3)

    client = docker.from_env(timeout=600)
    found["engine"] = str(client.version()["Version"])
    with timed("read"):
        first = SourceTree.read(root)
    found["how"] = first.how
    with timed("archive alone"):
        found["archive bytes"] = sum(map(len, first.upload(None, owner=Owner(0, 0), not_before=0)))
    container = client.containers.create(image, ["true"])
    try:
        upload = first.upload(None, owner=Owner(0, 0), not_before=0)
        with timed("upload"):
            container.put_archive("/", upload)
        found["files"], found["bytes"] = upload.files, upload.size
        for path in list(first.manifest.entries)[:changed]:
            with (root / path).open("ab") as file:
                file.write(b"changed")
        with timed("read again"):
            second = SourceTree.read(root)
        upload = second.upload(first.manifest, owner=Owner(0, 0), not_before=time.time())
        with timed("upload of changes"):
            container.put_archive("/", upload)
        found["files changed"], found["bytes changed"] = upload.files, upload.size
        found["peak memory"] = peak_memory()
    finally:
        container.remove(force=True)
    archive = root.with_name(f"{root.name}.tar")
    container = client.containers.create(image, ["true"])
    try:
        with archive.open("wb") as file:
            file.writelines(first.upload(None, owner=Owner(0, 0), not_before=0))
        with archive.open("rb") as sent, timed("docker cp"):
            subprocess.run(["docker", "cp", "-", f"{container.id}:/"], check=True, stdin=sent)
    finally:
        archive.unlink(missing_ok=True)
        container.remove(force=True)
        client.close()
    return found


def peak_memory() -> float:
    """The most that this process has had in memory, in MiB.

    Not from getrusage: there a process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return round(int(line.split()[1]) / 1024, 1)


def measured_apart(root: Path, image: str, changed: int) -> dict[str, float | int | str]:
    """The same, in a process of its own, whose memory is nobody else's."""
    command = [sys.executable, __file__, "--measure", os.fspath(root), "--image", image, "--changed", str(changed)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, float | int | str] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=1024, help="of the tree, in MiB")
    parser.add_argument("--count", type=int, default=20_000, help="how many files")
    parser.add_argument("--changed", type=int, default=10, help="how many files change before the second sync")
    parser.add_argument("--image", default="python:3.11-slim")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.image, options.changed)))
        return 0
    with tempfile.TemporaryDirectory(prefix="stagebuild-sync-") as folder:
        root = Path(folder, "tree")
        make_tree(root, options.size * MIB, options.count)
        found = measured_apart(root, options.image, options.changed)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            unit = " MiB" if name == "peak memory" else " s" if isinstance(value, float) else ""
            print(f"{name:18} {value:>14,}{unit}" if not isinstance(value, str) else f"{name:18} {value}")
    memory = float(found["peak memory"])
    if memory >= LIMIT:
        print(f"the process used {memory} MiB, more than {LIMIT}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
