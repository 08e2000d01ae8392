"""Source trees whose install and build run on a real engine, in this process, and what they make without any cache."""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Engine, Sandbox, StoredImage
from pytest_stagebuild.observer import Silent
from pytest_stagebuild.options import CommandLine, load_settings
from pytest_stagebuild.pipeline import Pipeline, PlannedStage
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.source.seen import Seen
from pytest_stagebuild.stage import RunReport, StageName

Made = dict[str, tuple[bytes, bytes | str]]
"""What lies where: the type with the executable bit, and the content or target."""


@dataclass
class Place:
    """A source tree on an engine; each run is as one of a new process. Nothing of it needs a network."""

    root: Path
    engine: Engine
    image: str
    install: str
    build: str
    report: RunReport | None = None
    seen: Seen | None = None
    runs: int = 0
    name: str = field(default_factory=lambda: f"trace-{uuid.uuid4().hex[:12]}")

    def __post_init__(self) -> None:
        self.root.mkdir(exist_ok=True)
        stages = {"install": self.install, "build": self.build, "test": "true"}
        table = "".join(
            f"[{stage}]\ncommand = {json.dumps(command)}\nnetwork = false\n" for stage, command in stages.items()
        )
        (self.root / "stagebuild.toml").write_text(
            f"image = {json.dumps(self.image)}\nsalt = {json.dumps(self.name)}\n" + table
        )

    @contextmanager
    def pipeline(self, **typed: object) -> Iterator[Pipeline]:
        self.runs += 1
        settings = load_settings(
            CommandLine(source=str(self.root), **typed),  # type: ignore[arg-type]
            default_source=self.root,
            environ={},
            invocation_dir=self.root,
        )
        tree = SourceTree.read(self.root, known=self.seen)
        self.seen = tree.seen
        pipeline = Pipeline(settings, self.engine, tree, {}, Silent(), f"{self.name}-{self.runs}")
        try:
            yield pipeline
        finally:
            pipeline.close(prune=True)
            self.report = pipeline.report()

    def run(self, **typed: object) -> dict[StageName, str]:
        """Install and build; for each stage the outcome, with the reason where it ran."""
        with self.pipeline(**typed) as pipeline:
            return {
                name: (result := pipeline.result(name)).outcome + (f": {result.reason}" if result.reason else "")
                for name in ("install", "build")
            }

    def served(self, **typed: object) -> tuple[dict[StageName, str], Made]:
        """Install and build, and what ``/src`` and ``/out`` hold then, with the source as it is now."""
        with self.pipeline(**typed) as pipeline:
            outcomes = {name: pipeline.result(name).outcome for name in ("install", "build")}
            image = pipeline.image("build")
            with image._as_it_is_now().sandbox(image._ground, labels={}, network=False, timeout=60, to_read=True) as (
                sandbox,
                _,
            ):
                return outcomes, {**made_in(sandbox, WORKING_DIRECTORY), **made_in(sandbox, "/out")}

    def plan(self) -> list[PlannedStage]:
        with self.pipeline() as pipeline:
            return pipeline.plan()

    def inputs(self, stage: StageName) -> object:
        """The inputs that the checkpoint of a stage has been recorded with."""
        assert self.report
        [result] = [result for result in self.report.results if result.stage == stage]
        assert result.checkpoint
        return json.loads((self.root / ".stagebuild" / "records" / f"{result.checkpoint.uuid}.json").read_text())[
            "inputs"
        ]

    def notes(self) -> list[str]:
        """What the last run had to say."""
        assert self.report
        return list(self.report.notes)

    def checkpoints(self) -> list[str]:
        """The checkpoints of the last run."""
        assert self.report
        return [str(result.checkpoint) for result in self.report.results]

    def images(self) -> list[str]:
        """The images of its checkpoints, those that others stand on last."""
        found = self.engine.images_with({"pytest-stagebuild.project": self.root.name})
        return [
            image.id
            for stage in ("build", "install")
            for image in found
            if image.labels["pytest-stagebuild.stage"] == stage
        ]

    def forget(self) -> None:
        """Remove every checkpoint."""
        for image in self.images():
            self.engine.remove_image(image)


@dataclass
class WithoutCache:
    """One sandbox in which install and build run one after the other, each time on nothing but the source."""

    sandbox: Sandbox

    def makes(self, place: Place) -> Made:
        tree = SourceTree.read(place.root)
        cleared = self._run(f"rm -rf {WORKING_DIRECTORY} /out /tmp/*; mkdir -m 777 /out; : >/out/kept", cwd="/")
        assert cleared == 0
        self.sandbox.put(tree.upload(None, owner=self.sandbox.owner, not_before=0))
        for command in (place.install, place.build):
            assert self._run(command, cwd=WORKING_DIRECTORY) == 0
            if "setsid" in command:
                self.sandbox.end_processes()
        return {**made_in(self.sandbox, WORKING_DIRECTORY), **made_in(self.sandbox, "/out")}

    def _run(self, command: str, cwd: str) -> int:
        return self.sandbox.run(command, cwd=cwd, env={}, timeout=120, output=lambda *_: None).code


@contextmanager
def without_cache(engine: Engine, image: StoredImage) -> Iterator[WithoutCache]:
    with engine.sandbox(image, labels={}, network=False, life=12 * 3600) as sandbox:
        sandbox.start()
        yield WithoutCache(sandbox)


def made_in(sandbox: Sandbox, folder: str) -> Made:
    made: Made = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(sandbox.get(folder)))) as tar:
        for member in tar:
            if member.isdir():
                continue  # the source has no empty folders, and what is in the others shows them
            kind = member.type if not member.islnk() else tarfile.REGTYPE
            executable = b"x" if kind == tarfile.REGTYPE and member.mode & 0o100 else b""
            content: bytes | str = member.linkname
            if kind == tarfile.REGTYPE:
                file = tar.extractfile(member)
                content = file.read() if file else b""
            made[member.name] = (kind + executable, content)
    return made


def paths_below(root: Path) -> list[str]:
    """The files and links of a source, without our own folder."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".stagebuild"]
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        found += [os.path.relpath(Path(folder) / name, root) for name in (*files, *links)]
    return sorted(found)


def quoted(operations: Sequence[str], log: str) -> str:
    """A command that runs each of these whatever becomes of the others, and writes down what they print and come to."""
    return "".join(f"( {one} ) >>{log} 2>&1; echo $? >>{log}\n" for one in operations) + "true"
