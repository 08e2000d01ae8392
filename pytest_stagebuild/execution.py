"""Run a command in a sandbox that holds the source as it is now, and turn the sandbox into a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
import time
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pytest_stagebuild.artifacts import extract
from pytest_stagebuild.checkpoint import (
    LABEL,
    RECORD_PATH,
    RUN_FOLDER,
    WORKING_DIRECTORY,
    Checkpoint,
    Record,
    key_of,
    labels_of,
)
from pytest_stagebuild.engines.protocol import CommandExit, Engine, OutputSink, Sandbox, StoredImage
from pytest_stagebuild.errors import EngineError, StagebuildError
from pytest_stagebuild.host_env import HostSettings
from pytest_stagebuild.inputs import Inputs, Matching, Whole
from pytest_stagebuild.options import Settings
from pytest_stagebuild.results.tally import Tally
from pytest_stagebuild.secrets import Leak, search
from pytest_stagebuild.source import SourceTree, Upload, removal_script
from pytest_stagebuild.source.manifest import Manifest
from pytest_stagebuild.source.version import ScmVersion
from pytest_stagebuild.stage import CheckpointStage, Stage
from pytest_stagebuild.tar import archive_of, members_of, writable_file
from pytest_stagebuild.trace import PROBES, Watch, watch_files
from pytest_stagebuild.values import dataclass

_MARGIN: Final = 3600.0
"""Seconds that a sandbox may outlive its command's time limit, for uploads and commits of any size."""


@dataclass(frozen=True)
class Ground:
    """What a sandbox is created on: an image, and what of the source it holds already.

    ``parent`` is what a checkpoint made on it names as its parent; ``created`` is in seconds since the epoch.
    """

    image: StoredImage
    parent: str
    manifest: Manifest | None = None
    created: float = 0.0


@dataclass(frozen=True)
class Workplace:
    """What every sandbox of a run shares: the engine, the source as it is now, and what commands are given."""

    engine: Engine
    settings: Settings
    tree: SourceTree
    host: HostSettings
    secrets: Mapping[str, str]
    version: ScmVersion | None = None

    def environment(self, declared: Mapping[str, str]) -> dict[str, str]:
        """What a command gets beyond the image's: the host's settings, the version from git, the declared, secrets."""
        version = self.version.variables if self.version else {}
        return {**self.host.env, **version, **declared, **self.secrets}

    @property
    def redactions(self) -> tuple[str, ...]:
        """What output must not show: the secrets' values, and credentials in the host's settings."""
        return (*self.secrets.values(), *self.host.redactions)

    @contextlib.contextmanager
    def sandbox(
        self,
        ground: Ground,
        *,
        labels: Mapping[str, str],
        network: bool,
        timeout: float,
        step: Callable[[str], None] = lambda _: None,
        files: Mapping[str, bytes] = MappingProxyType({}),
        writable: Iterable[str] = (),
        to_read: bool = False,
    ) -> Iterator[tuple[Sandbox, Upload]]:
        """A started sandbox on ``ground`` with the source sent; ``step`` is told each step as it is done.

        ``files`` are put in beside it, by their absolute path, and empty ones that everybody may write to at the paths
        ``writable``. One that is only ``to_read`` files from is started where
        that takes it: it costs ten times as much as the rest.
        """
        life = timeout + _MARGIN
        all_labels = {LABEL + "stage": "run", LABEL + "uuid": "", LABEL + "key": "", LABEL + "parent": "", **labels}
        with self.engine.sandbox(ground.image, labels=all_labels, network=network, life=life) as sandbox:
            step("created")
            upload = self.tree.upload(ground.manifest, owner=sandbox.owner, not_before=ground.created)
            bundles = {f"{RUN_FOLDER}/{posixpath.basename(path)}": data for path, data in self.host.bundles.items()}
            beside = {**bundles, **files}
            members = members_of(beside) if beside else b""
            sandbox.put(chain([members, *map(writable_file, writable)], upload))
            step("source sent")
            if upload.removed:
                sandbox.put([archive_of({f"{RUN_FOLDER}/remove.sh": removal_script(upload)})])
            if upload.removed or not to_read:
                sandbox.start()
                step("started")
            if upload.removed:
                _as_root(sandbox, f"/bin/sh {RUN_FOLDER}/remove.sh && rm -f {RUN_FOLDER}/remove.sh")
            yield sandbox, upload


@dataclasses.dataclass
class StageRun:
    """What happened when the command of a stage ran."""

    exit: CommandExit
    sent: Manifest
    surprises: tuple[str, ...] = ()
    left_running: list[str] = field(default_factory=list)
    inputs: Inputs = field(default_factory=Whole)
    leak: Leak | None = None
    checkpoint: Checkpoint | None = None
    record: Record | None = None
    image: StoredImage | None = None
    tally: Tally | None = None
    notes: tuple[str, ...] = ()


def run_to_checkpoint(
    workplace: Workplace,
    stage: Stage,
    ground: Ground,
    components: Mapping[str, object],
    output: OutputSink,
    step: Callable[[str], None],
) -> StageRun:
    """Run a stage and commit what it left, where its command exited 0 and no secret is in what it wrote.

    The caller records the checkpoint; until then the image's own labels and record vouch for it.
    """
    name: CheckpointStage = "install" if stage.name == "install" else "build"
    uuid = str(uuids.uuid4())
    project = str(components["project"])
    labels = labels_of(uuid, name, key_of(components), ground.parent, project)
    files = watch_files(workplace.tree.manifest) if stage.inputs == "traced" else {}
    with workplace.sandbox(
        ground, labels=labels, network=stage.network, timeout=stage.timeout, step=step, files=files
    ) as (sandbox, upload):
        watch = Watch(sandbox) if stage.inputs == "traced" else None
        ended = sandbox.run(
            with_own_programs(sandbox, stage.command),
            cwd=WORKING_DIRECTORY,
            env=workplace.environment(stage.env),
            timeout=stage.timeout,
            output=output,
        )
        step("command ended")
        run = StageRun(ended, upload.sent, upload.surprises, sandbox.end_processes())
        step("processes ended")
        if ended.code != 0 or ended.timed_out:
            return run
        clear_run_folder(sandbox)
        run.inputs = watch.end(upload.sent) if watch else _declared(stage)
        if workplace.secrets:
            run.leak = search(workplace.secrets, sandbox.changed_files())
            step("secrets searched")
            if run.leak:
                return run
        run.record = Record(
            uuid=uuid,
            stage=name,
            key=key_of(components),
            components=components,
            parent=ground.parent,
            layers=ground.image.layers,
            created=time.time(),
            inputs=run.inputs,
            manifest=upload.sent,
            version=workplace.version.version if workplace.version else "",
        )
        sandbox.put([archive_of({RECORD_PATH: run.record.to_bytes(), **PROBES})])
        step("record written")
        run.image = sandbox.commit(image_name(project, uuid), {LABEL + "uuid": uuid})
        step("committed")
    run.checkpoint = Checkpoint(
        uuid=uuid,
        stage=name,
        key=run.record.key,
        components=components,
        parent=ground.parent,
        engine=workplace.engine.identity,
        project=project,
        image=run.image.id,
        created=run.record.created,
        used=time.time(),
        size=max(0, run.image.size - ground.image.size),
    )
    return run


def _declared(stage: Stage) -> Inputs:
    return Matching(stage.inputs) if isinstance(stage.inputs, tuple) else Whole()


def take_artifacts(sandbox: Sandbox, wanted: Iterable[str], folder: Path) -> tuple[str, ...]:
    """Copy what the tests left at the paths ``wanted`` into ``folder``, and give what is to be noted about that.

    A path below ``/src`` keeps its place relative to that, any other one its place below ``/``. How the tests ended
    stands whatever becomes of their artifacts.
    """
    notes: list[str] = []
    for one in wanted:
        path = posixpath.normpath(posixpath.join(WORKING_DIRECTORY, one))
        below_source = path.startswith(WORKING_DIRECTORY + "/")
        place = posixpath.relpath(path, WORKING_DIRECTORY if below_source else "/")
        try:
            notes += extract(sandbox.get(path), folder / posixpath.dirname(place)).notes
        except FileNotFoundError:
            notes.append(f"artifact {one} was not there after the tests")
        except StagebuildError as error:
            notes.append(f"artifact {one} was not copied out: {error}")
    return tuple(notes)


def with_own_programs(sandbox: Sandbox, command: str) -> str:
    """The command, able to find the programs that pip installs for a user who may not write where root's go.

    Images declare a USER, and seldom the folder of its own programs in PATH:
    https://pip.pypa.io/en/stable/user_guide/#user-installs.
    """
    return command if sandbox.owner.uid == 0 else f'PATH="$PATH:$HOME/.local/bin"; {command}'


def image_name(project: str, uuid: str) -> str:
    """The name under which a checkpoint's image is stored, so that it is not taken for a dangling one."""
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "-" for char in project.lower())
    return f"stagebuild/{plain.strip('-_.') or 'project'}:{uuid}"


def clear_run_folder(sandbox: Sandbox) -> None:
    """Remove what commands needed while they ran, before what is left becomes an image."""
    _as_root(sandbox, f"rm -rf {RUN_FOLDER}")


def _as_root(sandbox: Sandbox, command: str) -> None:
    said: list[bytes] = []
    ended = sandbox.run(command, cwd="/", env={}, timeout=120, output=lambda _, piece: said.append(piece), user="root")
    if ended.code != 0:
        words = b"".join(said).decode(errors="replace").strip()
        raise EngineError(
            f"a step of ours failed in the sandbox (exit {ended.code}): {words or command}. "
            "The image must have /bin/sh and rm that root can run"
        )
