"""Files into a sandbox and out of it, as tars: done inside, where no link leads out."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile

from . import kernel
from .root import step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, BinaryIO

_PIECE = 1 << 20

_FOLDER = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_MOUNTED = ("/dev/", "/proc/")
"""What of an image nobody would see."""

_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"

# Names of users are nothing to us, and looking them up would read the sandbox's own files.
tarfile.pwd = tarfile.grp = None  # type: ignore[attr-defined]


def extract(stream: BinaryIO, *, layer: bool) -> None:
    """Put what the tar holds where its headers say, in place of what is there.

    That of a layer also says what is gone: https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#whiteouts.
    """
    folders: list[tuple[str, int]] = []
    new: set[str] = set()
    source = _Forward(stream)
    with tarfile.TarFile(fileobj=source, errorlevel=2) as archive:  # type: ignore[arg-type]
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]
            path = os.path.normpath("/" + member.name.strip("/"))
            if layer and f"{path}/".startswith(_MOUNTED):
                continue
            if layer and os.path.basename(path).startswith(_WHITEOUT):
                _white_out(path, new)
                continue
            if layer:
                new.add(path)
            if member.isreg():
                content = archive.extractfile(member) if member.issparse() else source
                _write(path, member, content)  # type: ignore[arg-type]
            elif member.isdir():
                _make_folder(path, member)
                folders.append((path, int(member.mtime)))
            else:
                _make_way(path, member)
                _make(path, member)
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    source.drain()


class _Forward:
    """The stream as the file that ``tarfile`` reads. Its own, of mode ``r|``, copies the rest of a piece at each read.

    The content of a member begins where its header was read to, unless it is sparse.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = io.BufferedReader(stream, _PIECE)  # type: ignore[type-var]
        self._position = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._position += len(data)
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.ReadError("a member has a negative size")
        while (left := position - self._position) and self.read(min(left, _PIECE)):
            pass

    def drain(self) -> None:
        """Read to the end, so that whoever sends is not told of a broken pipe."""
        while self._stream.read(_PIECE):
            pass


def _make(path: str, member: tarfile.TarInfo) -> None:
    """Make a link or FIFO, and give it its owner, mode and time; never a device, which the machine's own root makes."""
    if member.islnk():
        os.link(os.path.normpath("/" + member.linkname.lstrip("/")), path, follow_symlinks=False)
        return
    if member.issym():
        os.symlink(member.linkname, path)
    elif member.isfifo():
        os.mkfifo(path)
    else:
        return
    _own(path, member)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)
    os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)


def _make_folder(path: str, member: tarfile.TarInfo) -> None:
    try:
        os.mkdir(path)
    except OSError:
        _make_way(path, member)
    _own(path, member)
    os.chmod(path, member.mode & 0o7777)


def _white_out(path: str, new: set[str]) -> None:
    """Remove what a layer says is gone of the layers below it."""
    folder, name = os.path.split(path)
    all_names = os.listdir(folder) if os.path.isdir(folder) else []
    names = all_names if name == _OPAQUE else [name[len(_WHITEOUT) :]]
    for gone in (os.path.join(folder, one) for one in names):
        if gone in new or not os.path.lexists(gone):
            continue
        if os.path.isdir(gone) and not os.path.islink(gone):
            _remove(gone)
        else:
            os.unlink(gone)


def _make_way(path: str, member: tarfile.TarInfo) -> None:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        if member.isdir():
            os.makedirs(path)
        else:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return
    if stat.S_ISDIR(there.st_mode):
        if not member.isdir():
            _remove(path)
    else:
        os.unlink(path)
        if member.isdir():
            os.mkdir(path)


def _remove(folder: str) -> None:
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            _remove(entry.path)
        else:
            os.unlink(entry.path)
    os.rmdir(folder)


def _write(path: str, member: tarfile.TarInfo, content: IO[bytes]) -> None:
    """Make a file. Most have no other in their way, and a folder to be in: that is found out in making them."""
    try:
        file = os.open(path, _NEW_FILE, 0o600)
    except OSError:
        _make_way(path, member)
        file = os.open(path, _NEW_FILE, 0o600)
    try:
        left = member.size
        while left > 0:
            piece = content.read(min(left, _PIECE))
            if not piece:
                raise tarfile.ReadError("unexpected end of data")
            left -= len(piece)
            while piece:
                piece = piece[os.write(file, piece) :]
        _own(file, member)
        os.chmod(file, member.mode & 0o7777)
        os.utime(file, (member.mtime, member.mtime))
    finally:
        os.close(file)


def _own(there: str | int, member: tarfile.TarInfo) -> None:
    try:
        if isinstance(there, int):
            os.chown(there, member.uid, member.gid)
        else:
            os.chown(there, member.uid, member.gid, follow_symlinks=False)
    except OSError as error:
        # Where only one user is mapped, everything is that user's.
        if error.errno != errno.EINVAL:
            raise


class _Onward:
    """The stream as the file that ``tarfile`` writes. Its own, of mode ``w|``, copies all of a piece at each write."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = io.BufferedWriter(stream, _PIECE)
        self._position = 0
        self.flush = self._stream.flush

    def write(self, data: bytes) -> None:
        self._position += len(data)
        self._stream.write(data)

    def tell(self) -> int:
        return self._position


@contextlib.contextmanager
def _writing(stream: BinaryIO) -> Iterator[tarfile.TarFile]:
    out = _Onward(stream)
    with tarfile.TarFile(mode="w", fileobj=out, format=tarfile.PAX_FORMAT) as tar:  # type: ignore[arg-type]
        yield tar
    out.flush()


def archive(path: str, stream: BinaryIO) -> None:
    """A tar of ``path``, with its last component at the top."""
    top = path.rstrip("/").rpartition("/")[2]
    with _writing(stream) as tar:
        tar.add(path, arcname=top or "/")


def whole(stream: BinaryIO) -> None:
    """A tar of all layers as one, without what is mounted on top of them."""
    os.chdir("/")
    own = os.lstat("/").st_dev

    def mounted_left_out(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return member if os.lstat(member.name).st_dev == own else None

    with _writing(stream) as tar:
        tar.add(".", filter=mounted_left_out)


def changes(upper: int, lowers: list[int], stream: BinaryIO) -> None:
    """A tar of what the upper layer holds that the lower ones have not, in the words of overlayfs.

    A folder stands in it only where it is new: https://www.kernel.org/doc/html/latest/filesystems/overlayfs.html.
    """
    with _writing(stream) as tar:
        for path, there, place in _below(upper):
            if stat.S_ISCHR(there.st_mode) and there.st_rdev == 0:
                continue  # says that a file of a lower layer is gone
            if stat.S_ISDIR(there.st_mode) and not _is_new(path, place, lowers):
                continue
            _add(tar, path, there, place)
            tar.members.clear()  # type: ignore[attr-defined]


def _below(top: int) -> Iterator[tuple[str, os.stat_result, int]]:
    """What lies below the folder ``top``: its path, what it is, and a descriptor of the folder that it is in.

    ``top`` lies on the host. A folder is opened by its name in the one above it, and left through ``..``, each time
    making sure that it is the one that was meant: a link in its place would lead out, and no tree is too deep.
    """
    here = os.open(".", _FOLDER, dir_fd=top)
    way: list[tuple[str, Iterator[str], os.stat_result]] = [("", iter(sorted(os.listdir(here))), os.fstat(here))]
    try:
        while way:
            folder, names, _ = way[-1]
            name = next(names, None)
            if name is None:
                way.pop()
                if way:
                    here = _moved(here, "..", way[-1][2])
                continue
            path = f"{folder}/{name}".lstrip("/")
            there = os.stat(name, dir_fd=here, follow_symlinks=False)
            yield path, there, here
            if stat.S_ISDIR(there.st_mode):
                here = _moved(here, name, there)
                way.append((path, iter(sorted(os.listdir(here))), there))
    finally:
        os.close(here)


def _moved(here: int, name: str, meant: os.stat_result) -> int:
    """A descriptor of the folder ``name`` in ``here``, which is closed."""
    there = os.open(name, _FOLDER, dir_fd=here)
    if not os.path.samestat(os.fstat(there), meant):
        os.close(there)
        raise OSError(errno.ESTALE, "it changed while it was read")
    os.close(here)
    return there


def _is_new(path: str, place: int, lowers: list[int]) -> bool:
    folder = os.open(os.path.basename(path), _FOLDER, dir_fd=place)
    try:
        if os.getxattr(folder, "user.overlay.opaque") == b"y":
            return True
    except OSError:
        pass
    finally:
        os.close(folder)
    return not any(_is_folder(lower, path) for lower in lowers)


def _is_folder(lower: int, path: str) -> bool:
    try:
        there = kernel.open_beneath(lower, path)
    except OSError:
        return False
    try:
        return stat.S_ISDIR(os.fstat(there).st_mode)
    finally:
        os.close(there)


def _add(tar: tarfile.TarFile, path: str, there: os.stat_result, place: int) -> None:
    member = tarfile.TarInfo(path)
    name = os.path.basename(path)
    member.mode, member.uid, member.gid = stat.S_IMODE(there.st_mode), there.st_uid, there.st_gid
    member.mtime = int(there.st_mtime)
    if stat.S_ISREG(there.st_mode):
        with open(os.open(name, _FILE, dir_fd=place), "rb", 0) as file:
            member.size = os.fstat(file.fileno()).st_size
            tar.addfile(member, file)
        return
    if stat.S_ISDIR(there.st_mode):
        member.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(there.st_mode):
        member.type, member.linkname = tarfile.SYMTYPE, os.readlink(name, dir_fd=place)
    elif stat.S_ISFIFO(there.st_mode):
        member.type = tarfile.FIFOTYPE
    else:
        return
    tar.addfile(member)


def prove() -> None:
    """Do to a file of a lower layer, and to new ones, what commands do. Raises :class:`~.root.Failed`."""
    with step("make a folder on an overlay"):
        os.mkdir("/probe/new")
    for path in ("/probe/file", "/probe/new/file"):
        with step("write to an overlay"), open(path, "w") as file:
            file.write("written")
        with step("rename on an overlay"):
            os.rename(path, path + ".renamed")
        with step("read what was written to an overlay"), open(path + ".renamed") as file:
            if file.read() != "written":
                raise OSError(errno.EIO, "it is not there")
        with step("remove from an overlay"):
            os.unlink(path + ".renamed")
            if os.path.lexists(path + ".renamed") or os.path.lexists(path):
                raise OSError(errno.EIO, "it is still there")
