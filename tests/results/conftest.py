"""Projects whose pytest is started by hand, with the reporter that a sandbox is given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the folders of tests are no packages

from by_hand import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root, beside = tmp_path / "project", tmp_path / "beside"
    root.mkdir()
    beside.mkdir()
    return Place(root, beside)
