"""Bonds from distances, under any periodicity, also where an atom bonds to its own image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from mofal.errors import StructureError

if TYPE_CHECKING:
    import xarray as xr

# fmt: off
_NONMETALS = (
    "H", "He", "B", "C", "N", "O", "F", "Ne", "Si", "P", "S", "Cl", "Ar", "As", "Se", "Br", "Kr",
    "Te", "I", "Xe", "At", "Rn",
)
# fmt: on
IS_METAL = np.ones(119, bool)
IS_METAL[[0, *(atomic_numbers[s] for s in _NONMETALS)]] = False

# Added to the sum of the covalent radii (Cordero et al., Dalton Trans. 2008, 2832), in Å. What
# vibrates at 600 K must stay bonded; what merely sits close (Zr...C of a carboxylate at 3.2 Å,
# Zr...H of water; C...C across a five-membered ring, down to 1.8 Å in crude files) must not count.
_TOLERANCE = 0.30
_TOLERANCE_SECOND_ROW = 0.22
_TOLERANCE_METAL = 0.40
_TOLERANCE_METAL_CARBON = 0.20
_TOLERANCE_METAL_HYDROGEN = 0.10
# Heavy ions with lone pairs or full d shells: their bonds to N, O and halogens spread further.
_TOLERANCE_SOFT = {"Pb": 0.70, "Bi": 0.65, "Tl": 0.65, "Cd": 0.50, "Hg": 0.50, "Sn": 0.50}
# Å; crude files stretch O-H and N-H to 1.3 Å, and an H keeps its nearest partner only.
_LONGEST_XH = 1.38


@dataclass(frozen=True)
class Bonds:
    """Bonds as half-edges: each bond appears in both directions, sorted by `i`.

    Attributes
    ----------
    n_atoms : int
    i, j : (2 n_bonds,) int32 arrays
        From atom, to atom; sorted by `i`, then `j`, then `shift`.
    shift : (2 n_bonds, 3) int32 array
        The bond vector is ``positions[j] + shift @ cell - positions[i]``.
    """

    n_atoms: int
    i: NDArray[np.int32]
    j: NDArray[np.int32]
    shift: NDArray[np.int32]

    @property
    def forward(self) -> NDArray[np.bool_]:
        """Mask that keeps each bond once: ``i < j``, or to the own image on the positive side."""
        own = self.i == self.j
        out = self.i < self.j
        if own.any():
            s = self.shift[own]
            first = np.where(s[:, 0] != 0, s[:, 0], np.where(s[:, 1] != 0, s[:, 1], s[:, 2]))
            out[own] = first > 0
        return out

    def kept(self, mask: NDArray[np.bool_]) -> Bonds:
        """The half-edges where `mask` holds."""
        return Bonds(self.n_atoms, self.i[mask], self.j[mask], self.shift[mask])

    @cached_property
    def degree(self) -> NDArray[np.int64]:
        """Number of bonds of each atom: (n_atoms,)."""
        return np.bincount(self.i, minlength=self.n_atoms)

    @cached_property
    def indptr(self) -> NDArray[np.int64]:
        """Where the half-edges of each atom start: (n_atoms + 1,)."""
        return np.concatenate([[0], np.cumsum(self.degree)])


@cache
def bond_cutoffs() -> NDArray[np.float64]:
    """Longest bond of each pair of elements, Å: (119, 119), zero where none is ever made."""
    r = covalent_radii[:119]
    cut = r[:, None] + r[None] + _TOLERANCE
    second = np.arange(5, 10)
    cut[np.ix_(second, second)] -= _TOLERANCE - _TOLERANCE_SECOND_ROW
    metal = IS_METAL
    mixed = metal[:, None] ^ metal[None]
    cut[mixed] += _TOLERANCE_METAL - _TOLERANCE
    for z, tolerance in ((6, _TOLERANCE_METAL_CARBON), (1, _TOLERANCE_METAL_HYDROGEN)):
        to_metal = r[z] + r[metal] + tolerance
        cut[z, metal] = to_metal
        cut[metal, z] = to_metal
    for symbol, tolerance in _TOLERANCE_SOFT.items():
        soft, others = atomic_numbers[symbol], [7, 8, 9, 16, 17, 35, 53]
        cut[soft, others] = cut[others, soft] = r[soft] + r[others] + tolerance
    cut[[7, 8], 1] = cut[1, [7, 8]] = _LONGEST_XH
    # Metals are held together by what bridges them; a distance alone proves no bond.
    cut[np.ix_(metal, metal)] = 0.0
    noble = [atomic_numbers[s] for s in ["He", "Ne", "Ar", "Kr", "Xe", "Rn"]]
    cut[noble] = 0.0
    cut[:, noble] = 0.0
    cut[0] = 0.0
    cut[:, 0] = 0.0
    return cut


def complete_cell(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """A regular cell: vectors along which nothing repeats are replaced by ones that hold all atoms.

    Raises
    ------
    StructureError
        When the periodic vectors do not span what they should.
    """
    out = np.array(cell, float)
    periodic = np.asarray(pbc, bool)
    length = np.linalg.norm(out, axis=1)
    if np.any(length[periodic] < 1e-6):
        raise StructureError(
            f"cell vector {int(np.flatnonzero(periodic & (length < 1e-6))[0])} is zero, but the "
            "structure is periodic along it; give it a cell, or set pbc to False there"
        )
    if not periodic.all():
        # The complement of the periodic vectors, from a singular value decomposition.
        _, s, vh = np.linalg.svd(np.vstack([out[periodic], np.zeros((3, 3))]))
        rank = int((s > 1e-9).sum())
        complement = vh[rank:]
        extent = np.ptp(positions @ complement.T, axis=0) if len(positions) else np.zeros(0)
        free = np.flatnonzero(~periodic)
        if rank == periodic.sum():
            out[free] = complement * (extent + 20.0)[:, None]
    if abs(np.linalg.det(out)) < 1e-6:
        raise StructureError(
            "the cell vectors lie in one plane: the cell has no volume; check the lattice"
        )
    return out


def free_origin(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Origin from which no atom lies below the cell along a direction that nothing repeats in."""
    periodic = np.asarray(pbc, bool)
    if periodic.all() or not len(positions):
        return np.zeros(3)
    fraction = np.linalg.solve(cell.T, positions.T).T
    return np.where(periodic, 0.0, fraction.min(axis=0) - 0.01) @ cell


def bonds_of(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> Bonds:
    """Bonds of one structure from distances.

    Two atoms are bonded when they are closer than the sum of their covalent radii plus 0.3 Å
    (0.22 Å among B, C, N, O and F, 0.4 Å to a metal, 0.5 to 0.7 Å from N, O, S and halogens to
    Cd, Hg, Sn, Pb, Tl and Bi, 0.2 Å metal to carbon, 0.1 Å metal to hydrogen; N-H and O-H up to
    1.38 Å); metals never bond to each other, nor to a C, P or S whose own O or N holds them;
    hydrogen keeps only its shortest bond, except between boron and between metals.

    Parameters
    ----------
    numbers : (n,) int
    positions : (n, 3) float, Å
    cell : (3, 3) float, Å
    pbc : (3,) bool

    Returns
    -------
    Bonds
    """
    z = np.asarray(numbers, np.int32)
    n = len(z)
    x = np.ascontiguousarray(positions, dtype=np.float64)
    periodic = np.asarray(pbc, bool)
    lattice = complete_cell(x, cell, periodic)
    origin = free_origin(x, lattice, periodic)
    table = bond_cutoffs()
    present = np.unique(z)
    cut = {
        (int(a), int(b)): float(table[a, b])
        for k, a in enumerate(present)
        for b in present[k:]
        if table[a, b] > 0
    }
    if not cut:
        empty = np.zeros(0, np.int32)
        return Bonds(n, empty, empty, np.zeros((0, 3), np.int32))
    i, j, shift = neighbour_list(
        "ijS", positions=x - origin, cell=lattice, pbc=periodic, numbers=z, cutoff=cut
    )
    # The search lists neighbours in the order of its own boxes: with the order fixed here, a frame
    # that only vibrates gives the same arrays.
    order = np.argsort(half_edge_keys(n, i, j, shift), kind="stable")
    bonds = _no_bond_across(z, Bonds(n, i[order], j[order], shift[order]))
    return _one_bond_per_hydrogen(z, x, lattice, bonds)


def half_edge_keys(
    n_atoms: int,
    i: NDArray[np.integer],
    j: NDArray[np.integer],
    shift: NDArray[np.integer],
    reach: int | None = None,
) -> NDArray[np.int64]:
    """One integer per half-edge that sorts by atom, then neighbour, then shift: (n,).

    Parameters
    ----------
    n_atoms : int
    i, j : (n,) int
    shift : (n, 3) int
    reach : int, optional
        Largest shift to make room for, where keys of several calls are to be compared.
    """
    size = reach if reach is not None else int(np.abs(shift).max(initial=0))
    span = 2 * size + 1
    key = i.astype(np.int64) * n_atoms + j
    for axis in range(3):
        key = key * span + (shift[:, axis].astype(np.int64) + size)
    return key


def _no_bond_across(z: NDArray[np.integer], bonds: Bonds) -> Bonds:
    """Drop bonds from a metal to C, P, S, ... whose own O or N holds that metal already.

    The C of a chelating carboxylate sits as close to a large metal as a carbon that is bonded to
    it; so does the P of a phosphonate.
    """
    metal = IS_METAL[z]
    centre = ~metal & ~np.isin(z, [1, 7, 8, 9])
    across = np.flatnonzero(metal[bonds.i] & centre[bonds.j])
    if not len(across):
        return bonds
    indptr = bonds.indptr
    drop = []
    for edge in across.tolist():
        m, c, s = int(bonds.i[edge]), int(bonds.j[edge]), bonds.shift[edge]
        for hop in range(indptr[c], indptr[c + 1]):
            donor = int(bonds.j[hop])
            if z[donor] not in (7, 8, 16) or metal[donor]:
                continue
            there = slice(indptr[donor], indptr[donor + 1])
            closes = (bonds.j[there] == m) & np.all(
                bonds.shift[there] == -(s + bonds.shift[hop]), axis=1
            )
            if closes.any():
                drop.append(edge)
                break
    return bonds.kept(~_both_ways(bonds, drop))


def _both_ways(bonds: Bonds, edges: list[int]) -> NDArray[np.bool_]:
    """Mask of some half-edges and of those that lead back."""
    mask = np.zeros(len(bonds.i), bool)
    for edge in edges:
        i, j, s = bonds.i[edge], bonds.j[edge], bonds.shift[edge]
        back = slice(bonds.indptr[j], bonds.indptr[j + 1])
        mask[edge] = True
        mask[back] |= (bonds.j[back] == i) & np.all(bonds.shift[back] == -s, axis=1)
    return mask


def _one_bond_per_hydrogen(
    z: NDArray[np.integer], x: NDArray[np.float64], cell: NDArray[np.float64], bonds: Bonds
) -> Bonds:
    hydrogen = z == 1
    crowded = hydrogen & (bonds.degree > 1)
    if not crowded.any():
        return bonds
    from_h = np.flatnonzero(crowded[bonds.i])
    i, j, s = bonds.i[from_h], bonds.j[from_h], bonds.shift[from_h]
    d = np.linalg.norm(x[j] + s @ cell - x[i], axis=1)
    order = np.lexsort((d, i))
    first = np.ones(len(order), bool)
    first[1:] = i[order][1:] != i[order][:-1]
    shortest = np.zeros(len(order), bool)
    shortest[order[first]] = True
    # A hydride bridges where its nearest partner is one that it can bridge.
    can_bridge = (z == 5) | IS_METAL[z]
    nearest = np.zeros(bonds.n_atoms, np.int64)
    nearest[i[shortest]] = j[shortest]
    drop = ~shortest & ~(can_bridge[j] & can_bridge[nearest[i]])
    if not drop.any():
        return bonds
    return bonds.kept(~_both_ways(bonds, from_h[drop].tolist()))


def bond_lengths(
    bonds: Bonds, positions: NDArray[np.float64], cell: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Length of each half-edge: (half-edge,) Å."""
    vector = positions[bonds.j] + bonds.shift @ np.asarray(cell) - positions[bonds.i]
    return np.linalg.norm(vector, axis=1)


def structure_arrays(
    ds: xr.Dataset, i: int
) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Numbers, positions, cell and pbc of structure `i`.

    Raises
    ------
    StructureError
        When a position or the cell is not a number, or an element is unknown.
    """
    from mofal.data import atom_slice

    span = atom_slice(ds, i)
    numbers = ds["numbers"].values[span]
    positions = ds["positions"].values[span]
    cell = ds["cell"].values[i]
    if not np.isfinite(positions).all():
        k = int(np.flatnonzero(~np.isfinite(positions).all(axis=1))[0])
        raise StructureError(
            f"the position of atom {k} ({chemical_symbols[numbers[k]]}) is not a number; "
            "remove or repair this structure"
        )
    if not np.isfinite(cell).all():
        raise StructureError("the cell holds a value that is not a number; repair the lattice")
    if len(numbers) and (numbers.min() < 1 or numbers.max() > 118):
        k = int(np.flatnonzero((numbers < 1) | (numbers > 118))[0])
        raise StructureError(
            f"atom {k} has atomic number {numbers[k]}, which is no element; remove it or name it"
        )
    return numbers, positions, cell, ds["pbc"].values[i]


def find_bonds(ds: xr.Dataset, i: int = 0) -> xr.Dataset:
    """Find the bonds of one structure.

    Parameters
    ----------
    ds : Dataset of structures
    i : int
        Which structure.

    Returns
    -------
    Dataset
        ``bond_atom(bond, end)``, ``bond_shift(bond, xyz)`` and ``bond_length(bond)`` in Å, each
        bond once; the bond vector is
        ``positions[atom 1] + shift @ cell - positions[atom 0]``.
    """
    import xarray as xr

    numbers, positions, cell, pbc = structure_arrays(ds, i)
    bonds = bonds_of(numbers, positions, cell, pbc)
    bonds = bonds.kept(bonds.forward)
    vector = positions[bonds.j] + bonds.shift @ cell - positions[bonds.i]
    return xr.Dataset(
        {
            "bond_atom": (("bond", "end"), np.column_stack([bonds.i, bonds.j]).astype(np.int64)),
            "bond_shift": (("bond", "xyz"), bonds.shift.astype(np.int32)),
            "bond_length": ("bond", np.linalg.norm(vector, axis=1), {"units": "Å"}),
        },
        attrs={"system": str(ds["system"].values[i]), "n_atoms": len(numbers)},
    )


def reverse_edges(bonds: Bonds, edges: NDArray[np.integer]) -> NDArray[np.int64]:
    """Index of the half-edge that leads back, for each of `edges`."""
    reach = int(np.abs(bonds.shift).max(initial=0))
    keys = half_edge_keys(bonds.n_atoms, bonds.i, bonds.j, bonds.shift, reach)
    wanted = half_edge_keys(
        bonds.n_atoms, bonds.j[edges], bonds.i[edges], -bonds.shift[edges], reach
    )
    return np.searchsorted(keys, wanted)
