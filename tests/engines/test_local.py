"""What only the local engine does: its store, its layers, images that are brought in."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import platform
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from bare import busybox
from worlds import World, members_of, run, tar_of

from pytest_stagebuild.engines.local import LocalEngine, engine, host
from pytest_stagebuild.engines.local.engine import STORE_VARIABLE
from pytest_stagebuild.engines.protocol import StoredImage
from pytest_stagebuild.errors import EngineError, ImageUnavailable

TRUSTED: dict[str, Any] = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
"""Debian's Python 3.11 has no filters yet."""

pytestmark = pytest.mark.engine


def test_a_stack_of_many_layers_is_flattened_and_holds_the_same(
    local: LocalEngine, local_base: StoredImage, world_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert engine._DEEPEST == 32
    monkeypatch.setattr(engine, "_DEEPEST", 4)
    world: World = world_of(local, local_base)
    image = local_base
    for number in range(8):
        with world.started({f"src/f{number}": b"%d" % number}, image=image) as sandbox:
            run(sandbox, f"rm -f soft f{number - 2}; ln f{number} hard{number}; ln -s f{number} soft")
            run(sandbox, f"mkdir -p empty; chmod 700 f{number}")
            image = sandbox.commit(world.name(f"n{number}"), {})
        found = local._store.find(image.id)
        assert found
        assert len(found.stack) <= 5
    assert image.layers[:1] == local_base.layers
    assert len(image.layers) == 9
    with world.sandbox(image) as sandbox:
        files = members_of(sandbox.get("/src"))
        assert run(sandbox, "python3 -c 'print(1)'; readlink /bin; ls -ld /tmp").stdout.startswith(
            b"1\nusr/bin\ndrwxrwxrwt"
        )
    there = {name.removeprefix("src/") for name in files} - {"src"}
    assert there == {"f6", "f7", "soft", "empty", *(f"hard{number}" for number in range(8))}
    assert files["src/f7"][0].mode & 0o777 == 0o700
    assert files["src/soft"][0].linkname == "f7"


def saved(tags: list[str], layers: list[bytes], **config: object) -> bytes:
    """What ``docker save`` writes for an image of these layers."""
    digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    files = {f"{number}/layer.tar": layer for number, layer in enumerate(layers)}
    manifest = [{"Config": "config.json", "RepoTags": tags, "Layers": list(files)}]
    files["config.json"] = json.dumps({"rootfs": {"diff_ids": digests}, "config": config}).encode()
    return tar_of({**files, "manifest.json": json.dumps(manifest).encode()})


def layout(manifests: list[tuple[str, bytes]], folder: Path) -> None:
    """An OCI layout whose images have one layer each, for these platforms."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return f"sha256:{digest}"

    listed = []
    for architecture, layer in manifests:
        config = {"rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}, "config": {"Env": ["A=b"]}}
        manifest = {
            "config": {"digest": blob(json.dumps(config).encode())},
            "layers": [{"digest": blob(gzip.compress(layer))}],
        }
        listed.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": blob(json.dumps(manifest).encode()),
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    (folder / "oci-layout").write_text("{}")
    (folder / "index.json").write_text(json.dumps({"manifests": listed}))


@pytest.fixture
def brought(local: LocalEngine) -> Iterator[Callable[[Path], StoredImage]]:
    """Brings in what lies at a path, as ``--stagebuild-image`` does."""
    images: list[StoredImage] = []

    def bring(path: Path) -> StoredImage:
        images.append(local.find_image(str(path)) or local.pull_image(str(path), lambda _: None))
        return images[-1]

    yield bring
    for image in images:
        local.remove_image(image.id)


def test_what_is_put_in_takes_the_place_of_what_is_there(local: LocalEngine, local_base: StoredImage) -> None:
    before = "mkdir -p folder/deep empty; echo old | tee folder/deep/x target >file; ln -s target link; ln -s empty way"
    archive = tar_of({"src/folder": b"1", "src/file/": b"", "src/file/in": b"2", "src/link": b"3", "src/way/": b""})
    with local.sandbox(local_base, labels={}, network=False, life=60) as sandbox:
        sandbox.put([tar_of({"src/": b""})])
        sandbox.start()
        assert run(sandbox, before).code == 0
        sandbox.put([archive])
        assert run(sandbox, "cat folder file/in link target").stdout == b"123old\n"
        assert run(sandbox, "test -d way && test ! -L way").code == 0


def test_a_sparse_file_arrives_whole_and_so_does_what_follows(
    local: LocalEngine, local_base: StoredImage, tmp_path: Path
) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(3 << 20)
        file.write(b"end")
    (tmp_path / "next").write_text("next")
    command = ["tar", "-c", "--sparse", "--format=gnu", "-C", tmp_path, "sparse", "next"]
    archive = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    assert len(archive) < 100_000
    with local.sandbox(local_base, labels={}, network=False, life=60) as sandbox:
        sandbox.put([archive])
        assert members_of(sandbox.get("/sparse"))["sparse"][1] == (tmp_path / "sparse").read_bytes()
        assert members_of(sandbox.get("/next"))["next"][1] == b"next"


def test_half_a_file_is_an_error(local: LocalEngine, local_base: StoredImage) -> None:
    archive = tar_of({"src/file": bytes(5000)})
    with (
        local.sandbox(local_base, labels={}, network=False, life=60) as sandbox,
        pytest.raises(EngineError, match="unexpected end of data"),
    ):
        sandbox.put([archive[:3000]])


def says(engine: LocalEngine, image: StoredImage, command: str) -> str:
    with engine.sandbox(image, labels={}, network=False, life=60) as sandbox:
        sandbox.start()
        ran = run(sandbox, command, cwd="/")
        assert ran.code == 0, ran.stderr
        return ran.stdout.decode()


SHELL = ("sh", "cat", "ls", "rm")


@pytest.mark.parametrize("form", ["tar", "tar.gz", "tar.xz", "folder"])
def test_a_root_file_system_is_an_image(
    local: LocalEngine, brought: Callable[[Path], StoredImage], tmp_path: Path, form: str
) -> None:
    archive, path = busybox(SHELL), tmp_path / "root"
    match form:
        case "folder":
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(path, **TRUSTED)
            (path / "etc/name").write_text("one")
        case "tar":
            path.write_bytes(archive)
        case "tar.gz":
            path.write_bytes(gzip.compress(archive))
        case "tar.xz":
            path.write_bytes(lzma.compress(archive))
    image = brought(path)
    assert says(local, image, "echo /bin/s*; ls /dev/null") == "/bin/sh\n/dev/null\n"
    assert brought(path) == image
    if form == "folder":
        (path / "etc/name").write_text("two")
        assert [says(local, one, "cat /etc/name") for one in (image, brought(path))] == ["one", "two"]
        assert brought(path).identity != image.identity


def test_a_saved_image_has_its_layers_configuration_and_name(
    local: LocalEngine, brought: Callable[[Path], StoredImage], tmp_path: Path, test_id: str
) -> None:
    below = {"a/kept": b"1", "a/gone": b"1", "b/old": b"1", "b/in/old": b"1", "c/replaced/file": b"1"}
    above = {"a/.wh.gone": b"", "b/.wh..wh..opq": b"", "b/new": b"2", "c/replaced": b"2", "dev/sda": b"", "proc/x": b""}
    layers = [busybox(SHELL), tar_of(below), tar_of(above)]
    (tmp_path / "saved").write_bytes(saved([f"mine:{test_id}"], layers, Env=["GREETING=hello"], Cmd=["sh"]))
    image = brought(tmp_path / "saved")
    assert says(
        local, image, 'echo "$GREETING"; ls /a /b /c; cat /c/replaced; [ ! -e /dev/sda ] && [ ! -e /proc/x ]'
    ) == ("hello\n/a:\nkept\n\n/b:\nnew\n\n/c:\nreplaced\n2")
    assert image.config.cmd == ("sh",)
    assert image.layers == tuple(f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers)
    assert local.find_image(f"mine:{test_id}") == image


@pytest.mark.parametrize("archived", [False, True])
def test_of_a_layout_the_image_for_this_machine_is_taken(
    local: LocalEngine, brought: Callable[[Path], StoredImage], tmp_path: Path, archived: bool
) -> None:
    own = local.platform.removeprefix("linux/")
    layout([("s390x", tar_of({"wrong": b""})), (own, busybox(SHELL))], path := tmp_path / "layout")
    if archived:
        with tarfile.open(tmp_path / "layout.tar", "w") as tar:
            tar.add(path, arcname=".")
            for name in ("oci-layout", "index.json", "blobs"):
                tar.add(path / name, arcname=name)
        path = tmp_path / "layout.tar"
    assert says(local, brought(path), 'echo "$A" /bin/s*') == "b /bin/sh\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "is no image that can be imported: empty file"),
        (b"not a tar" * 999, "is no image that can be imported"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "it is compressed with zstd"),
        (saved(["one:1"], [tar_of({"a": b""})])[:2048], "is no image that can be imported"),
        (tar_of({"manifest.json": b'[{"RepoTags": ["a:1"]}, {"RepoTags": ["b:1"]}]'}), "it holds 2 images (a:1, b:1)"),
        (tar_of({"manifest.json": b"{"}), "is no image that can be imported"),
        (tar_of({"manifest.json": b'[{"Config": "../x", "Layers": []}]'}), "is no image that can be imported"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(
    local: LocalEngine, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageUnavailable) as failed:
        local.pull_image(str(path), lambda _: None)
    assert words in str(failed.value)
    assert "Name a folder or a tar with a root file system" in str(failed.value)


def test_an_image_that_was_not_brought_in_is_not_to_be_had(local: LocalEngine) -> None:
    with pytest.raises(ImageUnavailable, match=r"docker save nobody:1 -o .*--stagebuild-engine=docker.*image=host"):
        local.pull_image("nobody:1", lambda _: None)
    assert local.find_image("nobody:1") is None


def test_an_image_without_a_shell_says_so(
    local: LocalEngine, brought: Callable[[Path], StoredImage], tmp_path: Path
) -> None:
    (tmp_path / "root.tar").write_bytes(tar_of({"bin/cat": b"#!"}, mode=0o755))
    with (
        local.sandbox(brought(tmp_path / "root.tar"), labels={}, network=False, life=60) as sandbox,
        pytest.raises(EngineError, match="has no /bin/sh"),
    ):
        sandbox.start()


def test_the_host_is_an_image_of_its_own_system_and_python(local: LocalEngine) -> None:
    image = local.find_image("host") or local.pull_image("host", lambda _: None)
    assert image.title.startswith(f"{platform.python_implementation()} {platform.python_version()}, ")
    said = says(
        local,
        image,
        "command -v python; command -v pip; python -c 'import sys; print(sys.version, sys.prefix, sys.base_prefix)'",
    )
    assert said == f"/venv/bin/python\n/venv/bin/pip\n{sys.version} /venv {os.path.realpath(sys.base_prefix)}\n"
    assert (
        says(local, image, "touch /usr/x 2>/dev/null || echo read-only; echo x >/root/x; cat /root/x")
        == "read-only\nx\n"
    )


def test_an_upgraded_host_is_another_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packages = tmp_path / "status"
    packages.write_text("Package: one")
    monkeypatch.setattr(host, "_PACKAGES", (str(packages),))
    before = host.this_host(tmp_path)
    assert host.this_host(tmp_path) == before
    packages.write_text("Package: two")
    assert host.this_host(tmp_path).digest != before.digest


def test_an_image_that_breaks_off_leaves_nothing_in_the_store(
    local: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    path.write_bytes(saved([], [busybox(SHELL), b"garbled" * 999]))
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "store"))  # others put images into that of all workers
    with closing(LocalEngine.connect()) as own:
        with pytest.raises(EngineError):
            own.pull_image(str(path), lambda _: None)
        assert own._store.images() == []
