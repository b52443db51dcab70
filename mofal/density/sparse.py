"""Full covariances where few components matter to a row: only these are evaluated and counted.

Components of ordinary random shape overlap little: of forty, one or two matter to a row. The
product form gives all log-densities in one matrix product, exact enough to tell which these are;
they are then evaluated in the stable form, their mean subtracted before anything is multiplied, and
only they enter exponentials and sums. What is passed over has responsibilities below e^-92.

Rows are looked at in two steps: the matrix product on blocks that stay in a core's cache, then the
pairs of component and row, sorted by component, on thousands of rows at a time, so that each
component has enough of them for products of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mofal.density.columns import pair_indices
from mofal.density.entries import GUIDE_TOLERANCE, NEGLIGIBLE

MANY = 8192
"""Rows whose pairs are evaluated together."""
BLOCK_BYTES = 3 * 2**20
FEWEST_EACH = 12
"""Below so many components a model is evaluated whole: one of them matters to each row anyway."""
DENSE_PAIRS = 0.1
"""Share of pairs that matter from which on all of them are evaluated: a pair by itself takes about
as long as ten in one large product."""


@dataclass
class Guide:
    """What tells which components matter: the product form of all of them, in one array.

    Attributes
    ----------
    coefficients : ndarray, shape (k + 1, columns)
        The last row gives |z|².
    worst : tuple of float
        Of the bound a |z|² + b |z| + c of the largest rounding error of any component.
    models : list of slice
        Components of each model.
    means : ndarray, shape (k, d + 1)
        With a zero behind each: rows have a one there.
    factors : ndarray, shape (k, d + 1, d + 1)
        [[P, 0], [0, 1]]: rows times these are in the coordinates of a component.
    norms : ndarray, shape (k,)
    """

    coefficients: np.ndarray
    worst: tuple[float, float, float]
    models: list[slice]
    means: np.ndarray
    factors: np.ndarray
    norms: np.ndarray

    @property
    def reach(self) -> float:
        """Largest |z|² of a row for which the guide may be trusted."""
        a, b, c = self.worst
        if c > GUIDE_TOLERANCE:
            return -1.0
        if a <= 0.0:
            return np.inf
        return ((np.sqrt(b * b + 4.0 * a * (GUIDE_TOLERANCE - c)) - b) / (2.0 * a)) ** 2


@dataclass
class Pairs:
    """Component and row of each pair that matters, sorted by component.

    Attributes
    ----------
    rows : ndarray of int, shape (m,)
    cuts : list of int, length k + 1
        Where the pairs of each component begin.
    share : ndarray, shape (m,)
        Responsibilities.
    y : ndarray, shape (m, d + 1)
        Rows in the coordinates of their component, and a one.
    log_likelihood : ndarray, shape (models, rows)
    """

    rows: np.ndarray
    cuts: list[int]
    share: np.ndarray
    y: np.ndarray
    log_likelihood: np.ndarray


def evaluate_pairs(
    guide: Guide, x: np.ndarray, near: np.ndarray, top: np.ndarray, far: np.ndarray
) -> Pairs:
    """Evaluate what matters in the stable form.

    Parameters
    ----------
    guide : Guide
    x : ndarray, shape (n, d)
    near : ndarray of bool, shape (k, n)
    top : ndarray, shape (models, n)
        Near the largest log-density of each row; overwritten for rows that are far out.
    far : ndarray of int
        Rows for which the guide said nothing; all their pairs are near.
    """
    k, n = near.shape
    d = x.shape[1]
    flat = np.flatnonzero(near)
    cuts = np.searchsorted(flat, np.arange(k + 1) * n)
    size = np.diff(cuts)
    rows = flat - np.repeat(np.arange(k) * n, size)
    cut = cuts.tolist()
    ones = np.empty((n, d + 1))
    ones[:, :d] = x
    ones[:, d] = 1.0
    shift = np.take(ones, rows, axis=0)
    y = np.empty_like(shift)
    for i in range(k):
        a, b = cut[i], cut[i + 1]
        if b > a:
            part = shift[a:b]
            part -= guide.means[i]
            np.matmul(part, guide.factors[i], out=y[a:b])
    # The ones add one to each square.
    values = np.einsum("ij,ij->i", y, y)
    values *= -0.5
    values += np.repeat(guide.norms + 0.5, size)
    out = np.empty_like(top)
    share = values
    for model, own in enumerate(guide.models):
        pairs = slice(cut[own.start], cut[own.stop])
        r, v = rows[pairs], values[pairs]
        if far.size:
            top[model, far] = -np.inf
            distant = np.flatnonzero(np.isin(r, far))
            np.maximum.at(top[model], r[distant], v[distant])
        v -= top[model][r]
        np.exp(v, out=v)
        total = np.bincount(r, weights=v, minlength=n)
        np.log(total, out=out[model])
        out[model] += top[model]
        np.reciprocal(total, out=total)
        v *= total[r]
    return Pairs(rows, cut, share, y, out)


def add_moments(pairs: Pairs, sums: np.ndarray) -> None:
    """Add Σ r [y 1][y 1]ᵀ (k, d + 1, d + 1) of what matters."""
    weighted = pairs.y * pairs.share[:, None]
    for i, (a, b) in enumerate(zip(pairs.cuts, pairs.cuts[1:])):
        if b > a:
            sums[i] += weighted[a:b].T @ pairs.y[a:b]


def product_sums(sums: np.ndarray, rotations: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Σ r [1, z, z zᵀ] (k, columns) from Σ r [y 1][y 1]ᵀ, where y = rotation z - offset."""
    d = offsets.shape[1]
    to_z = np.zeros_like(sums)
    to_z[:, :d, :d] = np.linalg.inv(rotations)
    to_z[:, :d, d] = np.einsum("kij,kj->ki", to_z[:, :d, :d], offsets)
    to_z[:, d, d] = 1.0
    whole = to_z @ sums @ np.swapaxes(to_z, 1, 2)
    rows, columns = pair_indices(d)
    return np.concatenate([whole[:, d, d, None], whole[:, :d, d], whole[:, rows, columns]], axis=1)


def look(
    guide: Guide,
    columns: Callable[[slice], np.ndarray],
    near: np.ndarray,
    top: np.ndarray,
    joint: Callable[[int], np.ndarray],
) -> np.ndarray | None:
    """Find what matters, block by block; the rows for which the guide says nothing.

    None as soon as so much matters that all of it is better evaluated together.

    Parameters
    ----------
    columns : callable
        [1, z, products of z] of some of the rows.
    near, top : ndarray
        (k, n) of bool and (models, n); filled.
    joint : callable
        Buffer (k + 1, rows) for so many rows.
    """
    far: list[np.ndarray] = []
    reach = guide.reach
    k, n = near.shape
    block = int(BLOCK_BYTES // (8 * sum(guide.coefficients.shape))) // 64 * 64
    for start in range(0, n, block):
        rows = slice(start, min(start + block, n))
        phi = columns(rows)
        values = joint(phi.shape[1])
        np.matmul(guide.coefficients, phi, out=values)
        own = near[:, rows]
        for model, part in enumerate(guide.models):
            best = values[part].max(axis=0, out=top[model, rows])
            np.greater(values[part], best - NEGLIGIBLE, out=own[part])
        out = ~(values[-1] <= reach)  # also where it is NaN
        if out.any():
            own[:, out] = True
            far.append(np.flatnonzero(out) + start)
        if np.count_nonzero(own) > DENSE_PAIRS * own.shape[1] * k:
            return None
    return np.concatenate(far) if far else np.empty(0, np.intp)
