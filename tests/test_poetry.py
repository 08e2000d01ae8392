from __future__ import annotations

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pytest_stagebuild.poetry import requirements, specifiers


@pytest.mark.parametrize(
    ("constraint", "admitted", "refused"),
    [
        ("^1.2.3", ["1.2.3", "1.9"], ["1.2.2", "2.0"]),
        ("^0.2.3", ["0.2.3", "0.2.9"], ["0.3", "1.0"]),
        ("^0.0.3", ["0.0.3"], ["0.0.4"]),
        ("^0", ["0.0.1", "0.9"], ["1.0"]),
        ("~1.2.3", ["1.2.3", "1.2.9"], ["1.3"]),
        ("~1", ["1.0", "1.9"], ["2.0"]),
        ("~=1.2.3", ["1.2.4"], ["1.3"]),
        ("1.2.*", ["1.2.0", "1.2.9"], ["1.3"]),
        ("1.2.3", ["1.2.3"], ["1.2.4"]),
        (">=1.2, <1.4", ["1.3"], ["1.4"]),
        ("*", ["0.1", "99"], []),
    ],
)
def test_a_constraint_admits_what_poetry_admits(constraint: str, admitted: list[str], refused: list[str]) -> None:
    [specifier] = specifiers(constraint)
    assert [version for version in [*admitted, *refused] if version in SpecifierSet(specifier)] == admitted


def test_each_alternative_is_a_specifier_of_its_own() -> None:
    assert specifiers("~2.7 || ^3.12") == [">=2.7,<2.8", ">=3.12,<4"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("*", "demo"),
        ("^1.2", "demo>=1.2,<2"),
        ("^1.0 || ^2.0", "demo"),
        ("one", "demo"),
        ({"version": "^1.2", "extras": ["a", "b"]}, "demo[a,b]>=1.2,<2"),
        (
            {"version": "*", "markers": "os_name == 'nt' or os_name == 'java'"},
            "demo ; (os_name == 'nt' or os_name == 'java')",
        ),
        ({"version": "1.*", "python": "<3.9"}, 'demo==1.* ; (python_full_version < "3.9")'),
        ({"git": "https://example.org/demo.git", "tag": "v1"}, "demo @ git+https://example.org/demo.git@v1"),
        ({"url": "https://example.org/demo.zip"}, "demo @ https://example.org/demo.zip"),
        ({"version": 3, "extras": 4}, "demo"),
    ],
)
def test_a_dependency_is_a_requirement_that_pip_reads(wanted: object, expected: str) -> None:
    [found] = requirements({"python": "^3.9", "demo": wanted})
    assert found == expected
    Requirement(found)


def test_a_python_constraint_holds_where_poetry_s_does() -> None:
    [found] = requirements({"demo": {"version": "*", "python": "~3.9 || ^3.12"}})
    marker = Requirement(found).marker
    assert marker is not None
    versions = ["3.8.1", "3.9.7", "3.10.0", "3.12.1", "3.14.0"]
    assert [one for one in versions if marker.evaluate({"python_full_version": one})] == ["3.9.7", "3.12.1", "3.14.0"]


def test_several_constraints_are_several_requirements() -> None:
    wanted = [{"version": "^1", "python": "<3.9"}, {"version": "^2", "python": ">=3.9"}]
    assert requirements({"demo": wanted}) == [
        'demo>=1,<2 ; (python_full_version < "3.9")',
        'demo>=2,<3 ; (python_full_version >= "3.9")',
    ]


def test_a_path_is_installed_as_it_is() -> None:
    assert requirements({"one": {"path": "../one"}, "two": {"path": "two", "develop": True}}) == ["../one", "-e", "two"]
