"""What Podman does differently behind the Docker Engine API, each with its reason.

The sources are those of Podman 4.3.1, in https://github.com/containers/podman/tree/v4.3.1, where nothing else is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pytest_stagebuild.engines.docker.dialect import Dialect
from pytest_stagebuild.engines.docker.images import stored_image
from pytest_stagebuild.engines.docker.transport import Headers, Refused
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.errors import EngineError

if TYPE_CHECKING:
    from pytest_stagebuild.engines.docker.connection import Connection

_ADDED_ENVIRONMENT: Final = frozenset(
    ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "container=podman")
)
"""What every container has, whatever its image says (pkg/env/env.go, ``DefaultEnvVariables``, and the ``env`` of
containers.conf as it comes)."""


def is_podman(headers: Headers) -> bool:
    """Whether these are the headers of Podman's answer to a ping (pkg/api/handlers/compat/ping.go)."""
    return headers.get("Libpod-Api-Version") is not None


class Podman(Dialect):
    """Podman's socket, ``podman system service``."""

    name: ClassVar[str] = "podman"

    def identity(self, address: str, info: Mapping[str, Any]) -> str:
        """The place of its images and the machine: its ``ID`` is another one at each call
        (pkg/api/handlers/compat/info.go: ``uuid.New()``).
        """
        return f"podman:{info.get('DockerRootDir')}:{_machine_of(address, info)}"

    def stored_image(self, inspection: Mapping[str, Any]) -> StoredImage:
        """Without what each container gets anyway, which a commit writes into the image, in any order
        (libpod/container_commit.go, from ``// Env``); so an image and what is made from it agree where Docker's do.
        """
        image = stored_image(inspection)
        environment = tuple(sorted(set(image.config.env) - _ADDED_ENVIRONMENT))
        folder = "" if image.config.working_dir == "/" else image.config.working_dir
        return replace(image, config=replace(image.config, env=environment, working_dir=folder))

    def commit_query(self, base: Mapping[str, Any]) -> Mapping[str, str | list[str]]:
        """The body of a commit counts for nothing before Podman 5, and the instructions in ``changes`` do
        (pkg/api/handlers/compat/images.go, ``CommitContainer``). What they do not name stays the base image's.

        Podman parts them at newlines, so they hold nothing but ASCII JSON, in which there is none.

        Not paused, which rootless Podman cannot do with cgroups of version 1 (libpod/container_internal.go, ``pause``):
        what could write has been ended.
        """
        return {
            "pause": "false",
            "changes": [f"{name.upper()} {json.dumps(base.get(name) or [])}" for name in ("Entrypoint", "Cmd")],
        }

    def pull_advice(self, reference: str, words: str) -> str:
        """With ``compat_api_enforce_docker_hub = false`` it looks where registries.conf says, which may be nowhere
        (https://www.redhat.com/sysadmin/container-image-short-names).
        """
        if "short-name" in words:
            return f"Write the name with its registry, such as docker.io/library/{reference}"
        return super().pull_advice(reference, words)

    def images_with(self, connection: Connection, labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
        """It makes one condition of several labels, which no image meets
        (containers/common v0.50.1, pkg/filters/filters.go, ``FiltersFromRequest``).
        """
        found = super().images_with(connection, dict(list(labels.items())[:1]))
        return [image for image in found if labels.items() <= (image.get("Labels") or {}).items()]

    def remove_image(self, connection: Connection, inspection: Mapping[str, Any]) -> bool:
        """It forgets an image that others stand on, as long as no container does
        (containers/common v0.50.1, libimage/image.go, ``removeRecursive``).
        """
        parent = str(inspection["Id"]).removeprefix("sha256:")
        images = super().images_with(connection, {})
        if any(str(image.get("ParentId")).removeprefix("sha256:") == parent for image in images):
            return False
        return super().remove_image(connection, inspection)

    def takes_layers(self, info: Mapping[str, Any]) -> bool:
        """It wants all of them (containers/image v5.23.1, docker/internal/tarfile/src.go, ``prepareLayerData``)."""
        return False

    def lends_networks(self, info: Mapping[str, Any]) -> bool:
        """It refuses to remove the other before those that share its network (libpod/runtime_ctr.go,
        ``removeContainer``), and takes as long to start them.
        """
        return False

    def remove_with_last_name(self, connection: Connection, image: str) -> bool:
        """With an image it removes the untagged ones below it, whosever they are, in spite of ``noprune``
        (pkg/api/handlers/compat/images_remove.go). Podman's own interface heeds it, and numbers its failures
        (pkg/domain/infra/abi/images.go, ``removeErrorsToExitCode``).
        """
        query = {"images": image, "noprune": "true"}
        report: Mapping[str, Any] = connection.ask("DELETE", "/libpod/images/remove", query=query, version="4.0.0")
        words = "; ".join(report.get("Errors") or ())
        match report["ExitCode"]:
            case 0:
                return True
            case 1:
                raise Refused(404, words)
            case 2:
                return False
        raise EngineError(f"the engine could not remove the image {image}: {words}")


def _machine_of(address: str, info: Mapping[str, Any]) -> str:
    """The id of the machine that the engine runs on, or its name where it is another than ours."""
    try:
        local = address.startswith("unix://")
        return Path("/etc/machine-id").read_text().strip() if local else str(info.get("Name"))
    except OSError:
        return str(info.get("Name"))
