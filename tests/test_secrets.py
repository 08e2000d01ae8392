from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.secrets import Leak, Redactor, search

VALUES = st.lists(st.binary(min_size=1, max_size=24) | st.text("ab", min_size=1, max_size=20), min_size=1, max_size=4)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Values, and a stream in pieces in which they and their beginnings are likely."""
    values = [value if isinstance(value, bytes) else value.encode() for value in draw(VALUES)]
    beginnings = [value[:cut] for value in values for cut in (1, len(value) // 2, len(value))]
    pieces = st.lists(st.sampled_from(beginnings) | st.binary(max_size=3), max_size=30)
    return values, draw(pieces)


def redacted(values: list[bytes], pieces: list[bytes]) -> bytes:
    redactor = Redactor(values)
    return b"".join([*map(redactor.feed, pieces), redactor.flush()])


def masked_by_hand(values: list[bytes], data: bytes) -> bytes:
    """The definition, slowly: find every occurrence, join those that overlap, put a mask in the place of each."""
    found = sorted((at, at + len(v)) for v in values for at in range(len(data)) if data.startswith(v, at))
    shown, done = b"", 0
    for start, stop in found:
        if start >= done:
            shown += data[done:start] + b"***"
        done = max(done, stop)
    return shown + data[done:]


@given(streams())
def test_redaction_is_the_same_however_the_stream_is_cut(stream: tuple[list[bytes], list[bytes]]) -> None:
    values, pieces = stream
    assert redacted(values, pieces) == masked_by_hand(values, b"".join(pieces))


@given(streams())
def test_a_redactor_holds_back_less_than_its_longest_value(stream: tuple[list[bytes], list[bytes]]) -> None:
    values, pieces = stream
    redactor = Redactor(values)
    fed = b""
    for piece in pieces:
        fed += piece
        redactor.feed(piece)
        assert len(redactor.flush()) < max(map(len, values)) + len(b"***")


def test_what_cannot_be_the_start_of_a_value_is_shown_at_once() -> None:
    redactor = Redactor(["hunter2"])
    assert [redactor.feed(b"pass h"), redactor.feed(b"unt"), redactor.feed(b"ing")] == [b"pass ", b"", b"hunting"]


def test_overlapping_values_leave_no_end_standing() -> None:
    assert redacted([b"abcd", b"cdef"], [b"-abcdef-"]) == b"-***-"


def test_the_longer_of_two_values_is_taken_whole() -> None:
    assert redacted([b"abcd", b"abcdef"], [b"-abcd", b"ef-abcd-"]) == b"-***-***-"


def test_a_value_inside_a_longer_one_leaves_nothing_of_it_standing() -> None:
    assert redacted([b"abcdef", b"cd"], [b"-abcdef-"]) == b"-***-"


def test_a_value_inside_what_may_become_a_longer_one_waits_for_it() -> None:
    assert redacted([b"abcd", b"bc"], [b"-abc", b"d-"]) == b"-***-"
    assert redacted([b"abcd", b"bc"], [b"-abc", b"e-"]) == b"-a***e-"


def test_a_value_that_is_not_unicode_is_redacted() -> None:
    assert redacted([os.fsdecode(b"p\xff\xfew").encode("utf-8", "surrogateescape")], [b"p\xff", b"\xfew"]) == b"***"
    assert Redactor([os.fsdecode(b"p\xff\xfew")]).feed(b"p\xff\xfew") == b"***"


def test_no_values_change_nothing() -> None:
    assert redacted([], [b"as ", b"it is"]) == b"as it is"
    assert redacted([b""], [b"as ", b"it is"]) == b"as it is"


def files(*named: tuple[str, bytes], piece: int = 7) -> Iterator[tuple[str, Iterator[bytes]]]:
    for path, content in named:
        yield path, (content[at : at + piece] for at in range(0, len(content), piece))


SECRET = "s3cr/t +ö?>"


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (SECRET.encode(), "raw"),
        (quote(SECRET, safe="").encode(), "URL-quoted"),
        (quote(SECRET, safe="").replace("%C3%B6", "%c3%b6").replace("%2F", "%2f").replace("%2B", "%2b")
         .replace("%3F", "%3f").replace("%3E", "%3e").encode(), "URL-quoted"),
        (quote(SECRET).encode(), "URL-quoted"),
        (quote_plus(SECRET).encode(), "URL-quoted"),
    ],
)  # fmt: skip
def test_a_secret_is_found_as_it_is_and_quoted_for_a_url(written: bytes, form: str) -> None:
    found = search({"TOKEN": SECRET}, files(("/a", b"nothing"), ("/b", b"url=https://u:" + written + b"@host")))
    assert found == Leak("/b", "TOKEN", form)  # type: ignore[arg-type]


@given(
    before=st.binary(max_size=10),
    value=st.text(min_size=4, max_size=20).filter(lambda text: len(text.encode("utf-8", "replace")) >= 6),
    after=st.binary(max_size=10),
    encode=st.sampled_from([base64.standard_b64encode, base64.urlsafe_b64encode]),
)
def test_a_secret_is_found_in_base64_wherever_it_begins(
    before: bytes, value: str, after: bytes, encode: object
) -> None:
    value = value.encode("utf-8", "replace").decode()
    encoded = encode(before + value.encode() + after)  # type: ignore[operator]
    found = search({"TOKEN": value}, files(("/etc/config", b"auth: " + encoded + b"\n")))
    assert found is not None
    assert (found.path, found.name) == ("/etc/config", "TOKEN")


@pytest.mark.parametrize("piece", [4096, 1 << 18, 1 << 20])
def test_a_secret_is_found_wherever_a_file_is_cut(piece: int) -> None:
    secret = "hunter2-hunter3"
    for offset in range(2 * piece - len(secret), 2 * piece + 1):
        content = bytes(offset) + secret.encode() + bytes(piece)
        assert search({"TOKEN": secret}, files(("/big", content), piece=piece)) == Leak("/big", "TOKEN", "raw")


def test_a_secret_that_no_block_holds_whole_is_found() -> None:
    secret = "".join(f"{number:x}" for number in range(200_000))
    assert search({"KEY": secret}, files(("/k", b"x" * 1000 + secret.encode()), piece=1000)) == Leak("/k", "KEY", "raw")


def test_a_secret_in_a_path_is_found_and_not_repeated() -> None:
    found = search({"A": "other", "TOKEN": "hunter2"}, files(("/cache/hunter2.whl", b"")))
    assert found == Leak("/cache/***.whl", "TOKEN", "raw")


def test_a_path_that_is_not_unicode_is_searched() -> None:
    path = os.fsdecode(b"/cache/\xff-hunter2")
    assert search({"TOKEN": "hunter2"}, files((path, b""))) == Leak(os.fsdecode(b"/cache/\xff-***"), "TOKEN", "raw")


def test_files_without_a_secret_leak_nothing() -> None:
    clean = files(("/a", b"hunter1 hunter3" * 1000), ("/b", b""))
    assert search({"TOKEN": "hunter2"}, clean) is None
    assert search({}, files(("/a", b"hunter2"))) is None
