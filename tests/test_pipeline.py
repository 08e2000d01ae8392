"""The stages in order on a fake engine: what is made, what is reused, and that nothing old is ever served."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

sys.path.insert(0, str(Path(__file__).parent / "engines"))

from fake import FakeEngine

from pytest_stagebuild.attempt import NO_TESTS_COLLECTED
from pytest_stagebuild.errors import ConfigurationError, EngineError, StageFailed
from pytest_stagebuild.lockfile import Lockfile
from pytest_stagebuild.observer import Silent
from pytest_stagebuild.options import CommandLine, load_settings
from pytest_stagebuild.pipeline import Pipeline, guessed
from pytest_stagebuild.selection import Selection
from pytest_stagebuild.source import SourceTree

TABLE = """
[project]
name = "thing"
version = "1"

[tool.stagebuild]
install_cmd = "cat a.txt > installed.txt"
build_cmd = "cat installed.txt b.txt > built.txt"
test_cmd = "cat built.txt c.txt"
"""

FILES = {"pyproject.toml": TABLE, "a.txt": "a", "b.txt": "b", "c.txt": "c"}


class Heard(Silent):
    """What an observer is told, as words."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.output_text = ""

    def stage_started(self, stage, reason):
        self.words.append(f"{stage.name} started: {reason}")

    def output(self, stage, text):
        if stage == "test":
            self.output_text += text


class Place:
    """A source tree and an engine, from which runs start afresh as processes do."""

    def __init__(self, root: Path, engine: FakeEngine | None = None) -> None:
        self.root = root
        self.engine = engine or FakeEngine()
        self.runs = 0
        root.mkdir(exist_ok=True)
        for path, text in FILES.items():
            (root / path).write_text(text)

    def open(self, environ: dict[str, str] | None = None, **typed: object) -> Pipeline:
        self.runs += 1
        self.heard = Heard()
        self.settings = load_settings(
            CommandLine(source=str(self.root), **typed),  # type: ignore[arg-type]
            default_source=self.root,
            environ=environ or {},
            invocation_dir=self.root,
        )
        tree = SourceTree.read(self.root)
        return Pipeline(
            self.settings, self.engine, tree, environ or {}, self.heard, run_id=f"{self.root.name}-{self.runs}"
        )

    def run(self, environ: dict[str, str] | None = None, **typed: object) -> dict[str, str]:
        """All stages; the outcome of each."""
        pipeline = self.open(environ, **typed)
        pipeline.begin(Selection(), colours=False, width=80)
        pipeline.test(Selection(), tested_elsewhere=False)
        pipeline.close(prune=True)
        assert not self.engine.sandboxes
        self.report = pipeline.report()
        return {result.stage: result.outcome for result in self.report.results}

    def reason(self, stage: str) -> str:
        return next(result.reason for result in self.report.results if result.stage == stage)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path: Path, cache) -> Place:
    return Place(tmp_path / "source")


ALL_RAN = {"install": "ran", "build": "ran", "test": "ran"}
REUSED = {"install": "cached", "build": "cached", "test": "ran"}


def test_stages_run_in_order_and_each_on_what_the_one_before_left(place):
    assert place.run() == ALL_RAN
    assert place.heard.words == ["install started: first run", "build started: first run", "test started: "]
    assert place.heard.output_text == "abc"


def test_a_second_run_reuses_both_checkpoints_and_tests_in_a_new_sandbox(place):
    place.run()
    assert place.run() == REUSED
    assert place.heard.output_text == "abc"


def begun(place: Place, **typed: object) -> tuple[Pipeline, list[str]]:
    """A run whose tests have been begun, and the sandboxes that there are then."""
    pipeline = place.open(**typed)
    pipeline.begin(Selection(), colours=False, width=80)
    for one in filter(None, (pipeline._sandboxes._of_tests, pipeline._sandboxes._of_stage)):
        one.sandbox._entered._thread.join()
    return pipeline, list(place.engine.sandboxes)


def test_the_sandbox_that_was_begun_is_the_one_that_the_tests_run_in(place):
    place.run()
    pipeline, sandboxes = begun(place)
    assert len(sandboxes) == 1
    place.engine.calls.clear()
    pipeline.test(Selection(), tested_elsewhere=False)
    assert "run" in place.engine.calls
    assert "sandbox" not in place.engine.calls
    pipeline.close(prune=True)
    assert place.heard.output_text == "abc"
    assert not place.engine.sandboxes


def test_what_was_begun_for_other_tests_is_not_used(place):
    place.run()
    pipeline, sandboxes = begun(place)
    place.engine.calls.clear()
    pipeline.test(Selection(paths=("test_a.py",)), tested_elsewhere=False)
    assert "sandbox" in place.engine.calls
    assert sandboxes
    pipeline.close(prune=True)
    assert not place.engine.sandboxes


def test_what_was_begun_and_not_asked_for_is_removed(place):
    place.run()
    pipeline, sandboxes = begun(place)
    pipeline.close(prune=True)
    assert sandboxes
    assert not place.engine.sandboxes


def guess_and_test(place: Place, *, failing: bool = False) -> tuple[str, int, int]:
    """A run that begins before it reads the source: what its test stage came to, and how many sandboxes were made."""
    place.open()
    place.engine.calls.clear()
    place.engine.fail_at.update({"sandbox": EngineError("full")} if failing else {})
    guess = guessed(place.settings, place.engine, Lockfile(place.settings.lockfile))
    assert guess is not None
    guess.sandbox._entered._thread.join()
    place.engine.fail_at.clear()
    begun = place.engine.calls.count("sandbox")
    pipeline = place.open()
    pipeline.begin(Selection(), guess=guess, colours=False, width=80)
    result = pipeline.test(Selection(), tested_elsewhere=False)
    pipeline.close(prune=True)
    assert not place.engine.sandboxes
    return result.outcome, begun, place.engine.calls.count("sandbox")


def test_what_was_begun_before_the_source_was_read_is_used_where_the_guess_was_right(place):
    place.run()
    assert guess_and_test(place) == ("ran", 1, 1)
    assert place.heard.output_text == "abc"
    (place.root / "c.txt").write_text("new")
    assert guess_and_test(place) == ("ran", 1, 1)
    assert place.heard.output_text == "abnew"


def test_what_was_begun_before_the_source_was_read_is_removed_where_the_guess_was_wrong(place):
    place.run()
    (place.root / "b.txt").write_text("new")
    outcome, begun, made = guess_and_test(place)
    assert (outcome, begun, made) == ("ran", 1, 3)  # that, one for the build, one for the tests
    assert place.heard.output_text == "anewc"


def test_a_guess_that_the_engine_failed_over_is_made_up_for(place):
    place.run()
    assert guess_and_test(place, failing=True) == ("ran", 1, 2)
    assert place.heard.output_text == "abc"


@pytest.mark.parametrize("typed", [{"rebuild": "all"}, {"resume_from": "deps-installed"}, {"isolate": "file"}])
def test_nothing_is_guessed_where_it_may_not_be_wanted(place, typed):
    place.open()
    lockfile = Lockfile(place.settings.lockfile)
    assert guessed(place.settings, place.engine, lockfile) is None  # there has been no run
    place.run()
    place.open(**typed)
    assert guessed(place.settings, place.engine, lockfile) is None


@pytest.mark.parametrize("typed", [{"rebuild": "all"}, {"resume_from": "deps-installed"}, {"isolate": "file"}])
def test_nothing_is_begun_that_may_not_be_wanted(place, typed):
    place.run()
    assert begun(place, **typed)[1] == []


def test_a_sandbox_that_cannot_be_removed_is_told_and_fails_nothing(place):
    place.engine.fail_at["remove"] = EngineError("the engine could not remove the container: busy")
    pipeline = place.open()
    result = pipeline.test(Selection(), tested_elsewhere=False)
    pipeline.close(prune=True)
    assert result.outcome == "ran"
    assert pipeline.report().notes == ("a sandbox was not removed: the engine could not remove the container: busy",)


@pytest.mark.parametrize(
    ("edited", "stage", "made"), [("", "install", 3), ("a.txt", "install", 3), ("b.txt", "build", 2)]
)
def test_the_sandbox_of_the_first_stage_that_has_to_run_is_begun(place, edited, stage, made):
    if edited:
        place.run()
        (place.root / edited).write_text("new")
    place.engine.calls.clear()
    pipeline, sandboxes = begun(place)
    assert len(sandboxes) == 1
    result = pipeline.test(Selection(), tested_elsewhere=False)
    pipeline.close(prune=True)
    assert place.engine.calls.count("sandbox") == made  # that, and one for each stage after it
    assert not place.engine.sandboxes
    assert [one.outcome for one in (pipeline.result(stage), result)] == ["ran", "ran"]
    assert place.run() == REUSED


@pytest.fixture
def lending(place: Place) -> Place:
    place.engine.lends = True
    return place


def test_what_follows_an_install_has_a_network_that_was_made_meanwhile(lending):
    pipeline = lending.open()
    pipeline.begin(Selection(), colours=False, width=80)
    lending.engine.calls.clear()
    pipeline.result("install")
    network = pipeline._sandboxes.predecessor()
    pipeline.result("build")
    assert lending.engine.calls.count("sandbox") == 3  # the network's, the build's and that of the tests
    assert pipeline._sandboxes.predecessor().lender is network
    assert network.state == "started"
    assert pipeline.test(Selection(), tested_elsewhere=False).outcome == "ran"  # where its network is looked at
    pipeline._sandboxes.wait()
    assert network.state == "removed"
    pipeline.close(prune=True)
    assert not lending.engine.sandboxes


def test_the_sandbox_of_the_build_stays_for_the_tests_where_its_network_is_its_own(lending):
    lending.run()
    (lending.root / "b.txt").write_text("new")
    pipeline, [name] = begun(lending)
    of_build = lending.engine.sandboxes[name]
    pipeline.result("build")
    assert of_build.state == "started"
    assert pipeline._sandboxes.predecessor() is of_build
    assert pipeline.test(Selection(), tested_elsewhere=False).outcome == "ran"
    pipeline._sandboxes.wait()
    assert of_build.state == "removed"
    pipeline.close(prune=True)
    assert not lending.engine.sandboxes


@pytest.mark.parametrize("large", [False, True])
def test_what_takes_long_to_remove_does_not_stay(lending, monkeypatch, large):
    monkeypatch.setattr("pytest_stagebuild.sandboxes._KEPT_AT_MOST", 1 if large else 1 << 20)
    lending.run()
    (lending.root / "b.txt").write_text("new")
    pipeline, [name] = begun(lending)
    of_build = lending.engine.sandboxes[name]
    pipeline.result("build")
    if large:
        pipeline._sandboxes._behind[0].join()
    assert of_build.state == ("removed" if large else "started")
    assert pipeline.test(Selection(), tested_elsewhere=False).outcome == "ran"
    pipeline.close(prune=True)
    assert not lending.engine.sandboxes


@pytest.mark.parametrize("typed", [{"install_cmd": "false"}, {"build_cmd": "false"}, {"test_cmd": "false"}])
def test_a_stage_that_fails_leaves_no_network(lending, typed):
    lending.run(**typed)


@pytest.mark.parametrize("failing", ["sandbox", "start", "commit", "put"])
def test_an_engine_that_fails_leaves_no_network(lending, failing):
    pipeline = lending.open()
    pipeline.begin(Selection(), colours=False, width=80)
    pipeline.result("install")
    lending.engine.fail_at[failing] = EngineError("full")
    pipeline.test(Selection(), tested_elsewhere=False)
    pipeline.close(prune=True)
    assert not lending.engine.sandboxes


@pytest.mark.parametrize(
    ("begins", "typed", "file"),
    [(False, {}, ""), (True, {"isolate": "file"}, ""), (True, {}, "[tool.stagebuild.build]\nnetwork = false\n")],
)
def test_no_network_is_made_that_nobody_would_take_over(lending, begins, typed, file):
    with (lending.root / "pyproject.toml").open("a") as opened:
        opened.write(file)
    pipeline = lending.open(**typed)
    if begins:
        pipeline.begin(Selection(), colours=False, width=80)
    assert pipeline.result("build").outcome == "ran"
    assert pipeline._sandboxes._network is None
    pipeline.close(prune=True)
    assert not lending.engine.sandboxes


def test_what_was_begun_for_a_stage_that_another_run_has_made_meanwhile_is_removed(place):
    pipeline, sandboxes = begun(place)
    other = place.open()
    other.test(Selection(), tested_elsewhere=False)
    other.close(prune=True)
    assert pipeline.result("install").outcome == "cached"
    pipeline._sandboxes.wait()
    assert sandboxes
    assert not place.engine.sandboxes
    pipeline.close(prune=True)


def test_an_engine_that_fails_to_begin_a_stage_is_asked_again(place):
    place.engine.fail_at["sandbox"] = EngineError("the engine could not create a container: full")
    pipeline, sandboxes = begun(place)
    place.engine.fail_at.clear()
    assert sandboxes == []
    assert pipeline.result("install").outcome == "ran"
    pipeline.close(prune=True)


def test_an_engine_that_fails_to_begin_the_tests_fails_them(place):
    place.run()
    place.engine.fail_at["sandbox"] = EngineError("the engine could not create a container: full")
    pipeline, _ = begun(place)
    result = pipeline.test(Selection(), tested_elsewhere=False)
    assert result.outcome == "error"
    assert "the engine could not create a container: full" in str(result.failure)


def test_a_stage_runs_once_whoever_asks_first(place):
    pipeline = place.open()
    assert pipeline.image("build").read_text("built.txt") == "ab"
    assert pipeline.result("install") is pipeline.result("install")
    pipeline.test(Selection(), tested_elsewhere=False)
    assert place.heard.words == ["install started: first run", "build started: first run", "test started: "]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda place: (place.root / "a.txt").write_text("new"), "a.txt changed"),
        (lambda place: (place.root / "new.txt").write_text("new"), "new.txt added"),
        (lambda place: (place.root / "c.txt").unlink() or (place.root / "c.txt").symlink_to("b.txt"), "c.txt changed"),
        (lambda place: (place.root / "a.txt").chmod(0o755), "a.txt changed"),
        (lambda place: place.engine.images.clear() or place.engine.__init__(), "checkpoint image is gone"),
    ],
)
def test_a_stage_whose_inputs_or_image_changed_runs_and_says_why(place, change, reason):
    place.run()
    change(place)
    assert place.run() == ALL_RAN
    assert place.reason("install") == reason


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        ({"install_cmd": "cat b.txt > installed.txt"}, "command changed"),
        ({"env": ("X=1",)}, "environment changed (X)"),
        ({"rebuild": "all"}, "--stagebuild-rebuild"),
        ({"resume_from": "base"}, "--stagebuild-from=base"),
    ],
)
def test_a_stage_that_is_asked_for_in_another_way_runs_and_says_why(place, typed, reason):
    place.run()
    assert place.run(**typed) == ALL_RAN
    assert place.reason("install") == reason


def test_a_failed_build_leaves_the_install_to_resume_from(place):
    assert place.run(build_cmd="echo broken; exit 3") == {"install": "ran", "build": "failed", "test": "skipped"}
    failure = place.report.results[1].failure
    assert (failure.cause, failure.tail) == ("exit 3", "broken")
    assert [point.name for point in place.report.rollback_points] == ["deps-installed"]
    assert place.reason("test") == "build failed"
    assert place.run() == {"install": "cached", "build": "ran", "test": "ran"}


def test_what_a_failed_install_could_have_made_is_no_checkpoint(place):
    assert place.run(install_cmd="cat a.txt > installed.txt; false")["install"] == "failed"
    assert not place.report.rollback_points
    assert [image.labels for image in place.engine.images.values()] == [{}]


def test_an_engine_that_fails_is_no_failed_command(place):
    place.engine.fail_at["commit"] = EngineError("no space left on device")
    assert place.run() == {"install": "error", "build": "skipped", "test": "skipped"}
    assert place.report.results[0].failure.hint == "no space left on device"
    assert place.run() == ALL_RAN


def test_a_commit_that_was_not_recorded_is_found_again_by_its_labels(place):
    place.engine.fail_at["after commit"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        place.run()
    assert not place.engine.sandboxes
    assert place.run() == {"install": "cached", "build": "ran", "test": "ran"}


def test_a_stage_out_of_time_fails_and_says_so(place):
    outcomes = place.run(build_cmd="sleep 99", timeout=5.0)
    assert outcomes == {"install": "ran", "build": "failed", "test": "skipped"}
    assert place.report.results[1].failure.cause == "timed out after 5 s"


def test_resuming_takes_a_checkpoint_as_it_is_and_names_what_changed_since(place):
    place.run()
    (place.root / "a.txt").write_text("new")
    assert place.run(resume_from="deps-installed") == {"install": "forced", "build": "ran", "test": "ran"}
    assert place.heard.output_text == "abc"
    [note] = place.report.results[0].notes
    assert note.endswith("is used as it is, though changed since: a.txt changed")


def test_resuming_from_the_build_runs_the_tests_alone(place):
    place.run()
    (place.root / "c.txt").write_text("new")
    assert place.run(resume_from="build-complete") == {"install": "cached", "build": "forced", "test": "ran"}
    assert place.heard.output_text == "abnew"


def test_resuming_from_what_does_not_exist_lists_what_does(place):
    place.run()
    with pytest.raises(
        ConfigurationError, match=r"abcd1234: there is no such checkpoint. .*\n  base\n  build-complete .*"
    ):
        place.run(resume_from="abcd1234")


def test_rebuilding_from_the_build_on_reuses_the_install(place):
    place.run()
    assert place.run(rebuild="build") == {"install": "cached", "build": "ran", "test": "ran"}


def test_a_plan_starts_nothing(place):
    place.run()
    (place.root / "new.txt").write_text("new")
    place.engine.calls.clear()
    planned = place.open().plan()
    assert [(one.stage.name, one.reuse, one.reason) for one in planned] == [
        ("install", None, "new.txt added"),
        ("build", None, "install would run"),
        ("test", None, "every time"),
    ]
    assert "sandbox" not in place.engine.calls
    assert "pull_image" not in place.engine.calls


def test_an_image_of_a_failed_stage_names_the_stage_that_failed(place):
    pipeline = place.open(install_cmd="false")
    with pytest.raises(StageFailed) as failed:
        pipeline.image("build")
    assert failed.value.result.stage == "install"
    assert pipeline.image("base").read_text("a.txt") == "a"


@pytest.mark.parametrize(("elsewhere", "outcome"), [(False, "failed"), (True, "ran")])
def test_no_tests_inside_is_a_failure_unless_there_are_others(place, elsewhere, outcome):
    place.engine.programs["pytest"] = lambda shell, words: 5
    result = place.open(test_cmd="pytest").test(Selection(), tested_elsewhere=elsewhere)
    assert result.outcome == outcome
    assert (result.failure.cause if result.failure else None) == (None if elsewhere else NO_TESTS_COLLECTED)


def test_a_secret_that_a_stage_wrote_down_keeps_it_from_becoming_a_checkpoint(place):
    outcomes = place.run({"TOKEN": "hunter22"}, secrets=("TOKEN",), install_cmd="echo $TOKEN > note.txt")
    assert outcomes["install"] == "failed"
    assert place.report.results[0].failure.cause == "the secret TOKEN is in /src/note.txt"
    assert len(place.engine.images) == 1


def test_a_base_image_that_changed_is_the_reason(place):
    place.run()
    place.engine.add_image("python:3.11-slim", {"/etc/os-release": b"newer"})
    assert place.run() == ALL_RAN
    assert place.reason("install").startswith("base image changed")


def test_pruning_keeps_the_last_used(place):
    for text in ("one", "two", "three"):
        (place.root / "b.txt").write_text(text)
        place.run()
    place.run(prune=1)
    assert place.run() == REUSED
    assert len(place.engine.images) == 3


NAMES = ("a.txt", "b.txt", "c.txt", "d.txt", "folder/e.txt")


class NothingOldIsServed(RuleBasedStateMachine):
    """Whatever happens to a source, its lockfile and its images: the tests see what a run without any cache shows."""

    make: Callable[[str], Place]

    @initialize()
    def begin(self) -> None:
        self.place = self.make("source")
        self.branches: dict[str, dict[str, str]] = {}

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(("", "1", "2")))
    def write(self, name: str, text: str) -> None:
        path = self.place.root / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        (self.place.root / name).unlink(missing_ok=True)

    @rule(one=st.sampled_from(NAMES), other=st.sampled_from(NAMES))
    def swap(self, one: str, other: str) -> None:
        first, second = self.place.root / one, self.place.root / other
        if first.is_file() and second.is_file() and one != other:
            content = first.read_bytes()
            first.write_bytes(second.read_bytes())
            second.write_bytes(content)

    @rule(name=st.sampled_from(NAMES), to=st.sampled_from(("a.txt", "b.txt", "nowhere")))
    def link(self, name: str, to: str) -> None:
        path = self.place.root / name
        if name != to and path.parent.is_dir():
            path.unlink(missing_ok=True)
            path.symlink_to(to)

    @rule(inputs=st.sampled_from(('"traced"', '"all"', '["a.txt"]', '["*.txt"]')))
    def say_what_install_depends_on(self, inputs: str) -> None:
        # Every word of the user's that is true: install reads a.txt alone.
        table = TABLE + f"\n[tool.stagebuild.install]\ninputs = {inputs}\n"
        (self.place.root / "pyproject.toml").write_text(table)

    @rule()
    def lose_the_lockfile(self) -> None:
        shutil.rmtree(self.place.root / ".stagebuild", ignore_errors=True)

    @rule(data=st.data())
    def lose_an_image(self, data: st.DataObject) -> None:
        known = sorted(id_ for id_, image in self.place.engine.images.items() if image.labels)
        if known:
            self.place.engine.forget(data.draw(st.sampled_from(known)))

    @rule(branch=st.sampled_from(("main", "topic")))
    def keep_a_branch(self, branch: str) -> None:
        root = self.place.root
        self.branches[branch] = {
            file: (root / file).read_text()
            for file in NAMES
            if (root / file).is_file() and not (root / file).is_symlink()
        }

    @rule(name=st.sampled_from(("main", "topic")))
    def switch_to_a_branch(self, name: str) -> None:
        for file in NAMES:
            self.remove(file)
        for file, text in self.branches.get(name, {}).items():
            self.write(file, text)

    @rule()
    def run(self) -> None:
        outcomes = self.place.run()
        seen = self.place.heard.output_text
        fresh = self.make("fresh")
        shutil.rmtree(fresh.root)
        shutil.copytree(self.place.root, fresh.root, symlinks=True, ignore=shutil.ignore_patterns(".stagebuild"))
        expected = fresh.run()
        words = {"cached": "ran", "forced": "ran"}
        assert {stage: words.get(outcome, outcome) for stage, outcome in outcomes.items()} == expected
        assert seen == fresh.heard.output_text

    @invariant()
    def nothing_is_left(self) -> None:
        assert not self.place.engine.sandboxes


def test_nothing_old_is_ever_served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    class Machine(NothingOldIsServed):
        @staticmethod
        def make(name: str) -> Place:
            return Place(tmp_path_factory.mktemp(name))

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
