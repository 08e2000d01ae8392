"""The engine behind a Docker Engine API: Docker, rootless Docker, Docker Desktop, Podman's socket, a remote context."""

from __future__ import annotations

from pytest_stagebuild.engines.docker.engine import DockerEngine

__all__ = ["DockerEngine"]
