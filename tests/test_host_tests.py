"""Which files of a source tree are host tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_stagebuild.errors import ConfigurationError
from pytest_stagebuild.host_tests import find_host_tests

OURS = "def test_it(build_image): ...\n"


def find(root: Path, files: dict[str, str], *configured: str) -> tuple[str, ...]:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return find_host_tests(files, root, configured)


@pytest.mark.parametrize(
    "text",
    [
        "def test_it(base_image): ...",
        "def test_it(tmp_path, deps_image): ...",
        "def test_it(*, build_image): ...",
        "def test_it(build_image, /): ...",
        "async def test_it(build_image): ...",
        "class TestIt:\n    def test_it(self, build_image): ...",
        "class TestIt:\n    class TestInner:\n        async def test_it(self, build_image): ...",
        "import pytest\n@pytest.fixture\ndef version(build_image): ...\ndef test_it(version): ...",
        "from pytest import fixture\n@fixture(scope='session')\ndef version(build_image): ...",
        "import sys\nif sys.platform == 'linux':\n    def test_it(build_image): ...",
        "import pytest\npytestmark = pytest.mark.usefixtures('build_image')\ndef test_it(): ...",
        "def test_it(request): request.getfixturevalue('build_image')",
        "import pytest\n@pytest.fixture\ndef build_image(build_image): return build_image",
        "from pytest_stagebuild.plugin import build_image\ndef test_it(build_image): ...",
        "def test_it(build_image): return '\\d'",
    ],
)
def test_a_test_file_that_asks_for_one_of_our_fixtures_runs_on_the_host(text, tmp_path):
    assert find(tmp_path, {"tests/test_a.py": text}) == ("tests/test_a.py",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "def test_it(image): ...",
        "# def test_it(build_image): ...",
        "def test_it():\n    build_image = 1",
        "def compare(base_image, other): ...",
        "def test_it():\n    def inner(base_image): ...",
        "import pytest\n@pytest.mark.parametrize('base_image, size', [(1, 2)])\ndef test_it(base_image, size): ...",
        "import pytest\n@pytest.mark.parametrize(['base_image'], [(1,)])\ndef test_it(base_image): ...",
        "import pytest\n@pytest.fixture\ndef base_image(): ...\ndef test_it(base_image): ...",
        "import pytest\n@pytest.fixture(name='base_image')\ndef picture(): ...\ndef test_it(base_image): ...",
        "from .pictures import base_image\ndef test_it(base_image): ...",
        "def test_it(build_image:",
        "def test_it(build_image): ...\0",
    ],
)
def test_a_test_file_that_only_looks_like_it_runs_inside(text, tmp_path):
    assert find(tmp_path, {"tests/test_a.py": text}) == ()


@pytest.mark.parametrize(
    ("path", "is_test"),
    [
        ("test_a.py", True),
        ("deep/down/a_test.py", True),
        ("conftest.py", False),
        ("tests/conftest.py", False),
        ("a.py", False),
        ("test_a.txt", False),
        ("test_a/a.py", False),
    ],
)
def test_only_files_that_pytest_collects_by_default_are_looked_into(path, is_test, tmp_path):
    assert find(tmp_path, {path: OURS}) == ((path,) if is_test else ())


def test_a_conftest_above_that_defines_the_name_makes_it_the_projects(tmp_path):
    own = "import pytest\n@pytest.fixture\ndef build_image(): ...\n"
    files = {"a/conftest.py": own, "a/b/test_theirs.py": OURS, "c/test_ours.py": OURS, "test_ours.py": OURS}
    assert find(tmp_path, files) == ("c/test_ours.py", "test_ours.py")


def test_a_conftest_that_extends_our_fixture_leaves_it_ours(tmp_path):
    extending = "import pytest\n@pytest.fixture\ndef build_image(build_image): return build_image\n"
    assert find(tmp_path, {"conftest.py": extending, "test_ours.py": OURS}) == ("test_ours.py",)


def test_a_file_that_is_gone_runs_nowhere(tmp_path):
    assert find_host_tests(["test_gone.py"], tmp_path, ()) == ()


def test_configured_files_run_on_the_host_whatever_their_name_and_content(tmp_path):
    assert find(tmp_path, {"checks/wheel.py": "", "test_inner.py": ""}, "checks/wheel.py") == ("checks/wheel.py",)


def test_a_configured_folder_stands_for_its_test_files(tmp_path):
    files = {"host/test_a.py": "", "host/deep/b_test.py": "", "host/helper.py": "", "hostile/test_c.py": ""}
    assert find(tmp_path, files, "host/") == ("host/deep/b_test.py", "host/test_a.py")


@pytest.mark.parametrize(
    ("configured", "message"),
    [
        ("nowhere", "is not there"),
        ("empty", "holds no file named"),
        ("../outside.py", "not below the source"),
        ("/etc/passwd", "not below the source"),
    ],
)
def test_a_configured_path_that_names_no_test_is_an_error(configured, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=rf"host_tests names {configured}.*{message}.*Next: "):
        find(tmp_path, {"test_a.py": ""}, configured)
