"""Checkpoints found again: by branches, worktrees and clones, and after lockfiles and images were lost."""

from __future__ import annotations


def test_branches_and_clones_find_their_checkpoints_again(new_project, client):
    project = new_project(install_cmd="cat module.txt", build_cmd="true", test_cmd="true")
    project.write({"module.txt": "main\n", ".gitignore": ".stagebuild\n"})
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "main"], ["checkout", "-qb", "topic"]):
        project.git(*command)
    project.write({"module.txt": "topic\n"})
    project.git("commit", "-qam", "topic")
    made = {"install": "ran", "build": "ran", "test": "ran"}
    known = {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert project.stagebuild().outcomes() == made
    project.git("checkout", "-q", "main")
    assert project.stagebuild().outcomes() == made
    project.git("checkout", "-q", "topic")
    assert project.stagebuild().outcomes() == known
    worktree = project.root.with_name("worktree")
    project.git("worktree", "add", "-q", str(worktree), "main")
    assert project.stagebuild(cwd=worktree).outcomes() == known
    clone = project.root.with_name("clone")
    project.git("clone", "-q", "-b", "main", str(project.root), str(clone))
    assert project.stagebuild(cwd=clone).outcomes() == known
    assert len(project.images(client)) == 4


def test_a_lockfile_that_is_lost_or_broken_costs_nothing(project):
    project.stagebuild()
    lockfile = project.root / ".stagebuild" / "stagebuild.lock"
    whole = lockfile.read_text()
    for broken in (
        None,
        "",
        whole[: len(whole) // 2],
        "<<<<<<< ours\n" + whole,
        whole.replace('"schema": ', '"schema": 9'),
    ):
        lockfile.unlink() if broken is None else lockfile.write_text(broken)
        run = project.stagebuild()
        assert run.code == 0
        assert run.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}, run.output
        assert broken is None or "note  " in run.output


def test_an_image_that_was_removed_behind_our_back_is_made_again(project, client):
    project.stagebuild()
    [build] = [uuid for uuid, entry in project.checkpoints().items() if entry["stage"] == "build"]
    client.images.remove(f"stagebuild/{project.name}:{build}", force=True)
    run = project.stagebuild()
    assert run.outcomes() == {"install": "CACHED", "build": "ran", "test": "ran"}
    assert run.row("build").endswith("(checkpoint image is gone)")


def test_resuming_and_what_can_be_resumed_from(project):
    project.stagebuild()
    project.write({"requirements.txt": "two\n"})
    run = project.stagebuild("--stagebuild-from=deps-installed")
    assert run.outcomes() == {"install": "FORCED", "build": "ran", "test": "ran"}
    assert "though changed since: requirements.txt changed" in run.output
    unknown = project.stagebuild("--stagebuild-from=nothing")
    assert unknown.code == 4
    assert "there is no such checkpoint" in unknown.output
    assert all(uuid in unknown.output for uuid in project.checkpoints())
