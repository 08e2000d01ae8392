"""The projects that a benchmark takes through their stages: their commands, their Dockerfiles, and edits to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from sync import MIB, make_tree

FIRST_TEST = '''

import pytest


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """When the first test began is told on the terminal, in seconds since the epoch."""
    import time

    class Clock:
        told = False

        def pytest_runtest_logstart(self):
            if not self.told:
                self.told = True
                config.get_terminal_writer().line(f"\\nFIRST TEST {time.time()}", flush=True)

    config.pluginmanager.register(Clock())
'''
"""Added to the project's conftest.py: the same for whoever runs its tests."""

DESCRIBING = re.compile(r"(pyproject\.toml|setup\.(py|cfg)|(README|LICEN[CS]E|CHANGES)\b.*)", re.IGNORECASE)
"""What installing a project needs of its folder, as a rule, beside its packages' names."""


@dataclass(frozen=True)
class Subject:
    """A project, in a folder of which copies are made.

    ``ordered`` is what a hand-written Dockerfile does before it copies the rest; ``module`` and ``test`` are the files
    that are edited.
    """

    name: str
    root: Path
    install: str
    build: str
    test: str
    ordered: str
    module: str
    test_file: str
    can_depend: bool = True

    @property
    def dockerfiles(self) -> dict[str, str]:
        """What follows FROM, by the name of the way to write it."""
        return {
            "naive": f"WORKDIR /src\nCOPY . .\nRUN {self.install}\nRUN {self.build}\n",
            "ordered": f"WORKDIR /src\n{self.ordered}COPY . .\nRUN {self.build}\n",
        }

    def copy_to(self, folder: Path) -> Path:
        """A copy that shares the bytes of its files, which edits part."""
        return Path(shutil.copytree(self.root, folder, copy_function=os.link, symlinks=True))

    def edit(self, copy: Path, work: str, number: int) -> None:
        """What comes before a ``work``: the same for every copy that is given the same ``number``."""
        if work == "module":
            replace(copy / self.module, f"\n# {number}\n")
        elif work == "test":
            replace(copy / self.test_file, f"\n# {number}\n")
        elif work == "dependency":
            path = copy / "pyproject.toml"
            text = path.read_text(encoding="utf-8")
            changed = re.sub(r"^dependencies\s*=\s*\[", '\\g<0>"six", ', text, count=1, flags=re.MULTILINE)
            if changed == text:
                changed = text.replace("[project]\n", '[project]\ndependencies = ["six"]\n', 1)
            path.unlink()
            path.write_text(changed, encoding="utf-8")


def replace(path: Path, added: str) -> None:
    content = path.read_bytes() + added.encode()
    path.unlink()
    path.write_bytes(content)


def from_pypi(requirement: str, folder: Path) -> Path:
    """The unpacked source distribution."""
    name = requirement.partition("==")[0]
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"--no-binary={name}"]
    subprocess.run([*download, "-d", str(folder), requirement], check=True, stderr=subprocess.DEVNULL)
    [archive] = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    archive.unlink()
    [root] = folder.iterdir()
    return root


def project(root: Path, *, install: str, build: str, tests: str) -> Subject:
    """A real one, whose folder is this benchmark's own; ``tests`` is the part of its tests that is run."""
    conftest = root / "conftest.py"
    before = conftest.read_text(encoding="utf-8") if conftest.exists() else "from __future__ import annotations\n"
    conftest.write_text(before + FIRST_TEST, encoding="utf-8")
    (root / ".dockerignore").write_text(".git\n", encoding="utf-8")
    tops = sorted({*root.glob("src/*/__init__.py"), *root.glob("*/__init__.py")})
    packages = [top.parent for top in tops if top.parent.name not in {"tests", "docs"}]
    modules = [path for package in packages for path in package.rglob("*.py") if path.name != "__init__.py"]
    modules = modules or [path for path in root.glob("*.py") if path.name not in {"setup.py", "conftest.py"}]
    described = sorted(path.name for path in root.iterdir() if path.is_file() and DESCRIBING.fullmatch(path.name))
    stubs = [path.relative_to(root).as_posix() for path in packages]
    stub = "".join(f"mkdir -p {path} && touch {path}/__init__.py && " for path in stubs)
    return Subject(
        f"{root.name}, {count(root):,} files",
        root,
        install,
        build,
        f"python -m pytest {tests}",
        f"COPY {' '.join(described)} ./\nRUN {stub}{install}\n",
        max(modules, key=lambda path: path.stat().st_size).relative_to(root).as_posix(),
        tests.partition("::")[0],
    )


def generated(root: Path, files: int, size: int | None = None) -> Subject:
    """A tree of so many files, of 4 KiB on average or ``size`` bytes in all; its build reads one folder of it."""
    root.mkdir(parents=True)
    make_tree(root, size or files * 4096, files)
    (root / "tests").mkdir()
    (root / "tests/test_small.py").write_text("def test_one():\n    pass\n", encoding="utf-8")
    (root / "pyproject.toml").write_text('[project]\nname = "stagebuild-tree"\nversion = "1"\n', encoding="utf-8")
    (root / "conftest.py").write_text(FIRST_TEST, encoding="utf-8")
    (root / ".dockerignore").write_text(".git\n", encoding="utf-8")
    module = "package0/part0/module0.py"
    return Subject(
        f"{files:,} files" + (f", {size / MIB / 1024:.0f} GiB" if size else ""),
        root,
        "pip install pytest",
        "cat package0/part*/* | sha256sum >digest",
        "python -m pytest tests",
        "COPY pyproject.toml ./\nRUN pip install pytest\n",
        module,
        "tests/test_small.py",
        can_depend=False,
    )


def count(root: Path) -> int:
    return sum(path.is_file() for path in root.rglob("*"))
