"""What Podman does differently, as far as it shows without a Podman."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pytest_stagebuild.engines.docker.images import stored_image
from pytest_stagebuild.engines.docker.podman import Podman, is_podman

WORDS = st.none() | st.lists(st.text())


@given(entrypoint=WORDS, cmd=WORDS)
def test_no_word_of_a_configuration_becomes_an_instruction(entrypoint, cmd):
    changes = Podman().commit_query({"Entrypoint": entrypoint, "Cmd": cmd})["changes"]
    lines = "\n".join(changes).splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["ENTRYPOINT", "CMD"]
    assert [json.loads(line.partition(" ")[2]) for line in lines] == [entrypoint or [], cmd or []]


def test_an_image_is_the_same_with_and_without_what_podman_adds():
    added = ["TERM=xterm", "container=podman", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    base, made = (
        Podman().stored_image({"Id": "1", "Config": config})
        for config in ({"Env": ["B=1", "A=2"]}, {"Env": ["A=2", *added, "B=1"], "WorkingDir": "/"})
    )
    assert base.identity == made.identity


def test_what_the_image_itself_says_makes_another_one():
    plain, *others = (
        Podman().stored_image({"Id": "1", "Config": config}).identity
        for config in ({"Env": ["A=1"]}, {"Env": ["A=1", "TERM=vt100"]}, {"Env": ["A=1"], "WorkingDir": "/src"})
    )
    assert plain not in others


def test_docker_s_images_are_left_as_they_are():
    image = stored_image({"Id": "1", "Config": {"Env": ["TERM=xterm", "A=1"], "WorkingDir": "/"}})
    assert (image.config.env, image.config.working_dir) == (("TERM=xterm", "A=1"), "/")


def test_podman_is_known_by_a_header_of_its_own():
    assert is_podman({"Api-Version": "1.41", "Libpod-Api-Version": "4.3.1"})
    assert not is_podman({"Api-Version": "1.41", "Server": "Docker/20.10.24 (linux)"})


def test_the_identity_does_not_change_with_podman_s_id():
    ask = [{"ID": one, "DockerRootDir": "/var/lib/containers/storage", "Name": "host"} for one in ("a", "b")]
    assert len({Podman().identity("ssh://host", info) for info in ask}) == 1
    another = {**ask[0], "DockerRootDir": "/home/x"}
    assert Podman().identity("ssh://host", another) != Podman().identity("ssh://host", ask[0])


def test_a_short_name_that_is_nowhere_gets_the_advice_to_write_the_whole():
    words = 'short-name "python:3.11-slim" did not resolve to an alias and no unqualified-search registries are defined'
    assert "docker.io/library/python:3.11-slim" in Podman().pull_advice("python:3.11-slim", words)
    assert "docker.io" not in Podman().pull_advice("quay.io/x", "connection refused")
