"""The suites of real projects come to the same outside as their pytest says by itself, inside the same checkpoint."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

CACHETOOLS = "cachetools==8.0.1"
"""unittest's classes, with subtests."""

CLICK = "click==8.5.1"
"""2,459 tests, some of them skipped or expected to fail, with ids of blanks, brackets, colons and escapes; its
settings deselect many more."""

SIX = "six==1.17.0"
"""A warning, and tests skipped in the middle of others."""

BY_HAND = "env -u PYTHONPATH {} -vv -rA --junitxml=by-hand.xml"
"""What the reporter is put into is not there: nothing of the run comes from it."""


@dataclass(frozen=True)
class Results:
    """What pytest says of tests: ``cases`` in JUnit XML, ``lines`` under ``-v``, a ``summary``, and the ``counts``."""

    cases: list[tuple[object, ...]]
    lines: list[str]
    summary: list[str]
    counts: dict[str, int]


@pytest.fixture(scope="session")
def sdists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("suites")
    unpacked = {}
    for sdist in (CACHETOOLS, CLICK, SIX):
        name = sdist.partition("==")[0]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--retries=10", f"--no-binary={name}", sdist], cwd=folder, check=True)
        [archive] = folder.glob(f"{name}-*.tar.gz")
        unpacked[sdist] = folder / name
        unpacked[sdist].mkdir()
        subprocess.run(["tar", "-xzf", archive, "--strip-components=1", "-C", unpacked[sdist]], check=True)
    return unpacked


def by_itself(project, command: str) -> Results:
    """What the pytest of ``command`` prints and writes where nobody listens."""
    how = (f"--stagebuild-test-cmd={BY_HAND.format(command)}", "--stagebuild-artifact=by-hand.xml")
    run = project.stagebuild(*project.apart, *how)
    assert "no reports arrived from the pytest of the test command" in run.output, run.output
    report = project.root / ".stagebuild" / "artifacts" / "by-hand.xml"
    return results((project.root / ".stagebuild" / "logs" / "test.log").read_text(), report)


def reported(project, report: Path) -> Results:
    """What the pytest out here says of the same tests, without what it says of the stages."""
    width = {"COLUMNS": "80"}  # of a pytest that has no terminal
    run = project.stagebuild(*project.apart, "-vv", "-rA", f"--junitxml={report}", env=width)
    assert (run.outcomes()["install"], run.outcomes()["build"]) == ("CACHED", "CACHED"), run.output
    here = results(run.output, report)
    stages = [case for case in here.cases if case[0] in {"pyproject.toml", "setup"}]
    assert [case[1] for case in stages] == ["install", "build"]
    return Results(
        [case for case in here.cases if case not in stages],
        here.lines,
        [line for line in here.summary if not line.startswith("CACHED ")],
        {**here.counts, "passed": here.counts["passed"] - len(stages)},
    )


def results(output: str, report: Path) -> Results:
    output = steady(output)
    # Not those of subtests: what pytest prints of unittest's goes into the captured output of their test.
    words = r"(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b"
    lines = [match[1] for match in re.finditer(rf"(?m)^(\S.*?::.* {words})", output)]
    summary, _, last = output.partition(" short test summary info ")[2].partition("\n")[2].rpartition("\n=")
    counts = {what: int(many) for many, what in re.findall(r"(\d+) ([a-z][a-z ]*?)(?:,| in )", last)}
    return Results(cases_of(report), lines, summary.splitlines(), counts)


def cases_of(report: Path) -> list[tuple[object, ...]]:
    """Each case of a report: its names, and what stands in it; not how long it took."""
    return [
        (
            case.get("classname"),
            case.get("name"),
            *((part.tag, part.get("message"), part.get("type"), steady(part.text or "")) for part in case),
        )
        for case in ET.parse(report).iter("testcase")
    ]


def steady(text: str) -> str:
    """Without what is another in each process, the addresses of objects, and with paths as they are out here."""
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x0", text).replace("/src/", "")


def assert_equal(inside: Results, outside: Results) -> None:
    assert outside.counts == inside.counts
    assert outside.summary == inside.summary
    assert outside.lines == inside.lines
    assert outside.cases == inside.cases


@pytest.fixture(scope="module")
def project(request, new_copy, sdists):
    return new_copy(sdists[request.param])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ground", "project", "command", "kinds"),
    [
        ("local", CLICK, "uv run pytest", {"passed", "skipped", "xfailed", "deselected"}),
        ("local", SIX, "pytest", {"passed", "skipped"}),
        ("docker", CACHETOOLS, "pytest", {"passed", "subtests passed"}),
    ],
    indirect=["ground", "project"],
    scope="module",
)
def test_the_outcomes_by_id_are_those_inside(project, tmp_path, command, kinds):
    inside = by_itself(project, command)
    outside = reported(project, tmp_path / "report.xml")

    assert len(inside.cases) > 150
    assert inside.counts.keys() - {"warning"} == kinds  # six has one where Python has tkinter
    assert_equal(inside, outside)


@pytest.mark.slow
@pytest.mark.parametrize(("ground", "project"), [("local", CACHETOOLS)], indirect=True, scope="module")
def test_what_a_defect_breaks_is_shown_as_it_is_inside(project, tmp_path):
    code = (project.root / "src" / "cachetools" / "__init__.py").read_text()
    project.write({"src/cachetools/__init__.py": code.replace("self.__currsize += 1\n", "self.__currsize += 2\n")})

    inside = by_itself(project, "pytest")
    outside = reported(project, tmp_path / "report.xml")

    assert inside.counts["failed"] > 10
    assert_equal(inside, outside)
