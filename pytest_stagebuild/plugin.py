"""The pytest hooks and fixtures.

This module is loaded in every pytest run of everybody who has the plugin installed: it imports nothing else of the
package, and does nothing, until ``--stagebuild-source`` is given or a fixture is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from pytest_stagebuild.image import Image
    from pytest_stagebuild.session import StagebuildSession

    class Worker(Protocol):
        """What pytest-xdist calls a node: its controlling process's view of a worker."""

        config: pytest.Config
        workerinput: dict[str, str]
        workeroutput: dict[str, str]


_SESSION: pytest.StashKey[StagebuildSession] = pytest.StashKey()
_RUN: pytest.StashKey[str] = pytest.StashKey()


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_stagebuild import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_stagebuild.flags import add_options

    add_options(parser)
    config: pytest.Config | None = pluginmanager.get_plugin("pytestconfig")
    typed = [os.environ.get("PYTEST_ADDOPTS", ""), *map(str, config.invocation_params.args if config else ())]
    if any("--stagebuild-source" in text for text in typed):
        from pytest_stagebuild.takeover import waive_required_plugins

        waive_required_plugins(pluginmanager)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    if early_config.known_args_namespace.stagebuild_source is not None:
        from pytest_stagebuild.takeover import neutralise_xdist, take_over

        take_over(early_config, parser, args)
        neutralise_xdist(early_config)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    if config.option.stagebuild_plan and config.option.stagebuild_source is None:
        raise pytest.UsageError(
            "--stagebuild-plan needs --stagebuild-source: pytest --stagebuild-source=. does it here"
        )
    if config.option.stagebuild_source is not None:
        from pytest_stagebuild.staged_run import StagedRun
        from pytest_stagebuild.takeover import neutralise_xdist

        undistributed = neutralise_xdist(config)
        run = StagedRun(config, _session_of(config), undistributed=undistributed)
        config.pluginmanager.register(run, "stagebuild-run")
    return (yield)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (opened := session.config.stash.get(_SESSION, None)) is not None:
        opened.finish()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Worker) -> None:
    """Give all workers one name for this run: pytest-xdist's own may be anything, by ``--testrunuid``."""
    node.workerinput["stagebuild"] = node.config.stash.setdefault(_RUN, os.urandom(16).hex())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Worker, error: object) -> None:
    """What a pytest-xdist worker did, taken into the summary of the process that the user looks at."""
    told = getattr(node, "workeroutput", {}).get("stagebuild")  # a worker that crashed has none
    if told is not None:
        _session_of(node.config).hear(told, node.workerinput["stagebuild"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if (opened := config.stash.get(_SESSION, None)) is not None:
        opened.write_summary(terminalreporter)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (opened := config.stash.get(_SESSION, None)) is not None:
        opened.close()


@pytest.fixture(scope="session")
def base_image(request: pytest.FixtureRequest) -> Image:
    """The base image, with the source as it is now in ``/src``."""
    return _session_of(request.config).image("base")


@pytest.fixture(scope="session")
def deps_image(request: pytest.FixtureRequest) -> Image:
    """The checkpoint ``deps-installed``, with the source as it is now in ``/src``."""
    return _session_of(request.config).image("install")


@pytest.fixture(scope="session")
def build_image(request: pytest.FixtureRequest) -> Image:
    """The checkpoint ``build-complete``, with the source as it is now in ``/src``."""
    return _session_of(request.config).image("build")


def _session_of(config: pytest.Config) -> StagebuildSession:
    if _SESSION not in config.stash:
        from pytest_stagebuild.session import StagebuildSession

        config.stash[_SESSION] = StagebuildSession(config)
    return config.stash[_SESSION]
