"""The project in a source folder, as its own files describe it; none of them is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Final

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.table import read_toml
from pytest_stagebuild.values import dataclass

ANCHORS: Final = ("pyproject.toml", "stagebuild.toml", "setup.py", "Cargo.toml", "package.json")

Document = Mapping[str, object]


@dataclass(frozen=True)
class SetupCall:
    """What can be read of a setup.py without running it."""

    name: str | None = None
    python_requires: str | None = None
    extras: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProjectFiles:
    """What detection reads of a source folder: its files' names, and the content of those that describe a project.

    ``names`` has the folder's own entries, and those files of requirements that lie in folders of theirs. A file that
    is not there, or that its own tool will refuse, is an empty document; only pyproject.toml must be valid.
    """

    folder: str
    names: frozenset[str]
    pyproject: Document = field(default_factory=dict)
    cargo: Document = field(default_factory=dict)
    package: Document = field(default_factory=dict)
    setup_cfg: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    setup_py: SetupCall = SetupCall()
    tox: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    requirements: str = ""


def read_project(source: Path) -> ProjectFiles:
    """Raises :class:`ConfigurationError` for a pyproject.toml that is not valid, and ``OSError`` for no folder."""
    names = {path.name for path in source.iterdir()}
    for pattern in ("requirements/*.txt", "test/requirements.txt", "tests/requirements.txt"):
        names |= {path.relative_to(source).as_posix() for path in source.glob(pattern)}
    return ProjectFiles(
        folder=source.name or "source",
        names=frozenset(names),
        pyproject=read_toml(source / "pyproject.toml"),
        cargo=_read_cargo(source / "Cargo.toml"),
        package=_read_package(source / "package.json"),
        setup_cfg=_read_ini(source / "setup.cfg"),
        setup_py=_read_setup_py(source / "setup.py"),
        tox=_read_ini(source / "tox.ini"),
        requirements=_read_text(source / "requirements.txt"),
    )


def anchor(files: ProjectFiles) -> str | None:
    """The file that stage items stand on, or None where the folder has none that would do."""
    return next((name for name in ANCHORS if name in files.names), None)


def project_name(files: ProjectFiles) -> str:
    """The name that a project gives itself, a Python one normalised as PEP 503 says; else the folder's."""
    python = (
        text_at(files.pyproject, "project", "name")
        or text_at(files.pyproject, "tool", "poetry", "name")
        or text_at(files.cargo, "package", "name")
        or text_at(files.package, "name")
        or files.setup_cfg.get("metadata", {}).get("name")
        or files.setup_py.name
    )
    return normalised(python) if python else files.folder


def is_package(files: ProjectFiles) -> bool:
    """Whether pip can install the folder and ``build`` can build it."""
    return "build-system" in files.pyproject or "project" in files.pyproject or "setup.py" in files.names


def extras(files: ProjectFiles) -> Iterator[str]:
    """The names of the extras that the project declares, in whatever way its build back end reads them."""
    yield from table_at(files.pyproject, "project", "optional-dependencies")
    yield from table_at(files.pyproject, "tool", "setuptools", "dynamic", "optional-dependencies")
    yield from table_at(files.pyproject, "tool", "poetry", "extras")
    yield from table_at(files.pyproject, "tool", "flit", "metadata", "requires-extra")
    yield from files.setup_cfg.get("options.extras_require", {})
    yield from files.setup_py.extras


def requires_python(files: ProjectFiles) -> str:
    """The Python versions that the project asks for, in PEP 440's words or Poetry's; empty where it does not say."""
    return (
        text_at(files.pyproject, "project", "requires-python")
        or text_at(files.pyproject, "tool", "poetry", "dependencies", "python")
        or files.setup_cfg.get("options", {}).get("python_requires")
        or files.setup_py.python_requires
        or ""
    )


def _read_cargo(path: Path) -> Document:
    try:
        return read_toml(path)
    except ConfigurationError:
        return {}


def _read_package(path: Path) -> Document:
    import json

    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _read_ini(path: Path) -> Mapping[str, Mapping[str, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return {}
    import configparser

    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    return {name: dict(parser[name]) for name in parser.sections()}


def _read_setup_py(path: Path) -> SetupCall:
    """The literal arguments of its ``setup(...)``, read without running it."""
    import ast
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return SetupCall()
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    arguments: dict[str, ast.expr] = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", getattr(call.func, "id", "")) == "setup":
            for keyword in call.keywords:
                value = keyword.value
                arguments[keyword.arg or ""] = assigned.get(value.id, value) if isinstance(value, ast.Name) else value

    def literal(node: ast.expr | None) -> str | None:
        return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None

    declared = arguments.get("extras_require")
    return SetupCall(
        name=literal(arguments.get("name")),
        python_requires=literal(arguments.get("python_requires")),
        extras=tuple(filter(None, map(literal, declared.keys))) if isinstance(declared, ast.Dict) else (),
    )


def table_at(document: Document, *keys: str) -> Document:
    """The table at a path of keys, empty where there is none: what is ill-typed is its own tool's to refuse."""
    current: object = document
    for key in keys:
        current = current.get(key) if isinstance(current, Mapping) else None
    return current if isinstance(current, Mapping) else {}


def text_at(document: Document, *keys: str) -> str | None:
    """The string at a path of keys; None where there is none, or an empty one."""
    value = table_at(document, *keys[:-1]).get(keys[-1])
    return value.strip() or None if isinstance(value, str) else None


def texts_in(value: object) -> list[str]:
    """The strings of a list, none where it is no list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def normalised(name: str) -> str:
    """A name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()
