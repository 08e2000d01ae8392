"""The test stage: the test command in a disposable sandbox, and what its tests tell while it runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pytest_stagebuild.ahead import Ahead
from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import OutputSink, Sandbox
from pytest_stagebuild.execution import Ground, StageRun, Workplace, with_own_programs
from pytest_stagebuild.results.channel import REPORTS, Reports, follower
from pytest_stagebuild.results.events import Event
from pytest_stagebuild.results.injection import Told
from pytest_stagebuild.results.tally import Tally
from pytest_stagebuild.secrets import redaction
from pytest_stagebuild.source import Upload
from pytest_stagebuild.stage import Sent, Stage
from pytest_stagebuild.values import dataclass


@dataclass(frozen=True)
class Suite:
    """The tests inside: where they run, the stage that runs them, what it stands on, and what their pytest is told."""

    workplace: Workplace
    stage: Stage
    ground: Ground
    told: Told

    def sandbox(
        self, step: Callable[[str], None], begun: Ahead[Sandbox] | None = None, after: Sandbox | None = None
    ) -> AbstractContextManager[tuple[Sandbox, Upload]]:
        """One in which the test command can run; ``begun`` is such a one without what is sent to it, ``after`` is one
        whose work is done.
        """
        return self.workplace.sandbox(
            self.ground,
            labels={},
            network=self.stage.network,
            timeout=self.stage.timeout,
            step=step,
            files=self.told.files(),
            writable=(REPORTS,),
            begun=begun,
            after=after,
            beside=follower(),
        )


def run_tests(
    suite: Suite,
    *,
    output: OutputSink,
    heard: Callable[[Event], None],
    step: Callable[[str], None] = lambda _: None,
    artifacts: Path | None = None,
    timeout: float | None = None,
    opened: Callable[[Sandbox], None] = lambda _: None,
    ahead: Ahead[tuple[Sandbox, Upload]] | None = None,
) -> StageRun:
    """Run the test command on what is selected; ``heard`` is given each event as it comes, by the calling thread.

    ``artifacts`` is the folder that those of the settings are copied to; ``timeout`` (in seconds) is used in place of
    the stage's; ``opened`` is given the sandbox before the command runs. ``ahead`` is the suite's sandbox where
    that has been begun.
    """
    workplace, stage, ground, told = suite.workplace, suite.stage, suite.ground, suite.told
    inside = {**dict(variable.partition("=")[::2] for variable in ground.image.config.env), **stage.env}
    tally = Tally()
    redact = redaction(workplace.redactions)

    def hear(event: Event) -> None:
        tally.take(event)
        heard(event)

    with ahead.taken(step) if ahead else suite.sandbox(step) as (sandbox, upload):
        opened(sandbox)
        reports = Reports(sandbox, redact)

        def listen() -> None:
            for event in reports.so_far():
                hear(event)

        ended = sandbox.run(
            with_own_programs(sandbox, stage.command),
            cwd=WORKING_DIRECTORY,
            env=workplace.environment({**stage.env, **told.environment(stage.command, inside)}),
            timeout=stage.timeout if timeout is None else timeout,
            output=output,
            meanwhile=listen,
        )
        step("command ended")
        for event in reports.rest():
            hear(event)
        run = StageRun(ended, upload.sent, upload.surprises, Sent(upload.files, upload.size), tally=tally)
        run.notes = (reports.problem,) if reports.problem else ()
        if workplace.settings.junit:
            from pytest_stagebuild.results.junit_files import JUnitFiles

            files = JUnitFiles(sandbox, workplace.settings.junit, redact)
            for event in files.events(known=tally.knows):
                hear(event)
            for problem in files.problems[:1]:
                tally.give_up(problem)
            run.notes += tuple(files.notes)
        if artifacts is not None and workplace.settings.artifacts:
            from pytest_stagebuild.artifacts import take_artifacts

            run.notes += take_artifacts(sandbox, workplace.settings.artifacts, artifacts)
    return run
