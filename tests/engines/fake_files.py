"""A file system in memory and a shell of a dozen words on it, for the fake engine: no command reaches the host."""

from __future__ import annotations

import io
import posixpath
import re
import shlex
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Node:
    kind: Literal["file", "folder", "link"]
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 0.0


@dataclass
class Files:
    """Absolute POSIX paths and what is there; a link's data is its target."""

    nodes: dict[str, Node] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    """Paths that somebody has opened, looked for, made or removed."""

    @classmethod
    def of(cls, contents: Mapping[str, bytes]) -> Files:
        files = cls()
        for path, data in contents.items():
            files.write(path, data)
        return files

    def copy(self) -> Files:
        return Files(dict(self.nodes))

    def resolve(self, path: str) -> str:
        """The path with every link in it followed."""
        done = "/"
        for depth, part in enumerate(parts := path.strip("/").split("/")):
            step = posixpath.normpath(posixpath.join(done, part))
            node = self.nodes.get(step)
            if node and node.kind == "link":
                target = posixpath.join(done, node.data.decode("utf-8", "surrogateescape"))
                return self.resolve(posixpath.join(target, *parts[depth + 1 :]))
            done = step
        return done

    def is_folder(self, path: str) -> bool:
        path = self.resolve(path)
        self.used.add(posixpath.dirname(path))
        node = self.nodes.get(path)
        return path == "/" or bool(node and node.kind == "folder") or next(self.below(path), None) is not None

    def exists(self, path: str) -> bool:
        self.used.add(posixpath.dirname(self.resolve(path)))
        return self.resolve(path) in self.nodes or self.is_folder(path)

    def below(self, path: str) -> Iterator[str]:
        prefix = path.rstrip("/") + "/"
        return (one for one in sorted(self.nodes) if one.startswith(prefix))

    def write(self, path: str, data: bytes) -> None:
        path = self.resolve(path)
        self.used.add(path)
        self.nodes[path] = replace(self.nodes.get(path, Node("file")), kind="file", data=data)

    def read(self, path: str) -> bytes:
        node = self.nodes.get(self.resolve(path))
        self.used.add(self.resolve(path))
        if node is None or node.kind != "file":
            raise FileNotFoundError(path)
        return node.data

    def remove(self, path: str) -> bool:
        gone = [one for one in (path, *self.below(path)) if one in self.nodes]
        self.used.update((path, *gone))
        for one in gone:
            del self.nodes[one]
        return bool(gone)

    def extract(self, archive: tarfile.TarFile) -> None:
        for member in archive:
            path = posixpath.normpath("/" + member.name.strip("/"))
            owned = Node("file", b"", member.mode, member.uid, member.gid, member.mtime)
            if member.isdir():
                self.nodes[self.resolve(path)] = replace(owned, kind="folder")
            elif member.issym():
                self.nodes[path] = replace(owned, kind="link", data=member.linkname.encode("utf-8", "surrogateescape"))
            elif file := archive.extractfile(member):
                self.nodes[path] = replace(owned, data=file.read())

    def archive(self, path: str) -> bytes:
        path = posixpath.normpath("/" + path.strip("/"))
        if path not in self.nodes and not self.is_folder(path):
            raise FileNotFoundError(path)
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for one in dict.fromkeys((path, *self.below(path))):
                node = self.nodes.get(one, Node("folder", mode=0o755))
                member = tarfile.TarInfo(posixpath.relpath(one, posixpath.dirname(path)))
                member.mode, member.uid, member.gid, member.mtime = node.mode, node.uid, node.gid, node.mtime
                member.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}[node.kind]
                if node.kind == "link":
                    member.linkname = node.data.decode("utf-8", "surrogateescape")
                member.size = len(node.data) if node.kind == "file" else 0
                archive.addfile(member, io.BytesIO(node.data))
        return buffer.getvalue()


class OutOfTime(Exception):
    """The command would still be running at the end of its time."""


class Exit(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


Program = Callable[["Shell", list[str]], int]


@dataclass
class Shell:
    """Runs scripts of simple commands, joined by ``;``, ``&&``, ``||`` or newlines, with ``>``, ``>>`` and ``&``.

    ``sleep`` takes no time: it moves ``clock``, and raises :class:`OutOfTime` once that passes ``deadline``. Words in
    single quotes are expanded as all others are. ``programs`` adds commands, or replaces them.
    """

    files: Files
    env: dict[str, str]
    cwd: str
    output: Callable[[Literal["stdout", "stderr"], bytes], None]
    programs: Mapping[str, Program]
    running: list[str]
    deadline: float = float("inf")
    clock: float = 0.0
    quiet: bool = False

    def run(self, script: str) -> int:
        try:
            return self._script(script)
        except Exit as end:
            return end.code

    def path(self, name: str) -> str:
        return posixpath.normpath(posixpath.join(self.cwd, name))

    def say(self, text: str) -> None:
        self.output("stdout", text.encode("utf-8", "surrogateescape"))

    def complain(self, text: str) -> int:
        if not self.quiet:
            self.output("stderr", text.encode("utf-8", "surrogateescape") + b"\n")
        return 1

    def _script(self, script: str) -> int:
        lexer = shlex.shlex(script, posix=True, punctuation_chars=";&|<>\n")
        lexer.whitespace, lexer.commenters = " \t", "#"
        lexer.wordchars += "%+,:@!$[]{}^"
        code, words, skip = 0, [], False
        for token in [*lexer, "\n"]:
            if not re.fullmatch(r"[;&|<>\n]+", token) or (words and words[-1] in (">", ">>", ">&")):
                words.append(token)
                continue
            for operator in re.findall(r"&&|\|\||>>|>&|[;&<>\n]", token):
                if operator in (">", ">>", ">&"):
                    words.append(operator)
                    continue
                if words and not skip:
                    if operator == "&":
                        self.running.append(" ".join(words))
                        code = 0
                    else:
                        code = self._command([self._expanded(word) for word in words])
                skip = (operator == "&&" and code != 0) or (operator == "||" and code == 0)
                words = []
        return code

    def _expanded(self, word: str) -> str:
        return re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda match: self.env.get(match[1] or match[2], ""), word)

    def _command(self, words: list[str]) -> int:
        words, output, quiet = list(words), self.output, self.quiet
        written: tuple[str, bytearray] | None = None
        while (at := next((i for i, word in enumerate(words) if word in (">", ">>", ">&")), None)) is not None:
            operator, target = words[at], words[at + 1]
            descriptor = words[at - 1] if at and words[at - 1] in ("1", "2") else ""
            del words[at - bool(descriptor) : at + 2]
            if descriptor == "2":
                quiet = target == "/dev/null" or quiet
            elif operator == ">&":
                self_output = output
                output = lambda _, data, sink=self_output: sink("stderr", data)  # noqa: E731
            else:
                path = self.path(target)
                before = self.files.read(path) if operator == ">>" and self.files.exists(path) else b""
                written = (path, bytearray(before))
                output = lambda _, data, kept=written[1]: kept.extend(data)  # noqa: E731
        before_output, before_quiet = self.output, self.quiet
        self.output, self.quiet = output, quiet
        try:
            negated = words[0] == "!"
            name, *arguments = words[1:] if negated else words
            program = self.programs.get(name) or PROGRAMS.get(posixpath.basename(name))
            if program is None:
                self.complain(f"/bin/sh: 1: {name}: not found")
                return 127
            code = program(self, arguments)
            return int(code == 0) if negated else code
        finally:
            self.output, self.quiet = before_output, before_quiet
            if written and written[0] != "/dev/null":
                self.files.write(written[0], bytes(written[1]))


def _echo(shell: Shell, words: list[str]) -> int:
    shell.say(" ".join(words) + "\n")
    return 0


def _cat(shell: Shell, words: list[str]) -> int:
    for word in words:
        try:
            shell.output("stdout", shell.files.read(shell.path(word)))
        except FileNotFoundError:  # noqa: PERF203 - the first that is missing ends it
            return shell.complain(f"cat: {word}: No such file or directory")
    return 0


def _rm(shell: Shell, words: list[str]) -> int:
    flags = {word for word in words if word.startswith("-")}
    code = 0
    for word in (word for word in words if not word.startswith("-")):
        folder, name = posixpath.split(shell.path(word))
        gone = shell.files.remove(posixpath.join(shell.files.resolve(folder), name))
        if not gone and not any("f" in flag for flag in flags):
            code = shell.complain(f"rm: cannot remove '{word}': No such file or directory")
    return code


def _rmdir(shell: Shell, words: list[str]) -> int:
    for word in words:
        path = shell.files.resolve(shell.path(word))
        if next(shell.files.below(path), None) is not None or not shell.files.remove(path):
            return shell.complain(f"rmdir: failed to remove '{word}'")
    return 0


def _mkdir(shell: Shell, words: list[str]) -> int:
    for word in (word for word in words if not word.startswith("-")):
        shell.files.nodes.setdefault(shell.files.resolve(shell.path(word)), Node("folder", mode=0o755))
    return 0


def _cp(shell: Shell, words: list[str]) -> int:
    source, target = words[-2:]
    try:
        shell.files.write(shell.path(target), shell.files.read(shell.path(source)))
    except FileNotFoundError:
        return shell.complain(f"cp: cannot stat '{source}': No such file or directory")
    return 0


def _touch(shell: Shell, words: list[str]) -> int:
    for word in words:
        if not shell.files.exists(shell.path(word)):
            shell.files.write(shell.path(word), b"")
    return 0


def _test(shell: Shell, words: list[str]) -> int:
    words = [word for word in words if word != "]"]
    negated = words[:1] == ["!"]
    operator, operand = words[-2:]
    path = shell.path(operand)
    shell.files.used.add(posixpath.dirname(shell.files.resolve(path)))
    node = shell.files.nodes.get(shell.files.resolve(path))
    lies = shell.files.nodes.get(posixpath.join(shell.files.resolve(posixpath.dirname(path)), posixpath.basename(path)))
    holds = {
        "-e": shell.files.exists(path),
        "-f": bool(node and node.kind == "file"),
        "-d": shell.files.is_folder(path),
        "-L": bool(lies and lies.kind == "link"),
        "-h": bool(lies and lies.kind == "link"),
        "-n": bool(operand),
        "-z": not operand,
    }[operator]
    return int(holds is negated)


def _cd(shell: Shell, words: list[str]) -> int:
    if not shell.files.is_folder(shell.path(words[0])):
        return shell.complain(f"cd: can't cd to {words[0]}") + 1
    shell.cwd = shell.path(words[0])
    return 0


def _ls(shell: Shell, words: list[str]) -> int:
    path = shell.files.resolve(shell.path(words[-1] if words else "."))
    shell.files.used.add(path)
    names = {one[len(path.rstrip("/")) + 1 :].partition("/")[0] for one in shell.files.below(path)}
    shell.say("".join(f"{name}\n" for name in sorted(names)))
    return 0


def _sh(shell: Shell, words: list[str]) -> int:
    text = words[1] if words[0] == "-c" else shell.files.read(shell.path(words[0])).decode("utf-8", "surrogateescape")
    return replace(shell).run(text)


def _sleep(shell: Shell, words: list[str]) -> int:
    shell.clock += float(words[0])
    if shell.clock >= shell.deadline:
        raise OutOfTime
    return 0


def _exit(shell: Shell, words: list[str]) -> int:
    raise Exit(int(words[0]) if words else 0)


def _pwd(shell: Shell, words: list[str]) -> int:
    shell.say(shell.cwd + "\n")
    return 0


PROGRAMS: Mapping[str, Program] = {
    "echo": _echo,
    "cat": _cat,
    "rm": _rm,
    "rmdir": _rmdir,
    "mkdir": _mkdir,
    "cp": _cp,
    "touch": _touch,
    "[": _test,
    "test": _test,
    "cd": _cd,
    "ls": _ls,
    "sh": _sh,
    "sleep": _sleep,
    "exit": _exit,
    "pwd": _pwd,
    "true": lambda shell, words: 0,
    ":": lambda shell, words: 0,
    "false": lambda shell, words: 1,
}
