"""From an empty engine to pytest's summary, and back from what is kept."""

from __future__ import annotations

import pytest


def test_the_first_run_makes_both_checkpoints_and_the_second_reuses_them(project):
    first = project.stagebuild()
    assert first.code == 0
    assert first.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert len(project.checkpoints()) == len(project.images()) == 2

    second = project.stagebuild()
    assert second.code == 0
    assert second.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert len(project.checkpoints()) == len(project.images()) == 2


@pytest.mark.parametrize("ground", ["local"], indirect=True)
def test_the_image_host_needs_no_engine_to_be_named(new_project):
    project = new_project(engine="auto", image="host", install_cmd="true", build_cmd="true", test_cmd="true")
    run = project.stagebuild("pyproject.toml::install")
    assert run.code == 0, run.output
    assert "(the only one for the image host)" in run.output
    assert len(project.images()) == 1
