"""What plugins out here write of the tests inside is what they write of the same tests in there."""

from __future__ import annotations

import html
import json
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "results"))  # the folders of tests are no packages

from suites import FILES, OUTCOMES

BY_HAND = "env -u PYTHONPATH pytest --report-log=by-hand.json --html=by-hand.html"
"""What the reporter is put into is not there: nothing of the run comes from it."""

HERE = ("pytest_reportlog.plugin", "pytest_html.plugin", "pytest_metadata.plugin")


@pytest.fixture(scope="module")
def folder(new_shared_project, tmp_path_factory) -> Path:
    """Has ``by-hand`` and ``here``, each as ``.json`` and ``.html``."""
    folder = tmp_path_factory.mktemp("reports")
    project = new_shared_project(
        install_cmd="pip install --no-compile pytest pytest-html pytest-reportlog", build_cmd="true", test_cmd="pytest"
    )
    project.write(FILES)
    artifacts = ("--stagebuild-artifact=by-hand.json", "--stagebuild-artifact=by-hand.html")
    run = project.stagebuild(f"--stagebuild-test-cmd={BY_HAND}", *artifacts)
    assert "FAILED pyproject.toml::test - test: exit 1" in run.output, run.output  # and none of its tests
    for name in ("by-hand.json", "by-hand.html"):
        (folder / name).write_bytes((project.root / ".stagebuild" / "artifacts" / name).read_bytes())
    plugins = [argument for name in HERE for argument in ("-p", name)]
    width = {"COLUMNS": "80"}  # of a pytest that has no terminal
    run = project.stagebuild(*plugins, f"--report-log={folder}/here.json", f"--html={folder}/here.html", env=width)
    assert (run.outcomes()["install"], run.outcomes()["build"]) == ("CACHED", "CACHED"), run.output
    return folder


def is_of_a_stage(identifier: str) -> bool:
    return identifier.startswith("pyproject.toml::")


def reports(path: Path) -> list[tuple[object, ...]]:
    """What the report log says of each phase of each test, without its duration, and of files not collected."""
    kinds = {"TestReport": pytest.TestReport, "CollectReport": pytest.CollectReport}
    told = []
    for line in path.read_text().splitlines():
        value = json.loads(line)
        if (kind := kinds.get(value.pop("$report_type"))) is None:
            continue
        report = kind._from_json(value)
        if is_of_a_stage(report.nodeid) or (kind is pytest.CollectReport and report.passed):
            continue
        crash = getattr(report.longrepr, "reprcrash", None)
        told.append(
            (
                report.nodeid,
                report.when,
                report.outcome,
                getattr(report, "wasxfail", None),
                steady(str(report.longreprtext)),
                (steady(crash.path), crash.lineno, crash.message) if crash else None,
                report.sections,
                getattr(report, "user_properties", None),
                getattr(report, "location", None),
                getattr(report, "keywords", None),
            )
        )
    return told


def table(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows of the page's table of results, with what is shown when they are opened."""
    match = re.search(r'data-jsonblob="([^"]*)"', path.read_text())
    told = json.loads(html.unescape(match[1]))
    return {
        identifier: [
            (
                row["result"],
                row["testId"],
                steady(html.unescape(row["log"])),
                [cell for cell in row["resultsTableRow"] if "col-duration" not in cell],
            )
            for row in rows
        ]
        for identifier, rows in told["tests"].items()
        if not is_of_a_stage(identifier)
    }


def steady(text: str) -> str:
    """With paths as they are out here."""
    return text.replace("/src/", "")


on_local = pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")


@on_local
def test_the_report_log_says_the_same(folder):
    here = reports(folder / "here.json")
    assert here == reports(folder / "by-hand.json")
    assert {report[0] for report in here} == {*OUTCOMES, "test_absent.py"}


@on_local
def test_the_page_of_results_shows_the_same(folder):
    here = table(folder / "here.html")
    assert here == table(folder / "by-hand.html")
    shown = Counter(row[0] for rows in here.values() for row in rows)
    assert {"Passed", "Failed", "Error", "Skipped", "XFailed", "XPassed"} == shown.keys()
