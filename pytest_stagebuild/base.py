"""The base image: looked up first, pulled only where it is missing, and known by its digest from then on."""

from __future__ import annotations

import re
from typing import Final

from pytest_stagebuild.checkpoint import WORKING_DIRECTORY
from pytest_stagebuild.engines.protocol import Engine, StoredImage
from pytest_stagebuild.errors import ConfigurationError, ImageUnavailable
from pytest_stagebuild.execution import Ground
from pytest_stagebuild.lockfile import Lockfile
from pytest_stagebuild.observer import Observer
from pytest_stagebuild.options import Settings
from pytest_stagebuild.stage import BaseImage
from pytest_stagebuild.store import CheckpointStore
from pytest_stagebuild.values import dataclass

_UUID: Final = re.compile(r"[0-9a-f]{4,8}(-[0-9a-f-]*)?")


@dataclass(frozen=True)
class ResolvedBase:
    """The base image as the summary names it, and as sandboxes are created on it."""

    base: BaseImage
    ground: Ground
    notes: tuple[str, ...] = ()


def wanted_image(settings: Settings, engine: Engine) -> str:
    """The image that the user asked for, else the one that the engine takes then, else the project's."""
    asked_for = settings.image if settings.image_given else None
    return (asked_for or engine.default_image or settings.image).removeprefix("tag:")


def resolve_base(
    settings: Settings, engine: Engine, store: CheckpointStore, lockfile: Lockfile, observer: Observer
) -> ResolvedBase:
    """Find the image that the settings name: a checkpoint's UUID, or an image's name with or without ``tag:``.

    Raises :class:`ImageUnavailable` where it is neither here nor to be pulled.
    """
    reference = wanted_image(settings, engine)
    if _UUID.fullmatch(reference) and (checkpoint := store.by_uuid(reference)) and (found := store.opened(checkpoint)):
        base = BaseImage(str(checkpoint), found.image.id, checkpoint.uuid)
        return ResolvedBase(base, Ground(found.image, checkpoint.uuid, found.record.manifest, found.record.created))
    notes: list[str] = []
    image = engine.find_image(reference)
    if image is None:
        image = engine.pull_image(reference, observer.pulling)
    elif settings.rebuild == "base":
        try:
            image = engine.pull_image(reference, observer.pulling)
        except ImageUnavailable as error:
            words = str(error).partition("\n")[0].rpartition("could not pull it: ")[2]
            notes.append(f"{reference} was not pulled anew, and the image that is here is used: {words}")
    known = lockfile.read().bases.get(engine.identity, {})
    shown = image.title or image.id
    if known.get(image.identity) != shown:
        lockfile.update(lambda index: index.with_base(engine.identity, image.identity, shown))
    notes.extend(_volume_notes(image, reference))
    base = BaseImage(reference, image.id, image.identity, image.title)
    return ResolvedBase(base, Ground(image, image.identity), tuple(notes))


def _volume_notes(image: StoredImage, reference: str) -> list[str]:
    for volume in image.config.volumes:
        if (WORKING_DIRECTORY + "/").startswith(volume.rstrip("/") + "/"):
            raise ConfigurationError(
                f"{reference} declares VOLUME {volume}, and what lies in a volume is never part of a checkpoint; "
                f"the source goes to {WORKING_DIRECTORY}. Choose an image without that volume"
            )
    # https://docs.docker.com/reference/cli/docker/container/commit/: data in volumes is not committed.
    return [
        f"{reference} declares VOLUME {volume}: what a stage writes there is not kept in its checkpoint"
        for volume in image.config.volumes
    ]
