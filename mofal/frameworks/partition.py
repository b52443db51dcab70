"""A framework cut along the bonds of a rule: the cuts, and what stays connected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mofal.frameworks.bonds import IS_METAL, Bonds, reverse_edges
from mofal.frameworks.caps import cap_length
from mofal.frameworks.components import Components, components, integer_basis
from mofal.frameworks.molecule import Cap, Cut, Molecule
from mofal.frameworks.rules import apply_rule


@dataclass(frozen=True)
class Cuts:
    """Broken bonds, each once, the node's end first.

    Attributes
    ----------
    edge, back : (link,) int arrays
        Half-edge from end 0 to end 1, and the one back.
    node_end : (link, 2) bool array
        Whether an end is the node's side of the cut.
    cap : (link, 2) int32 array
        Atomic number of each end's cap, 0 for none, -1 where no cap makes sense.
    length : (link, 2) float array
        Its bond length, Å; NaN where there is no cap.
    cap_charge : (link, 2) int32 array
    even : (link,) bool array
        Whether the bond was cut evenly (an electron to each end).
    """

    edge: NDArray[np.int64]
    back: NDArray[np.int64]
    node_end: NDArray[np.bool_]
    cap: NDArray[np.int32]
    length: NDArray[np.float64]
    cap_charge: NDArray[np.int32]
    even: NDArray[np.bool_]

    def kept(self, mask: NDArray[np.bool_]) -> Cuts:
        """The cuts where `mask` holds."""
        return Cuts(
            self.edge[mask],
            self.back[mask],
            self.node_end[mask],
            self.cap[mask],
            self.length[mask],
            self.cap_charge[mask],
            self.even[mask],
        )


def _collect(z: NDArray[np.integer], bonds: Bonds, cuts: list[Cut]) -> Cuts:
    """Bonds to cut, each once: a bond that rules name twice keeps its first naming."""
    n = len(bonds.i)
    by_edge = np.full(n, -1, np.int16)
    for k, cut in enumerate(cuts):
        by_edge[cut.edges & (by_edge < 0)] = k
    named = np.flatnonzero(by_edge >= 0)
    back = reverse_edges(bonds, named)
    both = by_edge[back] >= 0
    once = ~both | (named < back)
    edge, back, both = named[once], back[once], both[once]
    caps: list[tuple[Cap, Cap]] = [(c.node_cap, c.linker_cap) for c in cuts]
    kind = by_edge[edge]
    number = np.zeros((len(edge), 2), np.int32)
    charge = np.zeros((len(edge), 2), np.int32)
    length = np.full((len(edge), 2), np.nan)
    ends = np.column_stack([bonds.i[edge], bonds.j[edge]])
    for k, (node, linker) in enumerate(caps):
        for side in (0, 1):
            for joins_nodes in (False, True):
                rows = np.flatnonzero((kind == k) & (both == joins_nodes))
                cap = node if side == 0 or joins_nodes else linker
                number[rows, side] = cap.number
                charge[rows, side] = cap.charge
                if cap.number <= 0 or not len(rows):
                    continue
                kept = z[ends[rows, side]]
                for element in np.unique(kept):
                    value = cap.length or cap_length(int(element), cap.number)
                    length[rows[kept == element], side] = value
    even = (number > 0).all(axis=1) & (charge == 0).all(axis=1)
    node_end = np.column_stack([np.ones(len(edge), bool), both])
    return Cuts(edge, back, node_end, number, length, charge, even)


def _edge_mask(n: int, cuts: Cuts) -> NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[cuts.edge] = True
    mask[cuts.back] = True
    return mask


def partition(
    z: NDArray[np.integer], bonds: Bonds, rule: str
) -> tuple[Cuts, NDArray[np.bool_], Components]:
    """Cut the bonds of a rule and find what stays connected.

    A cut that separates nothing (both ends stay in one piece, in one image) is no cut; a ligand
    on one node only joins nothing (acetate, benzoate, a dangling acid, a chelate) and stays with
    that node.

    Returns
    -------
    cuts : Cuts
    mask : (half-edge,) bool array
        Half-edges that are cut, both directions.
    pieces : Components
        Of the graph without them.
    """
    cuts = _collect(z, bonds, apply_rule(rule, Molecule(z, bonds)))
    while True:
        mask = _edge_mask(len(bonds.i), cuts)
        inner = bonds.kept(~mask)
        pieces = components(inner)
        end = pieces.label[np.column_stack([bonds.i[cuts.edge], bonds.j[cuts.edge]])]
        closed = end[:, 0] == end[:, 1]
        if closed.any():
            image = link_images(bonds, cuts, pieces)
            closed &= ~image.any(axis=1)
        is_node = np.zeros(pieces.n, bool)
        is_node[end[cuts.node_end]] = True
        is_node[pieces.label[IS_METAL[z]]] = True
        reach = _neighbours(end, link_images(bonds, cuts, pieces), pieces.n)
        pendant = ((reach[end] == 1) & ~is_node[end]).any(axis=1)
        drop = closed | pendant
        if not drop.any():
            return cuts, mask, pieces
        cuts = cuts.kept(~drop)


def link_images(bonds: Bonds, cuts: Cuts, pieces: Components) -> NDArray[np.int32]:
    """Lattice shift from the whole block at end 0 to the whole block at end 1: (link, 3)."""
    i, j = bonds.i[cuts.edge], bonds.j[cuts.edge]
    return pieces.shift[i] + bonds.shift[cuts.edge] - pieces.shift[j]


def net_labels(
    n_blocks: int, link_block: NDArray[np.integer], image: NDArray[np.integer]
) -> tuple[NDArray[np.int32], int, int]:
    """Nets of a block graph: label of each block (-1 without links), how many, of what dimension.

    Pieces that only meet through lattice vectors of a sublattice count as often as that
    sublattice has cosets: a framework interwoven with its own translate is two nets. The dimension
    is that of the net that goes on in most directions: 3 for a framework, 2 for layers.
    """
    start = np.concatenate([link_block[:, 0], link_block[:, 1]])
    end = np.concatenate([link_block[:, 1], link_block[:, 0]])
    shift = np.concatenate([image, -image]).astype(np.int32)
    order = np.argsort(start, kind="stable")
    graph = Bonds(
        n_blocks, start[order].astype(np.int32), end[order].astype(np.int32), shift[order]
    )
    pieces = components(graph)
    linked = graph.degree > 0
    label = np.full(n_blocks, -1, np.int32)
    names, label[linked] = np.unique(pieces.label[linked], return_inverse=True)
    total, dimension = 0, 0
    loops = pieces.loops
    of_edge = pieces.label[graph.i]
    for name in names:
        vectors = loops[of_edge == name]
        basis = integer_basis(np.unique(vectors, axis=0))
        total += abs(round(np.linalg.det(basis))) if len(basis) == 3 else 1
        dimension = max(dimension, len(basis))
    return label, total, dimension


def _even_mask(n: int, cuts: Cuts) -> NDArray[np.bool_]:
    mask = np.zeros(n, bool)
    mask[cuts.edge[cuts.even]] = True
    mask[cuts.back[cuts.even]] = True
    return mask


def _neighbours(
    link_block: NDArray[np.integer], image: NDArray[np.integer], n_blocks: int
) -> NDArray[np.int64]:
    """How many blocks each block is linked to: (n_blocks,). Several bonds to one count once."""
    both_ways = np.vstack(
        [np.column_stack([link_block, image]), np.column_stack([link_block[:, ::-1], -image])]
    )
    return np.bincount(_distinct_rows(both_ways)[:, 0], minlength=n_blocks)


def _distinct_rows(rows: NDArray[np.integer]) -> NDArray[np.integer]:
    """Distinct rows of a small-integer array, through one packed key per row."""
    if not len(rows):
        return np.zeros((0, rows.shape[1]), np.int64)
    low = rows.min(axis=0).astype(np.int64)
    span = rows.max(axis=0).astype(np.int64) - low + 1
    key = np.zeros(len(rows), np.int64)
    for column in range(rows.shape[1]):
        key = key * span[column] + (rows[:, column] - low[column])
    _, first = np.unique(key, return_index=True)
    return rows[first]
