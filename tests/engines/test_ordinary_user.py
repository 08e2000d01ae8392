"""The local engine for somebody who is not root: one user of one's own, and nothing else to give away."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ordinary import OrdinaryUser
from worlds import BASE, within

pytestmark = pytest.mark.engine

_TABLE = """
[project]
name = "ordinary"
version = "1"
[tool.stagebuild]
engine = "local"
install_cmd = "cp used.txt installed.txt; id -u >>installed.txt; echo >$HOME/kept; touch $VIRTUAL_ENV/bin/program"
build_cmd = "cat installed.txt >built.txt; test -e $HOME/kept"
test_cmd = "cat built.txt"
"""


@pytest.fixture(scope="session")
def somebody() -> Iterator[OrdinaryUser]:
    # None of pytest's own folders: each pytest that starts shuts them to others again.
    folder = Path(tempfile.mkdtemp(prefix="ordinary-"))
    folder.chmod(0o755)
    user = OrdinaryUser(folder / "home")
    user.home.mkdir(mode=0o700)
    user.give(user.home)
    code, said = user.run(
        "-c", "from pytest_stagebuild.engines.local import LocalEngine; LocalEngine.connect().close()"
    )
    if code:
        shutil.rmtree(folder)
        pytest.skip(f"an ordinary user has no local engine here: {said.strip().rpartition(chr(10))[2]}")
    yield user
    shutil.rmtree(folder)


@pytest.fixture
def project(somebody: OrdinaryUser, request: pytest.FixtureRequest) -> Path:
    root = somebody.home / re.sub(r"\W", "-", request.node.name)
    root.mkdir()
    (root / "pyproject.toml").write_text(_TABLE.replace('"ordinary"', f'"{root.name}"', 1))
    (root / "used.txt").write_text("used\n")
    (root / "unused.txt").write_text("unused\n")
    somebody.give(root)
    return root


def stagebuild(somebody: OrdinaryUser, project: Path, *arguments: str) -> tuple[int, str, dict[str, str]]:
    code, output = somebody.run("-m", "pytest", "--stagebuild-source=.", *arguments, cwd=project)
    pattern = r"(?m)^(install|build|test) .*  (CACHED|FAILED|ERROR|skipped|ran)\b"
    return code, output, dict(re.findall(pattern, output.partition("= stagebuild =")[2]))


def test_a_project_goes_through_its_stages_and_is_reused(somebody: OrdinaryUser, project: Path) -> None:
    code, output, stages = stagebuild(somebody, project, "-s")
    assert (code, stages) == (0, {"install": "ran", "build": "ran", "test": "ran"}), output
    assert "used\n0\n" in output
    assert "tracing" not in output
    (project / "unused.txt").write_text("changed\n")
    (project / ".stagebuild" / "stagebuild.lock").unlink()
    code, output, stages = stagebuild(somebody, project)
    assert (code, stages) == (0, {"install": "CACHED", "build": "CACHED", "test": "ran"}), output
    (project / "used.txt").write_text("changed\n")
    code, output, stages = stagebuild(somebody, project)
    assert (code, stages) == (0, {"install": "ran", "build": "ran", "test": "ran"}), output


def test_a_run_that_is_killed_leaves_nothing_that_the_next_one_does_not_remove(
    somebody: OrdinaryUser, project: Path
) -> None:
    token = f"98765.{time.monotonic_ns()}"
    arguments = ["-m", "pytest", "--stagebuild-source=.", f"--stagebuild-install-cmd=sleep {token}"]
    process = somebody.start(*arguments, cwd=project)
    assert within(60, lambda: _runs(f"sleep\0{token}"))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert within(20, lambda: not _runs(f"sleep\0{token}"))
    assert stagebuild(somebody, project)[0] == 0
    assert not [*somebody.home.rglob("sandboxes/*")]


def _runs(command: str) -> bool:
    found = subprocess.run(["grep", "-lzsx", command.split("\0")[1], *map(str, Path("/proc").glob("[0-9]*/cmdline"))],
                           capture_output=True, check=False)  # fmt: skip
    return bool(found.stdout)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("touch /usr/local/bin/program", "part of this machine, which is read-only"),
        ("apt-get install -y nothing", "part of this machine, which is read-only"),
        ("touch owned && chown 1000 owned", "one user"),
    ],
)
def test_what_only_a_full_image_can_do_is_said(somebody: OrdinaryUser, project: Path, command: str, hint: str) -> None:
    code, output, _ = stagebuild(somebody, project, f"--stagebuild-install-cmd={command}")
    assert code == 1
    assert hint in " ".join(output.split()), output


_ON_AN_IMAGE = """
import sys
from dataclasses import replace
from worlds import *
from pytest_stagebuild.engines.local import LocalEngine
from pytest_stagebuild.engines.protocol import ImageConfig, Owner
from pytest_stagebuild.errors import EngineError
import uuid

engine = LocalEngine.connect()
world = World(engine, engine.pull_image(sys.argv[1], lambda _: None), uuid.uuid4().hex)
with world.started({"src/a": b"sent", "src/b": b"sent"}) as sandbox:
    assert sandbox.owner == Owner(0, 0)
    ran = run(sandbox, "id -u; python3 -c 'print(1)'; touch /usr/made; rm /etc/motd b; mkdir -p x/y; echo made >x/y/z")
    assert ran.stdout == b"0\\n1\\n", ran
    assert run(sandbox, "chown 1000 a").code != 0
    assert run(sandbox, "sleep 100", timeout=1).exit.timed_out
    changed = {path for path, content in sandbox.changed_files()}
    assert {"/usr/made", "/src/a", "/src/x/y/z"} <= changed, changed
    made = sandbox.commit(world.name(), world.labels)
with world.sandbox(made) as sandbox:
    assert {"src/a", "src/x/y/z"} <= set(members_of(sandbox.get("/src")))
    assert run(sandbox, "ls /etc/motd /src/b").stdout == b""
    assert run(sandbox, f"cat {sys.argv[2]}").stdout == b""
    sandbox._image = replace(sandbox._image, config=ImageConfig(user="nobody"))
    other = sandbox.commit(world.name("user"), {})
with world.sandbox(other) as sandbox:
    try:
        sandbox.owner
    except EngineError as error:
        print(error)
for image in (other, made):
    assert engine.remove_image(image.id)
engine.close()
"""


def test_an_image_that_was_brought_in_works_as_far_as_one_user_goes(
    somebody: OrdinaryUser, docker_base: object
) -> None:
    image = somebody.home / "image.tar"
    subprocess.run(["docker", "save", "-o", image, BASE], check=True, capture_output=True)
    somebody.give(image)
    canary = somebody.home / "canary"
    canary.write_text("a secret")
    somebody.give(canary)
    code, output = somebody.run("-c", _ON_AN_IMAGE, str(image), str(canary))
    image.unlink()
    assert code == 0, output
    assert "the image's USER is 'nobody', and the local engine has one user here, root" in output
