"""Names from inside as they are called out here."""

from __future__ import annotations

import pytest

from pytest_stagebuild.results.paths import Paths


@pytest.fixture
def source(tmp_path):
    (tmp_path / "project/tests").mkdir(parents=True)
    (tmp_path / "project/tests/test_a.py").touch()
    return tmp_path / "project"


@pytest.fixture
def here(source):
    """As seen from the source."""
    return Paths(source, source, source)


@pytest.fixture
def above(source):
    """As seen from the folder above it, which is the rootdir too."""
    return Paths(source, source.parent, source.parent)


def test_ids_are_relative_to_the_rootdir_out_here(here, above):
    assert here.nodeid("tests/test_a.py::x[a::b]", "/src") == "tests/test_a.py::x[a::b]"
    assert above.nodeid("tests/test_a.py::x[a/b]", "/src") == "project/tests/test_a.py::x[a/b]"
    assert here.nodeid("test_a.py::x", "/src/tests") == "tests/test_a.py::x"


def test_an_id_outside_the_source_has_its_whole_path(here):
    assert here.nodeid("../usr/lib/p/test_p.py::x", "/src") == "/usr/lib/p/test_p.py::x"


@pytest.mark.parametrize(
    "line",
    [
        "{}:3: AssertionError",
        "\x1b[1m\x1b[31m{}\x1b[0m:3: AssertionError",
        '  File "{}", line 3, in x',
        'E     File "{}", line 3',
        '\x1b[1m\x1b[31mE     File "{}", line 3\x1b[0m',
        "ImportError while importing test module '{}'.",
    ],
)
@pytest.mark.parametrize("inside", ["tests/test_a.py", "/src/tests/test_a.py"])
def test_tracebacks_name_the_user_s_own_files(above, line, inside):
    assert above.text(line.format(inside), "/src") == line.format("project/tests/test_a.py")


@pytest.mark.parametrize("line", ["tests/no_such.py:3: x", "/usr/lib/x.py:3: x", "E   tests/test_a.py:3 is wrong"])
def test_what_is_no_file_of_the_user_s_stays_as_it_is(above, line):
    assert above.text(line, "/src") == line
