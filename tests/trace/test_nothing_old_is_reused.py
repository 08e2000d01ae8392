"""Random projects on a real engine: whatever is reused equals what a run without any cache makes.

``STAGEBUILD_STEPS=20000 pytest tests/trace/test_nothing_old_is_reused.py -s`` looks further; ``STAGEBUILD_SEED`` says
where to begin.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from places import Place, WithoutCache, quoted, without_cache

from pytest_stagebuild.engines.protocol import Engine, StoredImage

STEPS_OF_ONE = 50
STEPS = {"local": 600, "docker": 200}
"""Steps on each engine where nothing else is asked for: on Docker each takes five times as long."""

SEED = int(os.environ.get("STAGEBUILD_SEED", "1"))

FILES = ("a", "d/b", "d/c", "e/f", "e/g/h", "e/g/i")
LINKS = ("k", "d/l", "e/m")
MADE = ("p", "d/q", "n/r", "e/g/s", "/out/t", "/out/u")
TARGETS = ("a", "d", "d/b", "e/g", "b", "f", "../a", "nowhere")

SEE = (
    'see() { for one; do path=$(timeout 5 readlink -m "$one"); while [ -n "$path" ]; do '
    'path=${path%/*}; ls "$path/"; done; done >/dev/null 2>&1; }\n'
)
"""Lists the folders that lead to a path: what is looked for in others leaves no event (docs/explanation/reuse.md).
``readlink -m`` does not end where a link leads into itself (``d -> d/b``)."""

OUTLIVING = (
    "setsid sh -c 'cat {x} >/tmp/early; echo >/tmp/done; exec sleep 300' >/dev/null 2>&1 & "
    "until [ -s /tmp/done ]; do sleep 0.01; done; cat /tmp/early; rm -f /tmp/early /tmp/done"
)

COPY_FOLDER = "cp -r {d} /tmp/copied && mv -T /tmp/copied {p}; rm -rf /tmp/copied"
"""Not straight there: what ``cp -r d d/q`` copies before it finds its own target goes by the numbers of inodes."""

READS = (
    "cat {x}",
    "cat {x} {y}",
    "/tools/c {x}",
    "/tools/rust {x}",
    "/tools/reader.py mmap {x}",
    "/tools/reader.py sendfile {x}",
    "/tools/reader.py range {x}",
    "/tools/reader.py noatime {x}",
    "/tools/reader.py other {x}",
    "sh {x}",
    "./{x}",
    "readlink {x}",
    "ls {d}",
    "ls -F {d}",
    "grep -c 1 {x}",
    "test -e {x}",
    "test -x {x}",
    "test -L {x}; echo $?; test -d {x}",
    "stat -c %F {x}",
    "cat {x}; test -e $(dirname {x})/s && echo there",
    "find {d} | sort",
    "see {d}/b; cd {d} && cat b f h 2>/dev/null",
    OUTLIVING,
)
WRITES = (
    "cp {x} {p}",
    "cp -a {x} {p}",
    "cp -l {x} {p} && cat {p}",
    COPY_FOLDER,
    "mv {x} {p}",
    "mv {x} {y}",
    "mv {d} {p}",
    "mv -T {d} z && mv -T z {d}; cat {x}",
    "ln {x} {p}",
    "ln {x} /tmp/hard && cat /tmp/hard; rm -f /tmp/hard",
    "ln -s {x} {p}; cat {p}",
    "ln -sfn $PWD/{x} /out/absolute; cat /out/absolute",
    "sed -i s/1/9/ {x}",
    "echo more >>{x}",
    "echo new >{p}",
    "cat {x} >{p}",
    "chmod +x {x}",
    "chmod -x {x}",
    "touch {x}",
    "touch {p}",
    "truncate -s 1 {x}",
    "rm {x}",
    "rm -r {d}",
    "mkdir {p}",
)


def operations() -> st.SearchStrategy[str]:
    """A shell command about some of the files, links and folders of a source, and what is made there."""
    paths = st.sampled_from(FILES + LINKS + MADE[:4])

    def filled(template: str, **paths: str) -> str:
        seen = [path for name, path in paths.items() if f"{{{name}}}" in template]
        return f"see {' '.join(seen)}; {template.format(**paths)}"

    return st.builds(
        filled,
        st.sampled_from(READS) | st.sampled_from(WRITES),
        x=paths,
        y=paths,
        d=st.sampled_from(("d", "e", "e/g", ".", "k")),
        p=st.sampled_from(MADE),
    )


class NothingOldIsReused(RuleBasedStateMachine):
    """Each run, whatever it reuses, is compared with one that has no cache."""

    make: Callable[[list[str], list[str]], Place]
    reference: WithoutCache
    seen: Counter[str]

    @initialize(
        install=st.lists(operations(), min_size=1, max_size=3),
        build=st.lists(operations(), min_size=1, max_size=3),
        files=st.sets(st.sampled_from(FILES), min_size=2),
        links=st.dictionaries(st.sampled_from(LINKS), st.sampled_from(TARGETS), max_size=2),
    )
    def begin(self, install: list[str], build: list[str], files: set[str], links: dict[str, str]) -> None:
        self.place = self.make(install, build)
        self.branches: dict[str, Path] = {}
        for path in sorted(files):
            self.write(path, "1", executable=False)
        for path, target in sorted(links.items()):
            self.link(path, target)
        self.changed = True

    def _clear(self, path: str) -> Path:
        """Make way for a file at this path."""
        full = self.place.root / path
        for above in reversed(full.relative_to(self.place.root).parents):
            if (stands := self.place.root / above).is_symlink() or stands.is_file():
                stands.unlink()
        full.parent.mkdir(parents=True, exist_ok=True)
        if full.is_dir() and not full.is_symlink():
            shutil.rmtree(full)
        full.unlink(missing_ok=True)
        self.changed = True
        return full

    @rule(
        change=st.sampled_from(("write", "write", "edit", "edit", "remove", "mode", "rename", "link", "file", "touch")),
        path=st.sampled_from(FILES + LINKS + MADE[:4] + ("d", "e/g")),
        other=st.sampled_from(FILES),
        text=st.sampled_from("123"),
        executable=st.booleans(),
        to=st.sampled_from(TARGETS),
        run=st.sampled_from((True, False, False)),
    )
    def change(self, change: str, path: str, other: str, text: str, *, executable: bool, to: str, run: bool) -> None:
        """What people and branches do to a source; ``path`` may be no file, and then most of it is nothing."""
        self._change(change, path, other, text, executable=executable, to=to)
        if run:
            self._run()

    def _change(self, change: str, path: str, other: str, text: str, *, executable: bool, to: str) -> None:
        self.seen["steps"] += 1
        full = self.place.root / path
        is_file = full.is_file() and not full.is_symlink()
        match change:
            case "write" if path not in {"d", "e/g", *LINKS}:
                self.write(path, text, executable=executable)
            case "link" if path not in MADE:
                self.link(path, to)
            case "file":  # in the place of a folder too
                self._clear(path).write_text(text)
            case "remove" if os.path.lexists(full):
                self._clear(path)
            case "edit" if is_file:
                full.write_text(full.read_text() + "echo more\n")
                self.changed = True
            case "mode" if is_file:
                full.chmod(0o755 if executable else 0o644)
                self.changed = True
            case "touch" if is_file:
                os.utime(full)
                self.changed = True
            case "rename" if is_file and other != path:
                content, mode = full.read_bytes(), full.stat().st_mode
                self._clear(path)
                target = self._clear(other)
                target.write_bytes(content)
                target.chmod(mode)

    def write(self, path: str, text: str, *, executable: bool) -> None:
        full = self._clear(path)
        full.write_text(f"#!/bin/sh\necho {text}\n")
        full.chmod(0o755 if executable else 0o644)

    def link(self, path: str, to: str) -> None:
        self._clear(path).symlink_to(to)

    @rule(name=st.sampled_from(("main", "topic")), keep=st.booleans())
    def branch(self, name: str, *, keep: bool) -> None:
        """Keep the source as it is under a name, or go back to what was kept."""
        self.seen["steps"] += 1
        kept = self.place.root.with_name(f"{self.place.root.name}-{name}")
        if keep:
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(self.place.root, kept, symlinks=True, ignore=shutil.ignore_patterns(".stagebuild"))
            self.branches[name] = kept
        elif name in self.branches:
            for one in self.place.root.iterdir():
                if one.name != ".stagebuild":
                    shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
            shutil.copytree(self.branches[name], self.place.root, symlinks=True, dirs_exist_ok=True)
            self.changed = True

    @rule(what=st.sampled_from(("lockfile", "checkpoint")), number=st.integers(0, 3))
    def lose(self, what: str, number: int) -> None:
        self.seen["steps"] += 1
        images = self.place.images()
        if what == "lockfile":
            shutil.rmtree(self.place.root / ".stagebuild", ignore_errors=True)
        elif images:
            self.place.engine.remove_image(images[number % len(images)])
        self.changed = True

    def _run(self) -> None:
        if not self.changed:
            return
        self.changed = False
        outcomes, served = self.place.served()
        self.seen.update(f"{stage} {outcome}" for stage, outcome in outcomes.items())
        if "cached" not in outcomes.values():
            return
        expected = self.reference.makes(self.place)
        differing = {path: (served.get(path), expected.get(path)) for path in {*served, *expected}}
        wrong = {path: both for path, both in differing.items() if both[0] != both[1]}
        assert not wrong, f"{outcomes}\n{self.place.install}\n{self.place.build}"

    @rule()
    def run(self) -> None:
        self.seen["steps"] += 1
        self._run()

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.place.forget()
            for folder in (self.place.root, *self.branches.values()):
                shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_whatever_is_reused_equals_what_a_run_without_a_cache_makes(
    engine: Engine, image_of_readers: StoredImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    seen: Counter[str] = Counter()
    with without_cache(engine, image_of_readers) as reference:

        class Machine(NothingOldIsReused):
            def __init__(self) -> None:
                super().__init__()
                self.reference, self.seen = reference, seen

            def make(self, install: list[str], build: list[str]) -> Place:
                seen["projects"] += 1
                root = tmp_path / f"trace-{uuid.uuid4().hex[:12]}"
                return Place(
                    root,
                    engine,
                    image_of_readers.id,
                    SEE + quoted(install, "/out/install"),
                    SEE + quoted(build, "/out/build"),
                )

        steps = int(os.environ.get("STAGEBUILD_STEPS") or STEPS[engine.name])
        for number in range(SEED, SEED + max(1, steps // 1000)):
            print(f"seed {number}: {min(steps, 1000)} steps", flush=True)
            run_state_machine_as_test(
                seed(number)(Machine),
                _min_steps=STEPS_OF_ONE,
                settings=settings(
                    max_examples=min(steps, 1000) // STEPS_OF_ONE,
                    stateful_step_count=STEPS_OF_ONE,
                    derandomize=False,
                    database=None,
                    deadline=None,
                    suppress_health_check=list(HealthCheck),
                    phases=(Phase.generate, Phase.shrink),
                ),
            )
            print(dict(sorted(seen.items())), flush=True)
    assert seen["install cached"], seen
    assert seen["build cached"], seen
    assert seen["build ran"], seen
