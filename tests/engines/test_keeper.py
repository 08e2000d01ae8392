"""What is left running in a sandbox, told from the listing of its processes."""

from __future__ import annotations

import pytest

from pytest_stagebuild.engines.docker.keeper import MARK, Leftover, leftovers

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
    listing = entry(8, b"", name="timeout", session=1) + entry(9, marked, name="sh", session=9)
    assert leftovers(listing, TOKEN) == []
