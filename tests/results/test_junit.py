"""JUnit XML of other test tools as results: what each tool writes, and what an enemy might."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.results import junit_stream
from pytest_stagebuild.results.events import Crash, Failed, Skipped
from pytest_stagebuild.results.junit import Ids, JUnitError, read_junit

SAMPLES = Path(__file__).parent / "junit"
MIB = 1 << 20


def read(xml, **more):
    content = xml if isinstance(xml, bytes) else xml.encode()
    return list(read_junit(io.BytesIO(content), "junit", **more))


def sample(tool):
    return {test.id: test for test in read((SAMPLES / f"{tool}.xml").read_bytes())}


def suite(*testcases):
    return f'<testsuites><testsuite name="suite">{"".join(testcases)}</testsuite></testsuites>'


def only(testcase):
    (test,) = read(suite(testcase))
    return test


def call(test):
    (phase,) = (phase for phase in test.phases if phase.when == "call")
    return phase


def outcomes(tests):
    return {identifier: call(test).outcome for identifier, test in tests.items()}


def refusal(xml):
    with pytest.raises(JUnitError) as caught:
        read(xml)
    return str(caught.value)


class Repeated(io.RawIOBase):
    """A file of a part that is repeated, which is in memory at no time."""

    def __init__(self, before, part, times, after):
        self._pieces = iter([before, *[part * (times // 100)] * 100, after])
        self._rest = b""

    def read(self, size=-1):
        while len(self._rest) < size and (piece := next(self._pieces, b"")):
            self._rest += piece
        given, self._rest = self._rest[:size], self._rest[size:]
        return given


# What tools write


@pytest.mark.parametrize(
    ("tool", "expected"),
    [
        (
            "nextest",
            {
                "shapes::area::tests::square": "passed",
                "shapes::area::tests::circle": "failed",
                "shapes::area::tests::flaky": "passed",
                "shapes::area::tests::slow": "failed",
            },
        ),
        (
            "jest",
            {
                "math.test.js::math adds 1.5 and 2": "passed",
                "math.test.js::math divides <0>": "failed",
                "math.test.js::math roots": "skipped",
                "math.test.js::math powers": "passed",
                "broken.test.js::broken.test.js": "failed",
                "broken.test.js::broken.test.js[2]": "failed",
            },
        ),
        (
            "go-junit-report",
            {
                "example.com/shapes::TestArea/square": "passed",
                "example.com/shapes::TestArea/circle": "failed",
                "example.com/shapes::TestNetwork": "skipped",
                "example.com/broken::[build failed]": "failed",
            },
        ),
        (
            "surefire",
            {
                "demo.AreaTest::square": "passed",
                "demo.AreaTest::circle": "failed",
                "demo.AreaTest::line": "failed",
                "demo.AreaTest::point": "skipped",
                "demo.AreaTest::flaky": "passed",
            },
        ),
        (
            "ctest",
            {
                "adds::adds": "passed",
                "divides::divides": "failed",
                "missing::missing": "skipped",
                "network::network": "skipped",
                "later::later": "skipped",
            },
        ),
        (
            "googletest",
            {
                "tests/area_test.cc::Square": "passed",
                "tests/area_test.cc::Circle": "failed",
                "tests/area_test.cc::Network": "skipped",
                "tests/area_test.cc::DISABLED_Line": "skipped",
            },
        ),
    ],
)
def test_the_results_of_a_tool_are_read_in_the_order_of_its_file(tool, expected):
    assert list(outcomes(sample(tool)).items()) == list(expected.items())


def test_a_failure_is_shown_with_all_that_nextest_has_of_it():
    phase = call(sample("nextest")["shapes::area::tests::circle"])
    assert phase.why == Failed(
        "thread 'tests::circle' panicked at tests/area.rs:17:5:\n"
        "assertion `left == right` failed\n  left: 3\n right: 4",
        Crash("shapes::area", 1, "thread 'tests::circle' panicked at tests/area.rs:17:5"),
    )
    assert [title for title, _ in phase.sections] == ["Captured stdout call", "Captured stderr call"]
    assert phase.sections[0][1] == "\nrunning 1 test\ntest tests::circle ... FAILED\n"
    assert phase.duration == 0.005


def test_a_test_that_passed_at_last_tells_how_it_failed_before():
    assert call(sample("nextest")["shapes::area::tests::flaky"]).sections == (
        ("Captured stdout call", "found a port"),
        (
            "Failed before",
            "thread 'tests::flaky' panicked at tests/area.rs:30:9\n\nno port is free\n\nlooking for a port",
        ),
    )


def test_a_stack_trace_of_surefire_has_the_message_once():
    ((title, text),) = call(sample("surefire")["demo.AreaTest::flaky"]).sections
    assert title == "Failed before"
    assert text == (
        "org.opentest4j.AssertionFailedError: the first time\n"
        "\tat demo.AreaTest.flaky(AreaTest.java:10)\n\nof the first time"
    )


def test_several_failures_of_a_test_are_one_text():
    why = call(sample("googletest")["tests/area_test.cc::Circle"]).why
    assert why == Failed(
        "tests/area_test.cc:12\nExpected equality of these values:\n  3\n  4\n\ntests/area_test.cc:13\nFailed",
        Crash("tests/area_test.cc", 10, "tests/area_test.cc:12\nExpected equality of these values:\n  3\n  4"),
    )


def test_a_place_counts_its_lines_as_pytest_does():
    test = sample("googletest")["tests/area_test.cc::Square"]
    assert test.location == ("tests/area_test.cc", 4, "tests/area_test.cc Square")
    assert call(test).properties == (("corners", "4"),)


@pytest.mark.parametrize(
    ("tool", "identifier", "skipped"),
    [
        (
            "go-junit-report",
            "example.com/shapes::TestNetwork",
            ("example.com/shapes", 1, "area_test.go:20: no network"),
        ),
        ("surefire", "demo.AreaTest::point", ("demo.AreaTest", 1, "later")),
        ("ctest", "network::network", ("network", 1, "SKIP_RETURN_CODE=77")),
        ("ctest", "later::later", ("later", 1, "disabled")),
        ("googletest", "tests/area_test.cc::Network", ("tests/area_test.cc", 20, "tests/area_test.cc:21 no network")),
        ("googletest", "tests/area_test.cc::DISABLED_Line", ("tests/area_test.cc", 30, "suppressed")),
        ("jest", "math.test.js::math roots", ("math.test.js", 1, "")),
    ],
)
def test_a_skipped_test_says_why_as_far_as_its_tool_does(tool, identifier, skipped):
    assert call(sample(tool)[identifier]).why == Skipped(*skipped)


def test_what_pytest_itself_writes_is_read_as_it_ran(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.fixture\ndef broken(): raise OSError('no disk')\n"
        "@pytest.fixture\ndef left():\n    yield\n    raise OSError('still in use')\n"
        "def test_passes(record_property):\n    print('hello')\n    record_property('colour', 'blue')\n"
        "def test_fails(): assert 1 == 2\n"
        "def test_set_up(broken): pass\n"
        "def test_torn_down(left): pass\n"
        "@pytest.mark.skip('later')\ndef test_skipped(): pass\n"
        "@pytest.mark.xfail(reason='known')\ndef test_known(): assert False\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:stagebuild", "-p", "no:cacheprovider"]
    options = ["--junitxml=out.xml", "-o", "junit_logging=all", "-c", os.devnull, "--rootdir=."]
    ran = subprocess.run([*command, *options], cwd=tmp_path, env=environ, capture_output=True, check=False)
    assert ran.returncode == 1, ran.stdout

    with (tmp_path / "out.xml").open("rb") as file:
        tests = {test.id: test.phases for test in read_junit(file, "junit")}

    assert {identifier: [(phase.when, phase.outcome) for phase in phases] for identifier, phases in tests.items()} == {
        "test_it::test_passes": [("setup", "passed"), ("call", "passed"), ("teardown", "passed")],
        "test_it::test_fails": [("setup", "passed"), ("call", "failed"), ("teardown", "passed")],
        "test_it::test_set_up": [("setup", "failed"), ("teardown", "passed")],
        "test_it::test_torn_down": [("setup", "passed"), ("call", "passed"), ("teardown", "failed")],
        "test_it::test_skipped": [("setup", "passed"), ("call", "skipped"), ("teardown", "passed")],
        "test_it::test_known": [("setup", "passed"), ("call", "skipped"), ("teardown", "passed")],
    }
    (_, passed, _), (_, failed, _) = tests["test_it::test_passes"], tests["test_it::test_fails"]
    assert passed.properties == (("colour", "blue"),)
    assert any(title == "Captured stdout call" and "hello" in text for title, text in passed.sections)
    assert failed.why.text.endswith("\ntest_it.py:11: AssertionError")
    assert failed.why.crash.message == "assert 1 == 2"
    assert tests["test_it::test_known"][1].xfail == "known"
    assert tests["test_it::test_skipped"][1].why.reason == "later"


# Ids


@pytest.mark.parametrize(
    ("attributes", "identifier"),
    [
        ('file="a.js" classname="A" name="adds"', "a.js::adds"),
        ('file="" classname="A" name="adds"', "A::adds"),
        ('name="adds"', "suite::adds"),
        ('classname="A"', "A::(no name)"),
        ("", "suite::(no name)"),
        ('name=" "', "suite::(no name)"),
        ('name="in two&#10;lines"', r"suite::in two\nlines"),
        ('name="&#x9b;31m red"', r"suite::\x9b31m red"),
        ('name="&#x202e;sdda"', r"suite::\u202esdda"),
        ('name="größer &lt;ß&gt;"', "suite::größer <ß>"),
    ],
)
def test_an_id_is_of_what_the_file_has_and_can_be_shown(attributes, identifier):
    assert only(f"<testcase {attributes}/>").id == identifier


def test_a_testcase_without_any_name_around_it_has_an_id_still():
    (test,) = read("<testsuite><testcase/></testsuite>")
    assert (test.id, test.location) == ("(no name)", ("", None, "(no name)"))


def test_a_suite_without_a_name_takes_that_of_the_one_around_it():
    xml = (
        '<testsuites name="all"><testsuite><testsuite name="inner"/><testcase name="a"/></testsuite>'
        '<testsuite name="b"><testcase name="c"/></testsuite></testsuites>'
    )
    assert [test.id for test in read(xml)] == ["all::a", "b::c"]


def test_an_id_that_comes_again_is_told_apart_even_from_one_that_looks_like_it():
    names = ["a", "a[2]", "a", "a", "a[2]"]
    tests = read(suite(*(f'<testcase classname="C" name="{name}"/>' for name in names)))
    assert [test.id for test in tests] == ["C::a", "C::a[2]", "C::a[3]", "C::a[4]", "C::a[2][2]"]


def test_an_id_that_another_file_had_is_told_apart():
    ids = Ids()
    xml = suite('<testcase name="a"/>')
    assert [test.id for _ in range(2) for test in read(xml, ids=ids)] == ["suite::a", "suite::a[2]"]


@given(st.lists(st.sampled_from(["a", "a[2]", "a[3]", "a[2][2]", "b"])))
def test_ids_are_unique_whatever_the_names(names):
    tests = read(suite(*(f'<testcase name="{name}"/>' for name in names)))
    assert len({test.id for test in tests}) == len(names)


def test_a_long_name_keeps_both_its_ends():
    identifier = only(f'<testcase name="first{"x" * 10_000}last"/>').id
    assert identifier.startswith("suite::firstx")
    assert identifier.endswith("xlast")
    assert len(identifier) < 3_000


def test_pytest_shows_an_id_with_its_full_stops():
    """It replaces those of the domain, where the id ends in it."""
    test = sample("jest")["math.test.js::math adds 1.5 and 2"]
    assert not test.id.endswith(test.location[2])


# What came of a testcase


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1.5", 1.5),
        ("1,234.5", 1234.5),
        ("1,234,567", 1234567.0),
        ("0,25", 0.25),
        ("1e-3", 0.001),
        ("-1", 0.0),
        ("-0.0", 0.0),
        ("NaN", 0.0),
        ("inf", 0.0),
        ("1e400", 0.0),
        ("1e300", 0.0),
        ("1.234,5", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("9" * 100_000, 0.0),
    ],
)
def test_a_time_is_a_number_of_seconds_or_nothing(time, seconds):
    duration = call(only(f'<testcase name="a" time="{time}"/>')).duration
    assert str(duration) == str(seconds)  # 0.0 is not -0.0 here


@pytest.mark.parametrize("line", ["-1", "1.5", "x", "", "9" * 10_000])
def test_a_line_that_is_none_is_left_out(line):
    assert only(f'<testcase name="a" line="{line}"/>').location == ("suite", None, "suite a")


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        ('<error message="failed on setup with &quot;OSError&quot;"/>', "setup"),
        ('<error message="failed on teardown with &quot;OSError&quot;"/>', "teardown"),
        ('<error message="test setup failure"/>', "setup"),
        ('<error message="tearDown: no disk"/>', "teardown"),
        ('<error message="cannot read setup.cfg"/>', "call"),
        ("<error/>", "call"),
        ('<failure message="setup"/>', "call"),
    ],
)
def test_an_error_is_of_the_phase_that_its_message_names(error, failed):
    phases = only(f'<testcase name="a">{error}</testcase>').phases
    assert [phase.when for phase in phases if phase.outcome == "failed"] == [failed]


def test_a_failure_and_the_error_of_the_set_up_are_both_shown():
    first, last = only(
        '<testcase name="a"><failure message="one"/><error message="setup: two"/></testcase>',
    ).phases
    assert (first.when, first.why.text, last.when) == ("setup", "setup: two\n\none", "teardown")


def test_a_test_that_failed_and_was_skipped_has_failed():
    assert call(only('<testcase name="a"><skipped/><failure message="m"/></testcase>')).outcome == "failed"


@pytest.mark.parametrize("status", ["failed", "Fail", "error"])
def test_a_status_alone_can_say_that_a_test_failed(status):
    assert call(only(f'<testcase name="a" status="{status}"/>')).outcome == "failed"


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ('<failure message="m">\n\n  \n  indented m\n\n</failure>', "  indented m"),
        ('<failure message="m">text</failure>', "m\n\ntext"),
        ('<failure message="two lines">two\nlines, and more</failure>', "two\nlines, and more"),
        ('<failure type="ValueError" message="m"/>', "ValueError: m"),
        ('<failure type="ValueError" message="ValueError: m"/>', "ValueError: m"),
        ("<failure/>", "failed, and no more is said of it"),
    ],
)
def test_a_failure_says_each_thing_once(failure, text):
    assert call(only(f'<testcase name="a">{failure}</testcase>')).why.text == text


def test_what_was_written_and_the_properties_are_in_the_last_report_too():
    test = only(
        '<testcase name="a"><properties><property name="p" value="v"/><property value="w"/></properties>'
        "<system-out>one</system-out><system-err> </system-err><system-out>two</system-out></testcase>"
    )
    set_up, ran, torn_down = test.phases
    assert (set_up.sections, set_up.properties) == ((), ())
    assert ran.sections == torn_down.sections == (("Captured stdout call", "one\ntwo"),)
    assert ran.properties == torn_down.properties == (("p", "v"),)


def test_elements_in_a_namespace_are_known_and_foreign_attributes_are_not():
    (test,) = read(
        '<x:testsuites xmlns:x="urn:x" xmlns:y="urn:y"><x:testsuite><x:testcase name="a" y:name="b"><x:failure/>'
        "</x:testcase></x:testsuite></x:testsuites>"
    )
    assert (test.id, call(test).outcome) == ("a", "failed")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "cp1252"])
def test_an_encoding_that_is_declared_is_read(encoding):
    declared = encoding.removesuffix("-sig")
    xml = f'<?xml version="1.0" encoding="{declared}"?>' + suite('<testcase name="größer"/>')
    assert [test.id for test in read(xml.encode(encoding))] == ["suite::größer"]


# Secrets


def test_every_text_is_redacted():
    xml = (
        '<testsuite name="s-hunter2"><testcase name="n-hunter2"><properties><property name="hunter2" value="hunter2"/>'
        '</properties><failure message="hunter2" type="hunter2">hunter2</failure><system-out>hunter2</system-out>'
        "</testcase></testsuite>"
    )
    (test,) = read(xml, redact=lambda text: text.replace("hunter2", "***"))
    assert test.id == "s-***::n-***"
    assert "hunter2" not in repr(test)


def test_an_error_in_the_file_is_redacted():
    with pytest.raises(JUnitError, match=r"<\*\*\*>"):
        read("<hunter2/>", redact=lambda text: text.replace("hunter2", "***"))


@pytest.mark.parametrize("shift", range(3))
def test_a_secret_that_a_cut_goes_through_is_not_half_shown(shift):
    text = "." * shift + "hunter2" * (4 * MIB // 7)
    xml = suite(f'<testcase name="a"><system-out>{text}</system-out></testcase>')
    (test,) = read(xml, redact=lambda text: text.replace("hunter2", "***"))
    ((_, shown),) = call(test).sections
    shown, cuts = re.subn(r"\n\[\.\.\. \d+ characters left out \.\.\.\]\n", "", shown)
    assert cuts == 1
    assert set(shown) <= {".", "*"}


# Much of it


def test_of_a_long_text_both_ends_are_kept():
    lines = "".join(f"line {number}\n" for number in range(300_000))
    ((_, shown),) = call(only(f'<testcase name="a"><system-out>{lines}</system-out></testcase>')).sections
    head, left_out, tail = re.split(r"\n\[\.\.\. (\d+) characters left out \.\.\.\]\n", shown)
    assert lines.startswith(head)
    assert lines.endswith(tail)
    assert len(head) + int(left_out) + len(tail) == len(lines)
    assert len(head) == len(tail) > 200_000


def test_all_texts_of_a_testcase_together_are_kept_to_a_mebibyte():
    parts = [f"<{tag}>{'x' * MIB}</{tag}>" for tag in ("failure", "system-out", "system-err") * 5]
    test = only(f'<testcase name="a">{"".join(parts)}</testcase>')
    phase = call(test)
    kept = len(phase.why.text) + sum(len(text) for _, text in phase.sections)
    assert MIB // 2 < kept < MIB + 1000


def test_what_follows_a_long_text_is_read_whole():
    phase = call(
        only(
            f'<testcase name="a"><failure>{"x" * MIB}</failure><system-out>short</system-out></testcase>',
        )
    )
    assert phase.sections == (("Captured stdout call", "short"),)


@pytest.mark.parametrize(
    ("before", "part", "times", "after"),
    [
        (
            b"<testsuite>",
            b'<testcase name="a"><failure>' + b"x" * 4000 + b"</failure></testcase>",
            4_000,
            b"</testsuite>",
        ),
        (
            b'<testsuite><testcase name="a"><system-out>',
            b"a line of output\n",
            1_000_000,
            b"</system-out></testcase></testsuite>",
        ),
        (b'<testsuite><testcase name="a">', b" " * 16, 1_000_000, b"</testcase></testsuite>"),
        (b"<testsuite><system-out>", b"a line of output\n", 1_000_000, b"</system-out></testsuite>"),
    ],
    ids=["testcases", "output of one", "blanks", "output of the suite"],
)
def test_memory_does_not_grow_with_the_file(before, part, times, after):
    assert len(part) * times >= 16_000_000
    read(suite('<testcase name="a"/>'))  # what is imported, and stays
    tracemalloc.start()
    try:
        for _ in read_junit(Repeated(before, part, times, after), "junit"):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


# Hostile files

LAUGHS = "".join(f'<!ENTITY {after} "{f"&{before};" * 10}">' for before, after in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("declaration", "name"),
    [
        (f'<!DOCTYPE t [<!ENTITY a "ha">{LAUGHS}]>', "&j;"),
        (f'<!DOCTYPE t [<!ENTITY a "{"ha" * 50_000}">]>', "&a;" * 50_000),
        ('<!DOCTYPE t [<!ENTITY a SYSTEM "file:///etc/passwd">]>', "&a;"),
        ('<!DOCTYPE t [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]>', "a"),
        ('<!DOCTYPE testsuites SYSTEM "testsuites.dtd">', "a"),
    ],
    ids=["billion laughs", "quadratic", "external", "parameter", "dtd"],
)
def test_a_file_that_declares_what_it_consists_of_is_refused(declaration, name):
    assert refusal(declaration + suite(f'<testcase name="{name}"/>')) == (
        "it has a document type declaration, which attacks are made of: let the test tool write it without"
    )


STOPPED = "was the test tool stopped before it had written its results?"
ESCAPE = "let the test tool escape what its tests print, and leave out control characters"
OTHER = "name only the JUnit XML files of test tools"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"it is empty: {STOPPED}"),
        (b" \n", f"it is no well-formed XML (no element found: HERE): {STOPPED}"),
        (b"ok 1 - adds\n", f"it is no well-formed XML (syntax error: HERE): {OTHER}"),
        (b"<html><body/></html>", f"its root is <html>, not <testsuites> or <testsuite>: {OTHER}"),
        (b"<testcase name='a'/>", f"its root is <testcase>, not <testsuites> or <testsuite>: {OTHER}"),
        (
            b"<testsuite><testcase>\x1b[31m</testcase></testsuite>",
            f"it is no well-formed XML (not well-formed (invalid token): HERE): {ESCAPE}",
        ),
        (
            b"<testsuite><testcase name='&#0;'/></testsuite>",
            f"it is no well-formed XML (reference to invalid character number: HERE): {ESCAPE}",
        ),
        (
            b"<testsuite><testcase name='&who;'/></testsuite>",
            f"it is no well-formed XML (undefined entity: HERE): {ESCAPE}",
        ),
        (
            b"<testsuite><testcase><testcase/></testcase></testsuite>",
            f"it has a testcase within a testcase: {OTHER}",
        ),
        (
            b"<testsuite>" * 10_000 + b"</testsuite>" * 10_000,
            f"its elements are more than 1,000 deep within one another: {OTHER}",
        ),
        (
            b"<testsuite><testcase>" + b"<a>" * 10_000 + b"</a>" * 10_000 + b"</testcase></testsuite>",
            f"its elements are more than 1,000 deep within one another: {OTHER}",
        ),
        (
            b"<testsuite>" + b"".join(b"<a%d/>" % number for number in range(2_000)) + b"</testsuite>",
            f"it has more than 1,000 different names of elements and attributes: {OTHER}",
        ),
        (
            b"<testsuite>" + b"".join(b"<a xmlns:x%d='x'/>" % number for number in range(2_000)) + b"</testsuite>",
            f"it has more than 1,000 different names of elements and attributes: {OTHER}",
        ),
        (
            b"<testsuite><testcase>" + b"<failure/>" * 100_001 + b"</testcase></testsuite>",
            f"it has more than 100,000 elements and attributes in one testcase: {OTHER}",
        ),
        (
            b"<testsuite><testcase name='" + b"a" * (9 * MIB) + b"'/></testsuite>",
            "it has a tag of more than 8 MiB: let the test tool cut its messages",
        ),
    ],
    ids=lambda value: value[:30].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_a_file_that_cannot_be_used_says_why(content, message):
    # Where it is depends on the version of expat.
    assert re.sub(r"line \d+, column \d+", "HERE", refusal(content)) == message


@pytest.mark.parametrize(
    "encoding",
    ["hex", "undefined", "idna", "utf-7", "big5", "unicode_escape", "punycode", "utf-32", "cp037", "no-such"],
)
def test_an_encoding_that_cannot_be_read_is_refused(encoding):
    message = refusal(f'<?xml version="1.0" encoding="{encoding}"?>{suite()}')
    assert message.startswith(("its encoding cannot be read (", "it is no well-formed XML (unknown encoding"))
    assert message.endswith(": let the test tool write UTF-8")


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("FILE_BYTES", MIB, "it is larger than 1 MiB: let the test tool write several files"),
        ("MOST_TESTCASES", 10, f"it has more than 10 testcases: {OTHER}"),
        ("MOST_ELEMENTS", 10, f"it has more than 10 elements: {OTHER}"),
    ],
)
def test_a_file_that_is_too_large_is_refused(monkeypatch, limit, value, message):
    monkeypatch.setattr(junit_stream, limit, value)
    assert refusal(suite('<testcase name="a"/>' * 20, " " * 2 * MIB)) == message


def test_what_was_whole_before_the_file_broke_off_is_told():
    told = []
    file = io.BytesIO(b'<testsuite><testcase name="a"/><testcase name="b"><fail')
    with pytest.raises(JUnitError, match=r"was the test tool stopped"):
        told.extend(test.id for test in read_junit(file, "junit"))
    assert told == ["a"]


@given(st.sampled_from(sorted(SAMPLES.glob("*.xml"))), st.data())
def test_whatever_has_become_of_a_file_it_is_read_or_refused(path, data):
    content = bytearray(path.read_bytes())
    at = st.integers(0, len(content) - 1)
    for place, byte in data.draw(st.lists(st.tuples(at, st.integers(0, 255)), max_size=3)):
        content[place] = byte
    told = []
    with contextlib.suppress(JUnitError):
        told.extend(read_junit(io.BytesIO(bytes(content[: data.draw(at)])), "junit"))
    assert len({test.id for test in told}) == len(told)
    assert all(test.phases[0].when == "setup" and test.phases[-1].when == "teardown" for test in told)
