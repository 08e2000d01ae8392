"""What a Docker Engine API says about images, as values of ours: references, inspections, the progress of a pull."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field
from datetime import datetime, timezone
from typing import Any

from pytest_stagebuild.engines.protocol import ImageConfig, StoredImage, platform_of
from pytest_stagebuild.values import dataclass


@dataclass(frozen=True)
class Reference:
    """A reference parted as the engine wants it: ``tag`` is a digest where there is one, and never empty for a name."""

    repository: str
    tag: str

    def __str__(self) -> str:
        return f"{self.repository}{'@' if ':' in self.tag else ':'}{self.tag}"


def parse_reference(text: str) -> Reference:
    """Part ``NAME``, ``NAME:TAG``, ``NAME@DIGEST`` and ``NAME:TAG@DIGEST``; of the last, the digest alone counts."""
    name, _, digest = text.partition("@")
    head, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:  # a port
        head, tag = name, ""
    return Reference(head, digest or tag or "latest")


def registry_of(text: str) -> str:
    """The host of the registry that a reference names, "" where it names none.

    The rule: https://docs.docker.com/reference/cli/docker/image/tag/.
    """
    first, slash, _ = text.partition("/")
    return first if slash and (first == "localhost" or set(".:") & set(first)) else ""


def is_id(text: str) -> bool:
    """Whether ``text`` is an image id, whole or short, rather than a name."""
    return re.fullmatch(r"(sha256:)?[0-9a-f]{64}|[0-9a-f]{12,63}", text) is not None


def stored_image(inspection: Mapping[str, Any]) -> StoredImage:
    """An image from the engine's inspection of it."""
    config: Mapping[str, Any] = inspection.get("Config") or {}
    layers = (inspection.get("RootFS") or {}).get("Layers") or ()
    return StoredImage(
        id=str(inspection["Id"]),
        layers=tuple(str(layer) for layer in layers),
        config=ImageConfig(
            env=_words(config.get("Env")),
            user=str(config.get("User") or ""),
            working_dir=str(config.get("WorkingDir") or ""),
            entrypoint=_words(config.get("Entrypoint")) or None,
            cmd=_words(config.get("Cmd")) or None,
            volumes=tuple(sorted(config.get("Volumes") or ())),
        ),
        platform=platform_of(
            str(inspection.get("Os") or ""),
            str(inspection.get("Architecture") or ""),
            str(inspection.get("Variant") or ""),
        ),
        labels={str(name): str(value) for name, value in (config.get("Labels") or {}).items()},
        size=int(inspection.get("Size") or 0),
        created=seconds(str(inspection.get("Created") or "")),
    )


def committed_config(base: Mapping[str, Any]) -> dict[str, Any]:
    """The ``conf`` of a commit that leaves an image with the configuration of the one it was made from.

    What is missing in it the engine takes from the container, whose entrypoint is ours, so an empty entrypoint has to
    be said, and ``null`` does not say it (https://github.com/moby/moby/blob/v27.0.0/daemon/commit.go, ``merge``).
    Labels are left to the container: it has the base's and ours.
    """
    others = ("Labels", "Hostname", "Domainname", "Image")
    conf = {name: value for name, value in base.items() if name not in others and value is not None}
    conf.update(dict.fromkeys(("AttachStdin", "AttachStdout", "AttachStderr", "OpenStdin", "StdinOnce", "Tty"), False))
    conf["Entrypoint"] = base.get("Entrypoint") or []
    conf["Cmd"] = base.get("Cmd") or []
    return conf


def seconds(timestamp: str) -> float:
    """Seconds since the epoch from the engine's RFC 3339, which has up to nine digits of a second; 0.0 for none."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", timestamp)
    if match is None:
        return 0.0
    whole = datetime.fromisoformat(match[1] + ("+00:00" if match[3] == "Z" else match[3]))
    return max(0.0, (whole - datetime(1970, 1, 1, tzinfo=timezone.utc)).total_seconds()) + float(match[2] or 0)


@dataclasses.dataclass
class PullBytes:
    """How many bytes of a pull have come, added up over its layers from the engine's events."""

    _layers: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def see(self, event: Mapping[str, Any]) -> bool:
        """Take in an event; whether it changed the sums."""
        layer, status = str(event.get("id") or ""), str(event.get("status") or "")
        received, total = self._layers.get(layer, (0, None))
        match status:
            case "Pulling fs layer" | "Waiting":
                pass
            case "Downloading":
                detail = event.get("progressDetail") or {}
                received, total = int(detail.get("current") or 0), int(detail.get("total") or 0) or total
            case "Download complete" | "Verifying Checksum" | "Pull complete":
                received, total = (total, total) if total is not None else (received, received)
            case _:
                return False
        before = self._layers.get(layer)
        self._layers[layer] = (received, total)
        return before != self._layers[layer]

    @property
    def received(self) -> int:
        return sum(received for received, _ in self._layers.values())

    @property
    def total(self) -> int | None:
        """None as long as the size of a layer is not known."""
        totals = [total for _, total in self._layers.values()]
        return sum(total for total in totals if total is not None) if totals and None not in totals else None


def _words(value: object) -> tuple[str, ...]:
    return tuple(str(word) for word in value) if isinstance(value, (list, tuple)) else ()
