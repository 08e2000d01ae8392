"""What a container holds beyond its image is the same, however it is asked for."""

from __future__ import annotations

import pytest
from worlds import World, run

from pytest_stagebuild.engines.docker import changes

pytestmark = pytest.mark.engine

COMMAND = r"""
echo more >> /etc/passwd; rm /etc/shells; touch /usr/lib; chmod 700 /opt
rm -rf /usr/share/doc; mkdir /usr/share/doc; echo x > /usr/share/doc/new
rm -rf /usr/share/common-licenses; echo file > /usr/share/common-licenses
mkdir -p /src/deep/er/still; echo a > /src/deep/er/still/file; ln /src/deep/er/still/file /src/deep/hard
mkfifo /src/fifo; ln -s /etc /src/link; printf x > "$(printf '/src/deep/not-utf-8-\377')"
"""


def seen(sandbox) -> dict[str, bytes]:
    found = [(path, b"".join(content)) for path, content in sandbox.changed_files()]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("awkward", ["", "echo y > $(printf '/etc/not-utf-8-\\377')"])
def test_changes_are_the_same_one_by_one_and_in_an_export(docker_world: World, monkeypatch, awkward) -> None:
    with docker_world.started({"src/sent": b"by us"}) as sandbox:
        assert run(sandbox, COMMAND + awkward, user="root").code == 0
        one_by_one = seen(sandbox)
        monkeypatch.setattr(changes, "_MOST_REQUESTS", -1)
        assert one_by_one == seen(sandbox)
    assert one_by_one["/src/sent"] == b"by us"
    assert one_by_one["/usr/share/doc/new"] == b"x\n"
    assert one_by_one["/usr/share/common-licenses"] == b"file\n"
    assert one_by_one["/src/deep/not-utf-8-\udcff"] == b"x"
    assert "/opt" not in one_by_one
    assert ("/etc/not-utf-8-\udcff" in one_by_one) == bool(awkward)
