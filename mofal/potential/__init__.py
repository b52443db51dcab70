"""Potentials: NequIP behind a protocol that keeps the rest of mofal unaware of it.

Importing this package imports neither torch nor nequip: public names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.potential.base import Potential
    from mofal.potential.compiling import Choice, choose
    from mofal.potential.engine import NetworkEngine
    from mofal.potential.exported import ExportedPotential
    from mofal.potential.exporting import export
    from mofal.potential.making import begin_as, create, grow
    from mofal.potential.model import NequIPPotential, load
    from mofal.potential.settings import (
        ARCHITECTURES,
        TRAININGS,
        Architecture,
        TrainingSettings,
    )
    from mofal.potential.split import split_structures
    from mofal.potential.torchsim import TorchSimModel
    from mofal.potential.training import train

_HOME = {
    "ARCHITECTURES": "settings",
    "Architecture": "settings",
    "Choice": "compiling",
    "ExportedPotential": "exported",
    "NetworkEngine": "engine",
    "choose": "compiling",
    "NequIPPotential": "model",
    "Potential": "base",
    "TRAININGS": "settings",
    "TorchSimModel": "torchsim",
    "TrainingSettings": "settings",
    "begin_as": "making",
    "create": "making",
    "export": "exporting",
    "grow": "making",
    "load": "model",
    "split_structures": "split",
    "train": "training",
}
__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Choice",
    "ExportedPotential",
    "NetworkEngine",
    "choose",
    "NequIPPotential",
    "Potential",
    "TRAININGS",
    "TorchSimModel",
    "TrainingSettings",
    "begin_as",
    "create",
    "export",
    "grow",
    "load",
    "split_structures",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.potential.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.potential' has no attribute {name!r}")
