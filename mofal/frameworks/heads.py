"""Heads: the groups by which a ligand holds its metals, with their charge and how they end.

A *head* is a carboxylate, phosphonate or sulfonate, an azole ring, a phenolate, an oxo, OH or
water, a halide, a pyridine: what a metal holds as one thing. Where a cluster leaves a metal out,
its head gets a proton, if any is wanted; an acid head that lost all its metals is cut off instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.frameworks.molecule import Molecule, azole_nitrogens

# In the order in which heads take the protons that a cluster wants (after those that lost every
# metal); 0 takes none: it is neutral.
NEUTRAL, OXIDE, PHENOLATE, AZOLE, ACID, OTHER = range(6)
HEADS = np.array(["neutral", "oxide", "phenolate", "azole", "acid", "other"])


@dataclass(frozen=True)
class Heads:
    """Heads of one structure, by their donor atoms.

    Attributes
    ----------
    order : (atom,) int8 array
        What a donor belongs to: `OXIDE`, `PHENOLATE`, `AZOLE`, `ACID`, `OTHER`; `NEUTRAL` for what
        wants no proton, and for atoms on no metal.
    head : (atom,) int array
        A number that the donors of one head share: the centre of an acid, the first N of a ring,
        else the donor itself. Atoms of no head have their own.
    charge : (atom,) int array
        Charge of the head, at the atom that numbers it: the most protons that it takes.
    centre : (atom,) bool array
        C, P or S of acid heads on metals.
    """

    order: NDArray[np.int8]
    head: NDArray[np.int64]
    charge: NDArray[np.int64]
    centre: NDArray[np.bool_]


def acid_centres(m: Molecule) -> NDArray[np.bool_]:
    """C of CO2, P of PO3, S of SO3 with an O on a metal and no ester: (atom,)."""
    oxygen = m.z == 8
    on_metal = oxygen & (m.count(m.metal) > 0)
    ester = oxygen & (m.count((m.z != 1) & ~m.metal) > 1)
    out = np.zeros(len(m.z), bool)
    n_oxygen = m.count(oxygen)
    for element, oxygens in ((6, 2), (15, 3), (16, 3)):
        out |= (m.z == element) & (n_oxygen == oxygens) & (m.degree == oxygens + 1)
    return out & (m.count(on_metal) > 0) & (m.count(ester) == 0)


def find_heads(m: Molecule) -> Heads:
    """Heads of a structure."""
    z, bonds, metal = m.z, m.bonds, m.metal
    n = len(z)
    donor = ~metal & (m.count(metal) > 0)
    organic = m.count(~metal & (z != 1))
    hydrogens = m.count(z == 1)
    head = np.arange(n)
    order = np.zeros(n, np.int8)
    charge = np.zeros(n, np.int64)

    oxide = donor & (z == 8) & (organic == 0) & (hydrogens < 2)
    halide = donor & np.isin(z, [9, 17, 35, 53]) & (organic == 0)
    order[oxide] = OXIDE
    charge[oxide] = -2 + hydrogens[oxide]
    order[halide] = OTHER
    charge[halide] = -1
    sulfide = donor & np.isin(z, [16, 34]) & (organic == 0) & (hydrogens < 2)
    order[sulfide] = OTHER
    charge[sulfide] = -2 + hydrogens[sulfide]
    # A chalcogen at the end of a chain: phenolate, alkoxide, thiolate; a carbonyl is told from
    # them by the charge of the whole ligand (no proton is put where none is wanted).
    chain = donor & np.isin(z, [8, 16, 34]) & (organic == 1) & (hydrogens == 0)
    order[chain] = PHENOLATE
    charge[chain] = -1
    complex_anion = donor & np.isin(z, [9, 17, 35, 53]) & (organic == 1)
    order[complex_anion] = OTHER
    charge[complex_anion] = -1
    carbon = donor & (z == 6) & (m.degree - m.count(metal) == 1) & (m.count(z == 7) == 1)
    order[carbon] = OTHER
    charge[carbon] = -1

    if (donor & (z == 7)).any():
        ring = azole_nitrogens(m)
        _azoles(m, ring, donor, head, order, charge)
    centre = acid_centres(m)
    edge = np.flatnonzero(centre[bonds.i] & (z[bonds.j] == 8))
    head[bonds.j[edge]] = bonds.i[edge]
    order[bonds.j[edge[donor[bonds.j[edge]]]]] = ACID
    bare = np.bincount(bonds.i[edge[hydrogens[bonds.j[edge]] == 0]], minlength=n)
    held = np.flatnonzero(centre)
    charge[held] = -(bare[held] - np.where(z[held] == 16, 2, 1))
    # Acid O, and the two kinds of an X-O-X chain, are no heads of their own.
    charge[bonds.j[edge]] = 0
    return Heads(order, head, charge, centre)


def _azoles(
    m: Molecule,
    ring: NDArray[np.bool_],
    donor: NDArray[np.bool_],
    head: NDArray[np.int64],
    order: NDArray[np.int8],
    charge: NDArray[np.int64],
) -> None:
    """Number the rings: N that are bonded, or that one C joins, share theirs."""
    n = len(m.z)
    bonds = m.bonds
    carbon = (m.z == 6) & (m.count(ring) > 1)
    inside = ring | carbon
    edge = inside[bonds.i] & inside[bonds.j] & (ring[bonds.i] | ring[bonds.j])
    graph = sp.csr_array(
        (np.ones(int(edge.sum()), np.int8), (bonds.i[edge], bonds.j[edge])), shape=(n, n)
    )
    _, label = csgraph.connected_components(graph, directed=False)
    nitrogen = np.flatnonzero(ring)
    # A ring with N-H or N-R is no anion: every N of it has its three bonds without a metal.
    organic = m.degree - m.count(m.metal)
    taken = np.zeros(label.max() + 1, bool)
    taken[label[nitrogen[organic[nitrogen] > 2]]] = True
    first = np.full(label.max() + 1, n)
    np.minimum.at(first, label[nitrogen], nitrogen)
    head[nitrogen] = first[label[nitrogen]]
    anion = nitrogen[~taken[label[nitrogen]]]
    order[anion[donor[anion]]] = AZOLE
    charge[first[label[anion]]] = -1
