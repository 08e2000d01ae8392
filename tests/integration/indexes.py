"""Package indexes that the tests serve themselves, and that say what was asked of them."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import http.server
import io
import json
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

BACKEND = """
import os, zipfile

def build_wheel(folder, settings=None, metadata=None):
    made = os.environ["MADE"]
    name = "made-1-py3-none-any.whl"
    files = {
        "made.py": f"made = {made!r}\\n",
        "made-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: made\\nVersion: 1\\n",
        "made-1.dist-info/WHEEL": "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        "made-1.dist-info/RECORD": "",
    }
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
"""
"""Makes a wheel that tells what the environment was in which it was made."""


class Index:
    """Files by their path below a server's root, and the paths that were asked for, in order.

    They are served as those of the large indexes are: what a file holds never changes.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.address = ""

    def fetched(self, ending: str) -> list[str]:
        """The names of the files with this ending that were asked for, each time that they were."""
        return [path.rpartition("/")[2] for path in self.asked if path.endswith(ending)]

    # Python

    def add_wheel(self, name: str) -> None:
        info = f"{name}-1.dist-info"
        files = {
            f"{name}.py": f"name = {name!r}\n".encode(),
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        rows = [f"{path},sha256={_urlsafe(content)},{len(content)}" for path, content in files.items()]
        files[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        self._add_python(name, f"{name}-1-py3-none-any.whl", wheel.getvalue())

    def add_sdist_of_made(self) -> None:
        """A package called "made" that has to be built, with nothing but itself."""
        project = '[project]\nname = "made"\nversion = "1"\n'
        system = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        files = {
            "PKG-INFO": "Metadata-Version: 2.1\nName: made\nVersion: 1\n",
            "pyproject.toml": system + project,
            "backend.py": BACKEND,
        }
        self._add_python("made", "made-1.tar.gz", _packed({f"made-1/{path}": text for path, text in files.items()}))

    def _add_python(self, name: str, file: str, content: bytes) -> None:
        self.files[f"/files/{file}"] = content
        link = f'<a href="/files/{file}#sha256={hashlib.sha256(content).hexdigest()}">{file}</a>'
        self.files[f"/simple/{name}/"] = f"<!DOCTYPE html><html><body>{link}</body></html>".encode()

    # npm

    def add_npm_package(self, name: str) -> None:
        package = {"name": name, "version": "1.0.0", "main": "index.js"}
        files = {"package/package.json": json.dumps(package), "package/index.js": f"module.exports = '{name}'\n"}
        content = _packed(files)
        self.files[f"/{name}/-/{name}-1.0.0.tgz"] = content
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(content).digest()).decode()
        dist = {"tarball": f"{self.address}/{name}/-/{name}-1.0.0.tgz", "integrity": integrity}
        document = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": {**package, "dist": dist}}}
        self.files[f"/{name}"] = json.dumps(document).encode()

    # cargo

    def add_crates(self, names: list[str], folder: Path, text: str = "") -> None:
        """Put crates on the server, and the index that names them into ``folder``, a bare repository.

        ``text`` is in each of them.
        """
        work = folder.with_name("index-work")
        (work / "1").mkdir(parents=True)
        (work / "config.json").write_text(json.dumps({"dl": f"{self.address}/crates/{{crate}}-{{version}}.crate"}))
        for name in names:
            manifest = f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2018"\n'
            files = {"Cargo.toml": manifest, "src/lib.rs": f'pub const NAME: &str = "{name}";\n', "text": text}
            content = _packed({f"{name}-1.0.0/{path}": text for path, text in files.items()})
            self.files[f"/crates/{name}-1.0.0.crate"] = content
            row = {"name": name, "vers": "1.0.0", "deps": [], "features": {}, "yanked": False}
            row["cksum"] = hashlib.sha256(content).hexdigest()
            place = work / name[:2] / name[2:4] / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps(row) + "\n")
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
        for command in (
            ["git", "init", "-q", "-b", "master"],
            ["git", "add", "-A"],
            ["git", *identity, "commit", "-qm", "crates"],
            ["git", "clone", "-q", "--bare", ".", str(folder)],
        ):
            subprocess.run(command, cwd=work, check=True)
        (folder / "refs" / "heads" / "keep").touch()  # a repository has this folder, and folders are not sent empty


def _packed(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            header = tarfile.TarInfo(path)
            header.size, header.mode = len(text.encode()), 0o644
            archive.addfile(header, io.BytesIO(text.encode()))
    return gzip.compress(packed.getvalue(), mtime=0)


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@contextlib.contextmanager
def serving(host: str) -> Iterator[Index]:
    """An index at an address of this machine that what asks it can reach."""
    index = Index()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            index.asked.append(self.path)
            self.wfile.write(self._answer())

        def _answer(self) -> bytes:
            path = self.path
            content = index.files.get(path)
            self.send_response(404 if content is None else 200)
            if path.endswith((".whl", ".tar.gz", ".tgz", ".crate")):
                self.send_header("Cache-Control", "max-age=365000000, immutable, public")
            kind = "text/html" if path.startswith("/simple/") else "application/octet-stream"
            self.send_header("Content-Type", "application/json" if content and content[:1] == b"{" else kind)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content or b""

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        index.address = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()
