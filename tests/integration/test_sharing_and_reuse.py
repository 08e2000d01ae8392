"""One build for all: workers of pytest-xdist, runs at once, branches, worktrees, clones and lost lockfiles."""

from __future__ import annotations

XDIST = {"PYTEST_PLUGINS": "pytest_stagebuild.plugin,xdist.plugin"}
TESTS = "\n".join(f"def test_{number}(build_image): assert build_image.stage == 'build'" for number in range(8)) + "\n"


def test_four_workers_share_one_build(new_project, client):
    project = new_project(install_cmd="echo installing; sleep 1", build_cmd="true", test_cmd="true")
    project.write({"test_images.py": TESTS})
    run = project.pytest("-n4", "test_images.py", env=XDIST)
    assert run.code == 0, run.output
    assert "8 passed" in run.output
    assert len(project.images(client)) == len(project.checkpoints()) == 2
    assert run.outcomes() == {"install": "ran", "build": "ran"}


def test_a_failed_stage_is_built_once_and_reported_once(new_project, client, tmp_path):
    project = new_project(install_cmd="echo installing; sleep 1; exit 7", build_cmd="true", test_cmd="true")
    count = "def pytest_stagebuild_stage_start(stage):\n    open('starts', 'a').write(stage.name + '\\n')\n"
    project.write({"test_images.py": TESTS, "counting.py": count})
    env = {"PYTEST_PLUGINS": XDIST["PYTEST_PLUGINS"] + ",counting", "PYTHONPATH": str(project.root)}
    run = project.pytest("-n4", "test_images.py", env=env)
    assert run.code == 1, run.output
    assert "8 errors" in run.output
    assert (project.root / "starts").read_text().split() == ["install"]
    assert run.output.count("failed stage     install (exit 7)") == 1
    assert run.output.count("stage install failed (exit 7): see the stagebuild summary") >= 8
    assert run.outcomes()["install"] == "FAILED"
    assert not project.images(client)


def test_two_runs_at_once_on_one_tree_build_once(new_project, client):
    project = new_project(install_cmd="echo installing; sleep 5", build_cmd="true", test_cmd="true")
    both = [project.start("--stagebuild-source=."), project.start("--stagebuild-source=.")]
    runs = [project.wait(process) for process in both]
    assert [run.code for run in runs] == [0, 0]
    assert sorted(run.outcomes()["install"] for run in runs) == ["CACHED", "ran"]
    assert any("stagebuild install: waiting for process" in run.output for run in runs)
    assert len(project.images(client)) == 2


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
