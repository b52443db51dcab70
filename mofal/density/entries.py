"""The stable form for the few components that matter to each row.

Narrow components hardly overlap: of forty, a row belongs to one or two, and its log-densities under
the others are thousands below. The product form, too inexact for the result, is exact enough to
tell which these are: its errors are far below one. So it guides, and what it points at is repeated
in the stable form, entry by entry, with the mean subtracted before anything is multiplied. What it
passes over has responsibilities below e^-92, and counts for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEGLIGIBLE = 92.0
"""A component so far below the best one of a row (1e-40) counts for nothing, even in sums of 10¹²
rows beside the 1e-15 that keep an empty component from dividing by zero."""
GUIDE_TOLERANCE = 0.05
"""Largest error of a log-density with which the product form may guide."""
FEWEST = 4
"""Below so many narrow components guiding costs more than it saves."""
DENSE = 0.25
"""Share of entries that matter above which all of them are evaluated."""


@dataclass
class Entries:
    """Pairs of component and row, sorted by component.

    Attributes
    ----------
    components, rows : ndarray of int, shape (m,)
    runs : list of (int, int, int)
        Component and the start and stop of its pairs.
    y : ndarray, shape (d, m)
        Rows in the coordinates of their component.
    values : ndarray, shape (m,)
        Their joint log-densities.
    """

    components: np.ndarray
    rows: np.ndarray
    runs: list[tuple[int, int, int]]
    y: np.ndarray
    values: np.ndarray

    def log_likelihood(self, top: np.ndarray) -> np.ndarray:
        """Of all rows (n,), where one model has all the components; `top` is near their largest.

        A few exponentials a row instead of one per component.
        """
        share = np.exp(self.values - top[self.rows])
        out = np.log(np.bincount(self.rows, weights=share, minlength=top.size))
        out += top
        return out


def evaluate_entries(
    near: np.ndarray,
    raw: np.ndarray,
    means: np.ndarray,
    factors: np.ndarray,
    norms: np.ndarray,
    joint: np.ndarray,
) -> Entries:
    """Overwrite the log-densities (k, n) of what is near by those of the stable form.

    Parameters
    ----------
    near : ndarray of bool, shape (k, n)
    raw : ndarray, shape (d, n)
        Rows of data, float64.
    means : ndarray, shape (k, d)
    factors : ndarray
        (k, d, d) factors Pᵀ of the precisions; (k, d) scales for diagonal covariances.
    norms : ndarray, shape (k,)
    joint : ndarray, shape (k, n)
    """
    components, rows = np.nonzero(near)
    starts = np.flatnonzero(np.r_[True, components[1:] != components[:-1]])[: components.size]
    stops = np.r_[starts[1:], components.size]
    runs = list(zip(components[starts].tolist(), starts.tolist(), stops.tolist()))
    shift = np.take(raw, rows, axis=1)
    shift -= np.take(means.T, components, axis=1)
    if factors.ndim == 2:
        y = shift
        y *= np.take(factors.T, components, axis=1)
    else:
        y = np.empty_like(shift)
        for k, a, b in runs:
            np.matmul(factors[k], shift[:, a:b], out=y[:, a:b])
    values = norms[components] - 0.5 * np.einsum("dm,dm->m", y, y)
    joint[components, rows] = values
    return Entries(components, rows, runs, y, values)


def accumulate_entries(
    entries: Entries, weights: np.ndarray, sums: np.ndarray, *, matrix: bool
) -> None:
    """Add Σ r [y 1][y 1]ᵀ (k, d + 1, d + 1), or Σ r [y² y 1] (k, 3, d), of what is near.

    Responsibilities r are looked up in `weights` (k, n).
    """
    if not entries.runs:
        return
    y, d = entries.y, entries.y.shape[0]
    own = np.array([k for k, _, _ in entries.runs])
    starts = np.array([a for _, a, _ in entries.runs])
    r = weights[entries.components, entries.rows]
    weighted = y * r
    number = np.add.reduceat(r, starts)
    first = np.add.reduceat(weighted, starts, axis=1).T
    if not matrix:
        sums[own, 2] += number[:, None]
        sums[own, 1] += first
        weighted *= y
        sums[own, 0] += np.add.reduceat(weighted, starts, axis=1).T
        return
    sums[own, d, d] += number
    sums[own, :d, d] += first
    sums[own, d, :d] += first
    for k, a, b in entries.runs:
        sums[k, :d, :d] += weighted[:, a:b] @ y[:, a:b].T
