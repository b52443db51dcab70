"""Supercells, and other cells of the same crystal."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
from ase.geometry import minkowski_reduce
from numpy.typing import ArrayLike

from mofal.errors import StructureError
from mofal.frameworks.bonds import structure_arrays
from mofal.frameworks.defects import one_structure, remake

if TYPE_CHECKING:
    import xarray as xr


LEAST_IMAGE = 12.0
"""Å from an atom to its nearest image in a parent of clusters: references are Gamma-only, and the
segment of a rod that repeats at 6.6 Å would hold its own core again."""
_MOST_ATOMS = 500_000_000  # atoms and half-edges are counted in 32 bits


def supercell(ds: xr.Dataset, repeat: ArrayLike, *, system: str | None = None) -> xr.Dataset:
    """Repeat a structure along its cell vectors, or write it in any other cell of its lattice.

    Parameters
    ----------
    ds : Dataset of one structure
    repeat : (3,) int or (3, 3) int
        How often along each cell vector; or the rows of a matrix M of which ``M @ cell`` is the
        new cell (sheared, primitive to conventional). Its determinant is how many cells it holds.
    system : str, optional
        Name of the result; default: that of `ds`.

    Returns
    -------
    Dataset
        Copies of the cell one after the other, each with its atoms in order.

    Raises
    ------
    StructureError
        When `repeat` is not made of integers, holds no cell, or repeats along a free direction.
    """
    one_structure(ds)
    numbers, positions, cell, pbc = structure_arrays(ds, 0)
    given = np.asarray(repeat)
    if given.shape not in ((3,), (3, 3)) or not np.all(given == np.rint(given)):
        raise StructureError(
            f"repeat={repeat!r} is neither three integers nor a 3 x 3 matrix of integers: "
            "supercell(ds, (2, 2, 2))"
        )
    matrix = np.rint(np.diag(given) if given.ndim == 1 else given).astype(np.int64)
    n_cells = abs(round(float(np.linalg.det(matrix.astype(float)))))
    if n_cells == 0 or (given.ndim == 1 and matrix.min() < 0):
        raise StructureError(
            f"repeat={np.asarray(repeat).tolist()} holds no cell: numbers of at least 1 are needed"
        )
    moved = (matrix != np.eye(3, dtype=np.int64)).any(axis=0) | (
        matrix != np.eye(3, dtype=np.int64)
    ).any(axis=1)
    if np.any(moved & ~np.asarray(pbc)):
        raise StructureError(
            "the structure is not periodic along a cell vector that should be repeated"
        )
    if n_cells * len(numbers) > _MOST_ATOMS:
        raise StructureError(
            f"repeat={np.asarray(repeat).tolist()} makes {n_cells * len(numbers):.3g} atoms, more "
            f"than {_MOST_ATOMS:.3g}: give a smaller one"
        )
    shifts = _cosets(matrix, n_cells)
    return remake(
        ds,
        np.tile(numbers, n_cells),
        (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3),
        cell=matrix @ cell,
        system=system,
    )


def nearest_image(cell: ArrayLike) -> float:
    """Distance from an atom to its nearest image, Å: the shortest vector of the lattice."""
    reduced, _ = minkowski_reduce(np.asarray(cell, float))
    return float(np.linalg.norm(reduced, axis=1).min())


def wide_enough(cell: ArrayLike, least: float = LEAST_IMAGE) -> tuple[int, int, int]:
    """How often a cell is repeated along its vectors so that images are so far apart.

    Parameters
    ----------
    cell : (3, 3) Å
    least : Å from an atom to its nearest image

    Returns
    -------
    (3,) ints
        The fewest cells that do; ``(1, 1, 1)`` where the cell is wide enough as it is.
    """
    cell = np.asarray(cell, float)
    if nearest_image(cell) >= least:
        return 1, 1, 1
    # Along each vector alone no more than this is ever needed.
    most = np.ceil(least * np.linalg.norm(np.linalg.inv(cell), axis=0)).astype(int).tolist()
    every = itertools.product(*(range(1, max(m, 1) + 1) for m in most))
    for a, b, c in sorted(every, key=lambda r: (r[0] * r[1] * r[2], r)):
        if nearest_image(np.array([[a], [b], [c]]) * cell) >= least:
            return a, b, c
    return most[0], most[1], most[2]


def _cosets(matrix: np.ndarray, n_cells: int) -> np.ndarray:
    """Lattice vectors inside the new cell, one per cell that it holds: (n_cells, 3)."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) @ matrix
    low, high = corners.min(axis=0), corners.max(axis=0)
    axes = [np.arange(a, b + 1) for a, b in zip(low, high)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    # Fractions of the new cell are multiples of 1 / n_cells: compare as integers.
    adjugate = np.rint(np.linalg.inv(matrix) * np.linalg.det(matrix)).astype(np.int64)
    numerator = grid @ adjugate * int(np.sign(np.linalg.det(matrix)))
    return grid[((numerator >= 0) & (numerator < n_cells)).all(axis=1)]
