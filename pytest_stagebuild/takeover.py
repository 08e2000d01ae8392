"""Keep the project's own pytest configuration, and xdist's distribution, out of a run that belongs to the container."""

from __future__ import annotations

import copy
import os
import shlex
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, Final

import pytest

SOURCE_OPTION: Final = "--stagebuild-source"

WAY_ROUND: Final = f"pytest -c {os.devnull} --rootdir=. --noconftest {SOURCE_OPTION}=."
"""The command that keeps pytest from reading any configuration at all, for what no plugin can undo."""


def typed_arguments(config: pytest.Config) -> list[str]:
    """What the user gave for this run: ``PYTEST_ADDOPTS``, then the command line, without ini ``addopts``."""
    return [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *map(str, config.invocation_params.args)]


def waive_required_plugins(pluginmanager: pytest.PytestPluginManager) -> None:
    """Forget ``required_plugins`` where ``--stagebuild-source`` was typed: they are required inside the container.

    For ``pytest_addoption``, the last moment before pytest enforces them. The list that ``getini`` returns is the one
    that pytest keeps (``addinivalue_line`` relies on that too), so emptying it needs no private access. Does nothing
    where the plugin is registered before the configuration has been read, as ``pytest.main(plugins=...)`` does.
    """
    config: pytest.Config | None = pluginmanager.get_plugin("pytestconfig")
    if config is None or not any(
        argument == SOURCE_OPTION or argument.startswith(f"{SOURCE_OPTION}=") for argument in typed_arguments(config)
    ):
        return
    try:
        required = config.getini("required_plugins")
    except ValueError:
        return
    if isinstance(required, list):
        required.clear()


def take_over(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Make this run one without ini values, ini ``addopts`` and conftest files; the rootdir stays as determined.

    To be called before the ``yield`` of a ``pytest_load_initial_conftests`` hook that is a ``wrapper`` and
    ``tryfirst``: the wrappers of pytest's own capture and warnings plugins read the configuration, and so must run
    later. ``args`` is the list given to that hook and is changed in place. Command line arguments, ``-o`` and
    ``PYTEST_ADDOPTS`` keep their meaning.

    Undone, because pytest has applied it by then: ``pythonpath`` (pytest 9), and plugins that only ini ``addopts``
    name with ``-p``, save for their fixtures, which pytest records at once. Left as it is: plugins switched off with
    ``-p no:NAME`` in ``addopts``, since they cannot be put back in their place; ``--assert=plain`` in ``addopts`` and
    ``python_files`` for assertion rewriting, which only make the messages of host tests plainer.

    Raises ``pytest.UsageError`` where ini ``addopts`` holds options of ours, and where pytest keeps its configuration
    in a place that this function does not know.
    """
    if early_config.inipath == Path(os.devnull) and early_config.known_args_namespace.noconftest:
        return

    before = early_config.known_args_namespace
    python_path = [str(path) for path in early_config.getini("pythonpath")]
    typed = typed_arguments(early_config)
    _refuse_own_options(args[: len(args) - len(typed)], early_config.inipath)
    overridden = parser.parse_known_args(typed, namespace=copy.copy(early_config.option)).override_ini or ()
    names = {override.partition("=")[0] for override in overridden}

    # Neither has a public counterpart: pytest 9 has `_inicfg` (name -> ConfigValue, with `-o` among them as "override",
    # also when ini `addopts` held it), pytest 8 has `inicfg` (name -> text) and keeps `-o` elsewhere.
    values: Any = getattr(early_config, "_inicfg", None)
    if values is None:
        values = getattr(early_config, "inicfg", None)
    cache: Any = getattr(early_config, "_inicache", None)
    if not isinstance(values, MutableMapping) or not isinstance(cache, MutableMapping):
        raise _unknown_pytest()
    for name in list(values):
        if name not in names or getattr(values[name], "origin", "file") != "override":
            del values[name]
    cache.clear()
    if "cache_dir" not in names:
        # What failed in a run like this must not stand in the project's own cache, for its own `pytest --lf`.
        source = early_config.invocation_params.dir / str(before.stagebuild_source)
        cache["cache_dir"] = str(source.resolve() / ".stagebuild" / "pytest-cache")
    if any(name not in names and early_config.getini(name) for name in ("addopts", "testpaths")):
        raise _unknown_pytest()

    args[:] = ["--noconftest", *early_config.getini("addopts"), *typed]
    after = parser.parse_known_args(args, namespace=copy.copy(early_config.option))
    if after.confcutdir is None:
        after.confcutdir = str(early_config.inipath.parent if early_config.inipath else early_config.rootpath)
    early_config.known_args_namespace = after

    _remove_from_python_path(python_path, keep=[str(path) for path in early_config.getini("pythonpath")])
    _unregister(early_config.pluginmanager, [name for name in before.plugins if name not in after.plugins])


def neutralise_xdist(config: pytest.Config) -> bool:
    """Switch pytest-xdist's distribution and ``--looponfail`` off; True if either had been asked for.

    Call it twice: after :func:`take_over`, for plugins that look at the early options (pytest-cov starts another
    engine when it sees ``-n``), and before the ``yield`` of a ``pytest_cmdline_main`` hook that is a ``wrapper`` and
    ``tryfirst``, since xdist turns ``-n`` into workers in its own ``tryfirst`` ``pytest_cmdline_main``. Only the second
    call sees the options that count. Without xdist it changes nothing.
    """
    asked = False
    for option in (config.known_args_namespace, config.option):
        if not hasattr(option, "numprocesses"):
            continue
        asked = asked or bool(
            option.numprocesses
            or option.distload
            or option.dist != "no"
            or option.tx
            or getattr(option, "looponfail", 0)
        )
        option.numprocesses = None
        option.distload = False
        option.dist = "no"
        option.tx = []
        option.looponfail = False
    return asked


def _refuse_own_options(addopts: list[str], inipath: Path | None) -> None:
    for argument in addopts:
        option = argument.partition("=")[0]
        if option.startswith("--stagebuild-"):
            raise pytest.UsageError(
                f"{inipath}: addopts holds {option}, but the pytest inside the container reads the same addopts and "
                f"need not know that option. "
                f"Next: give it on the command line or in PYTEST_ADDOPTS, or put it as a key into [tool.stagebuild]."
            )


def _unknown_pytest() -> pytest.UsageError:
    return pytest.UsageError(
        f"pytest {pytest.__version__} keeps its configuration where this version of pytest-stagebuild does not find "
        f"it, so the project's own settings cannot be kept out of this run. "
        f"Next: update pytest-stagebuild, or start it without any configuration:\n  {WAY_ROUND}"
    )


def _remove_from_python_path(entries: list[str], *, keep: list[str]) -> None:
    for entry in entries:
        if entry not in keep and entry in sys.path:
            sys.path.remove(entry)


def _unregister(pluginmanager: pytest.PytestPluginManager, names: list[str]) -> None:
    """Take out plugins that were loaded by name, but not installed ones, nor pytest's own, which others rely on."""
    installed = [plugin for plugin, _ in pluginmanager.list_plugin_distinfo()]
    for name in names:
        plugin = pluginmanager.get_plugin(name)
        if plugin is None or plugin in installed or getattr(plugin, "__name__", "").startswith("_pytest."):
            continue
        pluginmanager.unregister(plugin)
