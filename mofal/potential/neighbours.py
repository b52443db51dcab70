"""Neighbours of systems that move: candidates with a skin, of which each step takes those in reach.

Edges come in one order (centre, neighbour, shift) whenever the candidates were found, so that a
walk that starts again from a checkpoint sums in the same order as the walk that never stopped.
"""

from __future__ import annotations

import numpy as np

from mofal.potential.standalone import neighbour_edges

SKIN = 0.6
"""Å beyond the cutoff: candidates last some 20 steps of 0.5 fs at 600 K."""


class MovingNeighbours:
    """Neighbours within a cutoff of one system, step after step.

    Parameters
    ----------
    pbc : (3,) bool
    cutoff : float, Å
    skin : float, Å
    """

    def __init__(self, pbc: np.ndarray, cutoff: float, *, skin: float = SKIN) -> None:
        self.pbc = np.asarray(pbc, bool)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self._positions = np.zeros((0, 3))
        self._cell = np.zeros((3, 3))
        self._inverse: np.ndarray | None = None
        self.searches = 0

    def edges(
        self, positions: np.ndarray, cell: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """Pairs (2, e), lattice shifts (e, 3), and the shortest distance (Å, inf for none).

        Parameters
        ----------
        positions, cell : (n, 3), (3, 3) float, Å
        """
        if not self._holds(positions, cell):
            self._search(positions, cell)
        first, second = self._pairs
        vectors = positions.take(second, axis=0)
        vectors -= positions.take(first, axis=0)
        if self._shifted:
            vectors += self._shifts @ cell
        square = np.einsum("ij,ij->i", vectors, vectors)
        near = np.flatnonzero(square < self.cutoff**2)
        shortest = float(np.sqrt(square.min())) if len(square) else np.inf
        return self._pairs.take(near, axis=1), self._shifts.take(near, axis=0), shortest

    def _holds(self, positions: np.ndarray, cell: np.ndarray) -> bool:
        """Whether no pair can have come within the cutoff that is not a candidate.

        Atoms are carried back by the deformation F of the cell. A pair at a distance below r now
        was at less than r/s + 2u, with s the smallest stretch of F and u the largest way that an
        atom has gone beyond F.
        """
        if len(positions) != len(self._positions):
            return False
        stretch, carried = 1.0, positions
        if self._inverse is not None and not np.array_equal(cell, self._cell):
            change = self._inverse @ cell
            stretch = float(np.linalg.svd(change, compute_uv=False)[-1])
            if not stretch > 0.1:
                return False
            carried = positions @ np.linalg.inv(change)
        elif self._inverse is None and self.pbc.any() and not np.array_equal(cell, self._cell):
            return False
        away = carried - self._positions
        farthest = float(np.sqrt(np.einsum("ij,ij->i", away, away).max()))
        return self.cutoff / stretch + 2.0 * farthest <= self.cutoff + self.skin

    def _search(self, positions: np.ndarray, cell: np.ndarray) -> None:
        self.searches += 1
        pairs, shifts = neighbour_edges(positions, cell, self.pbc, self.cutoff + self.skin)
        order = np.lexsort((shifts[:, 2], shifts[:, 1], shifts[:, 0], pairs[1], pairs[0]))
        self._pairs = np.ascontiguousarray(pairs[:, order])
        self._shifts = np.ascontiguousarray(shifts[order])
        self._shifted = bool(self._shifts.any())
        self._positions, self._cell = np.array(positions), np.array(cell)
        self._inverse = np.linalg.inv(cell) if self.pbc.all() else None
