"""Gaussian mixtures and PCA on NumPy and Dask arrays, larger than memory. Knows no chemistry."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mofal.density.calibration import QuantileScale
    from mofal.density.conformal import Coverage, ErrorBound, coverage, least_structures
    from mofal.density.elements import PerElementDensity
    from mofal.density.lazy import density_map, histogram, structure_minima
    from mofal.density.mixture import GaussianMixture
    from mofal.density.pca import PCA
    from mofal.density.plots import plot_curve, plot_density_map, plot_histogram, plot_minima
    from mofal.density.selection import Curve, select_components
    from mofal.density.verbs import fit_density, score

_NAMES = {
    "calibration": ("QuantileScale",),
    "conformal": ("Coverage", "ErrorBound", "coverage", "least_structures"),
    "elements": ("PerElementDensity",),
    "lazy": ("density_map", "histogram", "structure_minima"),
    "mixture": ("GaussianMixture",),
    "pca": ("PCA",),
    "plots": ("plot_curve", "plot_density_map", "plot_histogram", "plot_minima"),
    "selection": ("Curve", "select_components"),
    "verbs": ("fit_density", "score"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "PCA",
    "Coverage",
    "Curve",
    "ErrorBound",
    "coverage",
    "least_structures",
    "GaussianMixture",
    "PerElementDensity",
    "QuantileScale",
    "density_map",
    "fit_density",
    "histogram",
    "plot_curve",
    "plot_density_map",
    "plot_histogram",
    "plot_minima",
    "score",
    "select_components",
    "structure_minima",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"mofal.density.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mofal.density' has no attribute {name!r}")
