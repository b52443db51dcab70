"""From how unfamiliar an atom is to an upper bound of its force error, at a stated coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mofal.density.calibration import QuantileScale
from mofal.density.graphs import is_dask, plain
from mofal.errors import DataError

_BINS = 64


@dataclass(frozen=True)
class Coverage:
    """What a bound did on data that it was not made from.

    Attributes
    ----------
    stated : float
        Coverage that was asked for.
    atoms : float
        Fraction of atoms whose error is within the bound, every structure counting the same.
    structures : float
        Fraction of structures in which all atoms are.
    low, high : float
        95 % interval of the one that was asked for, from the scatter between structures.
    n_structures : int
    """

    stated: float
    atoms: float
    structures: float
    low: float
    high: float
    n_structures: int


class ErrorBound:
    """Split-conformal upper bound of an atom's force error, calibrated by structure.

    Atoms of one structure are alike, so a structure, not an atom, is one observation. Half of the
    structures give the typical error as a function of the quantile of the log-likelihood (the
    less familiar, the larger); the other half give the factor above it that holds with the stated
    coverage. For a new structure exchangeable with these, the bound of one of its atoms
    holds with at least this probability (Lee, Barber and Willett, 2023: hierarchical conformal
    prediction); with ``at_once=True`` the bounds of all of its atoms hold together with at least
    this probability. When the data shift, nothing is promised: measure with `coverage_on`.

    Parameters
    ----------
    coverage : float
        In (0, 1).
    at_once : bool
        Whether all atoms of a structure are to be covered together.
    random_state : int
        Which structures go into which half.

    Attributes
    ----------
    factor_ : float
        What the typical error is multiplied with.
    novelty_, error_ : ndarray, shape (m,)
        Typical error (eV/Å) against -log(quantile), both ascending.
    n_structures_ : int
        Structures in the half that the factor comes from.
    """

    factor_: float
    novelty_: np.ndarray
    error_: np.ndarray
    n_structures_: int

    def __init__(
        self, coverage: float = 0.9, *, at_once: bool = False, random_state: int = 0
    ) -> None:
        if not 0 < coverage < 1:
            raise DataError(f"found coverage={coverage!r}, expected a number between 0 and 1")
        self.coverage, self.at_once, self.random_state = coverage, at_once, random_state

    def fit(self, quantile: Any, error: Any, structure_index: Any) -> ErrorBound:
        """Make the bound from labelled structures that the potential was not trained on; computes.

        Parameters
        ----------
        quantile : array-like, shape (n,)
            Of the log-likelihood, from `PerElementDensity.quantile`; rows at 0 are passed over.
        error : array-like, shape (n,)
            Norm of the force error of each atom (eV/Å); NaN (masked) rows are passed over.
        structure_index : array-like of int, shape (n,)

        Raises
        ------
        DataError
            Too few structures for this coverage.
        """
        q, e, s = _columns(quantile, error, structure_index)
        known = np.isfinite(e) & (q > 0)
        q, e, s = q[known], e[known], s[known]
        structures = np.unique(s)
        rng = np.random.default_rng(self.random_state)
        half = rng.permutation(structures)[: structures.size // 2]
        fitting = np.isin(s, half)
        n = structures.size - half.size
        least = least_structures(self.coverage)
        if n < least // 2 or not fitting.any():
            raise DataError(
                f"found {structures.size} labelled structures, a coverage of {self.coverage:g} "
                f"needs at least {least}; label more or ask for less"
            )
        self.n_structures_ = n
        self._fit_typical(-np.log(q[fitting]), e[fitting])
        ratio = e[~fitting] / self._typical(-np.log(q[~fitting]))
        _, place, size = np.unique(s[~fitting], return_inverse=True, return_counts=True)
        if self.at_once:
            largest = np.full(n, -np.inf)
            np.maximum.at(largest, place, ratio)
            values, mass = largest, np.full(n, 1.0 / (n + 1))
        else:
            values, mass = ratio, 1.0 / ((n + 1.0) * size[place])
        order = np.argsort(values, kind="stable")
        reached = np.cumsum(mass[order])
        at = int(np.searchsorted(reached, self.coverage - 1e-12))
        self.factor_ = float(values[order[min(at, order.size - 1)]])
        return self

    def _fit_typical(self, novelty: np.ndarray, error: np.ndarray) -> None:
        from sklearn.isotonic import IsotonicRegression

        order = np.argsort(novelty, kind="stable")
        parts = np.array_split(order, min(_BINS, order.size))
        x = np.array([novelty[p].mean() for p in parts])
        y = np.array([error[p].mean() for p in parts])
        weight = np.array([p.size for p in parts], np.float64)
        rising = IsotonicRegression().fit(x, y, sample_weight=weight).predict(x)
        # Never zero: a factor times zero bounds nothing.
        floor = max(1e-3 * float(np.average(y, weights=weight)), 1e-12)
        keep = np.r_[True, np.diff(x) > 0]
        self.novelty_, self.error_ = x[keep], np.maximum(rising, floor)[keep]

    def _typical(self, novelty: np.ndarray) -> np.ndarray:
        """Typical error (eV/Å): linear between the knots, and proportional beyond the last."""
        inside = np.interp(novelty, self.novelty_, self.error_)
        last = max(float(self.novelty_[-1]), 1e-12)
        return inside * np.maximum(1.0, novelty / last)

    def predict(self, quantile: Any) -> Any:
        """Upper bound of the force error (eV/Å), shape (n,); infinite at quantile 0; lazy."""
        if is_dask(quantile):
            return quantile.map_blocks(self._predict, dtype=np.float64, meta=np.empty(0))
        return self._predict(quantile)

    def _predict(self, quantile: Any) -> np.ndarray:
        q = np.asarray(quantile, np.float64)
        with np.errstate(divide="ignore"):
            return self.factor_ * self._typical(-np.log(q))

    def coverage_on(self, quantile: Any, error: Any, structure_index: Any) -> Coverage:
        """Coverage that is met on other labelled structures; parameters as in `fit`; computes."""
        q, e, s = _columns(quantile, error, structure_index)
        return coverage(self._predict(q), e, s, stated=self.coverage, at_once=self.at_once)


def coverage(
    bound: np.ndarray,
    error: np.ndarray,
    structure_index: np.ndarray,
    *,
    stated: float,
    at_once: bool = False,
) -> Coverage:
    """Coverage that bounds (n,) of errors (n,) meet, structure by structure; eV/Å.

    Parameters
    ----------
    bound, error : ndarray, shape (n,)
        Atoms whose error is NaN (masked) are passed over.
    structure_index : ndarray of int, shape (n,)
    stated : float
        Coverage that was asked for.
    at_once : bool
        Whether it was asked for all atoms of a structure together.

    Raises
    ------
    DataError
        There is no labelled atom.
    """
    known = np.isfinite(error)
    held = (error <= bound)[known]
    _, place, size = np.unique(structure_index[known], return_inverse=True, return_counts=True)
    if not size.size:
        raise DataError("found no labelled atom, expected at least one structure with forces")
    share = np.bincount(place, held) / size
    n, whole = size.size, float((share == 1.0).mean())
    if at_once:
        low, high = _wilson(whole, n)
    else:
        half = 1.96 * float(share.std(ddof=min(1, n - 1))) / np.sqrt(n)
        low, high = max(0.0, share.mean() - half), min(1.0, share.mean() + half)
    return Coverage(stated, float(share.mean()), whole, float(low), float(high), n)


@dataclass(frozen=True)
class AtomBound:
    """A bound with the scale of quantiles that it was made on.

    The scale is that of the rows that the density was fitted to: none of the structures that
    calibrate the bound may have a part in it, or they would not be like new ones.
    """

    bound: ErrorBound
    scale: QuantileScale

    def predict(self, log_likelihood: Any, labels: Any) -> Any:
        """Upper bound of the force error (eV/Å), shape (n,); infinite for labels never seen; lazy
        on Dask input."""
        return self.bound.predict(self.scale.transform(log_likelihood, labels))


def least_structures(coverage: float) -> int:
    """Labelled structures that a bound of this coverage takes at least."""
    return 2 * max(int(np.ceil(coverage / (1.0 - coverage) - 1e-9)), 1)


def _wilson(p: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a fraction p of n."""
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return middle - half, middle + half


def _columns(quantile: Any, error: Any, index: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, e = plain(quantile).astype(np.float64), plain(error).astype(np.float64)
    s = plain(index)
    if not q.shape == e.shape == s.shape:
        raise DataError(
            f"found {q.shape} quantiles, {e.shape} errors and {s.shape} structure indices, "
            "expected as many of each"
        )
    if np.isnan(q).any():
        raise DataError("found NaN among the quantiles, expected numbers from 0 to 1")
    return q, e, s
