"""Principal components of narrow data: one pass for the covariance, then its eigenvectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from mofal.density.basis import Projection, project
from mofal.density.graphs import is_dask
from mofal.density.inputs import check_rows, open_rows
from mofal.density.parameters import refuse_overflow
from mofal.density.rows import Chunk
from mofal.density.scoring import on_chunks
from mofal.density.survey import check_chunk
from mofal.errors import DataError

Moments = tuple[float, np.ndarray, np.ndarray]


def moments_chunk(chunk: Chunk, shared: None) -> Moments:
    """Weight, mean (d,) and scatter (d, d) of one chunk."""
    check_chunk(chunk)
    x = chunk.x.astype(np.float64)
    w = chunk.weights
    total = float(x.shape[0]) if w is None else float(w.sum())
    mean = (x.sum(0) if w is None else w @ x) / max(total, 1e-300)
    x -= mean
    return total, mean, x.T @ (x if w is None else x * w[:, None])


def moments_combine(a: Moments, b: Moments) -> Moments:
    """Moments of two sets of rows, without cancellation (Chan, Golub and LeVeque, 1983)."""
    if a[0] == 0 or b[0] == 0:
        return b if a[0] == 0 else a
    total = a[0] + b[0]
    shift = b[1] - a[1]
    mean = a[1] + shift * (b[0] / total)
    return total, mean, a[2] + b[2] + np.outer(shift, shift) * (a[0] * b[0] / total)


def eigen(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (d,), descending, and directions as rows (d, d); largest entry positive."""
    values, vectors = np.linalg.eigh(covariance)
    values, directions = np.maximum(values[::-1], 0.0), vectors.T[::-1].copy()
    flat = values <= 1e-14 * values[0]
    if flat.any():
        # Any basis of what does not vary is right; this one depends on the subspace alone.
        directions[flat] = _canonical_basis(directions[flat])
    size = np.abs(directions)
    # The first of those that are largest but for rounding.
    largest = (size >= (1.0 - 1e-6) * size.max(axis=1, keepdims=True)).argmax(axis=1)
    directions *= np.sign(directions[np.arange(directions.shape[0]), largest])[:, None]
    return values, directions


def _canonical_basis(rows: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the span of orthonormal rows: unit vectors projected on it, in turn."""
    projector, out = rows.T @ rows, np.empty_like(rows)
    found = 0
    for vector in projector:
        for _ in range(2):
            vector = vector - out[:found].T @ (out[:found] @ vector)
        length = np.linalg.norm(vector)
        if length > 0.1 / np.sqrt(rows.shape[1]) and found < rows.shape[0]:
            out[found] = vector / length
            found += 1
    return out if found == rows.shape[0] else rows


def count_directions(variances: np.ndarray, wanted: int | float | None) -> int:
    """Number of directions: all, so many, or those that explain a fraction of the variance.

    Raises
    ------
    DataError
        A number that cannot be meant.
    """
    d = variances.size
    if wanted is None:
        return d
    if isinstance(wanted, (int, np.integer)) and not isinstance(wanted, bool):
        if not 1 <= wanted <= d:
            raise DataError(f"found n_components={wanted}, expected 1 to {d}, the features")
        return int(wanted)
    if isinstance(wanted, (float, np.floating)) and 0 < wanted <= 1:
        total = variances.sum()
        if total == 0:
            return 1
        explained = np.cumsum(variances / total)
        return min(d, int(np.searchsorted(explained, wanted - 1e-12)) + 1)
    raise DataError(
        f"found n_components={wanted!r}, expected None, a whole number, or a fraction in (0, 1]"
    )


def _project_chunk(projection: Projection, x: np.ndarray, *, first: int = 0) -> np.ndarray:
    check_chunk(Chunk(x, numbers=first))
    return project(projection, x)


class PCA(TransformerMixin, BaseEstimator):
    """Principal component analysis by the covariance matrix, in memory or larger than memory.

    The results are those of ``sklearn.decomposition.PCA``; the sign of each direction is such that
    its largest entry is positive.

    Parameters
    ----------
    n_components : int, float or None
        So many directions, those that explain this fraction of the variance, or all.
    whiten : bool
        Scale the transformed rows to unit variance.

    Attributes
    ----------
    components_ : ndarray, shape (k, d)
    explained_variance_, explained_variance_ratio_ : ndarray, shape (k,)
    mean_ : ndarray, shape (d,)
    n_components_, n_features_in_ : int
    noise_variance_ : float
        Mean variance of the directions left out.
    """

    def __init__(self, n_components: int | float | None = None, *, whiten: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> PCA:
        """Fit to rows of shape (n, d); computes.

        Raises
        ------
        DataError
            NaN or infinity, or fewer than two rows.
        """
        X = check_rows(self, X, reset=True)
        rows = open_rows(X, sample_weight)
        total, mean, scatter = rows.get(rows.reduce(moments_chunk, moments_combine, rows.put(None)))
        if not np.isfinite(scatter).all():
            refuse_overflow()
        if total <= 1:
            raise DataError(f"the weight of all rows is {total:g} (zero or one row), expected more")
        self._set(mean, scatter / (total - 1.0))
        return self

    def _set(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        variances, directions = eigen(covariance)
        k = count_directions(variances, self.n_components)
        total = variances.sum()
        self.mean_, self.components_ = mean, directions[:k]
        self.explained_variance_ = variances[:k]
        self.explained_variance_ratio_ = variances[:k] / (total if total > 0 else 1.0)
        self.noise_variance_ = float(variances[k:].mean()) if k < variances.size else 0.0
        self.n_components_, self.n_features_in_ = k, mean.size

    def _matrix(self) -> tuple[np.ndarray, np.ndarray]:
        if not self.whiten:
            return self.mean_, self.components_.T
        sigma = np.sqrt(self.explained_variance_)
        return self.mean_, self.components_.T / np.where(sigma > 0, sigma, 1.0)

    def transform(self, X: Any) -> Any:
        """Coordinates along the directions, shape (n, k); lazy on Dask input."""
        check_is_fitted(self)
        X = check_rows(self, X, reset=False)
        if is_dask(X):
            return on_chunks(
                _project_chunk, self._matrix(), X, width=self.n_components_, dtype=np.float64
            )
        return project(self._matrix(), X)

    def inverse_transform(self, X: Any) -> Any:
        """Rows of shape (n, d) from coordinates (n, k)."""
        check_is_fitted(self)
        scale = np.sqrt(self.explained_variance_)[:, None] if self.whiten else 1.0
        return X @ (scale * self.components_) + self.mean_

    @property
    def _n_features_out(self) -> int:
        return self.n_components_
