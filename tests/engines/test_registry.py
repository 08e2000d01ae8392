"""Images from registries that answer, ask for a password, are down, break off or do not have them."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from own_engine import own_engine
from proxies import Proxy
from registries import PASSWORD, USER, Registry, image_of, noise, registry

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import PullProgress
from pytest_stagebuild.errors import EngineError, ImageUnavailable

# The SDK leaves a socket open where its connection to an engine that has ended is refused.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")]

SIZE = 3_000_000


@pytest.fixture(scope="module")
def open_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("open")) as running:
        yield running


@pytest.fixture(scope="module")
def private_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("private"), password=True) as running:
        yield running


@pytest.fixture
def publish(docker: DockerEngine, test_id: str) -> Iterator[Callable[..., str]]:
    """Puts a new image into a registry, and sees that the engine does not keep it."""
    references: list[str] = []

    def put(running: Registry, tag: str = "1") -> str:
        client = docker._connection.client
        with image_of(client, f"stagebuild-test-{test_id}", noise(SIZE)) as image:
            references.append(running.push(client, image, f"thing-{test_id}:{tag}"))
        return references[-1]

    yield put
    for reference in references:
        if image := docker.find_image(reference):
            docker.remove_image(image.id)


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DockerEngine]]:
    """Connects with a configuration of the docker command as given."""
    engines: list[DockerEngine] = []

    def connect(**config: object) -> DockerEngine:
        (tmp_path / "config.json").write_text(json.dumps(config))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        engines.append(DockerEngine.connect())
        return engines[-1]

    yield connect
    for engine in engines:
        engine.close()


def authentication(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def ignored(progress: PullProgress) -> None: ...


def refusal(engine: DockerEngine, reference: str) -> str:
    with pytest.raises(ImageUnavailable) as caught:
        engine.pull_image(reference, ignored)
    return str(caught.value)


def offline(reference: str) -> str:
    """What every refusal ends with."""
    return (
        f"Check the name and that its registry answers, log in there (docker login {reference.partition('/')[0]}), "
        f"or bring it in offline: `docker save {reference} -o image.tar` where it is and `docker load -i image.tar` "
        f"here, or `docker import rootfs.tar {reference}`."
    )


def test_a_pull_counts_its_bytes(docker: DockerEngine, open_registry: Registry, publish: Callable[..., str]) -> None:
    reference = publish(open_registry)
    seen: list[PullProgress] = []
    image = docker.pull_image(reference, seen.append)
    assert docker.find_image(reference) == image
    assert seen[0].reference == reference
    assert [one.received for one in seen] == sorted(one.received for one in seen)
    assert seen[-1].received == seen[-1].total
    assert SIZE <= seen[-1].received < 1.1 * SIZE


def test_an_image_is_pulled_by_its_digest_whatever_tag_stands_beside_it(
    docker: DockerEngine, open_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(open_registry)
    by_tag = docker.pull_image(reference, ignored)
    [digest] = docker._connection.inspect_image(by_tag.id)["RepoDigests"]
    docker.remove_image(by_tag.id)
    tagged = f"{reference}@{digest.partition('@')[2]}"
    assert docker.find_image(tagged) is None
    assert docker.pull_image(tagged, ignored).layers == by_tag.layers
    assert docker.find_image(digest) == docker.find_image(tagged)
    assert docker.find_image(reference) is None
    assert docker.remove_image(by_tag.id)


def test_a_tag_that_has_moved_is_another_image_once_it_is_pulled_again(
    docker: DockerEngine, open_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(open_registry)
    before = docker.pull_image(reference, ignored)
    assert publish(open_registry) == reference
    try:
        assert docker.pull_image(reference, ignored).identity != before.identity
    finally:
        docker.remove_image(before.id)


def test_a_tag_that_the_registry_does_not_have_is_refused_in_the_engines_words(
    docker: DockerEngine, open_registry: Registry
) -> None:
    reference = f"{open_registry.address}/nothing:1"
    said = refusal(docker, reference)
    assert re.match(rf"the image {reference} is not here, and the engine could not pull it: .*manifest unknown", said)
    assert said.endswith("\n" + offline(reference))


def test_a_registry_that_is_down_is_named_with_how_the_connection_failed(docker: DockerEngine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    reference = f"127.0.0.1:{port}/thing:1"
    said = refusal(docker, reference)
    assert f"127.0.0.1:{port}: connect: connection refused" in said
    assert said.endswith("\n" + offline(reference))


def test_a_registry_that_asks_for_a_password_is_told_how_to_log_in(
    configured: Callable[..., DockerEngine], private_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(private_registry)
    said = refusal(configured(), reference)
    assert "no basic auth credentials" in said
    assert f"docker login {private_registry.address}" in said
    assert said.endswith("\n" + offline(reference))


def test_the_credentials_of_the_docker_command_are_used(
    configured: Callable[..., DockerEngine], private_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(private_registry)
    engine = configured(auths={private_registry.address: authentication(USER, PASSWORD)})
    assert engine.pull_image(reference, ignored) == engine.find_image(reference)


def test_a_wrong_password_is_refused_and_not_shown(
    configured: Callable[..., DockerEngine], private_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(private_registry)
    engine = configured(auths={private_registry.address: authentication(USER, "wr0ng-one")})
    said = refusal(engine, reference)
    assert "unauthorized" in said
    assert "wr0ng-one" not in said


def test_a_credential_helper_that_is_missing_hinders_no_public_image(
    configured: Callable[..., DockerEngine], open_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(open_registry)
    engine = configured(credsStore="stagebuild-test-missing")
    assert engine.pull_image(reference, ignored) == engine.find_image(reference)


def test_a_credential_helper_that_is_missing_is_named_where_a_password_is_asked_for(
    configured: Callable[..., DockerEngine], private_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(private_registry)
    said = refusal(configured(credsStore="stagebuild-test-missing"), reference)
    assert "no basic auth credentials (no credentials: " in said
    assert "docker-credential-stagebuild-test-missing" in said


def test_a_registry_that_breaks_off_in_the_middle_of_a_layer_leaves_no_image(
    docker: DockerEngine, open_registry: Registry, publish: Callable[..., str]
) -> None:
    direct = publish(open_registry)
    host, port = open_registry.address.split(":")
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        own_engine("--max-download-attempts=1", on_this_host=True) as own,
    ):
        proxy = Proxy(listener, lambda: socket.create_connection((host, int(port))))
        proxy.cut_when = lambda sent, received: b"/blobs/" in sent and received > 1_000_000
        reference = direct.replace(f":{port}/", f":{listener.getsockname()[1]}/")
        with own.connected() as engine:
            said = refusal(engine, reference)
            assert proxy.cuts
            assert "unexpected EOF" in said
            assert said.endswith("\n" + offline(reference))
            assert engine.find_image(reference) is None
            assert engine.pull_image(direct, ignored)  # nothing of the first pull is in the way
        proxy.die()


def test_an_engine_that_stops_during_a_pull_is_no_fault_of_the_image(
    docker: DockerEngine, open_registry: Registry, publish: Callable[..., str]
) -> None:
    reference = publish(open_registry)
    with own_engine(on_this_host=True) as own, own.connected() as engine:

        def stop(progress: PullProgress) -> None:
            own.stop(signal.SIGKILL)

        with pytest.raises(
            EngineError, match=f"could not pull {reference}: .*Check that the engine still runs"
        ) as caught:
            engine.pull_image(reference, stop)
        assert not isinstance(caught.value, ImageUnavailable)
