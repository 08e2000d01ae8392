"""Is it faster than writing a Dockerfile, and how close is it to the floor?

    python benchmarks/against_docker_build.py [--rounds N] [--trees FILES...] [--gib] [--json FILE] [--plot FILE.svg]

Takes a real project from PyPI, or a copy of ``--project DIR``, and generated trees through install, build and test, by
turns with ``docker build`` (BuildKit) and ``docker run``, with a naive Dockerfile and with the best that a hand would
order, and with the plugin on its engines. A round is: with nothing cached, unchanged, after an edit to a module, to a
test file, to the dependencies; each way in a copy of its own, on a base image of the round's own. The commands are the
same everywhere, and so are the image and the pytest inside. It is there before, for Docker and in the local engine's
store. Run it with a Python built as that of the image is: the pytest outside is one that ``docker build`` has none of.

Ratios are medians of the ratios within each round; the noise is that of the same thing done twice in a round. An
unchanged run is measured from its start to that of the first test, all others to their end. Ends with 1 where a goal
is missed, with 130 on Ctrl-C. What it made is removed, the layers that builds cached meanwhile too.

A tree of 100,000 files (``--trees 1000 10000 100000``) and one of 1 GiB (``--gib``) take minutes a round: docker build
is sent all of it each time, and all of it is committed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from compileall import compile_dir
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from measuring import spread
from peers import BUBBLEWRAP, Command, Docker, DockerBuild, InVenv, Peer, Plugin, Taken, told
from subjects import Subject, from_pypi, generated, project
from sync import MIB

import pytest_stagebuild

REQUIREMENT = "werkzeug==3.1.9"
INSTALL, BUILD, TESTS = "pip install -e . build pytest ephemeral-port-reserve", "python -m build", "tests/test_urls.py"

WORKS = ("cold", "unchanged", "module", "test", "dependency")

TITLES = {
    "cold": "cold, nothing cached",
    "unchanged": "unchanged, to the first test",
    "module": "after an edit to a module",
    "test": "after an edit to a test file",
    "dependency": "after a change of the dependencies",
    "floors": "floors",
}

LABELS = {
    "naive": "docker build, naive",
    "naive, again": "docker build, naive, again",
    "ordered": "docker build, hand-ordered",
    "docker": "stagebuild, docker",
    "local": "stagebuild, local",
}

AGAIN = {name: f"{name}, again" for name in ("naive", "docker run true")}
"""What is done twice in a round, to see what the noise is."""

Rounds = dict[str, dict[str, dict[str, list[Taken]]]]
"""What was taken in each round, by subject, work and peer."""


@dataclass(frozen=True)
class Goal:
    """At most ``limit`` times as long as the peer ``against``; below it where nothing else is said."""

    work: str
    peer: str
    against: str
    limit: float = 1.0
    gib: float | None = None


@dataclass(frozen=True)
class Ratio:
    """What was compared, in each round; the ``limit`` is None where there is no goal."""

    subject: str
    work: str
    what: str
    each: tuple[float, ...]
    limit: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.each)

    @property
    def missed(self) -> bool:
        return self.limit is not None and self.median > self.limit


GOALS = (
    Goal("unchanged", "docker", "naive", 1.25),
    Goal("unchanged", "local", "naive", 0.6),
    *(Goal(work, "docker", "naive", 0.6) for work in ("module", "test")),
    *(Goal(work, "docker", "ordered", 1.05) for work in ("module", "test")),
    *(Goal(work, "local", against) for work in ("module", "test") for against in ("naive", "ordered")),
    Goal("cold", "docker", "ordered", 1.1, gib=1.3),
)

REINSTALL = 0.5
"""Of the cold install, what the install after a dependency was added may take."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--project", type=Path, help=f"another than {REQUIREMENT}; a copy of it is used")
    parser.add_argument("--install", default=INSTALL)
    parser.add_argument("--build", default=BUILD)
    parser.add_argument("--tests", default=TESTS, help="the file of the project whose tests are run")
    parser.add_argument("--trees", nargs="*", type=int, default=[1000, 10_000], metavar="FILES")
    parser.add_argument("--gib", action="store_true", help="a tree of 1 GiB as well")
    parser.add_argument("--engines", nargs="+", default=["docker", "local"])
    parser.add_argument("--image", default="python:3.11-slim", help="what the base images are made from")
    parser.add_argument("--works", nargs="+", choices=WORKS[1:], default=WORKS[1:], help="what follows the cold run")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.svg")
    chosen = parser.parse_args()
    if chosen.plot and not find_spec("matplotlib"):
        parser.error("--plot needs matplotlib: pip install matplotlib, or pip install --group benchmarks")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    compile_dir(Path(pytest_stagebuild.__file__).parent, quiet=1)
    with scratch() as folder:
        docker = Docker(folder, chosen.image)
        taken: Rounds = {}
        interrupted = False
        try:
            for subject in subjects(folder / "subjects", chosen):
                taken[subject.name] = measured(subject, docker, folder, chosen)
        except KeyboardInterrupt:
            interrupted = True  # what was measured of whole projects is still told
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            docker.remove()
    found = summary(taken)
    table(taken, found)
    if chosen.json:
        chosen.json.write_text(json.dumps(report(taken, found, chosen), indent=1) + "\n", encoding="utf-8")
    if chosen.plot:
        plot(taken, chosen.plot)
    return 130 if interrupted else int(any(ratio.missed for ratio in found))


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="stagebuild-benchmark-"))
    try:
        yield folder
    finally:
        removed(folder)


def removed(folder: Path) -> None:
    """Also what an engine's store has there, in folders that cannot be looked into as they are."""

    def opened(function: object, path: str, error: tuple[object, BaseException, object]) -> None:
        if isinstance(error[1], FileNotFoundError):
            return
        os.chmod(Path(path).parent, 0o700)
        os.chmod(path, 0o700)
        shutil.rmtree(path) if Path(path).is_dir() else os.unlink(path)

    shutil.rmtree(folder, onerror=opened)


def subjects(folder: Path, chosen: argparse.Namespace) -> Iterator[Subject]:
    if chosen.project:
        ignored = shutil.ignore_patterns(".stagebuild", "dist", "__pycache__", ".venv")
        root = Path(shutil.copytree(chosen.project, folder / chosen.project.resolve().name, ignore=ignored))
    else:
        (folder / "pypi").mkdir(parents=True)
        root = from_pypi(REQUIREMENT, folder / "pypi")
    yield project(root, install=chosen.install, build=chosen.build, tests=chosen.tests)
    for files in chosen.trees:
        yield generated(folder / f"tree-{files}", files)
    if chosen.gib:
        yield generated(folder / "gib", 20_000, 1024 * MIB)


def measured(
    subject: Subject, docker: Docker, folder: Path, chosen: argparse.Namespace
) -> dict[str, dict[str, list[Taken]]]:
    works = ["cold", *(work for work in chosen.works if subject.can_depend or work != "dependency")]
    taken: dict[str, dict[str, list[Taken]]] = {}
    own_floors = [InVenv(subject, folder / "venv")] if subject.can_depend else []
    for number in range(chosen.rounds):
        base, place = docker.base(), folder / f"round-{number}"
        peers: list[Peer] = [DockerBuild(docker, subject, base, how) for how in subject.dockerfiles]
        plugins = [Plugin(docker, subject, base, engine, place / f"cache-{engine}") for engine in chosen.engines]
        for plugin in plugins:
            plugin.prepare(place / f"prepared-{plugin.name}")
        peers += plugins
        copies = {peer.name: subject.copy_to(place / peer.name / "project") for peer in peers}
        # By turns, and each in another place in every round.
        peers = [*peers[number % len(peers) :], *peers[: number % len(peers)]]
        for work in works:
            for peer in peers:
                subject.edit(copies[peer.name], work, number)
                take(taken, subject, work, peer.name, partial(peer.run, copies[peer.name]))
            if work == "unchanged":
                naive = next(peer for peer in peers if peer.name == "naive")
                take(taken, subject, work, AGAIN["naive"], partial(naive.run, copies["naive"]))
        if subject.can_depend:
            run = ("docker", "run", "--rm", base, "true")
            floors: list[Peer] = [Command(name, *run) for name in ("docker run true", AGAIN["docker run true"])]
            floors += [BUBBLEWRAP] if shutil.which("bwrap") else []
            for peer in (*floors, *own_floors):
                take(taken, subject, "floors", peer.name, partial(peer.run, folder))
        removed(place)
        docker.remove()
        os.sync()  # or the next round waits for this one's bytes
    removed(folder / "venv")
    removed(subject.root)
    return taken


def take(taken: dict[str, dict[str, list[Taken]]], subject: Subject, work: str, peer: str, run: partial[Taken]) -> None:
    now = run()
    taken.setdefault(work, {}).setdefault(peer, []).append(now)
    print(f"{subject.name}: {work}, {peer}: {seconds(work, now):.2f} s", file=sys.stderr, flush=True)


def seconds(work: str, one: Taken) -> float:
    """What is compared of a run: how soon an unchanged one is at its tests, and how soon any other is over."""
    return one.first if work == "unchanged" and one.first is not None else one.whole


def ratios(work: str, ones: Sequence[Taken], others: Sequence[Taken]) -> tuple[float, ...]:
    return tuple(seconds(work, one) / seconds(work, other) for one, other in zip(ones, others, strict=True))


def summary(taken: Rounds) -> list[Ratio]:
    """Every ratio that has a goal, or says what the noise is."""
    found: list[Ratio] = []
    for subject, works in taken.items():
        for goal in GOALS:
            by = works.get(goal.work, {})
            if goal.peer in by and goal.against in by:
                what = f"{LABELS[goal.peer]} / {LABELS[goal.against]}"
                limit = goal.gib if goal.gib and "GiB" in subject else goal.limit
                found.append(Ratio(subject, goal.work, what, ratios(goal.work, by[goal.peer], by[goal.against]), limit))
        for engine in ("docker", "local"):
            if engine in works.get("dependency", {}):
                pairs = zip(works["dependency"][engine], works["cold"][engine], strict=True)
                each = tuple(now.stages["install"] / cold.stages["install"] for now, cold in pairs)
                found.append(Ratio(subject, "dependency", f"{LABELS[engine]}: install / cold install", each, REINSTALL))
        for work, one in (("unchanged", "naive"), ("floors", "docker run true")):
            if again := works.get(work, {}).get(AGAIN[one]):
                each = ratios(work, again, works[work][one])
                found.append(Ratio(subject, "noise", f"{LABELS.get(one, one)}, twice", each))
    return found


def table(taken: Rounds, found: list[Ratio]) -> None:
    for subject, works in taken.items():
        print(
            f"\n{subject}; medians of {max(len(all_) for by in works.values() for all_ in by.values())} rounds, in ms"
        )
        for work, by in works.items():
            print(f"  {TITLES[work]}")
            for peer, runs in by.items():
                values = [seconds(work, one) for one in runs]
                own = [one.own for one in runs if one.own is not None]
                part = f"  its own {statistics.median(own) * 1000:6.0f}" if own else ""
                for what, by_stage in (("sent", runs[-1].sent), ("committed", runs[-1].committed)):
                    sizes = [f"{stage} {size / 1e6:.1f}" for stage, size in by_stage.items() if size]
                    part += f"  {what} in MB: {', '.join(sizes)}" if sizes else ""
                middle = statistics.median(values) * 1000
                print(f"    {LABELS.get(peer, peer):<28}{middle:8.0f}  {spread(values):>13}{part}")
            if work == "floors" and BUBBLEWRAP.name not in by:
                print(f"    {BUBBLEWRAP.name:<28} missing: apt-get install bubblewrap")
        for ratio in (one for one in found if one.subject == subject):
            judged = "" if ratio.limit is None else f"  goal {ratio.limit:4.2f}  {'MISSED' if ratio.missed else 'met'}"
            each = spread(ratio.each, 1, 2)
            print(f"  {ratio.work:<11}{ratio.what:<58}{ratio.median:6.2f}  {each:>11}{judged}")
        parts(works)


def parts(works: dict[str, dict[str, list[Taken]]]) -> None:
    """Where the time goes: the steps of each way that has any."""
    print("  where the time goes, in ms")
    for work, by in works.items():
        for peer, found in stepped(by).items():
            print(f"    {work}, {LABELS[peer]}")
            print("      " + "; ".join(f"{name} {value * 1000:.0f}" for name, value in found.items()))


def stepped(by: dict[str, list[Taken]]) -> dict[str, dict[str, float]]:
    """The medians of the steps, by peer."""
    return {peer: medians(by[peer]) for peer in ("naive", "ordered", "docker", "local") if peer in by}


def medians(runs: Sequence[Taken]) -> dict[str, float]:
    names = dict.fromkeys(name for one in runs for name in one.steps)
    return {name: statistics.median([one.steps[name] for one in runs if name in one.steps]) for name in names}


def report(taken: Rounds, found: list[Ratio], chosen: argparse.Namespace) -> dict[str, object]:
    """What is written as JSON: seconds, bytes, and ratios."""
    return {
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "pytest": version("pytest"),
            "docker": told("docker", "version", "--format", "{{.Server.Version}}"),
            "bubblewrap": told("bwrap", "--version") if shutil.which("bwrap") else None,
        },
        "commands": {"install": chosen.install, "build": chosen.build, "tests": chosen.tests},
        "ratios": [{**asdict(one), "median": one.median, "missed": one.missed} for one in found],
        "runs": {
            subject: {
                work: {peer: [asdict(one) for one in runs] for peer, runs in by.items()} for work, by in works.items()
            }
            for subject, works in taken.items()
        },
        "steps": {
            subject: {work: stepped(by) for work, by in works.items() if work != "floors"}
            for subject, works in taken.items()
        },
    }


def plot(taken: Rounds, path: Path) -> None:
    """A bar for each way, its median, with a line from the fastest to the slowest round; a panel for each work."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "stagebuild"
    from matplotlib import pyplot as plt

    panels = [(subject, work, by) for subject, works in taken.items() for work, by in works.items()]
    heights = [len(by) + 1.2 for _, _, by in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.26 * sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for axis, (subject, work, by) in zip(axes[:, 0], panels, strict=True):
        for peer, runs in by.items():
            values = [seconds(work, one) for one in runs]
            middle = statistics.median(values)
            label = LABELS.get(peer, peer)
            axis.barh(label, middle, color="#3b6ea5" if peer in {"docker", "local"} else "#b8bec6", height=0.7)
            axis.plot([min(values), max(values)], [label, label], color="#333333", linewidth=1)
            axis.text(max(values), label, f"  {middle:.2f} s", va="center", fontsize=8)
        axis.invert_yaxis()
        axis.set_xlim(left=0, right=axis.get_xlim()[1] * 1.12)
        axis.set_xticks([])
        axis.tick_params(left=False, labelsize=8)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.set_title(f"{subject}: {TITLES[work]}", loc="left", fontsize=9)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
