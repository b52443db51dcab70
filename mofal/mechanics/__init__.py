"""Mechanics: E(V) and equations of state, elastic constants, P(V), and whether to believe them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.mechanics.curve import Curve, CurveSettings, EnergyVolume, Minimum, energy_volume
    from mofal.mechanics.elastic import Elastic, ElasticConstants, ElasticSettings
    from mofal.mechanics.engines import choose_engine
    from mofal.mechanics.equations import Fit, Windows, fit, fit_windows
    from mofal.mechanics.levels import Level, potential_level, reference_level
    from mofal.mechanics.motion import block_motion
    from mofal.mechanics.pieces import Piece, Plan, run_serial
    from mofal.mechanics.pressure import PressureVolume
    from mofal.mechanics.pressure_curve import fit_pressure
    from mofal.mechanics.pressure_settings import PressureSettings
    from mofal.mechanics.relaxation import Criteria, Relaxed, relax

_NAMES = {
    "curve": ("Curve", "CurveSettings", "EnergyVolume", "Minimum", "energy_volume"),
    "elastic": ("Elastic", "ElasticConstants", "ElasticSettings"),
    "engines": ("choose_engine",),
    "equations": ("Fit", "Windows", "fit", "fit_windows"),
    "levels": ("Level", "potential_level", "reference_level"),
    "motion": ("block_motion",),
    "pieces": ("Piece", "Plan", "run_serial"),
    "pressure": ("PressureVolume",),
    "pressure_curve": ("fit_pressure",),
    "pressure_settings": ("PressureSettings",),
    "relaxation": ("Criteria", "Relaxed", "relax"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "Criteria",
    "Curve",
    "CurveSettings",
    "Elastic",
    "ElasticConstants",
    "ElasticSettings",
    "EnergyVolume",
    "Fit",
    "Level",
    "Minimum",
    "Piece",
    "Plan",
    "PressureSettings",
    "PressureVolume",
    "Relaxed",
    "Windows",
    "block_motion",
    "choose_engine",
    "energy_volume",
    "fit",
    "fit_pressure",
    "fit_windows",
    "potential_level",
    "reference_level",
    "relax",
    "run_serial",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.mechanics.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.mechanics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
