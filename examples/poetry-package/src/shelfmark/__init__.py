"""Checks ISBNs, and turns the older ten digits into thirteen."""

from __future__ import annotations


def is_valid(isbn: str) -> bool:
    """Whether the check digit of an ISBN of ten or thirteen digits is right."""
    digits = _digits(isbn)
    if len(digits) == 10:
        return digits[9] == _check_ten(digits[:9])
    if len(digits) == 13:
        return digits[12] == _check_thirteen(digits[:12])
    return False


def to_thirteen(isbn: str) -> str:
    """The thirteen digits of an ISBN of ten. Raises ``ValueError`` where it is not a valid one."""
    digits = _digits(isbn)
    if len(digits) != 10 or not is_valid(isbn):
        raise ValueError(f"not a valid ISBN of ten digits: {isbn!r}")
    body = "978" + digits[:9]
    return body + _check_thirteen(body)


def _digits(isbn: str) -> str:
    return isbn.replace("-", "").replace(" ", "").upper()


def _check_ten(body: str) -> str:
    """The check digit that belongs to nine digits, or nothing where they are not digits."""
    if not body.isdecimal():
        return ""
    check = sum(weight * int(digit) for weight, digit in enumerate(body, 1)) % 11
    return "X" if check == 10 else str(check)


def _check_thirteen(body: str) -> str:
    """The check digit that belongs to twelve digits, or nothing where they are not digits."""
    if not body.isdecimal():
        return ""
    return str(-sum(int(digit) * (1, 3)[place % 2] for place, digit in enumerate(body)) % 10)
