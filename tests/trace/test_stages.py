"""Traced stages on a real engine: what a checkpoint depends on, on each kind of image, however its files are used."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import pytest
from alpine import alpine_image
from places import Place
from readers import PYTHON_IMAGE

from pytest_stagebuild.engines.docker import DockerEngine
from pytest_stagebuild.engines.protocol import Engine, StoredImage

NewPlace = Callable[..., Place]

BUSYBOX = ("sh", "cat", "rm", "true", "ls", "kill", "sleep")
ENDED = "the watcher ended before it had reported"
NO_PYTHON = "there is no Python in the image"


@pytest.fixture(scope="session")
def alpine(
    docker: DockerEngine, bring: Callable[[StoredImage], StoredImage], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StoredImage]:
    donor = docker.find_image(PYTHON_IMAGE)
    assert donor
    with alpine_image(docker, donor, tmp_path_factory.mktemp("alpine")) as image:
        yield bring(image)


def changed(image: StoredImage, engine: Engine, command: str, name: str) -> StoredImage:
    """The image after root has run a command on it."""
    with engine.sandbox(image, labels={}, network=False, life=60) as sandbox:
        sandbox.start()
        assert sandbox.run(command, cwd="/", env={}, timeout=60, output=lambda *_: None, user="root").code == 0
        return sandbox.commit(f"stagebuild-test/trace-{name}", {})


def fill(place: Place) -> None:
    for path, text in {"used.txt": "1", "pkg/used.py": "2", "pkg/other.py": "3", "tests/test_it.py": "4"}.items():
        (place.root / path).parent.mkdir(exist_ok=True)
        (place.root / path).write_text(text)


USES = {"install": "cat used.txt >/out.txt", "build": "cat pkg/used.py >/built.txt"}


def test_a_stage_depends_on_what_its_command_used(new_place: NewPlace, python_image: StoredImage) -> None:
    place = new_place(python_image, **USES)
    fill(place)
    assert place.run() == {"install": "ran: first run", "build": "ran: first run"}
    assert place.inputs("install") == {"files": ["used.txt"], "folders": [""]}
    assert place.inputs("build") == {"files": ["pkg/used.py"], "folders": ["", "pkg"]}
    (place.root / "pkg/other.py").write_text("changed")
    (place.root / "tests/test_it.py").write_text("changed")
    assert place.run() == {"install": "cached", "build": "cached"}
    (place.root / "pkg/used.py").write_text("changed")
    assert place.run() == {"install": "cached", "build": "ran: pkg/used.py changed"}
    (place.root / "used.txt").write_text("changed")
    assert place.run() == {"install": "ran: used.txt changed", "build": "ran: deps-installed is new"}


def test_the_newest_of_several_checkpoints_whose_inputs_match_is_reused(
    new_place: NewPlace, python_image: StoredImage
) -> None:
    place = new_place(python_image, **USES)
    fill(place)
    made = {}
    for text in ("one", "two"):
        (place.root / "used.txt").write_text(text)
        place.run()
        made[text] = place.checkpoints()
    for text in ("one", "two", "one"):
        (place.root / "used.txt").write_text(text)
        assert place.run() == {"install": "cached", "build": "cached"}
        assert place.checkpoints() == made[text]


def test_a_lost_lockfile_costs_no_trace(new_place: NewPlace, python_image: StoredImage) -> None:
    place = new_place(python_image, **USES)
    fill(place)
    place.run()
    shutil.rmtree(place.root / ".stagebuild")
    (place.root / "pkg/other.py").write_text("changed")
    assert place.run() == {"install": "cached", "build": "cached"}
    (place.root / "pkg/used.py").write_text("changed")
    assert place.run() == {"install": "cached", "build": "ran: pkg/used.py changed"}


def test_a_plan_names_the_file_that_makes_a_stage_run(new_place: NewPlace, python_image: StoredImage) -> None:
    place = new_place(python_image, **USES)
    fill(place)
    place.run()
    (place.root / "pkg/used.py").write_text("changed")
    assert [(one.reuse is not None, one.reason) for one in place.plan()] == [
        (True, ""),
        (False, "pkg/used.py changed"),
        (False, "every time"),
    ]


@pytest.mark.parametrize(
    "reader",
    [
        "cat {}",
        "cp {} /out/copy",
        "cp -a {} /out/copy",
        "cp -l {} linked",
        "mv {} moved",
        "ln {} linked",
        "ln {} /tmp/linked; cat /tmp/linked",
        "/tools/c {}",
        "/tools/rust {}",
        "/tools/reader.py mmap {}",
        "/tools/reader.py sendfile {}",
        "/tools/reader.py range {}",
        "/tools/reader.py noatime {}",
        "/tools/reader.py other {}",
        "sh {}",
        "chmod +x {}; ./{}",
        "sed -i s/1/2/ {}",
        "echo >>{}",
        "truncate -s 0 {}",
        "rm {}",
        "ln -s $PWD/pkg /tmp/through; cat /tmp/through/used.py",
        "cd pkg; exec cat used.py",
        "setsid sh -c 'sleep 0.1; cat {} >/out/late; sleep 300' >/dev/null 2>&1 & sleep 0.3",
    ],
)
@pytest.mark.parametrize("stage", ["install", "build"])
def test_every_way_of_using_a_file_counts(
    new_place: NewPlace, image_of_readers: StoredImage, reader: str, stage: str
) -> None:
    # In build the files are in a lower layer of the file system.
    place = new_place(image_of_readers, **{stage: f"umask 0; {reader.format('pkg/used.py', 'pkg/used.py')}; :"})
    fill(place)
    (place.root / "pkg/used.py").write_text("#!/bin/sh\n: 1\n")
    place.run()
    assert "pkg/used.py" in place.inputs(stage)["files"]
    assert {"used.txt", "pkg/other.py", "tests/test_it.py"}.isdisjoint(place.inputs(stage)["files"])


@pytest.mark.parametrize("stage", ["install", "build"])
def test_a_command_that_uses_nothing_depends_on_nothing(
    new_place: NewPlace, python_image: StoredImage, stage: str
) -> None:
    place = new_place(python_image)
    fill(place)
    place.run()
    assert place.inputs(stage) == {"files": [], "folders": [""]}
    for path in ("used.txt", "pkg/new.txt", "stagebuild.toml"):
        with (place.root / path).open("a") as file:
            file.write("\n")
    assert place.run() == {"install": "cached", "build": "cached"}


def test_what_is_read_after_the_command_has_ended_counts_too(new_place: NewPlace, python_image: StoredImage) -> None:
    reader = "while :; do cat used.txt; sleep 0.01; done"
    place = new_place(
        python_image,
        install=f"setsid sh -c '{reader}' >/tmp/read 2>&1 & cat pkg/used.py",
        build="mkdir -p /out; cp /tmp/read /out/read",
    )
    fill(place)
    _, served = place.served()
    # An engine may be so fast to end what was left that nothing is read any more, or is read and not yet told.
    read = {"used.txt"} if served["out/read"][1] else set()
    assert {"pkg/used.py"} | read <= set(place.inputs("install")["files"]) <= {"pkg/used.py", "used.txt"}


def test_alpine_is_traced(new_place: NewPlace, alpine: StoredImage) -> None:
    place = new_place(alpine, **USES)
    fill(place)
    place.run()
    assert place.notes() == []
    assert place.inputs("install") == {"files": ["used.txt"], "folders": [""]}
    assert place.inputs("build") == {"files": ["pkg/used.py"], "folders": ["", "pkg"]}


def test_an_image_with_a_user_is_traced(
    new_place: NewPlace, docker: DockerEngine, bring: Callable[[StoredImage], StoredImage]
) -> None:
    python = docker.find_image(PYTHON_IMAGE)
    assert python
    image = changed(python, docker, "useradd -m app; mkdir -m 777 /made", "user")
    made = docker._connection.client.create_container(image.id, "true")
    try:
        committed = docker._connection.client.commit(made["Id"], conf={"User": "app"})
        with_user = docker.find_image(committed["Id"])
        assert with_user
        place = new_place(bring(with_user), install="cat used.txt >/made/out", build="cp pkg/used.py x")
        fill(place)
        place.run()
        assert place.notes() == []
        assert place.inputs("install") == {"files": ["used.txt"], "folders": [""]}
        assert place.inputs("build") == {"files": ["pkg/used.py"], "folders": ["", "pkg"]}
        place.forget()
    finally:
        docker._connection.client.remove_container(made["Id"])
        docker.remove_image(committed["Id"])
        docker.remove_image(image.id)


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ("rm -f /usr/bin/python* /usr/local/bin/python*", NO_PYTHON),
        ("rm -rf /usr/lib/python3*/ctypes", "ModuleNotFoundError: No module named 'ctypes'"),
        ("printf '#!/bin/sh\\nexit 1\\n' >/usr/bin/python3; rm -f /usr/local/bin/python3", ENDED),
    ],
)
def test_where_nothing_can_watch_everything_is_an_input_and_the_run_says_so_once(
    new_place: NewPlace, engine: Engine, python_image: StoredImage, spoilt: str, why: str
) -> None:
    image = changed(python_image, engine, spoilt, "spoilt")
    place = new_place(image, **USES)
    fill(place)
    place.run()
    if engine.name == "local":  # what watches is no program of the image
        assert place.notes() == []
        assert place.inputs("install") == {"files": ["used.txt"], "folders": [""]}
    else:
        [note] = place.notes()
        assert note == f"the whole source is the input of a stage that was not traced: {why}"
        assert place.inputs("install") == {"all": True, "why": why}
        (place.root / "tests/test_it.py").write_text("changed")
        assert place.run() == {"install": "ran: tests/test_it.py changed", "build": "ran: deps-installed is new"}
    place.forget()
    engine.remove_image(image.id)


def test_a_command_that_kills_everything_is_traced_where_the_watcher_is_out_of_its_reach(
    new_place: NewPlace, engine: Engine, python_image: StoredImage
) -> None:
    # The shell's own `kill` spares the shell, and so the command succeeds.
    place = new_place(python_image, install="cat used.txt; kill -9 -1; true")
    fill(place)
    assert place.run() == {"install": "ran: first run", "build": "ran: first run"}
    seen = {"files": ["used.txt"], "folders": [""]}
    assert place.inputs("install") == (seen if engine.name == "local" else {"all": True, "why": ENDED})
    assert place.inputs("build") == {"files": [], "folders": [""]}


def test_a_command_that_goes_on_starting_others_is_ended_all_the_same(
    new_place: NewPlace, python_image: StoredImage
) -> None:
    again = "f() { (sleep 0.02; f) & }; f; sleep 300"
    place = new_place(python_image, install=f"setsid sh -c '{again}' >/dev/null 2>&1 & sleep 0.2")
    fill(place)
    assert place.run() == {"install": "ran: first run", "build": "ran: first run"}
    assert place.report
    assert any("install left running, ended: " in note for note in place.report.results[0].notes)


UNSEEN = {
    "a file that was looked for": ("test -e pkg/local.py; echo $? >/out.txt", "pkg/local.py"),
    "a file that was not there to be read": ("cat pkg/local.py >/out.txt; true", "pkg/local.py"),
    "the size of a file": ("stat -c %s pkg/used.py >/out.txt", "pkg/used.py"),
    "the size of a file in a folder that is listed": ("ls -l pkg | cut -c20-30 >/out.txt", "pkg/used.py"),
    "the time of a file": ("find pkg/used.py -newer /etc/passwd >/out.txt", "pkg/used.py"),
}


@pytest.mark.parametrize("what", UNSEEN)
def test_what_cannot_be_seen_is_seen_with_other_inputs(
    new_place: NewPlace, python_image: StoredImage, what: str
) -> None:
    # Each of these stands in docs/explanation/reuse.md; when one comes to be seen, it is to go there and here.
    command, path = UNSEEN[what]
    place = new_place(python_image, build=command)
    fill(place)
    place.run()
    (place.root / path).write_text("longer than it was")
    assert place.run() == {"install": "cached", "build": "cached"}
    table = (place.root / "stagebuild.toml").read_text()
    (place.root / "stagebuild.toml").write_text(table.replace("[build]\n", '[build]\ninputs = ["pkg/"]\n'))
    assert place.run()["build"] == "ran: inputs setting changed"
    (place.root / path).write_text("longer than it was before")
    assert place.run()["build"] == f"ran: {path} changed"
