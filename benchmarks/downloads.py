"""Measures an install after one dependency was added, with what the one before it downloaded, against a cold one.

    python benchmarks/downloads.py [--tool pip] [--engine local] [--runs N] [--mbit N] [--json]

The packages come from a server of its own, which asks the index that this machine is set up for only once. It answers
as the large indexes do, ``Cache-Control`` included, at a bandwidth that is stated, and 0 stands for no limit: a mirror
in the same building is not what most users have. The crates are made up, 40 of 250 kB. Cold is an install for
which nothing was kept; the floor is the same command as the other's, in a shell that has just run it elsewhere, so
that all is cached and nothing needs to be brought in. Times are those of the stage, its checkpoint included. Ends with
1 where a ratio passed the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import html
import http.server
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "integration"))

from indexes import Index

LIMIT = 0.5

PYTHON = ("requests", "rich", "pytest", "ruff", "mypy", "numpy")
NPM = ("typescript", "eslint", "prettier", "react", "express")
CRATES = tuple(f"crate{number:02}" for number in range(40))
ADDED = {"pip": "flask", "uv": "flask", "npm": "lodash", "cargo": "added"}

WITNESS = """
import json, os

def pytest_stagebuild_stage_finish(result):
    if result.stage == "install":
        with open(os.environ["WITNESS"], "w") as file:
            json.dump([result.outcome, result.duration], file)
"""


class Mirror:
    """What was fetched from the real indexes, by its path here; ``mbit`` is in Mbit/s."""

    def __init__(self, mbit: float) -> None:
        self.address = ""
        self.files: dict[str, bytes] = {}
        self.sent = 0
        self._packed: dict[str, bytes] = {}
        self._bytes_a_second = mbit * 1e6 / 8
        self._free_at = 0.0
        self._lock = threading.Lock()
        self._python = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
        self._npm = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")

    def content(self, path: str) -> bytes | None:
        if path not in self.files:
            try:
                self.files[path] = self._fetched(path)
            except OSError:
                return None
        return self.files[path]

    def packed(self, path: str) -> bytes:
        """The content as it is sent to those that can unpack it."""
        if path not in self._packed:
            self._packed[path] = gzip.compress(self.files[path], 5)
        return self._packed[path]

    def wait_for(self, size: int) -> None:
        """As long as it takes to send so many bytes after those that are on their way."""
        self.sent += size
        if self._bytes_a_second:
            with self._lock:
                self._free_at = max(self._free_at, time.monotonic()) + size / self._bytes_a_second
                until = self._free_at
            time.sleep(max(0.0, until - time.monotonic()))

    def _fetched(self, path: str) -> bytes:
        if path.startswith("/simple/"):
            origin = f"{self._python}/{path.removeprefix('/simple/')}"
            page = _get(origin).decode()
            return re.sub(r'href="([^"]*)"', lambda match: f'href="{self._link(origin, match[1])}"', page).encode()
        if path.startswith("/from/"):
            url = urllib.parse.unquote(path.removeprefix("/from/").rpartition("/")[0])
            return _get(url + (".metadata" if path.endswith(".metadata") else ""))
        document = json.loads(_get(self._npm + path))
        for version in document.get("versions", {}).values():
            version["dist"]["tarball"] = self._link("", version["dist"]["tarball"])
        return json.dumps(document).encode()

    def _link(self, origin: str, link: str) -> str:
        url, _, digest = urllib.parse.urljoin(origin, html.unescape(link)).partition("#")
        name = url.rpartition("/")[2]
        return f"{self.address}/from/{urllib.parse.quote(url, safe='')}/{name}" + (f"#{digest}" if digest else "")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return bytes(answer.read())


@contextlib.contextmanager
def serving(mirror: Mirror, host: str) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            content = self._answer()
            with contextlib.suppress(ConnectionError):  # who wants no more hangs up
                for at in range(0, len(content), 65536):
                    piece = content[at : at + 65536]
                    mirror.wait_for(len(piece))
                    self.wfile.write(piece)

        def _answer(self) -> bytes:
            content = mirror.content(self.path)
            tag = f'"{hashlib.sha256(content or b"").hexdigest()}"'
            if content is not None and self.headers["If-None-Match"] == tag:
                self.send_response(304)
                self.send_header("ETag", tag)
                self.end_headers()
                return b""
            self.send_response(404 if content is None else 200)
            self.send_header("ETag", tag)
            immutable = self.path.startswith(("/from/", "/crates/"))
            self.send_header("Cache-Control", "max-age=365000000, immutable, public" if immutable else "max-age=600")
            page = self.path.startswith("/simple/")
            if content and not immutable and "gzip" in self.headers.get("Accept-Encoding", ""):
                content = mirror.packed(self.path)
                self.send_header("Content-Encoding", "gzip")
            kind = "text/html" if page else "application/octet-stream" if immutable else "application/json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            return content or b""

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        mirror.address = f"http://{host}:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


class Project:
    """A project of one tool, with the commands that install its dependencies."""

    def __init__(self, tool: str, engine: str, folder: Path, mirror: Mirror) -> None:
        self.tool = tool
        self.root = folder / "project"
        self._folder = folder
        self._engine = engine
        self._mirror = mirror
        self.root.mkdir()
        (folder / "stagebuild_witness.py").write_text(WITNESS, encoding="utf-8")
        self._index = Index()
        self._index.address = mirror.address
        if tool == "uv":
            shutil.copy2(Path(sys.executable).parent / "uv", self.root)
        if tool == "cargo":
            words = random.Random(0).choices("0123456789abcdef", k=500_000)
            names = [*CRATES, ADDED["cargo"]]
            self._index.add_crates(names, self.root / "index.git", "".join(words))
            mirror.files |= self._index.files
            (self.root / ".cargo").mkdir()
            source = '[source.crates-io]\nreplace-with = "own"\n[source.own]\nregistry = "file:///src/index.git"\n'
            (self.root / ".cargo/config.toml").write_text(source, encoding="utf-8")
            (self.root / "src").mkdir()
            (self.root / "src/lib.rs").write_text("", encoding="utf-8")
        (self.root / "pyproject.toml").write_text('[project]\nname = "downloads-benchmark"\nversion = "1"\n')

    def command(self, *, added: bool, other: str = "") -> str:
        """What installs the dependencies; ``other`` names another place for them."""
        more = [ADDED[self.tool]] if added else []
        match self.tool:
            case "pip":
                target = f" --target /tmp/{other}" if other else ""
                return f"pip install -q{target} {' '.join([*PYTHON, *more])}"
            case "uv":
                place = f"own{other}"
                packages = " ".join([*PYTHON, *more])
                return f"./uv venv -q {place} && VIRTUAL_ENV=/src/{place} ./uv pip install -q {packages}"
            case "npm":
                start = f"mkdir -p {other} && cd {other} && " if other else ""
                return f"{start}npm install --no-audit --no-fund {' '.join([*NPM, *more])}"
            case _:
                lines = "\n".join(f'{name} = "1"' for name in [*CRATES, *more])
                manifest = f'[package]\nname = "own"\nversion = "1.0.0"\nedition = "2018"\n[dependencies]\n{lines}\n'
                (self.root / "Cargo.toml").write_text(manifest, encoding="utf-8")
                return "rm -rf ~/.cargo/registry/src; cargo fetch -q" if other else "cargo fetch -q"

    def install(self, command: str) -> float:
        """The seconds that the install stage took with this command."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PIP_", "UV_"))}
        host = self._mirror.address.partition("://")[2].partition(":")[0]
        environ |= {
            "XDG_CACHE_HOME": str(self._folder / "cache"),
            "PYTHONPATH": str(self._folder),
            "WITNESS": str(self._folder / "install.json"),
            "PIP_INDEX_URL": f"{self._mirror.address}/simple/",
            "PIP_TRUSTED_HOST": host,
            "UV_DEFAULT_INDEX": f"{self._mirror.address}/simple/",
            "NPM_CONFIG_REGISTRY": f"{self._mirror.address}/",
        }
        others = {point.name for point in entry_points(group="pytest11")} - {"stagebuild"}
        image = "rust:1-slim" if self.tool == "cargo" else "python:3.11-slim"
        options = [] if self._engine == "local" else [f"--stagebuild-image={image}"]
        words = [
            *(f"-pno:{name}" for name in sorted(others)),
            *("-p", "stagebuild_witness", "--stagebuild-source=.", "--stagebuild-rebuild=install"),
            *(f"--stagebuild-engine={self._engine}", "--stagebuild-env=PIP_CONFIG_FILE=/dev/null", *options),
            *(f"--stagebuild-install-cmd={command}", "--stagebuild-build-cmd=true", "--stagebuild-test-cmd=true"),
        ]
        finished = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            check=False,
            cwd=self.root,
            env=environ,
            capture_output=True,
            text=True,
        )
        if finished.returncode:
            raise SystemExit(finished.stdout + finished.stderr)
        outcome, duration = json.loads((self._folder / "install.json").read_text(encoding="utf-8"))
        assert outcome == "ran", finished.stdout
        return float(duration)

    def forget(self) -> None:
        shutil.rmtree(self._folder / "cache/pytest-stagebuild/downloads", ignore_errors=True)

    def kept(self) -> int:
        """The bytes that are kept."""
        return sum(path.stat().st_size for path in self._folder.glob("cache/pytest-stagebuild/downloads/*/*"))

    def floor(self) -> float:
        """The seconds that the command itself takes where all is cached."""
        first, again = self.command(added=True), self.command(added=True, other="again")
        self.install(f"({first}) && date +floor:%s.%N && ({again}) && date +floor:%s.%N")
        log = (self.root / ".stagebuild/logs/install.log").read_text(encoding="utf-8")
        begun, ended = re.findall(r"^floor:([\d.]+)$", log, re.MULTILINE)
        return float(ended) - float(begun)

    def clean_up(self) -> None:
        lockfile = self.root / ".stagebuild/stagebuild.lock"
        if self._engine == "docker" and lockfile.exists():
            known = json.loads(lockfile.read_text(encoding="utf-8"))["checkpoints"].values()
            for one in sorted(known, key=lambda one: one["created"], reverse=True):
                subprocess.run(["docker", "rmi", "-f", one["image"]], check=False, stdout=subprocess.DEVNULL)


def measure(tool: str, engine: str, runs: int, mbit: float, host: str) -> dict[str, object]:
    """Medians in seconds, after a pair of runs that are not counted."""
    mirror = Mirror(0)
    with tempfile.TemporaryDirectory(prefix="stagebuild-downloads-") as folder, serving(mirror, host):
        project = Project(tool, engine, Path(folder), mirror)
        cold: list[float] = []
        added: list[float] = []
        try:
            project.install(project.command(added=True))  # the mirror has all that follows
            mirror._bytes_a_second = mbit * 1e6 / 8
            for _ in range(runs):
                project.forget()
                before = mirror.sent
                cold.append(project.install(project.command(added=False)))
                downloaded, before = mirror.sent - before, mirror.sent
                added.append(project.install(project.command(added=True)))
                again = mirror.sent - before
            kept, floor = project.kept(), project.floor()
        finally:
            project.clean_up()
    return {
        "tool": tool,
        "engine": engine,
        "Mbit/s": mbit,
        "cold": statistics.median(cold),
        "one added": statistics.median(added),
        "ratio": statistics.median(one / other for one, other in zip(added, cold, strict=True)),
        "floor": floor,
        "downloaded cold, MB": downloaded / 1e6,
        "downloaded with one added, MB": again / 1e6,
        "kept, MB": kept / 1e6,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tool", action="append", choices=ADDED, help="default: all that the engine's images have")
    parser.add_argument("--engine", choices=("docker", "local"), default="local")
    parser.add_argument("--host", help="address of this machine that containers reach (default: Docker's usual one)")
    parser.add_argument("--runs", type=int, default=3, help="how many pairs of installs")
    parser.add_argument("--mbit", type=float, default=100, help="bandwidth of the index in Mbit/s, 0 for no limit")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    host = options.host or ("127.0.0.1" if options.engine == "local" else "172.17.0.1")
    tools = options.tool or (["pip", "uv", "npm"] if options.engine == "local" else ["pip", "uv", "cargo"])
    found = [measure(tool, options.engine, options.runs, options.mbit, host) for tool in tools]
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        for one in found:
            print(", ".join(f"{name} {f'{it:.2f}' if isinstance(it, float) else it}" for name, it in one.items()))
    return 1 if any(float(str(one["ratio"])) > LIMIT for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
