"""The table in which a project keeps its settings: ``[tool.stagebuild]`` of pyproject.toml, or a stagebuild.toml.

It is a table of our own rather than pytest's: the same pyproject.toml is read by the pytest inside the container, which
need not know the plugin and warns of ini keys that nobody declared.
"""

from __future__ import annotations

import importlib
import re
import reprlib
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Final, NoReturn

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.flags import Downloads, Isolation
from pytest_stagebuild.stage import CHECKPOINT_NAMES, STAGES, InputsSetting, StageName
from pytest_stagebuild.values import dataclass

COMMAND_KEYS: Final[Mapping[str, StageName]] = {"install_cmd": "install", "build_cmd": "build", "test_cmd": "test"}
TABLE_KEYS: Final = (
    "image",
    *COMMAND_KEYS,
    "engine",
    "timeout",
    "env",
    "secrets",
    "artifacts",
    "host_tests",
    "junit",
    "isolate",
    "jobs",
    "downloads",
    "lockfile",
    "keep",
    "pass_host_env",
    "salt",
    *STAGES,
)
STAGE_KEYS: Final = ("command", "timeout", "env", "network", "inputs")

_ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Variable:
    """An environment variable for commands. Where ``value`` is None, the variable has the value that it has here."""

    name: str
    value: str | None


@dataclass(frozen=True)
class StageTable:
    """The settings of one stage. ``timeout`` is in seconds; None stands for a key that is not there."""

    command: str | None = None
    timeout: float | None = None
    env: tuple[Variable, ...] = ()
    network: bool = True
    inputs: InputsSetting = "traced"


@dataclass(frozen=True)
class Table:
    """The settings of a project. None stands for a key that is not there; ``file`` is what messages call the table."""

    file: str = "pyproject.toml"
    image: str | None = None
    engine: str | None = None
    timeout: float | None = None
    env: tuple[Variable, ...] = ()
    secrets: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    host_tests: tuple[str, ...] = ()
    junit: tuple[str, ...] = ()
    isolate: Isolation | None = None
    jobs: int | None = None
    downloads: Downloads | None = None
    lockfile: str | None = None
    keep: int | None = None
    pass_host_env: bool = True
    salt: str = ""
    stages: Mapping[StageName, StageTable] = field(default_factory=lambda: {name: StageTable() for name in STAGES})


def read_toml(path: Path) -> Mapping[str, object]:
    """The content of a TOML file, empty where there is no such file.

    Raises :class:`ConfigurationError` for one that cannot be read, with the line where it is not TOML.
    """
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        content: dict[str, object] = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}. Make it a readable file.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path} is not UTF-8 (at line {line}). Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}. Correct it and run again.") from None
    return content


def read_table(source: Path, pyproject: Mapping[str, object]) -> Table:
    """The settings that the project at ``source`` declares; ``pyproject`` is the content of its pyproject.toml.

    Raises :class:`ConfigurationError` where there are two tables, or one with a key that is unknown or ill-typed.
    """
    tool = pyproject.get("tool")
    ours = tool.get("stagebuild") if isinstance(tool, Mapping) else None
    if not (source / "stagebuild.toml").exists():
        return Table() if ours is None else parse_table(ours, file="pyproject.toml", prefix="tool.stagebuild")
    if ours is not None:
        raise ConfigurationError(
            f"there is both a [tool.stagebuild] in {source / 'pyproject.toml'} and a stagebuild.toml beside it. "
            "Keep one of them."
        )
    return parse_table(read_toml(source / "stagebuild.toml"), file="stagebuild.toml", prefix="")


def parse_table(value: object, *, file: str, prefix: str) -> Table:
    """The table ``[prefix]`` of ``file``, checked. Raises :class:`ConfigurationError` naming file and key."""
    section = _Section.of(value, file, prefix)
    section.refuse_unknown(TABLE_KEYS, elsewhere=STAGE_KEYS, hint="[install], [build] or [test] below it")
    stages: dict[StageName, StageTable] = {}
    for key, name in COMMAND_KEYS.items():
        path = f"{prefix}.{name}" if prefix else name
        stage = _parse_stage(name, section.values.get(name, {}), file, path)
        command = section.text(key)
        if command is not None and stage.command is not None:
            section.refuse(key, f"excludes `command` in [{path}], which is set too", "Keep one of them")
        stages[name] = stage if command is None else replace(stage, command=command)
    return Table(
        file=file,
        image=section.text("image"),
        engine=section.text("engine"),
        timeout=section.seconds("timeout"),
        env=section.variables("env"),
        secrets=tuple(section.name("secrets", name) for name in section.texts("secrets")),
        artifacts=section.texts("artifacts"),
        host_tests=section.texts("host_tests"),
        junit=section.texts("junit"),
        isolate=section.isolation("isolate"),
        jobs=section.count("jobs"),
        downloads=section.downloads("downloads"),
        lockfile=section.text("lockfile"),
        keep=section.count("keep"),
        pass_host_env=section.flag("pass_host_env", default=True),
        salt="" if section.values.get("salt") == "" else section.text("salt") or "",
        stages=stages,
    )


def is_timeout(seconds: float) -> bool:
    """Whether a process can wait that many seconds: positive, and no more than the platform's clocks can count."""
    return 0 < seconds <= threading.TIMEOUT_MAX


def is_environment_name(name: str) -> bool:
    """Whether a shell can use ``name`` as a variable (POSIX.1-2017, XBD 3.235)."""
    return _ENVIRONMENT_NAME.fullmatch(name) is not None


def parse_variable(text: str) -> Variable | None:
    """``NAME`` or ``NAME=VALUE``; None where it is neither."""
    name, equals, value = text.partition("=")
    return Variable(name, value if equals else None) if is_environment_name(name) and "\0" not in value else None


def _parse_stage(name: StageName, value: object, file: str, path: str) -> StageTable:
    section = _Section.of(value, file, path)
    section.refuse_unknown(STAGE_KEYS, elsewhere=TABLE_KEYS, hint="the table above it")
    if name not in CHECKPOINT_NAMES and "inputs" in section.values:
        section.refuse("inputs", "has no meaning: this stage leaves no checkpoint to reuse", "Remove it")
    return StageTable(
        command=section.text("command"),
        timeout=section.seconds("timeout"),
        env=section.variables("env"),
        network=section.flag("network", default=True),
        inputs=section.inputs("inputs"),
    )


@dataclass(frozen=True)
class _Section:
    """A table of a TOML file, read key by key; every method raises :class:`ConfigurationError` for the wrong type."""

    file: str
    path: str
    values: Mapping[str, object]

    @classmethod
    def of(cls, value: object, file: str, path: str) -> _Section:
        if not isinstance(value, Mapping):
            raise ConfigurationError(
                f"{file}: [{path}] must be a table, not {_shown(value)}. Correct it and run again."
            )
        return cls(file, path, value)

    def refuse(self, key: str, what: str, remedy: str) -> NoReturn:
        place = f" in [{self.path}]" if self.path else ""
        raise ConfigurationError(f"{self.file}: key `{key}`{place} {what}. {remedy} and run again.")

    def refuse_type(self, key: str, expected: str, value: object) -> NoReturn:
        self.refuse(key, f"must be {expected}, not {_shown(value)}", "Correct it")

    def refuse_unknown(self, known: Iterable[str], *, elsewhere: Iterable[str], hint: str) -> None:
        import difflib

        for key in self.values:
            if key in known:
                continue
            if key in elsewhere:
                self.refuse(key, f"belongs in {hint}", "Move it")
            near = difflib.get_close_matches(key, known, n=1)
            remedy = f"Did you mean `{near[0]}`? Correct it" if near else f"Known keys: {', '.join(known)}. Remove it"
            self.refuse(key, "is unknown", remedy)

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            self.refuse_type(key, "a string", value)
        if "\0" in value:
            self.refuse(key, "holds a NUL character", "Correct it")
        if not value.strip():
            command = key in COMMAND_KEYS or key == "command"
            self.refuse(key, "is empty", "Write `true` for a stage that has nothing to do" if command else "Correct it")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.values.get(key, [])
        if not isinstance(value, (list, tuple)):
            self.refuse_type(key, "a list of strings", value)
        for item in value:
            if not isinstance(item, str):
                self.refuse_type(key, "a list of strings", value)
            if not item.strip() or "\0" in item:
                self.refuse(key, "holds an empty string or a NUL character", "Correct it")
        return tuple(value)

    def seconds(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not is_timeout(value):
            self.refuse_type(key, "a positive number of seconds", value)
        return float(value)

    def count(self, key: str) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse_type(key, "a whole number from 1", value)
        return value

    def isolation(self, key: str) -> Isolation | None:
        match value := self.values.get(key):
            case "stage" | "file" | "test":
                return value
        if value is not None:
            self.refuse_type(key, '"stage", "file" or "test"', value)
        return None

    def downloads(self, key: str) -> Downloads | None:
        match value := self.values.get(key):
            case "keep" | "fresh":
                return value
        if value is not None:
            self.refuse_type(key, '"keep" or "fresh"', value)
        return None

    def flag(self, key: str, *, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse_type(key, "true or false", value)
        return value

    def name(self, key: str, name: str) -> str:
        if not is_environment_name(name):
            self.refuse(key, f"names no environment variable: {_shown(name.partition('=')[0])}", "Correct it")
        return name

    def variables(self, key: str) -> tuple[Variable, ...]:
        """A table of names and values, or a list of ``NAME=VALUE`` and ``NAME``, as the option has them."""
        declared = self.values.get(key)
        if isinstance(declared, Mapping):
            for name, value in declared.items():
                self.name(key, name)
                if not isinstance(value, str) or "\0" in value:
                    self.refuse(key, f"gives {name} a value that is not a string", "Put it in quotes")
            return tuple(Variable(name, value) for name, value in declared.items())
        variables: list[Variable] = []
        for text in self.texts(key):
            variable = parse_variable(text)
            if variable is None:
                self.refuse(key, "must hold NAME or NAME=VALUE", f"Correct {_shown(text.partition('=')[0])}")
            variables.append(variable)
        return tuple(variables)

    def inputs(self, key: str) -> InputsSetting:
        value = self.values.get(key, "traced")
        if value in ("traced", "all"):
            return "traced" if value == "traced" else "all"
        if isinstance(value, str):
            self.refuse_type(key, '"traced", "all" or a list of globs', value)
        return self.texts(key)


def _shown(value: object) -> str:
    return reprlib.repr(value)
