"""No module needs itself, over however many others: also counting imports inside functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import mofal

ROOT = Path(mofal.__file__).parent
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p
    for p in ROOT.rglob("*.py")
}


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Modules of mofal that a module imports anywhere, and whether for type checking alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for part in node.body:
                yield from ((name, True) for name, _ in imported(ast.Module([part], [])))
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("mofal"):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield (name if name in FILES else str(node.module)), False
        elif isinstance(node, ast.Import):
            yield from ((a.name, False) for a in node.names if a.name.startswith("mofal"))
        else:
            yield from imported(node)


def graph(*, types: bool) -> dict[str, set[str]]:
    """Which module imports which. A lazy room names its own modules for type checkers alone: what
    imports the room imports none of them, so those lines are no arrows."""
    out: dict[str, set[str]] = {}
    for name, path in FILES.items():
        lazy = path.name == "__init__.py"
        found = imported(ast.parse(path.read_text(encoding="utf-8")))
        out[name] = {
            target
            for target, typed in found
            if target != name and (types or not typed) and not (lazy and typed)
        }
    return out


@pytest.mark.parametrize("types", [False, True], ids=["imports", "types"])
def test_modules__no_circles(types: bool) -> None:
    arrows = graph(types=types)
    assert sum(map(len, arrows.values())) > 2 * len(FILES)
    TopologicalSorter(arrows).prepare()


def test_modules__a_circle_is_found() -> None:
    arrows = graph(types=False)
    arrows["mofal.errors"].add("mofal.cli")
    with pytest.raises(CycleError, match=r"mofal\.errors"):
        TopologicalSorter(arrows).prepare()
