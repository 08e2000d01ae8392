"""What the reporter tells of a pytest that it is given to: everything, whatever its tests do, and without a trace."""

from __future__ import annotations

import json

import pytest
from by_hand import Heard, Place, check_whole
from suites import FILES, OUTCOMES

from pytest_stagebuild.results.events import (
    Collected,
    CollectReport,
    Ended,
    Failed,
    InternalError,
    Session,
    Skipped,
    Started,
    Subtest,
    SuiteProperty,
    Warned,
)


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Heard:
    folder = tmp_path_factory.mktemp("outcomes")
    place = Place(folder / "project", folder / "beside")
    place.root.mkdir()
    place.write(FILES)
    return place.pytest()


def said(heard: Heard, test: str, when: str = "call") -> str:
    why = heard.test(test)[when].why
    assert isinstance(why, Failed)
    return why.text


# What tests come to


def test_each_test_is_told_with_its_outcome(heard):
    check_whole(heard)
    assert heard.outcomes() == OUTCOMES
    assert heard.one(Session).distributed is False
    assert heard.one(Ended).stopped == ""
    assert [event.id for event in heard.all(Started)] == heard.ids


def test_a_failure_is_told_with_its_assertion_and_output(heard):
    name = "test_outcomes.py::test_fails"
    text = said(heard, name)
    assert '>       assert left == {"a": 2}' in text
    assert "E       AssertionError: assert {'a': 1} == {'a': 2}" in text
    call = heard.test(name)["call"]
    assert call.why.crash.path.endswith("/project/test_outcomes.py")
    assert call.why.crash.line == 15
    assert call.why.crash.message.startswith("AssertionError: assert {'a': 1} == {'a': 2}")
    assert call.sections == (("Captured stdout call", "printed before it failed\n"),)
    assert call.start <= call.stop
    assert heard.test(name)["setup"].why is None


def test_errors_of_fixtures_and_doctests_are_told_where_they_happen(heard):
    assert "broken set-up" in said(heard, "test_outcomes.py::test_error_in_setup", "setup")
    assert "broken teardown" in said(heard, "test_outcomes.py::test_error_in_teardown", "teardown")
    assert "Expected:\n    3\nGot:\n    2" in said(heard, "test_text.txt::test_text.txt")


def test_reasons_are_told(heard):
    skipped = heard.test("test_outcomes.py::test_skips_itself")["call"].why
    assert isinstance(skipped, Skipped)
    assert skipped.path.endswith("/project/test_outcomes.py")
    assert skipped.reason == "Skipped: not here"
    assert heard.test("test_outcomes.py::test_skipped")["setup"].why.reason == "Skipped: not today"
    assert heard.test("test_outcomes.py::test_xfails")["call"].xfail == "known"
    strict = heard.test("test_outcomes.py::test_xpasses_strictly")["call"].why
    assert strict == Failed("[XPASS(strict)] known", message=True)


def test_a_module_that_skips_itself_is_told(heard):
    report = heard.one(CollectReport)
    assert (report.id, report.phase.outcome) == ("test_absent.py", "skipped")
    assert report.phase.why.reason.endswith("no module of that name")


def test_properties_and_warnings_are_told(heard):
    assert heard.one(SuiteProperty).property == ("release", 7)
    properties = (("number", 1), ("text", "é"))
    assert heard.test("test_outcomes.py::test_passes")["teardown"].properties == properties
    warned = heard.one(Warned)
    assert (warned.category, warned.message, warned.when) == ("DeprecationWarning", "careful", "runtest")
    assert warned.id == "test_outcomes.py::test_warns"
    assert warned.file.endswith("/project/test_outcomes.py")


KEYWORDS = {
    "conftest.py": """
import pytest
told = {}

@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    told.setdefault(report.nodeid, {})[report.when] = list(report.keywords)

def pytest_unconfigure(config):
    import json
    (config.rootpath / "told.json").write_text(json.dumps(told))
""",
    "pytest.ini": "[pytest]\nmarkers =\n    slow\n    late\n",
    "deep/test_a.py": """
import pytest

@pytest.fixture
def late(request):
    yield request.node.add_marker("late")
    request.node.keywords["later"] = True

class TestA:
    @pytest.mark.slow
    @pytest.mark.parametrize("n", [1, "\u00e9"])
    def test_a(self, n, late): ...

def test_b(): ...
def test_c(late): assert False
""",
}


@pytest.mark.parametrize("workers", [(), ("-n2",), ("--dist=each", "--tx=2*popen")], ids=["one", "n2", "each"])
def test_keywords_are_those_that_plugins_see_in_there(place, workers):
    place.write(KEYWORDS)
    heard = place.pytest(*workers)
    there = json.loads((place.root / "told.json").read_text())
    told = [(test.id, {phase.when: list(phase.keywords) for phase in test.phases}) for test in heard.tests]
    here = dict(told)
    assert here == there
    assert all(there[identifier] == phases for identifier, phases in told)  # of each worker
    [test] = [phases for identifier, phases in here.items() if identifier.endswith("::test_c")]
    assert [name in test["call"] for name in ("test_c", "test_a.py", "late", "slow", "later")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert "later" in test["teardown"]


def test_a_report_without_keywords_is_told(place):
    plugin = """\
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report):
    report.keywords = None if report.when == "call" else {1: 1, "name": 1}
"""
    place.write({"test_a.py": "def test_a(): ...\n", "conftest.py": plugin})
    heard = place.pytest()
    assert [phase.keywords for phase in heard.test("test_a.py::test_a").values()] == [("name",), (), ("name",)]


def test_properties_of_the_suite_are_refused_as_they_are_without_the_reporter(place):
    place.write({"test_a.py": "def test_a(record_testsuite_property): record_testsuite_property(1, 'x')\n"})
    heard = place.pytest("--setup-show")
    assert not heard.all(SuiteProperty)
    assert "TypeError: name parameter needs to be a string, but int given" in said(heard, "test_a.py::test_a")
    assert heard.output.count("SETUP    S record_testsuite_property\n") == 1


def test_subtests_are_told_with_what_tells_them_apart(place):
    place.write(
        {
            "test_parts.py": """\
import unittest

def test_parts(subtests):
    for number in range(3):
        with subtests.test("part", number=number):
            assert number != 1

class TestCase(unittest.TestCase):
    def test_method(self):
        with self.subTest(key="value"):
            self.fail()
"""
        }
    )
    heard = place.pytest()
    check_whole(heard)
    [parts, method] = heard.tests
    apart = [(phase.outcome, phase.subtest) for phase in parts.phases if phase.subtest is not None]
    assert [(outcome, str(part)) for outcome, part in apart] == [
        ("passed", "[part] (number=0)"),
        ("failed", "[part] (number=1)"),
        ("passed", "[part] (number=2)"),
    ]
    assert parts.phases[-2].outcome == "failed"
    assert [phase.subtest for phase in method.phases if phase.subtest] == [Subtest(None, (("key", "'value'"),))]


# What else can happen to a pytest


def test_a_file_that_cannot_be_collected_is_told(place):
    place.write({"test_broken.py": "import no_such_module\n", "test_good.py": "def test_good(): ...\n"})
    heard = place.pytest()
    report = heard.one(CollectReport)
    assert (report.id, report.phase.outcome, report.phase.when) == ("test_broken.py", "failed", "collect")
    assert "No module named 'no_such_module'" in report.phase.why.text
    assert heard.one(Ended).exit == 2
    assert heard.one(Ended).stopped == "Interrupted: 1 error during collection"


def test_an_internal_error_is_told(place):
    place.write({"conftest.py": "def pytest_runtest_setup(item): ...\ndef pytest_collection_modifyitems(): 1 / 0\n"})
    place.write({"test_a.py": "def test_a(): ...\n"})
    heard = place.pytest()
    assert "ZeroDivisionError" in heard.one(InternalError).text
    assert heard.one(Ended).exit == heard.code == 3


def test_a_test_that_ends_the_process_has_begun_and_not_ended(place):
    place.write({"test_a.py": "import os\ndef test_a(): ...\ndef test_exits(): os._exit(0)\ndef test_b(): ...\n"})
    heard = place.pytest()
    assert heard.code == 0
    assert heard.ids == ["test_a.py::test_a"]
    assert [event.id for event in heard.all(Started)][-1] == "test_a.py::test_exits"
    assert not heard.all(Ended)


@pytest.mark.parametrize(
    ("call", "stopped"),
    [("pytest.exit('enough', 7)", "_pytest.outcomes.Exit: enough"), ("raise KeyboardInterrupt", "KeyboardInterrupt")],
)
def test_a_test_that_breaks_the_run_off_says_why(place, call, stopped):
    place.write({"test_a.py": f"import pytest\ndef test_exits(): {call}\ndef test_b(): ...\n"})
    heard = place.pytest()
    assert (heard.one(Ended).stopped, heard.one(Ended).exit) == (stopped, heard.code)
    assert len(heard.one(Collected).ids) == 2


def test_a_run_that_stops_at_the_first_failure_says_so(place):
    place.write({"test_a.py": "def test_a(): assert False\ndef test_b(): ...\n"})
    heard = place.pytest(options={"maxfail": 1})
    assert heard.ids == ["test_a.py::test_a"]
    assert heard.one(Ended).stopped == "stopping after 1 failures"


@pytest.mark.parametrize("tests", ["def test_a(): assert False\ndef test_b(): ...\n", "def test_a(): ...\n"])
def test_the_last_test_is_told_though_pytest_is_killed_right_after_it(place, tests):
    killing = "import os\ndef pytest_sessionfinish(): os._exit(3)\n"
    place.write({"test_a.py": tests, "conftest.py": killing})
    heard = place.pytest("-x")
    assert heard.ids == ["test_a.py::test_a"]
    assert heard.code == 3


TELLS_TIMES = """
told = []

def pytest_runtest_logreport(report):
    told.append([report.when, report.duration, report.start, report.stop])

def pytest_unconfigure(config):
    import json
    (config.rootpath / "times.json").write_text(json.dumps(told))
"""


@pytest.mark.parametrize("test", ["def test_a(): ...", "def test_a(record_property): record_property('a', 1)"])
def test_times_are_told_as_they_are(place, test):
    place.write({"test_a.py": test, "conftest.py": TELLS_TIMES})
    phases = place.pytest().test("test_a.py::test_a").values()
    expected = json.loads((place.root / "times.json").read_text())
    assert [phase.when for phase in phases] == [when for when, *_ in expected]
    for phase, (_, *times) in zip(phases, expected, strict=True):
        assert [phase.duration, phase.start, phase.stop] == pytest.approx(times, abs=1e-6, rel=0)


def test_no_tests_are_told_as_none(place):
    heard = place.pytest()
    check_whole(heard)
    assert heard.one(Ended).exit == 5


HOSTILE = {
    "closes descriptors": ("no", "os.closerange(3, 256)"),
    "opens others under their numbers": ("sys", "os.closerange(3, 256); open_many()"),
    "closes the standard ones": ("fd", "os.close(1); os.close(2)"),
    "replaces functions for good": ("sys", "os.open = os.write = os.close = os.getpid = builtins.open = mock.Mock()"),
    "replaces json for good": ("sys", "json.dumps = json.JSONEncoder.encode = mock.Mock()"),
    "replaces the clock for good": ("sys", "time.time = time.time_ns = time.monotonic = time.perf_counter = lambda: 0"),
    "changes its folder": ("sys", "os.chdir('/')"),
    "forks and lets the child run on": ("no", "os.fork() and os.wait()"),
    "exhausts descriptors for good": ("no", "exhaust()"),
    "leaves files no room": ("sys", "resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))"),
    "clears the environment": ("sys", "os.environ.clear()"),
    "forgets modules": ("sys", "[sys.modules.pop(name, None) for name in ('json', 'resource', 'stagebuild_inside')]"),
    "removes the path": ("sys", "sys.path.clear()"),
    "lets nothing recurse": ("sys", "sys.setrecursionlimit(150)"),
}
"""What a test may do for good, under which kind of capturing, after which pytest itself can go on."""

HOSTILE_TEST = """\
import builtins, io, json, os, resource, sys, time
from unittest import mock

kept = []

def exhaust():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    try:
        while True:
            kept.append(os.dup(0))
    except OSError:
        pass

def open_many():
    kept.extend(open(os.devnull) for _ in range(40))

def test_before(): ...
def test_does():
    {}
def test_fails_after(): assert False
def test_after(): ...
"""


@pytest.mark.parametrize("what", HOSTILE)
def test_reports_survive_a_test_that(place, what):
    capture, does = HOSTILE[what]
    place.write({"test_a.py": HOSTILE_TEST.format(does)})
    heard = place.pytest(f"--capture={capture}", "-p", "no:cacheprovider")
    names = ["test_before", "test_does", "test_fails_after", "test_after"]
    assert heard.ids == [f"test_a.py::{name}" for name in names], heard.output
    assert [event.id for event in heard.all(Started)] == heard.ids
    assert heard.one(Ended)


def test_nothing_is_written_to_a_file_that_has_got_the_number_of_our_descriptor(place):
    place.write(
        {
            "test_a.py": """\
import os

def ours():
    return [int(n) for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}").endswith("reports")]

def test_takes_it():
    [number] = ours()
    os.dup2(os.open("theirs", os.O_WRONLY | os.O_CREAT), number)

def test_one_alone_is_opened_again():
    assert len(ours()) == 1
    assert not os.get_inheritable(ours()[0])
"""
        }
    )
    heard = place.pytest("-p", "no:cacheprovider")
    assert set(heard.outcomes().values()) == {"passed passed passed"}, heard.output
    assert heard.one(Ended)
    assert (place.root / "theirs").read_bytes() == b""


def test_reports_are_written_where_there_are_few_descriptors(place):
    place.write({"test_a.py": "def test_a(): ...\ndef test_b(): ...\n"})
    heard = place.run(["/bin/sh", "-c", f"ulimit -n 60; exec {place.python} -m pytest"])
    check_whole(heard)
    assert heard.ids == ["test_a.py::test_a", "test_a.py::test_b"]


def test_reports_that_a_plugin_makes_are_told(place):
    place.write(
        {
            "test_a.py": "def test_a(): ...\n",
            "conftest.py": """\
import pytest

def pytest_runtest_protocol(item):
    location = ["other.py", 1, "other"]
    item.ihook.pytest_runtest_logstart(nodeid="other", location=location)
    report = pytest.TestReport("other", location, {}, "passed", None, "call", stop=float("nan"))
    del report.sections, report.user_properties
    item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid="other", location=location)
""",
        }
    )
    told = place.pytest("-p", "no:terminal")
    assert told.code == 0, told.output
    assert told.outcomes() == {"other": "passed", "test_a.py::test_a": "passed passed passed"}


def test_objects_that_cannot_be_shown_break_nothing(place):
    place.write(
        {
            "test_a.py": """\
class Unshown:
    def __str__(self):
        raise RuntimeError
    __repr__ = __str__

def test_a(record_property):
    record_property("unshown", Unshown())
    record_property("huge", 10 ** 5000)
    record_property("text", "\\udcff\\0")
"""
        }
    )
    heard = place.pytest()
    check_whole(heard)
    (_, unshown), (_, huge), (_, text) = heard.test("test_a.py::test_a")["call"].properties
    assert "Unshown object at" in unshown
    assert "int object at" in huge
    assert text == "\\udcff\0"


# No trace


TRACES = """\
import importlib.metadata
import os
import subprocess
import sys

HERE = {here!r}
BEFORE = {before!r}

def test_environment():
    assert not [name for name, value in os.environ.items() if HERE in value or "stagebuild_inside" in value]
    assert {{name: os.environ.get(name) for name in BEFORE}} == BEFORE

def test_path():
    assert HERE not in sys.path
    assert "stagebuild-inside" not in [one.metadata["Name"] for one in importlib.metadata.distributions()]

def test_plugins(pytestconfig):
    names = [one.metadata["Name"] for _, one in pytestconfig.pluginmanager.list_plugin_distinfo()]
    assert "stagebuild-inside" not in names

def test_process():
    script = "import sys, importlib.util; print(sys.path, importlib.util.find_spec('stagebuild_inside'))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert HERE not in out
    assert out.endswith("None\\n")

def test_nested(pytester):
    pytester.makepyfile("def test_inner(): assert False")
    inner = pytester.runpytest_inprocess("--trace-config")
    assert inner.ret == 1
    assert "stagebuild_inside" not in inner.stdout.str()
    assert pytester.runpytest_subprocess().ret == 1
"""


@pytest.mark.parametrize(
    ("workers", "before"),
    [
        ([], {}),
        ([], {"PYTHONPATH": "/theirs", "PYTEST_PLUGINS": "pytester", "TOX_OVERRIDE": "testenv.x=1"}),
        (["-n2"], {"PYTEST_PLUGINS": "pytester"}),
    ],
)
def test_no_trace_is_left_for_tests_nor_for_what_they_start(place, workers, before):
    place.write({"conftest.py": "pytest_plugins = ['pytester']\n"})
    place.write({"test_a.py": TRACES.format(here=str(place.beside), before=before)})
    heard = place.pytest(*workers, env=before)
    assert heard.code == 0, heard.output
    check_whole(heard)
    assert len(heard.ids) == 5
    assert "inside" not in "".join(line for line in heard.output.splitlines() if line.startswith("plugins:"))


@pytest.mark.parametrize("disabled", [{}, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}], ids=["", "no_autoload"])
def test_one_pytest_after_another_in_the_same_process_is_told(place, disabled):
    place.write({"test_a.py": "def test_a(): ...\n", "test_b.py": "def test_b(): ...\n"})
    place.write({"run.py": "import pytest\nfor name in 'ab': pytest.main(['-Werror', f'test_{name}.py'])\n"})
    heard = place.run([place.python, "run.py"], env=disabled)
    assert heard.ids == ["test_a.py::test_a", "test_b.py::test_b"], heard.output
    assert [event.exit for event in heard.all(Ended)] == [0, 0]
    assert len({event.name for event in heard.all(Session)}) == 2


# Selection


TWO = {
    "pytest.ini": "[pytest]\nmarkers = chosen\n",
    "tests/test_one.py": """\
import pytest

@pytest.mark.parametrize("text", ["a::b", "c d", "[e]", "\u00e9"])
def test_named(text): ...

@pytest.mark.chosen
def test_chosen(): print("was printed")
""",
    "tests/test_two.py": "def test_one(): ...\ndef test_fails(): assert False\ndef test_last(): ...\n",
}
NAMED = [f"tests/test_one.py::test_named[{text}]" for text in ("a::b", "c d", "[e]", "\\xe9")]
CHOSEN = "tests/test_one.py::test_chosen"
OTHERS = [f"tests/test_two.py::{name}" for name in ("test_one", "test_fails", "test_last")]


@pytest.mark.parametrize(
    ("selected", "expected"),
    [
        ({}, [*NAMED, CHOSEN]),
        ({"paths": ["tests/test_two.py"]}, OTHERS),
        ({"paths": [*NAMED, OTHERS[0]]}, [*NAMED, OTHERS[0]]),
        ({"paths": ["tests"], "options": {"keyword": "last or chosen"}}, [CHOSEN, OTHERS[2]]),
        ({"options": {"markexpr": "chosen"}}, [CHOSEN]),
        ({"paths": ["tests"], "options": {"deselect": [NAMED[0], "tests/test_two.py"]}}, [*NAMED[1:], CHOSEN]),
        ({"paths": ["tests"], "options": {"ignore": ["tests/test_one.py"]}}, OTHERS),
        ({"paths": ["tests"], "options": {"lf": True}, "last_failed": [OTHERS[1]]}, [OTHERS[1]]),
    ],
)
def test_what_is_selected_runs(place, selected, expected):
    place.write(TWO)
    heard = place.pytest("tests/test_one.py", **selected)
    assert heard.ids == expected, heard.output
    check_whole(heard)


def test_what_failed_before_comes_first_where_that_is_asked_for(place):
    place.write(TWO)
    heard = place.pytest(paths=["tests/test_two.py"], options={"failedfirst": True}, last_failed=[OTHERS[1]])
    assert heard.ids == [OTHERS[1], OTHERS[0], OTHERS[2]]
    assert heard.one(Collected).note == "run-last-failure: rerun previous 1 failure first"


@pytest.mark.parametrize(
    "configured", ["cache_dir = $FOLDER/cache", "cache_dir = ~/cache", "addopts = --cache-clear", ""]
)
def test_what_failed_before_is_told_wherever_pytest_keeps_it(place, configured):
    place.write({**TWO, "pytest.ini": f"[pytest]\n{configured}\nmarkers = chosen\n"})
    folders = {"FOLDER": str(place.beside), "HOME": str(place.beside), "TOX_ENV_DIR": str(place.beside)}
    heard = place.pytest(options={"lf": True}, last_failed=[OTHERS[1]], env=folders)
    assert heard.ids == [OTHERS[1]], heard.output


def test_a_pytest_without_a_cache_runs_all_that_it_is_to_run(place):
    place.write(TWO)
    heard = place.pytest("-p", "no:cacheprovider", "tests/test_two.py", options={"lf": True}, last_failed=[OTHERS[1]])
    assert heard.ids == OTHERS, heard.output


def test_paths_are_those_of_the_source_wherever_pytest_starts(place):
    place.write(TWO)
    heard = place.pytest(paths=[CHOSEN], cwd=place.root / "tests")
    assert heard.ids == [CHOSEN]
    assert heard.one(Session).root == str(place.root)
    assert heard.one(Session).cwd == str(place.root / "tests")


def test_options_of_a_conftest_beside_what_is_selected_are_known(place):
    place.write(TWO)
    option = "def pytest_addoption(parser): parser.addoption('--theirs', default='x')\n"
    place.write({"deep/er/conftest.py": option, "tests/conftest.py": option.replace("theirs", "ours")})
    place.write({"deep/er/test_a.py": "def test_a(pytestconfig): assert pytestconfig.getoption('--theirs') == 'x'\n"})
    heard = place.pytest("--ours=1", "tests", paths=["deep/er/test_a.py"])
    assert heard.ids == ["deep/er/test_a.py::test_a"], heard.output
    assert heard.code == 0, heard.output


def test_output_is_not_captured_where_that_is_asked_for(place):
    place.write(TWO)
    captured = place.pytest(paths=[CHOSEN])
    assert "was printed" not in captured.output
    assert captured.test(CHOSEN)["call"].sections
    seen = place.pytest(paths=[CHOSEN], options={"capture": "no"})
    assert "was printed" in seen.output
    assert not seen.test(CHOSEN)["call"].sections


def test_a_test_that_asks_for_a_fixture_of_the_host_is_skipped(place):
    place.write({"test_a.py": "def test_a(build_image): ...\n"})
    heard = place.pytest()
    why = heard.test("test_a.py::test_a")["setup"].why
    assert isinstance(why, Skipped)
    assert why.reason.endswith(
        "the fixture build_image belongs to the host: name this file in host_tests, and it runs there"
    )


# pytest-xdist


def test_tests_that_are_distributed_are_told_by_one(place):
    place.write(FILES)
    heard = place.pytest("-n2", "--dist=loadfile")
    check_whole(heard)
    assert heard.outcomes() == OUTCOMES
    assert heard.one(Session).distributed
    assert 'assert left == {"a": 2}' in said(heard, "test_outcomes.py::test_fails")


def test_a_worker_that_dies_takes_its_test_with_it_and_no_other(place):
    place.write({"test_a.py": "import os\ndef test_a(): ...\ndef test_dies(): os._exit(1)\ndef test_b(): ...\n"})
    place.write({"test_b.py": "def test_c(): ...\n"})
    heard = place.pytest("-n2", "tests_that_are_not_there", paths=["test_a.py"])
    check_whole(heard)
    assert sorted(heard.outcomes().items()) == [
        ("test_a.py::test_a", "passed passed passed"),
        ("test_a.py::test_b", "passed passed passed"),
        ("test_a.py::test_dies", "passed failed"),
    ]
    assert "crashed while running 'test_a.py::test_dies'" in said(heard, "test_a.py::test_dies")


def test_workers_run_what_is_selected(place):
    place.write(TWO)
    selected = {"paths": ["tests"], "options": {"keyword": "last or chosen or fails", "lf": True}}
    heard = place.pytest("-n2", "tests/test_one.py", **selected, last_failed=[CHOSEN, *OTHERS])
    assert sorted(heard.ids) == [CHOSEN, OTHERS[1], OTHERS[2]], heard.output
    check_whole(heard)


def test_workers_are_told_where_plugins_do_not_load_by_themselves(place):
    place.write(TWO)
    heard = place.pytest("-pxdist", "-n2", paths=[CHOSEN], env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert heard.ids == [CHOSEN], heard.output
    check_whole(heard)
