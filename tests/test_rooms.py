"""The rooms are those that CONTRIBUTING.md lists, and what is in them is short enough to be seen whole."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for room in ("imaging", "pipelines") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted(path for room in ("imaging", "pipelines") for path in (ROOT / "tests" / room).rglob("test_*.py"))
# What goes through so many rooms that it is named by what it holds.
ACROSS = {
    "imaging/dicom": {"corpus", "dcm2niix", "fuzz", "load", "syntaxes", "torture"},
    "pipelines/cluster": {"ray"},
    "pipelines/store": {"any_order", "put", "take"},
}
LISTED = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## The rooms")[1].split("```")[1]


@pytest.mark.parametrize("room", ["imaging", "pipelines"])
def test_every_module_is_listed_in_contributing(room: str) -> None:
    names = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / room).glob("*/__init__.py")}
    assert len(names) > 10
    assert {name for name in names | folders if not re.search(rf"(?<!\w){re.escape(name)}", LISTED)} == set()


def test_contributing_lists_no_module_that_is_gone() -> None:
    there = {path.name for room in ("imaging", "pipelines", "tests") for path in (ROOT / room).rglob("*.py")}
    assert set(re.findall(r"\b[a-z_]+\.py\b", LISTED)) <= there


def test_modules_can_be_seen_whole() -> None:
    assert {path.name: n for path in MODULES if (n := len(path.read_text(encoding="utf-8").splitlines())) > 500} == {}


def test_functions_can_be_seen_whole() -> None:
    functions = [
        (path.name, node.name, 1 + (node.end_lineno or 0) - node.lineno)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) > 1000
    assert [function for function in functions if function[2] > 60] == []


@pytest.mark.parametrize("test", TESTS, ids=lambda path: str(path.relative_to(ROOT / "tests")))
def test_a_test_is_found_by_the_name_of_its_room(test: Path) -> None:
    """``test_<module>.py`` or ``test_<module>_<aspect>.py``, or the same of a package, where the module would be."""
    room = test.parent.relative_to(ROOT / "tests")
    names = {path.stem for path in (ROOT / room).glob("*.py")} | {path.name for path in (ROOT / room).glob("*/")}
    called = test.stem.removeprefix("test_")
    own = {room.name, *names} - {"__init__", "__pycache__"}
    assert called in ACROSS.get(str(room), ()) or any(called == name or called.startswith(f"{name}_") for name in own)
