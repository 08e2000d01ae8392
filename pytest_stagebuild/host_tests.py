"""Find the test files that run here, with the fixtures, rather than inside the container."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from pytest_stagebuild.errors import ConfigurationError

FIXTURES: Final = frozenset({"base_image", "deps_image", "build_image"})


def find_host_tests(paths: Iterable[str], root: Path, configured: Sequence[str]) -> tuple[str, ...]:
    """The host tests among ``paths``, the files of a source tree relative to its ``root``, sorted.

    These are the files that ``configured`` names, as files or as folders of test files, and the test files in which a
    test or a fixture asks for one of our fixtures: as an argument, by ``usefixtures`` or by ``getfixturevalue``.
    A test file is one that pytest collects by default, ``test_*.py`` or ``*_test.py``; no other file is read, save the
    ``conftest.py`` files beside and above a test file that mentions our fixtures. A project may have a fixture or a
    parameter of the same name: then it is the project's, and the file none of ours. A file that cannot be read or
    parsed is none of ours either.

    A ``conftest.py`` is not a test file, and a test that reaches our fixtures only through a fixture defined there (or
    in a plugin) cannot be seen: name such files in ``host_tests``.

    Raises ``ConfigurationError`` for a configured path that is not in the tree or holds no test file.
    """
    paths = [path for path in paths if path.endswith(".py")]
    found = {test for path in configured for test in _named(path, paths, root)}
    asking = {path: module for path in paths if _is_test_file(path) and (module := _parse_if_it_mentions(root / path))}
    if asking:
        overrides = _conftest_overrides(paths, root)
        for path, module in asking.items():
            folders = [str(folder) for folder in PurePosixPath(path).parents]
            theirs = _defined(module).union(*(overrides.get(folder, frozenset()) for folder in folders))
            if _requested(module) - theirs:
                found.add(path)
    return tuple(sorted(found))


def _named(configured: str, paths: Sequence[str], root: Path) -> list[str]:
    path = PurePosixPath(configured)
    if path.is_absolute() or ".." in path.parts:
        raise ConfigurationError(
            f"host_tests names {configured}, which is not below the source {root}. "
            f"Next: give a path relative to the source, such as tests/host."
        )
    if (root / path).is_file():
        return [str(path)]
    tests = [test for test in paths if _is_test_file(test) and PurePosixPath(test).is_relative_to(path)]
    if not tests:
        what = "holds no file named test_*.py or *_test.py" if (root / path).is_dir() else "is not there"
        raise ConfigurationError(
            f"host_tests names {configured}, but {root / path} {what}. Next: correct or remove that path."
        )
    return tests


def _is_test_file(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.endswith("_test.py") or (name.startswith("test_") and name.endswith(".py"))


def _parse_if_it_mentions(path: Path) -> ast.Module | None:
    try:
        text = path.read_bytes()
        if not any(name.encode() in text for name in FIXTURES):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=SyntaxWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            return ast.parse(text)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _conftest_overrides(paths: Iterable[str], root: Path) -> dict[str, frozenset[str]]:
    """Which of our names each folder's conftest.py defines for itself."""
    return {
        str(PurePosixPath(path).parent): _defined(module)
        for path in paths
        if path.rpartition("/")[2] == "conftest.py" and (module := _parse_if_it_mentions(root / path))
    }


def _functions(body: Iterable[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions of a module and the methods of its classes; what a function holds inside is no test."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body)
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from _functions(child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))


def _requested(module: ast.Module) -> frozenset[str]:
    arguments = {
        name
        for function in _functions(module.body)
        if function.name.startswith("test") or _fixture_name(function)
        for name in _arguments(function) - _parametrized(function)
    }
    by_name = {
        argument.value
        for call in ast.walk(module)
        if isinstance(call, ast.Call) and _last_name(call.func) in ("usefixtures", "getfixturevalue")
        for argument in call.args
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
    }
    return FIXTURES & (arguments | by_name)


def _defined(module: ast.Module) -> frozenset[str]:
    """Our names that the module gives a meaning of its own; a fixture that takes the one it overrides extends it."""
    fixtures = {
        name
        for function in _functions(module.body)
        if (name := _fixture_name(function)) and name not in _arguments(function)
    }
    imported = {
        alias.asname or alias.name
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("pytest_stagebuild")
        for alias in node.names
    }
    return FIXTURES & (fixtures | imported)


def _arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    arguments = function.args
    return frozenset(argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))


def _fixture_name(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str | None:
    for decorator in function.decorator_list:
        call = decorator if isinstance(decorator, ast.Call) else None
        if _last_name(call.func if call else decorator) != "fixture":
            continue
        for keyword in call.keywords if call else ():
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
        return function.name
    return None


def _parametrized(function: ast.FunctionDef | ast.AsyncFunctionDef) -> frozenset[str]:
    names: set[str] = set()
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and _last_name(decorator.func) == "parametrize" and decorator.args:
            for node in ast.walk(decorator.args[0]):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    names.update(name.strip() for name in node.value.split(","))
    return frozenset(names)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
