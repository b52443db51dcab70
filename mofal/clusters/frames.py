"""Frames of a system: are the recorded bonds still there, and where did wrapping put the atoms?

Array functions for one frame; `check_bonds` is the verb over many.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr
from ase.data import chemical_symbols, covalent_radii
from ase.geometry import complete_cell
from scipy import sparse
from scipy.sparse import csgraph

from mofal.clusters.graph import BlockGraph, BoolArray, FloatArray, IntArray, block_graph
from mofal.data import atom_slice
from mofal.data.ragged import TEXT
from mofal.errors import DataError

STRETCH = 1.5
"""A recorded bond holds up to this multiple of the sum of its covalent radii (Cordero et al.,
Dalton Trans. 2008, 2832): C-C 2.28 Å, C-H 1.61 Å, Zr-O 3.6 Å. Generous on purpose: bonds of a walk
at 600 K stretch by up to a fifth, atoms of different molecules do not come that near."""
SHORTEST = 0.3
"""A bond between blocks shorter than this multiple points nowhere: C-C 0.46 Å."""


@dataclass(frozen=True)
class FrameCheck:
    """What one frame says about the bonds of its system.

    Attributes
    ----------
    offset : (atom, 3) lattice shift that undoes a wrapping of this frame, None where there is none
    bond_length, link_length : (bond,), (link,) Å
    bond_limit, link_limit : (bond,), (link,) Å, the longest that still counts as a bond
    stretch : those limits in sums of covalent radii
    """

    offset: IntArray | None
    bond_length: FloatArray
    link_length: FloatArray
    bond_limit: FloatArray
    link_limit: FloatArray
    stretch: float

    @property
    def broken_bonds(self) -> BoolArray:
        """(bond,) bool; a length that is not a number is broken, too."""
        return ~(self.bond_length <= self.bond_limit)

    @property
    def broken_links(self) -> BoolArray:
        """(link,) bool; one whose ends coincide has no direction for a cap and is broken, too."""
        shortest = SHORTEST / self.stretch * self.link_limit
        return ~((self.link_length <= self.link_limit) & (self.link_length >= shortest))

    @property
    def holds(self) -> bool:
        """Whether every recorded bond is there."""
        return not (self.broken_bonds.any() or self.broken_links.any())


def bond_limits(numbers: IntArray, pairs: IntArray, stretch: float) -> FloatArray:
    """Longest length (Å) at which each pair of atoms, (pair, 2), still counts as bonded."""
    return stretch * covalent_radii[numbers[pairs]].sum(axis=1)


def check_frame(
    graph: BlockGraph,
    numbers: IntArray,
    positions: FloatArray,
    cell: FloatArray,
    *,
    stretch: float = STRETCH,
) -> FrameCheck:
    """Compare the bonds of one frame with the recorded ones.

    A frame whose atoms were wrapped back into the cell since the blocks were found has the same
    bonds with other lattice shifts. Those shifts are found along the bonds and given as `offset`.

    Parameters
    ----------
    numbers : (atom,); positions : (atom, 3) Å; cell : (3, 3) Å, rows are lattice vectors
    """
    pairs = np.concatenate([graph.bond_atom, graph.link_atom])
    shifts = np.concatenate([graph.bond_shift, graph.link_shift])
    limit = bond_limits(numbers, pairs, stretch)
    vector = positions[pairs[:, 1]] - positions[pairs[:, 0]] + shifts @ cell
    length = np.linalg.norm(vector, axis=1)
    offset = None
    if not np.all(length <= limit) and cell.any() and np.isfinite(positions).all():
        offset = _unwrap(len(numbers), pairs, vector, length, limit, cell)
        if offset is not None:
            vector = vector + (offset[pairs[:, 1]] - offset[pairs[:, 0]]) @ cell
            length = np.linalg.norm(vector, axis=1)
    n_bonds = len(graph.bond_atom)
    return FrameCheck(
        offset=offset,
        bond_length=length[:n_bonds],
        link_length=length[n_bonds:],
        bond_limit=limit[:n_bonds],
        link_limit=limit[n_bonds:],
        stretch=stretch,
    )


def _unwrap(
    n_atoms: int,
    pairs: IntArray,
    vector: FloatArray,
    length: FloatArray,
    limit: FloatArray,
    cell: FloatArray,
) -> IntArray | None:
    """Integer lattice shifts per atom that make the recorded bonds short again, if there are any.

    Parameters
    ----------
    pairs : (bond, 2); vector : (bond, 3) Å with the recorded shift; length, limit : (bond,) Å
    """
    step, good = _steps(pairs, vector, length, limit, cell)
    if not step[good].any():
        return None
    # Shifts are propagated along a spanning tree: atom 0 of every connected part stays where it is
    # (a virtual root joins the parts).
    first, second = pairs[good].T
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n_atoms, n_atoms))
    n_parts, part = csgraph.connected_components(graph, directed=False)
    root = np.unique(part, return_index=True)[1]
    rows = np.concatenate([first, np.full(n_parts, n_atoms)])
    columns = np.concatenate([second, root])
    tree = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(n_atoms + 1,) * 2)
    _, parent = csgraph.breadth_first_order(tree.tocsr(), n_atoms, directed=False)
    parent[n_atoms] = n_atoms
    parent = parent.astype(np.int64)
    # Step from the parent in the tree to each atom, looked up among the bonds.
    code = np.concatenate([first * (n_atoms + 1) + second, second * (n_atoms + 1) + first])
    value = np.concatenate([step[good], -step[good]])
    order = np.argsort(code, kind="stable")
    atoms = np.arange(n_atoms)
    wanted = parent[:n_atoms] * (n_atoms + 1) + atoms
    at = np.minimum(np.searchsorted(code[order], wanted), len(order) - 1)
    offset = np.zeros((n_atoms + 1, 3), dtype=np.int64)
    inner = parent[:n_atoms] != n_atoms
    offset[:n_atoms][inner] = value[order][at][inner]
    while (parent != n_atoms).any():  # pointer jumping: log(depth) rounds
        offset = offset + offset[parent]
        parent = parent[parent]
    return offset[:n_atoms]


def _steps(
    pairs: IntArray, vector: FloatArray, length: FloatArray, limit: FloatArray, cell: FloatArray
) -> tuple[IntArray, BoolArray]:
    """Lattice shift that makes each recorded bond short, and whether there is one.

    Bonds between the same two atoms (an atom and two images of another, in small cells) have one
    shift in common: the one that makes the longest of them shortest.

    Returns
    -------
    step : (bond, 3), good : (bond,) bool
    """
    long = ~(length <= limit)
    forward = np.where(pairs[:, 0] <= pairs[:, 1], 1, -1)
    low, high = np.sort(pairs, axis=1).T
    code = low * (int(pairs.max(initial=0)) + 1) + high
    member = np.flatnonzero(np.isin(code, np.unique(code[long])))
    member = member[np.lexsort([~long[member], code[member]])]  # a long one first in each group
    first = np.unique(code[member], return_index=True)[1]
    group = np.cumsum(np.isin(np.arange(len(member)), first)) - 1
    across = vector[member] * forward[member][:, None]

    periodic: BoolArray = np.any(
        cell != 0, axis=1
    )  # a slab or a wire has no vector along its free directions
    near = -np.rint(across[first] @ np.linalg.inv(complete_cell(cell))).astype(np.int64)
    near[:, ~periodic] = 0
    # In a skewed cell the nearest image is among the neighbours of the rounded one.
    nearby = [[-1, 0, 1] if along else [0] for along in list(periodic)]
    around = np.stack(np.meshgrid(*nearby, indexing="ij"), axis=-1).reshape(-1, 3)
    trial = near[:, None, :] + around[None, :, :]
    ratio = np.linalg.norm(across[:, None, :] + (trial @ cell)[group], axis=2)
    ratio /= limit[member][:, None]
    best = np.maximum.reduceat(ratio, first, axis=0).argmin(axis=1)
    step = np.zeros((len(pairs), 3), dtype=np.int64)
    step[member] = trial[np.arange(len(first)), best][group] * forward[member][:, None]
    good = ~long
    good[member] = ratio[np.arange(len(member)), best[group]] <= 1.0
    return step, good


def describe_bond(
    pair: IntArray, length: float, limit: float, numbers: IntArray, *, word: str = "bond"
) -> str:
    """One line on a bond that is no longer there."""
    a, b = (f"{chemical_symbols[numbers[k]]}{k}" for k in pair)
    return f"broken {word}: {a}-{b} is {length:.2f} Å long (a bond up to {limit:.2f} Å)"


def check_bonds(
    structures: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    *,
    stretch: float = STRETCH,
) -> xr.Dataset:
    """Say of every frame whether the blocks recorded for its system still describe it.

    A frame whose bonds changed is a new system: find its blocks anew and give it a name of its
    own. Its intact parts can be cut all the same; clusters that hold a broken bond are refused.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
    blocks_by_system : blocks Dataset of each name in ``structures.system``
    stretch : longest bond, in sums of covalent radii

    Returns
    -------
    Dataset with dim structure
        `holds` bool, `n_broken` int, `wrapped` bool (shifts differ from the recorded ones),
        `worst_stretch` (longest bond in units of its limit), `reason` text, empty where it holds.
    """
    graphs = {name: block_graph(blocks) for name, blocks in blocks_by_system.items()}
    rows: list[tuple[bool, int, bool, float, str]] = []
    for index in range(structures.sizes["structure"]):
        graph = graph_of(graphs, structures, index)
        span = atom_slice(structures, index)
        numbers = structures["numbers"].values[span]
        check = check_frame(
            graph,
            numbers,
            np.asarray(structures["positions"][span].values),
            np.asarray(structures["cell"][index].values),
            stretch=stretch,
        )
        length = np.concatenate([check.bond_length, check.link_length])
        limit = np.concatenate([check.bond_limit, check.link_limit])
        ratio = np.where(np.isfinite(length), length / limit, np.inf)
        broken = int((~(ratio <= 1)).sum())
        reason = ""
        if broken:
            worst = int(ratio.argmax())
            pair = np.concatenate([graph.bond_atom, graph.link_atom])[worst]
            reason = describe_bond(pair, length[worst], limit[worst], numbers)
        rows.append(
            (not broken, broken, check.offset is not None, float(ratio.max(initial=0)), reason)
        )
    holds, n_broken, wrapped, worst_stretch, reasons = zip(*rows) if rows else ([],) * 5
    return xr.Dataset(
        {
            "holds": ("structure", np.array(holds, dtype=np.bool_)),
            "n_broken": ("structure", np.array(n_broken, dtype=np.int64)),
            "wrapped": ("structure", np.array(wrapped, dtype=np.bool_)),
            "worst_stretch": ("structure", np.array(worst_stretch, dtype=float)),
            "reason": ("structure", np.array(reasons, TEXT)),
        }
    )


def graph_of(graphs: Mapping[str, BlockGraph], structures: xr.Dataset, index: int) -> BlockGraph:
    """The block graph of one structure's system, checked for size."""
    name = str(structures["system"].values[index])
    if name not in graphs:
        raise DataError(
            f"no blocks for system {name!r} (structure {index}); known: "
            f"{', '.join(sorted(graphs)) or 'none'}; add "
            "blocks_by_system[name] = mofal.frameworks.find_blocks(structures, i)"
        )
    graph, found = graphs[name], int(structures["n_atoms"].values[index])
    if graph.n_atoms != found:
        raise DataError(
            f"structure {index} has {found} atoms, the blocks of system {name!r} have "
            f"{graph.n_atoms}: it is not a frame of that system; give it a name of its own"
        )
    return graph
