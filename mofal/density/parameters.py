"""The parameters of a mixture, in the coordinates of the data, and their algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from mofal.errors import DataError

COVARIANCE_TYPES = ("full", "tied", "diag", "spherical")
LOG_2PI = float(np.log(2.0 * np.pi))


@dataclass(frozen=True)
class Parameters:
    """One Gaussian mixture. Shapes follow scikit-learn (K components, d features).

    Attributes
    ----------
    covariance_type : {"full", "tied", "diag", "spherical"}
    weights : ndarray, shape (K,)
    means : ndarray, shape (K, d)
    covariances : ndarray
        (K, d, d) full, (d, d) tied, (K, d) diag, (K,) spherical.
    precisions_cholesky : ndarray
        Same shape; upper triangular P with precision = P Pᵀ (full, tied), 1/σ otherwise.
    """

    covariance_type: str
    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    precisions_cholesky: np.ndarray

    @property
    def n_components(self) -> int:
        return int(self.means.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.means.shape[1])

    def with_weights(self, weights: np.ndarray) -> Parameters:
        return replace(self, weights=weights)


def make(
    covariance_type: str, weights: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> Parameters:
    """Parameters from covariances that are regularised already.

    Raises
    ------
    DataError
        A covariance is not positive definite; the message names the component.
    """
    if not np.isfinite(covariances).all():
        refuse_overflow()
    chol = cholesky_of_precisions(covariances, covariance_type)
    return Parameters(covariance_type, weights, means, covariances, chol)


def cholesky_of_precisions(covariances: np.ndarray, covariance_type: str) -> np.ndarray:
    """Upper triangular P with (covariance)⁻¹ = P Pᵀ; 1/σ for diagonal types."""
    if covariance_type in ("diag", "spherical"):
        bad = ~(covariances > 0)
        if bad.any():
            _refuse_singular(int(np.argwhere(bad)[0, 0]))
        return 1.0 / np.sqrt(covariances)
    stack = covariances[None] if covariance_type == "tied" else covariances
    out = np.empty_like(stack)
    eye = np.eye(stack.shape[-1])
    for k, covariance in enumerate(stack):
        try:
            lower = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            _refuse_singular(k)
        if not np.isfinite(lower).all():
            _refuse_singular(k)
        out[k] = solve_triangular(lower, eye, lower=True).T
    return out[0] if covariance_type == "tied" else out


def refuse_overflow() -> None:
    """Say that the data are too large for their squares."""
    raise DataError(
        "a covariance overflows: values beyond about 1e150 have no squares; "
        "scale the features first"
    )


def _refuse_singular(component: int) -> None:
    raise DataError(
        f"the covariance of component {component} is not positive definite (its rows lie in a "
        "plane, or are fewer than the features); use fewer components, a larger reg_covar, or "
        "drop features that are constant or copies of each other"
    )


def cholesky_from_precisions(precisions: np.ndarray, covariance_type: str) -> np.ndarray:
    """Upper triangular P with precision = P Pᵀ, from given precisions (a start of the user's)."""
    if covariance_type in ("diag", "spherical"):
        return np.sqrt(precisions)
    # The Cholesky factor of the matrix read backwards is upper triangular read forwards.
    flip = np.flip(precisions, axis=(-1, -2))
    return np.ascontiguousarray(np.flip(np.linalg.cholesky(flip), axis=(-1, -2)))


def covariances_from_cholesky(chol: np.ndarray, covariance_type: str) -> np.ndarray:
    """Covariances of precisions P Pᵀ."""
    if covariance_type in ("diag", "spherical"):
        return 1.0 / chol**2
    stack = chol[None] if covariance_type == "tied" else chol
    eye = np.eye(stack.shape[-1])
    out = np.empty_like(stack)
    for k, upper in enumerate(stack):
        inverse = solve_triangular(upper, eye, lower=False)
        out[k] = inverse.T @ inverse
    return out[0] if covariance_type == "tied" else out


def precisions(parameters: Parameters) -> np.ndarray:
    """Inverse covariances, in the shape of the covariances."""
    chol = parameters.precisions_cholesky
    if parameters.covariance_type in ("diag", "spherical"):
        return chol**2
    return chol @ np.swapaxes(chol, -1, -2)


def stacked_cholesky(parameters: Parameters) -> np.ndarray:
    """P of every component: (K, d, d) for full and tied, (K, d) for diag and spherical."""
    chol, kind = parameters.precisions_cholesky, parameters.covariance_type
    k, d = parameters.means.shape
    if kind == "tied":
        return np.broadcast_to(chol, (k, d, d))
    if kind == "spherical":
        return np.broadcast_to(chol[:, None], (k, d))
    return chol


def log_norms(parameters: Parameters) -> np.ndarray:
    """log weight + log det P - d/2 log 2π of every component, shape (K,)."""
    chol = stacked_cholesky(parameters)
    diagonal = chol if chol.ndim == 2 else np.diagonal(chol, axis1=1, axis2=2)
    with np.errstate(divide="ignore"):
        log_weights = np.log(parameters.weights)
    return log_weights + np.log(diagonal).sum(1) - 0.5 * parameters.n_features * LOG_2PI


def free_parameters(parameters: Parameters) -> int:
    """Number of free parameters, as BIC and AIC count them."""
    k, d = parameters.means.shape
    covariance = {
        "full": k * d * (d + 1) // 2,
        "tied": d * (d + 1) // 2,
        "diag": k * d,
        "spherical": k,
    }[parameters.covariance_type]
    return covariance + k * d + k - 1


def total_moments(parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of the whole mixture."""
    w = parameters.weights / parameters.weights.sum()
    mean = w @ parameters.means
    shift = parameters.means - mean
    between = (w[:, None] * shift).T @ shift
    kind, cov = parameters.covariance_type, parameters.covariances
    if kind == "full":
        within = np.einsum("k,kij->ij", w, cov)
    elif kind == "tied":
        within = cov
    elif kind == "diag":
        within = np.diag(w @ cov)
    else:
        within = np.eye(parameters.n_features) * float(w @ cov)
    return mean, within + between
