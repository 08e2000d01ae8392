from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from pytest_stagebuild.needs import Needs, declared_needs
from pytest_stagebuild.project import read_project

PROJECT = '[project]\nname = "My_Demo"\n'


def needs(folder: Path, files: dict[str, str]) -> Needs:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(dedent(text))
    return declared_needs(read_project(folder))


def test_a_project_that_declares_nothing_needs_nothing(tmp_path: Path) -> None:
    assert needs(tmp_path, {"pyproject.toml": PROJECT, "requirements.txt": "requests\n"}) == Needs()


def test_a_group_that_asks_for_the_project_asks_for_its_extras(tmp_path: Path) -> None:
    """pip would look for the project in its index, and take an old release of it."""
    groups = '[dependency-groups]\ntest = ["pytest", "my.demo[cli, socks]", "my-demo", "my-demo-plugin[x]"]\n'
    assert needs(tmp_path, {"pyproject.toml": PROJECT + groups}) == Needs(
        ("cli", "socks"), ("pytest", "my-demo-plugin[x]")
    )


@pytest.mark.parametrize(
    "name",
    [
        "requirements-dev.txt",
        "requirements_test.txt",
        "test-requirements.txt",
        "dev.requirements.txt",
        "requirements/tests.txt",
        "requirements/requirements-tests.txt",
        "tests/requirements.txt",
    ],
)
def test_files_of_requirements_are_known_by_their_names(tmp_path: Path, name: str) -> None:
    assert needs(tmp_path, {"pyproject.toml": PROJECT, name: "nose\n"}) == Needs((), ("-r", name))


def test_a_requirements_txt_that_names_pytest_is_for_tests(tmp_path: Path) -> None:
    files = {"pyproject.toml": PROJECT, "requirements.txt": "ruff\npytest>=8  # for tests\n"}
    assert needs(tmp_path, files) == Needs((), ("-r", "requirements.txt"))


def test_groups_of_pdm(tmp_path: Path) -> None:
    groups = (
        '[tool.pdm.dev-dependencies]\nlint = ["ruff"]\ntest = ["pytest>=8", "-e file:///${PROJECT_ROOT}/x#egg=x"]\n'
    )
    assert needs(tmp_path, {"pyproject.toml": PROJECT + groups}) == Needs((), ("pytest>=8",))


def test_groups_of_poetry(tmp_path: Path) -> None:
    groups = (
        '[tool.poetry.group.lint.dependencies]\nruff = "*"\n[tool.poetry.group.test.dependencies]\npytest = "^8.1"\n'
    )
    assert needs(tmp_path, {"pyproject.toml": PROJECT + groups}) == Needs((), ("pytest>=8.1,<9",))


def test_the_older_development_dependencies_of_poetry(tmp_path: Path) -> None:
    table = '[tool.poetry.dev-dependencies]\npytest = "*"\n'
    assert needs(tmp_path, {"pyproject.toml": PROJECT + table}) == Needs((), ("pytest",))


def test_environments_of_hatch_are_made_on_the_default_one(tmp_path: Path) -> None:
    environments = """
    [tool.hatch.envs.default]
    dependencies = ["pytest"]
    features = ["cli"]
    [tool.hatch.envs.lint]
    dependencies = ["ruff"]
    [tool.hatch.envs.test]
    extra-dependencies = ["trustme", "helpers @ {root:uri}/helpers"]
    """
    assert needs(tmp_path, {"pyproject.toml": PROJECT + dedent(environments)}) == Needs(("cli",), ("pytest", "trustme"))


def test_the_default_environment_of_hatch_counts_where_it_has_pytest(tmp_path: Path) -> None:
    table = '[tool.hatch.envs.default]\ndependencies = ["{}"]\n'
    assert needs(tmp_path, {"pyproject.toml": PROJECT + table.format("ruff")}) == Needs()
    assert needs(tmp_path, {"pyproject.toml": PROJECT + table.format("pytest")}) == Needs((), ("pytest",))


def test_what_tox_installs_wherever_it_runs_the_tests(tmp_path: Path) -> None:
    tox = """
    [testenv]
    deps =
        # for everyone
        freezegun  # and for everyone else
        -r{toxinidir}/tools/pins.txt
        -c constraints.txt
        py311: tomli
        !lint: nose
        {env:EXTRA}
        .[cli]
        helper @ https://example.org/helper.zip
    [testenv:lint]
    deps = ruff
    """
    assert needs(tmp_path, {"pyproject.toml": PROJECT, "tox.ini": tox}) == Needs(
        ("cli",),
        ("freezegun", "-r", "./tools/pins.txt", "-c", "constraints.txt", "helper @ https://example.org/helper.zip"),
    )


def test_the_first_place_that_holds_anything_is_enough(tmp_path: Path) -> None:
    """From the last to the first, each goes before those after it."""
    pyproject = PROJECT
    files = {"pyproject.toml": pyproject}
    found = []
    for name, text in (
        ("requirements.txt", "pytest\n"),
        ("tox.ini", "[testenv]\ndeps = tox-dep\n"),
        ("requirements-dev.txt", ""),
    ):
        found.append(needs(tmp_path, {**files, name: text}).arguments)
    for table in (
        '[tool.hatch.envs.test]\ndependencies = ["hatch-dep"]\n',
        '[tool.poetry.group.test.dependencies]\npoetry-dep = "*"\n',
        '[tool.pdm.dev-dependencies]\ntest = ["pdm-dep"]\n',
        '[dependency-groups]\ntest = ["group-dep"]\n',
    ):
        pyproject += table
        found.append(needs(tmp_path, {"pyproject.toml": pyproject}).arguments)
    assert found == [
        ("-r", "requirements.txt"),
        ("tox-dep",),
        ("-r", "requirements-dev.txt"),
        ("hatch-dep",),
        ("poetry-dep",),
        ("pdm-dep",),
        ("group-dep",),
    ]
    pyproject += '[project.optional-dependencies]\ndev = ["extra-dep"]\n'
    assert needs(tmp_path, {"pyproject.toml": pyproject}) == Needs(("dev",), ())
