"""What a source tree looked like when it was read: how each file's inode stood, and the digest of what was in it.

A file whose inode stands as it did has what it had then, by git's racy rule (https://git-scm.com/docs/racy-git): one
that was younger than a file system's clock can tell apart when it was read counts as changed. So a tree of which
nothing has changed is known by one comparison of bytes, and none of its files is opened.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_stagebuild.source.manifest import Entry, Kind, Manifest, path_of
from pytest_stagebuild.values import dataclass

if TYPE_CHECKING:
    from pytest_stagebuild.source.reading import Folders

_STAMP: Final = struct.Struct("=QQIqqq")
"""Device, inode, mode, size, and the times of the last change of content and inode, in nanoseconds. No program sets the
last of them."""

STAMP: Final = _STAMP.size

UNSETTLED: Final = bytes(STAMP)
"""In place of a stamp that says nothing; no inode has this one."""

_VANISHED: Final = _STAMP.pack(0, 0, 0, 0, 2**63 - 1, 2**63 - 1)
"""What a file that is not there has: of a time to come, so that it is never kept, and nothing is like it."""

_TIMES: Final = struct.Struct("=28xqq")
_SIZE: Final = struct.Struct("=20xq16x")
_DIGEST: Final = 32
_KINDS: Final[tuple[Kind, ...]] = ("file", "executable", "link")
_MAGIC: Final = b"pytest-stagebuild tree 1\n"
_HEAD: Final = struct.Struct("=QQ32sI")
"""The number of files, the bytes of their names, the manifest's digest, and a checksum of the rest."""


@dataclass(frozen=True)
class Seen:
    """Of ``count`` files in the order of their paths: ``names``, each ended by a zero byte, and stamps, kinds, digests.

    ``digest`` is their manifest's.
    """

    count: int
    names: bytes
    stamps: bytes
    kinds: bytes
    digests: bytes
    digest: str

    @classmethod
    def of(cls, paths: Sequence[bytes], stamps: bytes, manifest: Manifest, *, settled_until: int) -> Seen:
        """Of what was read just now; ``paths`` are sorted, and ``stamps`` were taken before anything was read.

        A stamp with a time from after ``settled_until``, in nanoseconds since the epoch, is not kept.
        """
        entries = [manifest.entries[path_of(path)] for path in paths]
        kept = bytearray(stamps)
        for number, times in enumerate(_TIMES.iter_unpack(kept)):
            if max(times) >= settled_until:
                kept[number * STAMP : (number + 1) * STAMP] = UNSETTLED
        return cls(
            count=len(paths),
            names=names_of(paths),
            stamps=bytes(kept),
            kinds=bytes(_KINDS.index(entry.kind) for entry in entries),
            digests=bytes.fromhex("".join(entry.digest for entry in entries)),
            digest=manifest.digest,
        )

    @property
    def known_size(self) -> int:
        """The bytes of all files but those that had been changed just before."""
        return sum(size for (size,) in _SIZE.iter_unpack(self.stamps))

    @property
    def manifest(self) -> Manifest:
        return Manifest.known(self.digest, self.count, self.entries)

    def entries(self) -> Mapping[str, Entry]:
        digests = self.digests.hex()
        kinds = [_KINDS[kind] for kind in self.kinds]
        return {
            path_of(path): Entry(kinds[number], digests[number * 64 : number * 64 + 64])
            for number, path in enumerate(self.paths())
        }

    def paths(self) -> list[bytes]:
        return self.names.split(b"\0")[:-1]

    def still(self, paths: Sequence[bytes], stamps: bytes) -> Iterator[tuple[bytes, Entry | None]]:
        """Each of the sorted ``paths``, and its entry where its stamp is the one it had."""
        ours = iter(enumerate(self.paths()))
        number, known = next(ours, (0, None))
        for position, path in enumerate(paths):
            while known is not None and known < path:
                number, known = next(ours, (0, None))
            stamp = stamps[position * STAMP : (position + 1) * STAMP]
            if known == path and self.stamps[number * STAMP : (number + 1) * STAMP] == stamp:
                digest = self.digests[number * _DIGEST : (number + 1) * _DIGEST].hex()
                yield path, Entry(_KINDS[self.kinds[number]], digest)
            else:
                yield path, None

    def save(self, file: Path) -> None:
        """Keep it for the next run; where that cannot be, the next run reads all files."""
        rest = self.names + self.stamps + self.kinds + self.digests
        head = _HEAD.pack(self.count, len(self.names), bytes.fromhex(self.digest), zlib.crc32(rest))
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with contextlib.suppress(OSError):
            temporary.write_bytes(_MAGIC + head + rest)
            os.replace(temporary, file)

    @classmethod
    def load(cls, file: Path) -> Seen | None:
        """What :meth:`save` kept, None where there is nothing whole."""
        start = len(_MAGIC) + _HEAD.size
        try:
            data = file.read_bytes()
            count, named, digest, checksum = _HEAD.unpack(data[len(_MAGIC) : start])
        except (OSError, struct.error):
            return None
        parts = [named, count * STAMP, count, count * _DIGEST]
        if not data.startswith(_MAGIC) or len(data) != start + sum(parts) or zlib.crc32(data[start:]) != checksum:
            return None
        ends = [start + sum(parts[:number]) for number in range(len(parts) + 1)]
        names, stamps, kinds, digests = (data[ends[number] : ends[number + 1]] for number in range(len(parts)))
        return cls(count, names, stamps, kinds, digests, digest.hex())


def names_of(paths: Sequence[bytes]) -> bytes:
    """The paths as :class:`Seen` holds them."""
    return b"\0".join((*paths, b""))


def take_stamps(folders: Folders, paths: Sequence[bytes]) -> bytes:
    """The stamps of the sorted ``paths``, one after the other."""
    taken = bytearray(len(paths) * STAMP)
    pack, stat = _STAMP.pack_into, os.stat
    here: bytes | None = None
    handle: int | None = None
    place = 0
    for path in paths:
        slash = path.rfind(b"/")
        folder = path[:slash] if slash > 0 else b""
        if folder != here:
            here, handle = folder, folders.enter(folder)
        try:
            if handle is None:
                raise FileNotFoundError(folder)
            there = stat(path[slash + 1 :], dir_fd=handle, follow_symlinks=False)
        except OSError:  # reading it says what is wrong
            taken[place : place + STAMP] = _VANISHED
        else:
            pack(
                taken, place,
                there.st_dev, there.st_ino, there.st_mode, there.st_size, there.st_mtime_ns, there.st_ctime_ns,
            )  # fmt: skip
        place += STAMP
    return bytes(taken)
