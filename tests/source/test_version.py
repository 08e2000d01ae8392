from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_stagebuild.source.version import ScmVersion, scm_version

GENERIC = "SETUPTOOLS_SCM_PRETEND_VERSION"
SETUPTOOLS = """
    [build-system]
    requires = ["setuptools", "setuptools-scm"]
    build-backend = "setuptools.build_meta"
    [project]
    name = "Demo.My-pkg"
    dynamic = ["version"]
    [tool.setuptools]
    packages = []
    [tool.setuptools_scm]
    """
HATCH = """
    [build-system]
    requires = ["hatchling", "hatch-vcs"]
    build-backend = "hatchling.build"
    [project]
    name = "demo"
    dynamic = ["version"]
    [tool.hatch.build.targets.wheel]
    bypass-selection = true
    [tool.hatch.version]
    source = "vcs"
    """
DEMO = f"{GENERIC}_FOR_DEMO_MY_PKG"


@pytest.fixture(autouse=True)
def no_variables_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SETUPTOOLS_SCM", "VCS_VERSIONING", "GIT_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{person}_NAME", "someone")
        monkeypatch.setenv(f"GIT_{person}_EMAIL", "someone@example.org")


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(textwrap.dedent(content))
    return folder


def repository(folder: Path, tag: str | None = "v1.2.3") -> Path:
    """All files committed, tagged, and one commit since then, so that no version can be right by chance."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "first")
    if tag:
        git(folder, "tag", tag)
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "second")
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Callable[..., Path]:
    def make(pyproject: str = SETUPTOOLS, *, tag: str | None = "v1.2.3", **files: str) -> Path:
        if pyproject:
            files["pyproject__toml"] = pyproject
        return repository(write(tmp_path / "project", **files), tag)

    return make


Project = Callable[..., Path]


def test_a_project_with_a_version_of_its_own_gets_none(project: Project) -> None:
    assert scm_version(project('[project]\nname = "demo"\nversion = "1.0"\n[tool.setuptools_scm]\n')) is None


@pytest.mark.parametrize(
    "pyproject",
    [
        "",
        "not toml",
        '[project]\nname = "demo"\ndynamic = ["version"]\n',
        SETUPTOOLS.replace("[tool.setuptools_scm]", '[tool.setuptools.dynamic.version]\nattr = "demo.version"'),
        HATCH.replace('"vcs"', '"regex"'),
    ],
)
def test_a_project_that_uses_neither_tool_gets_no_version(project: Project, pyproject: str) -> None:
    assert scm_version(project(pyproject, setup__py="from setuptools import setup\nsetup()\n")) is None


def test_the_version_is_for_the_one_distribution(project: Project) -> None:
    found = scm_version(project())
    assert found is not None
    assert (dict(found.variables), found.problem) == ({DEMO: found.version}, "")
    assert found.version.startswith("1.2.4.dev1+g")


def test_changes_that_are_not_committed_count(project: Project) -> None:
    root = project(setup__py="")
    (root / "setup.py").write_text("# changed")
    found = scm_version(root)
    assert found is not None
    assert found.version.startswith("1.2.4.dev1+g")
    assert ".d20" in found.version


def test_hatch_gets_the_only_variable_that_it_honours(project: Project) -> None:
    found = scm_version(project(HATCH))
    assert found is not None
    assert found.variables == {GENERIC: found.version}


@pytest.mark.parametrize("bound", ["<8", "~=7.1", "==6.*", ">=6,<=7.1.0"])
def test_a_setuptools_scm_before_8_gets_the_only_variable_that_a_shell_passes_on_to_it(
    project: Project, bound: str
) -> None:
    found = scm_version(project(SETUPTOOLS.replace('"setuptools-scm"', f'"setuptools_scm[toml]{bound}"')))
    assert found is not None
    assert found.variables == {GENERIC: found.version}


@pytest.mark.parametrize("bound", ["", "<9", "==8.*", ">=6", "~=8.1", "<8.1", "!=7.0"])
def test_a_setuptools_scm_that_may_be_newer_gets_the_variable_of_the_distribution(project: Project, bound: str) -> None:
    found = scm_version(project(SETUPTOOLS.replace('"setuptools-scm"', f'"setuptools-scm{bound}"')))
    assert found is not None
    assert list(found.variables) == [DEMO]


def test_a_version_pretended_here_is_pretended_there(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GENERIC, "9.9")
    assert scm_version(project()) == ScmVersion({DEMO: "9.9"}, "9.9")


def test_a_worktree_has_the_version_of_its_own_commit(project: Project, tmp_path: Path) -> None:
    git(project(), "worktree", "add", "--quiet", "--detach", str(tmp_path / "worktree"), "v1.2.3")
    assert scm_version(tmp_path / "worktree") == ScmVersion({DEMO: "1.2.3"}, "1.2.3")


def test_without_commits_the_version_is_what_the_tool_would_say(tmp_path: Path) -> None:
    root = write(tmp_path / "project", pyproject__toml=SETUPTOOLS)
    git(root, "init", "--quiet")
    found = scm_version(root)
    assert found is not None
    assert found.version.startswith("0.1.dev0")


def unavailable(reason: str, variable: str = DEMO, tool: str = "setuptools-scm") -> Callable[[Path], ScmVersion]:
    return lambda root: ScmVersion(
        problem=f"{tool} has no version for {root}: {reason}; give one with --stagebuild-env={variable}=VERSION"
    )


def test_without_a_repository_git_says_what_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path / "project", pyproject__toml=SETUPTOOLS)
    expected = unavailable("not a git repository (or any of the parent directories): .git")
    assert scm_version(root) == expected(root)


def test_without_git_it_is_git_that_is_missing(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project()
    monkeypatch.setenv("PATH", "")
    assert scm_version(root) == unavailable("git is not installed here")(root)


def test_a_fallback_version_is_taken_without_git(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    root = project(SETUPTOOLS + 'fallback_version = "0.7"\n')
    monkeypatch.setenv("PATH", "")
    assert scm_version(root) == ScmVersion({DEMO: "0.7"}, "0.7")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder to somebody else")
def test_a_repository_of_somebody_else_has_its_version_all_the_same(project: Project) -> None:
    root = project()
    for path in (root, root / ".git"):
        os.chown(path, 12345, 12345)
    found = scm_version(root)
    assert found is not None
    assert found.version.startswith("1.2.4.dev1+g")


def test_a_subfolder_that_does_not_say_so_is_told_where_the_repository_is(project: Project) -> None:
    root = write(project() / "sub", pyproject__toml=SETUPTOOLS)
    reason = f"the repository is {root.parent}, and the project's `root` does not lead there"
    assert scm_version(root) == unavailable(reason)(root)


def test_a_tag_that_is_no_version_is_named(project: Project) -> None:
    root = project(SETUPTOOLS + 'tag.regex = "^rel(?P<version>.*)$"\n')
    found = scm_version(root)
    assert found is not None
    assert "v1.2.3" in found.problem


@pytest.fixture
def shallow(project: Project, tmp_path: Path) -> Callable[[str], Path]:
    def clone(pyproject: str) -> Path:
        git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{project(pyproject)}", "clone")
        return tmp_path / "clone"

    return clone


@pytest.mark.parametrize("options", ["", '[tool.setuptools_scm.scm.git]\npre_parse = "fetch_on_shallow"\n'])
def test_a_shallow_clone_is_left_shallow_and_said_to_be(shallow: Callable[[str], Path], options: str) -> None:
    root = shallow(SETUPTOOLS.replace("    ", "") + options)
    found = scm_version(root)
    assert found is not None
    assert found.version.startswith("0.1.dev1+g")
    assert found.problem == (
        f"the clone is shallow, so version {found.version} may be wrong: git fetch --unshallow --tags"
    )
    assert (root / ".git/shallow").exists()


def test_a_project_that_refuses_a_shallow_clone_has_no_version_there(shallow: Callable[[str], Path]) -> None:
    root = shallow(SETUPTOOLS.replace("    ", "") + '[tool.setuptools_scm.scm.git]\npre_parse = "fail_on_shallow"\n')
    reason = f'{root} is shallow, please correct with "git fetch --unshallow"'
    assert scm_version(root) == unavailable(reason)(root)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ('version_scheme = "scheme:version"', "no installed package has the `version_scheme` 'scheme:version'"),
        ('local_scheme = "scheme"', "no installed package has the `local_scheme` 'scheme'"),
        ('version_scheme = ["no-guess-dev", "other"]', "no installed package has the `version_scheme` 'other'"),
        ('version_cls = "scheme.Custom"', "`version_cls` scheme.Custom is not known here"),
        ('git_describe_command = "touch ran"', "`describe_command` is no `git describe`: touch ran"),
        ('scm.git.describe_command = ["touch", "ran"]', "`describe_command` is no `git describe`: touch ran"),
        ("nonsense = 1", "nonsense"),
        ("scm = 1", "int"),
        ('tag_regex = "("', "unterminated"),
    ],
)
def test_a_configuration_that_cannot_be_followed_here_is_said_and_runs_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch, option: str, reason: str
) -> None:
    module = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nversion = Custom = str\n"
    root = project(SETUPTOOLS + option + "\n", scheme__py=module)
    monkeypatch.syspath_prepend(root)
    monkeypatch.chdir(root)
    found = scm_version(root)
    assert found is not None
    assert (found.variables, found.version) == ({}, "")
    assert found.problem.startswith(f"setuptools-scm has no version for {root}: ")
    assert reason in found.problem
    assert not (root / "ran").exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("version", "use_scm_version"),
        ('{"version_scheme": version}', "version_scheme"),
        ('{"parse": None}', "parse"),
        ("{**options}", "use_scm_version"),
    ],
)
def test_a_version_that_setup_py_makes_itself_is_left_to_the_user(project: Project, value: str, name: str) -> None:
    root = project("", setup__py=f"from setuptools import setup\nsetup(name='demo', use_scm_version={value})\n")
    reason = f"`{name}` is set by the project's own code, which is not run here"
    assert scm_version(root) == unavailable(reason, f"{GENERIC}_FOR_DEMO")(root)


def test_setup_py_can_decline(project: Project) -> None:
    assert scm_version(project("", setup__py="from setuptools import setup\nsetup(use_scm_version=False)\n")) is None


def test_no_file_is_written(project: Project) -> None:
    root = project(SETUPTOOLS + 'write_to = "one.py"\nversion_file = "two.py"\n')
    assert scm_version(root) is not None
    assert {path.name for path in root.iterdir()} == {".git", "pyproject.toml"}


def test_nothing_is_said_but_in_the_answer(
    project: Project, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    root = project(SETUPTOOLS + 'tag_regex = "^v(?P<version>.*)$"\nrelative_to = "x"\n', tag="v5")
    assert scm_version(root) is not None
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


TOOLS = {
    "setuptools-scm": ("setuptools-scm", "setuptools"),
    "setuptools-scm 8": ("setuptools-scm==8.3.1", "setuptools"),
    "setuptools-scm 7": ("setuptools-scm==7.1.0", "setuptools<80"),
    "hatch-vcs": ("hatch-vcs", "hatchling"),
    "hatch-vcs 0.4": ("hatch-vcs==0.4.0", "hatchling"),
}


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder with a build back end and one of the tools."""
    folders: dict[str, Path] = {}

    def install(tool: str) -> Path:
        if tool not in folders:
            folder = tmp_path_factory.mktemp("tool")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *TOOLS[tool]]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                last = (result.stderr.strip().splitlines() or ["pip failed"])[-1]
                pytest.skip(f"{' and '.join(TOOLS[tool])} cannot be installed from the package index: {last}")
            folders[tool] = folder
        return folders[tool]

    return install


def built_version(root: Path, tool: Path, variables: dict[str, str]) -> str:
    """The version of the wheel that the project's back end builds, run by a shell as the command of a stage is."""
    backend = "hatchling.build" if (tool / "hatchling").exists() else "setuptools.build_meta"
    attribute = "" if (root / "pyproject.toml").exists() else ".__legacy__"
    code = f"import sys, {backend} as b; print(b{attribute}.build_wheel(sys.argv[1]))"
    wheels = root.parent / "wheels"
    wheels.mkdir(exist_ok=True)
    result = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" "{wheels}"; :'],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(tool), **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    wheel = (result.stdout.splitlines() or [""])[-1]
    assert wheel.endswith(".whl"), result.stderr
    return wheel.split("-")[1]


def with_options(pyproject: str, *options: str) -> dict[str, str]:
    return {"pyproject__toml": textwrap.dedent(pyproject) + "\n".join(options) + "\n"}


BUILDS = {
    "setuptools": ("setuptools-scm", with_options(SETUPTOOLS), "v1.2.3"),
    "options": (
        "setuptools-scm",
        with_options(SETUPTOOLS, 'version_scheme = "post-release"', 'local_scheme = "no-local-version"'),
        "v1.2.3",
    ),
    "tag regex": ("setuptools-scm", with_options(SETUPTOOLS, 'tag.regex = "^rel/(?P<version>.*)$"'), "rel/2.0"),
    "tag prefix": (
        "setuptools-scm",
        with_options(SETUPTOOLS, 'scm.git.describe_command = "git describe --dirty --tags --long --match pkg-*"'),
        "pkg-2.0",
    ),
    "not normalised": ("setuptools-scm", with_options(SETUPTOOLS, "normalize = false"), "v1.0.0-rc1"),
    "no tag": ("setuptools-scm", with_options(SETUPTOOLS), None),
    # Older ones abbreviate a commit to fewer digits.
    "setuptools 8": ("setuptools-scm 8", with_options(SETUPTOOLS, 'local_scheme = "no-local-version"'), "v1.2.3"),
    "setuptools 7": (
        "setuptools-scm 7",
        with_options(SETUPTOOLS.replace('"setuptools-scm"', '"setuptools-scm<8"'), 'local_scheme = "no-local-version"'),
        "v1.2.3",
    ),
    "setup.py": (
        "setuptools-scm",
        {
            "setup__py": """\
            from setuptools import setup
            setup(name="demo-pkg", packages=[], use_scm_version={"local_scheme": "dirty-tag", "write_to": "v.py"})
            """
        },
        "v1.2.3",
    ),
    "setup.cfg": (
        "setuptools-scm",
        {
            "setup__cfg": "[metadata]\nname = demo-pkg\n[options]\npackages =\n",
            "pyproject__toml": '[build-system]\nrequires = ["setuptools-scm"]\n[tool.setuptools_scm]\n',
        },
        "v1.2.3",
    ),
    "simple extra": (
        "setuptools-scm",
        with_options(
            SETUPTOOLS.replace('"setuptools-scm"', '"setuptools-scm[simple]"').replace("[tool.setuptools_scm]", "")
        ),
        "v1.2.3",
    ),
    "hatch": ("hatch-vcs", with_options(HATCH), "v1.2.3"),
    "hatch options": (
        "hatch-vcs",
        with_options(
            HATCH,
            'tag-pattern = "^rel/(?P<version>.*)$"',
            'raw-options = {local_scheme = "no-local-version", version_scheme = "no-guess-dev"}',
        ),
        "rel/2.0",
    ),
    "hatch fallback": ("hatch-vcs", with_options(HATCH, 'fallback-version = "3.0"'), None),
    "hatch named": ("hatch-vcs", with_options(HATCH, 'raw-options.dist_name = "demo"'), "v1.2.3"),
    "hatch 0.4": ("hatch-vcs 0.4", with_options(HATCH), "v1.2.3"),
    "hatch.toml": (
        "hatch-vcs",
        {
            **with_options(HATCH.partition("[tool")[0]),
            "hatch__toml": '[version]\nsource = "vcs"\n[build.targets.wheel]\nbypass-selection = true\n',
        },
        "v1.2.3",
    ),
}


def built_apart(root: Path, tool: Path, expected: ScmVersion, away: Path) -> str:
    shutil.copytree(root, away, ignore=shutil.ignore_patterns(".git", "build", "*.egg-info", "v.py"))
    return built_version(away, tool, dict(expected.variables))


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "files", "tag"), BUILDS.values(), ids=BUILDS)
def test_a_build_without_git_has_the_version_of_one_with_it(
    tmp_path: Path, installed: Callable[[str], Path], tool: str, files: dict[str, str], tag: str | None
) -> None:
    root = repository(write(tmp_path / "project", **files), tag)
    found = scm_version(root)
    assert found is not None
    assert found.problem == ""
    assert built_apart(root, installed(tool), found, tmp_path / "away") == built_version(root, installed(tool), {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "files"),
    [
        ("setuptools-scm", with_options(SETUPTOOLS, 'root = ".."')),
        ("setuptools-scm", with_options(SETUPTOOLS, "search_parent_directories = true")),
        ("hatch-vcs", with_options(HATCH, 'raw-options = {root = ".."}')),
        ("hatch-vcs", with_options(HATCH, "raw-options = {search_parent_directories = true}")),
    ],
)
def test_a_subfolder_of_a_repository_has_the_version_of_the_repository(
    tmp_path: Path, installed: Callable[[str], Path], tool: str, files: dict[str, str]
) -> None:
    root = write(tmp_path / "repository" / "python", **files)
    repository(root.parent)
    found = scm_version(root)
    assert found is not None
    assert found.version.startswith("1.2.4.dev1+g")
    assert built_apart(root, installed(tool), found, tmp_path / "away") == built_version(root, installed(tool), {})


@pytest.mark.slow
def test_the_variable_of_the_distribution_leaves_others_alone(tmp_path: Path, installed: Callable[[str], Path]) -> None:
    root = repository(write(tmp_path / "project", **with_options(SETUPTOOLS)))
    other = repository(write(tmp_path / "other", **with_options(SETUPTOOLS.replace("Demo.My-pkg", "other"))), "v5.0")
    found = scm_version(root)
    assert found is not None
    assert built_version(other, installed("setuptools-scm"), dict(found.variables)).startswith("5.1.dev1")
