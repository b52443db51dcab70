"""What a cluster must know of ligands that were cut off their metals: their heads.

Which links belong to one head, how many protons it takes and when; and where a far acid head may be
cut off, with an H in its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.frameworks.bonds import Bonds
from mofal.frameworks.caps import cap_length
from mofal.frameworks.components import Components
from mofal.frameworks.heads import ACID, find_heads
from mofal.frameworks.molecule import Molecule

if TYPE_CHECKING:
    from mofal.frameworks.partition import Cuts


def head_variables(
    z: NDArray[np.integer],
    bonds: Bonds,
    cuts: Cuts,
    pieces: Components,
    member_atom: NDArray[np.int64],
) -> dict[str, Any]:
    """Variables of the blocks Dataset on heads; see docs/frameworks.md.

    Parameters
    ----------
    cuts : Cuts
        The bonds that are cut; those to donors lead from the metal.
    pieces : Components
        The blocks.
    member_atom : (member,) int
        Atoms in the order of the Dataset.
    """
    m = Molecule(z, bonds)
    heads = find_heads(m)
    n = len(z)
    donor = ~cuts.even & ~cuts.node_end[:, 1]
    at = bonds.j[cuts.edge]
    numbering = np.unique(heads.head[at[donor]])
    row = np.full(n, -1, np.int64)
    row[numbering] = np.arange(len(numbering))
    link_head = np.where(donor, row[heads.head[at]], -1)
    link_order = np.where(donor, heads.order[at], 0).astype(np.int8)

    # Atoms of a head: its donors, the H on them, and all of CO2, PO3 or SO3.
    of_atom = np.full(n, -1, np.int64)
    of_atom[at[donor]] = link_head[donor]
    acid = heads.centre & (row >= 0)
    of_atom[acid] = row[acid]
    oxygen = np.flatnonzero(acid[bonds.i] & (z[bonds.j] == 8))
    of_atom[bonds.j[oxygen]] = row[bonds.i[oxygen]]
    own = of_atom.copy()
    hydrogen = np.flatnonzero((z[bonds.i] == 1) & (own[bonds.j] >= 0) & (z[bonds.j] == 8))
    of_atom[bonds.i[hydrogen]] = own[bonds.j[hydrogen]]

    inner = np.full(len(numbering), -1, np.int64)
    shift = np.zeros((len(numbering), 3), np.int64)
    length = np.full(len(numbering), np.nan)
    order = np.zeros(len(numbering), np.int8)
    order[link_head[donor]] = link_order[donor]
    # The bond behind an acid head, seen from what is behind it; not that of an oxalate, a formate.
    behind = np.flatnonzero(
        acid[bonds.j]
        & (z[bonds.i] != 8)
        & (z[bonds.i] != 1)
        & ~heads.centre[bonds.i]
        & ~m.metal[bonds.i]
    )
    inside = (pieces.label[bonds.i[behind]] == pieces.label[bonds.j[behind]]) & ~np.isin(
        behind, np.concatenate([cuts.edge, cuts.back])
    )
    for edge in behind[inside].tolist():
        k = row[bonds.j[edge]]
        if order[k] == ACID:
            inner[k], shift[k] = bonds.i[edge], bonds.shift[edge]
            length[k] = cap_length(int(z[inner[k]]), 1)
    return {
        "link_head": ("link", link_head),
        "link_order": ("link", link_order),
        "member_head": ("member", of_atom[member_atom]),
        "head_order": ("head", order),
        "head_charge": ("head", heads.charge[numbering]),
        "head_inner": ("head", inner),
        "head_centre": ("head", numbering),
        "head_shift": (("head", "xyz"), shift.astype(np.int32)),
        "head_cap_length": ("head", length, {"units": "Å"}),
    }
