"""Heads and neighbours along a rod, as arrays, from a blocks Dataset.

*Mates* are units that share a donor atom or an acid head: neighbours along a rod. A cluster around
one of them grows along its mates and not through the ligands, which lead to other rods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from mofal.frameworks.heads import ACID

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HeadTable:
    """Heads of the ligands that were cut off their metals.

    Attributes
    ----------
    link_head, link_order : (link,) which head the ligand's end belongs to (-1: none), its kind
    member_head : (member,) head of each atom, -1 for none
    order, charge : (head,) kind; charge of the head
    inner, centre, shift, length : (head,), (head,), (head, 3), (head,)
        The atom behind an acid head (-1 where it cannot be cut off), its centre, the lattice shift
        from one to the other, and the length of the bond to the H in its place, Å.
    """

    link_head: IntArray
    link_order: IntArray
    member_head: IntArray
    order: IntArray
    charge: IntArray
    inner: IntArray
    centre: IntArray
    shift: IntArray
    length: FloatArray


def head_table(blocks: xr.Dataset) -> HeadTable | None:
    """Heads of a blocks Dataset; None where no ligand was cut off its metals."""
    if "link_head" not in blocks:
        return None

    def read(name: str) -> IntArray:
        return np.asarray(blocks[name].values, np.int64)

    return HeadTable(
        link_head=read("link_head"),
        link_order=read("link_order"),
        member_head=read("member_head"),
        order=read("head_order"),
        charge=read("head_charge"),
        inner=read("head_inner"),
        centre=np.asarray(blocks["head_centre"].values, np.int64),
        shift=np.asarray(blocks["head_shift"].values, np.int64).reshape(-1, 3),
        length=np.asarray(blocks["head_cap_length"].values, float),
    )


@dataclass(frozen=True)
class Mates:
    """Neighbours along rods, by block: those of ``b`` are ``start[b]:start[b + 1]``.

    Attributes
    ----------
    start : (block + 1,)
    block : (mate,) the neighbour
    shift : (mate, 3) lattice shift of its image when the block is at the origin
    """

    start: IntArray
    block: IntArray
    shift: IntArray

    @property
    def has(self) -> npt.NDArray[np.bool_]:
        """(block,) whether a block has any."""
        return np.diff(self.start) > 0


def find_mates(
    table: HeadTable,
    link_block: IntArray,
    link_atom: IntArray,
    image: IntArray,
    n_blocks: int,
) -> Mates | None:
    """Pairs of units that share a donor or an acid head; None where there are none.

    Parameters
    ----------
    link_block, link_atom : (link, 2)
    image : (link, 3) shift from the whole block at end 0 to the whole block at end 1
    """
    rows = np.flatnonzero(table.link_head >= 0)
    acid = table.link_order[rows] == ACID
    # What two links must share: the head of an acid, otherwise the donor itself.
    shared = np.where(acid, table.link_head[rows], len(table.order) + link_atom[rows, 1])
    order = np.argsort(shared, kind="stable")
    rows, shared = rows[order], shared[order]
    starts = np.concatenate([[0], np.flatnonzero(np.diff(shared)) + 1, [len(shared)]])
    found: list[tuple[int, ...]] = []
    for first, last in zip(starts[:-1].tolist(), starts[1:].tolist()):
        own = rows[first:last]
        for a in own.tolist():
            for b in own.tolist():
                step = image[a] - image[b]
                if a != b and (link_block[a, 0] != link_block[b, 0] or step.any()):
                    ends = int(link_block[a, 0]), int(link_block[b, 0])
                    same = int(link_atom[a, 1] == link_atom[b, 1])
                    found.append((same, *ends, *step.tolist()))
    if not found:
        return None
    pairs = np.unique(np.array(found, np.int64), axis=0)
    # Where metals share donor atoms, an acid head beside them leads no further (MOF-74).
    shares = np.zeros(n_blocks, np.bool_)
    shares[pairs[pairs[:, 0] == 1, 1]] = True
    table_rows = np.unique(pairs[(pairs[:, 0] == 1) | ~shares[pairs[:, 1]], 1:], axis=0)
    start = np.searchsorted(table_rows[:, 0], np.arange(n_blocks + 1))
    return Mates(start.astype(np.int64), table_rows[:, 1], table_rows[:, 2:])
