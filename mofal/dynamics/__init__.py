"""Walkers through configuration space, and model-free samples around a structure.

Public names are resolved on first use (PEP 562), so that importing the room costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "BondLimits": "mofal.dynamics.limits",
    "bond_limits": "mofal.dynamics.limits",
    "Plan": "mofal.dynamics.walking",
    "Walk": "mofal.dynamics.walker",
    "WalkSettings": "mofal.dynamics.settings",
    "Network": "mofal.dynamics.network",
    "internal_coordinates": "mofal.dynamics.network",
    "sample_harmonic": "mofal.dynamics.harmonic",
    "walk": "mofal.dynamics.walking",
    "walk_length": "mofal.dynamics.settings",
    "walks": "mofal.dynamics.walking",
}
__all__ = [
    "BondLimits",
    "Network",
    "Plan",
    "Walk",
    "WalkSettings",
    "bond_limits",
    "internal_coordinates",
    "sample_harmonic",
    "walk",
    "walk_length",
    "walks",
]

if TYPE_CHECKING:
    from mofal.dynamics.harmonic import sample_harmonic
    from mofal.dynamics.limits import BondLimits, bond_limits
    from mofal.dynamics.network import Network, internal_coordinates
    from mofal.dynamics.settings import WalkSettings, walk_length
    from mofal.dynamics.walker import Walk
    from mofal.dynamics.walking import Plan, walk, walks


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mofal.dynamics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
