"""Programs that read files in ways of their own, and an image that has them."""

from __future__ import annotations

import io
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from pytest_stagebuild.engines.protocol import Engine, StoredImage
from pytest_stagebuild.tar import archive_of

PYTHON_IMAGE = "python:3.11-slim"
RUST_IMAGE = "rust:1-slim"

C_READER = rb"""
#include <fcntl.h>
#include <unistd.h>
int main(int count, char **words) {
    char piece[4096];
    int file = open(words[1], O_RDONLY);
    ssize_t size;
    if (file < 0) return 1;
    while ((size = read(file, piece, sizeof piece)) > 0)
        if (write(1, piece, size) != size) return 1;
    return 0;
}
"""

RUST_READER = b"""
use std::io::Write;
fn main() {
    let path = std::env::args_os().nth(1).unwrap();
    match std::fs::read(path) {
        Ok(content) => std::io::stdout().write_all(&content).unwrap(),
        Err(_) => std::process::exit(1),
    }
}
"""

PYTHON_READER = b'''#!/usr/bin/env python3
"""reader.py HOW FILE: print a file that is read by mmap, sendfile, copy_file_range, without access time, as another."""
import mmap, os, sys
how, path = sys.argv[1:]
if how == "other":
    os.setgid(65534)
    os.setuid(65534)
try:
    file = os.open(path, os.O_RDONLY | (os.O_NOATIME if how == "noatime" else 0))
except OSError:
    sys.exit(1)
size = os.fstat(file).st_size
if how == "mmap" and size:
    os.write(1, mmap.mmap(file, 0, prot=mmap.PROT_READ)[:])
elif how == "sendfile":
    out = os.open("/tmp/sent", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.sendfile(out, file, 0, size)
    os.write(1, os.pread(out, size, 0))
elif how == "range":
    out = os.open("/tmp/range", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.copy_file_range(file, out, size)
    os.write(1, os.pread(out, size, 0))
else:
    os.write(1, os.read(file, size))
'''


@contextmanager
def image_with_readers(engine: Engine) -> Iterator[StoredImage]:
    """The Python image with ``/tools/c``, ``/tools/rust`` and ``/tools/reader.py``, and an empty ``/out``."""
    rust, python = engine.find_image(RUST_IMAGE), engine.find_image(PYTHON_IMAGE)
    assert rust, f"the image {RUST_IMAGE} is not here: scripts/ensure-image {RUST_IMAGE}"
    assert python, f"the image {PYTHON_IMAGE} is not here: scripts/ensure-image {PYTHON_IMAGE}"
    compiled: dict[str, bytes] = {}
    with engine.sandbox(rust, labels={}, network=False, life=600) as sandbox:
        sandbox.put([archive_of({"/tools/reader.c": C_READER, "/tools/reader.rs": RUST_READER})])
        sandbox.start()
        said: list[bytes] = []
        ended = sandbox.run(
            "cc -static -O1 -o c reader.c && rustc -O -C target-feature=+crt-static -o rust reader.rs",
            cwd="/tools",
            env={},
            timeout=300,
            output=lambda _, piece: said.append(piece),
            user="root",
        )
        assert ended.code == 0, b"".join(said).decode()
        with tarfile.open(fileobj=io.BytesIO(b"".join(sandbox.get("/tools")))) as tar:
            for name in ("c", "rust"):
                file = tar.extractfile(f"tools/{name}")
                assert file
                compiled[f"/tools/{name}"] = file.read()
    with engine.sandbox(python, labels={}, network=False, life=600) as sandbox:
        sandbox.put([archive_of({**compiled, "/tools/reader.py": PYTHON_READER, "/out/kept": b""})])
        sandbox.start()
        ended = sandbox.run(
            "chmod 755 /tools/* && chmod 777 /out", cwd="/", env={}, timeout=60, output=lambda *_: None, user="root"
        )
        assert ended.code == 0
        image = sandbox.commit(f"stagebuild-test/readers:{uuid.uuid4().hex[:8]}", {})
    try:
        yield image
    finally:
        engine.remove_image(image.id)
