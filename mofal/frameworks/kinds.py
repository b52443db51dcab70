"""Kinds of molecular graphs: equal composition and bonding give the same hash.

Weisfeiler-Lehman refinement (Weisfeiler and Lehman 1968; Shervashidze et al., JMLR 12, 2539, 2011)
on 64-bit integers: every round, an atom's colour takes in the colours of its neighbours.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mofal.frameworks.bonds import Bonds

ROUNDS = 12


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (the finalizer of splitmix64, Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def refine(
    colour: NDArray[np.integer], bonds: Bonds, *, rounds: int = ROUNDS
) -> NDArray[np.uint64]:
    """Colour of each atom after `rounds` of refinement.

    Parameters
    ----------
    colour : (n,) int
        Colours to start from, e.g. atomic numbers.
    bonds : Bonds
        The graph.
    rounds : int
        How many bonds away an atom sees.

    Returns
    -------
    (n,) uint64 array
        Independent of the order of the atoms.
    """
    n = bonds.n_atoms
    ones = np.ones(len(bonds.i), np.uint64)
    graph = sp.csr_array((ones, bonds.j, bonds.indptr), shape=(n, n))
    h = mix(np.asarray(colour).astype(np.uint64))
    for _ in range(rounds):
        h = mix(h * np.uint64(3) + graph @ mix(h))
    return h


def group_hash(
    colour: NDArray[np.uint64], label: NDArray[np.integer], n_groups: int
) -> NDArray[np.uint64]:
    """Hash of each group of atoms: the order-free sum of its atoms' colours, (n_groups,)."""
    out = np.zeros(n_groups, np.uint64)
    np.add.at(out, label, mix(colour))
    return mix(out)
