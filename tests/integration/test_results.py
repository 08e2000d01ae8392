"""Each test inside the container is a result of the pytest outside."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from projects import Run, steady

EVERYTHING = {
    "tests/test_kinds.py": """\
import warnings

import pytest

def test_passes(record_property):
    record_property("weight", 3)

def test_fails():
    print("what it printed")
    expected = {"a": 1}
    assert {"a": 2} == expected

@pytest.fixture
def broken():
    raise RuntimeError("no such thing")

def test_error(broken): ...

@pytest.fixture
def untidy():
    yield
    raise RuntimeError("left a mess")

def test_untidy(untidy): ...

@pytest.mark.skip(reason="not today")
def test_skipped(): ...

@pytest.mark.xfail(reason="known")
def test_expected(): assert False

@pytest.mark.xfail(reason="mended meanwhile")
def test_unexpected(): ...

def test_warns():
    warnings.warn("old ways", DeprecationWarning)

class TestClass:
    @pytest.mark.parametrize("text", ["a::b", "c d", "[x]"])
    def test_parameters(self, text): ...
""",
    "tests/deeper/test_host.py": """\
def test_belongs_to_the_host(request):
    request.getfixturevalue("build_" + "image")
""",
}

SHOWN = """\
tests/deeper/test_host.py s                                                                  [ 21%]
tests/test_kinds.py .FE.EsxX....
stagebuild test: FAILED 0.0s, exit 1                                                         [100%]

============================================== ERRORS ==============================================
___________________________________ ERROR at setup of test_error ___________________________________

    @pytest.fixture
    def broken():
>       raise RuntimeError("no such thing")
E       RuntimeError: no such thing

tests/test_kinds.py:15: RuntimeError
_________________________________ ERROR at teardown of test_untidy _________________________________

    @pytest.fixture
    def untidy():
        yield
>       raise RuntimeError("left a mess")
E       RuntimeError: left a mess

tests/test_kinds.py:22: RuntimeError
============================================= FAILURES =============================================
____________________________________________ test_fails ____________________________________________

    def test_fails():
        print("what it printed")
        expected = {"a": 1}
>       assert {"a": 2} == expected
E       AssertionError: assert {'a': 2} == {'a': 1}
E         
E         Differing items:
E         {'a': 2} != {'a': 1}
E         Use -v to get more diff

tests/test_kinds.py:11: AssertionError
--------------------------------------- Captured stdout call ---------------------------------------
what it printed
========================================= warnings summary =========================================
tests/test_kinds.py::test_warns
  tests/test_kinds.py:36: DeprecationWarning: old ways
    warnings.warn("old ways", DeprecationWarning)
"""  # noqa: W291 - as pytest prints it

INSTALL = "pip install --no-index --find-links wheels --no-compile --disable-pip-version-check pytest pytest-xdist"
"""Without a network: the containers of the Podman that the tests start have none."""


@pytest.fixture(scope="session")
def wheels(tmp_path_factory) -> Path:
    """What the tests inside need."""
    folder = tmp_path_factory.mktemp("wheels")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--dest", folder]
    image_s = ["--python-version", "3.11", "--only-binary", ":all:"]
    subprocess.run([*download, *image_s, "pytest", "pytest-xdist"], check=True)
    return folder


@pytest.fixture(scope="module")
def shared(new_shared_project, wheels):
    project = new_shared_project(install_cmd=INSTALL, build_cmd="true", test_cmd="pytest")
    shutil.copytree(wheels, project.root / "wheels")
    table = (project.root / "pyproject.toml").read_text()
    project.write({"pyproject.toml": table + 'install.inputs = ["none"]\nbuild.inputs = ["none"]\n'})
    assert project.stagebuild("--stagebuild-test-cmd=true").code == 0
    return project


@pytest.fixture
def tests_of(shared):
    """Puts files of tests into the project, and takes those of the test before out again."""

    def put(files: dict[str, str]) -> None:
        for old in Path(shared.root).rglob("*.py"):
            old.unlink()
        shared.write(files)

    return put


each_engine = pytest.mark.parametrize(
    "ground", ["docker", "docker_with_user", "podman", "local"], indirect=True, scope="module"
)
on_local = pytest.mark.parametrize("ground", ["local"], indirect=True, scope="module")


def read_until(process: subprocess.Popen[str], words: str) -> None:
    """Wait until they are printed; the line may not have ended yet."""
    seen = b""
    while words.encode() not in seen:
        piece = os.read(process.stdout.fileno(), 1 << 16)
        assert piece, seen
        seen += piece


def last(run: Run) -> str:
    """The counts in the last line."""
    return re.sub(r" in [\d.]+s.*", "", run.lines[-1]).strip("= ")


def statuses(run: Run) -> dict[str, str]:
    """What ``-v`` says of each test, by its id."""
    pattern = re.compile(r"(tests/\S.*|test_\S.*::.*) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
    return {match[1]: match[2] for line in run.lines if (match := pattern.match(line))}


@each_engine
def test_every_kind_of_result_is_shown_as_if_it_had_run_here(shared, tests_of, tmp_path):
    tests_of(EVERYTHING)
    run = shared.stagebuild("-rA", f"--junitxml={tmp_path}/report.xml")
    assert run.code == 1
    assert SHOWN in steady(run.output)
    assert last(run) == "1 failed, 8 passed, 2 skipped, 1 xfailed, 1 xpassed, 1 warning, 2 errors"
    assert re.search(r"FAILED +0\.0s  exit 1, 3 of 12 tests failed", steady(run.row("test")))
    summary = run.output.partition("short test summary info")[2]
    for line in (
        "PASSED tests/test_kinds.py::TestClass::test_parameters[a::b]",
        "SKIPPED [1] tests/test_kinds.py:26: not today",
        "XFAIL tests/test_kinds.py::test_expected - known",
        "XPASS tests/test_kinds.py::test_unexpected - mended meanwhile",
        "ERROR tests/test_kinds.py::test_error - RuntimeError: no such thing",
        "FAILED tests/test_kinds.py::test_fails - AssertionError: assert {'a': 2} == {'a': 1}",
    ):
        assert f"\n{line}" in summary
    assert "the fixture build_image belongs to the host" in summary
    assert "pyproject.toml::test\n" not in run.output

    suite = ET.parse(tmp_path / "report.xml").getroot()[0]
    cases = {f"{case.get('classname')}::{case.get('name')}": case for case in suite.iter("testcase")}
    assert len(cases) == 14
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("1", "2", "3")
    [weight] = cases["tests.test_kinds::test_passes"].iter("property")
    assert (weight.get("name"), weight.get("value")) == ("weight", "3")
    [failure] = cases["tests.test_kinds::test_fails"].iter("failure")
    assert failure.get("message").startswith("AssertionError: assert {'a': 2} == {'a': 1}")
    assert "tests/test_kinds.py:11: AssertionError" in failure.text


@each_engine
def test_tests_distributed_inside_are_reported_all_the_same(shared, tests_of):
    tests_of(EVERYTHING)
    run = shared.stagebuild("--tb=no", "--stagebuild-test-cmd=pytest -n 2")
    assert last(run) == "1 failed, 8 passed, 2 skipped, 1 xfailed, 1 xpassed, 1 warning, 2 errors"
    run = shared.stagebuild("-v", "--tb=no", "--stagebuild-test-cmd=pytest -n 2", "-k", "fails or untidy")
    assert set(statuses(run)) == {"tests/test_kinds.py::test_fails", "tests/test_kinds.py::test_untidy"}


@on_local
@pytest.mark.parametrize(
    ("dist", "times", "counts"),
    [("loadfile", 1, "1 of 4 tests"), ("loadgroup", 1, "1 of 4 tests"), ("each", 2, "2 of 8 tests")],
)
def test_tests_are_reported_as_often_as_the_workers_run_them(shared, tests_of, dist, times, counts):
    tests_of(
        {
            "test_a.py": """\
import pytest

@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("text", ["a@b", "[c]"])
def test_grouped(text): assert text == "[c]"
def test_plain(): ...
""",
            "test_b.py": "def test_c(): ...\n",
        }
    )
    command = f"--stagebuild-test-cmd=pytest -n 2 --dist {dist}"
    run = shared.stagebuild("-v", "-rA", "--tb=no", command)
    assert f"exit 1, {counts} failed" in run.row("test")
    assert last(run) == f"{times} failed, {2 + 3 * times} passed"
    listed = re.findall(r"(?m)^(?:PASSED|FAILED) (test_.*?)(?: - .*)?$", run.output)
    ids = [f"test_a.py::test_{name}" for name in ("grouped[[c]]", "grouped[a@b]", "plain")] + ["test_b.py::test_c"]
    assert sorted(listed) == sorted(times * ids)
    for one in ids[:2]:
        assert set(statuses(shared.stagebuild("-v", command, one))) == {one}


@on_local
def test_properties_of_the_suite_are_in_junit_xml(shared, tests_of, tmp_path):
    test = "def test_a(record_testsuite_property): record_testsuite_property('release', 7)\n"
    tests_of({"test_a.py": test, "test_b.py": test})
    for isolate, times in (("stage", 2), ("test", 1)):  # each sandbox sets the whole suite's properties anew
        assert shared.stagebuild(f"--junitxml={tmp_path}/report.xml", f"--stagebuild-isolate={isolate}").code == 0
        [properties] = ET.parse(tmp_path / "report.xml").getroot()[0].findall("properties")
        assert [(one.get("name"), one.get("value")) for one in properties] == times * [("release", "7")]


@on_local
def test_a_test_is_reported_while_others_still_run(shared, tests_of):
    tests_of({"test_slow.py": "import time\ndef test_quick(): ...\ndef test_slow(): time.sleep(600)\n"})
    process = shared.start("--stagebuild-source=.", "-v")
    read_until(process, "test_slow.py::test_quick PASSED")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    run = shared.wait(process)
    assert run.code == 2
    assert "stopped stage" in run.output


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("os._exit(0)", "tests are missing"),
        ("os._exit(7)", "exit 7"),
        ("os.kill(os.getpid(), 11)", "segmentation fault (139)"),
    ],
)
@on_local
def test_a_process_that_dies_is_never_taken_for_no_failures(shared, tests_of, body, words):
    tests_of({"test_dies.py": f"import os\ndef test_a(): ...\ndef test_b(): {body}\ndef test_c(): ...\n"})
    run = shared.stagebuild()
    assert run.code == 1
    assert f"FAILED pyproject.toml::test - test: {words}" in run.output
    assert (
        "The pytest inside ended without a word while it ran test_dies.py::test_b; 1 more did not report." in run.output
    )
    assert last(run) == "1 failed, 3 passed"


@on_local
def test_a_worker_that_dies_takes_one_test_with_it(shared, tests_of):
    tests_of({"test_dies.py": "import os\ndef test_a(): ...\ndef test_b(): os._exit(3)\ndef test_c(): ...\n"})
    run = shared.stagebuild("-v", "--stagebuild-test-cmd=pytest -n 1")
    assert statuses(run) == {
        f"test_dies.py::test_{name}": word for name, word in zip("abc", ("PASSED", "FAILED", "PASSED"), strict=True)
    }
    assert "crashed while running 'test_dies.py::test_b'" in run.output


@on_local
def test_an_internal_error_inside_is_shown_as_one(shared, tests_of):
    hook = "def pytest_collection_modifyitems(): raise ValueError('what now')\n"
    tests_of({"conftest.py": hook, "test_a.py": "def test_a(): ...\n"})
    process = shared.start("--stagebuild-source=.")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "FAILED pyproject.toml::test - test: exit 3" in output
    assert "Internal error of the pytest inside: ValueError: what now." in output


@on_local
def test_a_file_that_cannot_be_collected_is_an_error_with_its_name(shared, tests_of):
    tests_of({"tests/test_bad.py": "import nothing_of_that_name\n", "tests/test_good.py": "def test_good(): ...\n"})
    run = shared.stagebuild()
    assert run.code == 1
    assert "ERROR collecting tests/test_bad.py" in run.output
    assert "tests/test_bad.py:1: in <module>\n    import nothing_of_that_name" in run.output
    assert "\nERROR tests/test_bad.py\n" in run.output
    assert last(run) == "2 passed, 1 error"
    assert run.lines[-2].strip("!") == " Interrupted: 1 error during collection "
    assert re.search(r"FAILED +0\.0s  exit 2, 1 error in collection$", run.row("test"))


@on_local
def test_a_run_that_breaks_off_inside_says_so_as_pytest_does(shared, tests_of):
    tests_of(
        {"test_a.py": "import pytest\ndef test_a(): ...\ndef test_b(): pytest.exit('enough')\ndef test_c(): ...\n"}
    )
    run = shared.stagebuild()
    assert run.code == 1
    assert run.lines[-2].strip("!") == " _pytest.outcomes.Exit: enough "
    tests_of({"test_a.py": "def test_a(): assert 0\ndef test_b(): assert 0\ndef test_c(): assert 0\n"})
    run = shared.stagebuild("--tb=no", "--stagebuild-test-cmd=pytest --maxfail=2")
    assert run.code == 1
    assert run.lines[-2].strip("!") == " stopping after 2 failures "


@on_local
def test_the_stage_fails_for_a_reason_of_its_own(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): ...\n"})
    run = shared.stagebuild("--stagebuild-test-cmd=pytest && echo too little covered && exit 9")
    assert run.code == 1
    assert "FAILED pyproject.toml::test - test: exit 9" in run.output
    assert "No test failed: the command ended so for another reason, which its log has." in run.output
    assert "too little covered" in run.output
    assert last(run) == "1 failed, 3 passed"


@on_local
def test_what_the_stage_failed_with_is_shown_beside_its_tests(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): ...\n"})
    for verbosity in ("-v", "-q"):
        run = shared.stagebuild(verbosity, "test_a.py::test_gone")
        assert run.code == 1
        assert "ERROR: not found: /src/test_a.py::test_gone" in run.output


@on_local
def test_percentages_end_at_a_hundred_where_the_stage_is_reported_beside_its_tests(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): ...\n"})
    run = shared.stagebuild("-v", "--stagebuild-test-cmd=pytest && exit 9")
    assert max(int(one) for one in re.findall(r"\[ *(\d+)%\]", run.output)) == 100


@on_local
@pytest.mark.parametrize(
    ("keyword", "code", "cause"), [("one", 1, "exit 5"), ("bee", 5, "no tests were collected (exit 5)")]
)
def test_each_pytest_of_the_command_takes_the_selection_and_one_without_tests_says_so(
    shared, tests_of, keyword, code, cause
):
    tests_of({"a/test_a.py": "def test_one(): ...\n", "b/test_b.py": "def test_bee(): ...\n"})
    both = "--stagebuild-test-cmd=pytest a && pytest b"
    run = shared.stagebuild("-k", keyword, both)
    assert run.code == code
    assert f"FAILED pyproject.toml::test - test: {cause}" in run.output
    assert "that are selected by -k. Where the test command runs pytest more than once, each takes" in run.output
    assert shared.stagebuild("-k", "one or bee", both).code == 0


@on_local
def test_plugins_that_look_at_all_reports_bear_deselected_tests(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): ...\ndef test_b(): ...\n"})
    run = shared.stagebuild("-p", "_hypothesis_pytestplugin", "-k", "test_b")
    assert last(run) == "3 passed, 1 deselected"


@on_local
def test_failed_tests_fail_the_run_whatever_the_command_makes_of_them(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): assert 0\n"})
    run = shared.stagebuild("--stagebuild-test-cmd=pytest || true")
    assert run.code == 1
    assert last(run) == "1 failed, 2 passed"


@on_local
def test_what_failed_is_remembered_by_what_was_reported(shared, tests_of):
    tests_of(
        {"test_a.py": "import os\ndef test_a(): ...\ndef test_b(): assert os.path.exists('ok')\ndef test_c(): ...\n"}
    )
    assert shared.stagebuild("--stagebuild-test-cmd=pytest -p no:cacheprovider").code == 1
    try:
        shared.write({"ok": ""})
        run = shared.stagebuild("-v", "--lf")
        assert statuses(run) == {"test_a.py::test_b": "PASSED"}
        assert len(statuses(shared.stagebuild("-v", "--lf"))) == 3
    finally:
        (shared.root / "ok").unlink()
    assert not (shared.root / ".pytest_cache").exists()


@on_local
def test_tests_are_not_selected_where_the_selection_does_not_arrive(shared, tests_of):
    tests_of({"test_a.py": "def test_a(): ...\ndef test_b(): ...\n"})
    command = "--stagebuild-test-cmd=env -i PATH=$PATH HOME=$HOME pytest"
    run = shared.stagebuild(command)
    assert run.code == 0
    assert "no reports arrived from the pytest of the test command, so its tests are one item" in run.output
    assert last(run) == "3 passed"
    run = shared.stagebuild(command, "test_a.py::test_b")
    assert run.code == 1
    assert "FAILED pyproject.toml::test - test: not the selected tests" in run.output


@each_engine
def test_collecting_alone_lists_the_tests_inside(shared, tests_of):
    tests_of(EVERYTHING)
    run = shared.stagebuild("--collect-only", "-q", "tests", "-k", "fails or parameters")
    assert run.lines[:-2] == [
        "pyproject.toml::install",
        "pyproject.toml::build",
        "pyproject.toml::test",
        "tests/test_kinds.py::test_fails",
        "tests/test_kinds.py::TestClass::test_parameters[a::b]",
        "tests/test_kinds.py::TestClass::test_parameters[c d]",
        "tests/test_kinds.py::TestClass::test_parameters[[x]]",
    ]
    run = shared.stagebuild("--collect-only", "-q", "--stagebuild-build-cmd=echo another")
    assert "stagebuild: the tests inside cannot be listed: build would run first, command changed" in run.lines
    assert "tests/test_kinds.py::test_fails" not in run.lines


@on_local
def test_a_secret_is_in_no_report(shared, tests_of, tmp_path):
    test = "def test_a():\n    print(os.environ['TOKEN'])\n    assert os.environ['TOKEN'] == 'x'\n"
    tests_of({"test_a.py": f"import os\n{test}"})
    secret = "pa$$wörd-1234"
    run = shared.stagebuild(
        "--stagebuild-secret=TOKEN",
        f"--junitxml={tmp_path}/report.xml",
        "-rA",
        env={"TOKEN": secret, "LANG": "C.UTF-8"},
    )
    assert run.code == 1
    for text in (run.output, (tmp_path / "report.xml").read_text()):
        assert secret not in text
        assert "***" in text


# Isolation

DEPENDENT = {
    "test_one.py": "import state\ndef test_a(): state.seen.append(1)\ndef test_b(): assert state.seen\n",
    "test_two.py": "import state\ndef test_c(): assert not state.seen\ndef test_d(): ...\n",
    "state.py": "seen = []\n",
    "conftest.py": "import sys; sys.path.insert(0, '/src')\n",
}


@pytest.mark.parametrize("ground", ["docker", "local"], indirect=True, scope="module")
def test_a_test_that_depends_on_another_fails_alone(shared, tests_of):
    tests_of(DEPENDENT)
    ids = [f"test_one.py::test_{name}" for name in "ab"] + [f"test_two.py::test_{name}" for name in "cd"]
    for isolate, expected in (("stage", "PPFP"), ("file", "PPPP"), ("test", "PFPP")):
        run = shared.stagebuild("-v", "--tb=no", f"--stagebuild-isolate={isolate}", "--stagebuild-jobs=2")
        assert list(statuses(run).items()) == [
            (one, {"P": "PASSED", "F": "FAILED"}[letter]) for one, letter in zip(ids, expected, strict=True)
        ]
        assert run.code == (1 if "F" in expected else 0)


@on_local
def test_each_isolated_test_is_reported_once_whatever_becomes_of_its_process(shared, tests_of):
    tests_of(
        {
            "test_a.py": "import os\ndef test_a(): ...\ndef test_b(): os._exit(0)\ndef test_c(): ...\n",
            "test_b.py": "def test_d(): ...\n",
        }
    )
    run = shared.stagebuild("-v", "--stagebuild-isolate=test", "--stagebuild-jobs=2")
    assert list(statuses(run).values()) == ["PASSED", "FAILED", "PASSED", "PASSED"]
    assert "the pytest in its container ended while this test ran: exit 0" in run.output
    run = shared.stagebuild("-v", "--stagebuild-isolate=file", "--stagebuild-jobs=2")
    assert list(statuses(run).items()) == [
        (f"test_{file}.py::test_{name}", word)
        for file, name, word in zip("aaab", "abcd", ("PASSED", "FAILED", "FAILED", "PASSED"), strict=True)
    ]
    assert "the pytest in its container ended before this test had run: exit 0" in run.output
    assert last(run) == "2 failed, 4 passed"


@on_local
def test_the_first_failures_end_isolated_tests_too(shared, tests_of):
    tests_of({f"test_{name}.py": "def test_it(): assert 0\n" for name in "abcd"})
    run = shared.stagebuild("-v", "--tb=no", "--stagebuild-isolate=test", "--maxfail=2")
    assert list(statuses(run)) == ["test_a.py::test_it", "test_b.py::test_it"]
    assert run.code == 1
    assert "stopping after 2 failures" in run.output


@on_local
def test_an_interrupt_ends_isolated_tests(shared, tests_of):
    tests_of({f"test_{name}.py": "import time\ndef test_it(): time.sleep(600)\n" for name in "abcd"})
    shared.write({"test_0.py": "def test_it(): ...\n"})
    process = shared.start("--stagebuild-source=.", "-v", "--stagebuild-isolate=test", "--stagebuild-jobs=2")
    read_until(process, "test_0.py::test_it PASSED")
    process.send_signal(signal.SIGINT)
    assert shared.wait(process).code == 2
    assert not shared.sandboxes()


# Other tools

JUNIT = """\
<testsuites><testsuite name="suite" tests="3">
<testcase classname="a.B" name="fine" time="0.5"/>
<testcase classname="a.B" name="bad"><failure message="1 is not 2">at b.js:3</failure></testcase>
<testcase classname="a.B" name="later"><skipped message="not yet"/></testcase>
</testsuite></testsuites>
"""


@each_engine
def test_junit_files_of_other_tools_become_results(shared, tests_of, tmp_path):
    tests_of({"out.xml": JUNIT, "run": "mkdir -p reports/deep && cp out.xml reports/deep/r.xml; exit 1\n"})
    run = shared.stagebuild(
        "-v", "--stagebuild-test-cmd=sh run", "--stagebuild-junit=reports/**/*.xml", f"--junitxml={tmp_path}/report.xml"
    )
    assert run.code == 1
    assert last(run) == "1 failed, 3 passed, 1 skipped"
    assert "a.B::bad FAILED" in run.output
    assert "FAILED a.B::bad" in run.output
    assert "at b.js:3" in run.output
    names = [case.get("name") for case in ET.parse(tmp_path / "report.xml").iter("testcase")]
    assert names == ["install", "build", "fine", "bad", "later"]
    run = shared.stagebuild("--stagebuild-test-cmd=sh run", "--stagebuild-junit=reports/**/*.xml")
    assert "\nstagebuild test: sh run\n.Fs\n" in run.output


@on_local
def test_junit_files_that_were_there_before_are_none_of_this_run(shared, tests_of):
    tests_of({"old.xml": JUNIT})
    run = shared.stagebuild("--stagebuild-test-cmd=true", "--stagebuild-junit=*.xml")
    assert run.code == 0
    assert "no file that the test command wrote matches '*.xml': no tests are reported by it" in run.output
    assert last(run) == "3 passed"


@on_local
def test_a_junit_file_that_cannot_be_read_fails_the_stage(shared, tests_of):
    tests_of({"run": "echo '<testsuite><testcase' > r.xml\n"})
    run = shared.stagebuild("--stagebuild-test-cmd=sh run", "--stagebuild-junit=r.xml")
    assert run.code == 1
    assert "/src/r.xml cannot be read: " in run.output


@on_local
def test_a_test_that_reports_by_itself_is_not_reported_again(shared, tests_of):
    tests_of({"test_a.py": "class TestA:\n    def test_a(self): ...\n"})
    run = shared.stagebuild("--stagebuild-test-cmd=pytest --junitxml=r.xml", "--stagebuild-junit=r.xml")
    assert run.code == 0
    assert last(run) == "3 passed"
