"""Frameworks: bonds, building blocks, caps, the UiO-66 family, defects, structures from files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.frameworks.blocks import find_blocks
    from mofal.frameworks.bonds import find_bonds
    from mofal.frameworks.caps import cap_length, cap_positions
    from mofal.frameworks.cells import supercell
    from mofal.frameworks.checks import check_structure
    from mofal.frameworks.defects import remove_blocks, substitute
    from mofal.frameworks.family import build, system_names
    from mofal.frameworks.reader import read_framework, read_structures
    from mofal.frameworks.rules import register_rule, rule_names
    from mofal.frameworks.sampling import disorder, disorder_statistics
    from mofal.frameworks.symmetry import bare, linker_pair_orbits, symmetry_operations

_NAMES = {
    "blocks": ("find_blocks",),
    "bonds": ("find_bonds",),
    "caps": ("cap_length", "cap_positions"),
    "checks": ("check_structure",),
    "defects": ("remove_blocks", "substitute"),
    "sampling": ("disorder", "disorder_statistics"),
    "family": ("build", "system_names"),
    "reader": ("read_framework", "read_structures"),
    "rules": ("register_rule", "rule_names"),
    "cells": ("supercell",),
    "symmetry": ("bare", "linker_pair_orbits", "symmetry_operations"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "bare",
    "build",
    "cap_length",
    "cap_positions",
    "check_structure",
    "disorder",
    "disorder_statistics",
    "find_blocks",
    "find_bonds",
    "linker_pair_orbits",
    "read_framework",
    "read_structures",
    "register_rule",
    "remove_blocks",
    "rule_names",
    "substitute",
    "supercell",
    "symmetry_operations",
    "system_names",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.frameworks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.frameworks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
