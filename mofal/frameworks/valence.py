"""Oxidation states of the metals of a whole cell: bond-valence sums, then the balance.

A block is never made neutral by itself: where its metals can take several states, their bonds say
which one, and the cell as a whole, its ions included, is balanced where the bonds allow it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from mofal.frameworks.bonds import IS_METAL, Bonds
from mofal.frameworks.charges import MIXED, OXIDATION
from mofal.frameworks.kinds import refine

# Length (Å) of a bond of valence one, by metal, state and anion, where a metal has several states:
# Brown and Altermatt, Acta Cryst. B 41, 244 (1985); Brese and O'Keeffe, Acta Cryst. B 47,
# 192 (1991); for N and S Liu and Thorp, Inorg. Chem. 32, 4102 (1993), for Cu(I) Shields et al.,
# Acta Cryst. B 56, 455 (2000); all as in I. D. Brown's accumulated table of 2011. (Packages that
# carry such tables bring far more: pymatgen, bvlain.)
# fmt: off
LENGTHS: dict[str, dict[int, dict[str, float]]] = {
    "Ti": {3: {"O": 1.791, "Cl": 2.17, "N": 1.93}, 4: {"O": 1.815, "Cl": 2.19, "N": 1.93}},
    "V": {3: {"O": 1.743, "N": 1.813, "F": 1.702, "Cl": 2.19, "S": 2.185},
          4: {"O": 1.784, "N": 1.875, "F": 1.70, "Cl": 2.16, "S": 2.226},
          5: {"O": 1.803, "N": 1.86, "F": 1.70, "Cl": 2.16, "S": 2.25}},
    "Cr": {2: {"O": 1.73, "N": 1.83, "F": 1.67, "Cl": 2.09},
           3: {"O": 1.724, "N": 1.81, "F": 1.657, "Cl": 2.08, "S": 2.162}},
    "Mn": {2: {"O": 1.790, "N": 1.849, "F": 1.698, "Cl": 2.133, "S": 2.22},
           3: {"O": 1.760, "N": 1.837, "F": 1.66, "Cl": 2.14}},
    "Fe": {2: {"O": 1.734, "N": 1.769, "F": 1.65, "Cl": 2.06, "S": 2.125},
           3: {"O": 1.759, "N": 1.815, "F": 1.679, "Cl": 2.09, "S": 2.149}},
    "Co": {2: {"O": 1.692, "N": 1.65, "F": 1.64, "Cl": 2.033, "S": 1.94},
           3: {"O": 1.70, "N": 1.75, "F": 1.62, "Cl": 2.05, "S": 2.02}},
    "Cu": {1: {"O": 1.610, "N": 1.520, "F": 1.6, "Cl": 1.858, "Br": 2.03, "I": 2.108, "S": 1.898,
               "P": 1.774, "C": 1.446},
           2: {"O": 1.679, "N": 1.751, "F": 1.594, "Cl": 2.00, "Br": 2.134, "I": 2.36, "S": 2.054,
               "P": 2.05, "C": 1.72}},
    "Mo": {2: {"O": 1.762}, 3: {"O": 1.834, "N": 1.96}, 6: {"O": 1.907, "N": 2.009}},
    "W": {6: {"O": 1.917, "F": 1.83, "Cl": 2.27}},
    "Ru": {3: {"O": 1.77, "N": 1.82, "Cl": 2.25}},
    "Rh": {3: {"O": 1.793, "N": 1.82, "Cl": 2.17}},
    "Sn": {2: {"O": 1.984, "N": 2.03, "F": 1.925, "Cl": 2.36},
           4: {"O": 1.905, "N": 2.03, "F": 1.843, "Cl": 2.276}},
    "Ce": {3: {"O": 2.151, "N": 2.254}, 4: {"O": 2.028, "N": 2.179}},
    "Pr": {3: {"O": 2.138, "N": 2.215}},
    "Sm": {2: {"O": 2.116, "N": 2.267}, 3: {"O": 2.088, "N": 2.171}},
    "Eu": {2: {"O": 2.147, "N": 2.16}, 3: {"O": 2.074, "N": 2.161}},
    "Tb": {3: {"O": 2.032, "N": 2.130}},
    "Yb": {2: {"O": 1.989, "N": 2.092}, 3: {"O": 1.965, "N": 2.064}},
    "Hg": {1: {"O": 1.90, "Cl": 2.28}, 2: {"O": 1.972, "N": 2.02, "S": 2.308, "Cl": 2.25}},
    "Pb": {2: {"O": 2.112, "N": 2.18, "S": 2.541, "Cl": 2.53}, 4: {"O": 2.042, "Cl": 2.43}},
}
# fmt: on
# How much longer such a bond is to other anions than to O, on average over that table.
_LONGER = {
    "N": 0.06,
    "F": -0.10,
    "Cl": 0.35,
    "Br": 0.50,
    "I": 0.72,
    "S": 0.40,
    "P": 0.45,
    "C": 0.05,
}
_SOFTNESS = 0.37  # Å, the same sources
# What a state costs per metal: half the square of how far the sum of its bonds is from it, in units
# of this, and a little where it is not the usual one; states that cost this much more than the best
# are none. What the cell may pay to be neutral, per metal whose state changes: Cu(I) for Cu(II) or
# an Fe(II) in Fe3O cost 0 to 2; a Co(III) or Tb(IV) with the bonds of Co(II) or Tb(III) 3.3 to 5.
_WIDTH = 0.35
_UNUSUAL = 0.6
_TOO_MUCH = 6.0
_AFFORDABLE = 3.0


# For what an O is bonded to, one length per metal will do: size r (Å) and softness c of an element,
# O'Keeffe and Brese, J. Am. Chem. Soc. 113, 3226 (1991), table I. A bond of valence one has
# r_i + r_j - r_i r_j (sqrt(c_i) - sqrt(c_j))^2 / (c_i r_i + c_j r_j).
# fmt: off
SIZES: dict[str, tuple[float, float]] = {
    "Ag": (1.12, 1.42), "Al": (1.13, 1.47), "As": (1.21, 2.23), "B": (0.79, 1.6),
    "Ba": (1.88, 0.97), "Be": (0.81, 1.47), "Bi": (1.54, 1.67), "Br": (1.13, 2.58), "C": (0.78, 2),
    "Ca": (1.5, 1.04), "Cd": (1.28, 1.46), "Ce": (1.68, 1.08), "Cl": (0.99, 2.74),
    "Co": (1.09, 1.7), "Cr": (1.16, 1.56), "Cs": (2.05, 0.86), "Cu": (0.87, 1.75),
    "Dy": (1.54, 1.1), "Er": (1.51, 1.11), "Eu": (1.62, 1.01), "F": (0.58, 3.98),
    "Fe": (1.16, 1.64), "Ga": (1.14, 1.82), "Gd": (1.58, 1.11), "Ge": (1.21, 1.51),
    "H": (0.38, 0.89), "Hf": (1.42, 1.23), "Hg": (1.32, 1.44), "Ho": (1.53, 1.1),
    "I": (1.33, 2.38), "In": (1.34, 1.49), "Ir": (1.37, 1.55), "K": (1.73, 0.91),
    "La": (1.71, 1.08), "Li": (1, 0.97), "Lu": (1.47, 1.14), "Mg": (1.21, 1.23), "Mn": (1.17, 1.6),
    "Mo": (1.37, 1.3), "N": (0.72, 2.61), "Na": (1.36, 1.01), "Nb": (1.4, 1.23),
    "Nd": (1.64, 1.07), "Ni": (1.04, 1.75), "O": (0.63, 3.15), "P": (1.09, 1.96),
    "Pb": (1.53, 1.55), "Pd": (1.11, 1.35), "Pr": (1.66, 1.07), "Rb": (1.84, 0.89),
    "Re": (1.37, 1.46), "Rh": (1.18, 1.54), "Ru": (1.21, 1.42), "S": (1.03, 2.35),
    "Sb": (1.41, 1.72), "Sc": (1.34, 1.2), "Se": (1.18, 2.51), "Si": (1.12, 1.58),
    "Sm": (1.61, 1.07), "Sn": (1.37, 1.72), "Sr": (1.66, 0.99), "Ta": (1.39, 1.33),
    "Tb": (1.56, 1.1), "Te": (1.4, 2.72), "Th": (1.7, 1.11), "Ti": (1.27, 1.32),
    "Tl": (1.62, 1.44), "Tm": (1.5, 1.11), "U": (1.59, 1.22), "V": (1.21, 1.45), "W": (1.38, 1.4),
    "Y": (1.52, 1.11), "Yb": (1.49, 1.06), "Zn": (1.07, 1.66), "Zr": (1.43, 1.22),
}
# fmt: on
# A bare O whose metals give it less than this is an OH or a water that lost its hydrogens.
BARE_OXYGEN = 1.45


@dataclass(frozen=True)
class States:
    """Oxidation states of a cell.

    Attributes
    ----------
    state : (atom,) int array
        Of each metal; 0 for other atoms.
    mixed : list of str
        Elements that hold two states.
    left : int
        Charge of the cell that stays: of ions that are not in the file.
    """

    state: NDArray[np.int64]
    mixed: list[str]
    left: int


def bond_valences(
    z: NDArray[np.integer], bonds: Bonds, length: NDArray[np.float64], atoms: NDArray[np.integer]
) -> dict[int, float]:
    """Mean bond-valence sum of some metals of one element, by the state that it is taken for.

    Parameters
    ----------
    z : (atom,) int
    bonds : Bonds
    length : (half-edge,) float, Å
    atoms : (n,) int
    """
    table = LENGTHS.get(chemical_symbols[int(z[atoms[0]])], {})
    picked = np.zeros(len(z), bool)
    picked[atoms] = True
    edge = np.flatnonzero(picked[bonds.i])
    out = {}
    for state, by_anion in table.items():
        one = np.zeros(119)
        for anion, longer in {"O": 0.0, **_LONGER}.items():
            one[atomic_numbers[anion]] = by_anion.get(anion, by_anion["O"] + longer)
        known = one[z[bonds.j[edge]]]
        value = np.where(known > 0, np.exp((known - length[edge]) / _SOFTNESS), 0.0)
        out[state] = float(value.sum() / len(atoms))
    return out


def oxygen_valences(
    z: NDArray[np.integer], bonds: Bonds, length: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Bond-valence sum of each O over its metals; NaN for other atoms: (atom,)."""
    one = np.full(119, np.nan)
    size, soft = SIZES["O"]
    for symbol, (r, c) in SIZES.items():
        off = r * size * (c**0.5 - soft**0.5) ** 2 / (c * r + soft * size)
        one[atomic_numbers[symbol]] = r + size - off
    for symbol, by_state in LENGTHS.items():
        one[atomic_numbers[symbol]] = max(v["O"] for v in by_state.values())
    edge = np.flatnonzero((z[bonds.i] == 8) & IS_METAL[z[bonds.j]])
    value = np.exp((one[z[bonds.j[edge]]] - length[edge]) / _SOFTNESS)
    out = np.bincount(bonds.i[edge], weights=value, minlength=len(z))
    return np.where(z == 8, out, np.nan)


def cell_states(
    z: NDArray[np.integer],
    bonds: Bonds,
    length: NDArray[np.float64] | None,
    ligands: int,
    charge: int = 0,
) -> States:
    """Oxidation states of all metals of a cell.

    Parameters
    ----------
    z : (atom,) int
    bonds : Bonds
    length : (half-edge,) float, Å, or None
        Without lengths the usual states count alone.
    ligands : int
        Formal charge of everything but the metals.
    charge : int
        Charge that the cell should have.
    """
    n = len(z)
    metal = np.flatnonzero(IS_METAL[z])
    hashes = refine(z, bonds, rounds=4)[metal]
    _, group = np.unique(hashes, return_inverse=True)
    groups = [metal[group == g] for g in range(int(group.max(initial=-1)) + 1)]
    # Cheapest way to each sum of states, group by group.
    ways: dict[int, tuple[float, list[tuple[int, int, int]]]] = {0: (0.0, [])}
    for members in groups:
        element = int(z[members[0]])
        sums = {}
        if length is not None and len(OXIDATION.get(element, ())) > 1:
            sums = bond_valences(z, bonds, length, members)
        options = _options(element, len(members), sums)
        grown: dict[int, tuple[float, list[tuple[int, int, int]]]] = {}
        for total, (cost, chosen) in ways.items():
            for more, state, other, k in options:
                value = total + state * (len(members) - k) + other * k
                if value not in grown or cost + more < grown[value][0] - 1e-9:
                    grown[value] = (cost + more, [*chosen, (state, other, k)])
        ways = grown
    cheapest = min(ways, key=lambda total: ways[total][0])
    wanted = charge - ligands
    if wanted in ways:
        (price, chosen), (least, usual) = ways[wanted], ways[cheapest]
        changed = sum(_changes(len(m), a, b) for m, a, b in zip(groups, chosen, usual))
        cheapest = wanted if price - least <= _AFFORDABLE * changed else cheapest
    states = np.zeros(n, np.int64)
    held: set[tuple[int, int]] = set()
    for members, (first, second, k) in zip(groups, ways[cheapest][1]):
        if second < first:
            first, second, k = second, first, len(members) - k
        order = np.arange(len(members))
        if 0 < k < len(members) and length is not None:
            # Of a kind of site with two states, the tighter bound ones have the higher.
            each = [bond_valences(z, bonds, length, members[[a]]).get(first, 0.0) for a in order]
            order = np.argsort(each, kind="stable")
        states[members[order]] = np.where(np.arange(len(members)) < len(members) - k, first, second)
        held.update((int(z[members[0]]), state) for state in states[members].tolist())
    mixed = {element for element, count in Counter(e for e, _ in held).items() if count > 1}
    left = int(cheapest + ligands - charge)
    return States(states, sorted(chemical_symbols[k] for k in mixed), left)


def _changes(count: int, a: tuple[int, int, int], b: tuple[int, int, int]) -> int:
    """How many of one kind of site differ between two choices of (state, other state, how many)."""
    one, two = (Counter([s] * (count - k) + [t] * k) for s, t, k in (a, b))
    return (one - two).total()


def _options(z: int, count: int, sums: dict[int, float]) -> list[tuple[float, int, int, int]]:
    """Cost, state, other state, and how many have the other one, for one kind of site."""
    states = OXIDATION.get(z, (2, 3))
    cost = {}
    for rank, state in enumerate(states):
        # A state that the table lacks is measured with the bonds of the nearest one.
        off = 0.5
        if sums:
            near = sorted((abs(known - state), known) for known in sums)[0][1]
            off = ((sums[near] - state) / _WIDTH) ** 2 / 2
        cost[state] = min(off, 50.0) + (_UNUSUAL if rank else 0.0)
    best = min(cost.values())
    states = tuple(s for s in states if cost[s] <= best + _TOO_MUCH)
    out = [(count * cost[s], s, s, 0) for s in states]
    if z in MIXED and count > 1:
        for first, second in pairwise(states):
            for k in range(1, count):
                # Two states on one kind of site: half a unit off for both is what is expected.
                out.append(((count - k) * cost[first] + k * cost[second] + 1.0, first, second, k))
    return out
