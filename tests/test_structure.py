"""What keeps the house in order: short files, short parameter lists, nothing private borrowed."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "edm_hloc"
MOST_LINES = 450
MOST_PARAMETERS = 6


@functools.cache
def modules() -> list[tuple[str, ast.Module]]:
    return [
        (path.relative_to(PACKAGE.parent).as_posix(), ast.parse(path.read_text("utf-8")))
        for path in sorted(PACKAGE.rglob("*.py"))
    ]


def test_files_are_read_in_one_sitting() -> None:
    lines = {p: len(p.read_text("utf-8").splitlines()) for p in PACKAGE.rglob("*.py")}
    assert {str(p): n for p, n in lines.items() if n > MOST_LINES} == {}


def test_every_file_says_what_it_does() -> None:
    silent = [name for name, tree in modules() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_public_functions_take_few_parameters() -> None:
    long = {}
    for name, tree in modules():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            a = node.args
            names = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs)]
            names = [x for x in names if x not in ("self", "cls")]
            if len(names) > MOST_PARAMETERS:
                long[f"{name}:{node.name}"] = names
    assert long == {}


def test_nothing_private_of_another_file_is_used() -> None:
    borrowed = []
    for name, tree in modules():
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("edm_hloc"):
                imported |= {alias.asname or alias.name for alias in node.names}
                borrowed += [f"{name}: {a.name}" for a in node.names if a.name.startswith("_")]
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in imported
                and node.attr.startswith("_")
                and not node.attr.startswith("__")
                and node.attr not in ("_fields", "_replace", "_asdict")  # a NamedTuple's
            ):
                borrowed.append(f"{name}: {node.value.id}.{node.attr}")
    assert [b for b in borrowed if not b.endswith("__version__")] == []


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, edm_hloc; print(sorted({'torch', 'pycolmap', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
