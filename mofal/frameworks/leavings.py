"""What a missing ligand leaves on metals that it was cut off: its heads, each with H.

An acid stays as its acid of H (formate), a phenolate as OH: each with the charge that it had, so
that the framework is as neutral as before. A neutral donor leaves nothing, as missing pillars do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.caps import FORMATE_CH, cap_length, cap_positions
from mofal.frameworks.heads import ACID, HEADS, NEUTRAL, OXIDE, PHENOLATE

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Leavings:
    """What stays of the ligands that are taken out.

    Attributes
    ----------
    atom : int array
        Atoms of them that stay.
    cap : (cap, 3) float array
        Positions of the H in the place of the rest, Å.
    """

    atom: NDArray[np.int64]
    cap: NDArray[np.float64]


def is_bridge(blocks: xr.Dataset) -> NDArray[np.bool_]:
    """Ligands that hold metals together by one head: OH, formate; none is a linker: (block,)."""
    n = blocks.sizes["block"]
    if "member_head" not in blocks:
        return np.zeros(n, bool)
    owner = np.repeat(np.arange(n), blocks["block_n_atoms"].values)
    head = blocks["member_head"].values
    own = np.unique(np.column_stack([owner, head])[head >= 0], axis=0)
    count = np.bincount(own[:, 0], minlength=n)
    order = blocks["head_order"].values[own[:, 1]]
    plain = np.isin(order, [OXIDE, PHENOLATE, ACID])
    return (count == 1) & (np.bincount(own[plain, 0], minlength=n) == 1)


def what_stays(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    gone: NDArray[np.bool_],
) -> Leavings:
    """Heads that stay where blocks are taken out of a framework of rods or azolates.

    Parameters
    ----------
    blocks : Dataset with heads (`find_blocks` under the rule ``auto``)
    numbers, positions, cell : (atom,), (atom, 3) Å, (3, 3) Å
    gone : (block,) bool

    Raises
    ------
    StructureError
        A head has no form of its own with H (a ring of azole, oxalate), or what stays has another
        charge than what goes.
    """
    link_block, head = blocks["link_block"].values, blocks["link_head"].values
    order, charge = blocks["head_order"].values, blocks["head_charge"].values
    # The metal's end comes first in every link.
    cut = (head >= 0) & gone[link_block[:, 1]] & ~gone[link_block[:, 0]]
    held = np.unique(head[cut])
    held = held[order[held] != NEUTRAL]
    inner, centre = blocks["head_inner"].values, blocks["head_centre"].values
    formula = blocks["formula"].values
    for k in held.tolist():
        if order[k] == PHENOLATE or (order[k] == ACID and inner[k] >= 0):
            continue
        ligand = link_block[np.flatnonzero(cut & (head == k))[0], 1]
        raise StructureError(
            f"{formula[ligand]} holds its metals by {HEADS[order[k]]}, and nothing of it can stay "
            "in its place: remove the metals that it holds as well, or nothing"
        )
    linked = gone & (blocks["role"].values != "guest")
    lost, left = int(blocks["charge"].values[linked].sum()), int(charge[held].sum())
    if lost != left:
        names = ", ".join(sorted({str(f) for f in formula[gone]}))
        raise StructureError(
            f"without {names} (charge {lost:+d}) the ends that stay have the charge {left:+d}: the "
            f"defect would be charged by {left - lost:+d}; put what balances it (protons on O, "
            "another ion) into the file of the structure, and give that"
        )
    member, of_member = blocks["member_atom"].values, blocks["member_head"].values
    stays = member[np.isin(of_member, held)]
    caps = [np.zeros((0, 3))]
    shift = blocks["head_shift"].values
    for k in held.tolist():
        at = int(centre[k])
        if order[k] == ACID:
            behind, step = int(inner[k]), -shift[k]
            length = FORMATE_CH if numbers[at] == 6 else cap_length(int(numbers[at]), 1)
        else:
            behind, step = _carbon_of(blocks, numbers, at)
            length = cap_length(chemical_symbols[numbers[at]], "H")
        caps.append(cap_positions(positions[at], positions[behind] + step @ cell, length))
    return Leavings(np.asarray(stays, np.int64), np.vstack(caps))


def _carbon_of(
    blocks: xr.Dataset, numbers: NDArray[np.integer], atom: int
) -> tuple[int, NDArray[np.int64]]:
    """Neighbour of a phenolate O in its ligand, and the lattice shift to it."""
    pair, shift = blocks["bond_atom"].values, blocks["bond_shift"].values
    label = np.empty(len(numbers), np.int64)
    label[blocks["member_atom"].values] = np.repeat(
        np.arange(blocks.sizes["block"]), blocks["block_n_atoms"].values
    )
    for end, sign in ((0, 1), (1, -1)):
        for row in np.flatnonzero(pair[:, end] == atom).tolist():
            other = int(pair[row, 1 - end])
            if label[other] == label[atom]:
                return other, sign * shift[row]
    raise StructureError(f"atom {atom} is bonded to nothing in its ligand: find the blocks anew")
