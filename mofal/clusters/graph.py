"""The block graph of one system as flat arrays: what every blueprint is expanded from."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import xarray as xr

from mofal.clusters.links import HeadTable, Mates, find_mates, head_table
from mofal.errors import DataError
from mofal.frameworks.defects import defect_atoms

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_REQUIRED = (
    "kind",
    "charge",
    "block_n_atoms",
    "member_atom",
    "member_shift",
    "bond_atom",
    "bond_shift",
    "link_block",
    "link_atom",
    "link_shift",
    "link_cap",
    "link_cap_length",
)


@dataclass(frozen=True)
class BlockGraph:
    """Blocks and their links, sorted for expansion.

    A *half-link* is a link seen from one of its two blocks. Half-links are sorted by the block
    they leave, so that those of block ``b`` are ``half_start[b]:half_start[b + 1]``.

    Attributes
    ----------
    member_start : (block + 1,) first member of each block, and the number of members at the end
    member_atom : (member,) atom of the parent structure
    member_shift : (member, 3) lattice shift that puts the atom into its block's molecule
    atom_block, atom_shift : (atom,), (atom, 3) the same, looked up by atom (-1: in no block)
    half_block : (half,) block at the far end
    half_shift : (half, 3) lattice shift of the far block when the near one is at the origin
    half_link, half_end : (half,) which link, and which of its ends is the near one
    link_cap, link_cap_charge : (link, 2) atomic number and formal charge of the cap that ends the
        bond at each end; 0 leaves it open, -1 forbids to cut there
    open_shell : (block,) a metal has a partly filled d or f shell; None: not known
    bond_atom, bond_shift : (bond, 2), (bond, 3) bonds inside blocks
    heads : of ligands that were cut off their metals, or None where there are none
    mates : neighbours along rods, or None where there are none
    acid_first : (block,) clusters around it put their protons on acids before OH; None: none does
    focus : atoms of the caps where blocks are missing: a mantle that cannot be whole keeps what is
        nearest to them
    """

    n_blocks: int
    n_atoms: int
    kind: IntArray
    charge: IntArray
    role: npt.NDArray[np.str_]
    member_start: IntArray
    member_atom: IntArray
    member_shift: IntArray
    atom_block: IntArray
    atom_shift: IntArray
    half_start: IntArray
    half_block: IntArray
    half_shift: IntArray
    half_link: IntArray
    half_end: IntArray
    link_block: IntArray
    link_atom: IntArray
    link_shift: IntArray
    link_cap: IntArray
    link_cap_length: FloatArray
    link_cap_charge: IntArray
    open_shell: BoolArray | None
    bond_atom: IntArray
    bond_shift: IntArray
    heads: HeadTable | None = None
    mates: Mates | None = None
    acid_first: BoolArray | None = None
    focus: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def block_n_atoms(self) -> IntArray:
        """(block,) number of atoms of each block."""
        return np.diff(self.member_start)

    @property
    def n_links(self) -> int:
        """Number of links (cut bonds of the whole system)."""
        return len(self.link_block)


def block_graph(blocks: xr.Dataset) -> BlockGraph:
    """Sort a blocks Dataset for expansion.

    Parameters
    ----------
    blocks : Dataset of kind ``blocks`` (``frameworks.find_blocks``), one system

    Raises
    ------
    DataError
        If a variable is missing or the indices do not fit each other.
    """
    missing = [name for name in _REQUIRED if name not in blocks.variables]
    if missing:
        raise DataError(
            f"not a blocks Dataset: {', '.join(missing)} missing; make one with "
            "mofal.frameworks.find_blocks(structures)"
        )
    values = {name: np.asarray(blocks[name].values) for name in _REQUIRED}
    count = values["block_n_atoms"].astype(np.int64)
    n_blocks = len(count)
    member_start = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    member_atom = values["member_atom"].astype(np.int64)
    member_shift = values["member_shift"].astype(np.int64).reshape(-1, 3)
    if member_start[-1] != len(member_atom):
        raise DataError(
            f"blocks: block_n_atoms sums to {member_start[-1]}, but there are "
            f"{len(member_atom)} members; find the blocks again"
        )
    n_atoms = int(member_atom.max()) + 1 if len(member_atom) else 0
    if (np.bincount(member_atom, minlength=n_atoms) > 1).any():
        raise DataError("blocks: an atom belongs to two blocks; find the blocks again")
    member_block = np.repeat(np.arange(n_blocks), count)
    atom_block = np.full(n_atoms, -1, dtype=np.int64)
    atom_block[member_atom] = member_block
    atom_shift = np.zeros((n_atoms, 3), dtype=np.int64)
    atom_shift[member_atom] = member_shift

    link_block = values["link_block"].astype(np.int64).reshape(-1, 2)
    link_atom = values["link_atom"].astype(np.int64).reshape(-1, 2)
    link_shift = values["link_shift"].astype(np.int64).reshape(-1, 3)
    if len(link_atom) and not np.array_equal(atom_block[link_atom], link_block):
        raise DataError("blocks: link_atom and link_block disagree; find the blocks again")
    # Seen from the image of block a at the origin, its atom i stands at shift m_i and the far
    # atom j at link_shift + m_i, so that the far block is at link_shift + m_i - m_j.
    forward = link_shift + atom_shift[link_atom[:, 0]] - atom_shift[link_atom[:, 1]]
    near = np.concatenate([link_block[:, 0], link_block[:, 1]])
    order = np.argsort(near, kind="stable")
    n_links = len(link_block)
    half_start = np.searchsorted(near[order], np.arange(n_blocks + 1)).astype(np.int64)

    bond_atom = values["bond_atom"].astype(np.int64).reshape(-1, 2)
    bond_shift = values["bond_shift"].astype(np.int64).reshape(-1, 3)
    if len(bond_atom):
        first, second = bond_atom.T
        # A bond joins two atoms of the same image of a block exactly when its shift is the
        # difference of their member shifts; every other bond is one of the links.
        inside = (atom_block[first] == atom_block[second]) & (
            bond_shift == atom_shift[second] - atom_shift[first]
        ).all(axis=1)
        bond_atom, bond_shift = bond_atom[inside], bond_shift[inside]
    cap_charge = np.zeros((n_links, 2), dtype=np.int64)
    if "link_cap_charge" in blocks:
        cap_charge = np.asarray(blocks["link_cap_charge"].values, dtype=np.int64).reshape(-1, 2)
    is_open = None
    if "open_shell" in blocks:
        is_open = np.asarray(blocks["open_shell"].values, dtype=np.bool_)
    role = np.full(n_blocks, "linker")
    if "role" in blocks:
        role = np.array([str(value) for value in blocks["role"].values])
    heads = head_table(blocks)
    mates = None
    if heads is not None:
        mates = find_mates(heads, link_block, link_atom, forward, n_blocks)
    return BlockGraph(
        n_blocks=n_blocks,
        n_atoms=n_atoms,
        kind=values["kind"].astype(np.int64),
        charge=values["charge"].astype(np.int64),
        role=role,
        member_start=member_start,
        member_atom=member_atom,
        member_shift=member_shift,
        atom_block=atom_block,
        atom_shift=atom_shift,
        half_start=half_start,
        half_block=np.concatenate([link_block[:, 1], link_block[:, 0]])[order],
        half_shift=np.concatenate([forward, -forward])[order],
        half_link=np.concatenate([np.arange(n_links)] * 2)[order],
        half_end=np.repeat([0, 1], n_links)[order],
        link_block=link_block,
        link_atom=link_atom,
        link_shift=link_shift,
        link_cap=values["link_cap"].astype(np.int64).reshape(-1, 2),
        link_cap_length=values["link_cap_length"].astype(float).reshape(-1, 2),
        link_cap_charge=cap_charge,
        open_shell=is_open,
        bond_atom=bond_atom,
        bond_shift=bond_shift,
        heads=heads,
        mates=mates,
        acid_first=(
            np.asarray(blocks["acid_first"].values, np.bool_) if "acid_first" in blocks else None
        ),
        focus=defect_atoms(blocks),
    )


def ragged_take(start: IntArray, count: IntArray, which: IntArray) -> tuple[IntArray, IntArray]:
    """Flat indices of several rows of a ragged array.

    Parameters
    ----------
    start, count : (row,) first element and length of every row
    which : (n,) rows wanted, repeats allowed

    Returns
    -------
    index : flat index of every element, row after row
    owner : for every element, its position in ``which``
    """
    length = count[which]
    owner = np.repeat(np.arange(len(which)), length)
    begin = np.cumsum(length) - length
    index = np.arange(int(length.sum())) - np.repeat(begin - start[which], length)
    return index, owner
