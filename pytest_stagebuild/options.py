"""The settings of a run: what was typed, what the project's table says, what was detected, and the defaults."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from pytest_stagebuild.detection import Detection, detect
from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.flags import (
    DEFAULT_IMAGE,
    DEFAULT_KEEP,
    DEFAULT_LOCKFILE,
    DEFAULT_TIMEOUT,
    Downloads,
    Isolation,
    RebuildFrom,
    add_options,
)
from pytest_stagebuild.project import anchor, project_name, read_project
from pytest_stagebuild.stage import STAGES, Stage, StageName
from pytest_stagebuild.table import Table, Variable, is_environment_name, is_timeout, parse_variable, read_table
from pytest_stagebuild.values import dataclass

__all__ = ["CommandLine", "RebuildFrom", "Settings", "add_options", "command_line", "load_settings"]

SHORTEST_SECRET: Final = 4
"""Characters. A shorter one cannot be searched for in output and files: it stands in them by chance."""

# https://github.com/distribution/reference/blob/v0.6.0/regexp.go
_IMAGE = re.compile(
    r"(?:[\w.-]+(?::\d+)?/)?[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?",
    re.ASCII,
)


@dataclass(frozen=True)
class CommandLine:
    """What was typed: None, False or nothing where an option was not. ``timeout`` is in seconds.

    ``prune`` is "table" where the option was given without a number.
    """

    source: str | None = None
    image: str | None = None
    install_cmd: str | None = None
    build_cmd: str | None = None
    test_cmd: str | None = None
    engine: str | None = None
    resume_from: str | None = None
    rebuild: RebuildFrom | None = None
    plan: bool = False
    prune: int | Literal["table"] | None = None
    timeout: float | None = None
    env: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    host_tests: tuple[str, ...] = ()
    junit: tuple[str, ...] = ()
    isolate: Isolation | None = None
    jobs: int | None = None
    downloads: Downloads | None = None
    lockfile: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything that a run is asked for.

    ``project`` names what checkpoints belong to, so that worktrees and clones share them. ``anchor`` is the file that
    stage items stand on, None where SOURCE has none that would do. ``host_tests`` are paths relative to SOURCE,
    ``artifacts`` paths and ``junit`` globs in the container, relative ones to ``/src``. With another ``isolate`` than
    "stage", ``jobs`` containers run at a time. With ``downloads`` "fresh" those of earlier runs are not used, and none
    are kept. ``keep`` checkpoints are kept per stage. ``given``
    repeats the options that were typed, without the values of secrets and without those that say where to start.
    """

    source: Path
    project: str
    anchor: Path | None
    image: str
    image_given: bool
    image_detected: bool
    stages: Mapping[StageName, Stage]
    engine: str
    secrets: tuple[str, ...]
    artifacts: tuple[str, ...]
    host_tests: tuple[str, ...]
    junit: tuple[str, ...]
    isolate: Isolation
    jobs: int
    downloads: Downloads
    lockfile: Path
    keep: int
    pass_host_env: bool
    salt: str
    resume_from: str | None
    rebuild: RebuildFrom | None
    plan: bool
    prune: bool
    given: tuple[str, ...]
    detected_notes: tuple[str, ...]


def command_line(namespace: argparse.Namespace) -> CommandLine:
    """What was typed, from a namespace that pytest has parsed."""
    return CommandLine(
        source=namespace.stagebuild_source,
        image=namespace.stagebuild_image,
        install_cmd=namespace.stagebuild_install_cmd,
        build_cmd=namespace.stagebuild_build_cmd,
        test_cmd=namespace.stagebuild_test_cmd,
        engine=namespace.stagebuild_engine,
        resume_from=namespace.stagebuild_from,
        rebuild=namespace.stagebuild_rebuild,
        plan=namespace.stagebuild_plan,
        prune=namespace.stagebuild_prune,
        timeout=namespace.stagebuild_timeout,
        env=tuple(namespace.stagebuild_env),
        secrets=tuple(namespace.stagebuild_secret),
        artifacts=tuple(namespace.stagebuild_artifact),
        host_tests=tuple(namespace.stagebuild_host_tests),
        junit=tuple(namespace.stagebuild_junit),
        isolate=namespace.stagebuild_isolate,
        jobs=namespace.stagebuild_jobs,
        downloads=namespace.stagebuild_downloads,
        lockfile=namespace.stagebuild_lockfile,
    )


def load_settings(
    typed: CommandLine, /, *, default_source: Path, environ: Mapping[str, str], invocation_dir: Path
) -> Settings:
    """The settings of a run: the command line, then the project's table, then detection, then the defaults.

    ``default_source`` is the source where none was typed. Raises :class:`ConfigurationError` for anything unusable.
    """
    _check(typed)
    source = _source_folder(typed.source, default_source, invocation_dir)
    files = read_project(source)
    table = read_table(source, files.pyproject)
    commands = _given_commands(typed, table)
    detection = detect(files, commands)
    image = None
    if typed.image:
        image = _checked_image(typed.image, "--stagebuild-image", invocation_dir)
    elif table.image:
        image = _checked_image(table.image, f"{table.file}: key `image`", source)
    stages = _stages(typed, table, commands, detection, environ)
    secrets = _merged(table.secrets, typed.secrets)
    _check_secrets(secrets, stages.values(), environ)
    anchored = anchor(files)
    junit, isolate = _merged(table.junit, typed.junit), typed.isolate or table.isolate or "stage"
    if junit and isolate != "stage":
        raise ConfigurationError(
            "--stagebuild-isolate parts the tests of a pytest, and --stagebuild-junit reads what others leave: give "
            "one of the two, as options or as keys."
        )
    return Settings(
        source=source,
        project=project_name(files),
        anchor=source / anchored if anchored else None,
        image=image or detection.image or DEFAULT_IMAGE,
        image_given=image is not None,
        image_detected=image is None and detection.image is not None,
        stages=stages,
        engine=typed.engine or table.engine or "auto",
        secrets=secrets,
        artifacts=_merged(table.artifacts, typed.artifacts),
        host_tests=_merged(
            (_within(source, source / path, f"{table.file}: key `host_tests`") for path in table.host_tests),
            (_within(source, invocation_dir.resolve() / path, "--stagebuild-host-tests") for path in typed.host_tests),
        ),
        junit=junit,
        isolate=isolate,
        jobs=typed.jobs or table.jobs or 1,
        downloads=typed.downloads or table.downloads or "keep",
        lockfile=_lockfile(typed, table, source, invocation_dir),
        keep=_keep(typed, table),
        pass_host_env=table.pass_host_env,
        salt=table.salt,
        resume_from=typed.resume_from,
        rebuild=typed.rebuild,
        plan=typed.plan,
        prune=typed.prune is not None,
        given=_repeated(typed),
        detected_notes=detection.notes if image is None or len(commands) < len(STAGES) else (),
    )


def _check(typed: CommandLine) -> None:
    """Refuse values that no option can have, whatever the project says."""
    if typed.resume_from is not None and typed.rebuild is not None:
        raise ConfigurationError(
            "--stagebuild-from takes a checkpoint as it is and --stagebuild-rebuild takes none: give one of them."
        )
    texts = {
        "source": (typed.source,),
        "image": (typed.image,),
        "install-cmd": (typed.install_cmd,),
        "build-cmd": (typed.build_cmd,),
        "test-cmd": (typed.test_cmd,),
        "engine": (typed.engine,),
        "from": (typed.resume_from,),
        "artifact": typed.artifacts,
        "host-tests": typed.host_tests,
        "junit": typed.junit,
        "lockfile": (typed.lockfile,),
    }
    for option, values in texts.items():
        if any(value is not None and not value.strip() for value in values):
            remedy = "`true` is a command that does nothing" if option.endswith("-cmd") else "leave it out or give one"
            raise ConfigurationError(f"--stagebuild-{option} has no value: {remedy}.")
    if typed.timeout is not None and not is_timeout(typed.timeout):
        raise ConfigurationError(f"--stagebuild-timeout must be a positive number of seconds, not {typed.timeout}.")


def _source_folder(typed: str | None, default: Path, invocation_dir: Path) -> Path:
    source = default if typed is None else invocation_dir / _expanded(typed)
    remedy = "Name the folder of a project with --stagebuild-source."
    try:
        source = source.resolve()
        if not source.exists():
            raise ConfigurationError(f"the source {source} does not exist. {remedy}")
        if not source.is_dir():
            raise ConfigurationError(f"the source {source} is not a folder. {remedy}")
        if not {path.name for path in source.iterdir()} - {".stagebuild", ".git"}:
            raise ConfigurationError(f"the source {source} is empty. {remedy}")
    except OSError as error:
        raise ConfigurationError(f"the source {source} cannot be read: {error.strerror}. {remedy}") from None
    except (RuntimeError, ValueError) as error:  # a loop of links (before Python 3.13), a NUL
        raise ConfigurationError(f"the source {source} cannot be read: {error}. {remedy}") from None
    return source


def _within(source: Path, path: Path, where: str) -> str:
    """A path relative to the source; by its text alone, for it may be a glob."""
    relative = os.path.relpath(os.path.normpath(path), source)
    if relative == ".." or relative.startswith("../"):
        raise ConfigurationError(f"{where}: {path} lies outside the source {source}. Name a path in it.")
    return relative


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # no such user: then it is a name like any other
        return Path(path)


def _given_commands(typed: CommandLine, table: Table) -> dict[StageName, str]:
    commands: dict[StageName, str | None] = {
        "install": typed.install_cmd or table.stages["install"].command,
        "build": typed.build_cmd or table.stages["build"].command,
        "test": typed.test_cmd or table.stages["test"].command,
    }
    return {name: command for name, command in commands.items() if command is not None}


def _checked_image(reference: str, where: str, folder: Path) -> str:
    """An image as it was named; the path of one is relative to ``folder``, and begins as paths do."""
    if reference.startswith(("/", "./", "../", "~/")) or reference in (".", ".."):
        return str((folder / _expanded(reference)).resolve())
    if _IMAGE.fullmatch(reference.removeprefix("tag:")) is None:
        raise ConfigurationError(
            f"{where}: {reference!r} is no image. "
            "Write NAME[:TAG][@DIGEST] in lower case, tag:NAME, a checkpoint's UUID, or a path that begins with ./ "
            "or /."
        )
    return reference


def _stages(
    typed: CommandLine,
    table: Table,
    given: Mapping[StageName, str],
    detection: Detection,
    environ: Mapping[str, str],
) -> dict[StageName, Stage]:
    stages: dict[StageName, Stage] = {}
    option = _typed_variables(typed.env, environ)
    for name in STAGES:
        wanted = table.stages[name]
        stages[name] = Stage(
            name,
            command=detection.commands[name],
            detected=name not in given,
            env={
                **_values(table.env, f"{table.file}: key `env`", environ),
                **_values(wanted.env, f"{table.file}: key `env` of {name}", environ),
                **option,
            },
            network=wanted.network,
            timeout=typed.timeout or wanted.timeout or table.timeout or DEFAULT_TIMEOUT,
            inputs=wanted.inputs,
        )
    return stages


def _typed_variables(texts: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    variables: list[Variable] = []
    for text in texts:
        variable = parse_variable(text)
        if variable is None:
            name = text.partition("=")[0]
            raise ConfigurationError(f"--stagebuild-env: {name!r} names no variable. Write NAME or NAME=VALUE.")
        variables.append(variable)
    return _values(variables, "--stagebuild-env", environ)


def _values(variables: Iterable[Variable], where: str, environ: Mapping[str, str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for variable in variables:
        value = environ.get(variable.name) if variable.value is None else variable.value
        if value is None:
            raise ConfigurationError(
                f"{where}: {variable.name} is not set here. Set it, or write {variable.name}=VALUE to give it a value."
            )
        values[variable.name] = value
    return values


def _check_secrets(secrets: Iterable[str], stages: Iterable[Stage], environ: Mapping[str, str]) -> None:
    """No message may hold a value: whoever wrote ``--stagebuild-secret=NAME=VALUE`` meant it as a secret."""
    declared = {name for stage in stages for name in stage.env}
    for secret in secrets:
        name, value_given, _ = secret.partition("=")
        if value_given or not is_environment_name(name):
            raise ConfigurationError(
                f"--stagebuild-secret: {name!r} must be the name alone of a variable that is set in the environment."
            )
        if name in declared:
            raise ConfigurationError(
                f"{name} is declared both as a secret and in `env`, which is recorded and part of every key. "
                "Remove it from one of them."
            )
        if not environ.get(name):
            raise ConfigurationError(f"the secret {name} is not set in the environment. Set it and run again.")
        if len(environ[name]) < SHORTEST_SECRET:
            raise ConfigurationError(
                f"the secret {name} is shorter than {SHORTEST_SECRET} characters, so it cannot be kept out of output. "
                "Use a longer one, or declare it in `env` if it is none."
            )


def _lockfile(typed: CommandLine, table: Table, source: Path, invocation_dir: Path) -> Path:
    if typed.lockfile is not None:
        lockfile = invocation_dir / _expanded(typed.lockfile)
    else:
        lockfile = source / (table.lockfile or DEFAULT_LOCKFILE)
    if lockfile.is_dir():
        raise ConfigurationError(f"the lockfile {lockfile} is a folder. Name a file in it.")
    return Path(os.path.normpath(lockfile))


def _keep(typed: CommandLine, table: Table) -> int:
    if isinstance(typed.prune, int):
        return typed.prune
    return DEFAULT_KEEP if table.keep is None else table.keep


def _merged(first: Iterable[str], then: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*first, *then]))


def _repeated(typed: CommandLine) -> tuple[str, ...]:
    """The options to type again in order to resume. Not among them: where to start, and whether at all."""
    prune = None if typed.prune is None else "" if typed.prune == "table" else f"={typed.prune}"
    once = {
        "source": typed.source,
        "image": typed.image,
        "install-cmd": typed.install_cmd,
        "build-cmd": typed.build_cmd,
        "test-cmd": typed.test_cmd,
        "engine": typed.engine,
        "timeout": None if typed.timeout is None else f"{typed.timeout!r}".removesuffix(".0"),
        "isolate": typed.isolate,
        "jobs": typed.jobs,
        "downloads": typed.downloads,
        "lockfile": typed.lockfile,
    }
    several = {
        "env": typed.env,
        "secret": typed.secrets,
        "artifact": typed.artifacts,
        "host-tests": typed.host_tests,
        "junit": typed.junit,
    }
    return (
        # First, because without a number it would take a path that came after it for one.
        *(() if prune is None else (f"--stagebuild-prune{prune}",)),
        *(f"--stagebuild-{option}={value}" for option, value in once.items() if value is not None),
        *(f"--stagebuild-{option}={value}" for option, values in several.items() for value in values),
    )
