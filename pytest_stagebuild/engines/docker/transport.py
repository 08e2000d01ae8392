"""Requests to a Docker Engine API, and how they fail: over a Unix socket by Python's own client, else by the SDK's.

An engine is at a Unix socket nearly always, for which the SDK is not needed: to import it takes as long as a tenth of
an unchanged run. TLS, ssh, and what a docker context says of them are its own.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from docker import APIClient

Body = bytes | Iterable[bytes] | None
"""Of a request: pieces are sent as they come."""

_PIECE: Final = 1 << 20


class Refused(Exception):
    """The engine answered that it will not; with the HTTP ``status``, and its own words."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@contextmanager
def forgiven(*statuses: int) -> Iterator[None]:
    """Go on after the block where the engine refused with one of these."""
    try:
        yield
    except Refused as error:
        if error.status not in statuses:
            raise


class Lost(Exception):
    """The engine did not answer, or not to the end; the cause says why."""


class Headers(Protocol):
    """Those of an answer, by their names in any case."""

    def get(self, name: str, /) -> str | None: ...


class Incoming(Protocol):
    """What is still to come of an answer."""

    def read(self, size: int = ..., /) -> bytes:
        """As many bytes as asked for unless it ends, or all of them."""
        ...

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Response:
    """An answer whose body is still to be read; ``lost`` are the errors that this may end in."""

    def __init__(
        self,
        status: int,
        headers: Headers,
        incoming: Incoming,
        *,
        lost: tuple[type[BaseException], ...],
        close: Callable[[], object],
    ) -> None:
        self.status = status
        self.headers = headers
        self._incoming = incoming
        self._lost = lost
        self._close = close

    def read(self, size: int) -> bytes:
        """As many bytes as asked for, unless it ends. Raises :class:`Lost`."""
        try:
            return self._incoming.read(size)
        except self._lost as error:
            raise Lost(str(error)) from error

    def whole(self) -> bytes:
        """All that is left; it is closed then. Raises :class:`Lost`."""
        return b"".join(self.pieces())

    def pieces(self) -> Generator[bytes, None, None]:
        """What is left, piece by piece; it is closed then. Raises :class:`Lost`."""
        try:
            while piece := self.read(_PIECE):
                yield piece
        finally:
            self.close()

    def interrupter(self) -> socket.socket | None:
        """The response's own socket, whose ``shutdown`` wakes a thread that is reading the response.

        None where the transport is not a socket (ssh).
        """
        try:
            return socket.socket(fileno=os.dup(self._incoming.fileno()))
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def close(self) -> None:
        self._incoming.close()
        self._close()


class Transport(Protocol):
    """A way to an engine."""

    @property
    def is_plain(self) -> bool:
        """Whether what is written to the socket of a response arrives as it is: not through TLS or ssh."""
        ...

    def request(
        self, method: str, target: str, *, body: Body, headers: Mapping[str, str], timeout: float | None
    ) -> Response:
        """The answer, whatever it is. Raises :class:`Lost` where there is none within ``timeout`` seconds."""
        ...

    def close(self) -> None: ...


class UnixSocket:
    """A connection of its own for each request: nothing is left of the one before, and it costs next to nothing."""

    is_plain: Final = True

    def __init__(self, path: str, headers: Mapping[str, str]) -> None:
        self._path, self._headers = path, headers

    def request(
        self, method: str, target: str, *, body: Body, headers: Mapping[str, str], timeout: float | None
    ) -> Response:
        connection = _UnixConnection(self._path, timeout)
        errors = (OSError, http.client.HTTPException)
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # an engine that takes no more says why, and closes
                connection.request(method, target, body, {**self._headers, **headers})
            response = connection.getresponse()
        except BaseException as error:
            connection.close()
            if isinstance(error, errors):
                raise Lost(str(error)) from error
            raise
        return Response(response.status, response.headers, response, lost=errors, close=connection.close)

    def close(self) -> None:
        """There is nothing to close."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path, self._seconds = path, timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self._seconds)
        self.sock.connect(self._path)


class BySdk:
    """Through a client of the SDK's."""

    def __init__(self, client: APIClient, headers: Mapping[str, str]) -> None:
        self._client, self._headers = client, headers

    @property
    def is_plain(self) -> bool:
        # The SDK's names for where it connects: https://github.com/docker/docker-py/blob/7.2.0/docker/api/client.py.
        return str(self._client.base_url).startswith(("http://", "http+docker://localhost"))

    def request(
        self, method: str, target: str, *, body: Body, headers: Mapping[str, str], timeout: float | None
    ) -> Response:
        from urllib3.exceptions import HTTPError

        with sdk_errors():
            response = self._client.request(
                method,
                f"{self._client.base_url}{target}",
                data=body,
                headers={"Accept-Encoding": "identity", **self._headers, **headers},
                stream=True,
                timeout=timeout,
            )
        lost = (HTTPError, OSError)
        return Response(response.status_code, response.headers, response.raw, lost=lost, close=response.close)

    def close(self) -> None:
        self._client.close()


@contextmanager
def sdk_errors() -> Iterator[None]:
    """Turn what the SDK raises into :class:`Refused` and :class:`Lost`."""
    from docker.errors import APIError, DockerException
    from requests import RequestException, Timeout
    from urllib3.exceptions import HTTPError

    try:
        yield
    except APIError as error:
        raise Refused(error.status_code or 0, (error.explanation or str(error)).strip()) from error
    except Timeout as error:
        raise Lost(str(error)) from TimeoutError()
    except (DockerException, RequestException, HTTPError) as error:
        raise Lost(str(error)) from error
