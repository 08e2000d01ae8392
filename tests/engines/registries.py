"""Registries to pull from: Debian's ``docker-registry`` on loopback, which an engine trusts without TLS."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
import pytest
from worlds import tar_of

USER, PASSWORD = "someone", "secret"
_HTPASSWD = "someone:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n"
_PATIENCE = 60.0


class Registry:
    """A registry that runs; ``address`` is its host and port."""

    def __init__(self, folder: Path, *, password: bool = False) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            pytest.skip("no docker-registry on this machine: apt-get install docker-registry")
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self.auth = {"username": USER, "password": PASSWORD} if password else {}
        config = [
            "version: 0.1",
            "log: {accesslog: {disabled: true}}",
            f"storage: {{filesystem: {{rootdirectory: {folder / 'blobs'}}}}}",
            "http: {addr: '127.0.0.1:0'}",
        ]
        if password:
            (folder / "htpasswd").write_text(_HTPASSWD)
            config.append(f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}")
        (folder / "config.yml").write_text("\n".join(config) + "\n")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("REGISTRY_", "OTEL_"))}
        with self._log.open("wb") as log:
            arguments = [program, "serve", str(folder / "config.yml")]
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, env=environ)
        self.address = self._listening()

    def push(self, client: docker.APIClient, image: str, name: str) -> str:
        """Put an image that the engine of ``client`` holds into the registry, as ``name``; give its reference.

        What the reference means on that engine stays as it was.
        """
        reference = f"{self.address}/{name}"
        repository, _, tag = reference.rpartition(":")
        before = [one["Id"] for one in client.images(reference)]
        client.tag(image, repository, tag)
        try:
            for event in client.push(repository, tag, stream=True, decode=True, auth_config=self.auth):
                assert "error" not in event, event
        finally:
            client.remove_image(reference, noprune=True)
            for one in before:
                client.tag(one, repository, tag)
        return reference

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE)

    def _listening(self) -> str:
        deadline = time.monotonic() + _PATIENCE
        while not (found := re.search(r"listening on (127\.0\.0\.1:\d+)", self._log.read_text())):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        return found[1]


@contextmanager
def registry(folder: Path, *, password: bool = False) -> Iterator[Registry]:
    running = Registry(folder, password=password)
    try:
        yield running
    finally:
        running.stop()


@contextmanager
def image_of(client: docker.APIClient, name: str, archive: bytes) -> Iterator[str]:
    """An image with the file system in ``archive`` on the engine of ``client``; its id."""
    client.import_image_from_data(archive, repository=name, tag="made")
    image = str(client.inspect_image(f"{name}:made")["Id"])
    try:
        yield image
    finally:
        client.remove_image(image, force=True)


def noise(size: int) -> bytes:
    """The archive of a file system with ``size`` bytes that cannot be compressed."""
    return tar_of({"noise": os.urandom(size)})
