"""What code a reference will have run, told from its specification alone: nothing is imported.

A specification comes from a campaign file, and ``ase:module:Factory`` calls whatever function of
whatever module it names. Before that is done once, it can be read here.
"""

from __future__ import annotations

import ast
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from mofal.errors import DependencyError, ReferenceError
from mofal.reference.registry import _BUILT_IN, available_references, parse_spec

#: Options of ``ase:`` that are mofal's and no arguments of the factory.
_OWN = ("threads", "time_limit_s", "isolated", "isolated_atom_energies", "packages")


def describe_code(spec: str) -> list[str]:
    """Factories and commands of a reference, one line each.

    Raises
    ------
    ReferenceError
        A specification that cannot be read, or a name that no reference has.
    """
    name, variant, options = parse_spec(spec)
    if name == "ase" and not _is_plugin(name):
        given = ", ".join(f"{k}={v!r}" for k, v in options.items() if k not in _OWN)
        return [f"factory {variant.replace(':', '.')}({given})"]
    if _is_plugin(name):
        return [f"factory {_place(name)}, of an installed package"]
    lines = [f"factory {_place(name)}, mofal's own"]
    if name == "gpaw":
        launcher = options.get("launcher") or "mpirun (with more than one rank)"
        python = options.get("python") or sys.executable
        lines.append(f"command {launcher}, before: {python} -m gpaw python ...")
    if name == "cp2k":
        launcher = options.get("launcher") or "mpirun"
        program = options.get("program") or "cp2k.psmp (or what of CP2K is on the path)"
        lines.append(f"command {launcher}, before: {program} -i cp2k.inp -o cp2k.out")
    return lines


def is_foreign(spec: str, *, level: bool = True) -> bool:
    """Whether making this reference, or asking for its `level`, has foreign code run."""
    name, _, options = parse_spec(spec)
    asks = level and options.get("python") is not None  # which PAW data that Python has
    return name == "ase" or _is_plugin(name) or asks


def check_unimported(spec: str) -> None:
    """Refuse a factory that is not there, as far as can be told without importing it.

    Raises
    ------
    ReferenceError, DependencyError
        No such reference, module, or name in the module.
    """
    name, variant, _ = parse_spec(spec)
    _place(name)
    if name != "ase" or _is_plugin(name):
        return
    module, _, factory = variant.partition(":")
    if not module or not factory:
        raise ReferenceError(
            f"ase:{variant} names no factory; expected ase:module:Factory, "
            "for instance ase:ase.calculators.emt:EMT"
        )
    found = _find(module)
    if found is None:
        raise DependencyError(f"ase:{variant}: there is no module {module!r} on this machine")
    names = _names(found)
    if names is not None and factory.split(".")[0] not in names:
        raise ReferenceError(f"ase:{variant}: module {module} has no {factory}")


def _place(name: str) -> str:
    known = available_references()
    if name not in known:
        raise ReferenceError(
            f"no reference is called {name!r}; there are: {', '.join(sorted(known))}"
        )
    return known[name]


def _is_plugin(name: str) -> bool:
    return _place(name) != _BUILT_IN.get(name)


def _find(module: str) -> ModuleSpec | None:
    """Where a module is. `importlib.util.find_spec` would import the packages above it."""
    path: Any = None
    found = None
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    for k in range(len(parts)):
        name = ".".join(parts[: k + 1])
        loaded = getattr(sys.modules.get(name), "__spec__", None)
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        found = loaded or next(filter(None, (f(name, path) for f in finders if f)), None)
        if found is None:
            return None
        path = found.submodule_search_locations
        if path is None and k < len(parts) - 1:
            return None
    return found


def _names(spec: ModuleSpec) -> set[str] | None:
    """Names that a module's text binds anywhere; None where that cannot be told."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        tree = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    out: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(node.name)
        elif isinstance(node, ast.Name):
            out.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            out.update((a.asname or a.name).split(".")[0] for a in node.names)
        elif isinstance(node, ast.Global):
            out.update(node.names)
    return None if out & {"*", "__getattr__", "globals", "setattr", "exec"} else out
