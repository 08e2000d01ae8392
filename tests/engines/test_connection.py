"""Where an engine is looked for, and what is said when none answers."""

from __future__ import annotations

import contextlib
import http.server
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from pytest_stagebuild.engines import connect
from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.errors import EngineError, EngineUnavailable

ADVICE = "Start one (systemctl start docker, or dockerd), or point DOCKER_HOST at one that runs."


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of the docker command, with nothing configured in it."""
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "no-configuration"))
    return monkeypatch


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, and which everybody may enter."""
    path = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def refusal() -> str:
    with pytest.raises(EngineUnavailable) as caught:
        connect("docker")
    return str(caught.value)


def tried(*failures: str) -> str:
    return "\n".join(["no Docker engine answers. Tried:", *(f"  {failure}" for failure in failures), ADVICE])


def test_a_socket_that_is_not_there_is_absent(configured: pytest.MonkeyPatch, folder: Path) -> None:
    configured.setenv("DOCKER_HOST", f"unix://{folder}/none.sock")
    assert refusal() == tried(f"unix://{folder}/none.sock (from DOCKER_HOST): absent (no such socket)")


def test_a_socket_that_nobody_listens_at_refuses(configured: pytest.MonkeyPatch, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(f"{folder}/docker.sock")
    configured.setenv("DOCKER_HOST", f"unix://{folder}/docker.sock")
    assert refusal() == tried(f"unix://{folder}/docker.sock (from DOCKER_HOST): refused (nothing listens there)")


def test_a_socket_of_others_is_denied_and_the_way_in_is_told(configured: pytest.MonkeyPatch, folder: Path) -> None:
    path = f"{folder}/docker.sock"
    configured.setenv("DOCKER_HOST", f"unix://{path}")
    refusal()  # everything is imported now: another user may not be able to read it
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        Path(path).chmod(0o000)
        with unprivileged():
            said = refusal()
    assert said == (
        tried(f"unix://{path} (from DOCKER_HOST): permission denied")
        + " Where permission was denied, add yourself to the socket's group (usermod -aG docker NAME), log in again."
    )


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Be someone whom permissions hold for."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_each_usual_socket_is_tried_where_nothing_is_configured(folder: Path) -> None:
    # In a mount namespace of its own, /run is empty.
    if os.geteuid() != 0:
        pytest.skip("hiding the usual socket needs root")
    script = "from pytest_stagebuild.engines import connect; connect('docker')"
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "XDG_"))}
    ran = subprocess.run(
        [
            "unshare",
            "--mount",
            "sh",
            "-c",
            'mount -t tmpfs tmpfs /run && exec "$@"',
            "sh",
            sys.executable,
            "-c",
            script,
        ],
        env={**environ, "HOME": str(folder), "XDG_RUNTIME_DIR": f"{folder}/run"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr.partition("EngineUnavailable: ")[2].rstrip() == tried(
        "unix:///var/run/docker.sock: absent (no such socket)",
        f"unix://{folder}/run/docker.sock: absent (no such socket)",
        f"unix://{folder}/.docker/run/docker.sock: absent (no such socket)",
    )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("gopher://home:70", "Invalid bind address protocol: gopher://home:70"),
        ("tcp://", "Invalid bind address format: tcp://"),
        ("tcp://127.0.0.1", "Invalid bind address format: port is required: tcp://127.0.0.1"),
        ("tcp://127.0.0.1:many", "Port could not be cast to integer value as 'many'"),
        ("unix:///tmp/" + "x" * 108, "AF_UNIX path too long"),
    ],
)
def test_an_address_that_is_none_is_named_with_what_is_wrong(
    configured: pytest.MonkeyPatch, address: str, words: str
) -> None:
    configured.setenv("DOCKER_HOST", address)
    assert refusal() == tried(f"{address} (from DOCKER_HOST): {words}")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_a_host_that_refuses_is_told_from_one_that_does_not_exist(configured: pytest.MonkeyPatch) -> None:
    address = f"tcp://127.0.0.1:{closed_port()}"
    configured.setenv("DOCKER_HOST", address)
    assert refusal() == tried(f"{address} (from DOCKER_HOST): refused (nothing listens there)")
    configured.setenv("DOCKER_HOST", "tcp://no-such-host.invalid:2375")
    assert "tcp://no-such-host.invalid:2375 (from DOCKER_HOST): unknown host (" in refusal()


def test_what_answers_and_is_no_engine_is_said_to_be_none(configured: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>It works!</html>")

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"tcp://127.0.0.1:{server.server_port}"
        configured.setenv("DOCKER_HOST", address)
        said = refusal()
        server.shutdown()
    assert said == tried(f"{address} (from DOCKER_HOST): what answers there is no Docker engine")


@pytest.fixture
def certificates(folder: Path) -> Mapping[str, str]:
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (folder / name).write_bytes(b"")
    return {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}


def test_a_host_with_tls_that_refuses(configured: pytest.MonkeyPatch, certificates: Mapping[str, str]) -> None:
    address = f"tcp://127.0.0.1:{closed_port()}"
    for name, value in {**certificates, "DOCKER_HOST": address}.items():
        configured.setenv(name, value)
    assert refusal() == tried(f"{address} (from DOCKER_HOST): refused (nothing listens there)")


def test_certificates_that_are_missing_are_named(configured: pytest.MonkeyPatch, folder: Path) -> None:
    configured.setenv("DOCKER_HOST", "tcp://127.0.0.1:2376")
    configured.setenv("DOCKER_TLS_VERIFY", "1")
    configured.setenv("DOCKER_CERT_PATH", f"{folder}/none")
    said = refusal()
    assert said.startswith("no Docker engine answers. Tried:\n  what the docker command is configured for: ")
    assert "certificate" in said
    assert said.endswith(ADVICE)


def test_a_context_that_does_not_exist_is_named_and_no_other_is_taken(configured: pytest.MonkeyPatch) -> None:
    configured.setenv("DOCKER_CONTEXT", "elsewhere")
    assert refusal() == tried("what the docker command is configured for: context 'elsewhere' not found")


def refusal_of(configured: pytest.MonkeyPatch, folder: Path, answer: bytes, *, kind: str = "unix") -> tuple[str, bytes]:
    """What is said of something that gives this answer to its first request, and the head of that request."""
    heard = bytearray()
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as listener:
        listener.bind(f"{folder}/docker.sock" if kind == "unix" else ("127.0.0.1", 0))
        listener.listen()
        place = f"{folder}/docker.sock" if kind == "unix" else f"127.0.0.1:{listener.getsockname()[1]}"
        configured.setenv("DOCKER_HOST", f"{kind}://{place}")

        def give() -> None:
            with listener.accept()[0] as asking:
                while b"\r\n\r\n" not in heard:
                    heard.extend(asking.recv(4096))
                asking.sendall(answer)

        answering = threading.Thread(target=give)
        answering.start()
        said = refusal()
        answering.join()
    return said, bytes(heard)


def test_what_answers_without_a_version_is_said_to_be_no_engine(configured: pytest.MonkeyPatch, folder: Path) -> None:
    said, _ = refusal_of(configured, folder, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
    assert said == tried(f"unix://{folder}/docker.sock (from DOCKER_HOST): what answers there is no Docker engine")


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_headers_that_the_docker_command_sends_are_sent(
    configured: pytest.MonkeyPatch, folder: Path, kind: str
) -> None:
    (folder / "config.json").write_text('{"HttpHeaders": {"X-Meta": "ours"}}')
    configured.setenv("DOCKER_CONFIG", str(folder))
    answer = b'HTTP/1.1 403 Forbidden\r\nContent-Length: 21\r\n\r\n{"message": "no way"}'
    said, heard = refusal_of(configured, folder, answer, kind=kind)
    assert said.splitlines()[1].endswith("(from DOCKER_HOST): no way")
    assert b"X-Meta: ours\r\n" in heard


def test_an_engine_that_is_too_old_says_so(configured: pytest.MonkeyPatch, folder: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nApi-Version: 1.30\r\nContent-Length: 2\r\n\r\nOK"
    said, _ = refusal_of(configured, folder, answer)
    assert "its interface has the version 1.30, and 1.35 is needed: update the engine" in said


def test_what_speaks_something_else_at_a_socket_is_said_to_be_no_engine(
    configured: pytest.MonkeyPatch, folder: Path
) -> None:
    said, _ = refusal_of(configured, folder, b"220 mail.example.org ESMTP\r\n")
    assert said == tried(f"unix://{folder}/docker.sock (from DOCKER_HOST): what answers there is no Docker engine")


def test_a_user_without_a_home_reaches_the_usual_socket(configured: pytest.MonkeyPatch) -> None:
    configured.delenv("HOME", raising=False)
    configured.setattr("os.path.expanduser", lambda path: path)
    configured.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    configured.setenv("DOCKER_HOST", "unix:///none.sock")
    assert "absent" in refusal()
    configured.delenv("DOCKER_HOST")
    with contextlib.suppress(EngineUnavailable):
        connect("docker")[0].close()


def test_an_engine_that_does_not_say_what_it_is_is_named_all_the_same(
    docker: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: DockerEngine) -> None:
        raise EngineError("403 Forbidden")

    monkeypatch.setattr(DockerEngine, "_ask_what_it_is", refuses)
    engine = DockerEngine(docker._connection)
    assert engine.describe() == f"docker at {docker._connection.address}"
    with pytest.raises(EngineError, match="403"):
        _ = engine.identity
