"""A container engine of the tests' own, however it is started: its log and its clients."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import docker

from pytest_stagebuild.engines.docker import DockerEngine


class OwnService:
    """What answers at ``address`` and keeps all it has in ``folder``; ``patience`` is its clients', in seconds."""

    folder: Path
    address: str
    patience: float

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    @contextmanager
    def client(self) -> Iterator[docker.APIClient]:
        client = docker.APIClient(base_url=self.address, version="auto", timeout=self.patience)
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def connected(self) -> Iterator[DockerEngine]:
        with mock.patch.dict(os.environ, {"DOCKER_HOST": self.address}):
            engine = DockerEngine.connect()
        try:
            yield engine
        finally:
            engine.close()
