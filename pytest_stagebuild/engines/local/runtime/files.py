"""Files into a sandbox and out of it, as tars: done inside, where no link leads out."""

from __future__ import annotations

import errno
import os
import stat
import tarfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_PIECE = 1 << 20

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
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_PIECE, errorlevel=2) as archive:
        for member in archive:
            archive.members.clear()  # type: ignore[attr-defined]
            path = os.path.normpath("/" + member.name.strip("/"))
            if layer and f"{path}/".startswith(_MOUNTED):
                continue
            if layer and os.path.basename(path).startswith(_WHITEOUT):
                _white_out(path, new)
                continue
            new.add(path)
            _make_way(path, member)
            if _make(path, archive, member) and member.isdir():
                folders.append((path, int(member.mtime)))
    for path, mtime in reversed(folders):
        os.utime(path, (mtime, mtime))
    # To the end, so that whoever sends is not told of a broken pipe.
    while stream.read(_PIECE):
        pass


def _make(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    """Make what a member says, and give it its owner, mode and time; False for what has or gets none of its own."""
    if member.islnk():
        os.link(os.path.normpath("/" + member.linkname.lstrip("/")), path, follow_symlinks=False)
        return False
    if member.issym():
        os.symlink(member.linkname, path)
    elif member.isfifo():
        os.mkfifo(path)
    elif member.isreg():
        _write(path, archive, member)
    elif not member.isdir():
        return False  # a device, which only the machine's own root can make
    _own(path, member)
    if not member.issym():
        os.chmod(path, member.mode & 0o7777)
    if not member.isdir():
        os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
    return True


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


def _write(path: str, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "wb", 0
    ) as file:
        while piece := content.read(_PIECE):
            file.write(piece)


def _own(path: str, member: tarfile.TarInfo) -> None:
    try:
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
    except OSError as error:
        # Where only one user is mapped, everything is that user's.
        if error.errno != errno.EINVAL:
            raise


def archive(path: str, stream: BinaryIO) -> None:
    """A tar of ``path``, with its last component at the top."""
    top = path.rstrip("/").rpartition("/")[2]
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE) as tar:
        tar.add(path, arcname=top or "/")


def whole(stream: BinaryIO) -> None:
    """A tar of all layers as one, without what is mounted on top of them."""
    os.chdir("/")
    own = os.lstat("/").st_dev

    def mounted_left_out(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        return member if os.lstat(member.name).st_dev == own else None

    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE) as tar:
        tar.add(".", filter=mounted_left_out)


def changes(upper: int, lowers: list[int], stream: BinaryIO) -> None:
    """A tar of what the upper layer holds that the lower ones have not, in the words of overlayfs.

    A folder stands in it only where it is new: https://www.kernel.org/doc/html/latest/filesystems/overlayfs.html.
    """
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_PIECE) as tar:
        os.fchdir(upper)
        for path in _below(""):
            there = os.lstat(path)
            if stat.S_ISCHR(there.st_mode) and there.st_rdev == 0:
                continue  # says that a file of a lower layer is gone
            if stat.S_ISDIR(there.st_mode) and not _is_new(path, lowers):
                continue
            tar.add(path, recursive=False)
    os.chdir("/")


def _below(folder: str) -> Iterator[str]:
    with os.scandir(folder or ".") as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path = os.path.join(folder, entry.name)
            yield path
            if entry.is_dir(follow_symlinks=False):
                yield from _below(path)


def _is_new(folder: str, lowers: list[int]) -> bool:
    try:
        if os.getxattr(folder, "user.overlay.opaque") == b"y":
            return True
    except OSError:
        pass
    return not any(_is_folder(lower, folder) for lower in lowers)


def _is_folder(lower: int, path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path, dir_fd=lower, follow_symlinks=False).st_mode)
    except OSError:
        return False


def prove() -> None:
    """Do to a file of a lower layer, and to new ones, what commands do. Raises ``OSError``."""
    os.mkdir("/probe/new")
    for path in ("/probe/file", "/probe/new/file"):
        with open(path, "w") as file:
            file.write("written")
        os.rename(path, path + ".renamed")
        with open(path + ".renamed") as file:
            if file.read() != "written":
                raise OSError(errno.EIO, "what was written is not there")
        os.unlink(path + ".renamed")
    if os.listdir("/probe") != ["new"]:
        raise OSError(errno.EIO, "what was removed is still there")
