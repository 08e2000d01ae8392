"""The base image with a named user, as each engine can be told to make it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worlds import run

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import Sandbox, StoredImage

CONFIGURATION: Mapping[str, Any] = {
    "User": "app",
    "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "GREETING=hello world"],
    "WorkingDir": "/home/app",
    "Entrypoint": ["/usr/bin/env"],
    "Cmd": ["id"],
    "Volumes": {"/data": {}},
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 1_000_000_000},
    "StopSignal": "SIGINT",
    "Shell": ["/bin/sh", "-ec"],
}

INSTRUCTIONS = [
    "USER app",
    "ENV PATH=/usr/local/bin:/usr/bin:/bin",
    "ENV GREETING=hello world",
    "WORKDIR /home/app",
    'ENTRYPOINT ["/usr/bin/env"]',
    'CMD ["id"]',
    "VOLUME /data",
    "EXPOSE 80/tcp",
    "STOPSIGNAL SIGINT",
]
"""The same, but for what Podman's ``changes`` have no instruction for (v4.3.1, pkg/util/utils.go, GetImageConfig)."""


def add_user(sandbox: Sandbox) -> None:
    """Start a sandbox and make the user there."""
    sandbox.start()
    added = "printf 'app:x:1000:1001::/home/app:/bin/sh\\n' >>/etc/passwd; printf 'app:x:1001:\\n' >>/etc/group"
    assert run(sandbox, f"{added}; mkdir -p /home/app; chown 1000:1001 /home/app", cwd="/").code == 0


@contextmanager
def image_with_user(engine: DockerEngine, base: StoredImage, commit: Mapping[str, Any]) -> Iterator[StoredImage]:
    """Add the user to ``base``, and commit with these arguments; the image is removed in the end."""
    with engine.sandbox(base, labels={}, network=False, life=300) as sandbox:
        add_user(sandbox)
        made = engine._connection.client.commit(sandbox.name, **commit)
    image = engine.find_image(made["Id"])
    assert image
    yield image
    engine.remove_image(image.id)
