"""Centred and whitened coordinates, in which the product form of a Gaussian loses little."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Projection = tuple[np.ndarray, np.ndarray] | None
"""Mean (d,) and directions (d, k) that rows are projected on before anything else."""


def project(projection: Projection, x: np.ndarray) -> np.ndarray:
    """Rows (n, d) along the directions of a projection (n, k), float64; or as they are."""
    if projection is None:
        return x
    mean, directions = projection
    return (x - mean) @ directions


@dataclass(frozen=True)
class Basis:
    """z = forward (x - centre), x = centre + backward z (columns are rows of data).

    Attributes
    ----------
    centre : ndarray, shape (d,)
    forward, backward : ndarray
        (d, d); for mixtures with diagonal covariances (d,), a scale per feature.
    """

    centre: np.ndarray
    forward: np.ndarray
    backward: np.ndarray

    @property
    def diagonal(self) -> bool:
        return self.forward.ndim == 1


def make_basis(mean: np.ndarray, covariance: np.ndarray, covariance_type: str) -> Basis:
    """Whitening by scale and rotation, V Σ after a scaling: stable whatever the units.

    Directions that do not vary are given a floor instead of an infinite scale: any invertible
    choice is right, it only decides rounding.
    """
    variance = np.diagonal(covariance).copy()
    top = float(variance.max(initial=0.0))
    scale = np.sqrt(np.where(variance > 1e-24 * top, variance, top if top > 0 else 1.0))
    if covariance_type in ("diag", "spherical"):
        return Basis(np.asarray(mean, np.float64), 1.0 / scale, scale)
    correlation = covariance / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(0.5 * (correlation + correlation.T))
    # Below this floor an eigenvalue is rounding noise.
    largest = float(values[-1]) if values[-1] > 0 else 1.0
    sigma = np.sqrt(np.maximum(values, 1e-13 * largest))
    forward = (vectors / sigma).T / scale
    backward = scale[:, None] * (vectors * sigma)
    return Basis(np.asarray(mean, np.float64), np.ascontiguousarray(forward), backward)
