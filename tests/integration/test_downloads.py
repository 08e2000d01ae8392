"""What pip, uv, npm and cargo have downloaded serves the next run, and is in no checkpoint."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from grounds import on_each_engine
from indexes import Index, serving
from projects import Project, Run

FRESH = "--stagebuild-downloads=fresh"


@pytest.fixture
def index(request: pytest.FixtureRequest) -> Iterator[Index]:
    grounds = {"ground", "each_ground"} & {*request.fixturenames}
    ground = request.getfixturevalue(grounds.pop())
    host = "127.0.0.1"
    if ground.name == "docker":
        bridge = ground.client.networks.get("bridge")
        host = bridge.attrs["IPAM"]["Config"][0]["Gateway"]
    with serving(host) as index:
        yield index


def settings(index: Index) -> dict[str, str]:
    """What tells pip, uv and npm to ask the index, as this machine's own settings would."""
    host = index.address.partition("://")[2].partition(":")[0]
    return {
        "PIP_INDEX_URL": f"{index.address}/simple/",
        "PIP_TRUSTED_HOST": host,
        "UV_DEFAULT_INDEX": f"{index.address}/simple/",
        "NPM_CONFIG_REGISTRY": f"{index.address}/",
    }


@pytest.fixture
def pip_project(new_project: Callable[..., Project], index: Index) -> Project:
    for name in ("first", "second", "third"):
        index.add_wheel(name)
    return pip_settings(
        new_project(build_cmd="true", test_cmd="python3 -c 'import first'", env=["PIP_CONFIG_FILE=/dev/null"]), index
    )


def pip_settings(project: Project, index: Index) -> Project:
    project.environ = {name: value for name, value in project.environ.items() if not name.startswith(("PIP_", "UV_"))}
    project.environ |= settings(index)
    return project


def installed(project: Project, *packages: str, more: tuple[str, ...] = (), expected: str = "ran") -> Run:
    """A run whose install command installs these by pip; one of other packages is another command."""
    run = project.stagebuild(f"--stagebuild-install-cmd=pip install {' '.join(packages)}", *more)
    assert run.outcomes()["install"] == expected, run.output
    return run


def tars(project: Project) -> list[Path]:
    return sorted(Path(project.environ["XDG_CACHE_HOME"]).glob("pytest-stagebuild/downloads/*/*"))


@on_each_engine
def test_what_pip_had_is_not_downloaded_again(pip_project, index):
    installed(pip_project, "first", "second")
    installed(pip_project, "first", "second", "third")
    assert sorted(index.fetched(".whl")) == [f"{name}-1-py3-none-any.whl" for name in ("first", "second", "third")]


@on_each_engine
def test_no_checkpoint_holds_downloads(pip_project, index):
    anywhere = "find / -xdev -path '*/http*/*' -name '[0-9a-f]*' -path '*/pip/*' ! -path '/tmp/*' | grep ."
    installed(pip_project, "first")
    command = f"--stagebuild-test-cmd=! test -e /.stagebuild/run/downloads && ! {anywhere}"
    assert installed(pip_project, "first", "second", more=(command,)).outcomes()["test"] == "ran"
    assert [path.name for path in tars(pip_project)] == ["install-pip-0-0.tar"]
