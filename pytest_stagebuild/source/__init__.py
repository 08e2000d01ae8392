"""The source tree: which files it has, their manifest, and the archive that brings them into a sandbox."""

from __future__ import annotations

from pytest_stagebuild.source.archive import Upload
from pytest_stagebuild.source.manifest import Changes, Entry, Kind, Manifest, shown
from pytest_stagebuild.source.removal import removal_script
from pytest_stagebuild.source.tree import SourceTree

__all__ = ["Changes", "Entry", "Kind", "Manifest", "SourceTree", "Upload", "removal_script", "shown"]
