from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.engines.protocol import Stream
from pytest_stagebuild.output import Captured, ForeignText, StageLog, fitted

BYTES_OF_EVERY_KIND = bytes(range(256)) + b"\x1b[31mred\x1b[0m\r\n\xc3"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[StageLog]:
    with StageLog(tmp_path / "logs" / "test.log") as log:
        yield log


def shown(log: StageLog, output: bytes, lines: int = 40) -> str:
    log.write("stdout", output)
    return log.tail(lines)


def test_the_file_holds_the_output_byte_for_byte(log: StageLog) -> None:
    log.write("stdout", BYTES_OF_EVERY_KIND)
    log.write("stderr", b"\x00\xff")
    log.write("stdout", BYTES_OF_EVERY_KIND)
    assert log.path.read_bytes() == BYTES_OF_EVERY_KIND + b"\x00\xff" + BYTES_OF_EVERY_KIND


def test_secrets_reach_neither_file_nor_memory_nor_callback(tmp_path: Path) -> None:
    texts: list[str] = []
    with StageLog(tmp_path / "log", redact=["hunter2"], on_text=texts.append) as log:
        for piece in (b"one hun", b"ter2\ntwo hunt", b"er\n", b"hunter"):
            log.write("stdout", piece)
    expected = "one ***\ntwo hunter\nhunter"
    assert (log.path.read_text(), log.tail(), log.head(), "".join(texts)) == (expected,) * 4


def test_streams_are_redacted_apart(tmp_path: Path) -> None:
    with StageLog(tmp_path / "log", redact=["hunter2"]) as log:
        log.write("stdout", b"hun")
        log.write("stderr", b"warning\n")
        log.write("stdout", b"ter2\n")
    assert log.path.read_text() == "warning\n***\n"


def test_text_comes_whole_however_its_bytes_are_cut(tmp_path: Path) -> None:
    texts: list[str] = []
    with StageLog(tmp_path / "log", on_text=texts.append) as log:
        for byte in "añ€😀".encode():
            log.write("stdout", bytes([byte]))
            log.write("stderr", b"!")
        log.write("stdout", b"\xf0\x9f")
    assert "".join(texts).replace("!", "") == "añ€😀�"
    assert log.tail().replace("!", "") == "añ€😀�"


def test_the_last_lines_are_given_without_the_blank_ones_at_the_end(log: StageLog) -> None:
    assert shown(log, b"one\ntwo\n\nthree\n\n\n", lines=3) == "two\n\nthree"


def test_the_first_lines_stay_when_much_comes_after_them(log: StageLog) -> None:
    log.write("stdout", b"first\nsecond\n")
    log.write("stdout", b"x" * 10_000_000)
    assert log.head(2) == "first\nsecond"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (b"\x1b[1;31mred\x1b[0m \x1b[2Kplain\x1b[?25l", "red plain"),
        (b"\x1b]0;a title\x07text \x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "text link"),
        (b"\x1b(Bcharset\x1b7\x1bM \xc2\x9b31mred", "charset red"),
        (b"bell\x07 nul\x00 del\x7f \xe2\x80\xaereversed", "bell nul del reversed"),
        (b"a\tb", "a       b"),
        (b"  0%\r 50%\r100%\n", "100%"),
        (b"windows\r\nlines\r\n", "windows\nlines"),
        (b"  0%\r 50%\r", " 50%"),
        (b"-\b\\\b|\b/ done", "/ done"),
        (b"\b\bnothing before", "nothing before"),
        (b"not \xff utf-8", "not � utf-8"),
        (b"\x1b", ""),
    ],
)
def test_the_tail_shows_text_and_does_nothing_to_the_terminal(log: StageLog, output: bytes, text: str) -> None:
    assert shown(log, output) == text


@given(st.lists(st.binary() | st.text().map(str.encode) | st.sampled_from([b"\x1b[", b"\x1b]", b"\r", b"\b"])))
def test_no_output_gets_a_control_character_to_the_terminal(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    log = StageLog(tmp_path_factory.getbasetemp() / "log")
    log.write("stdout", b"".join(pieces))
    log.close()
    assert not [c for c in log.tail() if c != "\n" and (ord(c) < 32 or 127 <= ord(c) < 160)]


def test_long_lines_are_cut(log: StageLog) -> None:
    log.write("stdout", b"x" * 1000 + b"\nshort")
    assert log.tail(width=10) == "xxxxxxxxx…\nshort"


def test_a_line_longer_than_what_is_kept_still_has_an_end(log: StageLog) -> None:
    log.write("stdout", b"x" * 10_000_000 + b"\n")
    assert log.last_line == "x" * 399 + "…"


def test_a_tail_does_not_begin_in_the_middle_of_a_line(log: StageLog) -> None:
    line = b"\x1b[31m" + b"x" * 94 + b"\n"
    for _ in range(10_000):
        log.write("stdout", line)
    assert set(log.tail(10_000).splitlines()) == {"x" * 94}


@pytest.mark.parametrize("output", [b"", b"\n\n \n"])
def test_without_output_there_is_no_last_line(log: StageLog, output: bytes) -> None:
    log.write("stdout", output)
    assert log.last_line == ""


def test_the_last_line_need_not_be_finished(log: StageLog) -> None:
    log.write("stdout", b"Collecting a\nDownloading  1%\rDownloading 10%")
    assert log.last_line == "Downloading 10%"


def test_the_last_line_can_be_read_while_output_comes(log: StageLog) -> None:
    def write() -> None:
        for number in range(5000):
            log.write("stdout", b"line %d\n" % number)

    writer = threading.Thread(target=write)
    writer.start()
    seen = {log.last_line.split(" ")[0] for _ in range(200)}
    writer.join()
    assert seen | {"line"} <= {"", "line"}
    assert log.last_line == "line 4999"


def test_a_new_log_leaves_the_older_one_to_who_still_writes_it(tmp_path: Path) -> None:
    with StageLog(tmp_path / "log") as older, StageLog(tmp_path / "log") as newer:
        newer.write("stdout", b"newer")
        older.write("stdout", b"older")
    assert (tmp_path / "log").read_bytes() == b"newer"


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    with StageLog(tmp_path / "log") as log:
        log.write("stdout", b"output")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_log_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(OSError, match="logs"):
        StageLog(tmp_path / "logs" / "test.log")


def test_a_full_disk_ends_the_file_and_not_the_stage(log: StageLog) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        log.write("stdout", b"x" * 5000 + b"\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.write("stdout", b"the end")
    assert (log.path.stat().st_size, log.last_line) == (4096, "the end")
    assert log.problem == f"{log.path} is incomplete: File too large"


def test_much_output_takes_little_memory(tmp_path: Path) -> None:
    script = """
import pathlib, re, sys
from pytest_stagebuild.output import Captured, ForeignText, StageLog, fitted
log, captured = StageLog(pathlib.Path(sys.argv[1]), redact=["hunter2"], on_text=len), Captured()
log.path.unlink()
def peak():
    # Not getrusage(), whose figure a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
before = peak()
line = b"\\x1b[32mx\\x1b[0m" * 5957
for _ in range(1024 * 4):
    log.write("stdout", line)
    captured.write("stdout", line)
for _ in range(200_000):
    log.write("stdout", b"a")
    log.write("stderr", b"b")
log.tail(); captured.text()
print(peak() - before)
"""
    grown = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "log"], check=True, capture_output=True, text=True
    ).stdout
    assert int(grown) < 75 * 1024


@given(st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(max_size=30)), max_size=30))
def test_what_is_captured_is_both_ends_of_each_stream(pieces: list[tuple[Stream, bytes]]) -> None:
    captured = Captured(limit=100)
    for stream, data in pieces:
        captured.write(stream, data)
    captured.close()
    streams: tuple[Stream, ...] = ("stdout", "stderr")
    for stream in streams:
        whole = b"".join(data for name, data in pieces if name == stream)
        marker = b"\n[... %d bytes dropped ...]\n" % (len(whole) - 100)
        assert captured.raw(stream) == (whole if len(whole) <= 100 else whole[:50] + marker + whole[-50:])


def test_long_output_is_captured_with_the_number_of_bytes_that_are_missing() -> None:
    captured = Captured()
    for _ in range(20):
        captured.write("stdout", b"x" * (1 << 20))
    assert len(captured.raw("stdout")) == (8 << 20) + len("\n[... 12582912 bytes dropped ...]\n")
    assert "\n[... 12582912 bytes dropped ...]\n" in captured.text()


def test_captured_text_stands_for_what_is_not_utf_8() -> None:
    captured = Captured()
    captured.write("stderr", b"caf\xc3")
    captured.write("stderr", b"\xa9 \xff")
    assert captured.text("stderr") == "café �"


def test_secrets_are_not_captured() -> None:
    captured = Captured(redact=["hunter2"])
    captured.write("stdout", b"a hunt")
    captured.write("stdout", b"er2 and a hunt")
    captured.close()
    assert captured.text() == "a *** and a hunt"


@given(
    st.lists(st.sampled_from(("\x1b[31m", "\x1b[2J", "\x1b]0;t\x07", "\x9b5A", "text", "\r", "\n", "\x00", "é"))),
    st.data(),
)
def test_foreign_text_is_the_same_however_it_comes(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts) + "."
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    foreign = ForeignText()
    shown = "".join(foreign.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
    assert shown == "".join(part for part in parts if part not in ("\x1b[2J", "\x1b]0;t\x07", "\x9b5A", "\x00")) + "."
    assert foreign.end() == ("\x1b[0m" if "\x1b[31m" in parts else "")


@pytest.mark.parametrize(
    ("text", "cells", "kept"),
    [
        ("plain", 3, "pla"),
        ("plain", 9, "plain"),
        ("日本語", 5, "日本"),
        ("日本語", 6, "日本語"),
        ("e\u0301e", 1, "e\u0301"),
        ("", 0, ""),
    ],
)
def test_a_line_is_fitted_by_its_cells(text: str, cells: int, kept: str) -> None:
    assert fitted(text, cells) == kept
