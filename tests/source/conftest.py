from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[..., Path]
Git = Callable[..., bytes]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of the tree in ``tmp_path / "tree"``, with the folders above it; gives its path."""

    def write_file(name: str | bytes, content: bytes = b"x", mode: int = 0o644) -> Path:
        path = tmp_path / "tree" / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
        return path

    return write_file


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    root.mkdir()
    return root


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch) -> Git:
    """Run git in a folder, with nobody's configuration but the repository's."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def run(folder: Path, *arguments: str) -> bytes:
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "protocol.file.allow=always")
        return subprocess.run(["git", *identity, "-C", folder, *arguments], check=True, capture_output=True).stdout

    return run
