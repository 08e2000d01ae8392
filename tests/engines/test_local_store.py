"""The store of the local engine: who may write to it, what it does not take for an image, where it may lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import pytest_stagebuild
from pytest_stagebuild.engines.local.store import LocalImage, Store
from pytest_stagebuild.engines.protocol import ImageConfig
from pytest_stagebuild.errors import EngineUnavailable

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the local engine runs on Linux only")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store", shift=0)
    yield made
    made.close()


def image(store: Store, *below: LocalImage, name: str = "") -> LocalImage:
    ground = store.make_layer({"/a": 0o755}, ["/a/file"], {})
    made = LocalImage(
        id=ground.name, names=(name,) if name else (), labels={}, config=ImageConfig(), layers=(), platform="",
        stack=(*(one.id for one in below), ground.name), created=float(len(below)), boot="",
    )  # fmt: skip
    return store.publish(ground, made)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_store_is_its_users_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Store(tmp_path / "store", shift=0)
    finally:
        os.umask(before)
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_store_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    Store(tmp_path / "store", shift=0)
    (tmp_path / "store").chmod(mode)
    with pytest.raises(EngineUnavailable, match=r"can be written to by others|can be written by others"):
        Store(tmp_path / "store", shift=0)


def test_a_store_in_whose_place_others_can_put_another_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(EngineUnavailable, match=f"lies in {tmp_path}/open, where everybody can put another folder"):
        Store(tmp_path / "open" / "store", shift=0)
    (tmp_path / "open").chmod(0o1777)
    Store(tmp_path / "open" / "store", shift=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_store_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o700)
    os.chown(tmp_path / "store", 54321, 54321)
    with pytest.raises(EngineUnavailable, match="written by others"):
        Store(tmp_path / "store", shift=0)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'{"schema": 1}', b'{"schema": 99}', b"\xff"])
def test_an_image_whose_description_is_missing_or_damaged_is_garbage(store: Store, content: bytes | None) -> None:
    whole, damaged = image(store), image(store)
    path = store.path / "images" / damaged.id / "image.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert [one.id for one in store.images()] == [whole.id]
    store.sweep()
    assert os.listdir(store.path / "images") == [whole.id]


def test_an_image_without_one_of_its_layers_is_garbage(store: Store) -> None:
    below = image(store)
    above = image(store, below)
    assert {one.id for one in store.images()} == {below.id, above.id}
    (store.path / "images" / below.id / "image.json").unlink()
    assert store.images() == []
    assert store.find(above.id) is None


def test_an_image_of_an_earlier_boot_that_was_never_safe_on_disk_is_garbage(store: Store) -> None:
    made = image(store)
    store.close()  # it is safe now
    folder = store.path / "images" / made.id
    (folder / "image.json").write_bytes(replace(made, boot="an earlier one").to_bytes())
    assert store.find(made.id)
    (folder / "durable").unlink()
    assert store.find(made.id) is None
    store.sweep()
    assert not folder.exists()


def test_stores_that_are_made_at_once_are_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(lambda _: Store(tmp_path / "store", shift=0), range(8)))
    assert len({one.uuid for one in stores}) == 1
    assert json.loads((tmp_path / "store" / "store.json").read_text())["uuid"] == stores[0].uuid


def test_a_name_is_one_images_though_several_take_it_at_once(store: Store) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: image(store, name="taken"), range(8)))
    assert [one.names for one in store.images()].count(("taken",)) == 1
    assert len(store.images()) == len(made)


def test_what_is_thrown_away_goes_whatever_it_holds(store: Store) -> None:
    made = store.make_layer({"/shut": 0o000}, ["/shut/file"], {"/link": "/"})
    here = made / "upper"
    with tempfile.TemporaryDirectory() as _:
        script = 'import os\nfor _ in range(2000): os.mkdir("folder"); os.chdir("folder")\nopen("bottom", "w")'
        subprocess.run([sys.executable, "-c", script], cwd=here, check=True)
    (here / "shut").chmod(0)
    store.drop_sandbox(made.name)
    store.close()
    assert os.listdir(store.path / "trash") == []


_WORKS = """
import os
from pytest_stagebuild.engines.local import LocalEngine
engine = LocalEngine.connect()
said = []
image = engine.find_image("host") or engine.pull_image("host", print)
with engine.sandbox(image, labels={}, network=False, life=60) as one:
    one.put([bytes(1024)])
    one.start()
    assert one.run("echo made >/tmp/made", cwd="/", env={}, timeout=60, output=print).code == 0
    made = one.commit("name", {})
with engine.sandbox(made, labels={}, network=False, life=60) as one:
    one.run("cat /tmp/made", cwd="/", env={}, timeout=60, output=lambda _, piece: said.append(piece))
assert said == [b"made\\n"], said
engine.close()
print("it works")
"""


@pytest.mark.engine
@pytest.mark.parametrize("before", ["", "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"])
def test_a_store_may_have_any_path_and_few_files_may_be_open(tmp_path: Path, before: str) -> None:
    place = os.fsencode(tmp_path) + b"/a b:c,d=e\\'\"\n%s\xff\xc3\xa9"
    os.mkdir(place)
    environment = {
        **os.environb,
        b"PYTEST_STAGEBUILD_STORE": place,
        b"PYTHONPATH": os.fsencode(Path(pytest_stagebuild.__file__).parents[1]),
    }
    command = [sys.executable, "-c", before + "\n" + _WORKS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    if "EngineUnavailable" in done.stderr and "could not make" in done.stderr:
        pytest.skip(done.stderr.rpartition("\n")[2])
    assert done.stdout.endswith("it works\n"), done.stderr
