"""Small projects, taken through their stages by a pytest process of their own on a real engine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import docker

PYTHON_IMAGE = "python:3.11-slim"
LONGEST = 300.0


@dataclass
class Run:
    """What a pytest process ended with and printed."""

    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    @property
    def summary(self) -> list[str]:
        """The lines of the section "stagebuild", with what differs from run to run made equal."""
        after = self.output.partition("= stagebuild =")[2].splitlines()[1:]
        end = next((number for number, line in enumerate(after) if line.startswith(("===", "!!!"))), len(after))
        return [steady(line) for line in after[:end]]

    def row(self, stage: str) -> str:
        """The line of a stage in the summary."""
        [row] = [line for line in self.summary if line.startswith(f"{stage} ")]
        return row

    def outcomes(self) -> dict[str, str]:
        """The word for each stage in the summary: ``ran``, ``CACHED`` and so on."""
        pattern = re.compile(r"(install|build|test) .*  (CACHED|FORCED|FAILED|ERROR|STOPPED|skipped|ran)\b")
        return {match[1]: match[2] for line in self.summary if (match := pattern.match(line))}


def steady(text: str) -> str:
    """Durations as ``0.0s``, UUIDs and digests as zeros, so that two runs print the same."""
    text = re.sub(r"\b *\d+\.\d+s\b", " 0.0s", text)
    text = re.sub(r"\bsha256:[0-9a-f]{12}\b", "sha256:" + 12 * "0", text)
    text = re.sub(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "UUID", text)
    return re.sub(r"\b[0-9a-f]{8}\b", 8 * "0", text)


def _heed_signals() -> None:
    """Where the tests run in the background of a shell, or under nohup, what they start would ignore these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@dataclass
class Project:
    """A project in ``root``; ``name`` is its own, so that no other test shares its checkpoints."""

    root: Path
    name: str
    environ: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def table(self, **keys: object) -> None:
        """Write a pyproject.toml with this name and these keys in its table."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        project = ["[project]", f'name = "{self.name}"', 'version = "1"', "", "[tool.stagebuild]", *lines, ""]
        self.write({"pyproject.toml": "\n".join(project)})

    def start(
        self,
        *arguments: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        plain: bool = True,
        python: str = sys.executable,
        new_group: bool = False,
    ) -> subprocess.Popen[str]:
        """Start pytest here; ``plain`` with no plugin but ours, ``new_group`` in a process group of its own."""
        chosen = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_stagebuild.plugin"} if plain else {}
        process = subprocess.Popen(
            [python, "-m", "pytest", *arguments],
            cwd=cwd or self.root,
            env={**self.environ, **chosen, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=new_group,
            preexec_fn=_heed_signals,  # noqa: PLW1509
        )
        self.processes.append(process)
        return process

    def pytest(self, *arguments: str, **how: object) -> Run:
        """Run pytest in the project and wait for it."""
        return self.wait(self.start(*arguments, **how))  # type: ignore[arg-type]

    def wait(self, process: subprocess.Popen[str]) -> Run:
        """Wait for a pytest process that was started, and take what it printed."""
        try:
            output, _ = process.communicate(timeout=LONGEST)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            process.communicate()
            raise
        assert "Traceback (most recent call last)" not in output, output
        assert "INTERNALERROR" not in output, output
        return Run(process.returncode, output)

    def stagebuild(self, *arguments: str, **how: object) -> Run:
        """``pytest --stagebuild-source=.`` with further arguments."""
        return self.pytest("--stagebuild-source=.", *arguments, **how)

    def git(self, *arguments: str, cwd: Path | None = None) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=cwd or self.root, check=True, capture_output=True, text=True).stdout

    def checkpoints(self) -> dict[str, dict[str, object]]:
        """The lockfile's entries by UUID."""
        lockfile = json.loads((self.root / ".stagebuild" / "stagebuild.lock").read_text())
        entries: dict[str, dict[str, object]] = lockfile["checkpoints"]
        return entries

    def images(self, client: docker.DockerClient) -> list[str]:
        """The ids of this project's images on the engine."""
        found = client.images.list(all=True, filters={"label": f"pytest-stagebuild.project={self.name}"})
        return [image.id for image in found]

    def containers(self, client: docker.DockerClient) -> list[str]:
        """The names of containers that processes of this project made."""
        found = client.api.containers(all=True, filters={"label": "pytest-stagebuild.owner"})
        # One without a name is no container any more, though an engine that was killed may still list it.
        named = [one for one in found if one["Names"]]
        owners = {one["Names"][0]: json.loads(one["Labels"]["pytest-stagebuild.owner"])["pid"] for one in named}
        pids = {process.pid for process in self.processes}
        return [name for name, pid in owners.items() if pid in pids]


class ForeignProject(Project):
    """One that keeps the name it has, as others on this engine may: its images are those that its lockfile names.

    ``apart`` is an option that gives it checkpoints of its own all the same.
    """

    @property
    def apart(self) -> str:
        return f"--stagebuild-env=APART={self.name}"

    def images(self, client: docker.DockerClient) -> list[str]:
        if not (self.root / ".stagebuild" / "stagebuild.lock").exists():
            return []
        found = client.images.list(all=True, filters={"label": "pytest-stagebuild.uuid"})
        return [image.id for image in found if image.labels["pytest-stagebuild.uuid"] in self.checkpoints()]


@contextlib.contextmanager
def making_projects(tmp_path: Path, client: docker.DockerClient) -> Iterator[Callable[..., Project]]:
    """Makes projects, each with a name of its own, and sees that no container is left and no image stays."""
    projects: list[Project] = []
    kept = (
        "PATH",
        "HOME",
        "LANG",
        "PIP_",
        "UV_",
        "SSL_",
        "REQUESTS_",
        "DOCKER_",
        "NO_PROXY",
        "HTTP",
        "http",
        "no_proxy",
    )
    environ = {name: value for name, value in os.environ.items() if name.startswith(kept)}
    # A try more costs nothing where the index answers, and a run of this suite where it does not once.
    environ |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "100", "PIP_RETRIES": "10"}

    def make(folder: str = "project", kind: type[Project] = Project, **table: object) -> Project:
        project = kind(tmp_path / folder, f"test-{uuid.uuid4().hex[:12]}", dict(environ))
        project.root.mkdir()
        if table:
            project.table(**table)
        projects.append(project)
        return project

    yield make

    left: list[str] = []
    for project in projects:
        for process in project.processes:
            if process.poll() is None:
                process.kill()
            if process.stdout and not process.stdout.closed:
                process.communicate()
        deadline = time.monotonic() + 10
        while (mine := project.containers(client)) and time.monotonic() < deadline:
            time.sleep(0.2)
        left += mine
        for name in mine:
            client.api.remove_container(name, force=True)
        for image in [*project.images(client), *project.images(client)]:  # a parent goes once its child has gone
            with contextlib.suppress(docker.errors.APIError):
                client.api.remove_image(image, force=True)
        assert not project.images(client)
    assert not left, f"containers left behind: {left}"
