"""Run a command in a sandbox that holds the source as it is now, and turn the sandbox into a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import posixpath
import uuid as uuids
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import field
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Final, Literal

from pytest_stagebuild.ahead import Ahead
from pytest_stagebuild.checkpoint import (
    LABEL,
    RUN_FOLDER,
    Checkpoint,
    Record,
    key_of,
    labels_of,
)
from pytest_stagebuild.engines.protocol import CommandExit, Engine, Owner, Program, Sandbox, StoredImage, TakesLayers
from pytest_stagebuild.engines.users import ROOT
from pytest_stagebuild.errors import EngineError, ImageUnavailable
from pytest_stagebuild.host_env import HostSettings
from pytest_stagebuild.inputs import Inputs, Whole
from pytest_stagebuild.interrupts import held_back
from pytest_stagebuild.options import Settings
from pytest_stagebuild.results.tally import Tally
from pytest_stagebuild.secrets import Leak
from pytest_stagebuild.source import SourceTree, Upload, removal_script
from pytest_stagebuild.source.manifest import Manifest
from pytest_stagebuild.source.version import ScmVersion
from pytest_stagebuild.stage import Sent, Stage
from pytest_stagebuild.tar import archive_of, members_of, writable_file
from pytest_stagebuild.values import dataclass

MANY_FILES: Final = 3_000
"""From which on a source counts as large: it is worth while to spare it something that small ones are as fast with."""

_SMALL_FILE: Final = 16 << 10
_LARGEST_LAYER: Final = 1 << 30
"""In bytes: what is large is not slow for the number of its files, and a layer is held in a file on its way."""

_MOST_LAYERS: Final = 122
"""An image can have 125: one for the source, and two checkpoints."""

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
    """What every sandbox of a run shares: the engine, the source as it is now, and what commands are given.

    ``behind`` has sandboxes removed while the run goes on; without it, whoever used one waits for that.
    """

    engine: Engine
    settings: Settings
    tree: SourceTree
    host: HostSettings
    secrets: Mapping[str, str]
    version: ScmVersion | None = None
    behind: Callable[[Callable[[], object]], None] | None = None

    def environment(self, declared: Mapping[str, str]) -> dict[str, str]:
        """What a command gets beyond the image's: the host's settings, the version from git, the declared, secrets."""
        version = self.version.variables if self.version else {}
        return {**self.host.env, **version, **declared, **self.secrets}

    def until_tested(self, stage: Stage) -> float:
        """Seconds that the sandbox of a stage which leaves a checkpoint may be needed: it may stay for the tests."""
        return stage.timeout + self.settings.stages["test"].timeout

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
        members: Callable[[Owner], Iterable[bytes]] | None = None,
        to_read: bool = False,
        begun: Ahead[Sandbox] | None = None,
        after: Sandbox | None = None,
        beside: Program | None = None,
        leave: Callable[[Sandbox, Callable[[], object]], None] | None = None,
        afterwards: Callable[[], None] | None = None,
    ) -> Iterator[tuple[Sandbox, Upload]]:
        """A started sandbox on ``ground`` with the source sent; ``step`` is told each step as it is done.

        ``files`` are put in beside it, by their absolute path, and empty ones that everybody may write to at the paths
        ``writable``. ``members`` gives more for the user of the commands, as parts of an archive. One that is only
        ``to_read`` files from is started where that takes it: it costs ten times as much as the rest. ``begun`` is
        one that was made for the same by :func:`started_sandbox`; where that went wrong, it is made here. ``after``
        is one whose work is done, and ``beside`` a program, as :meth:`Engine.sandbox` has them. Where nothing was
        raised, ``leave`` is given this one and what removes it. What is to be done ``afterwards`` waits until it is
        removed.
        """
        with contextlib.ExitStack() as leaving:
            if afterwards is not None:
                leaving.callback(afterwards)
            sandbox = None
            if begun is not None:
                with contextlib.suppress(Exception):
                    sandbox = leaving.enter_context(begun.taken(step))
            is_started = sandbox is not None
            if sandbox is None:
                sandbox = leaving.enter_context(
                    _new_sandbox(
                        self.engine, ground.image, labels, network=network, timeout=timeout, after=after, beside=beside
                    )
                )
            step("created")
            upload = self.tree.upload(ground.manifest, owner=sandbox.owner, not_before=ground.created)
            bundles = {f"{RUN_FOLDER}/{posixpath.basename(path)}": data for path, data in self.host.bundles.items()}
            own = {**bundles, **files}
            ours = members_of(own) if own else b""
            more = members(sandbox.owner) if members else ()
            # Later, the image's own `tar` may do it, and they do not all agree on more than files.
            sandbox.put(chain([ours, *map(writable_file, writable)], more, upload), later=upload.is_plain)
            step("source sent")
            if upload.removed:
                sandbox.put([archive_of({f"{RUN_FOLDER}/remove.sh": removal_script(upload)})])
            if upload.removed or not to_read:
                if not is_started:
                    sandbox.start()
                step("started")
            if upload.removed:
                as_root(sandbox, f"/bin/sh {RUN_FOLDER}/remove.sh && rm -f {RUN_FOLDER}/remove.sh")
            yield sandbox, upload
            with held_back():  # or there might be one that nobody removes
                if leave is not None:
                    leave(sandbox, leaving.pop_all().close)
                elif self.behind is not None:
                    self.behind(leaving.pop_all().close)

    def layered(self, ground: Ground) -> Layered | None:
        """The source as it is now on a ground that has none of it, if it is large and the engine takes it as a layer.

        None where it is to be sent into the sandbox: also where secrets are looked for among what a sandbox was sent.
        """
        engine = self.engine
        if not isinstance(engine, TakesLayers) or not self.may_be_layered(ground):
            return None
        from pytest_stagebuild.trace import PROBES  # a run that reuses everything needs none of it

        upload = self.tree.upload(None, owner=Owner(0, 0), not_before=ground.created)
        try:
            # With the probes, a watcher proves that it sees what is done with the files of lower layers.
            archive = chain([members_of(PROBES)], upload)
            most = min(_LARGEST_LAYER, 2 * _SMALL_FILE * self.tree.manifest.count)
            image = engine.add_layer(ground.image, archive, most=most)
        except EngineError:
            return None
        if image is None:
            return None
        made = Ground(image, ground.parent, upload.sent, ground.created)
        return Layered(made, upload, partial(_remove_layered, engine, image))

    def may_be_layered(self, ground: Ground) -> bool:
        """Whether :meth:`layered` is worth a try."""
        return (
            self.tree.manifest.count >= MANY_FILES
            and self.tree.seen.known_size <= min(_LARGEST_LAYER, _SMALL_FILE * self.tree.manifest.count)
            and ground.manifest is None
            and not self.secrets
            and isinstance(self.engine, TakesLayers)
            and ground.image.config.user in ROOT
            and len(ground.image.layers) <= _MOST_LAYERS
            and not any("/.wh." in f"/{path}" for path in self.tree.manifest.entries)  # they remove files in a layer
        )


@dataclass(frozen=True)
class Layered:
    """A ground that was given the source by an upload, and how to remove its image."""

    ground: Ground
    upload: Upload
    remove: Callable[[], None]


def _remove_layered(engine: TakesLayers, image: StoredImage) -> None:
    with contextlib.suppress(EngineError):  # the next run comes to it
        engine.remove_layered(image)


def _new_sandbox(
    engine: Engine,
    image: StoredImage,
    labels: Mapping[str, str],
    *,
    network: bool,
    timeout: float,
    after: Sandbox | None = None,
    beside: Program | None = None,
) -> AbstractContextManager[Sandbox]:
    all_labels = {LABEL + "stage": "run", LABEL + "uuid": "", LABEL + "key": "", LABEL + "parent": "", **labels}
    life = timeout + _MARGIN
    return engine.sandbox(image, labels=all_labels, network=network, life=life, after=after, beside=beside)


@contextlib.contextmanager
def started_sandbox(
    engine: Engine, checkpoint: Checkpoint, *, network: bool, timeout: float, beside: Program
) -> Iterator[Sandbox]:
    """A sandbox on a checkpoint, started, with nothing sent to it yet."""
    found = engine.find_image(checkpoint.image) if checkpoint.engine == engine.identity else None
    if found is None:
        raise ImageUnavailable(f"the image of {checkpoint} is gone. Run again.")
    with _started(engine, found, {}, network=network, timeout=timeout, beside=beside) as sandbox:
        yield sandbox


@dataclass(frozen=True)
class Begun:
    """A sandbox on ``ground`` for a stage that has to run, started, with nothing sent to it yet.

    It is for the checkpoint ``uuid`` with this ``key``.
    """

    key: str
    uuid: str
    ground: Ground
    sandbox: Ahead[Sandbox]


def begin_network(workplace: Workplace, ground: Ground) -> Ahead[Sandbox]:
    """Have a network made while a stage runs, for what comes after it: a sandbox in which nothing else is done."""
    timeout = sum(stage.timeout for stage in workplace.settings.stages.values())
    opening = _started(workplace.engine, ground.image, {}, network=True, timeout=timeout)
    return Ahead(lambda _: opening)


def begin_stage(workplace: Workplace, stage: Stage, ground: Ground, components: Mapping[str, object]) -> Begun:
    """Have the sandbox of a stage made while other things go on."""
    key, uuid = key_of(components), str(uuids.uuid4())
    labels = labels_of(uuid, stage.name, key, ground.parent, str(components["project"]))
    timeout, beside = workplace.until_tested(stage), watcher_of(stage)
    opening = _started(workplace.engine, ground.image, labels, network=stage.network, timeout=timeout, beside=beside)
    return Begun(key, uuid, ground, Ahead(lambda _: opening))


def watcher_of(stage: Stage) -> Program | None:
    """What runs beside a stage to see what it uses, if that is to be seen."""
    if stage.inputs != "traced":
        return None
    from pytest_stagebuild.trace import watcher  # a run that reuses everything needs none of it

    return watcher()


@contextlib.contextmanager
def _started(
    engine: Engine,
    image: StoredImage,
    labels: Mapping[str, str],
    *,
    network: bool,
    timeout: float,
    beside: Program | None = None,
) -> Iterator[Sandbox]:
    with _new_sandbox(engine, image, labels, network=network, timeout=timeout, beside=beside) as sandbox:
        sandbox.start()
        yield sandbox


@dataclasses.dataclass
class StageRun:
    """What happened when the command of a stage ran."""

    exit: CommandExit
    sent: Manifest
    surprises: tuple[str, ...] = ()
    uploaded: Sent | None = None
    left_running: list[str] = field(default_factory=list)
    inputs: Inputs = field(default_factory=Whole)
    leak: Leak | None = None
    checkpoint: Checkpoint | None = None
    record: Record | None = None
    image: StoredImage | None = None
    tally: Tally | None = None
    notes: tuple[str, ...] = ()


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


def clear_run_folder(sandbox: Sandbox, before: str = "") -> None:
    """Remove what commands needed while they ran, before what is left becomes an image.

    ``before`` is a shell command that needs it still, with what parts it from the next.
    """
    as_root(sandbox, f"{before}rm -rf {RUN_FOLDER}")


def said_by(
    sandbox: Sandbox, command: str, *, timeout: float = 120, user: Literal["image", "root"] = "root"
) -> tuple[CommandExit, bytes]:
    """How a command of ours ended, and all that it has printed."""
    said: list[bytes] = []
    ended = sandbox.run(
        command, cwd="/", env={}, timeout=timeout, output=lambda _, piece: said.append(piece), user=user
    )
    return ended, b"".join(said)


def as_root(sandbox: Sandbox, command: str) -> None:
    """Run a step of ours. Raises :class:`EngineError` where it fails."""
    ended, said = said_by(sandbox, command)
    if ended.code != 0:
        words = said.decode(errors="replace").strip()
        raise EngineError(
            f"a step of ours failed in the sandbox (exit {ended.code}): {words or command}. "
            "The image must have /bin/sh and rm that root can run"
        )
