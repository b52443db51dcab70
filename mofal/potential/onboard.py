"""A density that goes where its potential goes: arrays for `standalone.Mixtures`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import PotentialError
from mofal.potential.base import Networked
from mofal.potential.network import readout_weights

if TYPE_CHECKING:
    from mofal.density import ErrorBound, PerElementDensity


def density_arrays(
    density: PerElementDensity, *, error_bound: ErrorBound | None = None
) -> dict[str, np.ndarray]:
    """Mixtures, quantiles and error bound of a density as plain arrays.

    Covariances of every type become one factor per component, projections stay apart.

    Parameters
    ----------
    density : PerElementDensity
        Fitted; best calibrated on rows that trained nothing.
    error_bound : ErrorBound, optional
        Made with the density's own quantiles; by default the bound that the density keeps.

    Returns
    -------
    dict of str to ndarray
        As `standalone.Mixtures` takes them.
    """
    out: dict[str, Any] = {"labels": density.labels_}
    for label in map(int, density.labels_):
        mixture = density.mixtures_[label]
        k, d = mixture.means_.shape
        out[f"weights_{label}"], out[f"means_{label}"] = mixture.weights_, mixture.means_
        out[f"precisions_cholesky_{label}"] = _factors(
            mixture.precisions_cholesky_, density.covariance_type, k, d
        )
        knots = density.quantiles_.knots_.get(label)
        if knots is not None:
            out[f"knot_value_{label}"], out[f"knot_level_{label}"] = knots.value, knots.level
            out[f"knot_scales_{label}"] = np.array([knots.below, knots.above])
    if density.projection_ is not None:
        out["projection_mean"], out["projection"] = density.projection_
    if error_bound is not None:
        out["bound_factor"] = np.array(error_bound.factor_)
        out["bound_novelty"], out["bound_error"] = error_bound.novelty_, error_bound.error_
        out["bound_coverage"] = np.array(error_bound.coverage)
    elif density.bound_ is not None:
        bound = density.bound_.bound
        out["bound_factor"], out["bound_coverage"] = bound.factor_, bound.coverage
        out["bound_novelty"], out["bound_error"] = bound.novelty_, bound.error_
        # It was made on quantiles of another scale than those that are told.
        for label, knots in density.bound_.scale.knots_.items():
            out[f"bound_knot_value_{label}"] = knots.value
            out[f"bound_knot_level_{label}"] = knots.level
            out[f"bound_knot_scales_{label}"] = np.array([knots.below, knots.above])
    out["density_hash"] = np.array(density.density_hash)
    out["model_hash"] = np.array(density.model_hash)
    return {name: np.asarray(value) for name, value in out.items()}


def _factors(given: np.ndarray, kind: str, k: int, d: int) -> np.ndarray:
    """Cholesky factors (k, d, d) of the precisions of any covariance type."""
    if kind == "full":
        return given
    if kind == "tied":
        return np.broadcast_to(given, (k, d, d))
    if kind == "diag":
        return given[:, :, None] * np.eye(d)
    return given[:, None, None] * np.eye(d)


def exported_arrays(
    potential: Networked, density: PerElementDensity, error_bound: ErrorBound | None
) -> dict[str, np.ndarray]:
    """All that the calculator of an export needs beside its network.

    Raises
    ------
    PotentialError
        The density was fitted on features of another potential.
    """
    check_same(potential.model_hash, density)
    first, _ = readout_weights(potential.network)
    return {
        **density_arrays(density, error_bound=error_bound),
        "readout": first.detach().cpu().numpy(),
        "elements": np.array(list(potential.elements)),
        "r_max": np.array(potential.r_max),
        "model_hash": np.array(potential.model_hash),
    }


def check_same(model_hash: str, density: Any) -> None:
    """Refuse a density in the features of another potential.

    Raises
    ------
    PotentialError
        Naming both.
    """
    theirs = str(getattr(density, "model_hash", ""))
    if theirs and theirs != model_hash:
        raise PotentialError(
            f"the density was fitted on features of potential {theirs}, this one is {model_hash}; "
            "features of two potentials are not comparable: fit the density anew"
        )
