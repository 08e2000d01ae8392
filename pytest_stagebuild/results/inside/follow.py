"""Runs beside the test command and prints what is appended to a file, as it comes, in whole lines.

It stands alone: standard library only, Python 3.6 or newer. Usage: follow.py FILE. It ends with the container.
"""

from __future__ import annotations

import os
import sys
import time

_PAUSE = 0.01
_PIECE = 1 << 16


def main() -> None:
    left = b""
    with open(sys.argv[1], "rb", buffering=0) as file:
        while True:
            piece = file.read(_PIECE)
            if not piece:
                time.sleep(_PAUSE)
                continue
            lines, end, left = (left + piece).rpartition(b"\n")
            if end:
                _print(lines + end)


def _print(text: bytes) -> None:
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    main()
