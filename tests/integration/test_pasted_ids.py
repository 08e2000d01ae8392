"""Every id that a run prints, typed again, is that one test."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

PARAMETERS = [
    "a::b",
    "tests/test_odd.py::test_it",
    "two  words",
    " at both ends ",
    "ends with ::",
    "x - y",
    "[b]",
    "]",
    "-k",
    "not a",
    "it's",
    '"$HOME"',
    "*",
    "%s %(x)s",
    "a\\b",
    "größe 日本",
    "",
]

ODD = f"""\
import pytest

@pytest.mark.parametrize("text", {PARAMETERS!r}, ids=str)
def test_it(text): assert 0

@pytest.mark.parametrize("number", [1.5, None])
@pytest.mark.parametrize("text", ["ü"])
def test_crossed(text, number): assert 0

def test_größe(): assert 0

class TestÄußeres:
    class TestInner:
        def test_it(self): assert 0

        @pytest.mark.parametrize("text", ["a::b"])
        def test_parametrised(self, text): assert 0

    def test_it(self): assert 0
"""

FILES = {
    "tests/test_odd.py": ODD,
    "tests/deep/er/test_odd.py": "def test_it(): assert 0\n\ndef test_it_too(): assert 0\n",
    "tests/with blank/test_é è.py": "def test_it(): assert 0\n",
    "test_top.py": (
        "import unittest\n\nclass Tests(unittest.TestCase):\n"
        "    def test_it(self): assert 0\n\n    def test_it_too(self): assert 0\n"
    ),
}


@pytest.fixture(scope="module")
def sub(new_shared_project):
    """A project in the folder ``sub`` of the one that pytest is called from."""
    project = new_shared_project("sub", install_cmd="pip install --no-compile pytest", build_cmd="true")
    table = (project.root / "pyproject.toml").read_text()
    # By default pytest escapes what is not ASCII in ids.
    unescaped = "disable_test_id_escaping_and_forfeit_all_rights_to_community_support = true"
    settings = f"[tool.pytest.ini_options]\naddopts = '--import-mode=importlib'\n{unescaped}\n"
    inputs = 'install.inputs = ["none"]\nbuild.inputs = ["none"]\n'
    project.write({"pyproject.toml": table + inputs + settings, **FILES})
    return project


def failed_of(project, *ids: str) -> Sequence[str]:
    """The ids in the short summary of a run that was given these."""
    run = project.pytest(
        "--stagebuild-source=sub", "-q", *ids, cwd=project.root.parent, env={"CI": "1", "PYTHONUTF8": "1"}
    )
    assert run.code == 1, run.output
    found = re.findall(r"(?m)^FAILED (.*) - (?:AssertionError: )?assert 0$", run.output)
    assert f"{len(found)} failed, 2 passed in " in run.lines[-1], run.output
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")
def test_each_id_of_the_short_summary_is_that_one_test(sub):
    ids = failed_of(sub)
    assert len(ids) == len({*ids}) == len(PARAMETERS) + 2 + 4 + 2 + 1 + 2
    assert "sub/tests/test_odd.py::test_it[a::b]" in ids
    assert "sub/tests/with blank/test_é è.py::test_it" in ids

    assert {one: failed_of(sub, one) for one in ids} == {one: [one] for one in ids}
    assert sorted(failed_of(sub, *ids[::2])) == sorted(ids[::2])
