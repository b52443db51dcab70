"""Connected pieces of a periodic graph: which there are, made whole, and which are endless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.frameworks.bonds import Bonds


@dataclass(frozen=True)
class Components:
    """Connected pieces of a periodic graph.

    Attributes
    ----------
    n : int
        How many.
    label : (atom,) int32 array
        Piece of each atom; pieces are numbered by their first atom.
    shift : (atom, 3) int32 array
        ``positions + shift @ cell`` makes each finite piece one connected molecule, in the image
        of its first atom.
    loops : (half-edge, 3) int32 array
        Lattice vector that is left when the half-edge closes a cycle; zero in a finite piece.
    """

    n: int
    label: NDArray[np.int32]
    shift: NDArray[np.int32]
    loops: NDArray[np.int32]

    def endless(self, bonds: Bonds) -> NDArray[np.int64]:
        """Pieces that are infinite along at least one direction, sorted."""
        return np.unique(self.label[bonds.i[self.loops.any(axis=1)]])

    def periods(self, bonds: Bonds, piece: int) -> NDArray[np.int64]:
        """Basis of the lattice vectors along which a piece repeats: (rank, 3), Hermite form."""
        mine = (self.label[bonds.i] == piece) & self.loops.any(axis=1)
        return integer_basis(np.unique(self.loops[mine], axis=0))


def integer_basis(vectors: NDArray[np.integer]) -> NDArray[np.int64]:
    """Basis (row Hermite form) of the lattice that integer vectors span: (rank, 3)."""
    rows = [r for r in np.asarray(vectors, np.int64).reshape(-1, 3).tolist() if any(r)]
    basis: list[list[int]] = []
    for column in range(3):
        # Euclid on this column: at most one row keeps an entry there.
        while True:
            live = [r for r in rows if r[column]]
            if len(live) < 2:
                break
            pivot = min(live, key=lambda r: abs(r[column]))
            rows = [
                r
                if r is pivot
                else [a - (r[column] // pivot[column]) * b for a, b in zip(r, pivot)]
                for r in rows
            ]
        live = [r for r in rows if r[column]]
        if live:
            pivot = live[0] if live[0][column] > 0 else [-a for a in live[0]]
            basis.append(pivot)
            rows = [r for r in rows if r is not live[0]]
        rows = [r for r in rows if any(r)]
    return np.array(basis, np.int64).reshape(-1, 3)


def components(bonds: Bonds) -> Components:
    """Connected pieces of a graph given as half-edges, in time linear in their number."""
    n = bonds.n_atoms
    indptr = bonds.indptr
    graph = sp.csr_array(
        (np.ones(len(bonds.i), np.int8), bonds.j, indptr.astype(np.int32)), shape=(n, n)
    )
    count, label = csgraph.connected_components(graph, directed=False)
    # Number pieces by their first atom.
    first = np.empty(count, np.int64)
    first[label[::-1]] = np.arange(n - 1, -1, -1)
    order = np.argsort(first, kind="stable")
    rank = np.empty(count, np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    label = rank[label]
    shift = spanning_shifts(bonds, first[order])
    loops = shift[bonds.i] + bonds.shift - shift[bonds.j]
    return Components(int(count), label, shift, loops.astype(np.int32))


def spanning_shifts(bonds: Bonds, roots: NDArray[np.integer]) -> NDArray[np.int32]:
    """Lattice shift of each atom along a spanning tree from the root of its piece: (atom, 3)."""
    n = bonds.n_atoms
    if n == 0:
        return np.zeros((0, 3), np.int32)
    # One extra vertex that leads to every root makes one breadth-first search do for all pieces.
    indptr = np.append(bonds.indptr, len(bonds.j) + len(roots)).astype(np.int32)
    indices = np.concatenate([bonds.j, np.asarray(roots, bonds.j.dtype)])
    graph = sp.csr_array((np.ones(len(indices), np.int8), indices, indptr), shape=(n + 1, n + 1))
    _, parent = csgraph.breadth_first_order(graph, n, directed=True)
    parent = parent[:n].astype(np.int64)
    on_tree = np.flatnonzero(parent[bonds.j] == bonds.i)
    shift = np.zeros((n, 3), np.int32)
    shift[bonds.j[on_tree]] = bonds.shift[on_tree]
    up = np.where(parent == n, np.arange(n), parent)
    # Pointer jumping: each pass doubles the stretch of tree that a shift has summed.
    while True:
        grand = up[up]
        if np.array_equal(grand, up):
            return shift
        shift += shift[up]
        up = grand
