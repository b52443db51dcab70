"""Is this structure what it says? Checks on one framework, each with one clear refusal.

Nothing is repaired silently: a file with a missing hydrogen, two atoms in one place or half an atom
is refused by name, because quantum mechanics would give a number for it all the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.auto import is_auto
from mofal.frameworks.blocks import blocks_from_bonds
from mofal.frameworks.bonds import (
    IS_METAL,
    Bonds,
    bond_lengths,
    bonds_of,
    complete_cell,
    free_origin,
    structure_arrays,
)
from mofal.frameworks.neutrality import bare_oxygen, check_charges, stripped
from mofal.frameworks.partition import partition
from mofal.frameworks.rules import rule_names
from mofal.frameworks.valence import oxygen_valences

if TYPE_CHECKING:
    import xarray as xr

# Below this fraction of the sum of covalent radii two atoms cannot both be there.
_OVERLAP = 0.62
# Å: a bond of a carbon that is shorter than this is a double, or a triple bond.
_DOUBLE = {6: 1.41, 7: 1.36, 8: 1.30}
_TRIPLE = {6: 1.25, 7: 1.20}
# More neighbours that are no metals than this are two alternatives in one place (PO8 of a Keggin
# ion, six C on one N).
_MOST = {"N": 4, "O": 3, "F": 2, "Si": 6, "P": 6, "S": 6, "Cl": 4, "Br": 4}
# Å: O2 is 1.21, a superoxide 1.28, a peroxide 1.45; cyanide 1.15, C2 of an acetylide 1.20.
_SHORTEST_OO = 1.15
_LONGEST_CYANIDE = 1.30
# Å between H on two N: the two of a porphyrin lie 2.3 apart, its half ones 1.6. Halves on O lie in
# one hydrogen bond (O to O 2.4 to 2.8 Å, 0.6 to 0.9 apart); H of an OH and a water may come nearer
# than 1.7 where a program has placed them.
_NEAREST_ON_N = 1.7
_NEAREST_ACIDIC = 1.1
_FAR = 1e6  # Å: further out no digit is left for a bond length
_VOLUME_PER_ATOM = (4.0, 400.0)  # Å^3: denser than diamond; emptier than any known framework


def _name(numbers: NDArray[np.integer], k: int) -> str:
    return f"{chemical_symbols[int(numbers[k])]} (atom {int(k)})"


def check_cell(
    positions: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> None:
    """Refuse what has no usable cell.

    Raises
    ------
    StructureError
        No cell, no volume, not periodic, or a volume that no framework of so many atoms has.
    """
    length = np.linalg.norm(cell, axis=1)
    if not np.any(pbc):
        if np.all(length > 1e-6):
            raise StructureError(
                'a cell is given, but the structure is not periodic (pbc="F F F"); write '
                'pbc="T T T" into the file'
            )
        raise StructureError(
            "no cell is given: a framework is periodic; expected lattice vectors, e.g. "
            'Lattice="..." in extended XYZ'
        )
    far = np.flatnonzero((np.abs(positions) > _FAR).any(axis=1))
    if len(far):
        raise StructureError(
            f"atom {int(far[0])} lies at {', '.join(f'{v:.3g}' for v in positions[far[0]])} Å: "
            "too far out for a bond to be told; correct it, or wrap the structure into its cell"
        )
    complete_cell(positions, cell, pbc)
    if np.all(pbc):
        volume = abs(float(np.linalg.det(cell))) / len(positions)
        low, high = _VOLUME_PER_ATOM
        if volume < low:
            raise StructureError(
                f"{volume:.2f} Å^3 per atom: no solid is as dense; is the cell in nm or in units "
                "of something else, or are atoms there twice?"
            )
        if volume > high:
            raise StructureError(
                f"{volume:.0f} Å^3 per atom: no framework is as empty; is the cell in pm, or are "
                "atoms missing?"
            )


def check_overlaps(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> None:
    """Refuse two atoms in one place.

    Raises
    ------
    StructureError
        The closest such pair is named, and what usually is behind it.
    """
    d, i, j = _overlapping(numbers, positions, cell, pbc)
    if not len(d):
        return
    worst = int(np.argmin(d))
    count = len(d) // 2
    a, b = int(i[worst]), int(j[worst])
    where = f"{_name(numbers, a)} and {_name(numbers, b)} are {d[worst]:.2f} Å apart"
    if count > len(numbers) // 2 and np.abs(positions).max() < 2.0:
        why = "positions look like fractions: multiply them by the cell"
    elif d[worst] < 0.05 and numbers[a] == numbers[b]:
        why = "the atom is there twice: remove one"
    else:
        why = "two alternatives of a disordered site, perhaps: keep one of them"
        # Who would keep one only to be told then that hydrogens are missing is told both at once.
        lacking = _lacking_with_one_of_each(numbers, positions, cell, pbc, np.column_stack([i, j]))
        if lacking:
            raise StructureError(f"{lacking}; besides, {where} ({count} such pairs): {why}")
    raise StructureError(f"{where} ({count} such pairs); {why}")


def _lacking_with_one_of_each(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    pairs: NDArray[np.integer],
) -> str:
    """What `check_valences` says of missing hydrogens when one atom of each pair is left."""
    keep = np.ones(len(numbers), bool)
    for first, second in pairs[pairs[:, 0] < pairs[:, 1]].tolist():
        keep[second] &= not keep[first]
    left, x = numbers[keep], positions[keep]
    try:
        check_valences(left, x, cell, pbc, bonds_of(left, x, cell, pbc))
    except StructureError as error:
        said = re.sub(
            r"\(atom (\d+)\)", lambda m: f"(atom {np.flatnonzero(keep)[int(m[1])]})", str(error)
        )
        return said if "hydrogens are missing" in said else ""
    return ""


def _overlapping(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.integer], NDArray[np.integer]]:
    """Pairs that cannot both be there, in both directions: distance (Å), first atom, second."""
    lattice = complete_cell(positions, cell, pbc)
    limit = _OVERLAP * (covalent_radii[:119][:, None] + covalent_radii[:119][None])
    present = np.unique(numbers)
    cut = {(int(a), int(b)): float(limit[a, b]) for k, a in enumerate(present) for b in present[k:]}
    i, j, d = neighbour_list(
        "ijd",
        positions=positions - free_origin(positions, lattice, pbc),
        cell=lattice,
        pbc=pbc,
        numbers=numbers,
        cutoff=cut,
    )
    return d, i, j


def check_valences(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    bonds: Bonds,
) -> None:
    """Refuse atoms with too many neighbours, carbon with too few, and hydrogen without any.

    Raises
    ------
    StructureError
        The first atom of each kind of fault is named.
    """
    n = len(numbers)
    metal = IS_METAL[numbers]
    degree = bonds.degree
    organic = np.bincount(bonds.i[~metal[bonds.j]], minlength=n)
    lost = np.flatnonzero((numbers == 1) & (degree == 0))
    if len(lost):
        raise StructureError(
            f"{_name(numbers, lost[0])} is bonded to nothing ({len(lost)} such atoms): move or "
            "remove it"
        )
    # Boron clusters (carboranes) are the exception to four bonds.
    has_boron = np.bincount(bonds.i[numbers[bonds.j] == 5], minlength=n) > 0
    crowded = np.flatnonzero((numbers == 6) & (organic > 4) & ~has_boron)
    if len(crowded):
        raise StructureError(
            f"{_name(numbers, crowded[0])} has {int(organic[crowded[0]])} bonds ({len(crowded)} "
            "such atoms): two orientations of a disordered ring in one place, or a cell that is "
            "too small"
        )
    bad = lacking_carbon(numbers, positions, cell, bonds)
    if bad:
        k = bad[0]
        open_axes = [str(axis) for axis in np.flatnonzero(~np.asarray(pbc, bool))]
        where = (
            f"; or is it periodic along cell vector {' and '.join(open_axes)} too? pbc says no"
            if open_axes
            else ""
        )
        neighbours = f"{int(organic[k])} neighbour{'' if organic[k] == 1 else 's'}"
        raise StructureError(
            f"{_name(numbers, k)} has {neighbours} and lacks one ({len(bad)} such "
            f"atoms): hydrogens are missing; add them to the file (mofal blocks --add-hydrogens "
            f"tries){where}"
        )
    _check_alternatives(numbers, bonds, bond_lengths(bonds, positions, cell), organic, ~has_boron)
    _check_half_hydrogens(numbers, positions, cell, pbc, bonds)


def _check_alternatives(
    numbers: NDArray[np.integer],
    bonds: Bonds,
    length: NDArray[np.float64],
    organic: NDArray[np.int64],
    ordinary: NDArray[np.bool_],
) -> None:
    """Refuse disorder that no two atoms in one place give away."""
    for symbol, most in _MOST.items():
        many = np.flatnonzero((numbers == atomic_numbers[symbol]) & (organic > most) & ordinary)
        if len(many):
            raise StructureError(
                f"{_name(numbers, many[0])} has {int(organic[many[0]])} bonds ({len(many)} such "
                "atoms): two alternatives of a disordered group in one place; keep one of them"
            )
    first, second = numbers[bonds.i], numbers[bonds.j]
    on_metal = bonds.degree > organic
    short = (first == 8) & (second == 8) & (length < _SHORTEST_OO)
    # Ligands that touch are no Cl2 and no F2.
    touching = np.isin(first, [9, 17]) & (first == second) & on_metal[bonds.i]
    alone = (organic == 1) & on_metal
    # A cyanide that lies on a centre of inversion is C2 or N2 in the file.
    cyanide = (first == 6) & (second == 6) & (length < _LONGEST_CYANIDE)
    cyanide &= alone[bonds.i] & alone[bonds.j]
    for pairs, why in (
        (short, "two alternatives of a disordered site, perhaps: keep one of them"),
        (touching, "two alternatives of a disordered site, perhaps: keep one of them"),
        (cyanide, "a cyanide, perhaps: write one of the two as N"),
    ):
        edge = np.flatnonzero(pairs)
        if len(edge):
            k = edge[int(np.argmin(length[edge]))]
            a, b = (_name(numbers, int(v[k])) for v in (bonds.i, bonds.j))
            where = f"{a} and {b} are {length[k]:.2f} Å apart"
            where += " with metals on both" if pairs is cyanide else ""
            raise StructureError(f"{where} ({(len(edge) + 1) // 2} such pairs): {why}")


def _check_half_hydrogens(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    bonds: Bonds,
) -> None:
    """Refuse four hydrogens in a porphyrin, and two between donors that share one."""
    held = (numbers[bonds.i] == 1) & np.isin(numbers[bonds.j], [7, 8])
    hydrogen, owner = bonds.i[held], bonds.j[held]
    if len(hydrogen) < 2:
        return
    lattice = complete_cell(positions, cell, pbc)
    x = (positions - free_origin(positions, lattice, pbc))[hydrogen]
    i, j, d = neighbour_list("ijd", positions=x, cell=lattice, pbc=pbc, cutoff=_NEAREST_ON_N)
    nitrogen = numbers[owner] == 7
    apart = (owner[i] != owner[j]) & ((d < _NEAREST_ACIDIC) | (nitrogen[i] & nitrogen[j]))
    if apart.any():
        i, j, d = i[apart], j[apart], d[apart]
        k = int(np.argmin(d))
        a, b = (_name(numbers, int(hydrogen[v[k]])) for v in (i, j))
        raise StructureError(
            f"{a} and {b}, on two atoms, are {d[k]:.2f} Å apart ({len(d) // 2} such pairs): halves "
            "of a disordered hydrogen, perhaps: keep one of them"
        )


def lacking_carbon(
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    bonds: Bonds,
) -> list[int]:
    """Carbon that lacks a neighbour, by the angles and lengths of its bonds."""
    n = len(numbers)
    metal = IS_METAL[numbers]
    organic = np.bincount(bonds.i[~metal[bonds.j]], minlength=n)
    has_boron = np.bincount(bonds.i[numbers[bonds.j] == 5], minlength=n) > 0
    vector = positions[bonds.j] + bonds.shift @ cell - positions[bonds.i]
    length = np.linalg.norm(vector, axis=1)
    vector /= length[:, None]
    carbon = (numbers == 6) & (bonds.degree == organic) & ~has_boron
    start = bonds.indptr
    far = np.split(length, start[1:-1])
    bad: list[int] = []
    for k in np.flatnonzero(carbon & (organic <= 3)).tolist():
        own = vector[start[k] : start[k + 1]]
        near = numbers[bonds.j[start[k] : start[k + 1]]]
        if organic[k] == 3:
            # Flat is sp2; well out of the plane of its neighbours, a fourth one is missing, unless
            # a double bond says that the geometry is only distorted.
            bent = abs(np.linalg.det(own)) > 0.6
            bad += [k] if bent and not _shorter(near, far[k], _DOUBLE) else []
        elif organic[k] == 2:
            # Straight is sp (alkyne, nitrile, CO2); bent lacks a hydrogen.
            bent = own[0] @ own[1] > -0.85
            triple = own[0] @ own[1] < -0.5 and _shorter(near, far[k], _TRIPLE)
            bad += [k] if bent and not triple else []
        elif organic[k] == 1:
            bad += [k] if near[0] not in (7, 8) else []
        else:
            bad.append(k)
    return bad


def _shorter(
    near: NDArray[np.integer], length: NDArray[np.float64], limit: dict[int, float]
) -> bool:
    """Whether one of the bonds of a carbon is shorter than a limit by element, Å."""
    return any(d < limit.get(int(z), 0.0) for z, d in zip(near, length))


def notes_on(blocks: xr.Dataset, numbers: NDArray[np.integer]) -> list[str]:
    """What a chemist would say about a sound framework: names, in a fixed order."""
    out = []
    size = blocks["block_n_atoms"].values
    start = np.concatenate([[0], np.cumsum(size)])
    member = blocks["member_atom"].values
    role = blocks["role"].values
    degree = _bridging_oxygen(blocks, numbers)
    _, first = np.unique(blocks["kind"].values, return_index=True)
    for block in first.tolist():
        atoms = member[start[block] : start[block + 1]]
        z = numbers[atoms]
        metals = z[IS_METAL[z]]
        bridges = atoms[degree[atoms]]
        if len(metals) == 6 and set(metals.tolist()) <= {40, 72, 58, 90, 92} and len(bridges) == 6:
            out.append("dehydroxylated")
            break
    n_nets, dimension = blocks.attrs["n_nets"], blocks.attrs["net_dimension"]
    if n_nets > 1 or dimension < 3:
        shape = {3: "interpenetrated net", 2: "layer", 1: "chain", 0: "molecule"}[dimension]
        out.append(f"{n_nets} {shape}{'s' if n_nets > 1 else ''}")
    guests = int((role == "guest").sum())
    if guests:
        out.append(f"{guests} guest molecules")
    if bool(blocks["unusual_state"].values.any()):
        out.append("unusual oxidation states")
    if bool(blocks["open_shell"].values.any()):
        out.append("open d or f shells")
    return out


def _bridging_oxygen(blocks: xr.Dataset, numbers: NDArray[np.integer]) -> NDArray[np.bool_]:
    """O bonded to two or more metals only (mu-O): (atom,) bool."""
    return bare_oxygen(blocks, numbers, 2)


def check_structure(
    ds: xr.Dataset, i: int = 0, *, rule: str = "auto", charge: int | None = 0
) -> xr.Dataset:
    """Check one framework and find its blocks.

    Parameters
    ----------
    ds : Dataset of structures
    i : int
        Which structure.
    rule : str
        Rule that cuts blocks.
    charge : int or None
        Formal charge that the cell should have; None: do not look at it.

    Returns
    -------
    Dataset
        Its blocks, with the attribute ``notes``: what a chemist would say of it
        (``"dehydroxylated"``, ``"2 interpenetrated nets"``, ...), joined by commas.

    Raises
    ------
    StructureError
        The first thing that is wrong, by name.
    """
    numbers, positions, cell, pbc = structure_arrays(ds, i)
    if not len(numbers):
        raise StructureError("there are no atoms")
    check_cell(positions, cell, pbc)
    check_overlaps(numbers, positions, cell, pbc)
    if not IS_METAL[numbers].any():
        raise StructureError(
            "there is no metal in it: not a metal-organic framework; expected metal nodes"
        )
    if not np.any(numbers == 6):
        raise StructureError(
            "there is no carbon in it: not a metal-organic framework; expected organic linkers"
        )
    bonds = bonds_of(numbers, positions, cell, pbc)
    check_valences(numbers, positions, cell, pbc, bonds)
    length = bond_lengths(bonds, positions, cell)
    blocks = blocks_from_bonds(
        numbers, bonds, rule=rule, system=str(ds["system"].values[i]), length=length
    )
    if not blocks.sizes["link"]:
        raise StructureError(_nothing_to_cut(numbers, bonds, rule))
    valence = oxygen_valences(numbers, bonds, length) if is_auto(rule) else None
    notes = notes_on(blocks, numbers)
    if charge is not None:
        said = check_charges(blocks, numbers, charge, valence=valence)
        notes += [said] if said else []
    if valence is not None and "dehydroxylated" not in notes:
        notes += stripped(blocks, numbers, valence)
    if valence is not None:
        mixed = blocks.attrs.get("mixed_valence", "")
        notes += [f"mixed valence ({mixed})"] if mixed else []
    blocks.attrs["notes"] = ", ".join(notes)
    return blocks


def _nothing_to_cut(numbers: NDArray[np.integer], bonds: Bonds, rule: str) -> str:
    for name in [*(n for n in rule_names() if n != "auto"), "auto"]:
        cuts, _, _ = partition(numbers, bonds, name)
        if len(cuts.edge):
            return (
                f"rule {rule!r} cuts no bond of this structure, but another one does: "
                f"say rule={name!r}"
            )
    return (
        f"rule {rule!r} cuts no bond of this structure, and no other registered rule does: it is "
        "no framework of nodes and linkers, or needs mofal.frameworks.register_rule"
    )
