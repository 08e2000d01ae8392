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

from grounds import Ground

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
    ground: Ground
    environ: dict[str, str]
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def write(self, files: Mapping[str, str | bytes]) -> None:
        for path, content in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())

    def table(self, **keys: object) -> None:
        """Write a pyproject.toml with this name and these keys in its table, on the ground that it stands on."""
        lines = [f"{key} = {json.dumps(value)}" for key, value in {**self.ground.table, **keys}.items()]
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
            # Where each of its threads is: pytest has a faulthandler, and so have the workers of pytest-xdist.
            alone = os.getpgid(process.pid) != process.pid
            (os.kill if alone else os.killpg)(process.pid, signal.SIGABRT)
            output, _ = process.communicate()
            raise AssertionError(f"it did not end within {LONGEST:.0f} s:\n{output}") from None
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

    def images(self) -> list[str]:
        """The ids of this project's images on the engine."""
        return self.ground.images(project=self.name)

    def sandboxes(self) -> list[str]:
        """The names of those that processes of this project made."""
        return self.ground.sandboxes([process.pid for process in self.processes])


class ForeignProject(Project):
    """One that keeps the name it has, as others on this engine may: its images are those that its lockfile names.

    ``apart`` are options that give it checkpoints of its own all the same, on the ground that it stands on.
    """

    @property
    def apart(self) -> tuple[str, ...]:
        ground = [f"--stagebuild-{option}={value}" for option, value in self.ground.table.items()]
        return (f"--stagebuild-env=APART={self.name}", *ground)

    def images(self) -> list[str]:
        if not (self.root / ".stagebuild" / "stagebuild.lock").exists():
            return []
        return [image for checkpoint in self.checkpoints() for image in self.ground.images(uuid=checkpoint)]


@contextlib.contextmanager
def making_projects(tmp_path: Path, ground: Ground) -> Iterator[Callable[..., Project]]:
    """Makes projects, each with a name of its own, and sees that no sandbox is left and no image stays."""
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
    environ |= {**ground.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "COLUMNS": "100", "PIP_RETRIES": "10"}

    def make(folder: str = "project", kind: type[Project] = Project, **table: object) -> Project:
        project = kind(tmp_path / folder, f"test-{uuid.uuid4().hex[:12]}", ground, dict(environ))
        project.root.mkdir()
        if table or (ground.table and kind is Project):
            project.table(**table)
        projects.append(project)
        return project

    yield make

    left = [name for project in projects for name in _wound_up(project)]
    assert not left, f"sandboxes left behind: {left}"


def _wound_up(project: Project) -> list[str]:
    """End what still runs and remove what the engine keeps; gives the sandboxes that should have been gone by then."""
    for process in project.processes:
        if process.poll() is None:
            process.kill()
        if process.stdout and not process.stdout.closed:
            print(process.communicate()[0])  # nobody has read it: a test that failed shows it so
    if any(process.returncode == -signal.SIGKILL for process in project.processes):
        project.ground.sweep()
    deadline = time.monotonic() + 10
    while (left := project.sandboxes()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for name in left:
        project.ground.remove_sandbox(name)
    for image in [*project.images(), *project.images()]:  # a parent goes once its child has gone
        project.ground.remove_image(image)
    assert not project.images()
    return left
