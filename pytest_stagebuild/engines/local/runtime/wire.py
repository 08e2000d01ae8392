"""How the processes speak: JSON in messages over a socket that keeps them apart, with descriptors beside them."""

from __future__ import annotations

import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST = 4096
_MOST_DESCRIPTORS = 16


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new connection."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Mapping[str, object], descriptors: Sequence[int] = ()) -> None:
    """Send a message of any length. Raises ``OSError`` where nobody is there any more."""
    # What a socket takes at once is limited, an environment is not: the text travels in a file without a name.
    file = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        text = json.dumps(message).encode()
        while text:
            text = text[os.write(file, text) :]
        socket.send_fds(sock, [b"."], [file, *descriptors])
    finally:
        os.close(file)


def receive(sock: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """The next message and its descriptors, which belong to the caller; None where the other end is closed."""
    mark, descriptors, _, _ = socket.recv_fds(sock, 1, _MOST_DESCRIPTORS)
    if not mark:
        return None
    file, *others = descriptors
    for one in others:
        os.set_inheritable(one, False)  # noqa: FBT003 - its name says it
    with open(file, "rb", buffering=_MOST) as text:
        text.seek(0)
        message: dict[str, object] = json.loads(text.read())
    return message, others
