"""The four stages in order: base image, install, build, test; each made once, whoever asks first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from pytest_stagebuild.ahead import Ahead
from pytest_stagebuild.attempt import NO_TESTS, Attempt, cause_of
from pytest_stagebuild.base import ResolvedBase, resolve_base, wanted_image
from pytest_stagebuild.checkpoint import Checkpoint, key_components, key_of
from pytest_stagebuild.engines.protocol import Engine
from pytest_stagebuild.errors import EngineError, StagebuildError, StageFailed
from pytest_stagebuild.execution import Ground, StageRun, Workplace, begin_network, begin_stage, started_sandbox
from pytest_stagebuild.host_env import host_settings
from pytest_stagebuild.inputs import Matching, Whole
from pytest_stagebuild.lockfile import Lockfile
from pytest_stagebuild.observer import Observer
from pytest_stagebuild.options import Settings
from pytest_stagebuild.output import StageLog
from pytest_stagebuild.results.channel import follower
from pytest_stagebuild.results.events import Event, Session
from pytest_stagebuild.results.injection import Told
from pytest_stagebuild.results.last_failed import LastFailed
from pytest_stagebuild.runs import RunFolder
from pytest_stagebuild.sandboxes import Guess, Sandboxes
from pytest_stagebuild.selection import Selection, runs_pytest
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.source.version import scm_version
from pytest_stagebuild.stage import CHECKPOINT_NAMES, STAGES, CheckpointStage, RunReport, Stage, StageName, StageResult
from pytest_stagebuild.state import SingleFlight, StateFolder, cache_folder
from pytest_stagebuild.store import CheckpointStore, Found, Missed, describe_changes
from pytest_stagebuild.testrun import Suite, run_tests
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from pytest_stagebuild.image import Image

_SUCCEEDED: Final = ("cached", "forced", "ran")


@dataclass(frozen=True)
class PlannedStage:
    """What a run would do with a stage, and why."""

    stage: Stage
    reuse: Checkpoint | None
    reason: str


def foreseeable(settings: Settings) -> bool:
    """Whether the test stage takes a single sandbox on what is there already, if nothing has changed."""
    return settings.isolate == "stage" and settings.rebuild is None and settings.resume_from is None


def guessed(settings: Settings, engine: Engine, lockfile: Lockfile) -> Guess | None:
    """Have a sandbox started on the checkpoint that was used last, before it is known whether it can be used.

    On engines that take their time, the source is read meanwhile. To be discarded by whoever has no use for it.
    """
    newest = lockfile.read().last_used(stage="build")
    if newest is None or not foreseeable(settings):
        return None
    tests = settings.stages["test"]
    opening = started_sandbox(engine, newest, network=tests.network, timeout=tests.timeout, beside=follower())
    return Guess(newest.image, Ahead(lambda _: opening))


class Pipeline:
    """One run over one source tree.

    Stages are made when they are first asked for, with those before them; what a stage came to is remembered, failures
    included. ``run_id`` is the same in all processes of one pytest run, so that a stage which failed in one of them is
    not built again in the others.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        tree: SourceTree,
        environ: Mapping[str, str],
        observer: Observer,
        run_id: str,
        lockfile: Lockfile | None = None,
    ) -> None:
        self.settings = settings
        self.engine = engine
        self.notes: list[str] = []
        self._observer = observer
        self._results: dict[StageName, StageResult] = {}
        self._grounds: dict[StageName, Ground] = {}
        self._derived: list[str] = []
        self._resolved: ResolvedBase | None = None
        self._selection = Selection()
        self._tested_elsewhere = False
        self._colours, self._width = False, 80
        self._planned = False
        self._looked: dict[str, Found | Missed] = {}
        self._sandboxes = Sandboxes(self._note, network=settings.stages["test"].network)
        self._tests_follow = False
        self._swept = False
        host = host_settings(environ if settings.pass_host_env else {}, own_network=not engine.shares_network)
        version = scm_version(settings.source)
        self._work = Workplace(
            engine=engine,
            settings=settings,
            tree=tree,
            host=host,
            secrets={name: environ[name] for name in settings.secrets},
            version=version,
            behind=self._sandboxes.remove_behind,
        )
        self._state = StateFolder.of(settings.source)
        self._lockfile = lockfile or Lockfile(settings.lockfile)
        self._store = _store(settings, engine, self._lockfile)
        self._locks = SingleFlight(cache_folder() / "locks")
        self._run = RunFolder(cache_folder() / "runs", run_id)
        self._note(*self.tree.notes, *host.notes, self._state.note, version.problem if version else "")
        for name in CHECKPOINT_NAMES:
            inputs = settings.stages[name].inputs
            for pattern in Matching(inputs).without_files(tree.manifest) if isinstance(inputs, tuple) else ():
                self._note(f"{pattern!r} in the inputs of {name} matches no file: nothing is an input by it")

    @property
    def tree(self) -> SourceTree:
        """The source as it is now, or as it was last sent."""
        return self._work.tree

    @property
    def version(self) -> str:
        """The version worked out from git, empty where the project takes none from there."""
        return self._work.version.version if self._work.version else ""

    def base(self) -> ResolvedBase:
        """The base image, pulled where it is missing; and what ``--stagebuild-from`` names, looked up."""
        if self._resolved is None:
            try:
                self._resolved = resolve_base(self.settings, self.engine, self._store, self._lockfile, self._observer)
            except KeyboardInterrupt:
                self._note(f"interrupted before the base image {wanted_image(self.settings, self.engine)} was there")
                raise
            self._note(*self._resolved.notes)
            self._observer.base_ready(self._resolved.base)
            if self.settings.resume_from not in (None, "base"):
                self._force(str(self.settings.resume_from), self._resolved)
        return self._resolved

    def result(self, name: StageName) -> StageResult:
        """What became of a stage, after making it and those before it where that has not been done."""
        self.base()
        if name not in self._results:
            self._results[name] = self._make(self.settings.stages[name])
            self._observer.stage_finished(self._results[name])
        return self._results[name]

    def image(self, name: Literal["base", "install", "build"]) -> Image:
        """A checkpoint with the source as it is now. Raises :class:`StageFailed` where its stage did not succeed."""
        from pytest_stagebuild.image import Image  # a run without tests on the host makes none

        if name == "base":
            ground, parent = self.base().ground, None
        else:
            result = self.result(name)
            if result.outcome not in _SUCCEEDED:
                raise StageFailed(self._first_failure(result))
            ground = self._grounds[name]
            parent = result.checkpoint.parent if result.checkpoint else self.base().base.identity
        # What a test reads of a sandbox may be broken off anywhere: whoever reads it removes it.
        return Image(replace(self._work, behind=None), ground, name, parent, self._derived.append)

    def test(
        self, selection: Selection, *, tested_elsewhere: bool, colours: bool = False, width: int = 80
    ) -> StageResult:
        """Run the test stage on what is selected; ``colours`` asks for tracebacks that have them, of so many columns.

        Where there is something ``tested_elsewhere``, on the host, it is no failure that there are no tests inside.
        """
        self._selection, self._tested_elsewhere = selection, tested_elsewhere
        self._colours, self._width = colours, width
        self._note(self._state.remove_old_artifacts())
        return self.result("test")

    def begin(self, selection: Selection, *, colours: bool, width: int, guess: Guess | None = None) -> None:
        """Have the first sandbox that this run needs made while other things go on: that of the first stage which
        cannot be reused, or of the tests.

        What goes wrong will go wrong again where it is shown. A ``guess`` is used where it was right.
        """
        self._tests_follow = self.settings.isolate == "stage"
        self._selection, self._colours, self._width = selection, colours, width
        if not foreseeable(self.settings) or self._sandboxes.any_begun:
            return
        foreseen = self._foreseen()
        of_tests = foreseen is not None and foreseen[0].name == "test"
        if guess and not (of_tests and foreseen and foreseen[1].image.id == guess.image):
            self._sandboxes.remove_behind(guess.sandbox.discard)
            guess = None
        if foreseen is None:
            return
        stage, ground, components = foreseen
        if of_tests:
            self._sandboxes.begin_tests(self._suite(ground, LastFailed(self._state.last_failed)), guess=guess)
        elif not self._work.may_be_layered(ground):
            self._sandboxes.begin_stage(partial(begin_stage, self._work, stage, ground, components))

    def _foreseen(self) -> tuple[Stage, Ground, Mapping[str, object]] | None:
        """The first stage that has to run, what it stands on, and what its key is made of; None where unknown."""
        try:
            if self.engine.find_image(wanted_image(self.settings, self.engine)) is None:
                return None
            ground = self.base().ground
            for name in CHECKPOINT_NAMES:
                stage = self.settings.stages[name]
                components = self._components(stage, ground.parent)
                found = self._looked[key_of(components)] = self._store.find(components, self.tree.manifest)
                if not isinstance(found, Found):
                    return stage, ground, components
                ground = _ground_of(found)
        except (StagebuildError, OSError):
            return None
        return self.settings.stages["test"], ground, {}

    def _sweep(self) -> None:
        """Remove what killed runs have left, once: when the tests run, or at the end where they have not."""
        if self._swept:
            return
        self._swept = True
        with contextlib.suppress(EngineError):  # the next run comes to it
            if swept := self.engine.sweep():
                many = f"{len(swept)} sandboxes" if len(swept) > 1 else "a sandbox"
                self._note(f"removed {many} that a run left when it was killed")

    def remove_sandboxes(self) -> None:
        """Those that nobody uses any more, where a run is broken off; wait until they are gone."""
        self._swept = True  # the next run comes to what others have left
        self._sandboxes.discard()
        self._sandboxes.wait()

    def collect(self, selection: Selection) -> list[Event]:
        """What the tests inside tell when they are only collected; no stage is made for it.

        Raises :class:`StagebuildError`, with the reason, where there is no checkpoint to collect them on.
        """
        for one in self.plan():
            if one.stage.name != "test" and one.reuse is None:
                raise StagebuildError(f"{one.stage.name} would run first, {one.reason}")
        build = self.result("build")
        if build.outcome not in _SUCCEEDED:
            raise StageFailed(self._first_failure(build))
        events: list[Event] = []
        with self._log("test") as log:
            told = Told(selection, LastFailed(self._state.last_failed).ids, options={"collectonly": True})
            suite = Suite(self._work, self.settings.stages["test"], self._grounds["build"], told)
            run = run_tests(suite, output=log.write, heard=events.append)
        if not any(isinstance(event, Session) for event in events):
            raise StagebuildError(f"no reports arrived from the test command ({cause_of(run.exit, 0)}), see {log.path}")
        return events

    def plan(self) -> list[PlannedStage]:
        """What a run would do. Starts nothing, and nothing is pruned."""
        self._planned = True
        base = self.base()
        planned: list[PlannedStage] = []
        parent: str | None = base.ground.parent
        for name in STAGES:
            stage = self.settings.stages[name]
            if name == "test":
                planned.append(PlannedStage(stage, None, "every time"))
            elif name in self._results:
                checkpoint = self._results[name].checkpoint
                planned.append(PlannedStage(stage, checkpoint, "--stagebuild-from"))
                parent = checkpoint.uuid if checkpoint else parent
            elif parent is None:
                planned.append(PlannedStage(stage, None, f"{planned[-1].stage.name} would run"))
            elif told := self._told_to_run(name):
                planned.append(PlannedStage(stage, None, told))
                parent = None
            else:
                match self._store.find(self._components(stage, parent), self.tree.manifest):
                    case Found(checkpoint=checkpoint):
                        planned.append(PlannedStage(stage, checkpoint, ""))
                        parent = checkpoint.uuid
                    case missed:
                        planned.append(PlannedStage(stage, None, missed.reason))
                        parent = None
        return planned

    def report(self) -> RunReport:
        """What the summary tells, as far as the run has come."""
        count, size = self._store.totals() if self._resolved else (0, 0)
        results = tuple(self._results[name] for name in STAGES if name in self._results)
        points = [one.checkpoint for one in reversed(results) if one.checkpoint and one.outcome in _SUCCEEDED]
        return RunReport(
            base=self._resolved.base if self._resolved else None,
            results=results,
            rollback_points=tuple(points),
            notes=(*self.notes, *self._lockfile.warnings),
            checkpoint_count=count,
            checkpoint_bytes=size,
        )

    def close(self, *, prune: bool) -> None:
        """Remove the images that tests made, which nobody has a use for any more. To be called again does no harm.

        The process that ends the run as a whole has checkpoints pruned too: another one may still ask for them.
        """
        self._sandboxes.discard()
        if self._derived:
            from pytest_stagebuild.image import left_by_killed_runs

            with contextlib.suppress(EngineError):
                leftovers = left_by_killed_runs(self.engine)
                for image in (*reversed(self._derived), *(image.id for image in leftovers)):
                    self.engine.remove_image(image)
                self._derived.clear()
        self._store.release()
        self._sweep()
        self._sandboxes.wait()
        if prune and self._resolved and not self._planned:
            with contextlib.suppress(EngineError):  # the next run comes to it
                self._note(prune_checkpoints(self.settings, self.engine, self._lockfile))

    # The stages

    def _make(self, stage: Stage) -> StageResult:
        position = STAGES.index(stage.name)
        ground = self.base().ground
        if position:
            before = self.result(STAGES[position - 1])
            if before.outcome not in _SUCCEEDED:
                cause = self._first_failure(before)
                return StageResult(stage.name, stage.command, "skipped", reason=f"{cause.stage} failed")
            ground = self._grounds[before.stage]
        attempt = Attempt(stage, self.settings.stages["install"].command)
        try:
            return self._test(attempt, ground) if stage.name == "test" else self._checkpoint(attempt, ground)
        except (StagebuildError, OSError) as error:
            return attempt.broken_off_by(error)
        except BaseException as error:
            # Not ours to explain; but whoever asks for the stage again must not set out on it once more.
            self._results[stage.name] = attempt.broken_off_by(error)
            raise

    def _checkpoint(self, attempt: Attempt, ground: Ground) -> StageResult:
        stage = attempt.stage
        components = self._components(stage, ground.parent)
        key = key_of(components)
        told = self._told_to_run(stage.name)
        attempt.reason = told
        if not told:
            match self._looked.pop(key, None) or self._store.find(components, self.tree.manifest):
                case Found() as known:
                    reused = self._reuse(stage, known, "cached")
                    self._run.keep(key, reused)
                    return reused
                case missed:
                    attempt.reason = missed.reason
        with self._locks.hold(
            key, f"{stage.name} of {self.settings.project}", lambda holder: self._observer.waiting(stage.name, holder)
        ):
            if (shared := self._run.result(key)) and (result := self._shared(stage, shared)):
                self._sandboxes.made_elsewhere(key)
                return result
            # Somebody may have made it meanwhile. The reason is the first look's, which forgot what it missed.
            if not told and isinstance(found := self._store.find(components, self.tree.manifest), Found):
                self._sandboxes.made_elsewhere(key)
                return self._reuse(stage, found, "cached")
            result = self._run_stage(attempt, ground, components)
            self._run.keep(key, result)
            return result

    def _run_stage(self, attempt: Attempt, ground: Ground, components: Mapping[str, object]) -> StageResult:
        from pytest_stagebuild.checkpoint_run import run_to_checkpoint  # a run that reuses everything needs none of it

        stage = attempt.stage
        self._observer.stage_started(stage, attempt.reason)
        with attempt.logged(self._log(stage.name)) as log:
            run = run_to_checkpoint(
                self._work,
                stage,
                ground,
                components,
                log.write,
                lambda done: self._observer.step(stage.name, done),
                begun=self._sandboxes.for_stage(key_of(components), ground),
                after=self._sandboxes.predecessor(),
                running=partial(self._begin_network, ground) if stage.name == "install" else None,
                leave=self._sandboxes.leave if stage.name == "build" and self._tests_follow else None,
            )
        self._sandboxes.settle(run.checkpoint.size if run.checkpoint else None)
        notes = (*run.notes, *self._after(stage, run))
        if run.checkpoint is None or run.record is None or run.image is None:
            return attempt.failed(run, notes)
        ground = self._grounds[stage.name] = Ground(run.image, run.checkpoint.uuid, run.sent, run.record.created)
        if stage.name == "build" and self._tests_follow:
            self._sandboxes.begin_tests(self._suite(ground, LastFailed(self._state.last_failed)))
        self._store.add(run.checkpoint, run.record)
        self._observer.step(stage.name, "recorded")
        self._observer.checkpoint_made(run.checkpoint)
        return replace(
            attempt.succeeded(checkpoint=run.checkpoint, notes=notes),
            sent=run.uploaded,
            dependence=partial(run.inputs.describe, run.sent),
        )

    def _test(self, attempt: Attempt, ground: Ground) -> StageResult:
        stage = attempt.stage
        self._observer.stage_started(stage, "")
        last_failed = LastFailed(self._state.last_failed)
        suite = self._suite(ground, last_failed)

        def hear(event: Event) -> None:
            last_failed.take(event)
            self._observer.heard(event)

        def step(done: str) -> None:
            if done == "started":  # the engine has time now
                self._sandboxes.remove_behind(self._sweep)
            self._observer.step("test", done)

        how: Callable[..., StageRun] = partial(run_tests, ahead=self._sandboxes.for_tests(suite))
        if self.settings.isolate != "stage":
            from pytest_stagebuild.isolation import run_isolated

            how = run_isolated

        try:
            with attempt.logged(self._log("test")) as log:
                run = how(
                    suite,
                    output=log.write,
                    heard=hear,
                    step=step,
                    artifacts=self._state.artifacts,
                )
        finally:
            self._sandboxes.release()
        last_failed.keep()
        notes = (*run.notes, *self._after(stage, run))
        if run.exit.code == NO_TESTS and self._tested_elsewhere and runs_pytest(stage.command):
            return attempt.succeeded(notes=(*notes, "no tests inside the container: those selected run here"))
        return replace(attempt.tested(run, self._selection.typed, notes), sent=run.uploaded)

    def _begin_network(self, ground: Ground) -> None:
        """That of the build and the tests, while what they need is installed."""
        stages = self.settings.stages
        if self._tests_follow and self.engine.lends_networks and stages["build"].network and stages["test"].network:
            self._sandboxes.begin_network(partial(begin_network, self._work, ground))

    def _suite(self, ground: Ground, last_failed: LastFailed) -> Suite:
        told = Told(self._selection, last_failed.ids, color=self._colours, width=self._width)
        return Suite(self._work, self.settings.stages["test"], ground, told)

    def _reuse(self, stage: Stage, found: Found, outcome: Literal["cached", "forced"]) -> StageResult:
        self._grounds[stage.name] = _ground_of(found)
        notes: list[str] = []
        if stage.name == "install" and found.record.version != self.version:
            notes.append(
                f"install was made as version {found.record.version or 'unknown'}, the source is now {self.version}"
            )
        if outcome == "forced" and (changes := found.record.changes(self.tree.manifest)):
            notes.append(f"{found.checkpoint} is used as it is, though changed since: {describe_changes(changes)}")
        return StageResult(
            stage.name,
            stage.command,
            outcome,
            checkpoint=found.checkpoint,
            notes=tuple(notes),
            dependence=partial(found.record.inputs.describe, found.record.manifest),
        )

    def _shared(self, stage: Stage, result: StageResult) -> StageResult | None:
        """What another process of this run made of a stage, unless the engine has lost it since."""
        if result.checkpoint is None:
            return result
        found = self._store.opened(result.checkpoint)
        return self._reuse(stage, found, "cached") if found else None

    def _force(self, wanted: str, resolved: ResolvedBase) -> None:
        stages: tuple[CheckpointStage, ...] = ("install", "build")
        parts = {name: self._components(self.settings.stages[name], resolved.ground.parent) for name in stages}
        found = self._store.chosen(wanted, parts)
        if not self._store.stands_on(found.checkpoint, resolved.ground.parent):
            self._note(f"{found.checkpoint} was not made on {resolved.base.reference} as it is now")
        stage = found.checkpoint.stage
        if stage == "build":
            install = self.settings.stages["install"]
            parent = self._store.by_uuid(found.checkpoint.parent)
            self._results["install"] = StageResult("install", install.command, "cached", checkpoint=parent)
        self._results[stage] = self._reuse(self.settings.stages[stage], found, "forced")

    # What they need

    def _components(self, stage: Stage, parent: str) -> dict[str, object]:
        return key_components(
            stage,
            parent=parent,
            project=self.settings.project,
            engine=self.engine.name,
            platform=self.engine.platform,
            user=self.base().ground.image.config.user,
            secrets=self.settings.secrets,
            salt=self.settings.salt,
            version=self.version if stage.name == "build" else "",
        )

    def _told_to_run(self, name: StageName) -> str:
        """The option for which a stage runs whatever checkpoints there are, empty where there is none."""
        rebuild, resume = self.settings.rebuild, self.settings.resume_from
        order = ("base", *STAGES)
        if rebuild is not None and rebuild != "base" and order.index(name) >= order.index(_first_of(rebuild)):
            return "--stagebuild-rebuild"
        if resume is not None and name not in self._results:
            return f"--stagebuild-from={resume}"
        return ""

    def _log(self, stage: StageName) -> StageLog:
        return StageLog(
            self._state.path / "logs" / f"{stage}.log",
            redact=self._work.redactions,
            on_text=lambda text: self._observer.output(stage, text),
        )

    def _after(self, stage: Stage, run: StageRun) -> tuple[str, ...]:
        """Take over what was sent as the source, and say what the user should know."""
        self._work = replace(self._work, tree=replace(self.tree, manifest=run.sent))
        notes: list[str] = []
        if run.surprises:
            notes.append(
                f"changed while the run went on: {', '.join(run.surprises[:5])}; "
                f"{stage.name} used them as they were sent"
            )
        if isinstance(run.inputs, Whole) and run.inputs.why:
            self._note(f"the whole source is the input of a stage that was not traced: {run.inputs.why}")
        if run.left_running:
            notes.append(f"{stage.name} left running, ended: {', '.join(run.left_running[:5])}")
        return tuple(notes)

    def _first_failure(self, result: StageResult) -> StageResult:
        if result.outcome != "skipped":
            return result
        return next(one for one in self._results.values() if one.failure)

    def _note(self, *notes: str) -> None:
        self.notes.extend(note for note in notes if note and note not in self.notes)


def _ground_of(found: Found) -> Ground:
    return Ground(found.image, found.record.uuid, found.record.manifest, found.record.created)


def prune_checkpoints(settings: Settings, engine: Engine, lockfile: Lockfile) -> str:
    """Remove the checkpoints beyond those to be kept, and say which they were; empty where there were none."""
    return str(_store(settings, engine, lockfile).prune(settings.keep))


def _store(settings: Settings, engine: Engine, lockfile: Lockfile) -> CheckpointStore:
    state, uses = StateFolder.of(settings.source), cache_folder() / "uses"
    return CheckpointStore(engine, lockfile, state, settings.project, uses=uses)


def _first_of(rebuild: str) -> str:
    return "install" if rebuild == "all" else rebuild
