from __future__ import annotations

import shlex
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_stagebuild.detection import Detection, detect, python_image
from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.project import ProjectFiles, anchor, project_name, read_project
from pytest_stagebuild.stage import StageName

PACKAGE = '[build-system]\nrequires = ["hatchling"]\n[project]\nname = "demo"\n'


def project(folder: Path, **files: str) -> ProjectFiles:
    """A project with these files; `__` stands for the dot and `___` for the slash in their names."""
    for name, text in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(dedent(text))
    return read_project(folder)


def detected(files: ProjectFiles, **given_commands: str) -> Detection:
    commands: dict[StageName, str] = {}
    for name in ("install", "build", "test"):
        if name in given_commands:
            commands[name] = given_commands[name]
    return detect(files, commands)


def commands(files: ProjectFiles, **given_commands: str) -> tuple[str, str, str]:
    found = detected(files, **given_commands).commands
    return found["install"], found["build"], found["test"]


class TestPythonPackage:
    def test_the_tools_of_the_later_commands_are_installed(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE)
        assert commands(files) == ("pip install -e . build pytest", "python -m build", "pytest")

    def test_tools_that_no_later_command_uses_are_not(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE)
        given_commands = {"build": "make wheel", "test": "python -m unittest"}
        assert commands(files, **given_commands) == ("pip install -e .", "make wheel", "python -m unittest")

    @pytest.mark.parametrize(
        "command", ["pytest -q", "python -m pytest", "coverage run -m pytest", "py.test", "a;pytest"]
    )
    def test_a_given_command_that_runs_pytest_brings_it(self, tmp_path: Path, command: str) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE)
        assert commands(files, build="true", test=command)[0] == "pip install -e . pytest"

    @pytest.mark.parametrize("command", ["cat pytest.ini", "pip show pytest-cov", "mypytest"])
    def test_a_command_that_only_looks_like_it_does_not(self, tmp_path: Path, command: str) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE)
        assert commands(files, build="true", test=command)[0] == "pip install -e ."

    def test_a_given_command_stays_as_it_is(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE)
        assert commands(files, install="make deps") == ("make deps", "python -m build", "pytest")

    def test_the_first_extra_in_the_order_of_test_names_is_taken(self, tmp_path: Path) -> None:
        extras = "[project.optional-dependencies]\ndev = []\ndocs = []\nTests = []\n"
        files = project(tmp_path, pyproject__toml=PACKAGE + extras)
        assert commands(files)[0] == "pip install -e '.[Tests]' build pytest"

    def test_an_extra_goes_before_a_group(self, tmp_path: Path) -> None:
        tables = "[project.optional-dependencies]\ndev = []\n[dependency-groups]\ntest = ['nose']\n"
        files = project(tmp_path, pyproject__toml=PACKAGE + tables)
        assert commands(files)[0] == "pip install -e '.[dev]' build pytest"

    def test_a_group_is_resolved_and_quoted(self, tmp_path: Path) -> None:
        groups = """
        [dependency-groups]
        base = ["pytest>=8", "tomli; python_version < '3.11'"]
        tests = [{include-group = "base"}, "hypothesis[cli]"]
        """
        files = project(tmp_path, pyproject__toml=PACKAGE + dedent(groups))
        assert shlex.split(commands(files)[0]) == [
            *("pip", "install", "-e", "."),
            *("pytest>=8", 'tomli; python_version < "3.11"', "hypothesis[cli]", "build"),
        ]

    def test_a_tool_that_the_group_asks_for_only_somewhere_is_installed_everywhere(self, tmp_path: Path) -> None:
        groups = "[dependency-groups]\ntest = [\"pytest; sys_platform == 'win32'\"]\n"
        files = project(tmp_path, pyproject__toml=PACKAGE + groups)
        assert commands(files)[0].endswith(" build pytest")

    def test_a_group_that_cannot_be_resolved_is_named(self, tmp_path: Path) -> None:
        groups = '[dependency-groups]\ntest = [{include-group = "nowhere"}]\n'
        files = project(tmp_path, pyproject__toml=PACKAGE + groups)
        with pytest.raises(ConfigurationError, match=r"`test` in \[dependency-groups\] cannot be resolved: .*nowhere"):
            detected(files)

    def test_a_group_that_is_not_needed_need_not_be_resolvable(self, tmp_path: Path) -> None:
        groups = "[dependency-groups]\ntest = 3\n"
        files = project(tmp_path, pyproject__toml=PACKAGE + groups)
        assert commands(files, install="make")[0] == "make"

    def test_setup_py_alone_is_a_package(self, tmp_path: Path) -> None:
        setup = """
        import setuptools
        TEST = ["nose"]
        EXTRAS = {"test": TEST, "docs": []}
        setuptools.setup(name="My.Demo", python_requires=">=3.12", extras_require=EXTRAS, packages=find())
        """
        files = project(tmp_path, setup__py=setup)
        assert commands(files)[0] == "pip install -e '.[test]' build pytest"
        assert detected(files).image == "python:3.12-slim"
        assert project_name(files) == "my-demo"

    def test_setup_cfg_declares_for_setup_py(self, tmp_path: Path) -> None:
        cfg = """
        [metadata]
        name = Demo_Project
        [options]
        python_requires = >=3.13
        [options.extras_require]
        testing = nose
        """
        files = project(tmp_path, setup__py="from setuptools import setup; setup()", setup__cfg=cfg)
        assert commands(files)[0] == "pip install -e '.[testing]' build pytest"
        assert detected(files).image == "python:3.13-slim"
        assert project_name(files) == "demo-project"

    def test_a_setup_py_that_cannot_be_parsed_is_a_package_still(self, tmp_path: Path) -> None:
        assert commands(project(tmp_path, setup__py="print 'old'"))[1] == "python -m build"


class TestUv:
    PROJECT = PACKAGE + '[dependency-groups]\ndev = ["pytest"]\n'

    def test_the_commands_are_uv_s(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=self.PROJECT, uv__lock="")
        assert commands(files) == ("pip install uv && uv sync --group dev", "uv build", "uv run pytest")

    def test_it_goes_before_every_other_tool(self, tmp_path: Path) -> None:
        files = project(
            tmp_path, pyproject__toml=self.PROJECT, uv__lock="", poetry__lock="", Cargo__toml="", package__json="{}"
        )
        assert commands(files)[1] == "uv build"

    def test_an_extra_for_tests_is_chosen(self, tmp_path: Path) -> None:
        extras = '[project.optional-dependencies]\ntest = ["pytest>=8"]\n'
        files = project(tmp_path, pyproject__toml=PACKAGE + extras, uv__lock="")
        assert commands(files)[0::2] == ("pip install uv && uv sync --extra test", "uv run pytest")

    def test_a_project_that_does_not_declare_pytest_gets_it_for_the_run(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE, uv__lock="")
        assert commands(files)[0::2] == ("pip install uv && uv sync", "uv run --with pytest pytest")

    def test_a_group_in_the_group_for_tests_may_be_what_declares_pytest(self, tmp_path: Path) -> None:
        groups = '[dependency-groups]\nbase = ["pytest"]\ntest = [{include-group = "base"}]\n'
        files = project(tmp_path, pyproject__toml=PACKAGE + groups, uv__lock="")
        assert commands(files)[0::2] == ("pip install uv && uv sync --group test", "uv run pytest")

    def test_an_application_is_not_built(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml='[project]\nname = "app"\n', uv__lock="")
        found = detected(files)
        assert found.commands["build"] == "true"
        assert found.notes == ("the project is not a package: there is nothing to build",)

    def test_a_workspace_without_a_project_is_taken_whole(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml='[tool.uv.workspace]\nmembers = ["a"]\n', uv__lock="")
        assert commands(files)[:2] == ("pip install uv && uv sync --all-packages", "uv build --all-packages")

    def test_uv_takes_the_python_of_the_image_where_the_project_names_one(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=self.PROJECT, uv__lock="", **{"__python-version": "3.13\n"})
        assert commands(files) == (
            "pip install uv && uv sync --python 3 --group dev",
            "uv build --python 3",
            "uv run --python 3 pytest",
        )

    def test_a_given_build_command_finds_its_tool(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=self.PROJECT, uv__lock="")
        assert commands(files, build="python -m build")[0] == "pip install uv build && uv sync --group dev"


class TestPoetry:
    PROJECT = """
    [tool.poetry]
    name = "Demo_App"
    [tool.poetry.dependencies]
    python = "^3.12"
    [tool.poetry.group.dev.dependencies]
    pytest = "*"
    """

    def test_the_commands_are_poetry_s(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=self.PROJECT, poetry__lock="")
        assert detected(files) == Detection(
            "python:3.12-slim",
            {
                "install": "pip install poetry && poetry install",
                "build": "poetry build",
                "test": "poetry run pytest",
            },
        )

    def test_without_a_lock_pip_installs_what_poetry_would_build(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml=PACKAGE + dedent(self.PROJECT))
        assert commands(files) == ("pip install -e . pytest build", "python -m build", "pytest")

    @pytest.mark.parametrize(
        "table", ["[tool.poetry]\nname = 'demo'\n", PACKAGE + "[tool.poetry]\npackage-mode = false\n"]
    )
    def test_what_pip_cannot_install_is_poetry_s_without_a_lock_too(self, tmp_path: Path, table: str) -> None:
        files = project(tmp_path, pyproject__toml=table)
        assert commands(files)[0].startswith("pip install poetry && poetry install")

    def test_a_project_that_does_not_declare_pytest_gets_it(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml="[tool.poetry]\nname = 'demo'\n", poetry__lock="")
        assert commands(files)[0] == "pip install poetry && poetry install && poetry run pip install pytest"
        assert commands(files, test="poetry run nose")[0] == "pip install poetry && poetry install"

    def test_an_optional_group_for_tests_is_chosen(self, tmp_path: Path) -> None:
        group = "[tool.poetry.group.test]\noptional = true\n[tool.poetry.group.test.dependencies]\npytest = '*'\n"
        files = project(tmp_path, pyproject__toml=group, poetry__lock="")
        assert commands(files)[0] == "pip install poetry && poetry install --with test"

    def test_an_extra_for_tests_is_chosen(self, tmp_path: Path) -> None:
        extras = "[project]\nname = 'demo'\n[project.optional-dependencies]\ntest = ['pytest (>=8)']\n"
        files = project(tmp_path, pyproject__toml=extras, poetry__lock="")
        assert commands(files)[0] == "pip install poetry && poetry install --extras test"

    def test_a_project_that_is_no_package_is_not_built(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml="[tool.poetry]\npackage-mode = false\n", poetry__lock="")
        assert commands(files)[1] == "true"


class TestOtherTools:
    def test_cargo(self, tmp_path: Path) -> None:
        files = project(tmp_path, Cargo__toml='[package]\nname = "demo_crate"\n', package__json="{}")
        assert detected(files) == Detection(
            "rust:1-slim", {"install": "cargo fetch", "build": "cargo build --release", "test": "cargo test"}
        )

    def test_npm(self, tmp_path: Path) -> None:
        assert detected(project(tmp_path, package__json="{}")) == Detection(
            "node:22-slim",
            {"install": "npm install", "build": "npm run build --if-present", "test": "npm test"},
        )

    def test_npm_with_a_lockfile_installs_what_it_locks(self, tmp_path: Path) -> None:
        files = project(tmp_path, **{"package__json": "{}", "package-lock__json": "{}"})
        assert commands(files)[0] == "npm ci"

    def test_a_python_package_goes_before_cargo(self, tmp_path: Path) -> None:
        assert commands(project(tmp_path, pyproject__toml=PACKAGE, Cargo__toml=""))[1] == "python -m build"

    def test_a_pyproject_that_only_configures_tools_does_not_make_a_package(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml="[tool.ruff]\n", Cargo__toml="")
        assert commands(files)[1] == "cargo build --release"


class TestLooseFiles:
    def test_requirements_are_installed_and_nothing_is_built(self, tmp_path: Path) -> None:
        files = project(tmp_path, **{"requirements__txt": "", "requirements-dev__txt": ""})
        assert detected(files) == Detection(
            None,
            {
                "install": "pip install -r requirements.txt -r requirements-dev.txt pytest",
                "build": "true",
                "test": "pytest",
            },
            ("the project is not a package: there is nothing to build",),
        )

    def test_requirements_are_named_once(self, tmp_path: Path) -> None:
        assert commands(project(tmp_path, requirements__txt="pytest\n"))[0] == "pip install -r requirements.txt pytest"

    def test_a_dependency_group_needs_no_package(self, tmp_path: Path) -> None:
        files = project(tmp_path, pyproject__toml='[dependency-groups]\ntest = ["pytest~=8.0"]\n')
        assert commands(files) == ("pip install 'pytest~=8.0'", "true", "pytest")

    def test_tests_alone_get_pytest(self, tmp_path: Path) -> None:
        assert commands(project(tmp_path, test_it__py="")) == ("pip install pytest", "true", "pytest")

    def test_where_nothing_is_needed_nothing_is_installed(self, tmp_path: Path) -> None:
        files = project(tmp_path, Makefile="")
        assert commands(files, build="make", test="make check") == ("true", "make", "make check")


@pytest.mark.parametrize(
    ("requirement", "image"),
    [
        (">=3.8", "python:3.11-slim"),
        (">=3.12", "python:3.12-slim"),
        (">=3.11.4", "python:3.11-slim"),
        (">= 3.13, < 4", "python:3.13-slim"),
        ("!=3.11.*,>=3.9", "python:3.12-slim"),
        ("~=3.11.2", "python:3.11-slim"),
        (">=3.8,<3.11", "python:3.10-slim"),
        ("==3.9.*", "python:3.9-slim"),
        ("^3.12", "python:3.12-slim"),
        ("^3", "python:3.11-slim"),
        ("~3.13", "python:3.13-slim"),
        ("~3.10.2", "python:3.10-slim"),
        ("3.12", "python:3.12-slim"),
        ("3.13.*", "python:3.13-slim"),
        ("*", "python:3.11-slim"),
        ("~2.7 || ^3.12", "python:3.12-slim"),
        (">=3.12 <4.0", "python:3.12-slim"),
    ],
)
def test_the_image_has_the_lowest_python_from_3_11_that_is_admitted(requirement: str, image: str) -> None:
    assert python_image(requirement) == (image, [])


@pytest.mark.parametrize(
    ("requirement", "note"),
    [
        ("<3", "no image fits the Python versions that the project asks for: <3"),
        ("three", "the Python versions that the project asks for cannot be read: three"),
    ],
)
def test_where_no_image_can_be_told_a_note_says_why(requirement: str, note: str) -> None:
    assert python_image(requirement) == (None, [note])


def test_a_project_that_asks_for_no_python_asks_for_no_image(tmp_path: Path) -> None:
    assert detected(project(tmp_path, pyproject__toml=PACKAGE)).image is None


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("pyproject__toml", '[project]\nname = "My_Project.X"\n', "my-project-x"),
        ("pyproject__toml", '[tool.poetry]\nname = "Poem"\n', "poem"),
        ("Cargo__toml", '[package]\nname = "crate_one"\n', "crate-one"),
        ("package__json", '{"name": "@scope/thing"}', "@scope/thing"),
        ("setup__cfg", "[metadata]\nname = Old\n", "old"),
        ("package__json", '{"name": 3}', "Folder"),
        ("package__json", "not json", "Folder"),
        ("Cargo__toml", "[[[", "Folder"),
        ("setup__cfg", "name = Old", "Folder"),
    ],
)
def test_a_project_is_called_what_it_calls_itself_else_after_its_folder(
    tmp_path: Path, name: str, text: str, expected: str
) -> None:
    folder = tmp_path / "Folder"
    folder.mkdir()
    assert project_name(project(folder, **{name: text})) == expected


def test_stages_stand_on_the_first_file_that_describes_the_project(tmp_path: Path) -> None:
    assert anchor(project(tmp_path, README="")) is None
    found = []
    for name in ("package.json", "Cargo.toml", "setup.py", "stagebuild.toml", "pyproject.toml"):
        (tmp_path / name).write_text("")
        found.append(anchor(read_project(tmp_path)))
    assert found == ["package.json", "Cargo.toml", "setup.py", "stagebuild.toml", "pyproject.toml"]


LOCKS = ("uv.lock", "poetry.lock", "setup.py", "Cargo.toml", "package.json", "requirements.txt", "README")
values = st.recursive(
    st.text(max_size=5) | st.integers() | st.booleans(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)
tables = st.fixed_dictionaries(
    {},
    optional={
        "build-system": values,
        "project": values
        | st.fixed_dictionaries(
            {}, optional={"optional-dependencies": values, "requires-python": values, "name": values}
        ),
        "dependency-groups": values | st.dictionaries(st.sampled_from(["test", "dev", "Test"]), values),
        "tool": values
        | st.fixed_dictionaries(
            {},
            optional={
                "poetry": values
                | st.fixed_dictionaries(
                    {}, optional={"group": st.dictionaries(st.just("test"), values), "name": values}
                ),
                "uv": values,
                "pdm": values | st.fixed_dictionaries({"dev-dependencies": values}),
                "hatch": values | st.fixed_dictionaries({"envs": values}),
            },
        ),
    },
)


@settings(deadline=None)
@given(tables, st.sets(st.sampled_from(LOCKS)))
def test_whatever_pyproject_holds_there_are_commands_or_a_refusal(
    pyproject: dict[str, object], names: set[str]
) -> None:
    files = ProjectFiles("folder", frozenset({*names, "pyproject.toml"}), pyproject=pyproject)
    assert project_name(files)
    try:
        found = detect(files, {})
    except ConfigurationError as error:
        refusal = str(error)
    else:
        refusal = ""
        assert all(found.commands[name].strip() for name in ("install", "build", "test"))
    assert refusal == "" or "[dependency-groups]" in refusal


requirements = st.builds(
    "{}{}{}".format,
    st.sampled_from(["pytest", "a-b", "x[y,z]"]),
    st.sampled_from(["", ">=1,<2", " @ https://example.org/a?b=$c&d='e'", "!=1.*"]),
    st.sampled_from(["", " ; python_version < '3.11'", ' ; sys_platform != "win32" and extra == "it\'s"']),
)


@settings(deadline=None)
@given(st.lists(requirements, min_size=1))
def test_a_shell_reads_the_requirements_of_a_group_as_they_are(group: list[str]) -> None:
    from packaging.requirements import Requirement

    pyproject = {"project": {}, "dependency-groups": {"test": group}}
    install = detect(ProjectFiles("folder", frozenset(), pyproject=pyproject), {}).commands["install"]
    words = shlex.split(install)
    assert words[:4] == ["pip", "install", "-e", "."]
    assert [Requirement(word) for word in words[4 : 4 + len(group)]] == [Requirement(text) for text in group]
