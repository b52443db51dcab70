"""Correlated disorder: nanodomains in which bricks (reo) or linkers (bcu) are missing in order.

Both orders are read off the net itself. Bricks a second-neighbour distance apart (an edge of the
cubic cell in UiO-66) make one sublattice: reo lacks one of the four. bcu lacks the linkers
perpendicular to one of these second-neighbour directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from mofal.errors import StructureError

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class BlockNet:
    """Geometry of a block graph.

    Attributes
    ----------
    centre : (block, 3) float array
        Mean position of each whole block, Å.
    cell : (3, 3) float array
        Å.
    pair : (link, 2) int array
        Blocks of each link.
    image : (link, 3) int array
        Lattice shift from the whole block at end 0 to the one at end 1.
    """

    centre: NDArray[np.float64]
    cell: NDArray[np.float64]
    pair: NDArray[np.int64]
    image: NDArray[np.int32]

    @classmethod
    def of(
        cls, blocks: xr.Dataset, positions: NDArray[np.float64], cell: NDArray[np.float64]
    ) -> BlockNet:
        """From a blocks Dataset and the positions it belongs to."""
        size = blocks["block_n_atoms"].values
        start = np.concatenate([[0], np.cumsum(size)])[:-1]
        whole = positions[blocks["member_atom"].values] + blocks["member_shift"].values @ cell
        centre = np.add.reduceat(whole, start) / size[:, None]
        return cls(centre, cell, blocks["link_block"].values, blocks["link_image"].values)

    def linker_bricks(self, linkers: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
        """The two bricks of each linker, and the unit vector between them: (n, 2), (n, 3).

        Raises
        ------
        StructureError
            When a linker joins more or fewer than two bricks.
        """
        is_linker = np.zeros(len(self.centre), bool)
        is_linker[linkers] = True
        end = is_linker[self.pair].argmax(axis=1)
        rows = np.arange(len(self.pair))
        owner, brick = self.pair[rows, end], self.pair[rows, 1 - end]
        shift = np.where(end[:, None] == 0, self.image, -self.image)
        tip = self.centre[brick] + shift @ self.cell
        mine = is_linker[owner]
        owner, brick, tip = owner[mine], brick[mine], tip[mine]
        order = np.argsort(owner, kind="stable")
        if not np.array_equal(owner[order], np.repeat(linkers, 2)):
            raise StructureError(
                "bcu domains need linkers that join two bricks each; draw independently instead: "
                "disorder(ds, linker=0.2)"
            )
        axis = np.diff(tip[order].reshape(-1, 2, 3), axis=1)[:, 0]
        axis /= np.linalg.norm(axis, axis=1, keepdims=True)
        return brick[order].reshape(-1, 2), axis


def second_shell(
    net: BlockNet, nodes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Pairs of bricks at the second-nearest distance: indices into `nodes`, and vectors in Å."""
    x = net.centre[nodes]
    cutoff = 4.0
    while True:
        cutoff *= 1.5
        i, j, d, vector = neighbour_list(
            "ijdD", positions=x, cell=net.cell, pbc=[True] * 3, cutoff=cutoff
        )
        if len(d) and (d > 1.1 * d.min()).any():
            second = d[d > 1.1 * d.min()].min()
            if cutoff > 1.1 * second:
                near = np.abs(d - second) < 0.05 * second
                return i[near], j[near], vector[near]


def reo_domains(
    net: BlockNet,
    nodes: NDArray[np.int64],
    target: int,
    size: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Bricks to remove in nanodomains of reo order.

    A domain grows from a brick drawn at random over that brick's sublattice, as far as half its
    size; a brick whose neighbour is gone already, by another domain, stays (a domain wall).

    Parameters
    ----------
    net : BlockNet
    nodes : (n,) int
        The bricks among the blocks.
    target : int
        How many to remove.
    size : float
        Diameter of a domain, Å.
    rng : Generator

    Returns
    -------
    (target,) int array
        Blocks.

    Raises
    ------
    StructureError
        When the domains cannot hold as many.
    """
    i, j, vector = second_shell(net, nodes)
    order = np.argsort(i, kind="stable")
    i, j, vector = i[order], j[order], vector[order]
    start = np.searchsorted(i, np.arange(len(nodes) + 1))
    beside = _first_shell(net, nodes)
    missing = np.zeros(len(nodes), bool)
    blocked = np.zeros(len(nodes), bool)
    for centre in rng.permutation(len(nodes)).tolist():
        if missing.sum() == target:
            break
        if missing[centre] or blocked[centre]:
            continue
        reached = {centre: np.zeros(3)}
        queue = [centre]
        for node in queue:
            for edge in range(start[node], start[node + 1]):
                other = int(j[edge])
                away = reached[node] + vector[edge]
                if other not in reached and np.linalg.norm(away) <= size / 2:
                    reached[other] = away
                    queue.append(other)
        # Nearest to the centre first, so that the last domain is a small whole one.
        for node in sorted(queue, key=lambda k: (round(np.linalg.norm(reached[k]), 6), k)):
            if missing.sum() == target:
                break
            if not blocked[node]:
                missing[node] = True
                blocked[beside[node]] = True
    if missing.sum() < target:
        raise StructureError(
            f"reo domains of {size:g} Å hold {int(missing.sum())} missing bricks of "
            f"{len(nodes)}, asked for {target}: reo lacks at most one brick in four, so lower "
            "brick= or enlarge domain_size="
        )
    return nodes[missing]


def _first_shell(net: BlockNet, nodes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Bricks that a linker joins to each brick: lists of indices into `nodes`."""
    n = len(net.centre)
    where = np.full(n, -1)
    where[nodes] = np.arange(len(nodes))
    near: list[set[int]] = [set() for _ in range(n)]
    for a, b in net.pair.tolist():
        near[a].add(b)
        near[b].add(a)
    out = []
    for node in nodes.tolist():
        found = {k for linker in near[node] for k in near[linker]} | near[node]
        found.discard(node)
        index = where[list(found)] if found else np.zeros(0, int)
        out.append(index[index >= 0])
    return out


def bcu_domains(
    net: BlockNet,
    linkers: NDArray[np.int64],
    target: int,
    size: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Linkers to remove in nanodomains of bcu order.

    In a domain every linker perpendicular to one second-neighbour direction goes; a linker on a
    brick that another domain has opened along another direction stays.

    Parameters
    ----------
    net : BlockNet
    linkers : (n,) int
        The linkers among the blocks.
    target : int
        How many to remove.
    size : float
        Diameter of a domain, Å.
    rng : Generator

    Returns
    -------
    (target,) int array
        Blocks.

    Raises
    ------
    StructureError
        When the domains cannot hold as many.
    """
    bricks, axis = net.linker_bricks(linkers)
    nodes = np.unique(bricks)
    _, _, vector = second_shell(net, nodes)
    unit = vector / np.linalg.norm(vector, axis=1, keepdims=True)
    planes: list[NDArray[np.float64]] = []
    for v in unit:
        if all(abs(abs(v @ p) - 1.0) > 0.02 for p in planes):
            planes.append(v)
    across = np.abs(axis @ np.array(planes).T) < 0.1
    if not across.any():
        raise StructureError(
            "no linker lies across a second-neighbour direction of this net: bcu domains are for "
            "nets like that of UiO-66; draw independently instead: disorder(ds, linker=0.2)"
        )
    opened = np.full(len(net.centre), -1)
    missing = np.zeros(len(linkers), bool)
    x = net.centre[linkers]
    for centre in rng.permutation(len(linkers)).tolist():
        if missing.sum() == target:
            break
        choices = np.flatnonzero(across[centre])
        if missing[centre] or not len(choices):
            continue
        plane = int(rng.choice(choices))
        f = np.linalg.solve(net.cell.T, (x - x[centre]).T).T
        away = np.linalg.norm((f - np.rint(f)) @ net.cell, axis=1)
        inside = np.flatnonzero(across[:, plane] & (away <= size / 2))
        for k in inside[np.lexsort((inside, np.round(away[inside], 6)))].tolist():
            if missing.sum() == target:
                break
            if np.all((opened[bricks[k]] == -1) | (opened[bricks[k]] == plane)):
                opened[bricks[k]] = plane
                missing[k] = True
    if missing.sum() < target:
        raise StructureError(
            f"bcu domains of {size:g} Å hold {int(missing.sum())} missing linkers of "
            f"{len(linkers)}, asked for {target}: bcu lacks at most one linker in three, so lower "
            "linker= or enlarge domain_size="
        )
    return linkers[missing]
