"""Checkpoints found again, never for another source: after branches, lost lockfiles and every kind of change."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from grounds import on_each_engine
from projects import Project

MADE = {"install": "ran", "build": "ran", "test": "ran"}
KNOWN = {"install": "CACHED", "build": "CACHED", "test": "ran"}

CHEAP = {"install_cmd": "cat module.txt 2>/dev/null; true", "build_cmd": "true", "test_cmd": "true"}


def of_stage(project: Project, stage: str) -> list[str]:
    """The UUIDs of the checkpoints that a stage has left."""
    return [uuid for uuid, entry in project.checkpoints().items() if entry["stage"] == stage]


def remove_image(project: Project, checkpoint: str) -> None:
    """Without a word to the plugin."""
    project.ground.remove_image(str(project.checkpoints()[checkpoint]["image"]))


def commit_all(project: Project) -> None:
    project.write({".gitignore": ".stagebuild\n"})
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        project.git(*command)


@on_each_engine
def test_branches_and_clones_find_their_checkpoints_again(new_project):
    project = new_project(**CHEAP)
    project.write({"module.txt": "main\n"})
    commit_all(project)
    project.git("checkout", "-qb", "topic")
    project.write({"module.txt": "topic\n"})
    project.git("commit", "-qam", "topic")
    assert project.stagebuild().outcomes() == MADE
    project.git("checkout", "-q", "main")
    assert project.stagebuild().outcomes() == MADE
    project.git("checkout", "-q", "topic")
    assert project.stagebuild().outcomes() == KNOWN
    worktree = project.root.with_name("worktree")
    project.git("worktree", "add", "-q", str(worktree), "main")
    assert project.stagebuild(cwd=worktree).outcomes() == KNOWN
    clone = project.root.with_name("clone")
    project.git("clone", "-q", "-b", "main", str(project.root), str(clone))
    assert project.stagebuild(cwd=clone).outcomes() == KNOWN
    assert len(project.images()) == 4


def test_another_project_with_the_same_files_has_checkpoints_of_its_own(new_project):
    one, other = new_project("one", **CHEAP), new_project("other", **CHEAP)
    assert one.stagebuild().outcomes() == MADE
    assert other.stagebuild().outcomes() == MADE


@on_each_engine
@pytest.mark.parametrize("tracked", [True, False])
def test_a_cache_of_ours_that_lies_in_the_source_is_no_part_of_it(new_project, tracked):
    """As where a CI keeps what lies in the project's folder, and nothing else."""
    project = new_project(**CHEAP)
    inside = {"XDG_CACHE_HOME": str(project.root / ".cache"), "PYTEST_STAGEBUILD_STORE": str(project.root / "store")}
    if tracked:
        commit_all(project)
    assert project.stagebuild(env=inside).outcomes() == MADE
    again = project.stagebuild("-v", env=inside)
    assert again.outcomes() == KNOWN
    assert "changed while the run went on" not in again.output
    if tracked:
        assert project.git("status", "--porcelain") == ""


# What is wrong with a lockfile


@on_each_engine
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda whole: None, ""),
        (lambda whole: "", "is corrupt"),
        (lambda whole: whole[: len(whole) // 2], "is corrupt"),
        (lambda whole: "<<<<<<< ours\n" + whole, "holds merge-conflict marks"),
        (lambda whole: whole.replace('"schema": ', '"schema": 9'), "newer than this version's"),
    ],
    ids=["lost", "empty", "truncated", "conflict", "newer"],
)
def test_a_lockfile_that_is_lost_or_broken_costs_nothing(new_project, broken, said):
    project = new_project(**CHEAP)
    project.stagebuild()
    lockfile = project.root / ".stagebuild" / "stagebuild.lock"
    content = broken(lockfile.read_text())
    lockfile.unlink() if content is None else lockfile.write_text(content)
    run = project.stagebuild()
    assert (run.code, run.outcomes()) == (0, KNOWN)
    notes = [line for line in run.summary if line.startswith("note ")]
    assert len(notes) == bool(said)
    assert said in "".join(notes)
    # Only a lockfile that is not ours to write stays as it is.
    assert (lockfile.read_text() == content) == (said == "newer than this version's")


def test_a_checkpoint_of_an_image_with_a_user_is_found_without_any_state(project):
    assert project.stagebuild().outcomes() == MADE
    for path in ("stagebuild.lock", *(f"records/{uuid}.json" for uuid in project.checkpoints())):
        (project.root / ".stagebuild" / path).unlink()
    assert project.stagebuild().outcomes() == KNOWN


@on_each_engine
def test_where_no_lockfile_can_be_written_the_engine_is_asked_each_time(new_project):
    project = new_project(**CHEAP)
    nowhere = "--stagebuild-lockfile=pyproject.toml/lock"
    for outcomes in (MADE, KNOWN):
        run = project.stagebuild(nowhere)
        assert (run.code, run.outcomes()) == (0, outcomes)
        assert "checkpoints of this run are found again through the engine" in run.output


def test_an_image_that_was_removed_behind_our_back_is_made_again(project):
    project.stagebuild()
    [build] = of_stage(project, "build")
    remove_image(project, build)
    run = project.stagebuild()
    assert run.outcomes() == {"install": "CACHED", "build": "ran", "test": "ran"}
    assert run.row("build").endswith("(checkpoint image is gone)")


# What is a change


def seen_here(root: Path, ignored: set[str] = frozenset()) -> dict[str, str]:
    """What a container must hold of a source, told in the words of LOOK."""
    seen = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in (".git", ".stagebuild")]
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        for name in {*files, *links} - {".git"} - ignored:
            path = Path(folder, name)
            if path.is_symlink():
                seen[str(path.relative_to(root))] = f"link {os.readlink(path)}"
            else:
                kind = "executable" if path.stat().st_mode & 0o100 else "file"
                seen[str(path.relative_to(root))] = f"{kind} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return seen


LOOK = """\
find . -type l -printf '%P\\tlink %l\\n'
find . -type f ! -name seen.txt | while read -r path; do
  kind=file; [ -x "$path" ] && kind=executable
  echo "${path#./}\t$kind $(sha256sum < "$path" | cut -d' ' -f1)"
done
"""


def swap(root: Path) -> None:
    (root / "a.txt").rename(root / "c.txt")
    (root / "b.txt").rename(root / "a.txt")
    (root / "c.txt").rename(root / "b.txt")


def file_to_folder(root: Path) -> None:
    (root / "a.txt").unlink()
    (root / "a.txt").mkdir()
    (root / "a.txt" / "inner.txt").write_text("inner")


def folder_to_file(root: Path) -> None:
    (root / "a.txt" / "inner.txt").unlink()
    (root / "a.txt").rmdir()
    (root / "a.txt").write_text("file again")


def folder_to_link(root: Path) -> None:
    (root / "deep").rename(root / "moved")
    (root / "deep").symlink_to("moved")


def file_to_link(root: Path) -> None:
    (root / "b.txt").unlink()
    (root / "b.txt").symlink_to("a.txt")


def link_elsewhere(root: Path) -> None:
    (root / "b.txt").unlink()
    (root / "b.txt").symlink_to("nowhere")


def same_size_same_time(root: Path) -> None:
    path = root / "a.txt"
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text(path.read_text()[::-1])
    os.utime(path, ns=times)


CHANGES = {
    "two files swapped": (swap, "a.txt changed and 1 more"),
    "a file with the same size and time": (same_size_same_time, "a.txt changed"),
    "a file renamed": (lambda root: (root / "b.txt").rename(root / "B.txt"), "B.txt added and 1 more"),
    "renamed back, an empty file added": (
        lambda root: (root / "B.txt").rename(root / "b.txt") and (root / "empty").touch(),
        "b.txt added and 2 more",
    ),
    "a file that can be executed": (lambda root: (root / "a.txt").chmod(0o755), "a.txt changed"),
    "a folder in the place of a file": (file_to_folder, "a.txt changed"),
    "a file in the place of a folder": (folder_to_file, "a.txt changed and 1 more"),
    "a link in the place of a file": (file_to_link, "b.txt changed"),
    "a link that leads elsewhere": (link_elsewhere, "b.txt changed"),
    "a link in the place of a folder": (folder_to_link, "deep changed and 2 more"),
    "a file in a submodule": (
        lambda root: (root / "module" / "sub.txt").write_text("edited"),
        "module/sub.txt changed",
    ),
    "a file that is ignored": (
        lambda root: (root / ".gitignore").write_text(".stagebuild\nseen.txt\nignored.txt\n"),
        ".gitignore changed and 1 more",
    ),
}
"""What is done to a source, one after the other, and what the build then says is the reason that it runs."""


@on_each_engine
def test_no_change_of_the_source_is_missed_on_top_of_a_checkpoint_that_was_made_before_it(new_project):
    project = new_project(
        install_cmd="true", build_cmd=f"({LOOK}) > seen.txt; cat seen.txt", test_cmd="cat seen.txt; sha256sum seen.txt"
    )
    table = (project.root / "pyproject.toml").read_text()
    outer = {name: f"{name}\n" for name in ("a.txt", "b.txt", "deep/er.txt")}
    project.write({**outer, "pyproject.toml": table + 'install.inputs = ["/pyproject.toml"]\n'})
    module = project.root.with_name("module")
    project.git("init", "-q", str(module))
    (module / "sub.txt").write_text("sub")
    project.git("add", ".", cwd=module)
    project.git("commit", "-qm", "sub", cwd=module)
    commit_all(project)
    project.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", str(module), "module")
    project.write({"ignored.txt": "not yet"})

    def check(build: str, reason: str = "") -> None:
        ignored = {"ignored.txt"} if "ignored.txt" in (project.root / ".gitignore").read_text() else set()
        run = project.stagebuild()
        assert run.code == 0, run.output
        assert run.outcomes() == {"install": install, "build": build, "test": "ran"}
        assert run.row("build").endswith(f"({reason})" if reason else "build-complete")
        log = (project.root / ".stagebuild" / "logs" / "test.log").read_text().splitlines()[:-1]
        assert dict(line.split("\t") for line in log) == seen_here(project.root, ignored)

    install = "ran"
    check("ran", "first run")
    install = "CACHED"
    for change, (make, reason) in CHANGES.items():
        print(change)
        make(project.root)
        check("ran", reason)
    (project.root / ".gitignore").write_text(".stagebuild\n")
    check("CACHED")


def test_time_owner_and_the_modes_that_git_does_not_keep_are_no_change(new_project):
    project = new_project(**CHEAP)
    project.write({"module.txt": "code\n"})
    assert project.stagebuild().outcomes() == MADE
    path = project.root / "module.txt"
    os.utime(path, (1, 1))
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 1234, 1234)
    path.write_bytes(path.read_bytes())
    (project.root / "empty-folder").mkdir()
    assert project.stagebuild().outcomes() == KNOWN


def test_another_base_image_is_the_reason_and_the_first_one_s_checkpoints_are_kept(new_project, image_with_user):
    project = new_project(**CHEAP)
    assert project.stagebuild().outcomes() == MADE
    run = project.stagebuild(f"--stagebuild-image={image_with_user}")
    assert run.outcomes() == MADE
    assert "(base image changed sha256:000000000000 -> sha256:000000000000)" in run.row("install")
    assert project.stagebuild().outcomes() == KNOWN


def test_a_pattern_that_chooses_no_file_is_named(new_project):
    project = new_project(**CHEAP)
    table = (project.root / "pyproject.toml").read_text()
    project.write({"pyproject.toml": table + 'install.inputs = ["/pyproject.toml", "./setup.py", "!*.md"]\n'})
    notes = [line for line in project.stagebuild().summary if line.startswith("note ")]
    assert notes == [
        "note             './setup.py' in the inputs of install matches no file: nothing is an input by it"
    ]


# What the user says


def test_resuming_by_name_by_uuid_and_by_the_beginning_of_one(project):
    project.stagebuild()
    project.write({"requirements.txt": "two\n"})
    [install] = of_stage(project, "install")
    for wanted in ("deps-installed", install, install[:8].upper()):
        run = project.stagebuild(f"--stagebuild-from={wanted}")
        assert run.outcomes() == {"install": "FORCED", "build": "ran", "test": "ran"}
        assert f"build-complete  (--stagebuild-from={wanted})" in run.output
        assert "is used as it is, though changed since: requirements.txt changed" in run.output
    assert project.stagebuild("--stagebuild-from=base").outcomes() == MADE
    assert project.stagebuild("--stagebuild-from=build-complete").outcomes() == {**KNOWN, "build": "FORCED"}
    unknown = project.stagebuild("--stagebuild-from=nothing")
    assert unknown.code == 4
    assert "there is no such checkpoint" in unknown.output
    assert all(uuid in unknown.output for uuid in project.checkpoints())


def test_a_name_means_no_checkpoint_of_another_base_image_or_command(new_project, image_with_user):
    project = new_project(**CHEAP)
    project.stagebuild()
    for other in (f"--stagebuild-image={image_with_user}", "--stagebuild-build-cmd=false"):
        run = project.stagebuild(other, "--stagebuild-from=build-complete")
        assert run.code == 4
        assert "none was made with this command, environment and base image" in run.output
    [build] = of_stage(project, "build")
    run = project.stagebuild(f"--stagebuild-image={image_with_user}", f"--stagebuild-from={build}")
    assert run.outcomes()["build"] == "FORCED"
    assert f"was not made on {image_with_user} as it is now" in " ".join(run.output.split())


@on_each_engine
def test_a_checkpoint_that_another_worktree_made_can_be_resumed_from(new_project):
    project = new_project(**CHEAP)
    commit_all(project)
    assert project.stagebuild().outcomes() == MADE
    worktree = replace(project, root=project.root.with_name("worktree"))
    project.git("worktree", "add", "-q", str(worktree.root))
    worktree.write({"module.txt": "theirs"})
    assert worktree.stagebuild().outcomes() == MADE
    [theirs] = {*of_stage(worktree, "install")} - {*of_stage(project, "install")}
    run = project.stagebuild(f"--stagebuild-from={theirs[:13]}")
    assert run.outcomes() == {"install": "FORCED", "build": "ran", "test": "ran"}
    assert "though changed since: module.txt removed" in run.output


@on_each_engine
def test_an_unknown_name_lists_the_checkpoints_whose_images_are_there(new_project):
    project = new_project(**CHEAP)
    project.stagebuild()
    [build] = of_stage(project, "build")
    [install] = of_stage(project, "install")
    remove_image(project, build)
    for unknown in ("abcd", build):
        run = project.stagebuild(f"--stagebuild-from={unknown}")
        assert run.code == 4
        assert f"Those that exist:\n  base\n  deps-installed {install}\n" in run.output
    assert project.stagebuild().row("build").endswith("(checkpoint image is gone)")


def test_rebuilding_uses_no_checkpoint_from_that_stage_on(new_project):
    project = new_project(**CHEAP)
    project.stagebuild()
    run = project.stagebuild("--stagebuild-rebuild")
    assert run.outcomes() == MADE
    assert run.row("install").endswith("(--stagebuild-rebuild)")
    assert project.stagebuild("--stagebuild-rebuild=build").outcomes() == {**MADE, "install": "CACHED"}
    assert project.stagebuild("--stagebuild-rebuild=test").outcomes() == KNOWN


# Pruning


@on_each_engine
def test_pruning_keeps_those_that_were_used_last_and_what_stands_on_them(new_project):
    project = new_project(**CHEAP)
    for text in ("one", "two", "three"):
        project.write({"module.txt": text})
        project.stagebuild()
    assert len(project.images()) == 6
    project.write({"module.txt": "one"})
    run = project.stagebuild("--stagebuild-prune=2")
    assert run.outcomes() == KNOWN
    assert "note             pruned 2 checkpoints: build-complete 00000000, deps-installed 00000000" in run.summary
    for text, outcomes in (("three", KNOWN), ("one", KNOWN), ("two", MADE)):
        project.write({"module.txt": text})
        assert project.stagebuild().outcomes() == outcomes
    project.stagebuild("--stagebuild-prune=0")
    assert project.images() == []
    assert project.checkpoints() == {}


def test_a_plan_prunes_nothing(new_project):
    project = new_project(**CHEAP)
    project.stagebuild()
    assert project.stagebuild("--stagebuild-plan", "--stagebuild-prune=0").code == 0
    assert len(project.images()) == len(project.checkpoints()) == 2


@on_each_engine
def test_pruning_leaves_what_another_worktree_uses(new_project):
    project = new_project(**CHEAP)
    commit_all(project)
    worktree = project.root.with_name("worktree")
    project.git("worktree", "add", "-q", str(worktree))
    assert project.stagebuild(cwd=worktree).outcomes() == MADE
    pruned = project.stagebuild("--stagebuild-prune=0")
    assert pruned.outcomes() == KNOWN
    assert "left to another worktree, which uses them: build-complete" in pruned.output
    assert "pruned" not in pruned.output
    assert project.checkpoints() == {}
    assert project.stagebuild(cwd=worktree).outcomes() == KNOWN
    project.git("worktree", "remove", "--force", str(worktree))
    project.stagebuild("--stagebuild-prune=0")
    assert project.images() == []


HOLDING = """\
import os, pathlib, time

def test_it(deps_image):
    pathlib.Path(os.environ["HELD"]).touch()
    while not pathlib.Path(os.environ["LET_GO"]).exists():
        time.sleep(0.02)
    assert deps_image.read_text("module.txt") == "code"
"""


@on_each_engine
@pytest.mark.parametrize("ends", ["well", "killed"])
def test_pruning_leaves_what_a_run_works_with_that_goes_on(new_project, tmp_path, ends):
    project = new_project(**CHEAP)
    project.write({"module.txt": "code", "test_holding.py": HOLDING})
    held, gate = tmp_path / "held", tmp_path / "let-go"
    process = project.start("test_holding.py", env={"HELD": str(held), "LET_GO": str(gate)})
    while not held.exists():
        assert process.poll() is None
        time.sleep(0.02)
    pruned = project.stagebuild("pyproject.toml::install", "--stagebuild-prune=0")
    assert pruned.outcomes() == {"install": "CACHED"}
    assert len(project.images()) == 1
    if ends == "well":
        gate.touch()
        assert project.wait(process).code == 0
    else:
        process.kill()
        project.wait(process)
    project.stagebuild("pyproject.toml::install", "--stagebuild-prune=0")
    assert project.images() == []


@on_each_engine
def test_workers_that_keep_nothing_take_nothing_from_each_other(new_project):
    project = new_project(**CHEAP)
    slow = "def test_slow(deps_image): assert all(deps_image.list() for _ in range(5))\n"
    project.write({"test_images.py": "def test_quick(deps_image): pass\n" + slow})
    run = project.pytest("-n2", "--stagebuild-prune=0", env={"PYTEST_PLUGINS": "pytest_stagebuild.plugin,xdist.plugin"})
    assert run.code == 0, run.output
    assert project.images() == []
