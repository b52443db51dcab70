"""Active learning of machine-learned potentials for disordered metal-organic frameworks.

Importing mofal imports nothing heavy: public names are resolved on first use (PEP 562).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "open": ("mofal.campaign.view", "open_campaign"),
    "Campaign": ("mofal.campaign.driver", "Campaign"),
}
_ROOMS = frozenset(
    {
        "analysis",
        "campaign",
        "clusters",
        "data",
        "density",
        "dynamics",
        "errors",
        "frameworks",
        "mechanics",
        "potential",
        "reference",
        "schedule",
        "testing",
        "trajectories",
    }
)
__all__ = [
    "Campaign",
    "__version__",
    "analysis",
    "campaign",
    "clusters",
    "data",
    "density",
    "dynamics",
    "errors",
    "frameworks",
    "mechanics",
    "open",
    "potential",
    "reference",
    "schedule",
    "testing",
    "trajectories",
]

if TYPE_CHECKING:
    from mofal.campaign.driver import Campaign
    from mofal.campaign.view import open_campaign as open


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    if name in _ROOMS:
        return import_module(f"mofal.{name}")
    raise AttributeError(f"module 'mofal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
