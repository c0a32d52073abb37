"""The shape of the source: no import circles, files that one can hold in the head."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "snnexp"
LONGEST_FILE, LONGEST_FUNCTION = 420, 65
LONGER = {"training/loop.py:fit"}  # the one loop reads from top to bottom


def modules() -> dict[str, Path]:
    found = {}
    for path in SOURCE.rglob("*.py"):
        if "__pycache__" in path.parts:
            continue  # generated kernels of earlier versions
        name = ".".join(("snnexp", *path.relative_to(SOURCE).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a file imports: at its top, inside functions, and for types only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else str(node.module))
    return found


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Lazy imports and imports for types count: a circle that is hidden still ties two ideas together."""
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("an import circle: " + " <- ".join(error.args[1]))


def test_files_and_functions_stay_small() -> None:
    long_files = {
        str(path.relative_to(SOURCE)): lines
        for path in modules().values()
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    long_functions = {
        f"{path.relative_to(SOURCE)}:{node.name}": lines
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert (long_files, long_functions.keys() - LONGER) == ({}, set())
