"""Loaded by the pytest inside the container: makes it run what was selected outside, and tells of each test.

It stands alone: standard library and pytest only, Python 3.7 and pytest 6 or newer. Beside it lie ``told.json``, what
was selected, and ``reports``, to which one JSON object a line is appended: the events of ``results/events.py``. Its
variables and its path entry are gone once it is imported, so that neither the tests nor what they start see them.

PYTEST_DONT_REWRITE
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import resource
import struct
import sys
import time
from pathlib import Path

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, NoReturn

VERSION = 2
"""Of the events. Whoever reads them leaves alone what has a higher one."""

HOST_FIXTURES = ("base_image", "deps_image", "build_image")

_NAME = __name__.rpartition(".")[2]
_HERE = str(Path(__file__).parent)
_LARGEST = 1 << 20
"""Characters of a text that are told; of a longer one, both ends."""

_HIGH = 200
"""A number for a descriptor that few programs come to, below the limits that systems mostly set."""

_PASSED_BY_TOX = "pass_env+=PYTHONPATH,PYTEST_PLUGINS"
_OURS = {_HERE, _NAME, "testenv." + _PASSED_BY_TOX, "env_run_base." + _PASSED_BY_TOX}


_CARRIERS = {"PYTHONPATH": os.pathsep, "PYTEST_PLUGINS": ",", "TOX_OVERRIDE": ";"}


class _Traces:
    """What brought this module here, which nobody else is to see."""

    def __init__(self) -> None:
        self._hidden: dict[str, list[str]] = {}
        self._index = -1

    def hide(self) -> None:
        if _HERE in sys.path:
            self._index = sys.path.index(_HERE)
            sys.path[:] = [entry for entry in sys.path if entry != _HERE]
        for variable, separator in _CARRIERS.items():
            parts = os.environ.get(variable, "").split(separator)
            ours = [part for part in parts if part in _OURS]
            if ours:
                self._hidden[variable] = ours
                self._set(variable, [part for part in parts if part not in _OURS])

    def restore(self) -> None:
        """For another pytest: a worker of pytest-xdist, or the next one that this process runs."""
        if self._index >= 0:
            sys.path.insert(self._index, _HERE)
            self._index = -1
        for variable, ours in self._hidden.items():
            there = os.environ.get(variable)
            self._set(variable, ours + ([] if there is None else [there]))
        self._hidden.clear()

    def _set(self, variable: str, parts: list[str]) -> None:
        os.environ.pop(variable, None)
        if any(parts):
            os.environ[variable] = _CARRIERS[variable].join(parts)


class _File:
    """Appends lines to a file by a descriptor that tests may close, and others then get its number: it is asked each
    time what it is. To open the file for each line would take three times as long.

    What it needs of the system is held here, where nobody who replaces functions for a test finds it. A process that a
    test has forked writes nothing.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._needs: dict[str, Any] = {
            "open": os.open,
            "write": os.write,
            "close": os.close,
            "fstat": os.fstat,
            "fcntl": fcntl.fcntl,
            "getpid": os.getpid,
            "getrlimit": resource.getrlimit,
            "setrlimit": resource.setrlimit,
        }
        self._flags = os.O_WRONLY | os.O_APPEND
        self._duplicates = fcntl.F_DUPFD_CLOEXEC
        self._limits = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        self._process = os.getpid()
        self._waiting = b""
        self._descriptor = -1
        self._file = (0, 0)

    def append(self, event: str, *, soon: bool = False) -> None:
        """Write it now, or ``soon``: with the next one, which follows at once."""
        self._waiting += event.encode() + b"\n"
        if not soon:
            self.flush()

    def flush(self) -> None:
        """Write what was to be written soon."""
        if self._needs["getpid"]() != self._process:
            return
        try:
            self._write()
        except OSError:
            self._write_past_limits()

    def _write(self) -> None:
        write = self._needs["write"]
        if not self._is_ours():
            self._open()
        while self._waiting:
            self._waiting = self._waiting[write(self._descriptor, self._waiting) :]

    def _is_ours(self) -> bool:
        """Whether the descriptor is still that of the file."""
        try:
            found = self._needs["fstat"](self._descriptor)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._file

    def _open(self) -> None:
        needs = self._needs
        opened = needs["open"](self._path, self._flags)
        found = needs["fstat"](opened)
        self._file = found.st_dev, found.st_ino
        try:
            # Out of the way of tests that count on the next free number.
            self._descriptor = needs["fcntl"](opened, self._duplicates, _HIGH)
        except OSError:  # there is no such number here
            self._descriptor = opened
        else:
            needs["close"](opened)

    def _write_past_limits(self) -> None:
        """Past those that a test has set for itself, or used up; what cannot be written goes with the next event."""
        needs = self._needs
        before = [(limit, needs["getrlimit"](limit)) for limit in self._limits]
        try:
            for limit, (_, hard) in before:
                needs["setrlimit"](limit, (hard, hard))
            self._write()
        except (OSError, ValueError):
            pass
        finally:
            for limit, values in before:
                needs["setrlimit"](limit, values)


def _str(value: object) -> str:
    """Some objects cannot be shown, which is no reason for a run to fail."""
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - whatever it raises
        return object.__repr__(value)


def _stay_unmeasured() -> None:
    """By coverage, which leaves out what comes from no file: this has been compiled under another name.

    All that it can have seen is the file by which this was imported.
    """
    file = globals().pop("__file__")
    # It may not be there, or keep its data elsewhere and show a file of three lines.
    with contextlib.suppress(KeyError, AttributeError):
        sys.modules["coverage"].Coverage.current()._collector.data.pop(file, None)


_encode = json.JSONEncoder(default=_str, check_circular=False).encode
_encode_text = json.encoder.encode_basestring_ascii
"""Where a test is plain its events are put together from texts, in a quarter of the time that ``_encode`` takes."""

_pack = struct.Struct("<9d").pack
"""Times as they are: to write the digits of nine numbers takes longer than all else of a test that passed."""

_PHASES = ("setup", "call", "teardown")
_PLAIN = getattr(pytest, "TestReport", None)
"""Exactly this class, for those of subtests tell more. Older pytests do not give it."""

_told: dict[str, Any] = json.loads(Path(__file__).with_name("told.json").read_text("utf-8"))
_reports = _File(str(Path(__file__).with_name("reports")))
_traces = _Traces()
_traces.hide()
_stay_unmeasured()


# What was selected


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> Iterator[None]:
    """What must be known before the conftest files are: they may define options, and capturing begins."""
    _traces.hide()
    early = early_config.known_args_namespace
    early.capture = _told.get("options", {}).get("capture", early.capture)
    early.file_or_dir = [_here(path) for path in _told.get("paths", [])] + early.file_or_dir
    yield


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Before anything has looked at the options; in workers of pytest-xdist too, which read the command line anew."""
    _out_of_the_list(config)
    for name, value in _told.get("options", {}).items():
        setattr(config.option, name, _together(name, getattr(config.option, name, None), value))
    if _told.get("paths"):
        config.args[:] = [_here(path) for path in _told["paths"]]
    if hasattr(config, "workerinput"):
        return  # what it reports comes to its controller
    if "last_failed" in _told:
        _remember_failed(config, _told["last_failed"])
    if _told.get("report"):
        kind = _DistributedReporter if _is_distributed(config) else _Reporter
        config.pluginmanager.register(kind(config), "stagebuild-reporter")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes() -> None:
    """Workers are about to be started: they need this module, and leave no trace of it themselves."""
    _traces.restore()
    # Newer ones give their workers the path that they found themselves: https://github.com/pytest-dev/pytest-xdist
    frozen = getattr(sys.modules.get("xdist.plugin"), "_sys_path", None)
    if isinstance(frozen, list) and _HERE not in frozen:
        frozen.insert(0, _HERE)


def _together(name: str, before: Any, value: Any) -> Any:
    """What an option comes to that both the test command and the command line outside have given."""
    if isinstance(value, list):
        return (before or []) + value
    return max(value, before or 0) if name == "verbose" else value


def _here(path: str) -> str:
    """A path from where the source is, as seen from here; what is no path there is a module's name."""
    name, separator, rest = path.partition("::")
    below = os.path.join(_told["source"], name)
    if os.path.lexists(below) and os.path.realpath(os.getcwd()) != os.path.realpath(_told["source"]):
        name = below
    return name + separator + rest


def _remember_failed(config: pytest.Config, failed: list[str]) -> None:
    """What ``--lf`` and ``--ff`` go by; the folder ends with the container."""
    try:
        folder = os.path.expandvars(os.path.expanduser(str(config.getini("cache_dir"))))
    except ValueError:
        return  # `-p no:cacheprovider`
    config.option.cacheclear = False
    try:
        place = Path(_root(config), folder, "v", "cache")
        place.mkdir(parents=True, exist_ok=True)
        (place / "lastfailed").write_text(json.dumps(dict.fromkeys(failed, True)))
    except OSError as error:
        raise pytest.UsageError(f"what failed before cannot be told to --lf: {error}") from None


def _is_distributed(config: pytest.Config) -> bool:
    option = config.option
    return bool(getattr(option, "numprocesses", 0) or getattr(option, "dist", "no") != "no" or getattr(option, "tx", 0))


def _root(config: Any) -> str:
    return str(config.rootpath if hasattr(config, "rootpath") else config.rootdir)  # pytest 6.0 has the latter


def _out_of_the_list(config: pytest.Config) -> None:
    """Of plugins that are installed, which pytest and others show; pluggy has no other way."""
    listed = getattr(config.pluginmanager, "_plugin_distinfo", None)
    if isinstance(listed, list):
        listed[:] = [pair for pair in listed if getattr(pair[0], "__name__", "") != __name__]


# Fixtures of the host


@pytest.fixture(scope="session")
def base_image() -> NoReturn:
    _skip_for_the_host("base_image")


@pytest.fixture(scope="session")
def deps_image() -> NoReturn:
    _skip_for_the_host("deps_image")


@pytest.fixture(scope="session")
def build_image() -> NoReturn:
    _skip_for_the_host("build_image")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any) -> None:
    """The plugin itself may be installed in here too, and would look for an engine. And properties of the whole suite
    are reported by no hook.
    """
    name = fixturedef.argname
    if name in HOST_FIXTURES and getattr(fixturedef.func, "__module__", "") == "pytest_stagebuild.plugin":
        _skip_for_the_host(name)
    if name == "record_testsuite_property" and getattr(fixturedef.func, "__module__", "") == "_pytest.junitxml":
        fixturedef.func = _telling(fixturedef.func)


def _telling(fixture: Any) -> Any:
    """What is recorded is told as well. In a worker of pytest-xdist the original records nothing either."""

    def record_testsuite_property(request: Any) -> Any:
        record = fixture(request)
        reporter = request.config.pluginmanager.get_plugin("stagebuild-reporter")

        def record_and_tell(name: str, value: object) -> None:
            __tracebackhide__ = True
            record(name, value)
            if reporter is not None:
                reporter.tell_property(name, value)

        return record_and_tell

    return record_testsuite_property


def _skip_for_the_host(name: str) -> NoReturn:
    pytest.skip(f"the fixture {name} belongs to the host: name this file in host_tests, and it runs there")


# What is told


class _Test:
    """A test that runs: who it is, encoded, and its reports so far, each with the time at which it came."""

    __slots__ = ("reports", "who")

    def __init__(self, who: str) -> None:
        self.who = who
        self.reports: list[tuple[Any, float]] = []


class _Reporter:
    """The plugin object that tells. Workers of pytest-xdist have none: their reports come to their controller."""

    _one_by_one = True

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._session: Any = None
        self._name = f"{os.getpid()}-{time.time_ns()}"
        self._running: dict[str, _Test] = {}
        self._to_run_again: set[str] = set()
        self._collected = False
        self._last = ""
        self._deselected = 0
        self._stopped = ""
        self._early: list[dict[str, Any]] = []
        self._time = time.time

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        self._session = session
        config = self._config
        self._tell(
            "session",
            v=VERSION,
            pytest=pytest.__version__,
            python="{}.{}.{}".format(*sys.version_info[:3]),
            root=_root(config),
            cwd=str(config.invocation_params.dir),
            distributed=_is_distributed(config),
        )
        for event in self._early:
            _reports.append(_encode(event))

    def pytest_deselected(self, items: Any) -> None:
        self._deselected += len(items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        listed = session.items if self._config.option.collectonly else []
        chains = [[[type(node).__name__, node.name] for node in item.listchain()[1:]] for item in listed]
        note = ""
        last_failed: Any = self._config.pluginmanager.get_plugin("lfplugin")
        with contextlib.suppress(AttributeError, TypeError):  # it may not be there, or be another one of that name
            note = _str(last_failed.pytest_report_collectionfinish() or "")
        self._tell_collected([item.nodeid for item in session.items], chains, note)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if not self._collected:
            self._tell_collected(list(ids), [])

    def _tell_collected(self, ids: list[str], chains: list[Any], note: str = "") -> None:
        self._collected = True
        self._last = ids[-1] if ids else ""
        ids = list(map(self._id, ids))
        self._tell("collected", ids=ids, deselected=self._deselected, chains=chains, note=note)

    @pytest.hookimpl(trylast=True)
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # One that passed tells something only where it had failed before.
        if report.outcome != "passed" or report.nodeid in _told.get("last_failed", ()):
            ids = [self._id(node.nodeid) for node in report.result if isinstance(node, pytest.Item)]
            self._tell("collect", id=self._id(report.nodeid), ids=ids, phase=_phase(report, self._time()))

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        test = self._running.get(nodeid)
        if test is None or not test.reports:  # else it is run again
            test = self._running[nodeid] = _Test(self._who(nodeid, location))
            _reports.append(f'{{"event":"start",{test.who}}}')

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # Last, for the terminal's part of pytest changes reports: of tests whose subtests failed.
        nodeid = report.nodeid
        test = self._running.get(nodeid)
        if test is None:
            test = self._running[nodeid] = _Test(self._who(nodeid, report.location))
        test.reports.append((report, self._time()))
        if report.outcome == "rerun":  # type: ignore[comparison-overlap] # pytest-rerunfailures has it
            self._to_run_again.add(nodeid)
        if report.when not in _PHASES:  # a worker has died, and the test with it
            self._tell_test(self._running.pop(nodeid))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        # One that is run again ends as often as it is run, and has the one outcome all the same.
        if nodeid in self._to_run_again:
            self._to_run_again.discard(nodeid)
        elif nodeid in self._running:
            # Together with the start of the next: between the two nothing of the user's runs.
            test = self._running.pop(nodeid)
            self._tell_test(test, soon=self._one_by_one and not self._running and nodeid != self._last)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        _reports.flush()  # that it was the last was not known of a test at which the run stopped

    def _tell_test(self, test: _Test, *, soon: bool = False) -> None:
        if test.reports:
            _reports.append(_passed(test) or _tested(test), soon=soon)

    def _who(self, nodeid: str, location: Any) -> str:
        """What is told of a test in each of its events, encoded."""
        return f'"session":"{self._name}","id":{_encode_text(self._id(nodeid))},"location":{_location(location)}'

    def _id(self, nodeid: str) -> str:
        """The id that a test is told of by."""
        return nodeid

    def _tell_rest(self) -> None:
        """Of tests that have not ended, what there is."""
        for test in self._running.values():
            self._tell_test(test)

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str) -> None:
        self._tell(
            "warning",
            category=warning_message.category.__name__,
            message=_cut(_str(warning_message.message)),
            file=str(warning_message.filename),
            line=warning_message.lineno,
            when=when,
            id=self._id(nodeid),
        )

    def tell_property(self, name: str, value: object) -> None:
        self._tell("suite_property", property=[name, _plain(value)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_internalerror(self, excrepr: object) -> None:
        self._tell("internal_error", text=_cut(_str(excrepr)))

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        self._stopped = str(excinfo.exconly())

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_unconfigure(self) -> Iterator[None]:
        yield  # whatever comes of it: a test may have left something that others now fail on
        _traces.restore()
        if self._session is None:
            return
        self._tell_rest()
        stopped = self._stopped or self._session.shouldfail or self._session.shouldstop
        self._tell("end", exit=int(self._session.exitstatus), stopped=str(stopped or ""))

    def _tell(self, event: str, **what: Any) -> None:
        told = dict(what, event=event, session=self._name)
        if self._session is None:  # warnings that were recorded before
            self._early.append(told)
        else:
            _reports.append(_encode(told))


class _DistributedReporter(_Reporter):
    """Tells of tests that workers of pytest-xdist run, each once for each worker that runs it (``--dist each``)."""

    _one_by_one = False

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config)
        dist = getattr(config.option, "dist", "no")
        self._each = dist == "each"
        self._grouped = dist == "loadgroup"
        self._of_workers: dict[tuple[Any, str], _Test] = {}

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        if self._each or not self._collected:
            self._tell_collected(list(ids), [])

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._each:
            super().pytest_runtest_logreport(report)
            return
        # The same test may be under way elsewhere, and what is said of its end does not say where.
        running = (getattr(report, "node", None), report.nodeid)
        if running not in self._of_workers:
            self._of_workers[running] = _Test(self._who(report.nodeid, report.location))
        self._of_workers[running].reports.append((report, self._time()))
        if report.when not in ("setup", "call"):
            self._tell_test(self._of_workers.pop(running))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if not self._each:
            super().pytest_runtest_logfinish(nodeid)

    def _tell_rest(self) -> None:
        super()._tell_rest()
        for test in self._of_workers.values():
            self._tell_test(test)

    def _id(self, nodeid: str) -> str:
        return _without_group(nodeid) if self._grouped else nodeid


def _location(location: Any) -> str:
    """It encoded: almost always a file, a line and a name."""
    if type(location) is tuple and len(location) == 3:
        file, line, name = location
        if type(file) is str and type(line) is int and type(name) is str:
            return f"[{_encode_text(file)},{line},{_encode_text(name)}]"
    return _encode(location)


def _tested(test: _Test) -> str:
    """The event of a test, with the keywords of a phase where they are others than those of the one before it."""
    phases = []
    before = None
    for report, came in test.reports:
        phase = _phase(report, came)
        keywords = list(getattr(report, "keywords", None) or ())
        if keywords != before:
            phase["keywords"] = [name for name in keywords if isinstance(name, str)]
            before = keywords
        phases.append(phase)
    return f'{{"event":"test",{test.who},"phases":{_encode(phases)}}}'


def _phase(report: Any, came: float) -> dict[str, Any]:
    """What is told of a report, which came at that time."""
    duration = getattr(report, "duration", 0.0)
    stop = getattr(report, "stop", None) or came  # older ones do not say
    phase: dict[str, Any] = {
        "when": report.when,
        "outcome": report.outcome,
        "times": [_nanoseconds(one) for one in (duration, getattr(report, "start", None) or stop - duration, stop)],
    }
    sections = getattr(report, "sections", None)
    if sections:
        phase["sections"] = [[str(title), _cut(_str(text))] for title, text in sections]
    properties = getattr(report, "user_properties", None)
    if properties:
        phase["properties"] = [[str(name), _plain(value)] for name, value in properties]
    if hasattr(report, "wasxfail"):
        phase["xfail"] = _str(report.wasxfail)
    context = getattr(report, "context", None)
    if type(report).__name__.lower() == "subtestreport" and context is not None:
        kwargs = [[str(name), _str(value)] for name, value in context.kwargs.items()]
        phase["subtest"] = {"message": context.msg, "parameters": kwargs}
    longrepr = report.longrepr
    if isinstance(longrepr, tuple):
        phase["skip"] = [str(longrepr[0]), longrepr[1] or 0, _str(longrepr[2])]
    elif longrepr is not None:
        crash = getattr(longrepr, "reprcrash", None)
        # A worker's name, which pytest-xdist shows before each, is no part of a message.
        is_message = isinstance(longrepr, str)
        text = longrepr if is_message else _text(report, color=_told.get("color", False))
        phase["failure"] = {
            "text": _cut(text),
            "message": is_message,
            "crash": [str(crash.path), crash.lineno or 0, _str(crash.message)] if crash is not None else None,
        }
    return phase


def _passed(test: _Test) -> str:
    """The event of a test that passed and left nothing else to tell, as most do; "" of another.

    Everything of a suite waits for it: hence the texts that are put together.
    """
    if len(test.reports) != len(_PHASES):
        return ""
    keywords = getattr(test.reports[0][0], "keywords", None)
    times: list[float] = []
    try:
        for phase, (report, _) in zip(_PHASES, test.reports):  # noqa: B905 - they are as many, and older Pythons know no more
            told = vars(report)
            if (
                type(report) is not _PLAIN
                or told["when"] != phase
                or told["outcome"] != "passed"
                or told["longrepr"] is not None
                or told["sections"]
                or told["user_properties"]
                or told["keywords"] != keywords
                or "wasxfail" in told
            ):
                return ""
            times += told["duration"], told["start"], told["stop"]
        names = ",".join(map(_encode_text, keywords or ()))
        return f'{{"event":"passed",{test.who},"times":"{_pack(*times).hex()}","keywords":[{names}]}}'
    except (KeyError, TypeError, struct.error):  # of an older pytest, or of a plugin that makes reports
        return ""


def _without_group(nodeid: str) -> str:
    """The id that the test has, and can be chosen by; to schedule by groups, pytest-xdist adds theirs to it
    (``xdist/remote.py``).
    """
    test, _, group = nodeid.rpartition("@")
    return test if "::" in test and not {"]", "/", ":"} & set(group) else nodeid


def _text(report: Any, *, color: bool) -> str:
    try:
        from _pytest._io import TerminalWriter  # no public way makes a text with colours, or keeps its first indent
    except ImportError:
        return str(report.longreprtext)
    text = io.StringIO()
    writer = TerminalWriter(text)
    writer.hasmarkup = color
    writer.fullwidth = _told.get("width", writer.fullwidth)
    report.toterminal(writer)
    return text.getvalue()[:-1]  # the line's end comes with its printing


def _nanoseconds(seconds: float) -> int:
    """Whole ones: to write the digits of a float takes as long as all else of a phase."""
    try:
        return int(seconds * 1e9)
    except (TypeError, ValueError, OverflowError):  # of a plugin that makes reports of its own
        return 0


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, bool, float)) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    return _str(value)


def _cut(text: str) -> str:
    if len(text) <= _LARGEST:
        return text
    half = _LARGEST // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
