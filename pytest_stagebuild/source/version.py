"""Versions that come from git: worked out here, for builds that run where there is no git."""

from __future__ import annotations

import ast
import copy
import logging
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.project import ProjectFiles, read_project, table_at, text_at
from pytest_stagebuild.table import read_toml
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from vcs_versioning import Configuration

_GENERIC: Final = "SETUPTOOLS_SCM_PRETEND_VERSION"
_SET_BY_CODE: Final = object()


@dataclass(frozen=True)
class ScmVersion:
    """The version of a source tree, and the environment that makes its build use it.

    ``problem`` is for the header. Where ``variables`` is empty as well, there is no version, and ``problem`` says why;
    otherwise it says what is doubtful about it.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    version: str = ""
    problem: str = ""


def scm_version(root: Path) -> ScmVersion | None:
    """The version that setuptools-scm or hatch-vcs would find for the project in ``root``; None where it uses neither.

    The project's configuration is honoured as those tools do it: ``root``, tag patterns, schemes, fallbacks, the
    per-project overrides of its repository, ``SETUPTOOLS_SCM_*`` variables of this process. No file is written, no
    warning given, nothing raised, and no code of the project run: a scheme must belong to an installed package, and
    ``describe_command`` must be a ``git describe``.

    Which variable a build honours, tried with each of these in a folder without git:

    ====================================  ==================================  =======================
    setuptools-scm 8.3, 10.3              ``..._FOR_MY_PKG``                  for each distribution
    setuptools-scm 6.4, 7.1               ``..._FOR_MY-PKG``                  lost in most shells
    hatch-vcs 0.3, 0.4, 0.5               ``SETUPTOOLS_SCM_PRETEND_VERSION``  generic
    the same, ``raw-options.dist_name``   ``..._FOR_MY_PKG``                  for each distribution
    ====================================  ==================================  =======================

    The generic one also changes the version of whatever else these tools build from source in the same command, so it
    is given only where nothing better is honoured: hatch-vcs tells setuptools-scm no distribution name, and before 8
    setuptools-scm put the name into the variable as it is, which for one with a dash or a dot is none that a shell
    passes on.
    """
    try:
        project = _detect(root)
    except (ConfigurationError, OSError):  # said elsewhere, where the project is read to be built
        return None
    if project is None:
        return None
    try:
        with _quiet() as warned:
            version = _infer(root, project)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a project's configuration can make the library do anything
        return ScmVersion(
            problem=f"{project.tool} has no version for {root}: {_reason(root, error)}; "
            f"give one with --stagebuild-env={project.variable}=VERSION"
        )
    shallow = any("is shallow" in str(warning.message) for warning in warned)
    return ScmVersion(
        variables={project.variable: version},
        version=version,
        problem=f"the clone is shallow, so version {version} may be wrong: git fetch --unshallow --tags"
        if shallow
        else "",
    )


@dataclass(frozen=True)
class _Project:
    """How a project gets its version from git; ``options`` are those of setuptools-scm's configuration."""

    tool: str
    options: Mapping[str, object]
    dist_name: str | None
    before_8: bool = False

    @property
    def variable(self) -> str:
        if self.dist_name is None:
            return _GENERIC
        from packaging.utils import canonicalize_name

        suffix = canonicalize_name(self.dist_name).replace("-", "_").upper()
        return _GENERIC if self.before_8 and suffix != self.dist_name.upper() else f"{_GENERIC}_FOR_{suffix}"


def _detect(root: Path) -> _Project | None:
    files = read_project(root)
    hatch = table_at(read_toml(root / "hatch.toml") or table_at(files.pyproject, "tool", "hatch"), "version")
    if hatch.get("source") == "vcs" and _is_dynamic(files):
        return _hatch_project(hatch)
    tool = table_at(files.pyproject, "tool")
    section = tool.get("setuptools_scm")
    call = _use_scm_version(root / "setup.py")
    requirements = _requirements(files)
    if not isinstance(section, Mapping) and call is None:
        # An entry point of setuptools-scm sets the version here, unless one that is asked for does.
        if not requirements or not _is_dynamic(files) or table_at(tool, "setuptools", "dynamic").get("version"):
            return None
    elif "version" in table_at(files.pyproject, "project"):
        return None
    options = {**(section if isinstance(section, Mapping) else {}), **(call or {})}
    name = (
        text_at(options, "dist_name")
        or text_at(files.pyproject, "project", "name")
        or files.setup_cfg.get("metadata", {}).get("name")
        or files.setup_py.name
    )
    return _Project("setuptools-scm", options, name, any(map(_allows_only_before_8, requirements)))


def _hatch_project(version: Mapping[str, object]) -> _Project:
    """Hands the options on as hatch-vcs does (https://github.com/ofek/hatch-vcs, ``version_source.py``)."""
    options = dict(table_at(version, "raw-options"))
    for ours, theirs in (("tag-pattern", "tag_regex"), ("fallback-version", "fallback_version")):
        if version.get(ours):
            options[theirs] = version[ours]
    return _Project("hatch-vcs", options, text_at(options, "dist_name"))


def _is_dynamic(files: ProjectFiles) -> bool:
    dynamic = table_at(files.pyproject, "project").get("dynamic")
    return isinstance(dynamic, list) and "version" in dynamic


def _requirements(files: ProjectFiles) -> list[str]:
    """What the build needs of setuptools-scm: the specifiers after its name."""
    requires = table_at(files.pyproject, "build-system").get("requires")
    lines = [line for line in requires if "scm" in str(line).lower()] if isinstance(requires, list) else []
    if not lines:
        return []
    from packaging.requirements import InvalidRequirement, Requirement  # 15 ms, which few projects need
    from packaging.utils import canonicalize_name

    found = []
    for line in lines:
        try:
            requirement = Requirement(str(line))
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) == "setuptools-scm":
            found.append(str(requirement.specifier))
    return found


def _allows_only_before_8(specifiers: str) -> bool:
    from packaging.specifiers import SpecifierSet
    from packaging.version import Version

    bounds = [(s.operator, Version(s.version.removesuffix(".*"))) for s in SpecifierSet(specifiers)]
    return any(
        bound < Version("8") if operator in {"==", "===", "~=", "<="} else operator == "<" and bound <= Version("8")
        for operator, bound in bounds
    )


def _use_scm_version(setup_py: Path) -> dict[str, object] | None:
    """The options that ``setup(use_scm_version=...)`` gives, with a mark for those that only running it could tell."""
    try:
        with _quiet():
            tree = ast.parse(setup_py.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for call in ast.walk(tree):
        for keyword in call.keywords if isinstance(call, ast.Call) else ():
            if keyword.arg == "use_scm_version":
                return _literal_options(keyword.value)
    return None


def _literal_options(node: ast.expr) -> dict[str, object] | None:
    if isinstance(node, ast.Constant):
        return {} if node.value else None
    if not isinstance(node, ast.Dict):
        return {"use_scm_version": _SET_BY_CODE}
    return {
        str(_literal(key)) if key else "use_scm_version": _literal(value)
        for key, value in zip(node.keys, node.values, strict=True)
    }


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _SET_BY_CODE


def _infer(root: Path, project: _Project) -> str:
    from vcs_versioning import PyProjectData, VcsEnvironment, infer_version_string

    path = root / "pyproject.toml"
    declared = PyProjectData.empty(tool_name="setuptools_scm", path=path)
    declared.section = _harmless(project.options)
    environment = VcsEnvironment.from_env("SETUPTOOLS_SCM", dist_name=project.dist_name)
    anchor = {"relative_to": str(path)}
    _refuse_code(environment.build_config(dist_name=project.dist_name, pyproject_data=declared, **anchor))
    return infer_version_string(project.dist_name, declared, anchor, force_write_version_files=False, env=environment)


def _harmless(options: Mapping[str, object]) -> dict[str, Any]:
    """The options without those that write files, reach the network or import what they name."""
    for_writing = {"relative_to", "write_to", "write_to_template", "version_file", "version_file_template"}
    read = {name: value for name, value in options.items() if name not in for_writing}
    by_code = [name for name, value in read.items() if value is _SET_BY_CODE or name == "parse"]
    if by_code:
        raise ValueError(f"`{by_code[0]}` is set by the project's own code, which is not run here")
    kept: dict[str, Any] = copy.deepcopy(read)
    version_class = str(kept.pop("version_cls", "Version"))
    if version_class.endswith("NonNormalizedVersion"):
        kept["normalize"] = False
    elif not version_class.endswith("Version"):
        raise ValueError(f"`version_cls` {version_class} is not known here")
    git = table_at(kept, "scm", "git")
    if git.get("pre_parse") == "fetch_on_shallow":
        kept["scm"]["git"]["pre_parse"] = "warn_on_shallow"
    return kept


def _refuse_code(configuration: Configuration) -> None:
    """Raise ``ValueError`` where the version would need code or commands that the project names."""
    from importlib.metadata import entry_points

    for kind in ("version_scheme", "local_scheme"):
        wanted = getattr(configuration, kind)
        known = entry_points(group=f"setuptools_scm.{kind}").names
        for scheme in [wanted] if isinstance(wanted, str) else wanted:
            if scheme not in known:
                raise ValueError(f"no installed package has the `{kind}` {scheme!r}; install here what defines it")
    command = configuration.scm.git.describe_command
    words = shlex.split(command) if isinstance(command, str) else list(command or ("git", "describe"))
    if words[:2] != ["git", "describe"]:
        raise ValueError(f"`describe_command` is no `git describe`: {shlex.join(map(str, words))}")


def _reason(root: Path, error: BaseException) -> str:
    if isinstance(error, LookupError):
        if shutil.which("git") is None:
            return "git is not installed here"
        git = subprocess.run(
            ["git", "rev-parse", "--show-toplevel"],
            cwd=root,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if git.returncode:
            return next(iter(git.stderr.splitlines()), "git fails").removeprefix("fatal: ")
        toplevel = git.stdout.rstrip("\n")
        if Path(toplevel) != root.resolve():
            return f"the repository is {toplevel}, and the project's `root` does not lead there"
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Collects warnings instead of giving them, and drops what the library logs."""
    logger = logging.getLogger("vcs_versioning")
    propagate, nowhere = logger.propagate, logging.NullHandler()
    # Without a handler of its own, what it logs would go to stderr by logging's last resort.
    logger.propagate = False
    logger.addHandler(nowhere)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield caught
    finally:
        logger.removeHandler(nowhere)
        logger.propagate = propagate
