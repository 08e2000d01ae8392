"""``Image``: a checkpoint as tests see it, always with the source as it is now."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import posixpath
import shlex
import tarfile
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path, PurePath
from typing import Final, Literal, NamedTuple

from pytest_stagebuild.artifacts import extract
from pytest_stagebuild.checkpoint import LABEL, RUN_FOLDER, WORKING_DIRECTORY
from pytest_stagebuild.engines.owner import Process, provably_gone, start_of, this_process
from pytest_stagebuild.engines.protocol import Engine, Sandbox, StoredImage, Stream
from pytest_stagebuild.execution import Ground, Workplace, clear_run_folder, image_name, with_own_programs
from pytest_stagebuild.output import Captured
from pytest_stagebuild.source import SourceTree
from pytest_stagebuild.tar import IterableFile, read_file
from pytest_stagebuild.values import dataclass

_DERIVED: Final = "derived"

_MAKER: Final = LABEL + "maker"
"""The label with the process for which an image was kept, and with which it goes."""

_READING: Final = 600.0

_MOST_LINKS: Final = 40
"""As many as Linux follows: https://man7.org/linux/man-pages/man7/path_resolution.7.html"""

_MOST_BYTES: Final = 1 << 40
_MOST_FILES: Final = 10_000_000
"""The user named what is copied out, and may have as much of it as the disk takes."""

_NO_FOLDER: Final = 4
_LIST: Final = f"""\
cd {{where}} 2>/dev/null || {{{{ [ -e {{where}} ] && exit {_NO_FOLDER}; exit 3; }}}}
for name in * .[!.]* ..?*; do
  if [ -e "$name" ] || [ -L "$name" ]; then printf '%s\\0' "$name"; fi
done
"""


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
        return f"<Image {self.stage} {self.uuid.removeprefix('sha256:')[:8]}>"

    def run(
        self,
        command: str,
        *,
        disposable: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | PurePath = WORKING_DIRECTORY,
        timeout: float = 1800.0,
        stdin: str | bytes | None = None,
    ) -> RunResult:
        """Run ``/bin/sh -c command`` in a sandbox of its own and wait for it, at most ``timeout`` seconds.

        ``cwd`` is relative to ``/src``. A command that fails or runs out of time is not an error here: the result says
        so. Raises ``NotADirectoryError`` where ``cwd`` is no folder, and
        :class:`~pytest_stagebuild.errors.EngineError` where the engine fails. With ``disposable=False`` what the
        command left is kept as ``result_image``.
        """
        _refuse_unusable(command, env or {}, timeout, stdin)
        said = Captured(redact=self._workplace.redactions)
        data = stdin.encode() if isinstance(stdin, str) else stdin
        files = {} if data is None else {f"{RUN_FOLDER}/stdin": data}
        folder = _absolute(cwd)
        uuid = str(uuids.uuid4())
        project = self._workplace.settings.project
        labels = {
            LABEL + "stage": _DERIVED,
            LABEL + "uuid": uuid,
            LABEL + "project": project,
            _MAKER: this_process().to_label(),
        }
        with self._as_it_is_now().sandbox(
            self._ground, labels={} if disposable else labels, network=True, timeout=timeout, files=files
        ) as (sandbox, upload):
            if folder != WORKING_DIRECTORY and _said(sandbox, f"cd {shlex.quote(folder)}", user="image")[0] != 0:
                raise NotADirectoryError(f"cwd={os.fspath(cwd)!r} is no folder that commands can enter in {self!r}")
            ended = sandbox.run(
                with_own_programs(sandbox, command if data is None else f"exec <{RUN_FOLDER}/stdin\n{command}"),
                cwd=folder,
                env=self._workplace.environment(env or {}),
                timeout=timeout,
                output=said.write,
            )
            derived = None
            if not disposable and ended.code == 0 and not ended.timed_out:
                sandbox.end_processes()
                clear_run_folder(sandbox)
                image = sandbox.commit(image_name(project, uuid), {LABEL + "uuid": uuid})
                self._on_derived(image.id)
                ground = Ground(image, uuid, upload.sent, time.time())
                derived = Image(self._workplace, ground, _DERIVED, self.uuid, self._on_derived)
        said.close()
        return RunResult(ended.code, said.text("stdout"), said.text("stderr"), ended.timed_out, ended.duration, derived)

    def read_bytes(self, path: str | PurePath) -> bytes:
        """The content of a file; ``path`` is relative to ``/src``, and links are followed.

        Raises ``FileNotFoundError`` or ``IsADirectoryError``, and ``OSError`` for a device, FIFO or socket.
        """
        with self._opened(path) as (pieces, found):
            # Before it is read: a folder comes with all that is below it.
            if found.what == "folder":
                raise IsADirectoryError(f"{path} is not a file in {self!r}: use list() or export()")
            return read_file(b"".join(pieces))

    def read_text(self, path: str | PurePath) -> str:
        """The content of a UTF-8 file; ``path`` is relative to ``/src``. Raises as :meth:`read_bytes` does."""
        return self.read_bytes(path).decode()

    def list(self, path: str | PurePath = ".") -> list[str]:
        """The names in a folder, sorted; ``path`` is relative to ``/src``, and links are followed.

        Raises ``FileNotFoundError`` or ``NotADirectoryError``.
        """
        where = shlex.quote(_absolute(path))
        with self._as_it_is_now().sandbox(self._ground, labels={}, network=False, timeout=_READING) as (sandbox, _):
            # Not from an archive: that would bring the content of everything below.
            code, said = _said(sandbox, _LIST.format(where=where), user="root")
        if code == _NO_FOLDER:
            raise NotADirectoryError(f"{path} is not a folder in {self!r}: use read_bytes()")
        if code != 0:
            raise FileNotFoundError(f"no such path in {self!r}: {path}")
        return sorted(name.decode("utf-8", "surrogateescape") for name in said.split(b"\0")[:-1])

    def export(self, path: str | PurePath, destination: str | Path) -> Path:
        """Copy a file or folder out into the folder ``destination``, and give the path of the copy.

        Links inside it, devices and whatever points out of ``destination`` are left behind; ``path`` itself may be a
        link, and the copy then has the name of what it leads to. It replaces what stood there by that name. Raises
        ``FileNotFoundError``, ``NotADirectoryError`` where ``destination`` is a file,
        :class:`~pytest_stagebuild.errors.StagebuildError` where it cannot be written, and ``OSError`` for a device,
        FIFO or socket.
        """
        target = Path(destination)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is not a folder: name the one that the copy is to lie in")
        with self._opened(path) as (pieces, found):
            extract(pieces, target, limit_bytes=_MOST_BYTES, limit_files=_MOST_FILES)
        return target / posixpath.basename(found.path)

    @contextlib.contextmanager
    def _opened(self, path: str | PurePath) -> Iterator[tuple[Iterator[bytes], _Place]]:
        """A tar of what ``path`` leads to, and what that is."""
        where = _absolute(path)
        with self._as_it_is_now().sandbox(self._ground, labels={}, network=False, timeout=_READING, to_read=True) as (
            sandbox,
            _,
        ):
            for _ in range(_MOST_LINKS):
                begun: list[bytes] = []
                pieces = sandbox.get(where)
                with tarfile.open(fileobj=IterableFile(_kept(pieces, begun)), mode="r|") as tar:
                    top = tar.next()
                if top is None or not (top.isreg() or top.isdir() or top.issym()):
                    raise OSError(errno.EINVAL, f"neither a file nor a folder in {self!r}", os.fspath(path))
                if not top.issym():
                    yield chain(begun, pieces), _Place(where, "folder" if top.isdir() else "file")
                    return
                where = posixpath.normpath(posixpath.join(posixpath.dirname(where), top.linkname))
            raise OSError(errno.ELOOP, f"too many links in {self!r}", os.fspath(path))

    def _as_it_is_now(self) -> Workplace:
        """The source may have been edited since it was last read, by the test itself for one."""
        last = self._workplace.tree
        self._workplace = replace(self._workplace, tree=SourceTree.read(last.root, known=last.seen))
        return self._workplace


class _Place(NamedTuple):
    """What a path leads to, once links have been followed; ``path`` is absolute."""

    path: str
    what: Literal["file", "folder"]


def left_by_killed_runs(engine: Engine) -> list[StoredImage]:
    """What commands left for tests in runs that provably are gone and could not remove it.

    An image that somebody made of one has its labels too, but not its name.
    """
    here = this_process()
    left = []
    for image in engine.images_with({LABEL + "stage": _DERIVED}):
        maker = Process.from_label(image.labels.get(_MAKER, ""))
        if maker is not None and provably_gone(maker, here, start_of):
            named = engine.find_image(image_name(image.labels.get(LABEL + "project", ""), image.labels[LABEL + "uuid"]))
            left += [image] if named is not None and named.id == image.id else []
    return left


def _refuse_unusable(command: str, env: Mapping[str, str], timeout: float, stdin: str | bytes | None) -> None:
    if not isinstance(command, str):
        raise TypeError(f"a command is a string for /bin/sh, not {command!r}: shlex.join() makes one of a list")
    if not isinstance(timeout, (int, float)) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout!r} is no number of seconds above 0")
    if stdin is not None and not isinstance(stdin, (str, bytes)):
        raise TypeError(f"stdin is a string or bytes, not {stdin!r}")
    if not isinstance(env, Mapping):
        raise TypeError(f"env is a mapping of names to values, not {env!r}")
    for name, value in env.items():
        if not name or "=" in name:
            raise ValueError(f"env has a name that no variable can have: {name!r}")
        if not isinstance(value, str):
            raise TypeError(f"env has a value that is not a string: {name}={value!r}")
    if any("\0" in text for text in (command, *env, *env.values())):
        raise ValueError("neither a command nor a variable can hold a NUL character")


def _absolute(path: str | PurePath) -> str:
    text = os.fspath(path)
    if not text or "\0" in text:
        raise FileNotFoundError(f"no path can be {text!r}")
    return posixpath.normpath(posixpath.join(WORKING_DIRECTORY, text))


def _said(sandbox: Sandbox, command: str, *, user: Literal["image", "root"]) -> tuple[int, bytes]:
    """The exit code and standard output of a command of ours."""
    said: list[bytes] = []

    def take(stream: Stream, piece: bytes) -> None:
        if stream == "stdout":
            said.append(piece)

    ended = sandbox.run(command, cwd="/", env={"LC_ALL": "C"}, timeout=_READING, output=take, user=user)
    return ended.code, b"".join(said)


def _kept(pieces: Iterator[bytes], begun: list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        begun.append(piece)
        yield piece
