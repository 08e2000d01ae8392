"""Proxies that break: between us and an engine, or between an engine and a registry."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable


class Proxy:
    """Passes bytes on until it is told to :meth:`die`, or until ``cut_when(sent, received)`` says so of a connection.

    ``sent`` is what the client has sent on that connection so far, ``received`` the number of bytes it got. A
    connection that is cut this way has passed on what was sent; ``cuts`` counts them.
    """

    def __init__(
        self,
        listener: socket.socket,
        target: Callable[[], socket.socket],
        cut_when: Callable[[bytes, int], bool] = lambda sent, received: False,
    ) -> None:
        self.cut_when = cut_when
        self.cuts = 0
        self._listener, self._target = listener, target
        self._open: list[socket.socket] = []
        self._dead = False
        threading.Thread(target=self._accept, daemon=True).start()

    def die(self) -> None:
        self._dead = True
        for one in [self._listener, *self._open]:
            _end(one)

    def _accept(self) -> None:
        while not self._dead:
            try:
                client, _ = self._listener.accept()
                server = self._target()
            except OSError:
                return
            self._open += [client, server]
            sent, received = bytearray(), [0]
            for source, sink in ((client, server), (server, client)):
                arguments = (source, sink, sent, received, source is client, (client, server))
                threading.Thread(target=self._pump, args=arguments, daemon=True).start()

    def _pump(
        self,
        source: socket.socket,
        sink: socket.socket,
        sent: bytearray,
        received: list[int],
        upwards: bool,
        both: tuple[socket.socket, socket.socket],
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if upwards:
                    sink.sendall(piece)
                    sent += piece[: 100_000 - len(sent)]
                else:
                    received[0] += len(piece)
                if self.cut_when(bytes(sent), received[0]):
                    self.cuts += 1
                    _end(both[0])
                    return
                if not upwards:
                    sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
