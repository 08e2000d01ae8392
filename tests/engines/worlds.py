"""A world to test an engine in, and short ways to fill, run and read a sandbox."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from textwrap import indent
from typing import Any

from pytest_stagebuild.engines.protocol import CommandExit, Engine, Program, Sandbox, StoredImage

BASE = "python:3.11-slim"
PASSWD = b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home/app:/bin/sh\n"


def tar_of(files: Mapping[str, bytes], *, mode: int = 0o644, uid: int = 0, gid: int = 0, mtime: int = 1) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid, member.gid, member.mtime = len(data), mode, uid, gid, mtime
            if name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def members_of(pieces: Iterator[bytes]) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as archive:
        return {
            member.name: (member, file.read() if (file := archive.extractfile(member)) else b"")
            for member in archive
            if not member.issym()
        } | {member.name: (member, b"") for member in archive.getmembers() if member.issym()}


def program(does: str, *arguments: str) -> Program:
    """One whose ``main(*arguments)`` does that."""
    main = "import sys\ndef main(*arguments):\n" + indent(does.strip("\n"), "    ")
    return Program(f"{main}\nif __name__ == '__main__':\n    main(*sys.argv[1:])\n", arguments)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether ``holds`` becomes true in so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@dataclass(frozen=True)
class Ran:
    exit: CommandExit
    stdout: bytes
    stderr: bytes

    @property
    def code(self) -> int:
        return self.exit.code


def run(sandbox: Sandbox, command: str, *, timeout: float = 60, cwd: str = "/src", **more: Any) -> Ran:
    streams: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}

    def keep(stream: str, piece: bytes) -> None:
        streams[stream] += piece

    ended = sandbox.run(command, cwd=cwd, env=more.pop("env", {}), timeout=timeout, output=keep, **more)
    return Ran(ended, bytes(streams["stdout"]), bytes(streams["stderr"]))


@dataclass
class World:
    """An engine with an image to start from; every image that a test makes carries the label ``test``."""

    engine: Engine
    image: StoredImage
    test: str

    @property
    def labels(self) -> dict[str, str]:
        return {"pytest-stagebuild.test": self.test}

    def sandbox(
        self,
        image: StoredImage | None = None,
        *,
        network: bool = False,
        life: float = 300,
        beside: Program | None = None,
        **labels: str,
    ) -> AbstractContextManager[Sandbox]:
        image, labels = image or self.image, {**self.labels, **labels}
        return self.engine.sandbox(image, labels=labels, network=network, life=life, beside=beside)

    def started(self, files: Mapping[str, bytes] | None = None, **more: Any) -> Started:
        return Started(self.sandbox(**more), files or {})

    def name(self, part: str = "made") -> str:
        return f"stagebuild-test-{self.test}:{part}"


@dataclass
class Started:
    """A started sandbox with ``files`` in /src, which belongs to the image's user."""

    inner: AbstractContextManager[Sandbox]
    files: Mapping[str, bytes]

    def __enter__(self) -> Sandbox:
        sandbox = self.inner.__enter__()
        owner = sandbox.owner
        archive = tar_of({"src/": b"", **self.files}, uid=owner.uid, gid=owner.gid)
        sandbox.put([archive])
        sandbox.start()
        return sandbox

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)  # type: ignore[arg-type]
