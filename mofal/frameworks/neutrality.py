"""Do the charges of a framework add up, and what is missing where they do not?

Hydrogens that are missing are refused; ions that are missing are a note, where bond valences can
tell the two apart.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.bonds import IS_METAL
from mofal.frameworks.charges import OXIDATION, formula
from mofal.frameworks.valence import BARE_OXYGEN

if TYPE_CHECKING:
    import xarray as xr

# Guests that are anions by themselves: no hydrogen is missing from them.
# fmt: off
_ANIONS = frozenset((
    "NO3", "NO2", "N3", "ClO4", "BF4", "F6P", "F6Sb", "AsF6", "F6Si", "O4S", "O3S", "CF3O3S", "CNS",
    "CN", "F", "Cl", "Br", "I", "I3", "Br3", "CHO2", "C2H3O2", "C2F3O2", "C24H20B",
))
# fmt: on
# Fewer donors than this are an open site: something that sat there was taken away.
_LEAST = {
    40: 7,
    72: 7,
    90: 8,
    92: 6,
    39: 6,
    **dict.fromkeys(range(57, 72), 6),
    **dict.fromkeys((13, 21, 22, 23, 24, 26, 31, 49), 5),
    **dict.fromkeys((12, 25, 27, 30, 48), 4),
    28: 4,
    29: 3,
}  # fmt: skip


def check_charges(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    charge: int,
    *,
    valence: NDArray[np.float64] | None = None,
) -> str:
    """Refuse a cell whose formal charges do not add up.

    Parameters
    ----------
    blocks : Dataset
    numbers : (atom,) int
    charge : int
        What it should be.
    valence : (atom,) float, optional
        Bond-valence sum of each O over its metals (`oxygen_valences`): tells an OH without its H
        from an oxo. With it, ions that are missing are a note and no refusal.

    Returns
    -------
    str
        A note on ions that are missing; empty where all is well.

    Raises
    ------
    StructureError
        The kind of block that is to blame is named, with its charge and how many hydrogens would
        mend it.
    """
    per_block = blocks["charge"].values
    cap_charge = blocks["link_cap_charge"].values
    total = int(per_block.sum())
    if total == charge:
        return ""
    role = blocks["role"].values
    size = blocks["block_n_atoms"].values
    start = np.concatenate([[0], np.cumsum(size)])
    member = blocks["member_atom"].values
    # Blame what is charged though every bond around it was cut evenly; else the nodes.
    even = np.ones(len(role), bool)
    even[blocks["link_block"].values[(cap_charge != 0).any(axis=1)].ravel()] = False
    suspects = np.flatnonzero((per_block != 0) & even)
    if valence is not None:
        suspects = _blamed(blocks, numbers, per_block, total - charge, valence)
    if not len(suspects):
        suspects = np.flatnonzero(per_block != 0)
    if not len(suspects):
        if not total:
            raise StructureError(
                f"every block is neutral, expected a charge of {charge:+d} in all: say "
                "read_framework(path, charge=0) (mofal blocks --charge 0)"
            )
        raise StructureError(
            f"every block is neutral, expected a charge of {charge:+d} in all: an ion is missing, "
            "or say read_framework(path, charge=0) (mofal blocks --charge 0)"
        )
    kinds = Counter(int(blocks["kind"].values[b]) for b in suspects)
    kind, count = kinds.most_common(1)[0]
    block = int(suspects[blocks["kind"].values[suspects] == kind][0])
    q = int(per_block[block])
    what = {"node": "brick", "linker": "linker", "guest": "guest molecule"}[str(role[block])]
    name = str(blocks["formula"].values[block])
    # A charge is named per block only where blocks of this kind explain all of it.
    sum_text = "" if q * count == total else f" ({total:+d} in the cell)"
    inside = member[start[block] : start[block + 1]]
    # What is all carbon and hydrogen is no anion.
    carbanion = q < 0 and role[block] != "node" and set(numbers[inside].tolist()) <= {1, 6}
    lacks = q < 0 and _may_lack_hydrogen(blocks, numbers, inside, str(role[block]), valence)
    ends = int(hydroxides(blocks, numbers)[inside].sum()) if valence is not None else 0
    waters = role[block] == "node" and 0 < -q <= ends and not lacks
    if valence is not None and charge == 0 and not (lacks or waters or carbanion):
        ion = "anions" if total > 0 else "cations"
        return f"{ion} missing: framework {total:+d} ({q:+d} per {what} {name})"
    if lacks or waters:
        what_lacks = f"{-q} of its {ends} OH are water" if waters else "OH, water or NH without H"
        why = (
            f"{-q} hydrogen{'s are' if q < -1 else ' is'} missing on it ({what_lacks}); add them "
            "(mofal blocks --add-hydrogens tries)"
        )
    elif carbanion:
        why = f"{-q} hydrogen{'s are' if q < -1 else ' is'} missing on its carbon"
    elif q > 0:
        why = "an anion is missing, or it has too many hydrogens"
    else:
        why = "a cation is missing (an ammonium or a metal ion in the pores)"
    raise StructureError(
        f"formal charge {q:+d} per {what} {name} of which there are {count}{sum_text}, "
        f"expected {charge} in all: {why}; if the charge is meant, say "
        f"read_framework(path, charge={total}) (mofal blocks --charge {total})"
    )


def _blamed(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    per_block: NDArray[np.integer],
    excess: int,
    valence: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Blocks that explain a charge: those that lack hydrogens, else those of its sign."""
    same = np.sign(per_block) == np.sign(excess)
    if excess < 0:
        atoms = np.flatnonzero(lacking_donors(blocks, numbers, valence))
        of_atom = np.empty(len(numbers), np.int64)
        size = blocks["block_n_atoms"].values
        of_atom[blocks["member_atom"].values] = np.repeat(np.arange(len(size)), size)
        lacks = np.zeros(len(per_block), bool)
        lacks[of_atom[atoms]] = True
        if (same & lacks).any():
            return np.flatnonzero(same & lacks)
    # An ion of its own is what it should be: the framework around it is what is charged.
    framework = same & (blocks["role"].values != "guest")
    nodes = framework & (blocks["role"].values == "node")
    return np.flatnonzero(nodes if nodes.any() else framework if framework.any() else same)


def _may_lack_hydrogen(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    inside: NDArray[np.int64],
    role: str,
    valence: NDArray[np.float64] | None = None,
) -> bool:
    """Whether a negative block has an O or N that a hydrogen could be missing from."""
    z = numbers[inside]
    if role == "guest" and formula(Counter(chemical_symbols[k] for k in z)) in _ANIONS:
        return False
    if valence is not None:
        return bool(lacking_donors(blocks, numbers, valence)[inside].any())
    if role != "node":
        return bool(np.isin(z, [7, 8]).any())
    # Of a node only what is not part of an acid group: O on metals alone, or N.
    return bool(bare_oxygen(blocks, numbers)[inside].any() or np.any(z == 7))


def lacking_donors(
    blocks: xr.Dataset, numbers: NDArray[np.integer], valence: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """O and N that have room for a hydrogen: (atom,) bool.

    O on metals alone that they do not satisfy, O on nothing; without a metal O on one carbon that
    has no other O or N (a phenol, an alcohol), and both O of a free carboxyl; N on one carbon that
    is no nitrile's, and without a metal N between two carbons with four neighbours each.
    """
    pair = blocks["bond_atom"].values
    n = len(numbers)
    both = np.concatenate([pair, pair[:, ::-1]])
    other = numbers[both[:, 1]]
    metal = np.bincount(both[IS_METAL[other], 0], minlength=n)
    carbon = np.bincount(both[other == 6, 0], minlength=n)
    rest = np.bincount(both[:, 0], minlength=n) - metal - carbon
    around = np.bincount(both[:, 0], minlength=n)
    oxygen, nitrogen = numbers == 8, numbers == 7

    def beside(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(both[mask[both[:, 1]], 0], minlength=n)

    bare = oxygen & (carbon + rest == 0) & (valence < BARE_OXYGEN)
    end = oxygen & (metal == 0) & (carbon == 1) & (rest == 0)
    hydroxyl = (numbers == 6) & (beside(oxygen | nitrogen) == 1) & (around <= 4)
    carboxyl = (numbers == 6) & (beside(end) == 2) & (around == 3)
    alone = end & (beside(hydroxyl | carboxyl) == 1)
    sp, sp3 = (numbers == 6) & (around == 2), (numbers == 6) & (around == 4)
    amine = nitrogen & (rest == 0) & (carbon == 1) & (metal <= 1) & (beside(sp) == 0)
    amine |= nitrogen & (rest == 0) & (metal == 0) & (carbon == 2) & (beside(sp3) == 2)
    return bare | alone | amine


def hydroxides(blocks: xr.Dataset, numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """O of OH at the ends of metals, on one metal each: (atom,) bool."""
    pair = blocks["bond_atom"].values
    n = len(numbers)
    both = np.concatenate([pair, pair[:, ::-1]])
    other = numbers[both[:, 1]]
    metal = np.bincount(both[IS_METAL[other], 0], minlength=n)
    hydrogen = np.bincount(both[other == 1, 0], minlength=n)
    around = np.bincount(both[:, 0], minlength=n)
    return (numbers == 8) & (metal == 1) & (hydrogen == 1) & (around == 2)


def stripped(
    blocks: xr.Dataset, numbers: NDArray[np.integer], valence: NDArray[np.float64]
) -> list[str]:
    """Notes on ligands and hydrogens that a program took off the metals."""
    pair = blocks["bond_atom"].values
    n = len(numbers)
    both = np.concatenate([pair, pair[:, ::-1]])
    on_metal = np.bincount(both[IS_METAL[numbers[both[:, 1]]], 0], minlength=n)
    around = np.bincount(both[:, 0], minlength=n)
    out = []
    few = [
        f"{s} {around[numbers == z].min()}-coordinate"
        for s, z, least in sorted((chemical_symbols[z], z, k) for z, k in _LEAST.items())
        if np.any((numbers == z) & (around < least))
    ]
    bare = bare_oxygen(blocks, numbers) & (valence < BARE_OXYGEN)
    total = int(blocks["charge"].values.sum())
    # In a neutral cell of metals with all their donors, O between metals of one state are far from
    # them for other reasons than a lost H.
    states = {len(OXIDATION.get(int(z), (2, 3))) for z in np.unique(numbers) if IS_METAL[z]}
    if bare.any() and (few or total < 0 or max(states, default=1) > 1):
        kinds = Counter(f"mu{k}-O" if k > 1 else "O" for k in on_metal[bare].tolist())
        text = ", ".join(f"{c} {name}" for name, c in sorted(kinds.items()))
        out.append(
            f"hydrogens stripped ({text})" if total < 0 else f"perhaps OH without H ({text})"
        )
    if few:
        out.append(f"OH/H2O stripped ({', '.join(few)})")
    return out


def bare_oxygen(
    blocks: xr.Dataset, numbers: NDArray[np.integer], least: int = 1
) -> NDArray[np.bool_]:
    """O bonded to metals only, `least` of them or more: (atom,) bool."""
    pair = blocks["bond_atom"].values
    n = len(numbers)
    other = np.zeros(n, bool)
    metal = np.zeros(n, np.int64)
    for a, b in ((0, 1), (1, 0)):
        is_metal = IS_METAL[numbers[pair[:, b]]]
        other[pair[~is_metal, a]] = True
        np.add.at(metal, pair[is_metal, a], 1)
    return (numbers == 8) & ~other & (metal >= least)
