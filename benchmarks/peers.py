"""The ways to take a project through its stages that are compared: ``docker build``, the plugin, and the floors."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from measuring import HERE, PYTEST, environment, steps
from subjects import Subject

from pytest_stagebuild.host_env import host_settings

OTHERS = ("created", "started", "command ended", "committed", "sandbox removed")
"""The steps of a stage whose time is the engine's and the command's; all others are the plugin's own."""


@dataclass(frozen=True)
class Taken:
    """What a run took, in seconds from the start of its first process: to the first test, and to its end.

    ``steps`` are seconds too, in the order in which they came. ``stages`` are the seconds of each stage, ``sent``
    the bytes of the source that went into its sandbox, ``committed`` those of the checkpoint that it left.
    """

    whole: float
    first: float | None = None
    steps: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    sent: Mapping[str, int] = field(default_factory=dict)
    committed: Mapping[str, int] = field(default_factory=dict)

    @property
    def own(self) -> float | None:
        """What of it, up to the first test, is the plugin's own."""
        if "pytest configured" not in self.steps:
            return None
        sooner = list(self.steps)[: list(self.steps).index("first test")]
        return sum(self.steps[step] for step in sooner if not step.endswith(OTHERS))


class Peer(Protocol):
    """One way, in a folder of its own."""

    name: str

    def run(self, copy: Path) -> Taken: ...


class Docker:
    """What this benchmark makes on the Docker engine, all of it labelled, and removes."""

    def __init__(self, folder: Path, image: str) -> None:
        self._folder, self._image = folder, image
        self._label = f"stagebuild-benchmark={uuid.uuid4().hex}"
        self._known = set(self._cached())

    def base(self) -> str:
        """A base image like no other, so that nothing is cached for it: with this machine's settings for networks."""
        name = f"stagebuild-benchmark/base:{uuid.uuid4().hex}"
        folder = self._folder / "base"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "ca").mkdir(parents=True)
        (folder / "ca/nonce").write_text(name, encoding="utf-8")
        host = host_settings(os.environ)
        env = dict(host.env)
        for number, (path, content) in enumerate(host.bundles.items()):
            (folder / f"ca/{number}.pem").write_bytes(content)
            env = {key: f"/etc/benchmark/{number}.pem" if value == path else value for key, value in env.items()}
        lines = [f"FROM {self._image}", f"LABEL {self._label}", "COPY ca /etc/benchmark"]
        lines += [f"ENV {key}={json.dumps(value)}" for key, value in env.items()]
        self.build(folder, name, "\n".join(lines) + "\n")
        return name

    def rootfs(self) -> Path:
        """The files of the image that bases are made from: what the local engine runs on, as Docker on the image."""
        path = self._folder / "rootfs.tar"
        if not path.exists():
            container = succeed(["docker", "create", "--label", self._label, self._image, "true"]).strip()
            succeed(["docker", "export", "-o", str(path), container])
            succeed(["docker", "rm", container])
        return path

    def build(self, context: Path, name: str, dockerfile: str) -> None:
        path = self._folder / "Dockerfile"
        path.write_text(dockerfile, encoding="utf-8")
        succeed(["docker", "build", "-t", name, "-f", str(path), str(context)], DOCKER_BUILDKIT="1")

    def remove(self) -> None:
        """All containers and images with the label, then what builds have cached since the benchmark began.

        The label is inherited: whatever is made on the base image has it, by whomever. A build that somebody else made
        at the same time loses its cache.
        """
        marked = ["--filter", f"label={self._label}"]
        if containers := told("docker", "ps", "-aq", *marked).split():
            told("docker", "rm", "-f", *containers)
        before: list[str] = []
        # Newest first; what others stand on goes in a later turn.
        while (images := told("docker", "image", "ls", "-aq", "--no-trunc", *marked).split()) and images != before:
            told("docker", "rmi", "-f", *dict.fromkeys(images))
            before = images
        for _ in range(20):
            made = [one for one in self._cached() if one not in self._known]
            if not sum(bool(told("docker", "builder", "prune", "-af", "--filter", f"id={one}")) for one in made):
                break

    def _cached(self) -> list[str]:
        found = told("docker", "system", "df", "-v", "--format", "{{json .BuildCache}}")
        return [one["ID"] for one in json.loads(found or "[]") or []]


class DockerBuild:
    """``docker build`` and then ``docker run``, with a Dockerfile written in one of two ways."""

    def __init__(self, docker: Docker, subject: Subject, base: str, how: str) -> None:
        self.name = how
        self._docker, self._subject = docker, subject
        self._dockerfile = f"FROM {base}\n{subject.dockerfiles[how]}"
        self._image = f"stagebuild-benchmark/{how}:{uuid.uuid4().hex}"

    def run(self, copy: Path) -> Taken:
        begun = time.time()
        self._docker.build(copy, self._image, self._dockerfile)
        built = time.time()
        output = succeed(["docker", "run", "--rm", self._image, *self._subject.test.split()])
        return taken(begun, output, {"docker build": built})


class Plugin:
    """``pytest --stagebuild-source=.`` in a process of its own, with a store of its own."""

    def __init__(self, docker: Docker, subject: Subject, base: str, engine: str, cache: Path) -> None:
        self.name = engine
        self._image = str(docker.rootfs()) if engine == "local" else base
        self._witness = cache.with_suffix(".json")
        self._environ = environment(XDG_CACHE_HOME=str(cache), PYTHONPATH=str(HERE), WITNESS=str(self._witness))
        self._command = [
            *(*PYTEST, "-p", "stagebuild_witness", "--stagebuild-source=.", f"--stagebuild-engine={engine}"),
            f"--stagebuild-image={self._image}",
            f"--stagebuild-install-cmd={subject.install}",
            f"--stagebuild-build-cmd={subject.build}",
            f"--stagebuild-test-cmd={subject.test}",
            f"--stagebuild-env=BENCHMARK={base}",  # as if of another project, where checkpoints are looked for
        ]

    def prepare(self, folder: Path) -> None:
        """Let the local engine take the image in, as Docker's is pulled before: once for each store."""
        if self.name == "local":
            folder.mkdir(parents=True)
            (folder / "stagebuild.toml").write_text('install_cmd = "true"\nbuild_cmd = "true"\ntest_cmd = "true"\n')
            options = ["--stagebuild-source=.", "--stagebuild-engine=local", f"--stagebuild-image={self._image}"]
            succeed([*PYTEST, *options], cwd=folder, environ=self._environ)

    def run(self, copy: Path) -> Taken:
        begun = time.time()
        succeed(self._command, cwd=copy, environ=self._environ)
        ended = time.time()
        witness = json.loads(self._witness.read_text(encoding="utf-8"))
        output = (copy / ".stagebuild/logs/test.log").read_text(encoding="utf-8")
        found = taken(begun, output, witness["done"], ended)
        return replace(found, stages=witness["seconds"], sent=witness["sent"], committed=witness["committed"])


class InVenv:
    """The tests alone, in a virtual environment on this machine: what no container can be faster than."""

    name = "pytest in a venv"

    def __init__(self, subject: Subject, folder: Path) -> None:
        self._copy = Path(shutil.copytree(subject.root, folder / "project"))
        self._python = folder / "venv/bin/python"
        self._test = subject.test.split()[1:]
        succeed([sys.executable, "-m", "venv", str(folder / "venv")])
        path = f"{self._python.parent}{os.pathsep}{os.environ['PATH']}"
        succeed(["/bin/sh", "-c", subject.install], cwd=self._copy, environ=environment(PATH=path))

    def run(self, copy: Path) -> Taken:
        begun = time.time()
        environ = environment()
        del environ["PYTEST_PLUGINS"]
        return taken(begun, succeed([str(self._python), *self._test], cwd=self._copy, environ=environ), {})


class Command:
    """A command that only starts and ends."""

    def __init__(self, name: str, *command: str) -> None:
        self.name, self._command = name, command

    def run(self, copy: Path) -> Taken:
        begun = time.time()
        succeed(self._command)
        return Taken(time.time() - begun)


BUBBLEWRAP = Command(
    "bwrap true",
    *("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "--die-with-parent", "true"),
)


def taken(
    begun: float,
    output: str,
    done: Mapping[str, float],
    ended: float | None = None,
) -> Taken:
    """Of a run whose tests printed ``output``, and which had ended when this is called if not at ``ended``."""
    ended = ended or time.time()
    found = re.search(r"^FIRST TEST (\d+\.\d+)", output, re.MULTILINE)
    if not found:
        sys.exit(f"no test told when it began:\n{output}")
    first = float(found[1])
    all_steps = steps(begun, {**done, "first test": first, "process ended": ended})
    return Taken(ended - begun, first - begun, all_steps)


def succeed(
    command: Sequence[str], *, cwd: Path | None = None, environ: Mapping[str, str] | None = None, **more: str
) -> str:
    """What the command printed. Ends the benchmark where it failed."""
    environ = {**(environ or os.environ), **more}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def told(*command: str) -> str:
    """What the command printed, empty where it failed."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout.strip()
