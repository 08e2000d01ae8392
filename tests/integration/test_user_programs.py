"""Where a user other than root installs programs, and no image's PATH leads."""

from __future__ import annotations

import pytest

INSTALL = "mkdir -p $HOME/.local/bin && cd $HOME/.local/bin && echo 'echo it runs' >tool && chmod +x tool && tool"


@pytest.fixture
def project(new_project, image_with_user: str):
    return new_project(image=image_with_user, install_cmd=INSTALL, build_cmd="tool", test_cmd="tool && cat")


def test_every_stage_finds_what_install_put_there(project):
    run = project.stagebuild()
    assert run.code == 0, run.output
    assert (project.root / ".stagebuild" / "logs" / "test.log").read_text() == "it runs\n"


def test_fixtures_find_it_too(project):
    lines = [
        "result = deps_image.run('tool && cat', stdin='and reads\\n')",
        "assert result.stdout == 'it runs\\nand reads\\n'",
    ]
    project.write({"test_it.py": "def test_it(deps_image):\n    " + "\n    ".join(lines)})
    run = project.pytest()
    assert run.code == 0, run.output
