from __future__ import annotations

import pytest

import shelfmark


@pytest.mark.parametrize("isbn", ["0-306-40615-2", "080442957X", "978-0-306-40615-7", "978 3 16 148410 0"])
def test_accepts_a_right_check_digit(isbn: str) -> None:
    assert shelfmark.is_valid(isbn)


@pytest.mark.parametrize("isbn", ["0-306-40615-3", "X804429570", "978-0-306-40615-8", "978X306406157", "12", ""])
def test_refuses_a_wrong_one(isbn: str) -> None:
    assert not shelfmark.is_valid(isbn)


def test_ten_digits_become_thirteen() -> None:
    assert shelfmark.to_thirteen("0-306-40615-2") == "9780306406157"


def test_only_a_valid_isbn_becomes_another() -> None:
    with pytest.raises(ValueError, match="not a valid ISBN"):
        shelfmark.to_thirteen("0-306-40615-3")
