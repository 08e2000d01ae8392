"""What the engines behind the Docker Engine API do differently, as Docker does it; see podman.py for the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import quote

from pytest_stagebuild.engines.docker.images import Reference, parse_reference, stored_image
from pytest_stagebuild.engines.docker.transport import Refused, forgiven
from pytest_stagebuild.engines.protocol import StoredImage

if TYPE_CHECKING:
    from pytest_stagebuild.engines.docker.connection import Connection

LAYERED: Final = "stagebuild-source"
"""The name, before the colon, of an image that was given a layer, until something is made of it or nothing will be."""

LAYERED_LABEL: Final = "pytest-stagebuild.layered"
"""Of an image that was made on one that was given a layer: that one's id."""


class Dialect:
    """Docker's own. Another engine's overrides what differs there."""

    name: ClassVar[str] = "docker"

    def identity(self, address: str, info: Mapping[str, Any]) -> str:
        """What tells its images from another engine's, by what it says of itself."""
        return f"docker:{info.get('ID')}"

    def stored_image(self, inspection: Mapping[str, Any]) -> StoredImage:
        """An image from the engine's inspection of it."""
        return stored_image(inspection)

    def commit_query(self, base: Mapping[str, Any]) -> Mapping[str, str | list[str]]:
        """What a commit is to be told for an image with the configuration ``base``, beside that in its body."""
        return {}

    def pull_advice(self, reference: str, words: str) -> str:
        """What to check where a pull failed with these words."""
        return "Check the name and that its registry answers"

    def images_with(self, connection: Connection, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """The engine's list of the images that carry all these labels."""
        filters = {"label": [f"{name}={value}" for name, value in labels.items()]} if labels else {}
        # Without "all", an untagged image that another was made from counts as an intermediate one.
        return connection.ask_for_list("/images/json", query={"all": "1", "filters": json.dumps(filters)})

    def remove_image(self, connection: Connection, inspection: Mapping[str, Any]) -> bool:
        """Remove an image with all its names; False, and nothing changed, where something else needs it."""
        id_, names = str(inspection["Id"]), [str(tag) for tag in inspection.get("RepoTags") or ()]
        removed = False
        try:
            for name in names[1:]:
                remove_name(connection, name)
            # The last name goes with the image, in one step that the engine refuses where something needs it.
            removed = self.remove_with_last_name(connection, id_)
        except Refused as error:
            if error.status != 409:
                raise
        finally:
            if not removed:
                for name in names[1:]:
                    tag(connection, id_, parse_reference(name))
        if removed:
            self._remove_layered(connection, inspection)
        return removed

    def _remove_layered(self, connection: Connection, inspection: Mapping[str, Any]) -> None:
        """Remove what an image was made of where that was made for it, and nobody else needs it or has named it."""
        parent = str(inspection.get("Parent") or "")
        if parent and ((inspection.get("Config") or {}).get("Labels") or {}).get(LAYERED_LABEL) == parent:
            with forgiven(404, 409):
                names = connection.inspect_image(parent)["RepoTags"] or [parent]
                if len(names) == 1 and names[0].startswith((parent, f"{LAYERED}:")):
                    remove_name(connection, names[0])

    def remove_with_last_name(self, connection: Connection, image: str) -> bool:
        """Remove an image that has one name or none; the engine refuses, by 409 or False, where something needs it."""
        remove_name(connection, image)
        return True

    def takes_layers(self, info: Mapping[str, Any]) -> bool:
        """Whether it takes an image without the layers that it has, by what it says of itself: where they are Docker's
        own, and not containerd's (https://docs.docker.com/engine/storage/containerd/).
        """
        return info.get("Driver") == "overlay2"

    def lends_networks(self, info: Mapping[str, Any]) -> bool:
        """Whether a container can have the network of another, by what it says of itself: where they are the kernel's.

        A runtime that brings its own (gVisor, Kata) has the other's alone, or none at all.
        """
        return info.get("DefaultRuntime") in ("runc", "crun")


def tag(connection: Connection, image: str, name: Reference) -> None:
    """Give an image one name more."""
    connection.tell("POST", f"/images/{image}/tag", query={"repo": name.repository, "tag": name.tag})


def remove_name(connection: Connection, image: str) -> None:
    """Take a name from an image, or remove it by its id; with its last name it goes, and no other with it."""
    connection.tell("DELETE", f"/images/{quote(image, safe='/:')}", query={"noprune": "1"})
