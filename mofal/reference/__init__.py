"""References: how to get a label, and how never to lose one.

`get_reference` makes a reference from a specification, `label_one` makes one label durable,
`gather` joins them to a structures Dataset.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.reference.ase_calculator import AseReference, ase_reference
    from mofal.reference.base import STATUSES, Attempt, Reference, hash_level, structure_id_of
    from mofal.reference.cache import LabelCache, label_one
    from mofal.reference.cp2k import Cp2kReference, cp2k_reference
    from mofal.reference.gpaw import GpawReference, gpaw_reference
    from mofal.reference.noise import measure_noise, noise_floor, noise_variants
    from mofal.reference.registry import available_references, get_reference
    from mofal.reference.tables import (
        attempts_table,
        check_same_level,
        gather,
        import_labels,
        merge_labels,
    )
    from mofal.reference.xtb import gfn1_xtb, gfn2_xtb, make_xtb

_NAMES = {
    "ase_calculator": ("AseReference", "ase_reference"),
    "base": ("STATUSES", "Attempt", "Reference", "hash_level", "structure_id_of"),
    "cache": ("LabelCache", "label_one"),
    "tables": (
        "attempts_table",
        "check_same_level",
        "gather",
        "import_labels",
        "merge_labels",
    ),
    "cp2k": ("Cp2kReference", "cp2k_reference"),
    "gpaw": ("GpawReference", "gpaw_reference"),
    "noise": ("measure_noise", "noise_floor", "noise_variants"),
    "registry": ("available_references", "get_reference"),
    "xtb": ("gfn1_xtb", "gfn2_xtb", "make_xtb"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "STATUSES",
    "AseReference",
    "Attempt",
    "Cp2kReference",
    "GpawReference",
    "LabelCache",
    "Reference",
    "ase_reference",
    "attempts_table",
    "available_references",
    "check_same_level",
    "cp2k_reference",
    "gather",
    "get_reference",
    "gfn1_xtb",
    "gfn2_xtb",
    "gpaw_reference",
    "hash_level",
    "import_labels",
    "label_one",
    "measure_noise",
    "merge_labels",
    "noise_floor",
    "noise_variants",
    "structure_id_of",
    "make_xtb",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.reference.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.reference' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
