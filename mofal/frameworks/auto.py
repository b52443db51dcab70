"""`auto`: one rule for any framework, decided by what holds the metals together.

Units (`rods`) are what the metals make; ligands are what joins units. Where an acid head belongs
to one unit alone, the bond behind it is cut and both ends get H, as `carboxylate` does. A ligand
that still joins units is cut off its metals and keeps the pairs of electrons: a metal in a cluster
has all of its donors, and a donor far from its metal gets a proton where the charge wants one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.frameworks.bonds import Bonds, bonds_of, reverse_edges, structure_arrays
from mofal.frameworks.charges import formula
from mofal.frameworks.components import Components, components
from mofal.frameworks.heads import HEADS, NEUTRAL, Heads, find_heads
from mofal.frameworks.molecule import FORMATE_CAP, H_CAP, LONE_PAIR, NO_CAP, PROTON, Cut, Molecule
from mofal.frameworks.rods import Units, find_units

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Decision:
    """What `auto` found and chose.

    Attributes
    ----------
    heads : Heads
    units : Units
    acid : (half-edge,) bool array
        Bonds from the centre of an acid head to what is behind it that are cut.
    donor : (half-edge,) bool array
        Bonds from a metal to a donor that are cut.
    """

    heads: Heads
    units: Units
    acid: NDArray[np.bool_]
    donor: NDArray[np.bool_]


def decide(m: Molecule) -> Decision:
    """Where `auto` cuts a structure."""
    z, bonds, metal = m.z, m.bonds, m.metal
    heads = find_heads(m)
    units = find_units(m, heads.centre)
    n_edges = len(bonds.i)
    to_metal = ~metal[bonds.i] & metal[bonds.j]
    if not to_metal.any():
        none = np.zeros(n_edges, bool)
        return Decision(heads, units, none, none)
    # Acid heads that one unit holds alone, and which image of it, as seen from their centre.
    single, image, owner = _single_acids(m, heads, units)
    oxalate = heads.centre[bonds.i] & heads.centre[bonds.j]
    behind = single[bonds.i] & (z[bonds.j] != 1) & (z[bonds.j] != 8) & ~metal[bonds.j] & ~oxalate
    back = single[bonds.j] & (z[bonds.i] != 1) & (z[bonds.i] != 8) & ~metal[bonds.i] & ~oxalate
    plain = ~metal[bonds.i] & ~metal[bonds.j]
    fragments = components(bonds.kept(plain & ~behind & ~back))
    whole = components(bonds.kept(plain))
    acids = np.bincount(whole.label[heads.centre], minlength=whole.n) > 0
    hosted = _hosted(m, whole, to_metal, heads.centre, acids)

    # Images of units that each fragment touches: through its donors, and through acid heads that
    # were cut off it.
    touch = np.flatnonzero(to_metal & ~hosted)
    i, j = bonds.i[touch], bonds.j[touch]
    seen = fragments.shift[i] + bonds.shift[touch] - units.shift[j]
    rows = [np.column_stack([fragments.label[i], units.label[j], seen])]
    cut = np.flatnonzero(back)
    i, j = bonds.i[cut], bonds.j[cut]
    seen = fragments.shift[i] + bonds.shift[cut] + image[j]
    rows.append(np.column_stack([fragments.label[i], owner[j], seen]))
    touched = np.unique(np.concatenate(rows), axis=0)
    joins = np.bincount(touched[:, 0], minlength=fragments.n) > 1
    donor_side = to_metal & ~hosted & joins[fragments.label[bonds.i]]
    donor = np.zeros(n_edges, bool)
    if donor_side.any():
        donor[reverse_edges(bonds, np.flatnonzero(donor_side))] = True
    return Decision(heads, units, behind, donor)


def _single_acids(
    m: Molecule, heads: Heads, units: Units
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Acid centres on one unit: which, the unit's image from there (atom, 3), and the unit."""
    bonds: Bonds = m.bonds
    n = len(m.z)
    single = np.zeros(n, bool)
    image = np.zeros((n, 3), np.int64)
    owner = np.full(n, -1, np.int64)
    # Every O has one acid centre at most: the shift from it is that of their bond.
    edge = np.flatnonzero(heads.centre[bonds.i] & (m.z[bonds.j] == 8))
    from_centre = np.zeros((n, 3), np.int64)
    from_centre[bonds.j[edge]] = bonds.shift[edge]
    oxygen = np.zeros(n, bool)
    oxygen[bonds.j[edge]] = True
    hold = np.flatnonzero(oxygen[bonds.i] & m.metal[bonds.j])
    o, metal = bonds.i[hold], bonds.j[hold]
    seen = from_centre[o] + bonds.shift[hold] - units.shift[metal]
    centre = heads.head[o]
    rows = np.unique(np.column_stack([centre, units.label[metal], seen]), axis=0)
    count = np.bincount(rows[:, 0], minlength=n)
    alone = rows[count[rows[:, 0]] == 1]
    single[alone[:, 0]] = True
    owner[alone[:, 0]] = alone[:, 1]
    image[alone[:, 0]] = alone[:, 2:]
    # The two halves of an oxalate are one head: what either of them holds joins.
    pair = heads.centre[bonds.i] & heads.centre[bonds.j]
    single[bonds.i[pair]] = False
    return single, image, owner


def _hosted(
    m: Molecule,
    fragments: Components,
    to_metal: NDArray[np.bool_],
    centre: NDArray[np.bool_],
    acids: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Donor-metal bonds of metals that sit inside one ligand: porphyrins, salens, (half-edge,).

    Either four N of one image of a ligand hold the metal, or nothing else that it has leads to
    another metal, and it holds no acid (an aryl-HgCl, a bipyridine's PdCl2).
    """
    bonds = m.bonds
    out = np.zeros(len(bonds.i), bool)
    edge = np.flatnonzero(to_metal)
    i, j = bonds.i[edge], bonds.j[edge]
    seen = fragments.shift[i] + bonds.shift[edge]
    rows, which, count = np.unique(
        np.column_stack([j, fragments.label[i], seen]),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    which = which.ravel()
    reach = np.bincount(rows[:, 1], minlength=fragments.n)[rows[:, 1]]
    nitrogen = np.bincount(which, weights=m.z[i] == 7, minlength=len(rows))
    leads_on = np.bincount(rows[:, 0], weights=acids[rows[:, 1]] | (reach > 1), minlength=len(m.z))
    alone = acids[rows[:, 1]] & (leads_on[rows[:, 0]] == 1)
    on_acid = np.zeros(len(m.z), bool)
    acid_oxygen = (m.z == 8) & (m.count(centre) > 0)
    on_acid[j[acid_oxygen[i]]] = True
    held = ((count >= 4) & (nitrogen == 4)) | (alone & ~on_acid[rows[:, 0]])
    # Metals that share a donor with another one are no part of a ligand.
    shares = np.zeros(len(m.z), bool)
    shared = ~m.metal & (m.count(m.metal) > 1)
    shares[bonds.j[to_metal & shared[bonds.i]]] = True
    held &= ~shares[rows[:, 0]]
    out[edge[held[which]]] = True
    return out


def cuts_of(m: Molecule) -> list[Cut]:
    """The cuts of the rule `auto`."""
    found = decide(m)
    carbon = m.z[m.bonds.i] == 6
    cuts = [
        Cut(found.acid & carbon, node_cap=FORMATE_CAP, linker_cap=H_CAP),
        Cut(found.acid & ~carbon, node_cap=H_CAP, linker_cap=H_CAP),
    ]
    if found.donor.any():
        neutral = found.heads.order[m.bonds.j] == NEUTRAL
        cuts += [
            Cut(found.donor & ~neutral, node_cap=NO_CAP, linker_cap=PROTON),
            Cut(found.donor & neutral, node_cap=NO_CAP, linker_cap=LONE_PAIR),
        ]
    return cuts


_WHY = (
    "finite: metals that share donors or acid heads",
    "cores that share a donor; with the acid heads between them they are endless",
    "oligomers of oxo and OH; with the O of acids and phenolates they are endless",
    "single metals; with what is between them they are endless",
)


def explain(ds: xr.Dataset, i: int = 0, *, rule: str = "auto") -> list[str]:
    """What `auto` decided on one structure and why, a line each; nothing for other rules."""
    if not is_auto(rule):
        return []
    numbers, positions, cell, pbc = structure_arrays(ds, i)
    m = Molecule(numbers, bonds_of(numbers, positions, cell, pbc))
    return describe(m, decide(m))


def describe(m: Molecule, found: Decision) -> list[str]:
    """The lines of `explain`."""
    out = []
    units = found.units
    metals = np.flatnonzero(m.metal)
    for level in np.unique(units.level[metals]).tolist():
        mine = metals[units.level[metals] == level]
        order = np.argsort(units.label[mine], kind="stable")
        parts = np.split(mine[order], np.flatnonzero(np.diff(units.label[mine][order])) + 1)
        kinds = Counter(formula(Counter(chemical_symbols[k] for k in m.z[p])) for p in parts)
        text = ", ".join(f"{c} x {name}" for name, c in kinds.most_common(4))
        out.append(f"metals: {text} ({_WHY[level]})")
    acids = Counter(chemical_symbols[k] for k in m.z[m.bonds.i[found.acid]])
    for element, count in acids.items():
        out.append(f"cut: {count} bonds behind acid heads ({element}) of one unit; H on both ends")
    edge = np.flatnonzero(found.donor)
    if len(edge):
        heads = HEADS[found.heads.order[m.bonds.j[edge]]]
        ends = [chemical_symbols[k] for k in m.z[m.bonds.i[edge]]]
        donors = [chemical_symbols[k] for k in m.z[m.bonds.j[edge]]]
        names = Counter(f"{a}-{b} ({h})" for a, b, h in zip(ends, donors, heads))
        text = ", ".join(f"{c} {name}" for name, c in names.most_common(6))
        out.append(f"cut: {text}: bonds of ligands that join units; the ligand keeps the pair")
    return out


def is_auto(rule: str) -> bool:
    """Whether `auto` is among the rules that a name joins."""
    return "auto" in [part.strip() for part in rule.split("+")]
