"""The engine's stream of output, parted into what the command printed where."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.engines.docker.exec import frames

NUMBERS = {"stdout": 1, "stderr": 2}

outputs = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.binary(min_size=1, max_size=100)))


def stream_of(output: list[tuple[str, bytes]]) -> bytes:
    return b"".join(bytes([NUMBERS[name], 0, 0, 0]) + len(data).to_bytes(4, "big") + data for name, data in output)


@given(outputs)
def test_each_piece_comes_out_where_it_was_printed_and_in_order(output: list[tuple[str, bytes]]) -> None:
    assert list(frames(io.BytesIO(stream_of(output)).read)) == output


@given(outputs.filter(bool), st.data())
def test_a_stream_that_breaks_off_within_a_piece_is_an_error(
    output: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    whole = stream_of(output)
    lost = data.draw(st.integers(1, len(output[-1][1]) + 7))
    with pytest.raises(ValueError, match="ends in the middle of a frame"):
        list(frames(io.BytesIO(whole[:-lost]).read))


def test_what_the_engine_itself_says_counts_as_stderr() -> None:
    assert list(frames(io.BytesIO(b"\3\0\0\0\0\0\0\2no").read)) == [("stderr", b"no")]
