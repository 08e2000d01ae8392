"""What the engines behind the Docker Engine API do differently, as Docker does it; see podman.py for the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pytest_stagebuild.engines.docker.images import committed_config, stored_image
from pytest_stagebuild.engines.protocol import StoredImage


class Dialect:
    """Docker's own. Another engine's overrides what differs there."""

    name: ClassVar[str] = "docker"
    command: ClassVar[str] = "docker"

    def identity(self, address: str, info: Mapping[str, Any]) -> str:
        """What tells its images from another engine's, by what it says of itself."""
        return f"docker:{info.get('ID')}"

    def stored_image(self, inspection: Mapping[str, Any]) -> StoredImage:
        """An image from the engine's inspection of it."""
        return stored_image(inspection)

    def commit_arguments(self, base: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a commit is to be told so that the image has the configuration ``base``."""
        return {"conf": committed_config(base)}
