"""``Image``: a checkpoint as tests see it, always with the source as it is now."""

from __future__ import annotations

import contextlib
import errno
import posixpath
import tarfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from pytest_stagebuild.artifacts import extract
from pytest_stagebuild.checkpoint import LABEL, WORKING_DIRECTORY
from pytest_stagebuild.engines.tar_stream import IterableFile
from pytest_stagebuild.execution import RUN_FOLDER, Ground, Workplace, clear_run_folder, image_name, with_own_programs
from pytest_stagebuild.output import Captured
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.store import read_file

_MOST_LINKS: Final = 40
"""As many as Linux follows: https://man7.org/linux/man-pages/man7/path_resolution.7.html"""


@dataclass(frozen=True)
class RunResult:
    """How a command ended, and what it said.

    ``exit_code`` is as a shell has it (128 + signal); ``stdout`` and ``stderr`` are decoded as UTF-8, with a
    replacement character for what is not, and hold at most 8 MiB each (the beginning and the end). ``duration`` is in
    seconds. ``result_image`` is what the command left, where it was not disposable and exited 0; it lives until the
    end of the session.
    """

    exit_code: int
    stdout: str
    stderr: str
    timed_out: bool
    duration: float
    result_image: Image | None = None


class Image:
    """A checkpoint with the source as it is now.

    A reused checkpoint may hold older versions of files that its stage never used. Whatever has changed since is sent
    before anything is run or read, so that no method ever shows a file of the source as it was.

    ``uuid`` is the checkpoint's; of the base image it is the identity digest. ``parent`` is the UUID of the checkpoint
    that this one was made on, the base image's digest, or None for the base image.
    """

    def __init__(
        self,
        workplace: Workplace,
        ground: Ground,
        stage: Literal["base", "install", "build", "derived"],
        parent: str | None,
        on_derived: Callable[[str], None],
    ) -> None:
        self.stage = stage
        self.uuid = ground.parent
        self.parent = parent
        self._workplace = workplace
        self._ground = ground
        self._on_derived = on_derived

    def __repr__(self) -> str:
        return f"<Image {self.stage} {self.uuid[:8]}>"

    def run(
        self,
        command: str,
        *,
        disposable: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str = WORKING_DIRECTORY,
        timeout: float = 1800.0,
        stdin: str | bytes | None = None,
    ) -> RunResult:
        """Run ``/bin/sh -c command`` in a sandbox of its own and wait for it, at most ``timeout`` seconds.

        ``cwd`` is relative to ``/src``. A command that fails or runs out of time is not an error here: the result says
        so. Raises :class:`~pytest_stagebuild.errors.EngineError` where the engine fails. With ``disposable=False`` what
        the command left is kept as ``result_image``.
        """
        said = Captured(redact=self._workplace.redactions)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        files = {} if data is None else {f"{RUN_FOLDER}/stdin": data}
        uuid = str(uuids.uuid4())
        labels = {LABEL + "stage": "derived", LABEL + "uuid": uuid} if not disposable else {}
        with self._as_it_is_now().sandbox(self._ground, labels=labels, network=True, timeout=timeout, files=files) as (
            sandbox,
            upload,
        ):
            ended = sandbox.run(
                with_own_programs(sandbox, command if data is None else f"exec <{RUN_FOLDER}/stdin\n{command}"),
                cwd=posixpath.join(WORKING_DIRECTORY, cwd),
                env=self._workplace.environment(env or {}),
                timeout=timeout,
                output=said.write,
            )
            derived = None
            if not disposable and ended.code == 0 and not ended.timed_out:
                sandbox.end_processes()
                clear_run_folder(sandbox)
                name = image_name(self._workplace.settings.project, uuid)
                image = sandbox.commit(name, {LABEL + "uuid": uuid})
                self._on_derived(image.id)
                ground = Ground(image, uuid, upload.sent, time.time())
                derived = Image(self._workplace, ground, "derived", self.uuid, self._on_derived)
        said.close()
        return RunResult(ended.code, said.text("stdout"), said.text("stderr"), ended.timed_out, ended.duration, derived)

    def read_bytes(self, path: str) -> bytes:
        """The content of a file; ``path`` is relative to ``/src``, and links are followed.

        Raises ``FileNotFoundError`` or ``IsADirectoryError``.
        """
        with self._opened(path) as (pieces, _):
            try:
                return read_file(b"".join(pieces))
            except ValueError:
                raise IsADirectoryError(f"{path} is not a file in {self!r}: use list() or export()") from None

    def read_text(self, path: str) -> str:
        """The content of a UTF-8 file; ``path`` is relative to ``/src``. Raises as :meth:`read_bytes` does."""
        return self.read_bytes(path).decode()

    def list(self, path: str = ".") -> list[str]:
        """The names in a folder, sorted; ``path`` is relative to ``/src``, and links are followed.

        Raises ``FileNotFoundError`` or ``NotADirectoryError``.
        """
        with self._opened(path) as (pieces, _), tarfile.open(fileobj=IterableFile(pieces), mode="r|") as tar:
            top = tar.next()
            if top is None or not top.isdir():
                raise NotADirectoryError(f"{path} is not a folder in {self!r}: use read_bytes()")
            parts = (member.name.split("/") for member in tar)
            return sorted({names[1] for names in parts if len(names) > 1 and names[1]})

    def export(self, path: str, destination: str | Path) -> Path:
        """Copy a file or folder out into the folder ``destination``, and give the path of the copy.

        Links inside it, devices and whatever points out of ``destination`` are left behind; ``path`` itself may be a
        link, and the copy then has the name of what it leads to. Raises ``FileNotFoundError``.
        """
        target = Path(destination)
        with self._opened(path) as (pieces, found):
            extract(pieces, target)
        return target / posixpath.basename(found)

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[tuple[Iterator[bytes], str]]:
        """A tar of what ``path`` leads to, and the absolute path of that."""
        where = posixpath.normpath(posixpath.join(WORKING_DIRECTORY, path))
        with self._as_it_is_now().sandbox(self._ground, labels={}, network=False, timeout=600.0) as (sandbox, _):
            for _ in range(_MOST_LINKS):
                with tarfile.open(fileobj=IterableFile(sandbox.get(where)), mode="r|") as tar:
                    top = tar.next()
                if top is None or not top.issym():
                    yield sandbox.get(where), where
                    return
                where = posixpath.normpath(posixpath.join(posixpath.dirname(where), top.linkname))
            raise OSError(errno.ELOOP, f"too many links in {self!r}", path)

    def _as_it_is_now(self) -> Workplace:
        """The source may have been edited since the session began, by the test itself for one."""
        return replace(self._workplace, tree=SourceTree.read(self._workplace.tree.root))
