"""Signals are held back for as long as something is under way, and are never lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types

import pytest

from pytest_stagebuild import interrupts
from pytest_stagebuild.interrupts import INTERRUPTING, Interrupts, held_back


@pytest.fixture(autouse=True)
def interruptible():
    """Every signal raises, as it does in a run."""

    def raise_it(number, frame):
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, raise_it) for number in INTERRUPTING}
    yield raise_it
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", INTERRUPTING)
def test_what_was_begun_comes_to_its_end_before_the_signal_is_raised(number):
    done = []
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name), held_back():  # noqa: PT012
        os.kill(os.getpid(), number)
        done.append("first")
        os.kill(os.getpid(), number)
        done.append("second")
    assert done == ["first", "second"]


def test_an_error_inside_is_not_lost_behind_the_signal():
    with pytest.raises(KeyboardInterrupt) as caught, held_back():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("inside")
    assert isinstance(caught.value.__context__, ValueError)


def test_afterwards_signals_raise_at_once_again(interruptible):
    with held_back():
        pass
    assert [signal.getsignal(number) for number in INTERRUPTING] == [interruptible] * len(INTERRUPTING)


def test_one_hold_inside_another_lets_nothing_through_before_the_outer_ends():
    done = []
    with pytest.raises(KeyboardInterrupt), held_back():  # noqa: PT012
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
        done.append("inner")
    assert done == ["inner"]


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held_back():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_who_has_waited_long_enough_gets_through(monkeypatch):
    monkeypatch.setattr(interrupts, "_PATIENCE", -1.0)
    with pytest.raises(KeyboardInterrupt), held_back():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second one was held back as well")


def test_another_thread_leaves_the_handlers_alone(interruptible):
    seen = []

    def work():
        with held_back():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [interruptible]


@pytest.fixture
def interrupts_caught():
    """SIGTERM, SIGHUP and Ctrl-C as a run with stages has them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    caught = Interrupts()
    caught.catch(ctrl_c=True)
    yield caught
    caught.release()


@pytest.mark.parametrize("number", INTERRUPTING)
def test_the_first_signal_is_raised_and_those_that_follow_at_once_are_not(interrupts_caught, number):
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_is_raised_again_for_who_has_waited(interrupts_caught, monkeypatch):
    monkeypatch.setattr(interrupts, "_PATIENCE", -1.0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def spin(until):
    """Does nothing but instructions, for as long as it is told to."""
    while time.monotonic() < until:
        pass


def without_lines(function):
    """Line numbers of its instructions: none, by a table of the format that the running Python has."""
    code = function.__code__
    size = len(code.co_code)
    if sys.version_info >= (3, 11):
        units = size // 2
        table = b"".join(bytes([0x80 | 15 << 3 | min(8, units - at) - 1]) for at in range(0, units, 8))
    else:
        table = b"".join(bytes([min(254, size - at), 0x80]) for at in range(0, size, 254))
    return types.FunctionType(code.replace(co_linetable=table), globals())


def test_a_function_without_lines_has_none():
    assert {line for *_, line in without_lines(spin).__code__.co_lines()} == {None}


@pytest.mark.parametrize("most", [50, 3], ids=["in the next line", "when it was put off often enough"])
def test_a_signal_between_two_lines_is_raised_where_a_traceback_can_be_shown(interrupts_caught, monkeypatch, most):
    """pytest fails with an internal error on a traceback without a line."""
    monkeypatch.setattr(interrupts, "_MOST_PUT_OFF", most)
    between_lines = without_lines(spin)
    sent = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    sent.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt) as caught:  # noqa: PT012
        between_lines(started + 0.2)
        spin(started + 30)
    assert time.monotonic() - started < 10
    lines = [entry.tb_lineno for entry in tracebacks(caught.tb)]
    assert any(line is None or line < 0 for line in lines) == (most == 3), lines


def tracebacks(top):
    while top is not None:
        yield top
        top = top.tb_next


def test_a_signal_ends_the_process_at_once_when_the_run_is_wound_up(interrupts_caught, monkeypatch, capsys):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(interrupts, "_PATIENCE", 60.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    interrupts_caught.wind_up()
    os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [pytest.ExitCode.INTERRUPTED]
    assert capsys.readouterr().out == "\nstagebuild: interrupted again, left at once\n"


def test_released_signals_do_what_they_did_before(interrupts_caught):
    interrupts_caught.release()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_signals_that_somebody_handles_or_ignores_stay_as_they_are(interruptible):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    caught = Interrupts()
    caught.catch(ctrl_c=True)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [interruptible] * 2
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_ctrl_c_is_left_alone_where_stages_are_guests():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    caught = Interrupts()
    caught.catch(ctrl_c=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    caught.release()
