"""Clusters: which environments to cut out, how, and the proof that a cluster carries them.

Public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.clusters.blueprints import blueprint
    from mofal.clusters.cutting import cut
    from mofal.clusters.extraction import extract
    from mofal.clusters.frames import check_bonds
    from mofal.clusters.match import Verdict, compare_forces, match_weights, verdict
    from mofal.clusters.proposals import candidates, cut_candidates
    from mofal.clusters.rankings import check_ranking, get_ranking, ranking_names
    from mofal.clusters.selection import random_cores, rank, select

_NAMES = {
    "blueprints": ("blueprint",),
    "cutting": ("cut",),
    "extraction": ("extract",),
    "frames": ("check_bonds",),
    "match": ("Verdict", "compare_forces", "match_weights", "verdict"),
    "proposals": ("candidates", "cut_candidates"),
    "rankings": ("check_ranking", "get_ranking", "ranking_names"),
    "selection": ("random_cores", "rank", "select"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Verdict",
    "blueprint",
    "candidates",
    "check_bonds",
    "check_ranking",
    "compare_forces",
    "cut",
    "cut_candidates",
    "extract",
    "get_ranking",
    "match_weights",
    "random_cores",
    "rank",
    "ranking_names",
    "select",
    "verdict",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.clusters.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.clusters' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
