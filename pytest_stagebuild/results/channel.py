"""The reports of the tests inside, read while they are written, and to their end."""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from typing import Final

from pytest_stagebuild.checkpoint import RUN_FOLDER
from pytest_stagebuild.engines.protocol import Beside, Program, Sandbox
from pytest_stagebuild.results.events import Event, NewerEvents, event_in
from pytest_stagebuild.tar import IterableFile

INSIDE: Final = f"{RUN_FOLDER}/inside"
"""The folder that the reporter lies in, with what it is told and what it tells."""

REPORTS: Final = f"{INSIDE}/reports"

_MOST: Final = 1 << 30
"""Bytes that are read. The tests inside can write to the file as they like."""

_PIECE: Final = 1 << 20

_FIRST_LOOK: Final = 0.3
"""Seconds after which reading along begins where that costs much: an engine may need a tenth of one for it."""

_LAST_LINES: Final = 0.2
"""Seconds that what was read along may still be on its way when the command has ended."""

_READY: Final = "ready"
_END: Final = "end"


@cache
def follower() -> Program:
    """What runs beside the test command and reads along."""
    source = files("pytest_stagebuild.results.inside").joinpath("follow.py").read_text("utf-8")
    return Program(source, (REPORTS,))


class Reports:
    """What is told in a sandbox, from the moment this is made, which is before the command begins.

    A program beside the command reads along where the image has a Python to run it; what it has not told by the end
    stands in the file. ``redact`` is given every text. ``problem`` says why something could not be read.
    """

    def __init__(self, sandbox: Sandbox, redact: Callable[[str], str]) -> None:
        self.problem = ""
        self._sandbox = sandbox
        self._redact = redact
        self._read = 0
        self._live = True
        self._ready = self._whole = False
        self._hears_the_end = sandbox.listens
        self._made = time.monotonic()
        self._beside = self._begin() if self._hears_the_end else None

    def so_far(self) -> Iterator[Event]:
        """What has been told since the last time, without waiting."""
        if self._beside is None:
            # Not while the command begins, which waits for nothing of ours, and may be over before there is much.
            if time.monotonic() - self._made < _FIRST_LOOK:
                return
            self._beside = self._begin()
        yield from self._along(self._beside, 0)

    def _begin(self) -> Beside:
        return self._sandbox.run_beside(follower(), at_once=False)

    def _along(self, beside: Beside, timeout: float) -> Iterator[Event]:
        """What has been read along, and what is within ``timeout`` seconds without any."""
        while self._live and self._read < _MOST and (line := beside.line(timeout)) is not None:
            if line == _READY and not self._ready:
                self._ready = True
            elif line == _END:
                self._live, self._whole = False, True
            elif "\ufffd" in line or not line.startswith("{"):
                self._live = False  # it is none of ours, and its length may not be known any more
            else:
                yield from self._event(line, len(line.encode()) + 1)

    def rest(self) -> Iterator[Event]:
        """What is still to be read, now that the command has ended. To be exhausted, once."""
        if self._beside is not None:
            yield from self._along(self._beside, 0)
            if self._ready and self._hears_the_end:
                yield from self._along(self._beside, _LAST_LINES)
        try:
            for line in () if self._whole else self._lines():
                if self._read >= _MOST:
                    break
                yield from self._event(line, len(line))
        except (FileNotFoundError, tarfile.TarError):
            self._complain("the tests inside removed what they had reported")
        if self._read >= _MOST:
            self._complain(f"the tests inside reported more than {_MOST >> 30} GiB")

    def _lines(self) -> Iterator[bytes]:
        """The lines of the file that have not been read yet."""
        with tarfile.open(fileobj=IterableFile(self._sandbox.get(REPORTS)), mode="r|") as archive:
            member = archive.next()
            file = archive.extractfile(member) if member is not None and member.isreg() else None
            if file is None:
                raise tarfile.TarError("it is no file any more")
            left = self._read
            while left > 0 and (passed := file.read(min(left, _PIECE))):
                left -= len(passed)
            yield from iter(file.readline, b"")

    def _event(self, line: str | bytes, size: int) -> Iterator[Event]:
        self._read += size
        try:
            event = event_in(line, self._redact)
        except NewerEvents as error:
            self._complain(f"the reports from inside are of version {error}, which is not known here")
        except ValueError as error:
            self._complain(f"something else than reports was written among those from inside ({error})")
        else:
            if event is not None:
                yield event

    def _complain(self, problem: str) -> None:
        self.problem = self.problem or problem
