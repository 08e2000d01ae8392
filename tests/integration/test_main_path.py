"""From an empty engine to pytest's summary, and back from what is kept."""

from __future__ import annotations


def test_the_first_run_makes_both_checkpoints_and_the_second_reuses_them(project):
    first = project.stagebuild()
    assert first.code == 0
    assert first.outcomes() == {"install": "ran", "build": "ran", "test": "ran"}
    assert len(project.checkpoints()) == len(project.images()) == 2

    second = project.stagebuild()
    assert second.code == 0
    assert second.outcomes() == {"install": "CACHED", "build": "CACHED", "test": "ran"}
    assert len(project.checkpoints()) == len(project.images()) == 2
