"""Poetry's own way to write versions and dependencies, put into the words of PEP 440 and PEP 508."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pytest_stagebuild.project import Document, text_at, texts_in


def specifiers(constraint: str) -> list[str]:
    """The alternatives of a version constraint, each as PEP 440 writes it; one of PEP 440 stays as it is.

    https://python-poetry.org/docs/dependency-specification/#version-constraints
    """
    return [_specifier(part) for part in re.split(r"\|\|?", constraint)]


def requirements(dependencies: Document) -> list[str]:
    """The arguments for pip of a table of dependencies, without the Python version that may stand among them.

    A constraint that has alternatives, or that cannot be read, admits every version: pip knows no "or".
    """
    found: list[str] = []
    for name, wanted in dependencies.items():
        if name.lower() == "python":
            continue
        for one in wanted if isinstance(wanted, list) else [wanted]:
            if isinstance(one, Mapping):
                found += _from_table(name, one)
            else:
                found.append(name + _bound(str(one)))
    return found


def _from_table(name: str, wanted: Document) -> Iterator[str]:
    if path := text_at(wanted, "path"):
        yield from ["-e", path] if wanted.get("develop") is True else [path if "/" in path else f"./{path}"]
        return
    extras = f"[{','.join(chosen)}]" if (chosen := texts_in(wanted.get("extras"))) else ""
    if git := text_at(wanted, "git"):
        revision = next((f"@{text}" for key in ("rev", "tag", "branch") if (text := text_at(wanted, key))), "")
        source = f" @ git+{git}{revision}"
    elif url := text_at(wanted, "url"):
        source = f" @ {url}"
    else:
        source = _bound(text_at(wanted, "version") or "*")
    conditions = [text_at(wanted, "markers"), _python_marker(text_at(wanted, "python") or "*")]
    stated = [f"({condition})" for condition in conditions if condition]
    yield f"{name}{extras}{source}" + (f" ; {' and '.join(stated)}" if stated else "")


def _bound(constraint: str) -> str:
    alternatives = specifiers(constraint)
    return alternatives[0] if len(alternatives) == 1 and _is_pep440(alternatives[0]) else ""


def _python_marker(constraint: str) -> str:
    from packaging.specifiers import SpecifierSet

    alternatives = specifiers(constraint)
    if not all(alternatives) or not all(map(_is_pep440, alternatives)):
        return ""
    return " or ".join(
        " and ".join(f'python_full_version {one.operator} "{one.version}"' for one in SpecifierSet(alternative))
        for alternative in alternatives
    )


def _is_pep440(specifier: str) -> bool:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        SpecifierSet(specifier)
    except InvalidSpecifier:
        return False
    return True


def _specifier(constraint: str) -> str:
    joined = re.sub(r"([<>=!~^])\s+", r"\1", constraint.strip())
    return ",".join(_clause(clause) for clause in re.split(r"[,\s]+", joined) if clause not in ("", "*"))


def _clause(clause: str) -> str:
    found = re.fullmatch(r"(\^|~(?!=)|)v?(\d+(?:\.\d+)*)(\.\*)?", clause)
    if found is None:
        return clause
    operator, version, _ = found.groups()
    if not operator:
        return f"=={version}.*"
    numbers = [int(number) for number in version.split(".")]
    # "^" lets everything change that comes after the first number which is not zero, "~" after the second.
    last = len(numbers) - 1
    place = next((place for place, number in enumerate(numbers) if number), last) if operator == "^" else min(1, last)
    above = ".".join(map(str, [*numbers[:place], numbers[place] + 1]))
    return f">={version},<{above}"
