"""What every test of this project may use: pytest's own means of testing a plugin."""

from __future__ import annotations

pytest_plugins = ["pytester"]
