"""What every engine does, the fake one included, on an image without a USER and on one with it."""

from __future__ import annotations

import pytest
from worlds import BASE, World, members_of, run, tar_of

from pytest_stagebuild.engines.protocol import Owner
from pytest_stagebuild.errors import ImageUnavailable


def test_the_owner_is_the_user_of_the_image(world: World) -> None:
    with world.sandbox() as sandbox:
        assert sandbox.owner == (Owner(1000, 1001) if world.image.config.user else Owner(0, 0))


def test_files_arrive_as_the_archive_says(world: World) -> None:
    archive = tar_of({"src/a b.txt": b"\0\xff", "src/deep/er.sh": b"#!"}, mode=0o754, uid=7, gid=8, mtime=1_600_000_000)
    with world.sandbox() as sandbox:
        sandbox.put([archive[:700], archive[700:]])
        member, data = members_of(sandbox.get("/src/deep/er.sh"))["er.sh"]
        assert (member.mode & 0o7777, member.mtime) == (0o754, 1_600_000_000)
        assert data == b"#!"
        assert members_of(sandbox.get("/src"))["src/a b.txt"][1] == b"\0\xff"


def test_a_path_that_is_not_there_is_said_to_be_so_before_and_after_the_start(world: World) -> None:
    with world.started({"src/a": b""}) as sandbox:
        for path in ("/nowhere", "/src/nothing", "/nowhere/deep"):
            with pytest.raises(FileNotFoundError, match=path):
                sandbox.get(path)
    with world.sandbox() as sandbox, pytest.raises(FileNotFoundError):
        sandbox.get("/nowhere")


def test_an_archive_that_is_not_read_to_its_end_holds_up_nothing(world: World) -> None:
    with world.sandbox() as sandbox:
        sandbox.put([tar_of({"src/large": bytes(20 << 20), "src/small": b"small"})])
        assert next(sandbox.get("/src/large"))
        assert members_of(sandbox.get("/src/small"))["small"][1] == b"small"
        assert next(sandbox.get("/src"))


def test_a_command_runs_in_its_folder_and_its_streams_are_told_apart(world: World) -> None:
    with world.started({"src/a.txt": b"content"}) as sandbox:
        ran = run(sandbox, "cat a.txt; echo oops >&2; exit 3")
    assert (ran.code, ran.stdout, ran.stderr) == (3, b"content", b"oops\n")
    assert not ran.exit.timed_out
    assert not ran.exit.out_of_memory


def test_the_environment_is_added_to_that_of_the_image(world: World) -> None:
    with world.started() as sandbox:
        ran = run(sandbox, 'echo "$GREETING|$NAME"', env={"NAME": "a=b 'c'"})
    greeting = "hello world" if "GREETING=hello world" in world.image.config.env else ""
    assert ran.stdout.decode() == f"{greeting}|a=b 'c'\n"


def test_a_command_that_is_not_there_ends_with_127(world: World) -> None:
    with world.started() as sandbox:
        ran = run(sandbox, "no-such-command")
    assert ran.code == 127
    assert b"not found" in ran.stderr


def test_what_a_command_wrote_is_there_for_the_next(world: World) -> None:
    with world.started({"src/old": b""}) as sandbox:
        run(sandbox, "echo one > new; rm old")
        assert run(sandbox, "cat new; [ -e old ] || echo gone").stdout == b"one\ngone\n"


def test_a_command_over_its_time_is_ended_and_the_sandbox_stays_usable(world: World) -> None:
    with world.started() as sandbox:
        ran = run(sandbox, "echo before > file; sleep 100; echo after > file", timeout=1)
        assert ran.exit.timed_out
        assert sandbox.end_processes() == []
        assert run(sandbox, "cat file").stdout == b"before\n"


def test_what_a_command_left_running_is_ended_and_named(world: World) -> None:
    with world.started() as sandbox:
        assert run(sandbox, "sleep 98 & sleep 99 & sleep 0.2; echo done").stdout == b"done\n"
        assert sorted(sandbox.end_processes()) == ["sleep 98", "sleep 99"]
        assert sandbox.end_processes() == []


def test_changed_files_are_what_differs_from_the_image_and_nothing_else(world: World) -> None:
    with world.started({"src/sent": b"by us"}) as sandbox:
        run(sandbox, "echo made > made; mkdir folder; echo app >> /etc/passwd", user="root")
        changed = {path: b"".join(content) for path, content in sandbox.changed_files()}
    assert changed.pop("/etc/passwd").endswith(b"app\n")
    changed.pop("/data", None)  # where a volume is mounted
    assert changed == {"/src/sent": b"by us", "/src/made": b"made\n", "/src": b"", "/src/folder": b""}


def test_an_image_that_was_committed_holds_the_files_and_is_found_by_name_id_and_labels(world: World) -> None:
    with world.started({"src/a": b"sent", "src/b": b"sent"}, key="1") as sandbox:
        run(sandbox, "echo made > c; rm b")
        made = sandbox.commit(world.name(), {"key": "1"})
    assert world.engine.find_image(world.name()) == made
    assert world.engine.find_image(made.id) == made
    assert world.engine.images_with({**world.labels, "key": "1"}) == [made]
    assert world.engine.images_with({**world.labels, "key": "2"}) == []
    with world.sandbox(made) as sandbox:
        files = members_of(sandbox.get("/src"))
    assert {name: data for name, (_, data) in files.items() if data} == {"src/a": b"sent", "src/c": b"made\n"}


def test_a_committed_image_has_the_configuration_of_its_base_and_other_layers(world: World) -> None:
    with world.started({"src/a": b"x"}) as sandbox:
        made = sandbox.commit(world.name(), {})
    assert made.config == world.image.config
    assert made.layers[:-1] == world.image.layers
    assert made.identity != world.image.identity
    assert made.platform == world.image.platform == world.engine.platform


def test_images_are_listed_the_newest_first(world: World) -> None:
    made = []
    for number in range(3):
        with world.started({"src/a": b"%d" % number}) as sandbox:
            made.append(sandbox.commit(world.name(f"n{number}"), {}))
    assert world.engine.images_with(world.labels) == made[::-1]
    assert world.engine.images_with(world.labels, but={made[1].id}) == [made[2], made[0]]


def test_an_image_that_a_sandbox_uses_is_kept_with_its_name(world: World) -> None:
    with world.started({"src/a": b"x"}) as sandbox:
        made = sandbox.commit(world.name(), {})
    with world.sandbox(made):
        assert world.engine.remove_image(made.id) is False
        assert world.engine.find_image(world.name()) == made
    assert world.engine.remove_image(made.id) is True
    assert world.engine.find_image(world.name()) is None
    assert world.engine.remove_image(made.id) is True


def test_an_image_that_another_stands_on_is_kept_with_its_name(world: World) -> None:
    with world.started({"src/a": b"x"}) as sandbox:
        below = sandbox.commit(world.name("below"), {})
    with world.started({"src/b": b"x"}, image=below) as sandbox:
        above = sandbox.commit(world.name("above"), {})
    assert world.engine.remove_image(below.id) is False
    assert world.engine.find_image(world.name("below")) == below
    assert world.engine.remove_image(above.id) is True
    assert world.engine.find_image(world.name("below")) == below
    assert world.engine.remove_image(below.id) is True


def test_a_sandbox_on_an_image_that_is_gone_says_so(world: World) -> None:
    with world.started({"src/a": b"x"}) as sandbox:
        made = sandbox.commit(world.name(), {})
    world.engine.remove_image(made.id)
    with pytest.raises(ImageUnavailable, match=made.id), world.sandbox(made):
        pass


def test_a_name_that_no_image_has_finds_none(world: World) -> None:
    for name in ("no-such-image", "no-such-image:1", "localhost:5/no/such:1", "sha256:" + "0" * 64, "0" * 12):
        assert world.engine.find_image(name) is None


def test_an_image_is_found_by_its_name_without_asking_a_registry(world: World) -> None:
    found = world.engine.find_image(BASE)
    assert found
    assert found.layers[0] == world.image.layers[0]
