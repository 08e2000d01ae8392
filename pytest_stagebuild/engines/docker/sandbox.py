"""A sandbox on a Docker Engine API: a container that ends with us, and what is done in and with it."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.changes import changed_files
from pytest_stagebuild.engines.docker.connection import PATIENT, QUICK, Connection, engine_errors, words_of
from pytest_stagebuild.engines.docker.dialect import tag
from pytest_stagebuild.engines.docker.exec import ExecutedBeside, Execution, output_of
from pytest_stagebuild.engines.docker.images import Reference, committed_config, parse_reference
from pytest_stagebuild.engines.docker.main_process import Done, MainBeside, MainCommand, MainProcess
from pytest_stagebuild.engines.docker.transport import Lost, Refused, Response
from pytest_stagebuild.engines.owner import this_process
from pytest_stagebuild.engines.protocol import CommandExit, OutputSink, Owner, Program, StoredImage
from pytest_stagebuild.engines.users import ROOT, resolve_user
from pytest_stagebuild.errors import EngineError, ImageUnavailable
from pytest_stagebuild.interrupts import held_back

if TYPE_CHECKING:
    from typing_extensions import Self

SANDBOX_LABEL: Final = "pytest-stagebuild.sandbox"
OWNER_LABEL: Final = "pytest-stagebuild.owner"

HOST_NAME: Final = "stagebuild"

_KILL_WITHIN: Final = 4.0
"""Seconds for ending processes one by one, before the whole container is killed."""

_END_SEEN_WITHIN: Final = 3.0
"""Seconds within which an engine says that a container has ended, when it has said so of a command in it."""

_SMALL: Final = 4 << 20
"""Bytes of an archive that is given to the main process, and held in memory until then."""

_STEP: Final = 120.0
"""Seconds that a step of ours may take."""

_COMMIT_LOOKUP: Final = 30.0
"""Seconds to look for an image whose commit was not answered: the engine goes on with it all the same."""

_UNPAUSED_LOOKUP: Final = 300.0
"""The same where the engine goes on to answer, and would not show that it is at it."""

_COMMIT_LOCK: Final = threading.Lock()


class DockerSandbox:
    """See :class:`~pytest_stagebuild.engines.protocol.Sandbox`."""

    def __init__(
        self,
        connection: Connection,
        image: StoredImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        may_lend: bool = False,
        lender: DockerSandbox | None = None,
        beside: Program | None = None,
    ) -> None:
        self.name = f"stagebuild-{keeper.new_token()[:16]}"
        self.lender = lender
        self._connection = connection
        self._image = image
        self._owner: Owner | None = None
        self._main: MainProcess | None = None
        self._last_run: MainCommand | None = None
        self._to_come = b""
        self._reading: Generator[bytes, None, None] | None = None
        # The keeper's own user is the image's, and what runs beside is to be root's.
        self._early = beside if connection.is_plain and image.config.user in ROOT else None
        self._beside: list[ExecutedBeside | MainBeside] = []
        self._beside_waits = False
        self._nothing_runs = False
        self._kills_seen = 0
        self._network = network
        self._may_lend = may_lend
        self._network_is_new = True
        self._labels, self._life = labels, life
        self._has_files = False
        with engine_errors("create a container"), self._removed_where_this_fails(), held_back():
            try:
                self._base_config: Mapping[str, Any] = connection.configuration(image.id)
                try:
                    self._create()
                except Refused:
                    if self.lender is None:
                        raise
                    self.lender = None
                    self._create()
                if self._early is not None and self.owner != Owner(0, 0):  # its /etc/passwd calls another one root
                    self._early = None
                    self._remove()
                    self._create()
            except Refused as error:
                if error.status != 404:
                    raise
                raise ImageUnavailable(f"the image {image.id} is gone: {words_of(error)}. Run again.") from error

    def _create(self) -> None:
        plain, own = self._connection.is_plain, "default" if self._network else "none"
        told: dict[str, object] = {
            "Image": self._image.id,
            "Entrypoint": keeper.keeper_command(self._life, listens=plain, lends=self._may_lend, beside=self._early),
            "Labels": {**self._labels, SANDBOX_LABEL: self.name, OWNER_LABEL: this_process().to_label()},
            **dict.fromkeys(("OpenStdin", "StdinOnce", "AttachStdin", "AttachStdout", "AttachStderr"), True),
            "StopTimeout": 0,  # only SIGKILL ends it, and a daemon that is stopped would wait 10 s before it
            "HostConfig": {
                "AutoRemove": True,
                "Init": False,  # or a daemon with "init": true makes our shell a process that can be killed
                "NetworkMode": f"container:{self.lender.name}" if self.lender else own,
                "LogConfig": {"Type": "none", "Config": {}},
            },
        }
        if self._may_lend and self.lender is None:
            # It comes with the network: the same in each, whether that was handed on or not.
            told["Hostname"] = HOST_NAME
        if self._base_config.get("Healthcheck"):
            # It would count as left running, and run between the user's commands.
            told["Healthcheck"] = {"Test": ["NONE"]}
        self._connection.tell("POST", "/containers/create", query={"name": self.name}, body=told)

    @property
    def owner(self) -> Owner:
        if self._owner is None:
            user = self._image.config.user
            files = [self._text_of(path) if user else "" for path in ("/etc/passwd", "/etc/group")]
            self._owner = resolve_user(user, *files)
        return self._owner

    def put(self, archive: Iterable[bytes], *, later: bool = False) -> None:
        self._put_the_rest()
        if later and self._connection.is_plain and self.owner == Owner(0, 0):
            # The engine needs 40 to 90 ms for it, the main process 5.
            pieces, held = iter(archive), b""
            for piece in pieces:
                held += piece
                if len(held) > _SMALL:
                    break
            else:
                self._to_come = held
                return
            archive = chain([held], pieces)
        self._put(archive)

    def _put(self, archive: Iterable[bytes]) -> None:
        self._has_files = True
        ours: list[BaseException] = []

        def pieces() -> Iterator[bytes]:
            try:
                yield from archive
            except BaseException as error:
                ours.append(error)
                raise

        try:
            with engine_errors("take the files"):
                path = f"/containers/{self.name}/archive"
                self._connection.open("PUT", path, query={"path": "/"}, body=pieces()).whole()
        except Exception:
            if ours:  # an error of the archive is none of the engine
                raise ours[0] from None
            raise

    def get(self, path: str) -> Iterator[bytes]:
        self._end_reading()
        self._put_the_rest()
        with engine_errors(f"give {path}"):
            try:
                self._reading = self._connection.archive(self.name, path).pieces()
            except Refused as error:
                words = words_of(error).lower()
                absent = error.status == 404 and "no such container" not in words
                if absent or "not a directory" in words:
                    raise FileNotFoundError(f"no such path in the sandbox: {path}") from None
                raise
        return _guarded(self._reading, f"give {path}")

    def start(self) -> None:
        try:
            self._start()
        except EngineError as error:
            if self.lender is None:
                raise
            # Somebody has removed the lender, or does not allow it.
            if self._has_files:
                raise EngineError(f"{error}. Run again.") from error
            self._remove()
            self.lender = None
            with engine_errors("create a container"):
                self._create()
            self._start()

    def _start(self) -> None:
        with engine_errors("start a container"):
            self._main = MainProcess(self._connection, self.name, beside=self._early is not None)
            try:
                self._connection.tell("POST", f"/containers/{self.name}/start")
            except Exception as error:
                if "/bin/sh" in words_of(error):
                    raise EngineError(
                        f"the image has no /bin/sh, which every stage needs ({words_of(error)}). Take another image."
                    ) from error
                raise

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
        if user == "root" and not env and (step := self._step(command, cwd=cwd, timeout=timeout)) is not None:
            output("stdout", step.printed)
            return CommandExit(step.code, time.monotonic() - started)
        self._nothing_runs = self._network_is_new = False
        self._last_run, to_come = None, self._to_come
        if user == "image" and self._main is not None:
            self._last_run = self._main.run(command, cwd=cwd, env=env, archive=to_come, output=output)
        if self._last_run is not None:
            self._to_come = b""
            if to_come and self._last_run.was_refused():
                self._last_run, self._to_come = None, to_come
        self._put_the_rest()
        if self._beside_waits and self._last_run is None:
            output_of(self._connection, self.name, ["/bin/sh", "-c", keeper.GO_ON], timeout=QUICK)
        self._beside_waits = False
        with self._last_run or Execution(
            self._connection,
            self.name,
            ["/bin/sh", "-c", command],
            cwd=cwd,
            env=env,
            user="0:0" if user == "root" else self._image.config.user,
            output=output,
        ) as execution:
            code = execution.wait(timeout, meanwhile)
            if code is None:
                self._end_at_any_price()
                execution.drain()
        duration = time.monotonic() - started
        if code is None:
            return CommandExit(137, duration, timed_out=True)
        return CommandExit(code, duration, out_of_memory=code != 0 and self._killed_for_memory())

    def _put_the_rest(self) -> None:
        if self._to_come and self._step(":") is None:
            rest, self._to_come = self._to_come, b""
            self._put([rest])

    def _step(self, command: str, *, cwd: str = "/", timeout: float | None = None) -> Done | None:
        """Have the main process run it, and extract before what is to come; None where it does not."""
        if self._main is None or not self._nothing_runs or self.owner != Owner(0, 0):
            return None
        rest, self._to_come = self._to_come, b""
        step = self._main.run_step(command, cwd=cwd, archive=rest, timeout=_STEP if timeout is None else timeout)
        if step is None or (rest and step.code != 0):
            self._to_come = rest
            return None
        return step

    @property
    def listens(self) -> bool:
        early = self._early is not None and self.owner == Owner(0, 0)
        return early and self._main is not None and self._main.listens

    def run_beside(self, program: Program, *, at_once: bool = True) -> ExecutedBeside | MainBeside:
        self._nothing_runs = False
        beside: ExecutedBeside | MainBeside | None = None
        if self._main is not None and self.listens and program == self._early and not self._beside:
            to_come, self._to_come = self._to_come, b""
            if not at_once or self._main.put(to_come):
                beside = self._main.beside
            if not at_once or beside is None:
                self._to_come = to_come
            self._beside_waits = not at_once
        if beside is None:
            self._put_the_rest()
            beside = ExecutedBeside(self._connection, self.name, program)
        self._beside.append(beside)
        return beside

    def end_processes(self) -> list[str]:
        return self._end_processes(spare=bool(self._beside))

    def _end_processes(self, *, spare: bool) -> list[str]:
        ended: dict[int, str] = {}
        running = [] if self._last_run_left_nothing() else self._processes(keeper.list_command)
        begun = time.monotonic()
        self._nothing_runs = not running
        while running:
            for process in running:
                if not process.exiting:
                    ended.setdefault(process.pid, process.command_line)
            spent = time.monotonic() - begun
            if spent > _KILL_WITHIN:
                names = ", ".join(process.command_line for process in running)
                raise EngineError(f"could not end what the command left running: {names}. Run again.")
            # One by one does not do for those that go on starting others.
            these = [process.pid for process in running] if spare and spent < _KILL_WITHIN / 2 else []
            running = self._processes(partial(keeper.end_command, these=these))
        return list(ended.values())

    def changed_files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        self._put_the_rest()
        return changed_files(self._connection, self.name)

    def lends(self, *, network: bool) -> DockerSandbox | None:
        # As new as long as nothing has run in it; it is looked at when it is committed, after everything that has.
        new = self._may_lend and self._network_is_new and network == self._network
        return (self.lender or self) if new else None

    def commit(self, reference: str, labels: Mapping[str, str]) -> StoredImage:
        looked = self._step(keeper.NETWORK) if self._may_lend else None
        self._network_is_new = looked is not None and keeper.network_is_new(looked.printed)
        self._put_the_rest()
        with _COMMIT_LOCK:
            for pause in (0.2, 0.4, 0.8):
                try:
                    return self._commit(reference, labels)
                except EngineError as error:  # noqa: PERF203 - it is what is tried again
                    # https://github.com/moby/moby/issues/44450
                    if not ("already exists" in str(error) and "view" in str(error)):
                        raise
                    time.sleep(pause)
            return self._commit(reference, labels)

    def remove(self) -> None:
        with held_back():
            self._end_reading()
            self._remove()

    def _end_reading(self) -> None:
        """Break off an archive that was not read to its end: until then the engine holds the container's lock, and
        neither gives another one nor removes it (https://github.com/moby/moby/blob/v20.10.24/daemon/archive.go).
        """
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _remove(self) -> None:
        deadline = time.monotonic() + 30
        try:
            with engine_errors(f"remove the container {self.name}"):
                while True:
                    try:
                        self._connection.remove_container(self.name)
                    except Refused as error:  # noqa: PERF203 - it is what is tried again
                        if error.status == 404:
                            return
                        # Its end removes it too (auto_remove), and the engine refuses to do both at once.
                        if "in progress" not in words_of(error) or time.monotonic() > deadline:
                            raise
                        time.sleep(0.02)
                    else:
                        return
        finally:
            if self._main is not None:
                self._main.close()
                self._main = None
            while self._beside:
                self._beside.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.remove()
        except EngineError:
            if error is None:
                raise

    @contextmanager
    def _removed_where_this_fails(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with suppress(EngineError):
                self.remove()
            raise

    def _text_of(self, path: str) -> str:
        """A text file of the image, "" where there is none. A link is followed, inside the image."""
        with engine_errors(f"give {path}"):
            try:
                response = self._connection.archive(self.name, path, timeout=QUICK)
                target = _link_target(response)
                if target and target != path:  # Podman's is the path itself where there is no link
                    response.close()
                    response = self._connection.archive(self.name, target, timeout=QUICK)
            except Refused as error:
                if error.status != 404:
                    raise
                return ""
            with tarfile.open(fileobj=io.BytesIO(response.whole())) as archive:
                member = archive.next()
                file = archive.extractfile(member) if member and member.isreg() else None
                return file.read().decode(errors="replace") if file else ""

    def _last_run_left_nothing(self) -> bool:
        """Whether that needs no other look."""
        last, self._last_run = self._last_run, None
        return last is not None and last.over and last.left_nothing(_KILL_WITHIN)

    def _processes(self, command: Callable[[str], list[str]]) -> list[keeper.Leftover]:
        token = keeper.new_token()
        return keeper.leftovers(output_of(self._connection, self.name, command(token), timeout=_KILL_WITHIN), token)

    def _end_at_any_price(self) -> None:
        try:
            self._end_processes(spare=False)
        except EngineError:
            try:
                self._connection.tell("POST", f"/containers/{self.name}/kill")
            except (Refused, Lost) as error:
                raise EngineError(f"the engine could not end the command: {words_of(error)}. Run again.") from error

    def _killed_for_memory(self) -> bool:
        shell = ["/bin/sh", "-c", keeper.OUT_OF_MEMORY_KILLS]
        deadline = time.monotonic() + _END_SEEN_WITHIN
        while True:
            try:
                counts = output_of(self._connection, self.name, shell, timeout=10).split()
                break
            except EngineError as error:
                if not self._runs():
                    raise EngineError(
                        "the sandbox ended while the command ran in it: the engine was stopped, or somebody removed the"
                        " container. Run again."
                    ) from error
                if time.monotonic() > deadline:
                    return False  # there may not even be memory for our command
                time.sleep(0.1)
        kills = max((int(count) for count in counts if count.isdigit()), default=0)
        new = kills > self._kills_seen
        self._kills_seen = kills
        return new

    def _runs(self) -> bool:
        try:
            return bool(self._connection.inspect_container(self.name)["State"]["Running"])
        except (Refused, Lost):
            return False

    def _commit(self, reference: str, labels: Mapping[str, str]) -> StoredImage:
        name = parse_reference(reference)
        try:
            with engine_errors("commit the container"):
                names = {"container": self.name, "repo": name.repository, "tag": name.tag}
                query = {**names, **self._connection.dialect.commit_query(self._base_config)}
                if not self._is_paused_for_commits:
                    query["pause"] = "0"
                body = committed_config(self._base_config)
                made = self._connection.ask("POST", "/commit", query=query, body=body, timeout=PATIENT)
                return self._connection.stored_image(made["Id"])
        except EngineError as error:
            if "max depth exceeded" in str(error):
                raise EngineError(
                    f"{error}. An image can have 125 layers: take a base image with fewer, for example one squashed by "
                    "`docker export` and `docker import`."
                ) from error
            if isinstance(error.__cause__, Lost) and (
                found := self._late_commit(name, {**labels, SANDBOX_LABEL: self.name})
            ):
                return found
            raise

    @property
    def _is_paused_for_commits(self) -> bool:
        """To pause what does nothing takes 25 ms; where answers are lost, it shows that the engine is still at it."""
        return not (self._nothing_runs and self._connection.is_by_socket)

    def _late_commit(self, name: Reference, labels: Mapping[str, str]) -> StoredImage | None:
        """The image of a commit that was not answered, once the engine has it."""
        begun = time.monotonic()
        deadline = begun + _COMMIT_LOOKUP
        while time.monotonic() < deadline:
            try:
                for found in self._connection.dialect.images_with(self._connection, labels):
                    # The engine tags in a step of its own, which may be lost.
                    tag(self._connection, found["Id"], name)
                    return self._connection.stored_image(found["Id"])
                paused = self._connection.inspect_container(self.name)["State"]["Paused"]
                if paused or (not self._is_paused_for_commits and time.monotonic() < begun + _UNPAUSED_LOOKUP):
                    deadline = time.monotonic() + _COMMIT_LOOKUP  # it is, or may be, still at it
            except (Refused, Lost):
                pass  # it may be coming back
            time.sleep(0.5)
        return None


def _link_target(archive: Response) -> str:
    """What the engine says beside an archive: where the path that was asked for points to, if it is a link.

    https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerArchiveInfo
    """
    said = archive.headers.get("X-Docker-Container-Path-Stat")
    return str(json.loads(base64.b64decode(said)).get("linkTarget") or "") if said else ""


def _guarded(pieces: Iterable[bytes], doing: str) -> Iterator[bytes]:
    with engine_errors(doing):
        yield from pieces
