"""Files handed to the engine as a layer of an image, which it writes once.

What is put into a container is written there, written again as a layer by the commit, and removed from the container
file by file. The engine takes an image of which it has the lower layers without being sent those:
https://github.com/moby/moby/blob/v20.10.24/image/tarexport/load.go, ``Load``.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from typing import IO, Any, Final

from pytest_stagebuild.engines.docker import keeper
from pytest_stagebuild.engines.docker.connection import Connection, engine_errors
from pytest_stagebuild.engines.docker.dialect import LAYERED, remove_name
from pytest_stagebuild.engines.docker.transport import Lost, Refused, forgiven
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.errors import EngineError
from pytest_stagebuild.tar import members_of

_MADE_WITHIN: Final = 3.0
"""Seconds to wait for an image that nobody wants any more: where it comes later, the next run removes it."""

_PIECE: Final = 1 << 20


def add_layer(
    connection: Connection, image: StoredImage, archive: Iterable[bytes], labels: Mapping[str, str], *, most: int
) -> StoredImage:
    """An image like ``image`` with a layer more, and with these labels too; to be removed by :func:`remove_layered`.

    Raises :class:`EngineError` where the engine does not make it, and for an archive of more than ``most`` bytes.
    """
    name = f"{LAYERED}:{keeper.new_token()[:16]}"
    sent = threading.Event()
    try:
        with _held() as layer, engine_errors("take the files as a layer"):
            layers = (*image.layers, _write(layer, archive, most))
            base = connection.inspect_image(image.id)
            saved = _saved(name, _configuration(base, layers, labels), layer, sent)
            _check(connection.open("POST", "/images/load", query={"quiet": "1"}, body=saved).whole())
            return _made(connection, name, layers)
    except BaseException as error:
        if sent.is_set() and not isinstance(error, EngineError):
            _wait_for(connection, name)  # the engine goes on with it, whoever waits for that
        with suppress(EngineError):
            remove_layered(connection, name)
        raise


def remove_layered(connection: Connection, image: str) -> None:
    """Have no name for it any more, by its id or its name: it goes, if nothing was made of it, else with that."""
    with engine_errors(f"remove the image {image}"), forgiven(404, 409):
        for name in connection.inspect_image(image)["RepoTags"] or ():
            if str(name).startswith(f"{LAYERED}:"):
                remove_name(connection, str(name))


def _held() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError as error:
        raise EngineError(f"the files cannot be held: {error.strerror}") from error


def _write(layer: IO[bytes], archive: Iterable[bytes], most: int) -> str:
    digest = hashlib.sha256()
    try:
        for piece in archive:
            digest.update(piece)
            layer.write(piece)
            if layer.tell() > most:
                raise EngineError(f"the files are more than {most} bytes")
    except OSError as error:
        raise EngineError(f"the files cannot be held: {error.strerror}") from error
    return f"sha256:{digest.hexdigest()}"


def _configuration(base: Mapping[str, Any], layers: Sequence[str], labels: Mapping[str, str]) -> dict[str, Any]:
    """https://github.com/opencontainers/image-spec/blob/v1.0.2/config.md, with a history entry for each layer."""
    config = dict(base.get("Config") or {})
    config["Labels"] = {**(config.get("Labels") or {}), **labels}
    lower = [{"created": base.get("Created"), "comment": "of the base image"} for _ in layers[1:]]
    now = datetime.now(timezone.utc).isoformat()
    platform = {"architecture": base["Architecture"], "os": base["Os"], "variant": base.get("Variant")}
    return {
        **{name: value for name, value in platform.items() if value},
        "created": now,
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [*lower, {"created": now, "comment": "the source, by pytest-stagebuild"}],
    }


def _saved(name: str, config: Mapping[str, Any], layer: IO[bytes], sent: threading.Event) -> Iterator[bytes]:
    """What ``docker save`` would write, without the lower layers; ``sent`` is set when all of it was taken."""
    files = [f"{number}.tar" for number, _ in enumerate(config["history"])]
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": files}]
    values = {"/config.json": config, "/manifest.json": manifest}
    yield members_of({path: json.dumps(value).encode() for path, value in values.items()})
    header = tarfile.TarInfo(files[-1])
    header.size = layer.seek(0, io.SEEK_END)
    layer.seek(0)
    yield header.tobuf(tarfile.GNU_FORMAT)
    while piece := layer.read(_PIECE):
        yield piece
    yield bytes(-header.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
    sent.set()


def _wait_for(connection: Connection, name: str) -> None:
    deadline = time.monotonic() + _MADE_WITHIN
    with suppress(Lost):
        while time.monotonic() < deadline:
            with suppress(Refused):
                connection.inspect_image(name)
                return
            time.sleep(0.05)


def _check(said: bytes) -> None:
    """Raise :class:`EngineError` where one of the engine's messages is of an error: it has said by then that all is
    well.
    """
    for line in said.splitlines():
        with suppress(ValueError):
            message = json.loads(line)
            if isinstance(message, dict) and "error" in message:
                raise EngineError(f"the engine could not take the files as a layer: {message['error']}")


def _made(connection: Connection, name: str, layers: tuple[str, ...]) -> StoredImage:
    made = connection.stored_image(name)
    if made.layers != layers:
        raise EngineError(f"the engine has made other layers of the files than it was given: {made.layers}")
    return made
