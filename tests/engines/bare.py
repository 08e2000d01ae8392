"""Archives of root file systems that hold a shell and hardly anything else."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from worlds import tar_of


def busybox(applets: Sequence[str]) -> bytes:
    """A file system with a static busybox under these names."""
    program = shutil.which("busybox", path="/bin:/usr/bin:/sbin:/usr/sbin")
    if program is None or subprocess.run(["ldd", program], capture_output=True, check=False).returncode == 0:
        pytest.skip("no static busybox on this machine: apt-get install busybox-static")
    archive = io.BytesIO()
    folders = {"proc/": b"", "src/": b"", "etc/": b""}
    archive.write(tar_of({"bin/busybox": Path(program).read_bytes(), **folders}, mode=0o755))
    archive.seek(0)
    with tarfile.open(fileobj=archive, mode="a") as tar:
        for applet in applets:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return archive.getvalue()
