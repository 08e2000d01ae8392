"""Runs beside the test command and prints what is appended to a file, as it comes, in whole lines.

It stands alone: standard library only, Python 3.6 or newer. Usage: follow.py FILE. It prints "ready" first. When it is
told by SIGCONT that no more will come it prints "end" last, provided that it has printed the whole of a file that is
there still; else it ends with the container.
"""

from __future__ import annotations

import os
import signal
import sys

_PAUSE = 0.01
_PIECE = 1 << 16


# Before anything else: it may be told of the end before it has looked for the beginning.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCONT})


def main(path: str) -> None:
    _print(b"ready\n")
    left = b""
    over = False
    with open(path, "rb", buffering=0) as file:
        while True:
            piece = file.read(_PIECE)
            if piece:
                lines, end, left = (left + piece).rpartition(b"\n")
                _print(lines + end)
            elif not over:
                over = signal.sigtimedwait({signal.SIGCONT}, _PAUSE) is not None
            elif not left and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return _print(b"end\n")
            else:
                return None


def _print(text: bytes) -> None:
    while text:
        text = text[os.write(1, text) :]


if __name__ == "__main__":
    main(*sys.argv[1:])
