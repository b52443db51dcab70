"""Defects: blocks taken out with their broken bonds capped, metals exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import ArrayLike, NDArray

from mofal.errors import StructureError
from mofal.frameworks.bonds import structure_arrays
from mofal.frameworks.caps import cap_positions
from mofal.frameworks.leavings import what_stays
from mofal.frameworks.molecule import NEVER

if TYPE_CHECKING:
    import xarray as xr


def one_structure(ds: xr.Dataset) -> None:
    """Refuse a Dataset that holds more or less than one structure."""
    if ds.sizes.get("structure") != 1:
        raise StructureError(
            f"a Dataset of {ds.sizes.get('structure', 0)} structures, expected one; "
            "choose one with mofal.data.select(ds, 0)"
        )


def remake(
    ds: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    *,
    system: str | None = None,
    cell: NDArray[np.float64] | None = None,
    **more: Any,
) -> xr.Dataset:
    """A Dataset with the cell and name of `ds` and other atoms."""
    from mofal.data import make_structures

    return make_structures(
        numbers,
        positions,
        n_atoms=[len(numbers)],
        cell=ds["cell"].values[:1] if cell is None else np.asarray(cell)[None],
        pbc=ds["pbc"].values[:1],
        system=str(ds["system"].values[0]) if system is None else system,
        **more,
    )


def remove_blocks(
    ds: xr.Dataset, blocks: xr.Dataset, removed: ArrayLike, *, system: str | None = None
) -> xr.Dataset:
    """Take blocks out of a framework and cap what they leave dangling.

    A linker that goes leaves its carboxylates on the bricks, as formates (paper, section 4.2). One
    that was cut off its metals (rods, under the rule ``auto``) leaves each of its heads with the
    charge that it had: acids as formates, phenolates as OH.

    Parameters
    ----------
    ds : Dataset of one structure
    blocks : Dataset
        Its blocks (`find_blocks`).
    removed : (block,) bool, or int array
        Blocks to take out.
    system : str, optional
        Name of the new system; default: that of `ds`.

    Returns
    -------
    Dataset
        The atoms that stay, in their order and at their positions, then the caps.

    Raises
    ------
    StructureError
        When an end that dangles has no cap under the rule (the metal side of an azolate), what
        stays is not balanced (a metal of a rod is missing), or the blocks are of another structure.
    """
    one_structure(ds)
    numbers, positions, cell, _ = structure_arrays(ds, 0)
    if blocks.attrs["n_atoms"] != len(numbers):
        raise StructureError(
            f"blocks of {blocks.attrs['n_atoms']} atoms for a structure of {len(numbers)}: "
            "find them anew with mofal.frameworks.find_blocks(ds)"
        )
    gone = np.zeros(blocks.sizes["block"], bool)
    gone[np.asarray(removed)] = True
    keep_atom = np.empty(len(numbers), bool)
    keep_atom[blocks["member_atom"].values] = np.repeat(~gone, blocks["block_n_atoms"].values)
    end_gone = gone[blocks["link_block"].values]
    cap_z, cap_x = [], []
    off_metal = np.zeros(len(end_gone), bool)
    if "link_head" in blocks:
        # Ligands that were cut off their metals leave their ends there.
        off_metal = blocks["link_head"].values >= 0
        left = what_stays(blocks, numbers, positions, cell, gone)
        keep_atom[left.atom] = True
        cap_z.append(np.ones(len(left.cap), np.int64))
        cap_x.append(left.cap)
    for end in (0, 1):
        rows = np.flatnonzero(end_gone[:, 1 - end] & ~end_gone[:, end] & ~off_metal)
        cap = blocks["link_cap"].values[rows, end]
        if np.any(cap == NEVER):
            raise StructureError(
                f"rule {blocks.attrs['rule']!r} has no cap for a bond that this defect breaks on "
                f"the {blocks['role'].values[blocks['link_block'].values[rows[0], end]]}'s side; "
                "remove both blocks of that bond, or none"
            )
        rows, cap = rows[cap > 0], cap[cap > 0]
        atom = blocks["link_atom"].values[rows]
        shift = blocks["link_shift"].values[rows] @ cell
        kept = positions[atom[:, end]]
        lost = positions[atom[:, 1 - end]] + (shift if end == 0 else -shift)
        cap_z.append(cap)
        cap_x.append(cap_positions(kept, lost, blocks["link_cap_length"].values[rows, end]))
    return remake(
        ds,
        np.concatenate([numbers[keep_atom], *cap_z]),
        np.vstack([positions[keep_atom], *cap_x]),
        system=system,
    )


def substitute(
    ds: xr.Dataset, atoms: ArrayLike, symbol: str, *, system: str | None = None
) -> xr.Dataset:
    """Exchange the element of some atoms, where they are.

    Parameters
    ----------
    ds : Dataset of one structure
    atoms : int array
        Which atoms.
    symbol : str
        The new element.
    """
    one_structure(ds)
    if symbol not in atomic_numbers or symbol == "X":
        raise StructureError(f"unknown element {symbol!r}: give a symbol, such as 'Hf'")
    numbers = ds["numbers"].values.copy()
    numbers[np.asarray(atoms, int)] = atomic_numbers[symbol]
    return remake(ds, numbers, ds["positions"].values, system=system)


_CAPS = {"CHO2": "formate", "C2H3O2": "acetate", "H3O2": "OH and water"}


def defect_name(blocks: xr.Dataset) -> str:
    """What stands where blocks are missing: ``formate``, or the formula of another cap; several
    are joined, and "" is none."""
    if blocks.sizes.get("defect", 0) == 0:
        return ""
    found = dict.fromkeys(str(cap) for cap in blocks["defect_cap"].values)
    return "/".join(_CAPS.get(cap, cap) for cap in found)


def defect_atoms(blocks: xr.Dataset) -> np.ndarray:
    """Atoms of the caps that stand where a block is missing: shape (n_defect_atoms,).

    Of a formate or an acetate its carbon, what that is bonded to (both oxygens too) and the
    hydrogens; of an OH beside a water all but the metal that they sit on.
    """
    if blocks.sizes.get("defect", 0) == 0:
        return np.zeros(0, np.int64)
    ends = np.stack([blocks[f"defect_{part}"].values for part in ("atom", "hydrogen", "other")])
    acid = np.array(["C" in str(cap) for cap in blocks["defect_cap"].values])
    bonds = blocks["bond_atom"].values
    hubs = np.concatenate([ends[:2, acid].ravel(), ends[:, ~acid].ravel()])
    found = set(hubs[hubs >= 0].tolist())
    carbon = set(ends[0, acid].tolist())
    # A metal is bonded to several, a hydrogen to one.
    degree = np.bincount(bonds.ravel(), minlength=int(hubs.max()) + 1)
    for pair in bonds.tolist():
        for a, b in (pair, pair[::-1]):
            if a in found and (a in carbon or degree[b] == 1):
                found.add(b)
    return np.array(sorted(found), np.int64)
