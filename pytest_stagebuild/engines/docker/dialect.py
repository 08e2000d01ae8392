"""What the engines behind the Docker Engine API do differently, as Docker does it; see podman.py for the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_stagebuild.engines.docker.images import committed_config, parse_reference, stored_image
from pytest_stagebuild.engines.protocol import StoredImage

if TYPE_CHECKING:
    from docker import APIClient


class Dialect:
    """Docker's own. Another engine's overrides what differs there."""

    name: ClassVar[str] = "docker"

    def identity(self, address: str, info: Mapping[str, Any]) -> str:
        """What tells its images from another engine's, by what it says of itself."""
        return f"docker:{info.get('ID')}"

    def stored_image(self, inspection: Mapping[str, Any]) -> StoredImage:
        """An image from the engine's inspection of it."""
        return stored_image(inspection)

    def commit_arguments(self, base: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a commit is to be told so that the image has the configuration ``base``."""
        return {"conf": committed_config(base)}

    def pull_advice(self, reference: str, words: str) -> str:
        """What to check where a pull failed with these words."""
        return "Check the name and that its registry answers"

    def images_with(self, api: APIClient, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """The engine's list of the images that carry all these labels."""
        filters = {"label": [f"{name}={value}" for name, value in labels.items()]}
        # all=True: an untagged image that another was made from counts as an intermediate one.
        return list(api.images(all=True, filters=filters))

    def remove_image(self, api: APIClient, inspection: Mapping[str, Any]) -> bool:
        """Remove an image with all its names; False, and nothing changed, where something else needs it."""
        from docker.errors import APIError

        id_, names = str(inspection["Id"]), [str(tag) for tag in inspection.get("RepoTags") or ()]
        removed = False
        try:
            for name in names[1:]:
                api.remove_image(name, noprune=True)
            # The last name goes with the image, in one step that the engine refuses where something needs it.
            removed = self.remove_with_last_name(api, id_)
        except APIError as error:
            if error.status_code != 409:
                raise
        finally:
            if not removed:
                for name in names[1:]:
                    reference = parse_reference(name)
                    api.tag(id_, reference.repository, reference.tag)
        return removed

    def remove_with_last_name(self, api: APIClient, image: str) -> bool:
        """Remove an image that has one name or none; the engine refuses, by 409 or False, where something needs it."""
        api.remove_image(image, noprune=True)
        return True
