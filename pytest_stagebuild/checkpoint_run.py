"""A stage that leaves a checkpoint: its command in a sandbox, what it used, and the image of what it left."""

from __future__ import annotations

import time
import uuid as uuids
from collections.abc import Callable, Mapping

from pytest_stagebuild.checkpoint import (
    LABEL,
    RECORD_PATH,
    WORKING_DIRECTORY,
    Checkpoint,
    Record,
    key_of,
    labels_of,
)
from pytest_stagebuild.downloads import KeptDownloads
from pytest_stagebuild.engines.protocol import OutputSink, Sandbox
from pytest_stagebuild.execution import (
    Begun,
    Ground,
    StageRun,
    Workplace,
    clear_run_folder,
    image_name,
    watcher_of,
    with_own_programs,
)
from pytest_stagebuild.inputs import Inputs, Matching, Whole
from pytest_stagebuild.secrets import search
from pytest_stagebuild.stage import CheckpointStage, Sent, Stage
from pytest_stagebuild.tar import archive_of
from pytest_stagebuild.trace import PROBES, Watch, watch_files


def run_to_checkpoint(
    workplace: Workplace,
    stage: Stage,
    ground: Ground,
    components: Mapping[str, object],
    output: OutputSink,
    step: Callable[[str], None],
    *,
    begun: Begun | None = None,
    after: Sandbox | None = None,
    running: Callable[[], None] | None = None,
    leave: Callable[[Sandbox, Callable[[], object]], None] | None = None,
) -> StageRun:
    """Run a stage and commit what it left, where its command exited 0 and no secret is in what it wrote.

    ``begun`` is its sandbox, where that has been begun, else it is made ``after`` another. ``running`` is called when
    the command is about to run, ``leave`` with the sandbox and what removes it when all is done. The caller records the
    checkpoint; until then the image's own labels and record vouch for it.
    """
    name: CheckpointStage = "install" if stage.name == "install" else "build"
    uuid = begun.uuid if begun else str(uuids.uuid4())
    project = str(components["project"])
    labels = labels_of(uuid, name, key_of(components), ground.parent, project)
    files = watch_files(workplace.tree.manifest) if stage.inputs == "traced" else {}
    downloads = KeptDownloads.of(workplace, stage, ground.image.config)
    layered = None if begun else workplace.layered(ground)
    base, sent = ground.image, Sent(0, 0)
    if layered:
        ground = layered.ground
        sent = Sent(layered.upload.files, layered.upload.size)
    with workplace.sandbox(
        ground,
        labels=labels,
        network=stage.network,
        timeout=workplace.until_tested(stage),
        step=step,
        files=files,
        members=downloads.members if downloads else None,
        after=after,
        beside=watcher_of(stage),
        leave=leave,
        afterwards=layered.remove if layered else None,
        begun=begun.sandbox if begun else None,
    ) as (sandbox, upload):
        watch = Watch(sandbox) if stage.inputs == "traced" else None
        if running is not None:
            running()
        ended = sandbox.run(
            with_own_programs(sandbox, downloads.command(stage.command) if downloads else stage.command),
            cwd=WORKING_DIRECTORY,
            env={**(downloads.variables if downloads else {}), **workplace.environment(stage.env)},
            timeout=stage.timeout,
            output=output,
        )
        step("command ended")
        first = layered.upload.surprises if layered else ()
        surprises = tuple(dict.fromkeys((*first, *upload.surprises)))
        sent = Sent(sent.files + upload.files, sent.size + upload.size)
        run = StageRun(ended, upload.sent, surprises, sent, sandbox.end_processes())
        step("processes ended")
        if downloads and not ended.timed_out:
            downloads.take(sandbox)
            run.notes = tuple(downloads.notes)
            step("downloads kept")
        if ended.code != 0 or ended.timed_out:
            return run
        clear_run_folder(sandbox, before=downloads.clean_up(sandbox) if downloads else "")
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
        sandbox.put([archive_of({RECORD_PATH: run.record.to_bytes(), **PROBES})], later=True)
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
        size=max(0, run.image.size - base.size),
    )
    return run


def _declared(stage: Stage) -> Inputs:
    return Matching(stage.inputs) if isinstance(stage.inputs, tuple) else Whole()
