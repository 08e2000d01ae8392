"""What pip, uv, npm and cargo have downloaded serves the next run, and is in no checkpoint."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from ipaddress import ip_network
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
        [network] = ground.client.networks.get("bridge").attrs["IPAM"]["Config"]
        # A daemon that has been started for the first time does not say, and takes the first.
        host = network.get("Gateway") or str(next(ip_network(network["Subnet"]).hosts()))
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
    return pip_settings(new_project(build_cmd="true", test_cmd="true", env=["PIP_CONFIG_FILE=/dev/null"]), index)


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


@on_each_engine
def test_what_a_failed_install_had_is_not_downloaded_again(pip_project, index):
    installed(pip_project, "first", "missing", expected="FAILED")
    installed(pip_project, "first", "second")
    assert sorted(index.fetched(".whl")) == ["first-1-py3-none-any.whl", "second-1-py3-none-any.whl"]


def test_an_image_with_a_user_has_its_own(new_project, index, on_docker_with_user):
    project = pip_settings(new_project(image=on_docker_with_user.image, build_cmd="true", test_cmd="true"), index)
    for name in ("first", "second"):
        index.add_wheel(name)
    installed(project, "first")
    installed(project, "first", "second")
    assert sorted(index.fetched(".whl")) == ["first-1-py3-none-any.whl", "second-1-py3-none-any.whl"]
    assert [path.name for path in tars(project)] == ["install-pip-1234-1234.tar"]


MAIN = "pub fn all() -> Vec<&'static str> { vec![firs::NAME%s] }\n"


def test_what_cargo_had_is_not_downloaded_again(new_project, index):
    project = new_project(
        image="rust:1-slim",
        install_cmd="cargo fetch",
        build_cmd="cargo build --offline",
        test_cmd="cd ${CARGO_HOME:-$HOME/.cargo}/registry && ls cache/* src/*",
    )
    index.add_crates(["firs", "seco", "thir"], project.root / "index.git")
    source = '[source.crates-io]\nreplace-with = "own"\n[source.own]\nregistry = "file:///src/index.git"\n'
    manifest = '[package]\nname = "own"\nversion = "1.0.0"\nedition = "2018"\n[dependencies]\n'
    project.write({".cargo/config.toml": source, "Cargo.toml": f'{manifest}firs = "1"\nseco = "1"\n'})
    project.write({"src/lib.rs": MAIN % ", seco::NAME"})
    run = project.stagebuild()
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}, run.output
    project.write({"Cargo.toml": f'{manifest}firs = "1"\nthir = "1"\n', "src/lib.rs": MAIN % ", thir::NAME"})
    run = project.stagebuild("-s")
    assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}, run.output
    assert sorted(index.fetched(".crate")) == ["firs-1.0.0.crate", "seco-1.0.0.crate", "thir-1.0.0.crate"]
    assert [path.name for path in tars(project)] == ["install-cargo-0-0.tar"]
    # As it would be had it been downloaded now.
    assert "firs-1.0.0.crate" in run.output
    assert "seco" not in run.output


@pytest.mark.parametrize("ground", ["local"], indirect=True)
class TestOnTheLocalEngine:
    def test_a_wheel_that_was_built_is_built_again(self, pip_project, index):
        index.add_sdist_of_made()
        installed(pip_project, "made", more=("--stagebuild-env=MADE=once",))
        said = "python3 -c 'import made; assert made.made == \"twice\", made.made'"
        run = installed(pip_project, "made", more=("--stagebuild-env=MADE=twice", f"--stagebuild-test-cmd={said}"))
        assert run.outcomes()["test"] == "ran", run.output
        assert index.fetched(".tar.gz") == ["made-1.tar.gz"]

    def test_who_starts_afresh_neither_uses_nor_keeps_any(self, pip_project, index):
        installed(pip_project, "first", more=(FRESH,))
        assert tars(pip_project) == []
        installed(pip_project, "first", "second")
        kept = tars(pip_project)[0].read_bytes()
        run = installed(
            pip_project, "first", "third", more=(FRESH, '--stagebuild-test-cmd=test -z "$PIP_CACHE_DIR$UV_LINK_MODE"')
        )
        assert run.outcomes()["test"] == "ran"
        assert index.fetched(".whl").count("first-1-py3-none-any.whl") == 3
        assert [path.read_bytes() for path in tars(pip_project)] == [kept]

    def test_whether_downloads_are_kept_is_no_part_of_a_key(self, pip_project, index):
        installed(pip_project, "first")
        installed(pip_project, "first", more=(FRESH,), expected="CACHED")

    def test_a_run_with_secrets_keeps_none(self, pip_project, index):
        pip_project.environ["TOKEN"] = "a password"
        installed(pip_project, "first", more=("--stagebuild-secret=TOKEN",))
        assert tars(pip_project) == []

    def test_an_index_with_a_password_leaves_nothing_here(self, pip_project, index):
        pip_project.environ["PIP_INDEX_URL"] = f"{index.address.replace('//', '//someone:password@')}/simple/"
        installed(pip_project, "first")
        assert tars(pip_project) == []

    def test_damaged_downloads_are_dropped_with_a_word(self, pip_project, index):
        installed(pip_project, "first")
        [path] = tars(pip_project)
        content = bytearray(path.read_bytes())
        content[5000] ^= 1
        path.write_bytes(content)
        run = installed(pip_project, "first", "second")
        assert "what pip downloaded before was damaged and is downloaded anew" in run.output
        assert index.fetched(".whl").count("first-1-py3-none-any.whl") == 2
        installed(pip_project, "first", "second", "third")
        assert index.fetched(".whl").count("first-1-py3-none-any.whl") == 2

    def test_a_user_s_own_cache_folder_is_left_to_him(self, pip_project, index):
        mine = "--stagebuild-env=PIP_CACHE_DIR=/src/mine"
        installed(pip_project, "first", more=(mine, "--stagebuild-test-cmd=test -e /src/mine/http*"))
        assert tars(pip_project) == []

    def test_the_build_has_its_own(self, pip_project, index):
        build = "--stagebuild-build-cmd=pip install second"
        installed(pip_project, "first", more=(build,))
        assert [path.name for path in tars(pip_project)] == ["build-pip-0-0.tar", "install-pip-0-0.tar"]
        run = pip_project.stagebuild("--stagebuild-install-cmd=pip install first", "--stagebuild-rebuild=build", build)
        assert run.outcomes()["build"] == "ran"
        assert index.fetched(".whl").count("second-1-py3-none-any.whl") == 1

    def test_what_was_downloaded_is_for_the_user_alone(self, pip_project, index):
        installed(pip_project, "first")
        [path] = tars(pip_project)
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert [one.name for one in path.parent.iterdir()] == [path.name]

    def test_what_uv_had_is_not_downloaded_again(self, pip_project, index):
        index.add_sdist_of_made()
        shutil.copy2(Path(sys.executable).parent / "uv", pip_project.root)
        made = 'import made, first, os; assert made.made == os.environ["MADE"], made.made'
        asked: dict[str, set[str]] = {}
        for packages, value in (
            ("first made", "once"),
            ("first second made", "twice"),
            ("first second third made", "thrice"),
        ):
            run = pip_project.stagebuild(
                f"--stagebuild-install-cmd=./uv venv own && VIRTUAL_ENV=/src/own ./uv pip install {packages}",
                f"--stagebuild-env=MADE={value}",
                f"--stagebuild-test-cmd=! test -e ~/.cache/uv && /src/own/bin/python -c '{made}'",
            )
            assert run.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}, run.output
            asked[value] = {*index.fetched(".whl")}  # each of them twice: uv first looks into it
            index.asked.clear()
        assert asked == {
            "once": {"first-1-py3-none-any.whl"},
            "twice": {"second-1-py3-none-any.whl"},
            "thrice": {"third-1-py3-none-any.whl"},
        }

    def test_what_npm_had_is_not_downloaded_again(self, new_project, index):
        for name in ("first", "second", "third"):
            index.add_npm_package(name)
        project = pip_settings(new_project(build_cmd="true", test_cmd="node -e 'require(\"first\")'"), index)
        for packages in ("first", "first second", "first second third"):
            run = project.stagebuild(f"--stagebuild-install-cmd=npm install {packages}")
            assert run.outcomes()["test"] == "ran", run.output
        assert index.fetched(".tgz") == ["first-1.0.0.tgz", "second-1.0.0.tgz", "third-1.0.0.tgz"]
