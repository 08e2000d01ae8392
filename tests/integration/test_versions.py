"""Versions that come from git: worked out here, for an image that has no git."""

from __future__ import annotations

from textwrap import dedent

import pytest

pytestmark = pytest.mark.slow

BACK_ENDS = {
    "setuptools-scm": """
        [build-system]
        requires = ["setuptools>=77", "setuptools-scm>=8"]
        build-backend = "setuptools.build_meta"

        [tool.setuptools_scm]

        [tool.setuptools]
        packages = ["demo"]
        """,
    "hatch-vcs": """
        [build-system]
        requires = ["hatchling", "hatch-vcs"]
        build-backend = "hatchling.build"

        [tool.hatch.version]
        source = "vcs"

        [tool.hatch.build.targets.wheel]
        packages = ["demo"]
        """,
}

TEST = """
    from importlib.metadata import version
    from shutil import which

    def test_the_version_is_the_tag_though_there_is_no_git():
        assert version("{name}") == "1.2.3"
        assert which("git") is None
    """


@pytest.fixture(params=BACK_ENDS)
def tagged(request: pytest.FixtureRequest, new_project):
    """A project in a repository of its own whose last commit has the tag v1.2.3."""
    project = new_project()
    declared = f'[project]\nname = "{project.name}"\ndynamic = ["version"]\n'
    project.write(
        {
            "pyproject.toml": declared + dedent(BACK_ENDS[request.param]),
            "demo/__init__.py": "",
            "tests/test_version.py": dedent(TEST).format(name=project.name),
        }
    )
    project.git("init", "--quiet")
    project.git("add", ".")
    project.git("commit", "--quiet", "--message=one")
    project.git("tag", "v1.2.3")
    return project


def built(project) -> str:
    """The last line that the build printed, which names what it made."""
    return (project.root / ".stagebuild" / "logs" / "build.log").read_text().splitlines()[-1]


def test_the_version_is_worked_out_here_and_belongs_to_build(tagged):
    first = tagged.stagebuild()
    assert first.code == 0, first.output
    assert first.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert "stagebuild: version 1.2.3" in first.output
    assert "-1.2.3.tar.gz" in built(tagged)

    tagged.git("tag", "--delete", "v1.2.3")
    tagged.git("tag", "v1.3.0")
    second = tagged.stagebuild()
    assert second.code == 0, second.output
    assert second.outcomes() == {"install": "CACHED", "build": "ran", "test": "ran"}
    assert "install was made as version 1.2.3, the source is now 1.3.0" in second.output
    assert "version changed" in second.row("build")
    assert "-1.3.0.tar.gz" in built(tagged)

    tagged.git("tag", "--delete", "v1.3.0")
    tagged.git("tag", "v1.2.3")
    third = tagged.stagebuild()
    assert third.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert "install was made" not in third.output


def test_a_version_that_cannot_be_worked_out_is_said_with_the_way_to_give_one(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    table = (project.root / "pyproject.toml").read_text().replace('version = "1"', 'dynamic = ["version"]')
    project.write({"pyproject.toml": table + dedent(BACK_ENDS["setuptools-scm"]), "demo/__init__.py": ""})
    run = project.stagebuild()
    assert run.code == 0, run.output
    variable = f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{project.name.upper().replace('-', '_')}"
    assert f"--stagebuild-env={variable}=VERSION" in run.output.replace("\n", "")
