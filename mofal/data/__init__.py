"""The data contract: variables, ragged structures, text files, and the store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.data.atoms import from_atoms, to_atoms
    from mofal.data.hashing import hash_arrays, hash_json, structure_hash
    from mofal.data.ragged import (
        atom_slice,
        concat,
        converged,
        count_elements,
        gather_index,
        make_structures,
        offsets,
        relative_energy,
        select,
        structure_ids,
    )
    from mofal.data.store import (
        atomic_path,
        check_group,
        open_group,
        read_json,
        remove_leftovers,
        write_group,
        write_json,
    )
    from mofal.data.text import read, write
    from mofal.data.variables import FORMAT, STATUSES, VARIABLES, describe, validate

_NAMES = {
    "hashing": ("hash_arrays", "hash_json", "structure_hash"),
    "atoms": ("from_atoms", "to_atoms"),
    "ragged": (
        "atom_slice",
        "concat",
        "converged",
        "count_elements",
        "gather_index",
        "make_structures",
        "offsets",
        "relative_energy",
        "select",
        "structure_ids",
    ),
    "store": (
        "atomic_path",
        "check_group",
        "open_group",
        "read_json",
        "remove_leftovers",
        "write_group",
        "write_json",
    ),
    "text": ("read", "write"),
    "variables": ("FORMAT", "STATUSES", "VARIABLES", "describe", "validate"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "FORMAT",
    "STATUSES",
    "VARIABLES",
    "atom_slice",
    "atomic_path",
    "check_group",
    "concat",
    "converged",
    "count_elements",
    "describe",
    "from_atoms",
    "gather_index",
    "hash_arrays",
    "hash_json",
    "make_structures",
    "offsets",
    "open_group",
    "read",
    "read_json",
    "relative_energy",
    "remove_leftovers",
    "select",
    "structure_hash",
    "structure_ids",
    "to_atoms",
    "validate",
    "write",
    "write_group",
    "write_json",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.data.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.data' has no attribute {name!r}")
