"""The connection to a Docker Engine API: where it is looked for, and how its failures are put into words."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_stagebuild.engines.docker.dialect import Dialect
from pytest_stagebuild.engines.docker.podman import Podman, is_podman
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.errors import EngineError, EngineUnavailable
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from docker import APIClient
    from requests import Response

QUICK: Final = 60
"""Seconds within which the engine must answer a question."""

PATIENT: Final = 3600
"""Seconds that a commit or an upload may take: about 7 ms/MB, and the SDK's own 60 s are too short for that
(https://github.com/docker/docker-py/issues/2266)."""

_DENIED: Final = "permission denied"


@dataclass(frozen=True)
class Connection:
    """An engine that answered and said its ``version``, with a client for questions and one for what takes long."""

    address: str
    quick: APIClient
    patient: APIClient
    version: Mapping[str, Any]
    dialect: Dialect
    configurations: dict[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    """Of images, by their ids."""

    @property
    def is_plain(self) -> bool:
        """Whether what is written to the socket of a response arrives as it is: not through TLS or ssh."""
        # The SDK's names for where it connects: https://github.com/docker/docker-py/blob/7.2.0/docker/api/client.py.
        return str(self.patient.base_url).startswith(("http://", "http+docker://localhost"))

    def stream(self, path: str, body: object) -> Response:
        """POST ``body`` and give the response with its body unread, which never times out.

        The SDK's ``exec_start(socket=True)`` loses output that arrives together with the response's headers, because it
        reads past the buffer that they were read through.
        """
        url = f"{self.patient.base_url}/v{self.patient.api_version}{path}"
        response = self.patient.post(url, json=body, stream=True, timeout=None)
        if response.status_code >= 400:
            raise EngineError(f"the engine refused: {_message_of(response)}")
        return response

    def inspect_image(self, image: str) -> Mapping[str, Any]:
        inspection: Mapping[str, Any] = self.quick.inspect_image(image)  # type: ignore[no-untyped-call]
        self.configurations[str(inspection["Id"])] = inspection.get("Config") or {}
        return inspection

    def configuration(self, image: str) -> Mapping[str, Any]:
        """That of an image by its id, which never changes, so that it is asked for once."""
        return self.configurations[image] if image in self.configurations else self.inspect_image(image)["Config"] or {}

    def stored_image(self, image: str) -> StoredImage:
        return self.dialect.stored_image(self.inspect_image(image))

    def close(self) -> None:
        self.quick.close()
        self.patient.close()


def open_connection() -> Connection:
    """Connect as the docker command would: DOCKER_HOST, else the current context, else the usual sockets.

    Raises :class:`EngineUnavailable`, which lists each address that was tried and how it failed.
    """
    from docker import APIClient
    from docker.constants import MINIMUM_DOCKER_API_VERSION
    from docker.errors import DockerException

    failures: list[str] = []
    for candidate in _candidates(failures):
        try:
            candidate.reach()
            # The SDK would ask for the version once more, to choose that of the API.
            asking = APIClient(timeout=QUICK, version=MINIMUM_DOCKER_API_VERSION, **candidate.arguments)
            with closing(asking):
                version: Mapping[str, Any] = asking.version(api_version=False)
            chosen = str(version["ApiVersion"])
            quick, patient = (
                APIClient(timeout=timeout, version=chosen, **candidate.arguments) for timeout in (QUICK, PATIENT)
            )
        except (DockerException, OSError, ValueError, LookupError) as error:  # noqa: PERF203 - a failed address is what is looped over
            failures.append(f"{candidate}: {_why(error)}")
        else:
            return Connection(str(candidate), quick, patient, version, Podman() if is_podman(version) else Dialect())
    tried = "\n".join(f"  {failure}" for failure in failures)
    advice = "Start one (systemctl start docker, or dockerd), or point DOCKER_HOST at one that runs."
    if _DENIED in tried:
        advice += (
            " Where permission was denied, add yourself to the socket's group (usermod -aG docker NAME), log in again."
        )
    raise EngineUnavailable(f"no Docker engine answers. Tried:\n{tried}\n{advice}")


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn whatever the SDK raises into an :class:`EngineError` that says what could not be done and why."""
    from docker.errors import DockerException
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (DockerException, RequestException, HTTPError) as error:
        raise EngineError(f"the engine could not {doing}: {words_of(error)}") from error


def words_of(error: BaseException) -> str:
    """The engine's own words for a failure, or what became of the connection to it."""
    from docker.errors import APIError

    if isinstance(error, APIError) and error.explanation:
        return str(error.explanation).strip()
    if isinstance(error, APIError):
        return str(error)
    return f"{_why(error)}. Check that the engine still runs, then run again."


def interrupter(response: Response) -> socket.socket | None:
    """The response's own socket, whose ``shutdown`` wakes a thread that is reading the response.

    None where the transport is not a socket (ssh).
    """
    try:
        return socket.socket(fileno=os.dup(response.raw.fileno()))
    except (OSError, ValueError, AttributeError, TypeError):
        return None


@dataclass(frozen=True)
class _Candidate:
    """An address to try: the arguments of its client, and where it was found."""

    address: str
    arguments: Mapping[str, Any]
    source: str = ""

    def reach(self) -> None:
        """Raise ``OSError`` where nobody listens at a Unix socket.

        The SDK's own attempt leaves its socket open when it fails, of which Python warns when it is collected:
        https://github.com/docker/docker-py/blob/7.2.0/docker/transport/unixconn.py, ``connect``.
        """
        scheme, _, path = self.address.partition("://")
        if scheme == "unix":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect("/" + path.lstrip("/"))

    def __str__(self) -> str:
        return f"{self.address} (from {self.source})" if self.source else self.address


def _candidates(failures: list[str]) -> Iterator[_Candidate]:
    from docker.constants import DEFAULT_UNIX_SOCKET
    from docker.errors import DockerException

    default = DEFAULT_UNIX_SOCKET.replace("http+unix://", "unix://")
    try:
        arguments, source = _configured()
    except (DockerException, OSError, ValueError) as error:
        failures.append(f"what the docker command is configured for: {error}")
        return
    address = str(arguments.get("base_url") or default).replace("http+unix://", "unix://")
    if address not in (default, default.replace("unix:///", "unix://")):
        yield _Candidate(address, arguments, source)
        return
    yield _Candidate(address, arguments)
    # Rootless Docker and Docker Desktop where nobody has made their socket the context.
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for folder in ([Path(runtime)] if runtime else []) + [Path.home() / ".docker/run"]:
        url = f"unix://{folder / 'docker.sock'}"
        yield _Candidate(url, {"base_url": url})


def _configured() -> tuple[dict[str, Any], str]:
    """The arguments that the docker command's configuration makes for a client, and which part of it does."""
    from docker.context import ContextAPI
    from docker.errors import ContextNotFound
    from docker.utils import kwargs_from_env

    from_environment: dict[str, Any] = {**kwargs_from_env()}
    if "base_url" in from_environment:
        return from_environment, "DOCKER_HOST"
    if (name := os.environ.get("DOCKER_CONTEXT")) and ContextAPI.get_context(name) is None:
        raise ContextNotFound(name)
    return {**ContextAPI.kwargs_from_context(), **from_environment}, "the current docker context"


def _why(error: BaseException) -> str:
    """How a connection failed, in few words."""
    from requests.exceptions import JSONDecodeError, Timeout
    from urllib3.exceptions import ProtocolError

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
            case JSONDecodeError():
                return "what answers there is no Docker engine"
            case Timeout() | TimeoutError():
                return "no answer in time"
            case ConnectionResetError() | BrokenPipeError() | ProtocolError() if cause is causes[-1]:
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


def _message_of(response: Response) -> str:
    try:
        return str(response.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"
