"""What the tests of a Python project need, as its own files declare it for one tool or another."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pytest_stagebuild import poetry
from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.project import Document, ProjectFiles, extras, normalised, project_name, table_at, texts_in
from pytest_stagebuild.values import dataclass

TEST_NAMES: Final = ("test", "tests", "testing", "dev")
"""The extras and groups that hold what tests need, the most telling first."""

_FILES: Final = (
    "requirements-{}.txt",
    "requirements_{}.txt",
    "requirements.{}.txt",
    "{}-requirements.txt",
    "{}_requirements.txt",
    "{}.requirements.txt",
    "requirements/{}.txt",
    "requirements/requirements-{}.txt",
    "{}/requirements.txt",
)

_FACTORS = re.compile(r"[\w.!,{}-]+:\s")
"""https://tox.wiki/en/stable/config.html#conditional-settings: a line for some environments only."""


@dataclass(frozen=True)
class Needs:
    """``extras`` of the project itself, and further ``arguments`` of ``pip install``."""

    extras: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


def declared_needs(files: ProjectFiles) -> Needs:
    """What the project declares, in the first of these places that holds anything.

    Extras, dependency groups, the groups of PDM, Poetry and Hatch, files of requirements, what tox is to install, and a
    requirements.txt that names pytest. Raises :class:`ConfigurationError` for a dependency group that is needed and
    cannot be resolved.
    """
    if extra := first_test_name(extras(files)):
        return Needs((extra,))
    if group := first_test_name(table_at(files.pyproject, "dependency-groups")):
        return _parted(files, resolved_group(files, group))
    for groups in (_pdm_groups(files), _poetry_groups(files), _hatch_groups(files)):
        if group := first_test_name(groups):
            return _parted(files, groups[group])
    for name in TEST_NAMES:
        for pattern in _FILES:
            if pattern.format(name) in files.names:
                return Needs((), ("-r", pattern.format(name)))
    if deps := list(_tox_arguments(files)):
        return _parted(files, deps)
    return (
        Needs((), ("-r", "requirements.txt")) if names_package(files.requirements.splitlines(), "pytest") else Needs()
    )


def first_test_name(declared: Iterable[str]) -> str | None:
    """The most telling of the names that mean tests, spelt as it is declared."""
    by_name = {normalised(name): name for name in declared}
    return next((by_name[name] for name in TEST_NAMES if name in by_name), None)


def names_package(requirements: Iterable[str], name: str) -> bool:
    """Whether one of the requirements is for ``name``, under whatever conditions but those of a marker."""
    for requirement in requirements:
        found = re.match(r"\s*([A-Za-z0-9._-]+)", requirement)
        if found and normalised(found[1]) == name and ";" not in requirement:
            return True
    return False


def _parted(files: ProjectFiles, arguments: Iterable[str]) -> Needs:
    """The arguments without those that mean the project itself, which pip would look for in its index."""
    own, others = dict[str, None](), list[str]()
    for argument in arguments:
        found = re.fullmatch(r"([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?\s*(;.*)?", argument)
        if found and (found[1] == "." or normalised(found[1]) == project_name(files)):
            own |= dict.fromkeys(extra.strip() for extra in (found[2] or "").split(",") if extra.strip())
        else:
            others.append(argument)
    return Needs(tuple(own), tuple(others))


def resolved_group(files: ProjectFiles, group: str) -> list[str]:
    """The requirements of a group, resolved here because an image's pip may not know ``--group`` (new in pip 25.1).

    Raises :class:`ConfigurationError` where that cannot be done.
    """
    import dependency_groups

    groups = files.pyproject["dependency-groups"]
    try:
        return list(dependency_groups.resolve(groups, group))  # type: ignore[arg-type]  # it checks what it is given
    except (LookupError, TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"pyproject.toml: `{group}` in [dependency-groups] cannot be resolved: {error}. "
            "Correct it, or say with `install_cmd` what to install."
        ) from None


def _pdm_groups(files: ProjectFiles) -> Mapping[str, list[str]]:
    """https://pdm-project.org/en/latest/usage/dependency/#add-development-only-dependencies."""
    groups = table_at(files.pyproject, "tool", "pdm", "dev-dependencies")
    plain = {name: [line for line in texts_in(lines) if not line.startswith("-")] for name, lines in groups.items()}
    return {name: lines for name, lines in plain.items() if lines}


def _poetry_groups(files: ProjectFiles) -> Mapping[str, list[str]]:
    """https://python-poetry.org/docs/managing-dependencies/#dependency-groups, and the older ``dev-dependencies``."""
    section = table_at(files.pyproject, "tool", "poetry")
    groups = table_at(section, "group")
    found = {
        "dev": poetry.requirements(table_at(section, "dev-dependencies")),
        **{name: poetry.requirements(table_at(groups, name, "dependencies")) for name in groups},
    }
    return {name: lines for name, lines in found.items() if lines}


def _hatch_groups(files: ProjectFiles) -> Mapping[str, list[str]]:
    """https://hatch.pypa.io/latest/config/environment/overview/#inheritance: what one lacks is in "default"."""
    environments = table_at(files.pyproject, "tool", "hatch", "envs")
    default = table_at(environments, "default")
    found: dict[str, list[str]] = {"dev": _hatch_requirements(default)}
    if not names_package(found["dev"], "pytest"):
        del found["dev"]
    for name in environments:
        if name != "default":
            own = table_at(environments, name)
            found["test" if name == "hatch-test" else name] = _hatch_requirements({**default, **own})
    return {name: lines for name, lines in found.items() if lines}


def _hatch_requirements(environment: Document) -> list[str]:
    lines = [*texts_in(environment.get("dependencies")), *texts_in(environment.get("extra-dependencies"))]
    features = texts_in(environment.get("features"))
    # What stands in braces is Hatch's to fill in.
    return [*(line for line in lines if "{" not in line), *(f".[{feature}]" for feature in features)]


def _tox_arguments(files: ProjectFiles) -> Iterator[str]:
    for line in files.tox.get("testenv", {}).get("deps", "").splitlines():
        plain = re.sub(r"\{(toxinidir|tox_root)\}/?", "./", line.partition(" #")[0]).strip()
        if not plain or "{" in plain or _FACTORS.match(plain):
            continue
        option = re.fullmatch(r"(-r|-c|--requirement|--constraint)[\s=]*(\S+)", plain)
        if option:
            yield from (option[1], option[2])
        elif not plain.startswith("-"):
            yield plain
