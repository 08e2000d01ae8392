"""What a source folder holds, and the image and commands that fit it where the user gave none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from pytest_stagebuild.needs import Needs, declared_needs, first_test_name, names_package, resolved_group
from pytest_stagebuild.poetry import specifiers
from pytest_stagebuild.project import ProjectFiles, extras, is_package, normalised, requires_python, table_at, texts_in
from pytest_stagebuild.stage import StageName
from pytest_stagebuild.values import dataclass

NOTHING_TO_DO: Final = "true"

_FIRST_MINOR: Final = 11
"""From Python 3.11 on; an older one is taken only where the project admits no newer."""

_NEWEST_PATCH: Final = 50
"""A tag like 3.11-slim is the newest patch release, so that `<=3.11.2` does not admit it and `>=3.11.9` does."""

_BUILD = re.compile(r"(?<![\w.-])(-m\s*build|pyproject-build)(?![\w.-])")
_PYTEST = re.compile(r"(?<![\w.-])(pytest|py\.test)(?![\w.-])")


@dataclass(frozen=True)
class Detection:
    """The image and the three commands that fit a project. ``image`` is None where the project asks for none.

    ``notes`` say what a reader of the commands could not guess.
    """

    image: str | None
    commands: Mapping[StageName, str]
    notes: tuple[str, ...] = ()


def detect(files: ProjectFiles, given: Mapping[StageName, str]) -> Detection:
    """The commands of a run: those that were ``given``, and for the others the ones of the project's own tool.

    Raises :class:`ConfigurationError` for a dependency group that is needed and cannot be resolved.
    """
    if "uv.lock" in files.names:
        image, commands, notes = _uv(files, given)
    elif "poetry.lock" in files.names or _is_poetry_s_alone(files):
        image, commands, notes = _poetry(files, given)
    elif is_package(files):
        image, commands, notes = _package(files, given)
    elif "Cargo.toml" in files.names:
        image, commands, notes = _cargo()
    elif "package.json" in files.names:
        image, commands, notes = _npm(files)
    else:
        image, commands, notes = _loose_files(files, given)
    return Detection(image, {**commands, **given}, tuple(notes))


def python_image(requirement: str) -> tuple[str | None, list[str]]:
    """The lowest ``python:3.X-slim`` from 3.11 that a ``requires-python`` or a Poetry constraint admits, and notes.

    Where it admits only older ones, the newest of them; None where it admits nothing or is empty.
    """
    if not requirement.strip():
        return None, []
    if usual := re.fullmatch(r">=\s*3\.(\d{1,2})", requirement.strip()):
        return f"python:3.{max(_FIRST_MINOR, int(usual[1]))}-slim", []  # the library takes 10 ms to import
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        alternatives = [SpecifierSet(alternative) for alternative in specifiers(requirement)]
    except InvalidSpecifier:
        return None, [f"the Python versions that the project asks for cannot be read: {requirement}"]
    for minor in (*range(_FIRST_MINOR, 100), *reversed(range(_FIRST_MINOR))):
        if any(versions.contains(f"3.{minor}.{_NEWEST_PATCH}") for versions in alternatives):
            return f"python:3.{minor}-slim", []
    return None, [f"no image fits the Python versions that the project asks for: {requirement}"]


_Fit = tuple[str | None, dict[StageName, str], list[str]]


def _uv(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    image, notes = python_image(requires_python(files))
    declared = table_at(files.pyproject, "project")
    uv = table_at(files.pyproject, "tool", "uv")
    groups = table_at(files.pyproject, "dependency-groups")
    # https://docs.astral.sh/uv/concepts/projects/config/#build-systems: without one, a project is no package.
    package = uv.get("package", "build-system" in files.pyproject) is True
    everything = ["--all-packages"] if "workspace" in uv and not declared else []
    extra, group = first_test_name(extras(files)), first_test_name(groups)
    selected = [*texts_in(declared.get("dependencies")), *texts_in(uv.get("dev-dependencies"))]
    selected += texts_in(table_at(declared, "optional-dependencies").get(extra or ""))
    choice = ["--extra", extra] if extra else ["--group", group] if group else []
    # Else uv would download the Python that the file names, from a place that package mirrors do not have.
    python = ["--python", "3"] if ".python-version" in files.names else []
    if python:
        notes.append("the Python of the image is used, whatever .python-version says")
    for name in groups:
        if name in choice or normalised(name) == "dev":  # uv installs "dev" unasked
            selected += resolved_group(files, name)
    declared_here = names_package(selected, "pytest")
    commands: dict[StageName, str] = {
        "build": shlex.join(["uv", "build", *python, *everything]) if package or everything else NOTHING_TO_DO,
        "test": shlex.join(["uv", "run", *python, *([] if declared_here else ["--with", "pytest"]), "pytest"]),
    }
    tools = ["uv", *_missing_tools({**commands, **given}, only=("build",))]
    sync = ["uv", "sync", *python, *everything, *choice]
    commands["install"] = f"pip install {shlex.join(tools)} && {shlex.join(sync)}"
    return image, commands, notes + _nothing_to_build(commands)


def _poetry(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    poetry = table_at(files.pyproject, "tool", "poetry")
    image, notes = python_image(requires_python(files))
    extra = first_test_name(extras(files))
    groups = table_at(poetry, "group")
    optional = {name for name in groups if table_at(groups, name).get("optional") is True}
    group = None if extra else first_test_name(optional)
    declared = table_at(files.pyproject, "project")
    selected = [*texts_in(declared.get("dependencies")), *table_at(poetry, "dependencies")]
    selected += table_at(poetry, "dev-dependencies")
    for name in groups:
        if name not in optional or name == group:
            selected += table_at(groups, name, "dependencies")
    for requirements in table_at(files.pyproject, "dependency-groups").values():
        selected += texts_in(requirements)
    install = ["poetry", "install"]
    if extra:
        install += ["--extras", extra]
        selected += texts_in(table_at(declared, "optional-dependencies").get(extra))
    if group:
        install += ["--with", group]
    commands: dict[StageName, str] = {
        "build": NOTHING_TO_DO if poetry.get("package-mode") is False else "poetry build",
        "test": "poetry run pytest",
    }
    later = {**commands, **given}
    tools = ["poetry", *_missing_tools(later, only=("build",))]
    commands["install"] = f"pip install {shlex.join(tools)} && {shlex.join(install)}"
    if _PYTEST.search(later["test"]) and not names_package(selected, "pytest"):
        commands["install"] += " && poetry run pip install pytest"
    return image, commands, notes + _nothing_to_build(commands)


def _package(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    image, notes = python_image(requires_python(files))
    needs = Needs() if "install" in given else declared_needs(files)
    commands: dict[StageName, str] = {"build": "python -m build", "test": "pytest"}
    words = ["-e", f".[{','.join(needs.extras)}]" if needs.extras else ".", *needs.arguments]
    words += _missing_tools({**commands, **given}, brought=words)
    commands["install"] = f"pip install {shlex.join(words)}"
    return image, commands, notes


def _cargo() -> _Fit:
    return "rust:1-slim", {"install": "cargo fetch", "build": "cargo build --release", "test": "cargo test"}, []


def _npm(files: ProjectFiles) -> _Fit:
    # https://docs.npmjs.com/cli/commands/npm-ci: it refuses to work without one of these.
    install = "npm ci" if {"package-lock.json", "npm-shrinkwrap.json"} & files.names else "npm install"
    return "node:22-slim", {"install": install, "build": "npm run build --if-present", "test": "npm test"}, []


def _loose_files(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    commands: dict[StageName, str] = {"build": NOTHING_TO_DO, "test": "pytest"}
    words = ["-r", "requirements.txt"] if "requirements.txt" in files.names else []
    if "install" not in given:
        needed = declared_needs(files).arguments
        words = words if needed == tuple(words) else [*words, *needed]
    words += _missing_tools({**commands, **given}, brought=words)
    commands["install"] = f"pip install {shlex.join(words)}" if words else NOTHING_TO_DO
    return None, commands, _nothing_to_build(commands)


def _nothing_to_build(commands: Mapping[StageName, str]) -> list[str]:
    return ["the project is not a package: there is nothing to build"] if commands["build"] == NOTHING_TO_DO else []


def _missing_tools(
    commands: Mapping[StageName, str],
    *,
    brought: Iterable[str] = (),
    only: Collection[str] = ("build", "pytest"),
) -> list[str]:
    later = f"{commands['build']}\n{commands['test']}"
    needed = [name for name, use in (("build", _BUILD), ("pytest", _PYTEST)) if use.search(later)]
    brought = tuple(brought)
    return [name for name in needed if name in only and not names_package(brought, name)]


def _is_poetry_s_alone(files: ProjectFiles) -> bool:
    """Whether nothing but Poetry can install the project, which pip takes for no package or refuses."""
    section = table_at(files.pyproject, "tool", "poetry")
    plain = "build-system" not in files.pyproject and "project" not in files.pyproject
    return bool(section) and (plain or section.get("package-mode") is False)
