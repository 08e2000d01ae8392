"""Images from elsewhere: a root file system in a folder or a tar, what ``docker save`` wrote, an OCI image layout.

An image is imported into one layer when it is first named, and known again by what the file system says of its file or
folder. The formats: https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md, and for ``docker save``
https://github.com/moby/docker-image-spec/blob/v1.3.1/spec.md.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import field
from pathlib import Path
from typing import IO, Any, Final

from pytest_stagebuild.engines.protocol import ImageConfig, platform_of
from pytest_stagebuild.errors import ImageUnavailable
from pytest_stagebuild.values import dataclass

_PIECE: Final = 1 << 20

_FORMS: Final = "Name a folder or a tar with a root file system, what `docker save` wrote, or an OCI layout."


@dataclass(frozen=True)
class Content:
    """What can be imported: its layers as tars, from the lowest up, with their digests, configuration and names."""

    layers: tuple[Callable[[], Iterator[bytes]], ...]
    digests: tuple[str, ...]
    config: ImageConfig = field(default_factory=ImageConfig)
    names: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What the summary shows of it."""
        kind, _, digest = self.digests[-1].rpartition(":")
        return f"{kind}:{digest[:12]}"


def name_of(reference: str) -> str:
    """The name in the store of the image that a path means as it is now.

    Raises :class:`ImageUnavailable` where nothing can be read there.
    """
    path = Path(reference)
    with _readable(reference):
        there = path.stat()
        if stat.S_ISDIR(there.st_mode) and not _is_layout(path):
            return f"folder:{_digest_of_folder(path)}"
        if stat.S_ISDIR(there.st_mode):
            there = (path / "index.json").stat()
        known = (os.path.realpath(path), there.st_size, there.st_mtime_ns, there.st_ctime_ns, there.st_ino)
        return f"file:{hashlib.sha256(repr(known).encode()).hexdigest()}"


@contextmanager
def content_of(reference: str) -> Iterator[Content]:
    """What is at a path. Raises :class:`ImageUnavailable` where that is no image, in the block too."""
    path = Path(reference)
    with _readable(reference):
        if path.is_dir():
            yield _layout(_Folder(path)) if _is_layout(path) else _folder(path)
            return
        with path.open("rb") as file:
            start = file.read(6)
        if _opener(start) is None:
            with closing(tarfile.open(path, "r:")) as archive:
                names = archive.getnames()
                if "manifest.json" in names:
                    yield _saved(_Archive(archive))
                    return
                if "index.json" in names and "oci-layout" in names:
                    yield _layout(_Archive(archive))
                    return
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        yield Content((lambda: _plain(path.open("rb")),), (f"sha256:{digest.hexdigest()}",))


class _Folder:
    """The files of a layout in a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, name: str) -> IO[bytes]:
        return (self._path / name).open("rb")


class _Archive:
    """The same in a tar."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive

    def open(self, name: str) -> IO[bytes]:
        file = self._archive.extractfile(name)
        if file is None:
            raise ValueError(f"{name} is not a file")
        return file


def _saved(files: _Folder | _Archive) -> Content:
    images = _json(files, "manifest.json")
    if len(images) != 1:
        names = ", ".join(name for image in images for name in image["RepoTags"] or ())
        raise ValueError(f"it holds {len(images)} images ({names}): save one by itself")
    image = images[0]
    tags = tuple(str(tag) for tag in image.get("RepoTags") or ())
    return _image(files, _json(files, image["Config"]), image["Layers"], tags)


def _layout(files: _Folder | _Archive) -> Content:
    wanted = platform_of("linux", platform.machine())
    manifests = list(_manifests(files, _json(files, "index.json")["manifests"]))
    fitting = [one for one in manifests if one[1] in ("", wanted)]
    if len(fitting) != 1:
        raise ValueError(f"it holds {len(fitting)} images for {wanted}, and one is needed")
    manifest = _json(files, _blob(fitting[0][0]))
    config = _json(files, _blob(manifest["config"]["digest"]))
    return _image(files, config, [_blob(layer["digest"]) for layer in manifest["layers"]], ())


def _manifests(files: _Folder | _Archive, listed: list[Any]) -> Iterator[tuple[str, str]]:
    """The digests of the manifests in an index, with their platforms; an index may hold others."""
    for one in listed:
        if one["mediaType"].endswith(("image.index.v1+json", "manifest.list.v2+json")):
            yield from _manifests(files, _json(files, _blob(one["digest"]))["manifests"])
        elif (found := one.get("platform") or {}).get("os") != "unknown":  # attestations have that
            yield one["digest"], platform_of(found.get("os", ""), found.get("architecture", ""))


def _image(files: _Folder | _Archive, config: Mapping[str, Any], layers: list[str], names: tuple[str, ...]) -> Content:
    digests = tuple(str(digest) for digest in config["rootfs"]["diff_ids"])
    if len(digests) != len(layers):
        raise ValueError("its layers and its configuration do not agree")
    inner = config.get("config") or {}

    def words(name: str) -> tuple[str, ...]:
        return tuple(str(word) for word in inner.get(name) or ())

    found = ImageConfig(
        env=words("Env"),
        user=str(inner.get("User") or ""),
        working_dir=str(inner.get("WorkingDir") or ""),
        entrypoint=words("Entrypoint") or None,
        cmd=words("Cmd") or None,
        volumes=tuple(sorted(words("Volumes"))),
    )
    opened = tuple(lambda layer=layer: _plain(files.open(layer)) for layer in layers)
    return Content(opened, digests, found, names)


def _json(files: _Folder | _Archive, name: str) -> Any:  # noqa: ANN401 - it is JSON
    with files.open(name) as file:
        return json.loads(file.read())


def _blob(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if not value.isalnum() or not algorithm.isalnum():
        raise ValueError(f"{digest!r} is no digest")
    return f"blobs/{algorithm}/{value}"


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    """The content of a tar that may be compressed."""
    with file:
        start = file.read(6)
        file.seek(0)
        opener = _opener(start)
        with opener(file) if opener else file as whole:
            while piece := whole.read(_PIECE):
                yield piece


def _opener(start: bytes) -> Callable[[IO[bytes]], IO[bytes]] | None:
    """What reads a file that begins so, None for one that is not compressed."""
    if start.startswith(b"\x1f\x8b"):
        import gzip

        return lambda file: gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    if start.startswith(b"BZh"):
        import bz2

        return bz2.BZ2File
    if start.startswith(b"\xfd7zXZ"):
        import lzma

        return lzma.LZMAFile
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        raise ValueError("it is compressed with zstd: save it without, or with gzip")
    return None


def _is_layout(path: Path) -> bool:
    return (path / "oci-layout").is_file() and (path / "index.json").is_file()


def _folder(path: Path) -> Content:
    return Content((lambda: _tar_of(path),), (f"folder:{_digest_of_folder(path)}",))


def _digest_of_folder(path: Path) -> str:
    """Of what the file system says of everything below: another time of change counts as another content."""
    digest = hashlib.sha256()
    for name in _below(path):
        there = (path / name).lstat()
        known = (name, there.st_mode, there.st_uid, there.st_gid, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
        digest.update(repr(known).encode())
    return digest.hexdigest()


def _below(path: Path) -> Iterator[str]:
    for here, folders, files in os.walk(path, onerror=_raise):
        folders.sort()
        for name in sorted((*folders, *files)):
            yield os.path.relpath(os.path.join(here, name), path)


def _raise(error: OSError) -> None:
    raise error


def _tar_of(path: Path) -> Iterator[bytes]:
    """The folder as a tar, without sockets and devices."""
    with tarfile.open(fileobj=io.BytesIO(), mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in _below(path):
            member = archive.gettarinfo(path / name, arcname=name)
            if member is None or not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
                continue
            yield member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
            if member.isreg():
                with (path / name).open("rb") as file:
                    left = member.size
                    while left and (piece := file.read(min(left, _PIECE))):
                        left -= len(piece)
                        yield piece
                yield bytes(left + -member.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


@contextmanager
def _readable(reference: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ImageUnavailable(f"the image {reference} cannot be read: {error.strerror or error}. {_FORMS}") from error
    except (tarfile.TarError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        words = error if isinstance(error, (ValueError, tarfile.TarError)) else f"{type(error).__name__}: {error}"
        raise ImageUnavailable(f"{reference} is no image that can be imported: {words}. {_FORMS}") from error


def mount_points(folders: Mapping[str, int], files: list[str]) -> bytes:
    """A tar of the folders and empty files that a sandbox needs, which replace links of the same name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for path, mode in sorted(folders.items()):
            member = tarfile.TarInfo(path.lstrip("/"))
            member.type, member.mode = tarfile.DIRTYPE, mode
            archive.addfile(member)
        for path in files:
            archive.addfile(tarfile.TarInfo(path.lstrip("/")))
    return buffer.getvalue()
