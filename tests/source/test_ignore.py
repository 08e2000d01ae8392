from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_stagebuild.source.ignore import DockerIgnore, GitIgnore
from pytest_stagebuild.source.reading import Folders
from pytest_stagebuild.source.walk import Found, walk

name = st.sampled_from(["a", "b", "ab", "a.c", "b.c", "x y", "é", "#a", "!b", "-"])
folder = st.lists(st.sampled_from(["a", "b", "ab", "d.c"]), max_size=3).map("/".join)
segment = st.sampled_from(
    ["a", "b", "ab", "a.c", "*", "?", "*b", "a*", "*.c", "**", "[ab]", "[!a]", "\\a", "d.c", "é", "??", "[[:alpha:]]"]
)
pattern = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["", "", "!"]),
    st.sampled_from(["", "", "/", "**/"]),
    st.lists(segment, min_size=1, max_size=3).map("/".join),
    st.sampled_from(["", "", "/", "/**", "/*"]),
    st.sampled_from(["", "", "", " ", "\r", "\t"]),
)
odd_line = st.sampled_from(["", "#a", "\\#a", "\\!b", "/", "!", "x\\ y", "x y  ", "a\\", "[z-a]", "[a", "//a", "a//"])
ignore_file = st.lists(st.one_of(pattern, pattern, odd_line), max_size=5).map("\n".join)


def paths_below(root: Path) -> set[bytes]:
    found = Found()
    with Folders(root) as folders:
        walk(folders, b"", found)
    return set(found.paths)


def plant(root: Path, files: set[tuple[str, str]], rules: dict[str, str]) -> None:
    for above, last in sorted(files | {(above, ".gitignore") for above in rules}):
        target = root / above / last
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(rules[above] if last == ".gitignore" else "", encoding="utf-8", newline="")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    files=st.sets(st.tuples(folder, name), min_size=1, max_size=12),
    rules=st.dictionaries(folder, ignore_file, min_size=1, max_size=3),
)
@example(files={("a/b", "a.c")}, rules={"": "*.c", "a": "!b/"})
@example(files={("a", "b"), ("a", "a.c")}, rules={"": "*\n!a/\n!*.c"})
@example(files={("a/b", "b")}, rules={"": "a/**\n!a/b/"})
def test_a_walk_finds_what_git_lists(files: set[tuple[str, str]], rules: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as top:
        root = Path(top)
        plant(root, files, rules)
        environment = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        git = ["git", "-C", top]
        subprocess.run([*git, "init", "-q", "--template="], check=True, env=environment)
        listing = [*git, "ls-files", "-z", "-co", "--exclude-standard"]
        listed = subprocess.run(listing, check=True, env=environment, capture_output=True).stdout

        assert paths_below(root) == set(filter(None, listed.split(b"\0")))


def ignored(patterns: str, path: str) -> bool:
    rules = DockerIgnore(patterns.encode())
    matched = rules.nothing_said
    parts = path.split("/")
    for depth in range(1, len(parts) + 1):
        matched = rules.matched("/".join(parts[:depth]), matched)
    return rules.ignores(matched)


# From the tables of moby's own tests (patternmatcher_test.go) and from the documentation of .dockerignore.
@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        ("**", "file", True),
        ("**", "dir/file", True),
        ("**/", "file", True),
        ("**/**", "dir/file", True),
        ("dir/**", "dir/file", True),
        ("dir/**", "dir/dir2/file", True),
        ("dir/**", "dir", False),
        ("**/dir", "dir/file", True),
        ("**/dir2/*", "dir/dir2/file", True),
        ("**/dir2/**", "dir/dir2/dir2/file", True),
        ("**file", "file", True),
        ("**file", "dir/afile", True),
        ("**/file", "dir/file", True),
        ("**/file", "dir/afile", False),
        ("**/file*", "dir/dir/file.txt", True),
        ("**/file*txt", "dir/dir/file.txt", True),
        ("**/**/*.txt", "dir/dir/file.txt", True),
        ("a**/*.txt", "a/dir/file.txt", True),
        ("a[b-d]e", "ae", False),
        ("a[b-d]e", "ace", True),
        ("a[^b-d]e", "aze", True),
        ("abc.def", "abcZdef", False),
        ("abc?def", "abcZdef", True),
        ("a?c", "aéc", True),
        ("a\\?c", "a?c", True),
        ("foo", "bar/foo", False),
        ("/foo", "foo", True),
        ("foo/", "foo/bar", True),
        ("./foo/../bar", "bar", True),
        ("*.md\n!README.md", "README.md", False),
        ("*.md\n!README*.md\nREADME-secret.md", "README-secret.md", True),
        ("*.md\nREADME-secret.md\n!README*.md", "README-secret.md", False),
        ("*\n!src", "src/a/b.py", False),
        ("*\n!src", "other/a", True),
        ("# foo", "foo", False),
        ("  foo  ", "foo", True),
        ("", "foo", False),
    ],
)
def test_dockerignore_patterns_mean_what_docker_takes_them_for(patterns: str, path: str, expected: bool) -> None:
    assert ignored(patterns, path) is expected


def test_a_dockerignore_counts_at_the_root_and_excepts_files_of_ignored_folders(tree: Path) -> None:
    (tree / "data/deep").mkdir(parents=True)
    for file in ("data/keep.txt", "data/lose.txt", "data/deep/lose", "a.md", "data/a.md"):
        (tree / file).write_text("")
    (tree / ".dockerignore").write_text("data\n!data/keep.txt\n*.md\n")
    (tree / "data/.dockerignore").write_text("keep.txt\n")

    assert paths_below(tree) == {b".dockerignore", b"data/keep.txt"}


def test_a_folder_that_is_ignored_is_not_looked_into(tree: Path) -> None:
    (tree / "big").mkdir()
    (tree / "big/keep").write_text("")
    (tree / ".gitignore").write_text("big/\n!big/keep\n")

    assert paths_below(tree) == {b".gitignore"}


def test_a_byte_order_mark_is_no_part_of_a_pattern() -> None:
    assert GitIgnore(b"\xef\xbb\xbfa").verdict("a", "a", is_folder=False) is True
