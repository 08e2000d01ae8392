"""What a source folder holds, and the image and commands that fit it where the user gave none."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.project import (
    ProjectFiles,
    extras,
    is_package,
    normalised,
    requires_python,
    table_at,
    texts_in,
)
from pytest_stagebuild.stage import StageName

TEST_NAMES: Final = ("test", "tests", "testing", "dev")
"""The extras and groups that hold what tests need, the most telling first."""

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
    elif "poetry.lock" in files.names or _has_poetry_groups(files):
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
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    if not requirement.strip():
        return None, []
    try:
        alternatives = [SpecifierSet(_pep440(part)) for part in re.split(r"\|\|?", requirement)]
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
    extra, group = _first_test_name(extras(files)), _first_test_name(groups)
    selected = [*texts_in(declared.get("dependencies")), *texts_in(uv.get("dev-dependencies"))]
    selected += texts_in(table_at(declared, "optional-dependencies").get(extra or ""))
    choice = ["--extra", extra] if extra else ["--group", group] if group else []
    for name in groups:
        if name in choice or normalised(name) == "dev":  # uv installs "dev" unasked
            selected += texts_in(groups[name])
    commands: dict[StageName, str] = {
        "build": shlex.join(["uv", "build", *everything]) if package or everything else NOTHING_TO_DO,
        "test": "uv run pytest" if _names(selected, "pytest") else "uv run --with pytest pytest",
    }
    tools = ["uv", *_missing_tools({**commands, **given}, only=("build",))]
    commands["install"] = f"pip install {shlex.join(tools)} && {shlex.join(['uv', 'sync', *everything, *choice])}"
    return image, commands, notes + _nothing_to_build(commands)


def _poetry(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    poetry = table_at(files.pyproject, "tool", "poetry")
    image, notes = python_image(requires_python(files))
    extra = _first_test_name(extras(files))
    groups = table_at(poetry, "group")
    optional = {name for name in groups if table_at(groups, name).get("optional") is True}
    group = None if extra else _first_test_name(optional)
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
    if _PYTEST.search(later["test"]) and not _names(selected, "pytest"):
        commands["install"] += " && poetry run pip install pytest"
    if "poetry.lock" not in files.names:
        notes.append("the project declares dependencies in groups that only Poetry installs, so Poetry is used")
    return image, commands, notes + _nothing_to_build(commands)


def _package(files: ProjectFiles, given: Mapping[StageName, str]) -> _Fit:
    image, notes = python_image(requires_python(files))
    extra = _first_test_name(extras(files))
    commands: dict[StageName, str] = {"build": "python -m build", "test": "pytest"}
    words = ["-e", f".[{extra}]"] if extra else ["-e", "."]
    if extra is None and "install" not in given:
        words += _declared_test_needs(files)
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
        words += _declared_test_needs(files)
    words += _missing_tools({**commands, **given}, brought=words)
    commands["install"] = f"pip install {shlex.join(words)}" if words else NOTHING_TO_DO
    return None, commands, _nothing_to_build(commands)


def _nothing_to_build(commands: Mapping[StageName, str]) -> list[str]:
    return ["the project is not a package: there is nothing to build"] if commands["build"] == NOTHING_TO_DO else []


def _declared_test_needs(files: ProjectFiles) -> list[str]:
    """What pip is to install for the tests: a dependency group's requirements, else a file of them."""
    group = _first_test_name(table_at(files.pyproject, "dependency-groups"))
    if group:
        return _resolved_group(files, group)
    for name in TEST_NAMES:
        for pattern in ("requirements-{}.txt", "requirements_{}.txt", "{}-requirements.txt", "requirements/{}.txt"):
            if pattern.format(name) in files.names:
                return ["-r", pattern.format(name)]
    return []


def _resolved_group(files: ProjectFiles, group: str) -> list[str]:
    """The requirements of a group, resolved here because an image's pip may not know ``--group`` (new in pip 25.1)."""
    import dependency_groups

    groups = files.pyproject["dependency-groups"]
    try:
        return list(dependency_groups.resolve(groups, group))  # type: ignore[arg-type]  # it checks what it is given
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"pyproject.toml: `{group}` in [dependency-groups] cannot be resolved: {error}. "
            "Correct it, or say with `install_cmd` what to install."
        ) from None


def _missing_tools(
    commands: Mapping[StageName, str],
    *,
    brought: Iterable[str] = (),
    only: Collection[str] = ("build", "pytest"),
) -> list[str]:
    later = f"{commands['build']}\n{commands['test']}"
    needed = [name for name, use in (("build", _BUILD), ("pytest", _PYTEST)) if use.search(later)]
    brought = tuple(brought)
    return [name for name in needed if name in only and not _names(brought, name)]


def _names(requirements: Iterable[str], name: str) -> bool:
    """Whether one of the requirements is for ``name``, under whatever conditions but those of a marker."""
    for requirement in requirements:
        found = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
        if found and normalised(found[1]) == name and ";" not in requirement:
            return True
    return False


def _first_test_name(declared: Iterable[str]) -> str | None:
    by_name = {normalised(name): name for name in declared}
    return next((by_name[name] for name in TEST_NAMES if name in by_name), None)


def _has_poetry_groups(files: ProjectFiles) -> bool:
    """Whether the project declares dependencies in tables that Poetry alone can install."""
    poetry = table_at(files.pyproject, "tool", "poetry")
    return "group" in poetry or "dev-dependencies" in poetry


def _pep440(constraint: str) -> str:
    """A Poetry version constraint as PEP 440 writes it; a PEP 440 one stays as it is.

    https://python-poetry.org/docs/dependency-specification/#version-constraints
    """
    joined = re.sub(r"([<>=!~^])\s+", r"\1", constraint.strip())
    return ",".join(_pep440_clause(clause) for clause in re.split(r"[,\s]+", joined) if clause not in ("", "*"))


def _pep440_clause(clause: str) -> str:
    found = re.fullmatch(r"(\^|~(?!=)|)v?(\d+)(?:\.(\d+))?((?:\.\d+)*)(\.\*)?", clause)
    if found is None:
        return clause
    operator, major, minor, patch, _ = found.groups()
    version = ".".join(part for part in (major, minor) if part) + (patch or "")
    if operator == "^" or (operator == "~" and minor is None):
        return f">={version},<{int(major) + 1}"
    if operator == "~":
        return f">={version},<{major}.{int(minor) + 1}"
    return f"=={version}.*"
