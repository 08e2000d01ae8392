"""What tests get of an Image: every method, and never a file of the source as it was."""

from __future__ import annotations

import signal

import pytest
from grounds import on_each_engine

METHODS = """\
import os, pathlib, pytest
from pytest_stagebuild import StagebuildError

def test_run(build_image):
    command = "cat; echo $NAME; pwd; echo oops >&2; exit 3"
    result = build_image.run(command, env={"NAME": "x y"}, cwd="deep", stdin="in\\n")
    assert (result.exit_code, result.stdout, result.stderr) == (3, "in\\nx y\\n/src/deep\\n", "oops\\n")
    assert not result.timed_out and result.duration > 0 and result.result_image is None

def test_run_out_of_time(build_image):
    result = build_image.run("echo before; sleep 60", timeout=1)
    assert result.timed_out and result.stdout == "before\\n"

def test_run_with_much_to_read_and_to_say(build_image):
    data = bytes(range(256)) * 40_000
    assert build_image.run("sha256sum", stdin=data).stdout.split()[0] == __import__("hashlib").sha256(data).hexdigest()
    said = build_image.run("head -c 50000000 /dev/zero | tr '\\\\0' a").stdout
    assert 1 << 20 < len(said) < 17 << 20

def test_disposable_or_not(build_image):
    assert build_image.run("echo new > new.txt").exit_code == 0
    with pytest.raises(FileNotFoundError):
        build_image.read_text("new.txt")
    left = build_image.run("echo new > new.txt", disposable=False).result_image
    assert (left.stage, left.parent, left.read_text("new.txt")) == ("derived", build_image.uuid, "new\\n")
    again = left.run("cat new.txt; rm new.txt", disposable=False)
    assert again.stdout == "new\\n" and "new.txt" not in again.result_image.list()
    assert build_image.run("exit 1", disposable=False).result_image is None

def test_reading(build_image, tmp_path):
    assert build_image.read_bytes("deep/file.txt") == b"deep\\n"
    assert build_image.read_text("link.txt") == "deep\\n"
    assert build_image.read_text("/etc/hostname") is not None
    assert build_image.list("deep") == ["file.txt"] == build_image.list("folder-link")
    assert build_image.export("deep", tmp_path) == tmp_path / "deep"
    assert (tmp_path / "deep" / "file.txt").read_text() == "deep\\n"

def test_what_is_not_there(build_image, tmp_path):
    export = lambda path: build_image.export(path, tmp_path)
    for read in (build_image.read_bytes, build_image.read_text, build_image.list, export):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            read("nowhere")
    with pytest.raises(IsADirectoryError, match="use list"):
        build_image.read_bytes("deep")
    with pytest.raises(NotADirectoryError, match="use read_bytes"):
        build_image.list("deep/file.txt")

def test_what_is_neither_a_file_nor_a_folder(build_image, tmp_path):
    made = build_image.run("mkfifo pipe", disposable=False).result_image
    for path in ("/dev/null", "pipe"):
        for read in (made.read_bytes, lambda path: made.export(path, tmp_path)):
            with pytest.raises(OSError, match=f"neither a file nor a folder in .*{path}"):
                read(path)
    assert list(tmp_path.iterdir()) == []

def test_a_copy_replaces_what_is_there(build_image, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "older.txt").touch()
    copy = build_image.export("deep", tmp_path)
    assert [path.name for path in copy.iterdir()] == ["file.txt"]
    (tmp_path / "outside").mkdir()
    (copy / "file.txt").unlink()
    (copy / "file.txt").symlink_to(tmp_path / "outside" / "file.txt")
    assert not build_image.export("folder-link/file.txt", copy).is_symlink()
    assert list((tmp_path / "outside").iterdir()) == []

def test_large(build_image, tmp_path):
    assert build_image.list("large") == ["file.bin"]
    assert len(build_image.read_bytes("large/file.bin")) == 5_000_000
    assert build_image.export("large", tmp_path).joinpath("file.bin").stat().st_size == 5_000_000

def test_names(build_image):
    command = "mkdir odd && cd odd && touch -- -x .hidden ..x 'a\\nb' '*' && ln -s nowhere dangling"
    made = build_image.run(command, disposable=False)
    assert made.result_image.list("odd") == sorted(["-x", ".hidden", "..x", "a\\nb", "*", "dangling"])

def test_what_cannot_be_run(build_image):
    for error, words, arguments in (
        (TypeError, "string for /bin/sh", {"command": ["ls", "-l"]}),
        (ValueError, "NUL", {"command": "a\\0b"}),
        (NotADirectoryError, "cwd='nowhere'", {"cwd": "nowhere"}),
        (NotADirectoryError, "cwd='deep/file.txt'", {"cwd": "deep/file.txt"}),
        (ValueError, "timeout=0 ", {"timeout": 0}),
        (ValueError, "timeout=None ", {"timeout": None}),
        (ValueError, "timeout=inf ", {"timeout": float("inf")}),
        (TypeError, "env is a mapping", {"env": [("A", "1")]}),
        (TypeError, "not a string: A=1", {"env": {"A": 1}}),
        (ValueError, "no variable can have: 'A=B'", {"env": {"A=B": "1"}}),
        (TypeError, "stdin is a string or bytes", {"stdin": 5}),
    ):
        with pytest.raises(error, match=words):
            build_image.run(**{"command": "true", **arguments})

def test_where_nothing_can_be_exported_to(build_image, tmp_path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises((NotADirectoryError, StagebuildError), match="file"):
            build_image.export("deep", target)

def test_lineage(base_image, deps_image, build_image):
    assert [image.stage for image in (base_image, deps_image, build_image)] == ["base", "install", "build"]
    assert (base_image.parent, deps_image.parent, build_image.parent) == (None, base_image.uuid, deps_image.uuid)
    assert "installed.txt" not in base_image.list() and "built.txt" not in deps_image.list()
"""


def test_every_method_of_an_image(project):
    project.write({"deep/file.txt": "deep\n", "large/file.bin": bytes(5_000_000), "test_methods.py": METHODS})
    for link, target in (("link.txt", "deep/file.txt"), ("folder-link", "deep")):
        (project.root / link).symlink_to(target)
    run = project.pytest("test_methods.py", "-q", "-p", "no:cacheprovider")
    assert run.code == 0, run.output
    # What a command left lives until the session's end.
    assert len(project.images()) == 2


STALE = """\
import os, pathlib, pytest

HERE = pathlib.Path(__file__).parent

EXPECTED = {
    "edited.txt": "new",
    "added.txt": "new",
    "renamed.txt": "old",
    "linked.txt": "new",
    "was_link.txt": "new",
    "was_folder": "new",
    "was_file/inner.txt": "new",
    "executable.sh": "#!/bin/sh\\necho ran",
}
GONE = ("removed.txt", "moved.txt", "was_folder/inner.txt", "gone/deep/file.txt")

def see(image, tmp_path, read=tuple(EXPECTED)):
    for path in read:
        assert image.read_bytes(path) == EXPECTED[path].encode(), path
    assert image.read_text("edited.txt") == "new"
    shown = image.run(f"for path in {' '.join(EXPECTED)}; do cat $path; printf '|'; done; ./executable.sh")
    assert shown.stdout == "|".join([*EXPECTED.values(), "ran\\n"])
    for path in ("removed.txt", "was_folder/inner.txt"):
        with pytest.raises(FileNotFoundError):
            image.read_bytes(path)
    assert image.run(f"ls -d {' '.join(GONE)} gone").stdout == ""
    names = image.list()
    assert "added.txt" in names and "removed.txt" not in names and "gone" not in names
    assert image.list("was_file") == ["inner.txt"]
    copy = image.export(".", tmp_path)
    for path, text in EXPECTED.items():
        if path != "linked.txt":
            assert (copy / path).read_text() == text, path
    assert not any((copy / path).exists() for path in GONE)
    assert image.read_text("made.txt") == "made by install"

def test_what_changed_since_the_checkpoint(deps_image, tmp_path):
    see(deps_image, tmp_path)

def test_what_changed_since_the_checkpoint_in_what_a_command_left(deps_image, tmp_path):
    see(deps_image.run("true", disposable=False).result_image, tmp_path, read=("edited.txt", "was_file/inner.txt"))

def test_what_changes_in_the_session(deps_image, tmp_path):
    left = deps_image.run("true", disposable=False).result_image
    (HERE / "edited.txt").write_text("newest")
    (HERE / "removed.txt").write_text("back")
    (HERE / "added.txt").unlink()
    try:
        for number, image in enumerate((deps_image, left)):
            assert image.read_bytes("edited.txt") == b"newest" and image.read_text("edited.txt") == "newest"
            assert image.run("cat edited.txt removed.txt").stdout == "newestback"
            assert "added.txt" not in image.list() and "removed.txt" in image.list()
            assert (image.export("edited.txt", tmp_path / str(number))).read_text() == "newest"
    finally:
        (HERE / "edited.txt").write_text("new")
        (HERE / "removed.txt").unlink()
        (HERE / "added.txt").write_text("new")
"""


@pytest.mark.parametrize("ground", ["docker", "docker_with_user", "local"], indirect=True)
def test_no_method_ever_shows_a_file_as_it_was(new_project):
    project = new_project(install_cmd="printf 'made by install' > made.txt", build_cmd="true", test_cmd="true")
    table = (project.root / "pyproject.toml").read_text()
    project.write(
        {
            "pyproject.toml": table + 'install.inputs = ["/pyproject.toml"]\n',
            **dict.fromkeys(
                (
                    "edited.txt",
                    "removed.txt",
                    "moved.txt",
                    "linked.txt",
                    "was_folder/inner.txt",
                    "was_file",
                    "gone/deep/file.txt",
                ),
                "old",
            ),
            "executable.sh": "#!/bin/sh\necho ran",
            "made.txt": "as the host has it",
        }
    )
    (project.root / "was_link.txt").symlink_to("edited.txt")
    assert project.stagebuild("pyproject.toml::install").outcomes() == {"install": "ran"}

    root = project.root
    project.write({"edited.txt": "new", "added.txt": "new", "test_stale.py": STALE})
    (root / "removed.txt").unlink()
    (root / "moved.txt").rename(root / "renamed.txt")
    (root / "linked.txt").unlink()
    (root / "linked.txt").symlink_to("edited.txt")
    (root / "was_link.txt").unlink()
    (root / "was_folder" / "inner.txt").unlink()
    (root / "was_folder").rmdir()
    (root / "was_file").unlink()
    (root / "gone" / "deep" / "file.txt").unlink()
    project.write({"was_link.txt": "new", "was_folder": "new", "was_file/inner.txt": "new"})
    (root / "executable.sh").chmod(0o755)

    run = project.pytest("test_stale.py", "-q")
    assert run.code == 0, run.output
    assert run.outcomes() == {"install": "CACHED"}


KILLED = """\
import os, signal

def test_it(base_image):
    assert base_image.run("true", disposable=False).result_image
    if "KILL" in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@on_each_engine
def test_what_a_command_left_in_a_run_that_was_killed_goes_with_the_next_and_nobody_elses_does(new_project):
    project = new_project(install_cmd="true", build_cmd="true", test_cmd="true")
    project.write({"test_killed.py": KILLED})
    assert project.pytest("test_killed.py", env={"KILL": "1"}).code == -signal.SIGKILL
    [left] = project.images()
    # As one would be that a user has built on it.
    theirs = project.ground.built_on(left, project.name)
    assert project.pytest("test_killed.py").code == 0
    assert project.images() == [theirs]
