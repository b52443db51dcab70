"""Scores that can be compared: quantiles of the log-likelihood, and bounds of the force error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mofal.density.graphs import is_dask, plain
from mofal.density.rows import group_rows
from mofal.errors import DataError

KNOTS = 1024
"""Points that the distribution of a label is kept at."""
_TAIL_KNOTS = 64


@dataclass(frozen=True)
class Knots:
    """Distribution of the log-likelihoods of one label.

    Attributes
    ----------
    value : ndarray, shape (m,)
        Log-likelihoods, strictly ascending.
    level : ndarray, shape (m,)
        Their quantiles in (0, 1), strictly ascending.
    below, above : float
        Scales on which the quantile falls to 0 below and rises to 1 above what was met.
    """

    value: np.ndarray
    level: np.ndarray
    below: float
    above: float


def make_knots(log_likelihood: np.ndarray) -> Knots:
    """Keep a distribution at `KNOTS` points: all of the lower tail, then evenly spaced."""
    ordered = np.sort(log_likelihood[np.isfinite(log_likelihood)])
    n = ordered.size
    if n == 0:
        raise DataError("no finite log-likelihood to take quantiles of; expected at least one")
    spaced = np.linspace(0, n - 1, min(n, KNOTS - _TAIL_KNOTS)).round().astype(np.intp)
    ranks = np.union1d(np.arange(min(n, _TAIL_KNOTS)), spaced)
    # Of rows with the same value the last one has the empirical distribution's level.
    ranks = np.unique(np.searchsorted(ordered, ordered[ranks], side="right") - 1)
    value, level = ordered[ranks], (ranks + 1.0) / (n + 1.0)
    middle = ordered[n // 2]
    low, high = ordered[n // 20] - ordered[0], ordered[-1] - middle
    floor = max(1e-12 * abs(middle), 1e-12)
    return Knots(
        value,
        level,
        float(low if low > floor else 1.0),
        float(high if high > floor else 1.0),
    )


def quantile_of(knots: Knots, log_likelihood: np.ndarray) -> np.ndarray:
    """Quantile in (0, 1), strictly monotonic over all finite log-likelihoods; 0 for -inf.

    Between the knots it is linear. Below the smallest value that was met it falls off as
    q_min / (1 + (ℓ_min - ℓ)/s): hyperbolic, so that it never reaches 0 or runs out of digits.
    """
    l_ = np.asarray(log_likelihood, np.float64)
    q = np.interp(l_, knots.value, knots.level)
    low, high = l_ < knots.value[0], l_ > knots.value[-1]
    with np.errstate(over="ignore"):
        # Halves, so that the difference of the largest numbers does not overflow.
        far = 0.5 * knots.value[0] - 0.5 * l_[low]
        q[low] = knots.level[0] * (0.5 * knots.below / (0.5 * knots.below + far))
        rest = 1.0 - knots.level[-1]
        q[high] = 1.0 - rest / (1.0 + (l_[high] - knots.value[-1]) / knots.above)
    return q


class QuantileScale:
    """Quantile of the log-likelihood among rows that are known, for each label by itself.

    0 is as unfamiliar as can be; 0.5 is the median of what was fitted on. Fit it to validation
    rows where there are some: on its own training rows a density is too confident.

    Attributes
    ----------
    knots_ : dict of int to Knots
    """

    knots_: dict[int, Knots]

    def fit(self, log_likelihood: Any, labels: Any) -> QuantileScale:
        """Take the quantiles; computes.

        Parameters
        ----------
        log_likelihood, labels : array-like, shape (n,)

        Raises
        ------
        DataError
            A label without a finite log-likelihood, or NaN.
        """
        values, labels = plain(log_likelihood).astype(np.float64), plain(labels)
        if values.shape != labels.shape:
            raise DataError(
                f"found {values.shape} log-likelihoods and {labels.shape} labels, expected as many"
            )
        if np.isnan(values).any():
            raise DataError("found NaN among the log-likelihoods, expected numbers or -inf")
        self.knots_ = {
            label: make_knots(values[rows])
            for label, rows in group_rows(labels)
            if np.isfinite(values[rows]).any()
        }
        return self

    def transform(self, log_likelihood: Any, labels: Any) -> Any:
        """Quantiles, shape (n,); 0 for labels that are not known; lazy on Dask input."""
        if is_dask(log_likelihood) or is_dask(labels):
            import dask.array as da

            return da.map_blocks(
                _transform_rows,
                log_likelihood,
                labels,
                knots=self.knots_,
                dtype=np.float64,
                meta=np.empty(0),
            )
        return _transform_rows(log_likelihood, labels, knots=self.knots_)


def _transform_rows(log_likelihood: Any, labels: Any, *, knots: dict[int, Knots]) -> np.ndarray:
    values = np.asarray(log_likelihood, np.float64)
    out = np.zeros(values.shape)
    for label, rows in group_rows(np.asarray(labels)):
        if label in knots:
            out[rows] = quantile_of(knots[label], values[rows])
    return out
