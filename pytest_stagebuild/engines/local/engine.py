"""The engine that needs no daemon: Linux namespaces and overlays, set up by processes of our own."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from pytest_stagebuild.engines import HOST_IMAGE as HOST
from pytest_stagebuild.engines.local.host import VENV, Host, network_files, this_host
from pytest_stagebuild.engines.local.spawning import SetUpFailed, Spawner
from pytest_stagebuild.engines.local.store import SCHEMA, LocalImage, Store, flat_name
from pytest_stagebuild.engines.protocol import ImageConfig, Program, PullProgress, Sandbox, StoredImage, platform_of
from pytest_stagebuild.errors import EngineError, EngineUnavailable, ImageUnavailable

if TYPE_CHECKING:
    from pytest_stagebuild.engines.local.sandbox import LocalSandbox

_SHIFT: Final = 0x70000000
"""The first of the users that root maps: from a range that is nobody's else
(https://systemd.io/UIDS-GIDS/, "1879048192…2147483647 unused")."""

_USERS: Final = 65536

_NOBODY: Final = 65534
"""https://systemd.io/UIDS-GIDS/, "Special Linux UIDs"."""

_PLACES: Final = {"/dev": 0o755, "/proc": 0o755, "/root": 0o700, "/tmp": 0o1777, "/var/tmp": 0o1777}  # noqa: S108
"""The folders that every sandbox has, with their modes."""

_DEEPEST: Final = 32
"""Layers that an image may be made of."""

STORE_VARIABLE: Final = "PYTEST_STAGEBUILD_STORE"
"""The environment variable that puts the store elsewhere than into the user's cache folder."""

_LIFE: Final = 300.0
_PREPARING: Final = 600.0


class LocalEngine:
    """See :class:`~pytest_stagebuild.engines.protocol.Engine`."""

    def __init__(self, store: Store, users: Mapping[str, object]) -> None:
        self._store = store
        self._users = users
        self._spawner = Spawner()

    @classmethod
    def connect(cls) -> LocalEngine:
        """Raises :class:`EngineUnavailable` where the machine does not allow it."""
        if sys.platform != "linux":
            raise EngineUnavailable("the local engine runs on Linux only. Use Docker here.")
        from pytest_stagebuild.state import cache_folder

        shift, users = _users()
        place = os.environ.get(STORE_VARIABLE)
        folder = Path(place).absolute() if place else cache_folder() / "local"
        # What others own has other owners in it than what is the user's own.
        kind = {0: "user", _NOBODY: "nobody"}.get(shift, "root")
        # And what another version of this package wrote is not to be taken for damaged.
        engine = cls(Store(folder / f"{kind}-{SCHEMA}", shift=shift), users)
        try:
            engine._prove()
        except BaseException:
            engine.close()
            raise
        return engine

    @property
    def name(self) -> str:
        return "local"

    @property
    def identity(self) -> str:
        return f"local:{self._store.uuid}"

    @property
    def platform(self) -> str:
        return platform_of("linux", platform.machine())

    @property
    def default_image(self) -> str | None:
        return HOST

    @property
    def shares_network(self) -> bool:
        return True

    @property
    def lends_networks(self) -> bool:
        return False

    def describe(self) -> str:
        return f"local, store {_shown(self._store.path)}"

    def find_image(self, reference: str) -> StoredImage | None:
        name = self._host.name if reference == HOST else _stored_name(reference)
        found = self._store.find(name)
        return self._store.stored(found) if found else None

    def pull_image(self, reference: str, progress: Callable[[PullProgress], None]) -> StoredImage:
        if found := self.find_image(reference) if reference == HOST or reference.startswith("/") else None:
            return found
        if reference == HOST:
            return self._make_host()
        if reference.startswith("/"):
            return self._import(reference, progress)
        raise ImageUnavailable(
            f"the image {reference} is not in the local engine's store, and it has no registry to pull it from. "
            f"Bring it in: `docker save {reference} -o image.tar` where it is, and --stagebuild-image=./image.tar "
            "here; or use an engine that pulls it (--stagebuild-engine=docker); or run on this machine's own system "
            f"(--stagebuild-image={HOST})."
        )

    def images_with(self, labels: Mapping[str, str], *, but: Collection[str] = ()) -> list[StoredImage]:
        images = (image for image in self._store.images() if image.id not in but)
        return [self._store.stored(image) for image in images if labels.items() <= image.labels.items()]

    def remove_image(self, image: str) -> bool:
        found = self._store.find(image)
        if found is None:
            return True
        if removed := self._store.remove_image(found.id):
            flat = self._store.find(flat_name(found.id))
            if flat is not None:
                self._store.remove_image(flat.id)
        return removed

    def sandbox(
        self,
        image: StoredImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        after: Sandbox | None = None,
        beside: Program | None = None,
    ) -> LocalSandbox:
        found = self._store.find(image.id)
        if found is None:
            raise ImageUnavailable(f"the image {image.id} is gone. Run again.")
        return self._sandbox(found, labels=labels, network=network, life=life)

    def sweep(self) -> list[str]:
        return self._store.sweep()

    def close(self) -> None:
        self._spawner.close()
        self._store.close()

    @cached_property
    def _host(self) -> Host:
        return this_host(self._store.path)

    def _sandbox(
        self, image: LocalImage, *, labels: Mapping[str, str], network: bool, life: float = _LIFE
    ) -> LocalSandbox:
        return self._sandbox_on(self._shallow(image), labels=labels, network=network, life=life)

    def _sandbox_on(self, image: LocalImage, *, labels: Mapping[str, str], network: bool, life: float) -> LocalSandbox:
        from pytest_stagebuild.engines.local.sandbox import LocalSandbox  # it takes modules that only Linux has

        return LocalSandbox(
            self._store, self._spawner, image, labels=labels, network=network, life=life, users=self._users
        )

    def _shallow(self, image: LocalImage) -> LocalImage:
        """The image on a stack that is not deep: the kernel looks for a file in one layer after the other."""
        if len(image.stack) <= _DEEPEST:
            return image
        name = flat_name(image.id)
        if (flat := self._store.find(name)) is None:
            with (
                self._blank(*_places(image.binds)) as ground,
                self._sandbox_on(image, labels={}, network=False, life=_PREPARING) as deep,
                self._sandbox(ground, labels={}, network=False, life=_PREPARING) as new,
            ):
                new.put_layer(deep.whole())
                flat = new.commit_as((name,), image.layers)
        return replace(image, stack=flat.stack)

    def _import(self, reference: str, progress: Callable[[PullProgress], None]) -> StoredImage:
        from pytest_stagebuild.engines.local.importing import content_of, mount_points, name_of

        name = name_of(reference)
        binds = network_files()
        with content_of(reference) as content, self._blank(_PLACES, [], config=content.config) as ground:
            received = 0

            def counted(pieces: Iterator[bytes]) -> Iterator[bytes]:
                nonlocal received
                for piece in pieces:
                    received += len(piece)
                    progress(PullProgress(reference, received, None))
                    yield piece

            with self._sandbox(ground, labels={}, network=False, life=_PREPARING) as sandbox:
                for layer in content.layers:
                    sandbox.put_layer(counted(layer()))
                sandbox.put_layer([mount_points(_PLACES, list(binds))])
                new = [one for one in content.names if self._store.find(one) is None]
                made = sandbox.commit_as((name, *new), content.digests, title=content.title, binds=binds)
        return self._store.stored(made)

    @contextmanager
    def _blank(
        self,
        folders: Mapping[str, int],
        files: Sequence[str],
        links: Mapping[str, str] = MappingProxyType({}),
        **more: Any,  # noqa: ANN401 - any field of an image
    ) -> Iterator[LocalImage]:
        """An image of one layer that holds only places to mount on; it stays where another comes to stand on it."""
        ground = self._store.make_layer(folders, files, links)
        image = self._store.publish(
            ground,
            LocalImage(
                **{
                    "id": ground.name,
                    "names": (),
                    "labels": {},
                    "config": ImageConfig(),
                    "layers": (),
                    "stack": (ground.name,),
                    "platform": self.platform,
                    "created": 0.0,
                    "boot": "",
                    **more,
                }
            ),
        )
        try:
            yield image
        finally:
            with suppress(OSError):
                self._store.remove_image(image.id)

    def _make_host(self) -> StoredImage:
        host = self._host
        folders, files = _places(host.binds)
        more = {"config": host.config, "binds": host.binds, "layers": (f"host:{host.digest}",), "title": host.title}
        said: list[bytes] = []
        with (
            self._blank(folders, files, host.links, **more) as skeleton,
            self._sandbox(skeleton, labels={}, network=False, life=_PREPARING) as sandbox,
        ):
            ended = sandbox.run(
                f"'{host.python}' -I -m venv {VENV}",
                cwd="/",
                env={},
                timeout=_PREPARING,
                output=lambda _, piece: said.append(piece),
            )
            if ended.code != 0:
                words = b"".join(said).decode(errors="replace").strip()
                raise EngineUnavailable(
                    f"{host.python} could not make a virtual environment in a sandbox (exit {ended.code}): {words}\n"
                    "On Debian and Ubuntu its parts are in packages of their own: apt-get install python3-venv. Or use "
                    "another Python, or Docker."
                )
            # The identity is the host's: its virtual environment is made of that and of nothing else.
            return self._store.stored(sandbox.commit_as((host.name,), skeleton.layers))

    def _prove(self) -> None:
        """Take the steps that a sandbox takes, once after each start of the machine."""
        if self._store.proven():
            return
        try:
            with (
                self._blank({"/dev": 0o755, "/proc": 0o755, "/probe": 0o755}, ["/probe/file"]) as image,
                self._sandbox(image, labels={}, network=False) as sandbox,
            ):
                sandbox.prove()
        except SetUpFailed as failed:
            raise EngineUnavailable(str(failed)) from failed
        except EngineError as error:
            raise EngineUnavailable(f"the local engine does not work here: {error}") from error
        self._store.now_proven()


def _places(binds: Iterable[str]) -> tuple[dict[str, int], list[str]]:
    """The folders, with their modes, and the files that a sandbox needs to show these paths of the host."""
    folders = {path: 0o755 for path in binds if os.path.isdir(path)}
    return {**_PLACES, **folders}, [path for path in binds if path not in folders]


def _shown(path: Path) -> str:
    """A path with the user's home folder as ``~``."""
    try:
        return f"~/{path.relative_to(Path.home())}"
    except (ValueError, RuntimeError):
        return str(path)


def _stored_name(reference: str) -> str:
    """The name that the store has for what the user names: a path means what is there now."""
    if not reference.startswith("/"):
        return reference
    from pytest_stagebuild.engines.local.importing import name_of

    return name_of(reference)


def _users() -> tuple[int, dict[str, object]]:
    """Which users a sandbox has, and the user id that its root is out here, 0 for the caller's own.

    Root gives a range of users that are nobody on the host, or in a container with fewer users the one who is nobody
    there: as root itself a sandbox would read what only root may. Everybody else can give away only himself.
    """
    if os.geteuid() == 0 and _mapped(_SHIFT + _USERS - 1):
        text = f"0 {_SHIFT} {_USERS}"
        return _SHIFT, {"uid_map": text, "gid_map": text, "groups": True, "one": False}
    if os.geteuid() == 0 and _mapped(_NOBODY):
        text = f"0 {_NOBODY} 1"
        return _NOBODY, {"uid_map": text, "gid_map": text, "groups": True, "one": True}
    return 0, {"uid_map": f"0 {os.geteuid()} 1", "gid_map": f"0 {os.getegid()} 1", "groups": False, "one": True}


def _mapped(user: int) -> bool:
    """Whether there is such a user here: in a container of somebody else's there may be fewer."""
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return False
    return any(int(first) <= user < int(first) + int(count) for first, _, count in (line.split() for line in lines))
