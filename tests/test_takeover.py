"""A run with --stagebuild-source is not touched by the project's own pytest configuration, on every supported pytest.

Each test starts a real pytest with a small plugin that calls the functions from the hooks they are made for, in the
place of our own plugin.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.util import find_spec

import pytest

pytest_plugins = ["pytester"]

PYTEST = tuple(int(part) for part in version("pytest").split(".")[:2])

DRIVER = """
import sys
import pytest
from pytest_stagebuild import takeover

def pytest_addoption(parser, pluginmanager):
    parser.addoption("--stagebuild-source", default=None)
    parser.addoption("--stagebuild-env", action="append", default=[])
    takeover.waive_required_plugins(pluginmanager)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config, parser, args):
    if early_config.known_args_namespace.stagebuild_source is not None:
        takeover.take_over(early_config, parser, args)
        takeover.neutralise_xdist(early_config)
    return (yield)

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_cmdline_main(config):
    if config.option.stagebuild_source is not None:
        print("distributed:", takeover.neutralise_xdist(config))
    return (yield)

def pytest_report_header(config):
    return [
        f"source={config.option.stagebuild_source}",
        f"args={[str(arg) for arg in config.args]}",
        f"verbose={config.option.verbose}",
        f"capture={config.option.capture}",
        f"addopts={config.getini('addopts')}",
        f"markers_given={'given: by the user' in config.getini('markers')}",
        f"own_path={any(entry.endswith('own_path') for entry in sys.path)}",
    ]
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makepyfile(driver=DRIVER)
    pytester.makepyfile(test_host="import warnings\n\ndef test_host(): warnings.warn('of the host test')")

    def run_pytest(*args: str, source: bool = True) -> pytest.RunResult:
        chosen = ["--stagebuild-source=."] if source else []
        return pytester.runpytest_subprocess("-p", "no:stagebuild", "-p", "driver", *chosen, *args)

    return run_pytest


def passed(result: pytest.RunResult) -> bool:
    return result.ret == 0 and result.parseoutcomes().get("passed") == 1


HOSTILE = {
    "options of plugins missing here": "addopts = -n auto --dist=loadscope --nothere --cov=p --cov-report term",
    "options that no pytest knows": "addopts = --no-such-option=3 -Z",
    "a selection": "addopts = -k nothing -m nothing --collect-only",
    "paths": "addopts = no/such/folder",
    "an unknown key under strict config": "addopts = --strict-config\nno_such_key = 1",
    "a warning filter naming a missing module": "filterwarnings = error::no_such_module.SomeWarning",
    "warnings as errors": "filterwarnings = error",
    "other names for test files": "python_files = check_*.py\npython_functions = check_*",
    "a module to import": "usefixtures = no_such_fixture",
    "an unusable value": "log_cli_level = nonsense",
    "required plugins": "required_plugins = pytest-no-such-plugin>=2",
    "an overridden ini value": "addopts = -o usefixtures=no_such_fixture",
}


@pytest.mark.parametrize("ini", HOSTILE.values(), ids=HOSTILE.keys())
def test_the_run_survives_ini_values_of(ini, run, pytester):
    pytester.makeini(f"[pytest]\n{ini}\n")
    assert passed(run("test_host.py"))


@pytest.mark.skipif(PYTEST < (9, 0), reason="native TOML configuration came with pytest 9.0")
def test_native_toml_configuration_is_dropped_too(run, pytester):
    pytester.makepyprojecttoml('[tool.pytest]\nstrict = true\naddopts = ["-n", "2", "--nothere"]\nnokey = 1\n')
    assert passed(run("test_host.py"))


def test_the_ini_values_hold_where_no_source_is_given(run, pytester):
    pytester.makeini("[pytest]\naddopts = --nothere\n")
    result = run(source=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*unrecognized arguments: --nothere*"])


def test_required_plugins_are_enforced_where_no_source_is_given(run, pytester):
    pytester.makeini("[pytest]\nrequired_plugins = pytest-no-such-plugin\n")
    result = run(source=False)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Missing required plugins: pytest-no-such-plugin*"])


@pytest.mark.parametrize("folder", [".", "tests"])
def test_a_conftest_that_cannot_be_imported_is_not_imported(folder, run, pytester):
    path = pytester.path / folder / "conftest.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text("import no_such_module\n")
    (path.parent / "test_other.py").write_text("def test_other(): pass\n")
    assert passed(run(f"{folder}/test_other.py"))


def test_testpaths_are_not_used(run, pytester):
    pytester.makeini("[pytest]\ntestpaths = tests\n")
    pytester.mkdir("tests").joinpath("test_inner.py").write_text("def test_inner(): assert 0\n")
    result = run()
    result.stdout.fnmatch_lines([f"args=[[]'{pytester.path}'[]]"])


def test_the_rootdir_stays(run, pytester):
    pytester.makeini("[pytest]\naddopts = --nothere\n")
    folder = pytester.mkdir("below")
    folder.joinpath("test_below.py").write_text("def test_below(): pass\n")
    result = run("below/test_below.py")
    result.stdout.fnmatch_lines([f"rootdir: {pytester.path}*"])


def test_options_of_the_command_line_and_of_pytest_addopts_stay(run, pytester, monkeypatch):
    pytester.makeini("[pytest]\naddopts = -q -q -q\n")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-v --no-header-not")
    assert "unrecognized arguments: --no-header-not" in run("-v").stderr.str()
    monkeypatch.setenv("PYTEST_ADDOPTS", "-v '--basetemp=with space'")
    result = run("-v", "test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["verbose=2"])


def test_overrides_of_the_command_line_stay(run, pytester):
    pytester.makeini("[pytest]\nmarkers = theirs: of the project\naddopts = --nothere\n")
    result = run("-o", "markers=given: by the user", "-o", "addopts=-vv", "test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["verbose=2", "markers_given=True"])


def test_what_follows_a_double_dash_is_still_a_path(run, pytester):
    pytester.makeini("[pytest]\naddopts = --nothere\n")
    assert passed(run("--", "test_host.py"))


def test_a_capture_method_in_addopts_is_not_used(run, pytester):
    pytester.makeini("[pytest]\naddopts = --capture=no\n")
    pytester.makepyfile(test_host="def test_host(): print('from the ' + 'test')")
    result = run("test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["capture=fd"])
    result.stdout.no_fnmatch_line("*from the test*")


def test_pythonpath_is_taken_back(run, pytester):
    pytester.mkdir("own_path")
    pytester.makeini("[pytest]\npythonpath = own_path\n")
    run("test_host.py", source=False).stdout.fnmatch_lines(["own_path=True"])
    run("test_host.py").stdout.fnmatch_lines(["own_path=False"])


def test_pythonpath_of_the_command_line_stays(run, pytester):
    pytester.mkdir("own_path")
    pytester.makeini("[pytest]\npythonpath = elsewhere\n")
    run("-o", "pythonpath=own_path", "test_host.py").stdout.fnmatch_lines(["own_path=True"])


def test_a_plugin_that_addopts_loads_is_taken_out(run, pytester):
    pytester.makepyfile(theirs="def pytest_report_header(): return 'their plugin'")
    pytester.makeini("[pytest]\naddopts = -p theirs\n")
    run("test_host.py", source=False).stdout.fnmatch_lines(["their plugin"])
    result = run("test_host.py")
    assert passed(result)
    result.stdout.no_fnmatch_line("their plugin")


def test_a_plugin_that_the_command_line_loads_stays(run, pytester):
    pytester.makepyfile(theirs="def pytest_report_header(): return 'their plugin'")
    pytester.makeini("[pytest]\naddopts = -p theirs\n")
    run("-p", "theirs", "test_host.py").stdout.fnmatch_lines(["their plugin"])


def test_plugins_switched_off_in_addopts_do_no_harm(run, pytester):
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:warnings -p no:logging --nothere\n")
    assert passed(run("test_host.py"))


@pytest.mark.parametrize("option", ["--stagebuild-source=.", "--stagebuild-env=A"])
def test_our_own_options_in_addopts_are_refused_by_name(option, run, pytester):
    pytester.makeini(f"[pytest]\naddopts = -q {option}\n")
    result = run("test_host.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *tox.ini: addopts holds {option.partition('=')[0]}, but*command line*"])


def test_help_is_still_shown(run, pytester):
    pytester.makeini("[pytest]\naddopts = --nothere\n")
    pytester.makeconftest("import no_such_module")
    assert run("--help").ret == 0


# What pytest enforces before any plugin of ours can act, and the way round it.

BEFORE_ANY_PLUGIN = {
    "minversion": "minversion = 99",
    "a plugin to load that is missing here": "addopts = -p no_such_plugin_module",
    "an ill-typed option": "addopts = --maxfail=many",
}


@pytest.mark.parametrize("ini", BEFORE_ANY_PLUGIN.values(), ids=BEFORE_ANY_PLUGIN.keys())
def test_what_comes_before_any_plugin_fails_without_the_way_round_and_works_with_it(ini, run, pytester):
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makeconftest("import no_such_module")
    assert run("test_host.py").ret != 0
    result = run("-c", "/dev/null", "--rootdir=.", "test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines([f"rootdir: {pytester.path}*"])


def test_configuration_that_cannot_be_read_has_the_same_way_round(run, pytester):
    pytester.makepyprojecttoml("[tool.pytest.ini_options\n")
    assert run("test_host.py").ret == pytest.ExitCode.USAGE_ERROR
    assert passed(run("-c", "/dev/null", "--rootdir=.", "test_host.py"))


UNKNOWN_PYTEST = """
import pytest

class Elsewhere:
    def __getitem__(self, name):
        raise KeyError(name)

    def __setitem__(self, name, value):
        pass

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config):
    early_config._inicache = Elsewhere()
    return (yield)
"""


def test_a_pytest_that_keeps_its_configuration_elsewhere_gets_a_message_with_a_way_that_works(run, pytester):
    pytester.makepyfile(future=UNKNOWN_PYTEST)
    pytester.makeini("[pytest]\naddopts = -q\n")
    pytester.makeconftest("import no_such_module")
    result = run("-p", "future", "test_host.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: pytest * keeps its configuration where this*", "  pytest -c /dev/null*"])
    way_round = re.search(r"pytest (-c .*) --stagebuild-source", result.stderr.str())
    assert way_round
    assert passed(run("-p", "future", *way_round[1].split(), "test_host.py"))


# pytest-xdist

needs_xdist = pytest.mark.skipif(find_spec("xdist") is None, reason="pytest-xdist is not installed")


@needs_xdist
@pytest.mark.parametrize(
    "options",
    [
        "-n2",
        "-n auto",
        "-n 2 --dist loadscope",
        "-d --tx 2*popen",
        "--dist=each --tx popen",
        "--numprocesses=logical",
        "-f",
    ],
)
def test_a_run_under_xdist_is_not_distributed_and_says_so(options, run):
    result = run(*options.split(), "test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["distributed: True"])
    result.stdout.no_fnmatch_line("*[[]gw0[]]*")


@needs_xdist
def test_distribution_asked_for_in_pytest_addopts_is_switched_off_too(run, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "-n2")
    result = run("test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["distributed: True"])


@needs_xdist
@pytest.mark.parametrize("options", ["", "-n0", "--dist=no"])
def test_a_run_that_asked_for_no_distribution_does_not_speak_of_it(options, run, pytester):
    pytester.makeini("[pytest]\naddopts = -n2\n")
    run(*options.split(), "test_host.py").stdout.fnmatch_lines(["distributed: False"])


def test_without_xdist_there_is_nothing_to_switch_off(run):
    result = run("-p", "no:xdist", "test_host.py")
    assert passed(result)
    result.stdout.fnmatch_lines(["distributed: False"])
