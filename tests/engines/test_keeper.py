"""What is left running in a sandbox, told from the listing of its processes."""

from __future__ import annotations

import os
import subprocess

import pytest

from pytest_stagebuild.engines.docker.keeper import MARK, Leftover, end_mark, leftovers, nothing_left, told
from pytest_stagebuild.engines.docker.main_process import End

TOKEN = "0123456789abcdef"
EXITING = 0x4


def entry(
    pid: int, command_line: bytes, *, name: str = "sleep", state: str = "S", session: int = 7, flags: int = 0x400000
) -> bytes:
    status = f"{pid} ({name}) {state} 1 {pid} {session} 0 -1 {flags} 85 0 0 0"
    return f"\n{TOKEN}\n".encode() + command_line + f"\n{TOKEN}=\n{status}".encode()


def test_a_process_is_named_by_its_command_line() -> None:
    listing = entry(9, b"sleep\x0098\0") + entry(10, b"a\0b\nc\0\xff\0")
    assert leftovers(listing, TOKEN) == [
        Leftover(9, "sleep 98", exiting=False),
        Leftover(10, "a b\nc \\xff", exiting=False),
    ]


def test_a_process_without_a_command_line_is_named_as_ps_does() -> None:
    assert leftovers(entry(9, b"", name="a) S 1 1 1 (b"), TOKEN) == [Leftover(9, "[a) S 1 1 1 (b]", exiting=False)]


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_dead_process_is_not_left_running(state: str) -> None:
    assert leftovers(entry(9, b"", name="timeout", state=state), TOKEN) == []


def test_a_process_that_ended_while_it_was_looked_at_is_not_left_running() -> None:
    assert leftovers(f"\n{TOKEN}\nsleep\x0098\0".encode() + entry(10, b"sleep\x0099\0"), TOKEN) == [
        Leftover(10, "sleep 99", exiting=False)
    ]


def test_a_process_on_its_way_out_is_known_as_such() -> None:
    assert leftovers(entry(9, b"", name="timeout", state="R", flags=0x400000 | EXITING), TOKEN) == [
        Leftover(9, "[timeout]", exiting=True)
    ]


def test_the_keepers_own_are_not_left_running_not_even_while_they_are_executed() -> None:
    marked = f"/bin/sh\0-c\0while read -r line; do :; done\0{MARK}\0".encode()
    listing = entry(8, b"", name="timeout", session=1) + entry(9, marked, name="sh", session=1)
    assert leftovers(listing, TOKEN) == [Leftover(8, "[timeout]", exiting=True)]


def test_a_command_of_the_keepers_session_may_leave_something_running_too() -> None:
    assert leftovers(entry(9, b"sleep\x0098\0", session=1), TOKEN) == [Leftover(9, "sleep 98", exiting=False)]


@pytest.mark.parametrize(
    ("listing", "nothing"),
    [
        (b"", True),
        (entry(9, f"timeout\0{MARK}\0".encode(), session=1), True),
        (entry(9, b"", state="Z"), True),
        (f"\n{TOKEN}\nsleep\x0098\0".encode(), True),
        (entry(9, b"sleep\x0098\0"), False),
        (entry(9, b"", session=1), False),
        (b"printed meanwhile" + entry(9, f"timeout\0{MARK}\0".encode()), False),
        (entry(9, f"timeout\0{MARK}\0".encode()) + b"printed meanwhile", False),
        (entry(9, b"sleep\x0098\0").replace(b"=\n", b"=\nprinted meanwhile"), False),
    ],
)
def test_nothing_is_left_only_where_a_listing_says_so_without_a_doubt(listing: bytes, nothing: bool) -> None:
    assert nothing_left(listing, TOKEN) == nothing


@pytest.mark.parametrize("name", ["a-b", "1st", "UID", "PWD", "", "a b"])
def test_a_variable_that_a_shell_cannot_be_told(name: str) -> None:
    assert told(TOKEN, "true", cwd="/src", env={name: "value"}) is None


@pytest.mark.parametrize("value", ["\x10\x11", "a\x03", "\x1b[0m"])
def test_characters_that_mean_something_to_a_terminal_are_not_told(value: str) -> None:
    assert told(TOKEN, "true", cwd="/src", env={"NAME": value}) is None
    assert told(TOKEN, f"echo {value}", cwd="/src", env={}) is None


def test_a_shell_that_is_told_has_the_variables_as_they_are(tmp_path) -> None:
    env = {"QUOTES": 'it\'s "$HOME" `x` \\', "LINES_": "a\n b\n\n", "BYTES": os.fsdecode(b"\xff\xc3\xa9"), "EMPTY": ""}
    script = told(TOKEN, 'printf "%s|" "$QUOTES" "$LINES_" "$BYTES" "$EMPTY" "$PWD"', cwd=str(tmp_path), env=env)
    assert script is not None
    first, what, size, *lines, last, _ = script.split(b"\n")
    assert (first, what, size, last) == (TOKEN.encode(), b"command", b"0", TOKEN.encode())
    printed = subprocess.run(["/bin/sh", "-c", b"\n".join(lines)], capture_output=True, check=True).stdout
    assert printed == b"".join(os.fsencode(value) + b"|" for value in [*env.values(), str(tmp_path)])


@pytest.mark.parametrize("size", range(1, 8))
def test_the_end_of_an_output_is_found_wherever_it_is_cut(size: int) -> None:
    mark = end_mark(TOKEN)
    data = b"a\x1eb" + mark[:5] + b"c\x1e" + mark + b"3\n"
    end = End(mark)
    before = b"".join(end.feed(data[at : at + size]) for at in range(0, len(data), size))
    assert before == data.partition(mark)[0]
    assert end.rest == b"3\n"


def test_an_output_without_an_end_is_given_as_it_comes() -> None:
    end = End(end_mark(TOKEN))
    assert [end.feed(piece) for piece in (b"a prompt: ", b"\x1e", b"b")] == [b"a prompt: ", b"", b"\x1eb"]
    assert end.rest is None
