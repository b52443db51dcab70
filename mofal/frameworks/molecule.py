"""What a rule sees and what it returns: elements and bonds as arrays, bonds to cut, caps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mofal.frameworks.bonds import IS_METAL, Bonds
from mofal.frameworks.caps import FORMATE_CH

OPEN = 0  # nothing is put there: the bond was a lone pair's (a pillar's N on a metal)


NEVER = -1  # this end cannot be capped: a cluster takes the block at the other end as well


@dataclass(frozen=True)
class Cap:
    """What replaces the lost atom at one end of a cut bond.

    Attributes
    ----------
    number : int
        Atomic number; `OPEN` (0) for nothing, `NEVER` (-1) where no cap makes sense.
    length : float or None
        Length of the new bond, Å; None: the standard length for the pair of elements.
    charge : int
        Formal charge that comes with the cap: 0 where the bond was cut evenly, +1 for a proton
        that takes the place of a metal ion.
    """

    number: int
    length: float | None = None
    charge: int = 0


H_CAP = Cap(1)


FORMATE_CAP = Cap(1, FORMATE_CH)


PROTON = Cap(1, charge=1)


LONE_PAIR = Cap(OPEN)


NO_CAP = Cap(NEVER)


@dataclass(frozen=True)
class Cut:
    """Bonds that a rule cuts.

    Attributes
    ----------
    edges : (half-edge,) bool array
        True where the half-edge leads from the node to the linker. Both directions of one bond
        may be set: then it joins two nodes (oxalate).
    node_cap, linker_cap : Cap
        What ends the bond on the node, and on the linker.
    """

    edges: NDArray[np.bool_]
    node_cap: Cap
    linker_cap: Cap


@dataclass(frozen=True)
class Molecule:
    """Elements and bonds of one structure, as a rule sees them.

    Attributes
    ----------
    z : (atom,) int array
        Atomic numbers.
    bonds : Bonds
        Half-edges.
    """

    z: NDArray[np.integer]
    bonds: Bonds

    @property
    def metal(self) -> NDArray[np.bool_]:
        """Which atoms are metals: (atom,)."""
        return IS_METAL[self.z]

    @property
    def degree(self) -> NDArray[np.int64]:
        """Number of bonds of each atom: (atom,)."""
        return self.bonds.degree

    def count(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many bonded neighbours of each atom are in `mask`: (atom,)."""
        return np.bincount(self.bonds.i[mask[self.bonds.j]], minlength=len(self.z))

    def between(self, start: NDArray[np.bool_], end: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Half-edges that lead from an atom in `start` to one in `end`: (half-edge,)."""
        return start[self.bonds.i] & end[self.bonds.j]


def azole_nitrogens(m: Molecule) -> NDArray[np.bool_]:
    """N of five-membered rings with another N beside it or across one C: no pyrrole of a porphyrin.

    Shape (atom,).
    """
    nitrogen = _in_five_ring(m, (m.z == 7) | (m.z == 6)) & (m.z == 7)
    between = (m.z == 6) & (m.count(nitrogen) > 1)
    return nitrogen & ((m.count(nitrogen) > 0) | (m.count(between) > 0))


def _in_five_ring(m: Molecule, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Atoms that lie on a ring of five `allowed` atoms: (atom,).

    Counted as closed walks of five steps, which only a ring of five gives where there is no
    ring of three at hand.
    """
    import scipy.sparse as sp

    n = len(m.z)
    inside = allowed[m.bonds.i] & allowed[m.bonds.j] & (m.bonds.i != m.bonds.j)
    a = sp.csr_array(
        (np.ones(int(inside.sum()), np.int64), (m.bonds.i[inside], m.bonds.j[inside])),
        shape=(n, n),
    )
    two = a @ a
    three = two @ a
    triangles = three.diagonal()
    near_triangle = triangles + a @ triangles > 0
    return np.asarray((two * three).sum(axis=1) > 0) & ~near_triangle
