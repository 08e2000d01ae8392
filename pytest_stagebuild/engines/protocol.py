"""What an engine must do: hold images, start sandboxes on them, and turn a sandbox into an image.

Everything outside ``engines/`` speaks to these protocols only. An engine raises :class:`EngineError` (or one of its
children) for whatever goes wrong on its own side, and reports the end of a user's command as a
:class:`CommandExit`, whatever its exit code was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import field
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from typing_extensions import Self

Stream = Literal["stdout", "stderr"]
MEANWHILE: Final = 0.02
"""Seconds between two calls of what is done while a command runs."""

OutputSink = Callable[[Stream, bytes], None]
"""Called with each piece of output as it arrives, in order, from one thread at a time."""


_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv6l": "arm", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True)
class ImageConfig:
    """What an image says about the processes that run on it, as the image has it."""

    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoredImage:
    """An image that the engine holds.

    ``id`` is the engine's own name for it, ``layers`` are the digests of its file-system layers from the lowest up,
    ``size`` is in bytes and ``own_size`` that of its uppermost layer, each 0 as long as it is not known; ``created`` is
    in seconds since the epoch. ``title`` is what the summary says of an image that has no digest to show.
    """

    id: str
    layers: tuple[str, ...]
    config: ImageConfig
    platform: str
    labels: Mapping[str, str]
    size: int = field(compare=False)
    created: float
    own_size: int = field(default=0, compare=False)
    title: str = ""

    @property
    def identity(self) -> str:
        """A digest of what a stage on this image can see: its layers and configuration.

        The engine's own id will not do: it is the configuration's digest in one image store and the manifest's in
        another (https://docs.docker.com/engine/storage/containerd/).
        """
        seen = [self.layers, sorted(self.config.env), self.config.user, self.config.working_dir, self.platform]
        return "sha256:" + hashlib.sha256(json.dumps(seen).encode()).hexdigest()


@dataclass(frozen=True)
class PullProgress:
    """How far a pull has come, in bytes; ``total`` is None as long as the registry has not said."""

    reference: str
    received: int
    total: int | None


@dataclass(frozen=True)
class CommandExit:
    """How a command ended. ``code`` is as the shell has it (128 + signal when a signal ended it)."""

    code: int
    duration: float
    timed_out: bool = False
    out_of_memory: bool = False


@dataclass(frozen=True)
class Owner:
    """The numeric user and group that an image's commands run as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Program:
    """A Python program of ours, by its source, and its arguments.

    It defines ``main``, and calls that with the arguments where it is ``__main__``; else that is called later. It needs
    a Python in the image, 3.6 or newer, and finds nothing but the standard library.
    """

    source: str
    arguments: tuple[str, ...] = ()


class Beside(Protocol):
    """A program of ours that runs as root beside the commands of a sandbox, and is none of what they left running."""

    def line(self, timeout: float) -> str | None:
        """The next line that it prints; None when it has ended, or prints none within ``timeout`` seconds."""

    def complaint(self) -> str:
        """The last line of what it has written to its standard error, of which some may have come as lines before."""


class Sandbox(Protocol):
    """A container: created by :meth:`Engine.sandbox`, started once, and removed when the ``with`` block ends."""

    @property
    def owner(self) -> Owner:
        """The user that the image's commands run as, read from the image; usable before :meth:`start`."""

    def put(self, archive: Iterable[bytes], *, later: bool = False) -> None:
        """Extract an uncompressed tar at ``/``, as its headers say.

        What can come ``later`` need not be there before the next command, :meth:`get` or :meth:`commit`; it replaces
        no folder. Where it is small, whatever the image has may extract it, if commands are root's there.
        """

    def get(self, path: str) -> Iterator[bytes]:
        """A tar of ``path`` (its last component is the top of the archive). Works before :meth:`start` too.

        One at a time: the next call breaks off an archive that was not read to its end.

        Raises ``FileNotFoundError`` where there is no such path.
        """

    def start(self) -> None:
        """Start the sandbox. Nothing runs in it yet but what keeps it alive."""

    def run(
        self,
        command: str,
        *,
        cwd: str,
        env: Mapping[str, str],
        timeout: float | None,
        output: OutputSink,
        user: Literal["image", "root"] = "image",
        meanwhile: Callable[[], None] | None = None,
    ) -> CommandExit:
        """Run ``/bin/sh -c command`` and wait for it, at most ``timeout`` seconds.

        ``meanwhile`` is called every now and then as long as the command runs, by the thread that waits for it.

        ``env`` is added to the image's own. A command that runs out of time is ended with everything it started, and
        the sandbox stays usable. What the command leaves running keeps running. ``cwd`` exists.
        """

    @property
    def listens(self) -> bool:
        """Whether a process of the sandbox waits to be told what to run first.

        :meth:`run_beside` then takes but a few milliseconds for the program that the sandbox was created with, and that
        gets SIGCONT when the command that is run next has ended; all that this command prints is delivered as
        ``stdout``, in the order in which it came.
        """

    def run_beside(self, program: Program, *, at_once: bool = True) -> Beside:
        """Run a program, as root, until it ends by itself; unless ``at_once``, it may begin with the next command.

        It is no file in the sandbox, which a command could replace.
        """

    def end_processes(self) -> list[str]:
        """End everything that is still running in the sandbox, and give the command lines of what that was.

        What runs beside is spared as long as the others can be ended without it.
        """

    def changed_files(self) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Every file that differs from the image: its absolute path and its content in pieces.

        Each content must be used before the next file is asked for. Symbolic links come with their target as content;
        folders, devices and FIFOs where they are new, with none.
        """

    def lends(self, *, network: bool) -> Sandbox | None:
        """The sandbox whose network one with a ``network``, or without, may take over ``after`` this one: this one
        itself, or the one that has lent it its own. None where it cannot be, or is not as good as new.
        """

    def commit(self, reference: str, labels: Mapping[str, str]) -> StoredImage:
        """Store the file system as an image named ``reference``.

        The image has the configuration of the one that the sandbox was created on, and the sandbox's labels.
        ``labels`` names those by which the image is found again, should the engine answer too late.
        """

    def remove(self) -> None:
        """Remove the sandbox and everything in it. Never raises for one that is gone already."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Engine(Protocol):
    """What holds images and runs sandboxes."""

    @property
    def name(self) -> str:
        """The engine's family: "docker", "podman" or "local"."""

    @property
    def identity(self) -> str:
        """What tells this engine's images from another's; the scope of lockfile entries."""

    @property
    def platform(self) -> str:
        """The operating system and architecture that it runs, such as ``linux/amd64``."""

    @property
    def default_image(self) -> str | None:
        """The image to take where the user asked for none, if that is not for the project to decide."""

    @property
    def shares_network(self) -> bool:
        """Whether a loopback address means the same in a sandbox as out here."""

    @property
    def lends_networks(self) -> bool:
        """Whether :meth:`sandbox` takes over the network of one ``after`` which it comes, and is faster for it."""

    def describe(self) -> str:
        """One line for the header: name, version, address."""

    def find_image(self, reference: str) -> StoredImage | None:
        """The image that ``reference`` (a name, tag, digest or id) means here, without asking any registry."""

    def pull_image(self, reference: str, progress: Callable[[PullProgress], None]) -> StoredImage:
        """Fetch an image from its registry. Raises :class:`ImageUnavailable` with the engine's own words."""

    def images_with(self, labels: Mapping[str, str], *, but: Collection[str] = ()) -> list[StoredImage]:
        """The images that carry all these labels, the newest first; without those whose ids are in ``but``, each of
        which an engine would be asked about.
        """

    def remove_image(self, image: str) -> bool:
        """Remove an image by id, with all its names; False where something else still needs it."""

    def sandbox(
        self,
        image: StoredImage,
        *,
        labels: Mapping[str, str],
        network: bool,
        life: float,
        after: Sandbox | None = None,
        beside: Program | None = None,
    ) -> Sandbox:
        """Create a sandbox on ``image``. It ends with this process, and in any case after ``life`` seconds.

        ``beside`` is what will be run so before the first command, where that is known: it may start early.
        ``after`` is one whose commands have ended, and what it :meth:`~Sandbox.lends` may be taken over: the caller has
        that stay for as long as this one is there.
        """

    def sweep(self) -> list[str]:
        """Remove the sandboxes whose owner is provably gone, and give their names."""

    def close(self) -> None:
        """Give back the connection."""


@runtime_checkable
class TakesLayers(Protocol):
    """What some engines can do beside: make an image of another one and files, which saves them a commit."""

    def add_layer(self, image: StoredImage, archive: Iterable[bytes], *, most: int) -> StoredImage | None:
        """An image with the files of an uncompressed tar as one layer more, all root's as its headers say.

        None, before anything of the archive is taken, where it cannot do that here. Raises :class:`EngineError` where
        that turns out later, and for an archive of more than ``most`` bytes, which is held in a file on its way. The
        image is nobody's who looks for images, and has to be removed.
        """

    def remove_layered(self, image: StoredImage) -> None:
        """Remove what :meth:`add_layer` gave. Where something was made on it, it stays as long as that does."""


def platform_of(system: str, architecture: str, variant: str = "") -> str:
    """``linux/amd64`` and the like, whatever the system calls the architecture."""
    parts = [system.lower(), _ARCHITECTURES.get(architecture, architecture), variant]
    return "/".join(part for part in parts if part)
