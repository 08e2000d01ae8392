"""The whole text of a run, from the first line to the last, as a user sees it."""

from __future__ import annotations

import platform
import re
from textwrap import dedent
from xml.etree import ElementTree as ET

import pytest
from projects import Project, Run, steady


@pytest.fixture
def project(new_project) -> Project:
    project = new_project(
        install_cmd="echo installing > installed.txt",
        build_cmd="cat installed.txt module.txt",
        test_cmd="echo testing; test ! -e failing",
    )
    project.write({"module.txt": "code\n"})
    return project


def whole(run: Run, project: Project) -> str:
    """What was printed, without what differs from machine to machine."""
    lines = []
    for line in run.lines:
        if line.startswith(("platform ", "plugins: ", "cachedir: ")):
            continue
        shown = re.sub(r"(?<=^stagebuild: engine )(\w+).*(?= \()", r"\1", line).replace(str(project.root), "ROOT")
        lines.append(steady(shown).rstrip())
    return "\n".join(line.strip("= ") if line.startswith("=") else line for line in lines).replace(" in 0.0s", "")


def expect(text: str) -> str:
    return dedent(text).strip("\n")


HEADER = """\
        test session starts
        stagebuild: engine docker ({why})
        stagebuild: source . (2 files, by a walk: not a git repository), image python:3.11-slim
        stagebuild: install echo installing > installed.txt
        stagebuild: build   cat installed.txt module.txt
        stagebuild: test    echo testing; test ! -e failing
        rootdir: ROOT
        configfile: pyproject.toml
        {collected}
"""

KNOWN = "auto: docker holds the lockfile's checkpoints"


def test_a_first_run_a_second_and_one_that_fails(project):
    first = project.stagebuild()
    assert first.code == 0
    assert whole(first, project) == expect(
        HEADER.format(why="auto: docker answers", collected="collected 3 items")
        + """
        stagebuild install: echo installing > installed.txt  (first run)
        stagebuild install: ran 0.0s, deps-installed 00000000
        stagebuild build: cat installed.txt module.txt  (first run)
        stagebuild build: ran 0.0s, build-complete 00000000
        stagebuild test: echo testing; test ! -e failing
        stagebuild test: ran 0.0s                                                                    [100%]
        stagebuild
        base     python:3.11-slim                 sha256:000000000000
        install  echo installing > installed.txt  ran 0.0s  00000000  deps-installed  (first run)
        build    cat installed.txt module.txt     ran 0.0s  00000000  build-complete  (first run)
        test     echo testing; test ! -e failing  ran 0.0s
        3 passed
        """
    )

    second = project.stagebuild()
    assert second.code == 0
    assert whole(second, project) == expect(
        HEADER.format(why=KNOWN, collected="collected 3 items")
        + """
        stagebuild install: CACHED 0.0s, deps-installed 00000000
        stagebuild build: CACHED 0.0s, build-complete 00000000
        stagebuild test: echo testing; test ! -e failing
        stagebuild test: ran 0.0s                                                                    [100%]
        stagebuild
        base     python:3.11-slim                 sha256:000000000000
        install  echo installing > installed.txt  CACHED 0.0s  00000000  deps-installed
        build    cat installed.txt module.txt     CACHED 0.0s  00000000  build-complete
        test     echo testing; test ! -e failing  ran 0.0s
        3 passed
        """
    )

    failed = project.stagebuild("--stagebuild-build-cmd=cat nothing")
    assert failed.code == 1
    assert whole(failed, project).partition("collected 3 items")[2].strip() == expect("""
        stagebuild install: CACHED 0.0s, deps-installed 00000000
        stagebuild build: cat nothing  (command changed)
        stagebuild build: FAILED 0.0s, exit 1
        stagebuild test: skipped, build failed                                                       [100%]
        FAILURES
        ______________________________________________ build _______________________________________________
        build: exit 1
        log: .stagebuild/logs/build.log

        cat: nothing: No such file or directory
        stagebuild
        base     python:3.11-slim                 sha256:000000000000
        install  echo installing > installed.txt  CACHED 0.0s  00000000  deps-installed
        build    cat nothing                      FAILED 0.0s  exit 1  (command changed)
        test     echo testing; test ! -e failing  skipped         build failed

        failed stage     build (exit 1), log: .stagebuild/logs/build.log
        rollback points  deps-installed 00000000
        resume           pytest --stagebuild-source=. '--stagebuild-build-cmd=cat nothing' --stagebuild-from=deps-installed
        short test summary info
        FAILED pyproject.toml::build - build: exit 1
        1 failed, 1 passed, 1 skipped
        """)


def test_a_plan_starts_nothing_and_says_what_would_run(project):
    run = project.stagebuild("--stagebuild-plan")
    assert run.code == 0
    assert whole(run, project) == expect(
        HEADER.format(why="auto: docker answers", collected="collected 0 items")
        + """\
        base:    python:3.11-slim
        install: would run, first run
        build:   would run, install would run
        test:    would run, every time

        no tests ran
        """
    )
    assert not project.images()


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_on_the_local_engine_the_base_image_is_this_machine(project):
    header = HEADER.replace("docker", "local").replace("python:3.11-slim", "host")
    plan = project.stagebuild("--stagebuild-plan")
    assert whole(plan, project) == expect(
        header.format(why="asked for", collected="collected 0 items")
        + """\
        base:    host
        install: would run, first run
        build:   would run, install would run
        test:    would run, every time

        no tests ran
        """
    )
    run = project.stagebuild()
    python = f"{platform.python_implementation()} {platform.python_version()}"
    assert f"base     host                             {python}, {this_release()}" in run.lines
    assert whole(run, project).partition("\nbase ")[0] == expect(
        header.format(why="asked for", collected="collected 3 items")
        + """
        stagebuild install: echo installing > installed.txt  (first run)
        stagebuild install: ran 0.0s, deps-installed 00000000
        stagebuild build: cat installed.txt module.txt  (first run)
        stagebuild build: ran 0.0s, build-complete 00000000
        stagebuild test: echo testing; test ! -e failing
        stagebuild test: ran 0.0s                                                                    [100%]
        stagebuild
        """
    )


def this_release() -> str:
    release = platform.freedesktop_os_release()
    return f"{release['NAME']} {release['VERSION_ID']}" if "VERSION_ID" in release else release["NAME"]


def test_the_output_of_commands_is_shown_as_it_comes_with_v_and_with_s(project):
    verbose = project.stagebuild("-v")
    assert whole(verbose, project).partition("collected 3 items")[2].strip() == expect("""
        stagebuild install: echo installing > installed.txt  (first run)
        stagebuild install: ran 0.0s, deps-installed 00000000
        stagebuild install: sent 2 files, 0.0 MB
        stagebuild install: depends on 0 of 2 files; the names in ./
        pyproject.toml::install RAN                                                                  [ 33%]
        stagebuild build: cat installed.txt module.txt  (first run)
        installing
        code
        stagebuild build: ran 0.0s, build-complete 00000000
        stagebuild build: sent 0 files, 0.0 MB
        stagebuild build: depends on 1 of 2 files: module.txt; the names in ./
        pyproject.toml::build RAN                                                                    [ 66%]
        stagebuild test: echo testing; test ! -e failing
        testing
        stagebuild test: ran 0.0s
        stagebuild test: sent 0 files, 0.0 MB
        pyproject.toml::test RAN                                                                     [100%]

        stagebuild
        base     python:3.11-slim                 sha256:000000000000
        install  echo installing > installed.txt  ran 0.0s  00000000  deps-installed  (first run)
        build    cat installed.txt module.txt     ran 0.0s  00000000  build-complete  (first run)
        test     echo testing; test ! -e failing  ran 0.0s
        3 passed
        """)
    plain = project.stagebuild("-s")
    assert "stagebuild test: echo testing; test ! -e failing\ntesting" in plain.output


def test_the_tail_of_a_failed_command_is_shown_once(project):
    project.write({"failing": ""})
    for arguments in ([], ["-v"], ["-s"], ["-q"]):
        run = project.stagebuild(*arguments)
        assert run.code == 1
        assert run.lines.count("testing") == 1, run.output


def test_quiet_runs_keep_the_summary_alone(project):
    run = project.stagebuild("-q")
    assert whole(run, project) == expect("""
        ...                                                                                          [100%]
        stagebuild
        base     python:3.11-slim                 sha256:000000000000
        install  echo installing > installed.txt  ran 0.0s  00000000  deps-installed  (first run)
        build    cat installed.txt module.txt     ran 0.0s  00000000  build-complete  (first run)
        test     echo testing; test ! -e failing  ran 0.0s
        3 passed
        """)


def test_collecting_alone_makes_no_stage_and_needs_no_engine(project):
    stages = ["pyproject.toml::install", "pyproject.toml::build", "pyproject.toml::test"]
    run = project.stagebuild("--collect-only", "-q")
    assert run.code == 0
    why = "stagebuild: the tests inside cannot be listed: install would run first, first run"
    assert run.lines[:4] == [why, *stages]
    assert not project.images()
    run = project.stagebuild(
        "--collect-only", "-q", "--stagebuild-engine=docker", env={"DOCKER_HOST": "unix:///no.sock"}
    )
    assert run.code == 0
    assert run.lines[0].startswith("stagebuild: the tests inside cannot be listed: ")
    assert [line for line in run.lines if line in stages] == stages


def test_junit_has_a_case_for_each_stage_with_its_checkpoint(project, tmp_path):
    project.stagebuild()
    project.write({"failing": ""})
    table = (project.root / "pyproject.toml").read_text()
    project.write({"pyproject.toml": table + 'install.inputs = ["/module.txt"]\nbuild.inputs = ["/module.txt"]\n'})
    project.stagebuild()
    run = project.stagebuild(f"--junitxml={tmp_path}/report.xml")
    assert run.code == 1
    uuids = {entry["stage"]: uuid for uuid, entry in project.checkpoints().items()}
    cases = {case.get("name"): case for case in ET.parse(tmp_path / "report.xml").iter("testcase")}
    properties = {
        name: {one.get("name"): one.get("value") for one in case.iter("property")} for name, case in cases.items()
    }
    assert {case.get("classname") for case in cases.values()} == {"pyproject.toml"}
    assert properties["install"]["stagebuild_outcome"] == properties["build"]["stagebuild_outcome"] == "cached"
    assert properties["install"]["stagebuild_checkpoint"] in project.checkpoints()
    assert properties["build"]["stagebuild_checkpoint"] in project.checkpoints()
    assert properties["test"] == {"stagebuild_stage": "test", "stagebuild_outcome": "failed"}
    assert len(uuids) == 2
    failure = cases["test"].find("failure")
    assert failure is not None
    assert failure.text is not None
    assert failure.text.startswith("test: exit 1\nlog: .stagebuild/logs/test.log")
    assert "testing" in failure.text


HOOKS = """
from pytest_stagebuild.engines.docker import DockerEngine

class Mine(DockerEngine):
    def describe(self):
        return "mine"

def pytest_stagebuild_engines(config):
    return {"mine": Mine.connect}

def pytest_stagebuild_stage_start(stage, reason):
    print("HOOK start", stage.name, reason)

def pytest_stagebuild_checkpoint(checkpoint):
    print("HOOK checkpoint", checkpoint.name)

def pytest_stagebuild_stage_finish(result):
    print("HOOK finish", result.stage, result.outcome)
"""


def test_other_plugins_hear_of_stages_and_bring_engines(project, tmp_path):
    (tmp_path / "listening.py").write_text(HOOKS)
    env = {"PYTHONPATH": str(tmp_path), "PYTEST_PLUGINS": "pytest_stagebuild.plugin,listening"}
    run = project.stagebuild("--stagebuild-engine=mine", env=env)
    assert run.code == 0
    assert "stagebuild: engine mine" in run.output
    assert [line.partition("HOOK ")[2] for line in run.lines if "HOOK " in line] == [
        "start install first run",
        "checkpoint deps-installed",
        "finish install ran",
        "start build first run",
        "checkpoint build-complete",
        "finish build ran",
        "start test ",
        "finish test ran",
    ]
    unknown = project.stagebuild("--stagebuild-engine=yours", env=env)
    assert unknown.code == 4
    assert "unknown engine 'yours'. Known: auto, docker, local, mine." in unknown.output


def test_a_source_may_be_named_from_below_it(project):
    project.write({"deep/er/x": ""})
    run = project.pytest("--stagebuild-source=../..", "-p", "cacheprovider", cwd=project.root / "deep" / "er")
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert run.code == 0, run.output


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--stagebuild-plan"], "ERROR: --stagebuild-plan needs --stagebuild-source: "),
        (["--stagebuild-source=.", "--pdb"], "ERROR: --pdb does not reach the tests in the container: "),
        (["--stagebuild-source=.", "--sw"], "ERROR: --stepwise does not reach the tests in the container: "),
    ],
)
def test_options_that_could_only_mislead_are_refused(project, options, said):
    run = project.pytest(*options)
    assert run.code == 4
    assert said in run.output


def test_a_plan_tells_what_a_run_would_have_to_say(project):
    (project.root / ".stagebuild").mkdir()
    (project.root / ".stagebuild" / "stagebuild.lock").write_text("{")
    run = project.stagebuild("--stagebuild-plan")
    assert "note: lockfile" in run.output
    assert "is corrupt" in run.output


def test_codes_of_commands_change_no_more_of_the_terminal_than_colours(new_project):
    codes = r"\033]0;title\007\033[?1049h\033[2J\033[31mred\033[8m"
    project = new_project(install_cmd=f"printf '{codes}'; sleep 0.1; printf '\\033['; sleep 0.1; printf '1mbold'")
    shown = project.stagebuild("-v", "pyproject.toml::install").output
    assert "\x1b[31mred\x1b[8m\x1b[1mbold\x1b[0m" in shown
    assert {"\x1b]", "\x1b[?", "\x1b[2J"}.isdisjoint(shown.split("red")[0])
    assert "title" not in shown.partition("install: printf")[2].partition("\n")[2].partition("red")[0]


def test_v_lists_what_each_stage_depends_on_whether_it_runs_or_not(project):
    for _ in range(2):
        lines = project.stagebuild("-v").lines
        assert "stagebuild install: depends on 0 of 2 files; the names in ./" in lines
        assert "stagebuild build: depends on 1 of 2 files: module.txt; the names in ./" in lines
    assert "depends on" not in project.stagebuild().output


def test_v_tells_what_was_sent_to_a_stage_that_runs(project):
    project.write({"large.bin": "x" * 2_500_000})
    first, second = project.stagebuild("-v"), project.stagebuild("-v")
    for stage, sent in (("install", "3 files, 2.5 MB"), ("build", "0 files, 0.0 MB"), ("test", "0 files, 0.0 MB")):
        assert any(line.startswith(f"stagebuild {stage}: sent {sent}") for line in first.lines), first.output
    assert sum("sent " in line for line in second.lines) == 1
    assert " sent " not in project.stagebuild().output


def test_a_plan_names_the_file_that_makes_a_stage_run(project):
    project.stagebuild()
    project.write({"module.txt": "changed"})
    lines = project.stagebuild("--stagebuild-plan").lines
    assert any(line.startswith("install: would be reused, deps-installed ") for line in lines)
    assert "build:   would run, module.txt changed" in lines
