"""Gaussian mixtures and PCA on NumPy and Dask arrays, larger than memory. Knows no chemistry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.density.calibration import QuantileScale
    from mofal.density.elements import PerElementDensity
    from mofal.density.mixture import GaussianMixture
    from mofal.density.pca import PCA
    from mofal.density.selection import Curve, select_components
    from mofal.density.verbs import fit_density, score

_NAMES = {
    "calibration": ("QuantileScale",),
    "elements": ("PerElementDensity",),
    "mixture": ("GaussianMixture",),
    "pca": ("PCA",),
    "selection": ("Curve", "select_components"),
    "verbs": ("fit_density", "score"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "PCA",
    "Curve",
    "GaussianMixture",
    "PerElementDensity",
    "QuantileScale",
    "fit_density",
    "score",
    "select_components",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.density.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.density' has no attribute {name!r}")
