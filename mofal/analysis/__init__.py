"""How good a potential is, where it is not, and a report that a person would look at.

Public names are resolved on first use (PEP 562), so that importing the room costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "atom_errors": "mofal.analysis.metrics",
    "energy_errors": "mofal.analysis.metrics",
    "error_table": "mofal.analysis.metrics",
    "force_errors": "mofal.analysis.metrics",
    "likelihood_correlation": "mofal.analysis.metrics",
    "mae": "mofal.analysis.metrics",
    "mae_p": "mofal.analysis.metrics",
    "pearson": "mofal.analysis.metrics",
    "rmse": "mofal.analysis.metrics",
    "atom_error_maps": "mofal.analysis.validation",
    "cross_validation": "mofal.analysis.validation",
    "disjoint_subsets": "mofal.analysis.validation",
    "learning_curve": "mofal.analysis.validation",
    "bonded_kinds": "mofal.analysis.clouds",
    "feature_clouds": "mofal.analysis.clouds",
    "likelihood_maps": "mofal.analysis.clouds",
    "HeldOut": "mofal.analysis.data",
    "ReportData": "mofal.analysis.data",
    "write_report": "mofal.analysis.report",
}
__all__ = [
    "HeldOut",
    "ReportData",
    "atom_error_maps",
    "atom_errors",
    "bonded_kinds",
    "cross_validation",
    "disjoint_subsets",
    "energy_errors",
    "error_table",
    "feature_clouds",
    "force_errors",
    "learning_curve",
    "likelihood_correlation",
    "likelihood_maps",
    "mae",
    "mae_p",
    "pearson",
    "rmse",
    "write_report",
]

if TYPE_CHECKING:
    from mofal.analysis.clouds import bonded_kinds, feature_clouds, likelihood_maps
    from mofal.analysis.data import HeldOut, ReportData
    from mofal.analysis.metrics import (
        atom_errors,
        energy_errors,
        error_table,
        force_errors,
        likelihood_correlation,
        mae,
        mae_p,
        pearson,
        rmse,
    )
    from mofal.analysis.report import write_report
    from mofal.analysis.validation import (
        atom_error_maps,
        cross_validation,
        disjoint_subsets,
        learning_curve,
    )


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'mofal.analysis' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
