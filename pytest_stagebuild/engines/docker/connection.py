"""The connection to a Docker Engine API: where it is looked for, and how its failures are put into words."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from functools import cached_property
from http.client import BadStatusLine, HTTPException, RemoteDisconnected
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlencode

from pytest_stagebuild.engines.docker.dialect import Dialect
from pytest_stagebuild.engines.docker.podman import Podman, is_podman
from pytest_stagebuild.engines.docker.transport import Body, BySdk, Lost, Refused, Response, Transport, UnixSocket
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.errors import EngineError, EngineUnavailable
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from docker import APIClient

Query = Mapping[str, str | list[str]]

QUICK: Final = 60
"""Seconds within which the engine must answer a question."""

PATIENT: Final = 3600
"""Seconds that a commit or an upload may take: about 7 ms/MB."""

_OLDEST: Final = (1, 35)
"""The version of the interface, that of Docker 17.12, from which on a command can be given its folder."""

_USUAL_SOCKET: Final = "unix:///var/run/docker.sock"

_DENIED: Final = "permission denied"
_NO_ENGINE: Final = "what answers there is no Docker engine"

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Connection:
    """An engine that answered, with the version of its interface. ``arguments`` are those of a client of the SDK's.

    Its methods raise :class:`~pytest_stagebuild.engines.docker.transport.Refused` where the engine refuses, and
    :class:`~pytest_stagebuild.engines.docker.transport.Lost` where its answer does not come.
    """

    address: str
    transport: Transport
    interface: str
    dialect: Dialect
    arguments: Mapping[str, Any] = field(compare=False)
    configurations: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    """Of images, by their ids."""

    @property
    def is_plain(self) -> bool:
        """Whether what is written to the socket of a response arrives as it is: not through TLS or ssh."""
        return self.transport.is_plain

    @property
    def is_by_socket(self) -> bool:
        """Whether the engine is asked by a Unix socket: as a rule its own, so that answers are lost with it alone."""
        return isinstance(self.transport, UnixSocket)

    @cached_property
    def client(self) -> APIClient:
        """The SDK's, for what it knows of registries and their credentials."""
        from docker import APIClient

        return APIClient(timeout=PATIENT, version=self.interface, **self.arguments)

    def ask(
        self,
        method: str,
        path: str,
        *,
        query: Query = _NOTHING,
        body: Mapping[str, object] | None = None,
        timeout: float = QUICK,
        version: str | None = None,
    ) -> Mapping[str, Any]:
        """The object that the engine answers with; ``version`` is that of another interface than its own."""
        response = self.open(method, path, query=query, body=_json(body), timeout=timeout, version=version)
        return _object_in(response)

    def ask_for_list(self, path: str, *, query: Query = _NOTHING, timeout: float = QUICK) -> list[Mapping[str, Any]]:
        """The list that the engine answers with."""
        found: list[Mapping[str, Any]] = _json_in(self.open("GET", path, query=query, timeout=timeout)) or []
        return found

    def tell(
        self, method: str, path: str, *, query: Query = _NOTHING, body: Mapping[str, object] | None = None
    ) -> None:
        """Have the engine do something, whatever it says of it where it does it."""
        self.open(method, path, query=query, body=_json(body), timeout=QUICK).whole()

    def stream(self, path: str, body: Mapping[str, object] | None = None) -> Response:
        """POST ``body`` and give the response with its body unread, which never times out.

        The SDK's ``exec_start(socket=True)`` loses output that arrives together with the response's headers, because it
        reads past the buffer that they were read through.
        """
        return self.open("POST", path, body=_json(body), timeout=None)

    def open(
        self,
        method: str,
        path: str,
        *,
        query: Query = _NOTHING,
        body: Body = None,
        timeout: float | None = PATIENT,
        version: str | None = None,
    ) -> Response:
        """The response, with its body unread; ``timeout`` is how long, in seconds, any part of it may take to come."""
        target = f"/v{version or self.interface}{path}"
        if query:
            target += f"?{urlencode(query, doseq=True)}"
        return _accepted(self.transport, method, target, body=body, timeout=timeout)

    def inspect_image(self, image: str) -> Mapping[str, Any]:
        inspection = self.ask("GET", f"/images/{quote(image, safe='/:')}/json")
        self.configurations[str(inspection["Id"])] = inspection.get("Config") or {}
        return inspection

    def configuration(self, image: str) -> Mapping[str, Any]:
        """That of an image by its id, which never changes, so that it is asked for once."""
        return self.configurations[image] if image in self.configurations else self.inspect_image(image)["Config"] or {}

    def stored_image(self, image: str) -> StoredImage:
        return self.dialect.stored_image(self.inspect_image(image))

    def inspect_container(self, container: str) -> Mapping[str, Any]:
        return self.ask("GET", f"/containers/{container}/json")

    def archive(self, container: str, path: str, *, timeout: float = PATIENT) -> Response:
        """A tar of what is at the path in a container."""
        return self.open("GET", f"/containers/{container}/archive", query={"path": path}, timeout=timeout)

    def remove_container(self, container: str) -> None:
        """With its volumes, whether it runs or not."""
        self.tell("DELETE", f"/containers/{container}", query={"v": "1", "force": "1"})

    def close(self) -> None:
        self.transport.close()
        if "client" in self.__dict__:
            self.client.close()


def open_connection() -> Connection:
    """Connect as the docker command would: DOCKER_HOST, else the current context, else the usual sockets.

    Raises :class:`EngineUnavailable`, which lists each address that was tried and how it failed.
    """
    failures: list[str] = []
    for candidate in _candidates(failures):
        try:
            return candidate.connected()
        except (Refused, Lost, OSError, ValueError, LookupError) as error:  # noqa: PERF203 - a failed address is what is looped over
            failures.append(f"{candidate}: {_why(error)}")
    tried = "\n".join(f"  {failure}" for failure in failures)
    advice = "Start one (systemctl start docker, or dockerd), or point DOCKER_HOST at one that runs."
    if _DENIED in tried:
        advice += (
            " Where permission was denied, add yourself to the socket's group (usermod -aG docker NAME), log in again."
        )
    raise EngineUnavailable(f"no Docker engine answers. Tried:\n{tried}\n{advice}")


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn how a request can fail into an :class:`EngineError` that says what could not be done and why."""
    try:
        yield
    except (Refused, Lost) as error:
        raise EngineError(f"the engine could not {doing}: {words_of(error)}") from error


def words_of(error: BaseException) -> str:
    """The engine's own words for a failure, or what became of the connection to it."""
    if isinstance(error, Refused):
        return str(error)
    return f"{_why(error)}. Check that the engine still runs, then run again."


@dataclass(frozen=True)
class _Candidate:
    """An address to try: the arguments of the SDK's client for it, and where it was found."""

    address: str
    arguments: Mapping[str, Any]
    source: str = ""

    def connected(self) -> Connection:
        transport = self._transport()
        try:
            response = _accepted(transport, "GET", "/_ping")  # Docker runs other programs to answer /version
            response.whole()
            interface = _checked(response.headers.get("Api-Version"))
            dialect = Podman() if is_podman(response.headers) else Dialect()
            return Connection(str(self), transport, interface, dialect, self.arguments)
        except BaseException:
            transport.close()
            raise

    def _transport(self) -> Transport:
        scheme, _, path = self.address.partition("://")
        if scheme == "unix":
            return UnixSocket("/" + path.lstrip("/"), _headers())
        from docker import APIClient
        from docker.constants import MINIMUM_DOCKER_API_VERSION
        from docker.errors import DockerException

        try:
            # Else the SDK would ask for the version, to choose that of the interface.
            client = APIClient(timeout=PATIENT, version=MINIMUM_DOCKER_API_VERSION, **self.arguments)
            return BySdk(client, _headers())
        except DockerException as error:
            raise ValueError(str(error)) from error

    def __str__(self) -> str:
        return f"{self.address} (from {self.source})" if self.source else self.address


def _candidates(failures: list[str]) -> Iterator[_Candidate]:
    try:
        arguments, source = _configured()
    except (OSError, ValueError) as error:
        failures.append(f"what the docker command is configured for: {error}")
        return
    address = str(arguments.get("base_url") or _USUAL_SOCKET).replace("http+unix://", "unix://")
    if address not in (_USUAL_SOCKET, _USUAL_SOCKET.replace("unix:///", "unix://")):
        yield _Candidate(address, arguments, source)
        return
    yield _Candidate(address, arguments)
    # Rootless Docker and Docker Desktop where nobody has made their socket the context.
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for folder in filter(None, (runtime, _home(".docker/run"))):
        url = f"unix://{folder}/docker.sock"
        yield _Candidate(url, {"base_url": url})


def _configured() -> tuple[dict[str, Any], str]:
    """The arguments that the docker command's configuration makes for a client, and which part of it does."""
    host, context = os.environ.get("DOCKER_HOST"), os.environ.get("DOCKER_CONTEXT")
    has_tls = any(os.environ.get(name) for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"))
    if not has_tls and (host or (context or _current_context()) == "default"):
        return {"base_url": host} if host else {}, "DOCKER_HOST"

    from docker.context import ContextAPI
    from docker.errors import DockerException
    from docker.utils import kwargs_from_env

    try:
        from_environment: dict[str, Any] = {**kwargs_from_env()}
        if "base_url" in from_environment:
            return from_environment, "DOCKER_HOST"
        if context and ContextAPI.get_context(context) is None:
            raise ValueError(f"context '{context}' not found")
        return {**ContextAPI.kwargs_from_context(), **from_environment}, "the current docker context"
    except DockerException as error:
        raise ValueError(str(error)) from error


def _current_context() -> str:
    """What ``docker context use`` has chosen."""
    return str(_docker_configuration().get("currentContext") or "default")


def _headers() -> Mapping[str, str]:
    """What the docker command sends along with each request: https://docs.docker.com/reference/cli/docker/."""
    configured = _docker_configuration().get("HttpHeaders")
    headers = configured if isinstance(configured, dict) else {}
    return {"User-Agent": "pytest-stagebuild", **{str(name): str(value) for name, value in headers.items()}}


def _home(path: str) -> str:
    return os.path.expanduser(f"~/{path}")  # noqa: PTH111 - Path's raises where there is none


def _docker_configuration() -> Mapping[str, Any]:
    """The docker command's own, empty where there is none; found as the SDK finds it (docker/utils/config.py)."""
    for folder in filter(None, (os.environ.get("DOCKER_CONFIG"), _home(".docker"))):
        try:
            found = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            break
        return found if isinstance(found, dict) else {}
    return {}


def _accepted(
    transport: Transport, method: str, target: str, *, body: Body = None, timeout: float | None = QUICK
) -> Response:
    """The response of an engine that does what it is asked for."""
    headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
    response = transport.request(method, target, body=body, headers=headers, timeout=timeout)
    if response.status < 400:
        return response
    said = response.whole()
    try:
        words = str(json.loads(said)["message"])
    except (ValueError, KeyError, TypeError):
        words = said.decode(errors="replace")
    raise Refused(response.status, words.strip() or f"HTTP status {response.status}")


def _checked(version: str | None) -> str:
    """The version of the interface. Raises ``ValueError`` where there is none, or it is too old."""
    if version is None:
        raise ValueError(_NO_ENGINE)
    if tuple(map(int, version.split("."))) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise ValueError(f"its interface has the version {version}, and {oldest} is needed: update the engine")
    return version


def _json(body: Mapping[str, object] | None) -> bytes | None:
    return None if body is None else json.dumps(body).encode()


def _json_in(response: Response) -> Any:  # noqa: ANN401 - whoever asks knows what it is
    said = response.whole()
    try:
        return json.loads(said)
    except ValueError as error:
        raise Lost(str(error)) from error


def _object_in(response: Response) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _json_in(response)
    return found


def _why(error: BaseException) -> str:
    """How a connection failed, in few words."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case FileNotFoundError():
                return "absent (no such socket)"
            case ConnectionRefusedError():
                return "refused (nothing listens there)"
            case PermissionError():
                return _DENIED
            case socket.gaierror():
                return f"unknown host ({cause.strerror})"
            case json.JSONDecodeError() | BadStatusLine() if not isinstance(cause, RemoteDisconnected):
                return _NO_ENGINE
            case TimeoutError():
                return "no answer in time"
            case ConnectionResetError() | BrokenPipeError() | HTTPException() if cause is causes[-1]:
                return f"the connection broke off ({cause})"
    return str(causes[-1]) or type(causes[-1]).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from: as its cause, its context or, in requests' way, its argument."""
    seen: set[int] = set()
    waiting: list[object] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [*one.args, getattr(one, "reason", None), one.__cause__, one.__context__]
