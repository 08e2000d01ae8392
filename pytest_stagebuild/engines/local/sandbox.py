"""A sandbox of the local engine: what is asked of its processes, and what becomes of the layer that they wrote."""

from __future__ import annotations

import fcntl
import os
import tarfile
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal

from pytest_stagebuild.engines.local.exec import Execution, LocalBeside
from pytest_stagebuild.engines.local.spawning import SetUpFailed, Spawned, Spawner
from pytest_stagebuild.engines.local.store import LocalImage, Store
from pytest_stagebuild.engines.protocol import CommandExit, OutputSink, Owner, Program, StoredImage
from pytest_stagebuild.engines.users import resolve_user
from pytest_stagebuild.errors import EngineError, ImageUnavailable
from pytest_stagebuild.interrupts import held_back
from pytest_stagebuild.tar import IterableFile, content_of, read_file

if TYPE_CHECKING:
    from typing_extensions import Self

_PIECE: Final = 1 << 20
_END_SEEN_WITHIN: Final = 5.0
"""Seconds within which a killed command must have ended."""

_ANSWERS_WITHIN: Final = 60.0

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LocalSandbox:
    """See :class:`~pytest_stagebuild.engines.protocol.Sandbox`. After a commit nothing can be done in it any more."""

    def __init__(
        self,
        store: Store,
        spawner: Spawner,
        image: LocalImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        users: Mapping[str, object],
    ) -> None:
        self.name = f"stagebuild-{uuid.uuid4().hex[:16]}"
        self._store = store
        self._image = image
        self._labels = labels
        self._one_user = bool(users["one"])
        self._owner: Owner | None = None
        self._beside: list[LocalBeside] = []
        self._executions: list[Execution] = []
        self._reading: Generator[bytes, None, None] | None = None
        self._spawned: Spawned | None = None
        self._folder: Path | None = None
        # An interrupt that was held back is raised where the inner block ends.
        with self._removed_where_this_fails(), held_back():
            try:
                self._folder = store.new_sandbox(self.name, image)
            except FileNotFoundError as error:
                raise ImageUnavailable(f"the image {image.id} is gone. Run again.") from error
            except OSError as error:
                raise EngineError(f"no sandbox can be made in {store.path}: {error.strerror}. Run again.") from error
            spec = {
                "folder": str(self._folder),
                "stack": [str(store.layer(one)) for one in image.stack],
                "binds": dict(image.binds),
                "network": network,
                "host_name": self.name,
                "life": life,
                **users,
            }
            self._spawned, self._said = spawner.spawn(spec)

    @property
    def owner(self) -> Owner:
        if self._owner is None:
            user = self._image.config.user
            files = [self._text_of(path) if user else "" for path in ("/etc/passwd", "/etc/group")]
            owner = resolve_user(user, *files)
            if self._one_user and owner != Owner(0, 0):
                raise EngineError(
                    f"the image's USER is {user!r}, and the local engine has one user here, root, for lack of others "
                    "to give away. Run as the machine's root, use Docker, or take an image without a USER."
                )
            self._owner = owner
        return self._owner

    def put(self, archive: Iterable[bytes], *, later: bool = False) -> None:
        self._put("put", archive)

    def put_layer(self, archive: Iterable[bytes]) -> None:
        """Put a layer of an image on top of what is there, and remove what it says is gone."""
        self._put("put layer", archive)

    def _put(self, how: str, archive: Iterable[bytes]) -> None:
        reading, writing = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIECE)
        files = self._processes.files
        with files.asking():
            try:
                files.send({"do": how}, [reading])
            finally:
                os.close(reading)
            try:
                with open(writing, "wb", 0) as pipe:
                    for piece in archive:
                        view = memoryview(piece)
                        while view:
                            view = view[pipe.write(view) :]
            except BrokenPipeError:
                pass  # the answer says why
            finally:
                answer = files.receive(None)
        if "error" in answer:
            raise EngineError(f"the files could not be put into the sandbox: {answer['error']}. Run again.")

    def get(self, path: str) -> Iterator[bytes]:
        self._end_reading()
        answer, pieces = self._asked_for({"do": "get", "path": path})
        if answer.get("absent"):
            pieces.close()
            raise FileNotFoundError(f"no such path in the sandbox: {path}")
        self._reading = pieces
        return pieces

    def whole(self) -> Iterator[bytes]:
        """A tar of everything that the sandbox does not share with the host."""
        _, pieces = self._asked_for({"do": "whole"})
        return pieces

    def start(self) -> None:
        if not self._said["shell"]:
            raise EngineError("the image has no /bin/sh, which every stage needs. Take another image.")

    def run(
        self,
        command: str,
        *,
        cwd: str,
        env: Mapping[str, str],
        timeout: float | None,
        output: OutputSink,
        user: Literal["image", "root"] = "image",
        meanwhile: Callable[[], None] | None = None,
    ) -> CommandExit:
        started = time.monotonic()
        owner = self.owner if user == "image" else Owner(0, 0)
        declared = dict(variable.partition("=")[::2] for variable in self._image.config.env)
        whole = {"PATH": _PATH, "HOME": self._home(owner), **declared, **env}
        request = {
            "do": "run", "command": command, "cwd": cwd, "env": whole,
            "uid": owner.uid, "gid": owner.gid, "groups": self._groups(owner),
        }  # fmt: skip
        killed_before = _killed_for_memory()
        execution = Execution(self._processes, request, output, self._place)
        self._executions.append(execution)
        code = execution.wait(None if timeout is None else started + timeout, meanwhile)
        timed_out = code is None
        if code is None:
            self.end_processes()
            code = execution.wait(time.monotonic() + _END_SEEN_WITHIN)
            if code is None:
                raise EngineError("the command could not be ended. Run again.")
        # What it left running and holds its output open is not to die of a broken pipe before it is named.
        if execution.close_if_over():
            self._executions.remove(execution)
        duration = time.monotonic() - started
        if timed_out:
            return CommandExit(137, duration, timed_out=True)
        return CommandExit(code, duration, out_of_memory=code != 0 and _killed_for_memory() > killed_before)

    @property
    def listens(self) -> bool:
        return False

    def run_beside(self, program: Program, *, at_once: bool = True) -> LocalBeside:
        out, their_out = os.pipe()
        complaints, their_complaints = os.pipe()
        try:
            told = {"do": "beside", "program": program.source, "arguments": [*program.arguments]}
            self._ask(told, [their_out, their_complaints])
        finally:
            os.close(their_out)
            os.close(their_complaints)
            self._beside.append(LocalBeside(out, complaints))
        return self._beside[-1]

    def end_processes(self) -> list[str]:
        answer = self._processes.commands.ask({"do": "end"})
        if answer["stuck"]:
            names = ", ".join(answer["stuck"])
            raise EngineError(f"could not end what the command left running: {names}. Run again.")
        return [str(line) for line in answer["ended"]]

    def changed_files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        _, pieces = self._asked_for({"do": "changes"})
        try:
            with tarfile.open(fileobj=IterableFile(pieces), mode="r|", bufsize=_PIECE) as archive:
                for member in archive:
                    yield f"/{member.name}", content_of(archive, member)
        except tarfile.TarError as error:
            raise EngineError(f"the sandbox gave a broken archive: {error}. Run again.") from error
        finally:
            pieces.close()

    def lends(self, *, network: bool) -> None:
        return None

    def commit(self, reference: str, labels: Mapping[str, str]) -> StoredImage:
        own = uuid.uuid4().hex
        layers = (*self._image.layers, f"local:{own}")
        return self._store.stored(self.commit_as((reference,), layers, title="", own=own))

    def commit_as(
        self,
        names: tuple[str, ...],
        layers: tuple[str, ...],
        *,
        title: str | None = None,
        binds: Mapping[str, str] | None = None,
        own: str = "",
    ) -> LocalImage:
        """Make an image of what is there, whose content is told by ``layers``; what is not given stays as it is."""
        with held_back():
            if self._folder is None:
                raise EngineError("the sandbox is gone. Run again.")
            self._end()
            own = own or uuid.uuid4().hex
            made = replace(
                self._image,
                id=own,
                names=names,
                labels={**self._image.labels, **self._labels},
                layers=layers,
                title=self._image.title if title is None else title,
                binds=self._image.binds if binds is None else binds,
                stack=(*self._image.stack, own),
                created=time.time(),
            )
            try:
                published = self._store.publish(self._folder, made)
            except OSError as error:
                raise EngineError(f"the layer could not be stored: {error.strerror}. Run again.") from error
            self._folder = None
            return published

    def prove(self) -> None:
        """Write, delete and rename on both layers, and confine a process as a command is.

        Raises :class:`EngineError` where that does not work.
        """
        self._ask({"do": "prove"}, [])
        request = {"do": "prove", "uid": 0, "gid": 0, "groups": []}
        self._executions.append(Execution(self._processes, request, lambda *_: None, self._place))
        if self._executions[-1].wait(time.monotonic() + _ANSWERS_WITHIN) != 0:
            raise EngineError("a process could not be confined in it")

    def remove(self) -> None:
        with held_back():
            self._end()
            if self._folder is not None:
                self._store.drop_sandbox(self.name)
                self._folder = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @contextmanager
    def _removed_where_this_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.remove()
            raise

    @property
    def _place(self) -> Path:
        return self._store.path / "sandboxes" / self.name

    @property
    def _processes(self) -> Spawned:
        if self._spawned is None:
            raise EngineError("the sandbox has ended. Run again.")
        return self._spawned

    def _end(self) -> None:
        self._end_reading()
        for beside in self._beside:
            beside.close()
        for execution in self._executions:
            execution.close()
        self._beside.clear()
        self._executions.clear()
        if self._spawned is not None:
            self._spawned.end()
            self._spawned = None

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _ask(self, request: Mapping[str, object], descriptors: Sequence[int]) -> Mapping[str, object]:
        answer = self._processes.files.ask(request, descriptors)
        if "step" in answer:
            raise SetUpFailed(answer["step"], answer["errno"], self._place)
        if "error" in answer:
            raise EngineError(f"the sandbox could not {request['do']}: {answer['error']}. Run again.")
        return answer

    def _asked_for(self, request: Mapping[str, object]) -> tuple[Mapping[str, object], Generator[bytes, None, None]]:
        """The answer to a request, and what is then written."""
        reading, writing = os.pipe()
        complaints, their_complaints = os.pipe()
        with suppress(OSError):
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIECE)
        pieces = _pieces(reading, complaints)
        next(pieces)
        try:
            answer = self._ask(request, [writing, their_complaints])
        except BaseException:
            pieces.close()
            raise
        finally:
            os.close(writing)
            os.close(their_complaints)
        return answer, pieces

    def _text_of(self, path: str) -> str:
        """A text file of the image, "" where there is none."""
        try:
            return read_file(b"".join(self.get(path))).decode(errors="replace")
        except (FileNotFoundError, ValueError):
            return ""

    def _home(self, owner: Owner) -> str:
        if owner.uid == 0:
            return "/root"
        lines = (line.split(":") for line in self._text_of("/etc/passwd").splitlines())
        return next((fields[5] for fields in lines if len(fields) > 5 and fields[2] == str(owner.uid)), "/")

    def _groups(self, owner: Owner) -> list[int]:
        """The groups that list the user: https://man7.org/linux/man-pages/man5/group.5.html."""
        if owner.uid == 0:
            return []
        people = (line.split(":") for line in self._text_of("/etc/passwd").splitlines())
        names = {fields[0] for fields in people if len(fields) > 2 and fields[2] == str(owner.uid)}
        groups = (line.split(":") for line in self._text_of("/etc/group").splitlines())
        return [int(one[2]) for one in groups if len(one) > 3 and one[2].isdecimal() and names & {*one[3].split(",")}]


def _pieces(reading: int, complaints: int) -> Generator[bytes, None, None]:
    """What is written, in pieces; the first one is empty. Raises :class:`EngineError` where the writer complains."""
    try:
        yield b""
        while piece := os.read(reading, _PIECE):
            yield piece
        if words := os.read(complaints, _PIECE):
            raise EngineError(f"the sandbox could not give its files: {words.decode(errors='replace').strip()}")
    finally:
        os.close(reading)
        os.close(complaints)


def _killed_for_memory() -> int:
    """How many processes the kernel has killed for memory since it started."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
