"""Holds the images of a Docker Engine API, and creates sandboxes on them."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import cached_property
from typing import Any, Final

from pytest_stagebuild.ahead import Soon
from pytest_stagebuild.engines.docker.connection import Connection, engine_errors, open_connection
from pytest_stagebuild.engines.docker.dialect import LAYERED, LAYERED_LABEL
from pytest_stagebuild.engines.docker.images import (
    PullBytes,
    is_id,
    parse_reference,
    registry_of,
)
from pytest_stagebuild.engines.docker.layers import add_layer, remove_layered
from pytest_stagebuild.engines.docker.sandbox import OWNER_LABEL, SANDBOX_LABEL, DockerSandbox
from pytest_stagebuild.engines.docker.transport import forgiven, sdk_errors
from pytest_stagebuild.engines.owner import Process, provably_gone, start_of, this_process
from pytest_stagebuild.engines.protocol import Program, PullProgress, Sandbox, StoredImage, platform_of
from pytest_stagebuild.errors import EngineError, ImageUnavailable

_DAY: Final = 24 * 3600
"""In seconds."""


class DockerEngine:
    """See :class:`~pytest_stagebuild.engines.protocol.Engine`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._layered: set[str] = set()
        self._info: Soon[Mapping[str, Any]] = Soon(self._ask_what_it_is)  # takes 5 ms, and is wanted a little later

    @classmethod
    def connect(cls) -> DockerEngine:
        """Connect to the first that answers. Raises :class:`EngineUnavailable` where none does."""
        connection = open_connection()
        try:
            return cls(connection)
        except BaseException:
            connection.close()
            raise

    @property
    def name(self) -> str:
        return self._connection.dialect.name

    @cached_property
    def identity(self) -> str:
        return self._connection.dialect.identity(self._connection.address, self._what_it_is)

    @cached_property
    def _what_it_is(self) -> Mapping[str, Any]:
        with engine_errors("say what it is"):
            try:
                return self._info.get()
            except Exception:  # noqa: BLE001 - whatever it was: it is asked once more
                return self._ask_what_it_is()

    @property
    def platform(self) -> str:
        info = self._what_it_is
        return platform_of(str(info.get("OSType") or "linux"), str(info.get("Architecture") or ""))

    @property
    def default_image(self) -> str | None:
        return None

    @property
    def shares_network(self) -> bool:
        return False

    @property
    def lends_networks(self) -> bool:
        return self._connection.dialect.lends_networks(self._what_it_is)

    def describe(self) -> str:
        version = ""
        with suppress(EngineError):  # whoever needs to know what it is will say so
            version = f" {self._what_it_is.get('ServerVersion')}"
        return f"{self.name}{version} at {self._connection.address}"

    def find_image(self, reference: str) -> StoredImage | None:
        if reference.startswith("/"):
            return None
        whole = reference if is_id(reference) else str(parse_reference(reference))
        with engine_errors(f"look for the image {reference}"), forgiven(404):
            return self._connection.stored_image(whole)
        return None

    def pull_image(self, reference: str, progress: Callable[[PullProgress], None]) -> StoredImage:
        if reference.startswith("/"):
            raise ImageUnavailable(
                f"{reference} is no name of an image, and only the local engine runs on a folder or file. Bring it in "
                f"(`docker load -i FILE`, `docker import FILE NAME`) and name it, or use --stagebuild-engine=local."
            )
        received = PullBytes()
        for event in self._pull_events(reference):
            if received.see(event):
                progress(PullProgress(reference, received.received, received.total))
        image = self.find_image(reference)
        if image is None:
            raise self._unavailable(reference, "the pull ended, and the image is not there")
        return image

    def images_with(self, labels: Mapping[str, str], *, but: Collection[str] = ()) -> list[StoredImage]:
        images: list[StoredImage] = []
        with engine_errors("list its images"):
            for found in self._connection.dialect.images_with(self._connection, labels):
                if found["Id"] in but:
                    continue
                with forgiven(404):  # removed meanwhile
                    images.append(self._connection.stored_image(found["Id"]))
        return sorted(images, key=lambda image: image.created, reverse=True)

    def remove_image(self, image: str) -> bool:
        connection = self._connection
        with engine_errors(f"remove the image {image}"), forgiven(404):
            inspection = connection.inspect_image(image)
            return connection.dialect.remove_image(connection, inspection)
        return True

    def sandbox(
        self,
        image: StoredImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        after: Sandbox | None = None,
        beside: Program | None = None,
    ) -> DockerSandbox:
        if image.id in self._layered:
            labels = {**labels, LAYERED_LABEL: image.id}
        lender = after.lends(network=network) if isinstance(after, DockerSandbox) else None
        return DockerSandbox(
            self._connection,
            image,
            labels=labels,
            network=network,
            life=life,
            may_lend=self.lends_networks,
            lender=lender,
            beside=beside,
        )

    def add_layer(self, image: StoredImage, archive: Iterable[bytes], *, most: int) -> StoredImage | None:
        if not self._connection.dialect.takes_layers(self._what_it_is):
            return None
        labels = {OWNER_LABEL: this_process().to_label()}
        made = add_layer(self._connection, image, archive, labels, most=most)
        self._layered.add(made.id)
        return made

    def remove_layered(self, image: StoredImage) -> None:
        remove_layered(self._connection, image.id)

    def sweep(self) -> list[str]:
        here = this_process()
        swept: list[str] = []
        with engine_errors("list its containers"):
            query = {"all": "1", "filters": json.dumps({"label": [SANDBOX_LABEL]})}
            for found in self._connection.ask_for_list("/containers/json", query=query):
                labels: Mapping[str, str] = found.get("Labels") or {}
                name = labels[SANDBOX_LABEL]
                # A container that the user runs on a checkpoint has the labels too, from the image, but not the name.
                if f"/{name}" not in (found.get("Names") or ()):
                    continue
                owner = Process.from_label(labels.get(OWNER_LABEL, ""))
                if owner is None or not provably_gone(owner, here, start_of):
                    continue
                with forgiven(404, 409):  # another run sweeps it at this moment
                    self._connection.remove_container(found["Id"])
                    swept.append(name)
        self._sweep_layered(here)
        return swept

    def _sweep_layered(self, here: Process) -> None:
        """Remove what runs that were killed had given a layer, where they are provably gone, or a day has passed: such
        an image is needed for as long as a stage runs, and then the engine refuses.
        """
        with engine_errors("list its images"):
            query = {"filters": json.dumps({"reference": [LAYERED]})}
            listed = self._connection.ask_for_list("/images/json", query=query)
        for found in listed:
            owner = Process.from_label((found.get("Labels") or {}).get(OWNER_LABEL, ""))
            gone = owner is not None and provably_gone(owner, here, start_of)
            if gone or found["Created"] < time.time() - _DAY:
                with suppress(EngineError):  # another run sweeps it at this moment, or the next one will
                    remove_layered(self._connection, found["Id"])

    def close(self) -> None:
        self._connection.close()

    def _ask_what_it_is(self) -> Mapping[str, Any]:
        return self._connection.ask("GET", "/info")

    def _pull_events(self, reference: str) -> Iterator[Mapping[str, Any]]:
        from docker.credentials.errors import StoreError
        from docker.errors import APIError, DockerException

        name = parse_reference(reference)
        no_credentials = ""
        with engine_errors(f"pull {reference}"), sdk_errors():
            api = self._connection.client
            try:
                try:
                    # The SDK warns of a missing credential helper before it raises, and warnings may be errors here.
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        events = api.pull(name.repository, name.tag, stream=True, decode=True)
                except APIError:
                    raise
                except (DockerException, StoreError) as error:
                    # The configured credential helper is missing or fails; a public image needs none.
                    no_credentials = f" (no credentials: {error})"
                    events = api.pull(name.repository, name.tag, stream=True, decode=True, auth_config={})
            except APIError as error:
                raise self._unavailable(
                    reference, (error.explanation or str(error)).strip() + no_credentials
                ) from error
            with closing(events):
                for event in events:
                    if "error" in event:
                        detail = event.get("errorDetail") or {}
                        raise self._unavailable(reference, f"{detail.get('message') or event['error']}{no_credentials}")
                    yield event

    def _unavailable(self, reference: str, words: str) -> ImageUnavailable:
        dialect = self._connection.dialect
        log_in = f"{dialect.name} login {registry_of(reference)}".rstrip()
        return ImageUnavailable(
            f"the image {reference} is not here, and the engine could not pull it: {words}\n"
            f"{dialect.pull_advice(reference, words)}, log in there ({log_in}), or bring it in offline: "
            f"`docker save {reference} -o image.tar` where it is and `{dialect.name} load -i image.tar` here, or "
            f"`{dialect.name} import rootfs.tar {reference}`."
        )
