"""What pip, uv, npm and cargo have downloaded, kept on this machine for the next time a stage runs, in no checkpoint.

Before the command of a stage, files go into its sandbox with the source, and the tools are told where they lie; after
it they are taken out again. No volume does it: those are folders of the engine's machine, which need not be this one.
Only downloads are kept. What was built here, such as a wheel, depends on more than the cache of its tool knows.

Of what never changes once it is downloaded, only what is new is taken out: the rest is removed first, in the sandbox,
and stays here as it was sent. So what a command did to it is not what a later run sees.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
import shlex
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Final, Literal

from pytest_stagebuild.checkpoint import RUN_FOLDER
from pytest_stagebuild.engines.protocol import ImageConfig, Owner, Sandbox
from pytest_stagebuild.errors import StagebuildError
from pytest_stagebuild.execution import Workplace, said_by
from pytest_stagebuild.kept_archive import TooMuchError, folder_header, keep, kept_members, units_in
from pytest_stagebuild.stage import Stage
from pytest_stagebuild.state import cache_folder
from pytest_stagebuild.tar import members_of
from pytest_stagebuild.values import dataclass

FOLDER: Final = f"{RUN_FOLDER}/downloads"
"""Where the tools keep what they download while a command runs; it is removed with the folder that it is in."""

_UNUSED_AFTER: Final = 30 * 86400.0
"""Seconds after which what no stage has used any more is removed."""

_CARGO_NOTES: Final = f"{FOLDER}/cargo-notes"
"""Where cargo looks, and in further lines what was there before."""

_MOST_NOTES: Final = 1 << 20
"""Bytes of it that are read: some 20,000 crates."""

_REMOVE_SENT: Final = f"{RUN_FOLDER}/remove-downloads.sh"
_AT_ONCE: Final = 100
"""Names in one command, whose length systems limit."""
_TOGETHER: Final = 4
"""Commands that remove files at the same time: what takes time is to wait for the disk."""

_BEFORE_CARGO: Final = (
    f'(home="${{CARGO_HOME:-$HOME/.cargo}}"; cd {FOLDER} && printf "%s\\n" "$home" >cargo-notes && '
    '{ (cd "$home/registry/cache" && printf "%s\\n" */*.crate) >>cargo-notes; '
    'for index in cargo/*; do [ -d "$index" ] && to="$home/registry/cache/${index##*/}" && mkdir -p "$to" && '
    'ln "$index"/*.crate "$to/"; done; }) 2>/dev/null; '
)
"""In the shell of the command, which alone knows where its cargo looks: notes that down, and what is there already, and
links the crates into that place. The other name of each tells afterwards which of them came from here."""


@dataclass(frozen=True)
class Tool:
    """A tool, what of its cache is a download, and the ``variables`` that move it to the folder of that name.

    Where a command is given one of ``decided_by``, in lower case, its user has decided, and the tool is left alone.
    ``words`` in a command, or one of ``files`` in the source, say that the tool is used. ``units`` begins the paths of
    what never changes once it is there.
    """

    name: str
    kept: re.Pattern[str]
    words: re.Pattern[str]
    files: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    decided_by: tuple[str, ...] = ()
    units: re.Pattern[str] | None = None

    @property
    def folder(self) -> str:
        return f"{FOLDER}/{self.name}"


def _words(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(words)})(?![\w-])")


_PIP: Final = Tool(
    "pip",
    # `http` is that of pip before 23.3. Beside them are `wheels`, which were built here, and `selfcheck`.
    kept=re.compile(r"http(-v2)?/.*(?<!\.tmp)"),
    words=_words(r"pip[\d.]*", r"python[\d.]*", "tox", "nox", "hatch", "poetry", "pdm"),
    variables={"PIP_CACHE_DIR": f"{FOLDER}/pip"},
    decided_by=("pip_cache_dir", "pip_no_cache_dir"),
)
_UV: Final = Tool(
    "uv",
    # CacheBucket in https://github.com/astral-sh/uv/blob/main/crates/uv-cache/src/lib.rs. Not `sdists`, `builds`,
    # `environments` and `interpreter`, which were made here, nor git checkouts, in which builds leave files, nor wheels
    # from a path.
    kept=re.compile(r"archive-v\d+/[^/]+/.*|(simple-v\d+|wheels-v\d+/(pypi|index|url))/.*(?<!\.lock)", re.DOTALL),
    words=_words("uvx?"),
    # By default what is installed is the same file as what is cached: who changed the one would change the other.
    variables={"UV_CACHE_DIR": f"{FOLDER}/uv", "UV_LINK_MODE": "copy"},
    decided_by=("uv_cache_dir", "uv_no_cache", "uv_link_mode"),
    units=re.compile(r"archive-v\d+/[^/]+(?=/)"),  # a wheel unpacked, under a name by chance
)
_NPM: Final = Tool(
    "npm",
    kept=re.compile(r"_cacache/(content-v2|index-v5)/.*"),  # https://github.com/npm/cacache
    words=_words("npm", "npx", "node"),
    files=("package.json",),
    variables={"npm_config_cache": f"{FOLDER}/npm"},
    decided_by=("npm_config_cache",),
    units=re.compile(r"_cacache/content-v2/[^/]+/[^/]+/[^/]+/[^/]+\Z"),  # a file under the digest of its content
)
_CARGO: Final = Tool(
    "cargo",
    kept=re.compile(r"[^/]+/[^/]+\.crate"),  # https://doc.rust-lang.org/cargo/guide/cargo-home.html
    words=_words("cargo", "maturin"),
    files=("Cargo.toml",),
)
TOOLS: Final = (_PIP, _UV, _NPM, _CARGO)


def tools_of(stage: Stage, image: ImageConfig, given: Iterable[str]) -> tuple[Tool, ...]:
    """The tools whose downloads are kept where a command is ``given`` these variables beyond those of its image."""
    names = {name.lower() for name in (*given, *(variable.partition("=")[0] for variable in image.env))}
    return tuple(tool for tool in TOOLS if names.isdisjoint(tool.decided_by)) if stage.network else ()


def is_wanted(tool: Tool, command: str, files: Container[str]) -> bool:
    """Whether a command is likely to use a tool; pip is, where it says nothing of others."""
    if tool.words.search(command) or any(file in files for file in tool.files):
        return True
    others = (other for other in TOOLS if other is not tool)
    return tool is _PIP and command != "true" and not any(other.words.search(command) for other in others)


class KeptDownloads:
    """What one stage of a project has downloaded before, and what it downloads now.

    Those of install and build are kept apart: what the one needs, the other is rarely asked for again. ``notes`` say
    what could not be used or kept; nothing of this is ever an error of the run.
    """

    def __init__(self, folder: Path, stage: Stage, tools: Iterable[Tool], files: Container[str]) -> None:
        self.notes: list[str] = []
        self._folder = folder
        self._stage = stage
        self._tools = tuple(tools)
        self._wanted = [tool for tool in self._tools if is_wanted(tool, stage.command, files)]
        self._owner = Owner(0, 0)
        self._crates_sent = False
        self._noted: list[str] | None = None
        self._sent: dict[str, list[str]] = {}
        """The units of each tool, by their paths below its folder."""

    @classmethod
    def of(cls, workplace: Workplace, stage: Stage, image: ImageConfig) -> KeptDownloads | None:
        """None where nothing is kept: by the user's choice, or since it could hold a password.

        Addresses of package indexes end up in caches, and with them what stands in them.
        """
        if workplace.settings.downloads == "fresh" or workplace.redactions:
            return None
        tools = tools_of(stage, image, workplace.environment(stage.env))
        digest = hashlib.sha256(workplace.settings.project.encode()).hexdigest()[:16]
        folder = cache_folder() / "downloads" / digest
        return cls(folder, stage, tools, workplace.tree.manifest.entries) if tools else None

    @property
    def variables(self) -> dict[str, str]:
        """What tells the tools where to look."""
        return {name: value for tool in self._tools for name, value in tool.variables.items()}

    def command(self, command: str) -> str:
        """The command, with what must be done in its own shell first."""
        return _BEFORE_CARGO + command if _CARGO in self._wanted else command

    def members(self, owner: Owner) -> Iterator[bytes]:
        """What goes into the sandbox: a folder of the command's user, and what was downloaded before.

        These are parts of an archive to which another one can follow.
        """
        self._owner = owner
        for folder in (posixpath.dirname(RUN_FOLDER), RUN_FOLDER):
            yield folder_header(folder, Owner(0, 0))
        yield folder_header(FOLDER, owner)
        for tool in self._wanted:
            for piece in self._kept_of(tool):
                self._crates_sent |= tool is _CARGO
                yield piece
        if any(self._sent.values()):
            yield members_of({_REMOVE_SENT: self._removal()})

    def take(self, sandbox: Sandbox) -> None:
        """Keep what is in the sandbox now that its command has ended."""
        if any(self._sent.values()):
            with contextlib.suppress(StagebuildError):  # what it does not remove comes out
                self._run(sandbox, f"/bin/sh {_REMOVE_SENT}")
        for tool in self._tools:
            if tool is _CARGO and tool not in self._wanted:
                continue
            try:
                self._take(tool, sandbox)
            except FileNotFoundError:  # the tool was not used
                continue
            except StagebuildError as error:
                self.notes.append(f"what {tool.name} downloaded was not kept: {error}")
            except OSError as error:
                reason = error.strerror or str(error)
                self.notes.append(f"what {tool.name} downloaded could not be kept in {self._folder}: {reason}")
        with contextlib.suppress(OSError):
            _remove_unused(self._folder.parent)

    def clean_up(self, sandbox: Sandbox) -> str:
        """A shell command that removes what would otherwise stay; empty where nothing would.

        Of the crates that came from here, those stay which cargo has unpacked: it would have downloaded these, and
        looks for both when it is offline.
        """
        try:
            home = self._cargo_notes(sandbox)[0] if self._crates_sent else ""
        except FileNotFoundError:
            home = ""
        if not home:
            return ""
        cache, unpacked = shlex.quote(f"{home}/registry/cache"), shlex.quote(f"{home}/registry/src")
        return (
            f"cd {FOLDER}/cargo && for crate in */*.crate; do "
            f'[ -d {unpacked}/"${{crate%.crate}}" ] || [ ! "$crate" -ef {cache}/"$crate" ] || rm -f {cache}/"$crate"; '
            f'done; for index in *; do rmdir {cache}/"$index" 2>/dev/null; done; cd /; '
        )

    def _path(self, tool: Tool) -> Path:
        return self._folder / f"{self._stage.name}-{tool.name}-{self._owner.uid}-{self._owner.gid}.tar"

    def _kept_of(self, tool: Tool) -> Iterator[bytes]:
        path = self._path(tool)
        try:
            yield from kept_members(path)
            self._sent[tool.name] = units_in(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            self.notes.append(f"what {tool.name} downloaded before cannot be read in {path}: {error.strerror}")
        except ValueError:
            self.notes.append(f"what {tool.name} downloaded before was damaged and is downloaded anew")
            with contextlib.suppress(OSError):
                path.unlink()

    def _removal(self) -> bytes:
        """A shell script that removes what was sent, as far as it is not needed to tell what is new."""
        lines = [f"cd {FOLDER} || exit"]
        for name, units in self._sent.items():
            paths = [shlex.quote(f"{name}/{unit}") for unit in units]
            folders = [shlex.quote(f"{name}/{folder}") for folder in {*map(posixpath.dirname, units)}]
            for command, names in (("rm -rf", paths), ("rmdir -p", folders)):
                size = min(_AT_ONCE, -(-len(names) // _TOGETHER))
                for number, at in enumerate(range(0, len(names), size), start=1):
                    lines.append(f"{command} {' '.join(names[at : at + size])} 2>/dev/null &")
                    if number % _TOGETHER == 0:
                        lines.append("wait")
                lines.append("wait")
        return "\n".join(lines).encode("utf-8", "surrogateescape")

    def _take(self, tool: Tool, sandbox: Sandbox) -> None:
        place, already = tool.folder, frozenset[str]()
        if tool is _CARGO:
            home, *had = self._cargo_notes(sandbox)
            place, already = f"{home}/registry/cache", frozenset(had)
        try:
            keep(
                sandbox.get(place),
                self._path(tool),
                below=tool.folder,
                owner=self._owner,
                is_kept=lambda path: tool.kept.fullmatch(path) is not None and path not in already,
                what=f"the downloads of {tool.name}",
                units=tool.units,
                onto=tool.name in self._sent,
            )
        except TooMuchError:
            self._path(tool).unlink(missing_ok=True)
            raise

    def _cargo_notes(self, sandbox: Sandbox) -> list[str]:
        """Where cargo looked, and then the crates that were there before; read once.

        Raises ``FileNotFoundError`` where nobody says so in an absolute path.
        """
        if self._noted is None:
            said = self._run(sandbox, f"[ -f {_CARGO_NOTES} ] && head -c {_MOST_NOTES} {_CARGO_NOTES}")
            self._noted = said.decode(errors="replace").splitlines() or [""]
        if re.fullmatch(r"/[^\0-\x1f]{1,1000}", self._noted[0]) is None:
            raise FileNotFoundError(_CARGO_NOTES)
        return self._noted

    def _run(self, sandbox: Sandbox, command: str) -> bytes:
        """What a command prints that the user of the stage's command could have run: there may be a link anywhere."""
        user: Literal["image", "root"] = "root" if self._owner == Owner(0, 0) else "image"
        return said_by(sandbox, command, user=user)[1]


def _remove_unused(folder: Path) -> None:
    """Of all projects; and what is left of a run that was killed while it wrote."""
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):
            age = time.time() - path.stat().st_mtime
            if age > _UNUSED_AFTER or (path.suffix == ".part" and age > 86400):
                path.unlink()
