"""Frameworks: bonds, building blocks, caps, the UiO-66 family, defects, structures from files."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.frameworks.blocks import find_blocks
    from mofal.frameworks.bonds import find_bonds
    from mofal.frameworks.caps import cap_length, cap_positions
    from mofal.frameworks.defects import remove_blocks, substitute
    from mofal.frameworks.family import build, system_names
    from mofal.frameworks.rules import register_rule, rule_names
    from mofal.frameworks.supercell import supercell

_NAMES = {
    "blocks": ("find_blocks",),
    "bonds": ("find_bonds",),
    "caps": ("cap_length", "cap_positions"),
    "defects": ("remove_blocks", "substitute"),
    "family": ("build", "system_names"),
    "rules": ("register_rule", "rule_names"),
    "supercell": ("supercell",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "build",
    "cap_length",
    "cap_positions",
    "find_blocks",
    "find_bonds",
    "register_rule",
    "remove_blocks",
    "rule_names",
    "substitute",
    "supercell",
    "system_names",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.frameworks.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.frameworks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
