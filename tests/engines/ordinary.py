"""An ordinary user of this machine, where the tests are run by root: somebody with one user id and no rights."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest_stagebuild

_NUMBER = "54321"


@dataclass(frozen=True)
class OrdinaryUser:
    """Runs programs in ``home``, whose folders above everybody may enter, as somebody who is not root."""

    home: Path

    def start(self, *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Process:
        """Start this Python with these arguments; it finds the package and these folders of tests."""
        source = Path(pytest_stagebuild.__file__).parents[1]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "PYTHONPATH": f"{source}{os.pathsep}{Path(__file__).parent}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_stagebuild.plugin",
            "COLUMNS": "100",
            **(env or {}),
        }
        return subprocess.Popen(
            [*self._becoming(source), sys.executable, *arguments],
            cwd=cwd or self.home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **how: object) -> tuple[int, str]:
        process = self.start(*arguments, **how)  # type: ignore[arg-type]
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def give(self, path: Path) -> None:
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", f"{_NUMBER}:{_NUMBER}", path], check=True)

    def _becoming(self, source: Path) -> list[str]:
        """What starts a program as this user.

        Interpreters and the project may lie in root's home folder, which nobody else can enter: in mounts of its own
        that is replaced by one that holds nothing else.
        """
        if os.geteuid() != 0:
            return []
        wanted = {os.path.realpath(one) for one in (sys.base_prefix, sys.prefix, source, Path(__file__).parents[2])}
        shut: dict[str, list[str]] = {}
        for path in sorted(wanted):
            above = [str(one) for one in reversed(Path(path).parents)] + [path]
            if closed := next((one for one in above if not Path(one).stat().st_mode & 0o001), None):
                shut.setdefault(closed, []).append(path)
        lines = ["set -e"]
        aside = self.home.parent / "aside"
        for number, (closed, paths) in enumerate(shut.items()):
            for part, path in enumerate(paths):
                place = aside / f"{number}-{part}"
                place.mkdir(parents=True, exist_ok=True)
                lines.append(f"mount --bind {shlex.quote(path)} {place}")
            lines.append(f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(closed)}")
            for part, path in enumerate(paths):
                lines.append(
                    f"mkdir -p {shlex.quote(path)}; mount --bind {aside / f'{number}-{part}'} {shlex.quote(path)}"
                )
        lines.append('exec setpriv --reuid="$0" --regid="$0" --clear-groups -- "$@"')
        return ["unshare", "--mount", "--propagation=private", "/bin/sh", "-c", "\n".join(lines), _NUMBER]


Process = subprocess.Popen[str]
