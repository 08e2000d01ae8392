"""What every test of this project may use: pytest's own means of testing a plugin, and examples that stay the same."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# The same examples in every run, so that a change is judged by itself; look for new ones with
# `pytest --hypothesis-profile=explore`.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("same")


@pytest.fixture
def shared_tmp_path() -> Iterator[Path]:
    """A folder that other users may enter, which ``tmp_path`` is not: each pytest that begins, a test's own ones too,
    closes the folder above it.
    """
    with tempfile.TemporaryDirectory(prefix="stagebuild-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


_LONGEST_FIRST = ("tests/trace/test_nothing_old_is_reused.py", "tests/integration/", "tests/trace/", "tests/engines/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that no process is left alone with it where several share the tests."""
    order = {start: number for number, start in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: next((order[start] for start in order if item.nodeid.startswith(start)), len(order)))


SKIP_NOTHING = "STAGEBUILD_SKIP_NOTHING"
"""Set where the machine has all that the tests need: a skip then hides what is broken, whatever reason it gives."""


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A run in which a test was skipped has failed."""
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why."""
    if count := _skipped(config):
        terminalreporter.write_line(f"{count} tests were skipped, and {SKIP_NOTHING} is set", red=True)


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    wanted = os.environ.get(SKIP_NOTHING) and not hasattr(config, "workerinput")
    return len(reporter.stats.get("skipped", ())) if wanted and reporter else 0
