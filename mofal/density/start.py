"""Where expectation maximisation starts: k-means on a sample of the rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from mofal.density.parameters import (
    Parameters,
    cholesky_from_precisions,
    cholesky_of_precisions,
    covariances_from_cholesky,
    make,
    refuse_overflow,
)
from mofal.density.survey import Sample

INIT_PARAMS = ("kmeans", "k-means++", "random", "random_from_data")
EPS = 10 * float(np.finfo(np.float64).eps)
"""Added to the weight of a component, as in scikit-learn: an empty one divides by it.

Relative to the mean weight of a row, so that the unit of sample weights does not matter."""


@dataclass(frozen=True)
class Spec:
    """One fit that is asked for.

    Attributes
    ----------
    n_components : int
    covariance_type : str
    reg_covar : ndarray, shape (d,)
        Added to the diagonal of every covariance.
    init_params : {"kmeans", "k-means++", "random", "random_from_data"}
    seed : int
    weights, means, precisions : ndarray, optional
        Given parts of the start.
    start : Parameters, optional
        A whole start; nothing else is looked at.
    """

    n_components: int
    covariance_type: str
    reg_covar: np.ndarray
    init_params: str = "kmeans"
    seed: int = 0
    weights: np.ndarray | None = None
    means: np.ndarray | None = None
    precisions: np.ndarray | None = None
    start: Parameters | None = None


def begin(spec: Spec, sample: Sample) -> Parameters:
    """Start parameters of one fit; the same whatever the chunking and the number of workers."""
    if spec.start is not None:
        return spec.start
    given = (spec.weights, spec.means, spec.precisions)
    kind = spec.covariance_type
    if all(part is not None for part in given):
        assert spec.weights is not None
        assert spec.means is not None
        assert spec.precisions is not None
        given_chol = cholesky_from_precisions(spec.precisions, kind)
        covariances = covariances_from_cholesky(given_chol, kind)
        return Parameters(kind, spec.weights, spec.means, covariances, given_chol)
    x = sample.x.astype(np.float64)
    weights, means, covariances = estimate(
        x,
        responsibilities(spec, x, sample.w) * sample.w[:, None],
        spec.reg_covar,
        kind,
        eps=EPS * sample.mean_weight,
    )
    if not np.isfinite(covariances).all():
        refuse_overflow()
    chol: np.ndarray | None = None
    if spec.precisions is not None:
        chol = cholesky_from_precisions(spec.precisions, kind)
        covariances = covariances_from_cholesky(chol, kind)
    return Parameters(
        kind,
        weights if spec.weights is None else spec.weights,
        means if spec.means is None else spec.means,
        covariances,
        cholesky_of_precisions(covariances, kind) if chol is None else chol,
    )


def responsibilities(spec: Spec, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Responsibilities (s, K) of the sample, from features scaled to unit variance."""
    k, n = spec.n_components, x.shape[0]
    rng = np.random.default_rng(spec.seed)
    if spec.init_params == "random":
        resp = rng.uniform(size=(n, k))
        return resp / resp.sum(axis=1, keepdims=True)
    centred = x - (w @ x) / w.sum()
    spread = np.sqrt((w @ centred**2) / w.sum())
    scaled = centred / np.where(spread > 0, spread, 1.0)
    labels = np.zeros(n, np.intp)
    if k > 1:
        labels = _partition(spec.init_params, scaled, w, k, rng)
    resp = np.zeros((n, k))
    resp[np.arange(n), labels] = 1.0
    return resp


def _partition(
    how: str, x: np.ndarray, w: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    from sklearn.cluster import KMeans, kmeans_plusplus
    from threadpoolctl import threadpool_limits

    seed = int(rng.integers(2**31 - 1))
    # One thread: sums of several threads differ in their last digits from run to run.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "kmeans":
            k = min(k, x.shape[0])
            return KMeans(k, n_init=1, random_state=seed).fit(x, sample_weight=w).labels_
        if how == "k-means++":
            centres, _ = kmeans_plusplus(x, k, sample_weight=w, random_state=seed)
        else:
            centres = x[np.sort(rng.choice(x.shape[0], k, replace=False))]
    distance = (centres**2).sum(1) - 2.0 * x @ centres.T
    return distance.argmin(axis=1)


def estimate(
    x: np.ndarray,
    resp: np.ndarray,
    reg_covar: np.ndarray,
    covariance_type: str,
    *,
    eps: float = EPS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights, means and covariances for given weighted responsibilities (s, K)."""
    number = resp.sum(axis=0) + eps
    origin = x.mean(axis=0)
    x = x - origin
    means = (resp.T @ x) / number[:, None]
    d = x.shape[1]
    full = np.empty((number.size, d, d))
    for k in range(number.size):
        shift = x - means[k]
        full[k] = (resp[:, k] * shift.T) @ shift / number[k]
    covariances = pool(full, number, reg_covar, covariance_type)
    return number / number.sum(), means + origin, covariances


def pool(
    full: np.ndarray, number: np.ndarray, reg_covar: np.ndarray, covariance_type: str
) -> np.ndarray:
    """From covariances of each component, (K, d, d) or their diagonals (K, d), to the type's."""
    if covariance_type == "full":
        return full + np.diag(reg_covar)
    if covariance_type == "tied":
        return np.einsum("k,kij->ij", number / number.sum(), full) + np.diag(reg_covar)
    diagonal = np.einsum("kii->ki", full) if full.ndim == 3 else full
    diagonal = diagonal + reg_covar
    return diagonal if covariance_type == "diag" else diagonal.mean(axis=1)


def finish(
    weights: np.ndarray, means: np.ndarray, covariances: np.ndarray, covariance_type: str
) -> Parameters:
    """Parameters with normalised weights."""
    return make(covariance_type, weights / weights.sum(), means, covariances)
