"""The base image ``host``: this machine's own system and Python, read-only, with a virtual environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from pytest_stagebuild.engines.protocol import ImageConfig
from pytest_stagebuild.errors import EngineUnavailable
from pytest_stagebuild.values import dataclass

VENV: Final = "/venv"

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix", "/gnu")
"""What makes a Linux system, besides what a user or a service keeps. ``/run`` is none of it: sockets lie there."""

_DISPENSABLE: Final = ("/opt", "/nix", "/gnu")

_NETWORK: Final = ("/etc/resolv.conf", "/etc/hosts")
"""What programs find others by; where these are links, they may lead out of what is shown."""

_PACKAGES: Final = (
    "/var/lib/dpkg/status",
    "/lib/apk/db/installed",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/var/lib/rpm/Packages",
    "/var/lib/pacman/local",
    "/nix/var/nix/profiles/system",
)
"""Where the package managers keep what is installed."""

_BY_HAND: Final = ("/usr/local/bin", "/usr/local/sbin", "/usr/local/lib", "/opt")
"""Where programs go that no package manager knows of."""

_LARGE: Final = 16 << 20


@dataclass(frozen=True)
class Host:
    """What of this machine a sandbox on it is made of.

    ``binds`` are the paths that appear, with their sources; ``links`` are links beside them; ``python`` is the
    interpreter that runs this, by its real path.
    """

    title: str
    digest: str
    python: str
    binds: Mapping[str, str]
    links: Mapping[str, str]

    @property
    def name(self) -> str:
        return f"host:{self.digest[:32]}"

    @property
    def config(self) -> ImageConfig:
        return ImageConfig(
            env=(
                f"PATH={VENV}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"VIRTUAL_ENV={VENV}",
                "HOME=/root",
                f"LANG={_utf8_locale()}",
            )
        )


def this_host(store: Path) -> Host:
    """Raises :class:`EngineUnavailable` where it cannot be shown without showing ``store`` or a home folder."""
    binds: dict[str, str] = {}
    links: dict[str, str] = {}
    private = {**dict.fromkeys(_homes(), "your home folder"), os.path.realpath(store): "the engine's store"}
    for path in _SYSTEM:
        if os.path.islink(path):
            links[path] = os.readlink(path)
        elif os.path.isdir(path) and not (path in _DISPENSABLE and _inside(path, private)):
            binds[path] = path
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    own: list[str] = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.path.dirname(python))]
    for prefix in dict.fromkeys(os.path.realpath(one) for one in own):
        if _within(prefix, binds):
            continue
        binds[prefix] = prefix
    for path in binds:
        if found := _inside(path, private):
            raise EngineUnavailable(
                f"the local engine cannot show {path} to a sandbox, as it must: {private[found]} lies in it ({found}). "
                "Move that (the store: with PYTEST_STAGEBUILD_STORE), take a Python that is installed elsewhere, "
                "or use Docker."
            )
    for path in _NETWORK:
        real = os.path.realpath(path)
        if os.path.isfile(real) and not _within(real, binds):
            binds[real] = real
    facts = {
        "python": [python, sys.version, platform.python_implementation(), _stamp(python)],
        "release": _read("/etc/os-release").hex(),
        "machine": platform.machine(),
        "packages": {path: _content(path) for path in _PACKAGES if os.path.exists(path)},
        "by hand": {path: list(_entries(path)) for path in _BY_HAND},
        "binds": binds,
        "links": links,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    title = f"{platform.python_implementation()} {platform.python_version()}, {_release()}"
    return Host(title, digest, python, binds, links)


def network_files() -> dict[str, str]:
    """What a whole image is given of the host, so that names are found in it."""
    return {path: os.path.realpath(path) for path in _NETWORK if os.path.isfile(path)}


def _homes() -> Iterator[str]:
    """The user's own: those of a system's users are often folders of the system."""
    import pwd

    homes = {os.path.expanduser("~")}
    with suppress(KeyError):
        homes.add(pwd.getpwuid(os.geteuid()).pw_dir)
    for home in homes:
        with suppress(OSError):
            if os.stat(home).st_uid == os.geteuid():
                yield os.path.realpath(home)


def _inside(folder: str, paths: Iterable[str]) -> str | None:
    """The first of the paths that lies in a folder."""
    return next((path for path in paths if _within(path, {folder: folder})), None)


def _within(path: str, folders: Mapping[str, str]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _release() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return platform.release()
    return " ".join(filter(None, (release.get("NAME", "Linux"), release.get("VERSION_ID"))))


def _utf8_locale() -> str:
    """A locale that the host's own C library certainly has."""
    language = os.environ.get("LANG", "")
    return language if language.lower().replace("-", "").endswith("utf8") else "C.UTF-8"


def _content(path: str) -> str:
    """A digest of a package database, or what tells one that is too large to be read each time from an older one."""
    try:
        if os.path.isfile(path) and os.path.getsize(path) <= _LARGE:
            return hashlib.sha256(Path(path).read_bytes()).hexdigest()
        return _stamp(path)
    except OSError:
        return ""


def _entries(folder: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        yield f"{name} {_stamp(os.path.join(folder, name))}"


def _stamp(path: str) -> str:
    try:
        there = os.stat(path)
    except OSError:
        return ""
    return f"{there.st_size} {there.st_mtime_ns}"


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
