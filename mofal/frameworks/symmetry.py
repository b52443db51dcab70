"""Symmetry operations of a cell, and what they make of pairs of missing linkers.

Only what the family needs: operations that map a given cell onto itself, found by trying; tests
compare them with spglib.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mofal.errors import StructureError
from mofal.frameworks.bonds import bonds_of, structure_arrays
from mofal.frameworks.defects import one_structure, remake

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Operations:
    """Symmetry operations of one cell.

    Attributes
    ----------
    rotation : (n, 3, 3) int array
    translation : (n, 3) float array
        Fractional coordinates (rows) go to ``f @ rotation + translation``.
    permutation : (n, atom) int array
        Atom that each atom goes to.
    """

    rotation: NDArray[np.int64]
    translation: NDArray[np.float64]
    permutation: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rotation)


@dataclass(frozen=True)
class Orbit:
    """Pairs of linkers that symmetry makes equal.

    Attributes
    ----------
    pairs : (multiplicity, 2) int array
        Blocks; the first pair is the representative.
    distance : float
        Between the centres of the two, minimum image, Å.
    """

    pairs: NDArray[np.int64]
    distance: float

    @property
    def multiplicity(self) -> int:
        """How many pairs."""
        return len(self.pairs)


def lattice_rotations(cell: NDArray[np.float64], tolerance: float = 1e-3) -> NDArray[np.int64]:
    """Integer matrices W that leave the metric alone, ``(W cell)(W cell)^T = cell cell^T``."""
    metric = cell @ cell.T
    axis = np.arange(-2, 3)
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    square = np.einsum("ni,ij,nj->n", grid, metric, grid)
    scale = tolerance * np.sqrt(np.diag(metric))
    rows = [grid[np.abs(np.sqrt(square) - np.sqrt(metric[k, k])) < tolerance] for k in range(3)]
    out = []
    for a in rows[0]:
        near = np.abs(rows[1] @ metric @ a - metric[0, 1]) < scale[0] * np.sqrt(metric[1, 1])
        for b in rows[1][near]:
            fits = np.abs(rows[2] @ metric @ a - metric[0, 2]) < scale[0] * np.sqrt(metric[2, 2])
            fits &= np.abs(rows[2] @ metric @ b - metric[1, 2]) < scale[1] * np.sqrt(metric[2, 2])
            out += [np.array([a, b, c]) for c in rows[2][fits]]
    return np.array([w for w in out if abs(round(float(np.linalg.det(w)))) == 1])


def symmetry_operations(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    *,
    tolerance: float = 1e-3,
) -> Operations:
    """Operations that map a periodic structure onto itself.

    Parameters
    ----------
    numbers : (n,) int
    positions : (n, 3) float, Å
    cell : (3, 3) float, Å
    tolerance : float
        How far an atom may miss its image, Å.
    """
    f = np.linalg.solve(cell.T, positions.T).T
    species, count = np.unique(numbers, return_counts=True)
    rare = np.flatnonzero(numbers == species[count.argmin()])
    # Elements far apart along a fourth axis: one tree tells position and element at once.
    tag = np.asarray(np.searchsorted(species, numbers), np.float64) * 10.0
    box = [1.0, 1.0, 1.0, 10.0 * len(species) + 10.0]
    wrapped = np.mod(np.mod(f, 1.0), 1.0)
    tree = cKDTree(np.column_stack([wrapped, tag]), boxsize=box)
    limit = tolerance / np.linalg.norm(cell, axis=1).max()
    # A few atoms reject most candidates before all are looked at.
    probe = np.unique(np.linspace(0, len(f) - 1, 12).astype(int))
    found: list[tuple[NDArray, NDArray, NDArray]] = []
    for w in lattice_rotations(cell, tolerance):
        turned = f @ w
        for target in rare:
            t = f[target] - turned[rare[0]]
            if tree.query(_tagged(turned[probe] + t, tag[probe]))[0].max() > limit:
                continue
            distance, index = tree.query(_tagged(turned + t, tag))
            if distance.max() <= limit and len(np.unique(index)) == len(f):
                found.append((w, np.mod(t, 1.0), index))
    return Operations(
        np.array([x[0] for x in found]),
        np.array([x[1] for x in found]),
        np.array([x[2] for x in found]),
    )


def _tagged(f: NDArray[np.float64], tag: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([np.mod(np.mod(f, 1.0), 1.0), tag])


def inorganic_bridges(ds: xr.Dataset) -> NDArray[np.bool_]:
    """Atoms of the mu3-O and mu3-OH: O that no C is bonded to, and its H. Shape (atom,)."""
    one_structure(ds)
    numbers, positions, cell, pbc = structure_arrays(ds, 0)
    bonds = bonds_of(numbers, positions, cell, pbc)
    has_carbon = np.zeros(len(numbers), bool)
    has_carbon[bonds.i[numbers[bonds.j] == 6]] = True
    bridge = (numbers == 8) & ~has_carbon
    hydrogen = np.zeros(len(numbers), bool)
    hydrogen[bonds.j[bridge[bonds.i] & (numbers[bonds.j] == 1)]] = True
    return bridge | hydrogen


def bare(ds: xr.Dataset) -> xr.Dataset:
    """The structure without its mu3-O and mu3-OH, whose order lowers the symmetry of the net."""
    keep = ~inorganic_bridges(ds)
    return remake(ds, ds["numbers"].values[keep], ds["positions"].values[keep])


def linker_pair_orbits(ds: xr.Dataset, blocks: xr.Dataset, *, mu3: bool = False) -> list[Orbit]:
    """Physically distinct pairs of linkers: orbits of all pairs under the symmetry of the cell.

    Parameters
    ----------
    ds : Dataset of one structure
    blocks : Dataset
        Its blocks.
    mu3 : bool
        Let the order of mu3-O and mu3-OH count: eight orbits for the conventional cell of UiO-66
        (F-43m); without it seven (Fm-3m; paper, Figure SI.8).

    Returns
    -------
    list of Orbit
        By multiplicity, then by distance, then by the shape of the pair.
    """
    one_structure(ds)
    numbers, positions, cell, pbc = structure_arrays(ds, 0)
    if not np.all(pbc):
        raise StructureError("symmetry of a cell needs all three directions periodic")
    keep = np.ones(len(numbers), bool) if mu3 else ~inorganic_bridges(ds)
    operations = symmetry_operations(numbers[keep], positions[keep], cell)
    member, size = blocks["member_atom"].values, blocks["block_n_atoms"].values
    label = np.empty(len(numbers), np.int64)
    label[member] = np.repeat(np.arange(len(size)), size)
    kept = np.flatnonzero(keep)
    position_in_kept = np.full(len(numbers), -1)
    position_in_kept[kept] = np.arange(len(kept))
    start = np.concatenate([[0], np.cumsum(size)])[:-1]
    linkers = np.flatnonzero(blocks["role"].values == "linker")
    first = position_in_kept[member[start[linkers]]]
    image = label[kept[operations.permutation[:, first]]]
    back = np.full(len(size), -1)
    back[linkers] = np.arange(len(linkers))
    image = back[image]
    whole = positions[member] + blocks["member_shift"].values @ cell
    centre = np.add.reduceat(whole, start) / size[:, None]
    seen: set[tuple[int, int]] = set()
    orbits = []
    for a, b in combinations(range(len(linkers)), 2):
        if (a, b) in seen:
            continue
        mapped = np.sort(np.column_stack([image[:, a], image[:, b]]), axis=1)
        unique = np.unique(mapped, axis=0)
        seen |= set(map(tuple, unique.tolist()))
        orbits.append(Orbit(linkers[unique], _distance(centre, linkers, a, b, cell)))
    return sorted(orbits, key=lambda o: (o.multiplicity, round(o.distance, 3), *o.pairs[0]))


def _distance(
    centre: NDArray[np.float64],
    linkers: NDArray[np.int64],
    a: int,
    b: int,
    cell: NDArray[np.float64],
) -> float:
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), -1).reshape(-1, 3)
    vector = centre[linkers[b]] - centre[linkers[a]]
    vector = vector - np.rint(np.linalg.solve(cell.T, vector)) @ cell
    return float(np.linalg.norm(vector + shifts @ cell, axis=1).min())
