from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.options import CommandLine, Settings, add_options, command_line, load_settings

PACKAGE = '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "Demo"\n'


def parse(*arguments: str) -> CommandLine:
    parser = pytest.Parser(_ispytest=True)
    add_options(parser)
    return command_line(parser.parse([*arguments]))


class Project:
    """A project folder that is also where pytest was called, and the settings that come of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ: dict[str, str] = {}
        self.table("")

    def table(self, text: str, project: str = PACKAGE) -> Project:
        (self.folder / "pyproject.toml").write_text(f"{project}[tool.stagebuild]\n{text}")
        return self

    def settings(self, *arguments: str) -> Settings:
        return load_settings(
            parse(*arguments), default_source=self.folder, environ=self.environ, invocation_dir=self.folder
        )

    def refusal(self, *arguments: str) -> str:
        with pytest.raises(ConfigurationError) as caught:
            self.settings(*arguments)
        return str(caught.value)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    folder = tmp_path / "folder"
    folder.mkdir()
    return Project(folder)


class TestCommandLine:
    def test_nothing_typed_is_nothing(self) -> None:
        assert parse() == CommandLine()

    def test_everything_typed_arrives(self) -> None:
        assert parse(
            "--stagebuild-source=.",
            "--stagebuild-image=debian",
            "--stagebuild-install-cmd=a",
            "--stagebuild-build-cmd=b",
            "--stagebuild-test-cmd=c",
            "--stagebuild-engine=docker",
            "--stagebuild-from=base",
            "--stagebuild-rebuild=build",
            "--stagebuild-plan",
            "--stagebuild-prune=2",
            "--stagebuild-timeout=1.5",
            "--stagebuild-env=A=1",
            "--stagebuild-env=B",
            "--stagebuild-secret=S",
            "--stagebuild-artifact=out.xml",
            "--stagebuild-host-tests=tests/host",
            "--stagebuild-downloads=fresh",
            "--stagebuild-lockfile=lock",
        ) == CommandLine(
            source=".",
            image="debian",
            install_cmd="a",
            build_cmd="b",
            test_cmd="c",
            engine="docker",
            resume_from="base",
            rebuild="build",
            plan=True,
            prune=2,
            timeout=1.5,
            env=("A=1", "B"),
            secrets=("S",),
            artifacts=("out.xml",),
            host_tests=("tests/host",),
            downloads="fresh",
            lockfile="lock",
        )

    def test_without_a_value_rebuild_means_all_and_prune_the_table_s(self) -> None:
        typed = parse("--stagebuild-rebuild", "--stagebuild-prune")
        assert (typed.rebuild, typed.prune) == ("all", "table")

    @pytest.mark.parametrize("option", ["rebuild", "prune"])
    def test_a_path_taken_for_a_value_is_refused_with_the_way_to_write_it(
        self, option: str, pytester: pytest.Pytester
    ) -> None:
        pytester.mkdir("tests")
        result = pytester.runpytest_inprocess(f"--stagebuild-{option}", "tests")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*'tests' is no *: write --stagebuild-{option}=* behind the paths*"])


class TestDefaults:
    def test_of_a_plain_package(self, project: Project) -> None:
        settings = project.settings()
        assert settings == Settings(
            source=project.folder,
            project="demo",
            anchor=project.folder / "pyproject.toml",
            image="python:3.11-slim",
            image_given=False,
            image_detected=False,
            stages=settings.stages,
            engine="auto",
            secrets=(),
            artifacts=(),
            host_tests=(),
            junit=(),
            isolate="stage",
            jobs=1,
            downloads="keep",
            lockfile=project.folder / ".stagebuild/stagebuild.lock",
            keep=10,
            pass_host_env=True,
            salt="",
            resume_from=None,
            rebuild=None,
            plan=False,
            prune=False,
            given=(),
            detected_notes=(),
        )
        assert {
            (stage.name, stage.command, stage.detected, stage.timeout, stage.network, stage.inputs)
            for stage in settings.stages.values()
        } == {
            ("install", "pip install -e . build pytest", True, 1800.0, True, "traced"),
            ("build", "python -m build", True, 1800.0, True, "traced"),
            ("test", "pytest", True, 1800.0, True, "traced"),
        }

    def test_the_image_is_detected_where_the_project_asks_for_a_python(self, project: Project) -> None:
        settings = project.table("", PACKAGE + 'requires-python = ">=3.13"\n').settings()
        assert (settings.image, settings.image_detected, settings.image_given) == ("python:3.13-slim", True, False)


class TestPrecedence:
    TABLE = """
    image = "debian"
    engine = "podman"
    timeout = 60
    keep = 3
    lockfile = "state/lock"
    test_cmd = "make check"
    [tool.stagebuild.build]
    timeout = 5
    """

    def test_the_table_goes_before_detection_and_defaults(self, project: Project) -> None:
        settings = project.table(self.TABLE).settings()
        assert (settings.image, settings.image_given, settings.engine, settings.keep) == ("debian", True, "podman", 3)
        assert settings.lockfile == project.folder / "state/lock"
        assert (settings.stages["test"].command, settings.stages["test"].detected) == ("make check", False)
        assert [stage.timeout for stage in settings.stages.values()] == [60, 5, 60]

    @pytest.mark.parametrize(("written", "meant"), [("./i.tar", "i.tar"), ("../i", "../i"), ("/i", "/i"), (".", ".")])
    def test_the_path_of_an_image_is_relative_to_where_it_was_written(
        self, project: Project, tmp_path: Path, written: str, meant: str
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        settings = load_settings(
            parse(f"--stagebuild-image={written}"), default_source=project.folder, environ={}, invocation_dir=elsewhere
        )
        assert settings.image == str((elsewhere / meant).resolve())
        assert project.table(f'image = "{written}"').settings().image == str((project.folder / meant).resolve())

    def test_the_command_line_goes_before_the_table(self, project: Project) -> None:
        settings = project.table(self.TABLE).settings(
            "--stagebuild-image=tag:alpine:3",
            "--stagebuild-engine=docker",
            "--stagebuild-timeout=7",
            "--stagebuild-prune=1",
            "--stagebuild-lockfile=other",
            "--stagebuild-test-cmd=pytest -x",
        )
        assert (settings.image, settings.engine, settings.keep, settings.prune) == ("tag:alpine:3", "docker", 1, True)
        assert settings.lockfile == project.folder / "other"
        assert settings.stages["test"].command == "pytest -x"
        assert [stage.timeout for stage in settings.stages.values()] == [7, 7, 7]

    def test_a_bare_prune_keeps_what_the_table_says(self, project: Project) -> None:
        settings = project.table("keep = 3").settings("--stagebuild-prune")
        assert (settings.keep, settings.prune) == (3, True)

    def test_how_tests_are_parted_goes_by_the_same_order(self, project: Project) -> None:
        project.table('isolate = "file"\njobs = 3')
        assert (project.settings().isolate, project.settings().jobs) == ("file", 3)
        typed = project.settings("--stagebuild-isolate=test", "--stagebuild-jobs=2")
        assert (typed.isolate, typed.jobs) == ("test", 2)

    def test_whether_downloads_are_kept_goes_by_the_same_order_and_is_typed_again_to_resume(
        self, project: Project
    ) -> None:
        project.table('downloads = "fresh"')
        assert project.settings().downloads == "fresh"
        typed = project.settings("--stagebuild-downloads=keep")
        assert (typed.downloads, typed.given) == ("keep", ("--stagebuild-downloads=keep",))

    def test_lists_of_both_are_joined_and_named_once(self, project: Project) -> None:
        project.environ = {"ONE": "1111", "TWO": "2222"}
        settings = project.table('artifacts = ["a", "b"]\nsecrets = ["ONE"]').settings(
            "--stagebuild-artifact=b", "--stagebuild-artifact=c", "--stagebuild-secret=TWO"
        )
        assert settings.artifacts == ("a", "b", "c")
        assert settings.secrets == ("ONE", "TWO")

    def test_paths_of_the_table_are_the_source_s_and_typed_ones_the_caller_s(self, tmp_path: Path) -> None:
        project = Project(tmp_path).table('host_tests = ["tests/host"]\nlockfile = "lock"')
        below = tmp_path / "below"
        below.mkdir()
        typed = CommandLine(source="..", host_tests=("here", "../tests/*.py"))
        settings = load_settings(typed, default_source=below, environ={}, invocation_dir=below)
        assert settings.source == project.folder
        assert settings.host_tests == ("tests/host", "below/here", "tests/*.py")
        assert settings.lockfile == tmp_path / "lock"
        typed = replace(typed, lockfile="lock")
        settings = load_settings(typed, default_source=below, environ={}, invocation_dir=below)
        assert settings.lockfile == below / "lock"


class TestEnvironment:
    def test_a_stage_s_variables_go_before_the_table_s_and_typed_ones_before_both(self, project: Project) -> None:
        project.table('env = { A = "1", B = "1", C = "1" }\n[tool.stagebuild.build]\nenv = { B = "2", C = "2" }')
        stages = project.settings("--stagebuild-env=C=3").stages
        assert stages["install"].env == {"A": "1", "B": "1", "C": "3"}
        assert stages["build"].env == {"A": "1", "B": "2", "C": "3"}

    def test_a_bare_name_has_the_value_that_it_has_here(self, project: Project) -> None:
        project.environ = {"MODE": "a=b", "EMPTY": ""}
        stages = project.table('env = ["EMPTY"]').settings("--stagebuild-env=MODE").stages
        assert stages["test"].env == {"MODE": "a=b", "EMPTY": ""}

    def test_a_bare_name_that_is_not_set_here_is_refused_where_it_stands(self, project: Project) -> None:
        assert project.refusal("--stagebuild-env=MODE") == (
            "--stagebuild-env: MODE is not set here. Set it, or write MODE=VALUE to give it a value."
        )
        assert project.table('env = ["MODE"]').refusal().startswith("pyproject.toml: key `env`: MODE is not set here.")

    def test_a_name_that_no_shell_can_use_is_refused_without_its_value(self, project: Project) -> None:
        message = project.refusal("--stagebuild-env=A-B=hunter2")
        assert "'A-B' names no variable" in message
        assert "hunter2" not in message


class TestSecrets:
    @pytest.mark.parametrize("environ", [{}, {"TOKEN": ""}])
    def test_one_that_is_missing_or_empty_is_refused(self, project: Project, environ: dict[str, str]) -> None:
        project.environ = environ
        assert "the secret TOKEN is not set in the environment" in project.refusal("--stagebuild-secret=TOKEN")

    def test_one_that_is_too_short_to_be_found_is_refused(self, project: Project) -> None:
        project.environ = {"TOKEN": "abc"}
        assert "the secret TOKEN is shorter than 4 characters" in project.refusal("--stagebuild-secret=TOKEN")
        project.environ = {"TOKEN": "abcd"}
        assert project.settings("--stagebuild-secret=TOKEN").secrets == ("TOKEN",)

    def test_its_value_is_nowhere_in_the_settings(self, project: Project) -> None:
        project.environ = {"TOKEN": "hunter2hunter2"}
        assert "hunter2" not in repr(project.settings("--stagebuild-secret=TOKEN"))

    def test_a_value_typed_with_it_is_refused_and_not_repeated(self, project: Project) -> None:
        message = project.refusal("--stagebuild-secret=TOKEN=hunter2")
        assert "'TOKEN' must be the name alone" in message
        assert "hunter2" not in message

    def test_one_that_is_declared_as_a_variable_of_any_stage_is_refused(self, project: Project) -> None:
        project.environ = {"TOKEN": "hunter2"}
        project.table('secrets = ["TOKEN"]\n[tool.stagebuild.test]\nenv = { TOKEN = "x" }')
        assert "TOKEN is declared both as a secret and in `env`" in project.refusal()


class TestGiven:
    def test_what_was_typed_is_repeated_save_where_to_start(self, project: Project) -> None:
        project.environ = {"TOKEN": "hunter2", "MODE": "ci"}
        arguments = [
            "--stagebuild-source=.",
            "--stagebuild-install-cmd=pip install -e '.[dev]'",
            "--stagebuild-timeout=60",
            "--stagebuild-env=A=it's",
            "--stagebuild-env=MODE",
            "--stagebuild-secret=TOKEN",
            "--stagebuild-artifact=out.xml",
        ]
        for extra in ("--stagebuild-from=base", "--stagebuild-rebuild", "--stagebuild-plan"):
            assert project.settings(*arguments, extra).given == tuple(arguments)

    def test_a_bare_prune_stands_where_it_takes_nothing_for_its_value(self, project: Project) -> None:
        given_options = project.settings("--stagebuild-source=.", "--stagebuild-prune").given
        assert given_options == ("--stagebuild-prune", "--stagebuild-source=.")

    def test_what_the_table_says_is_not_repeated(self, project: Project) -> None:
        assert project.table('image = "debian"\nenv = { A = "1" }').settings().given == ()

    text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)

    @hypothesis_settings(deadline=None)
    @given(
        st.builds(
            CommandLine,
            source=st.just("."),
            install_cmd=st.none() | text,
            build_cmd=st.none() | text,
            test_cmd=st.none() | text,
            timeout=st.none() | st.floats(0.001, 1e6),
            prune=st.none() | st.integers(0, 99) | st.just("table"),
            env=st.lists(st.builds("{}={}".format, st.sampled_from("AB"), st.text(max_size=9)), max_size=2).map(tuple),
            artifacts=st.lists(text, max_size=2).map(tuple),
        )
    )
    def test_a_shell_that_reads_it_and_our_parser_come_to_the_same_command_line(
        self, tmp_path_factory: pytest.TempPathFactory, typed: CommandLine
    ) -> None:
        folder = tmp_path_factory.getbasetemp()
        typed = replace(typed, env=tuple(text.replace("\0", "") for text in typed.env))
        (folder / "README").touch()
        settings = load_settings(typed, default_source=folder, environ={}, invocation_dir=folder)
        assert parse(*shlex.split(shlex.join(settings.given))) == typed


class TestSource:
    def test_one_that_is_not_there(self, project: Project) -> None:
        assert project.refusal("--stagebuild-source=gone") == (
            f"the source {project.folder / 'gone'} does not exist. "
            "Name the folder of a project with --stagebuild-source."
        )

    def test_a_file(self, project: Project) -> None:
        assert "pyproject.toml is not a folder." in project.refusal("--stagebuild-source=pyproject.toml")

    @pytest.mark.parametrize("content", [(), (".stagebuild", ".git")])
    def test_an_empty_one(self, project: Project, content: tuple[str, ...]) -> None:
        (project.folder / "sub").mkdir()
        for name in content:
            (project.folder / "sub" / name).mkdir()
        assert "sub is empty." in project.refusal("--stagebuild-source=sub")

    def test_a_loop_of_links(self, project: Project) -> None:
        (project.folder / "loop").symlink_to("loop")
        assert "loop" in project.refusal("--stagebuild-source=loop")

    def test_a_name_that_is_too_long(self, project: Project) -> None:
        assert "cannot be read: File name too long." in project.refusal(f"--stagebuild-source={'x' * 300}")

    def test_a_link_to_a_folder_is_resolved(self, project: Project) -> None:
        (project.folder / "link").symlink_to(project.folder)
        assert project.settings("--stagebuild-source=link").source == project.folder

    def test_a_home_folder_is_found(self, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(project.folder))
        assert project.settings("--stagebuild-source=~").source == project.folder

    def test_a_pyproject_that_is_not_toml(self, project: Project) -> None:
        (project.folder / "pyproject.toml").write_text("[project\n")
        assert "pyproject.toml is not valid TOML: " in project.refusal()


class TestRefusals:
    def test_from_and_rebuild_exclude_each_other(self, project: Project) -> None:
        assert "give one of them" in project.refusal("--stagebuild-from=base", "--stagebuild-rebuild")

    @pytest.mark.parametrize("option", ["source", "image", "test-cmd", "engine", "from", "artifact", "lockfile"])
    def test_an_option_without_a_value(self, project: Project, option: str) -> None:
        assert f"--stagebuild-{option} has no value" in project.refusal(f"--stagebuild-{option}=")

    @pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
    def test_a_timeout_that_is_none(self, project: Project, seconds: str) -> None:
        message = project.refusal(f"--stagebuild-timeout={seconds}")
        assert "--stagebuild-timeout must be a positive number of seconds" in message

    def test_host_tests_outside_the_source(self, project: Project) -> None:
        assert "--stagebuild-host-tests: " in project.refusal("--stagebuild-host-tests=../x")
        assert "lies outside the source" in project.table('host_tests = ["/etc"]').refusal()

    def test_junit_files_of_tests_that_are_parted(self, project: Project) -> None:
        assert "give one of the two" in project.refusal("--stagebuild-junit=r.xml", "--stagebuild-isolate=file")
        project.table('junit = ["r.xml"]')
        assert "give one of the two" in project.refusal("--stagebuild-isolate=file")

    @pytest.mark.parametrize("typed", ["isolate=each", "jobs=0", "jobs=many", "downloads=none"])
    def test_what_is_no_choice(self, typed: str, pytester: pytest.Pytester) -> None:
        assert pytester.runpytest_inprocess(f"--stagebuild-{typed}").ret == pytest.ExitCode.USAGE_ERROR

    def test_a_lockfile_that_is_a_folder(self, project: Project) -> None:
        assert "is a folder. Name a file in it." in project.refusal("--stagebuild-lockfile=.")

    @pytest.mark.parametrize(
        "image", ["Debian", "tag:", "a b", "debian:", "debian@sha256:12", "-x", "a//b", "a:b:c", "é"]
    )
    def test_a_text_that_is_no_image(self, project: Project, image: str) -> None:
        assert f"--stagebuild-image: {image!r} is no image." in project.refusal(f"--stagebuild-image={image}")

    def test_an_image_of_the_table_is_named_with_its_file(self, project: Project) -> None:
        assert project.table('image = "Debian"').refusal().startswith("pyproject.toml: key `image`: 'Debian'")


@pytest.mark.parametrize(
    "image",
    [
        "python:3.11-slim",
        "tag:python:3.11-slim",
        "debian",
        "localhost:5000/team/app:v1.2_3",
        "REGISTRY.example/team/app",
        "ghcr.io/a/b-c/d__e@sha256:" + "0" * 64,
        "debian:12@sha256:" + "0" * 64,
        "sha256:" + "0" * 64,
        "3f2c1a9e",
        "3f2c1a9e-8b1d-4c6f-9e2a-5d7b8c9d0e1f",
    ],
)
def test_a_text_that_may_be_an_image_is_left_as_it_is(project: Project, image: str) -> None:
    settings = project.settings(f"--stagebuild-image={image}")
    assert (settings.image, settings.image_given, settings.image_detected) == (image, True, False)


def test_help_explains_every_option(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--help")
    result.stdout.fnmatch_lines(
        [
            "staged build: image, install, build, test, each from a checkpoint:",
            "*--stagebuild-source=DIR",
            "*take the project in DIR through its stages*",
            "*--stagebuild-image=REF*",
            "*--stagebuild-install-cmd=CMD",
            "*--stagebuild-build-cmd=CMD",
            "*--stagebuild-test-cmd=CMD",
            "*--stagebuild-engine=NAME",
            "*--stagebuild-from=CHECKPOINT",
            "*--stagebuild-rebuild=[[]STAGE[]]",
            "*--stagebuild-plan*",
            "*--stagebuild-prune=[[]KEEP[]]*",
            "*--stagebuild-timeout=SECONDS",
            "*longest time of each stage (default: 1800)",
            "*--stagebuild-env=NAME[[]=VALUE[]]*",
            "*--stagebuild-secret=NAME",
            "*--stagebuild-artifact=PATH",
            "*--stagebuild-host-tests=PATH",
            "*--stagebuild-downloads=*",
            "*--stagebuild-lockfile=FILE*",
        ]
    )
