"""Where a linker could be: acid groups of one node only, and pairs of OH and water on its metals.

A site is a place and a direction: where the carbon of the linker's acid group would sit, and where
the linker would lie as seen from it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from ase.data import chemical_symbols
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mofal.frameworks.bonds import IS_METAL
from mofal.frameworks.charges import formula

if TYPE_CHECKING:
    import xarray as xr

# Å: OH and water that share the place of one acid group are 2.4 to 3.0 Å apart; in NU-1000, where
# each metal carries two of them, up to 4.4 Å. Those on the corners of a trimer are 7 Å apart.
PAIR = 4.6


@dataclass(frozen=True)
class Sites:
    """Capped sites of a framework.

    Attributes
    ----------
    atom : (site,) int array
        The carbon of an acid group; of a pair the O with fewer H.
    end : (site,) int array
        The atom that ends the cap: H of a formate, C of an acetate's methyl; of a pair an H of
        `atom`, or the other O where there is none.
    other : (site,) int array
        The other O of a pair, else -1.
    cap : list of str
        Hill formula of the cap (``"CHO2"``, ``"C2H3O2"``, ``"H3O2"``).
    point : (site, 3) float array
        Where the carbon is or would be, Å.
    outward : (site, 3) float array
        Unit vector along which the linker would lie.
    """

    atom: NDArray[np.int64]
    end: NDArray[np.int64]
    other: NDArray[np.int64]
    cap: list[str]
    point: NDArray[np.float64]
    outward: NDArray[np.float64]


@dataclass(frozen=True)
class Graph:
    """Bonds of a blocks Dataset in both directions, sorted by the first atom."""

    z: NDArray[np.integer]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    indptr: NDArray[np.int64]

    @classmethod
    def of(cls, blocks: xr.Dataset, numbers: NDArray[np.integer]) -> Graph:
        """From the recorded bonds."""
        pair = blocks["bond_atom"].values
        start = np.concatenate([pair[:, 0], pair[:, 1]])
        order = np.argsort(start, kind="stable")
        end = np.concatenate([pair[:, 1], pair[:, 0]])[order]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(start, minlength=len(numbers)))])
        return cls(numbers, start[order], end, indptr)

    def count(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many bonded neighbours of each atom are in `mask`."""
        return np.bincount(self.start[mask[self.end]], minlength=len(self.z))

    def near(self, atom: int) -> list[int]:
        """Neighbours of an atom."""
        return self.end[self.indptr[atom] : self.indptr[atom + 1]].tolist()


def capped_sites(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    of_atom: NDArray[np.int64],
    reach: float,
) -> Sites:
    """All capped sites, acid groups first, each in the order of its atoms.

    Parameters
    ----------
    blocks : Dataset
        From `blocks_from_bonds`.
    numbers : (atom,) int
    positions : (atom, 3) float, Å
    cell : (3, 3) float, Å
    of_atom : (atom,) int
        Block of each atom.
    reach : float
        Distance from a brick's centre to the carbon of an acid group, Å; 0 where it is not known,
        and then no pairs are looked for.
    """
    graph = Graph.of(blocks, numbers)
    carbon, end, cap = _acids(blocks, graph)
    first, h, other, pair_cap, point, outward = _pairs(
        blocks, graph, positions, cell, of_atom, reach
    )
    return Sites(
        np.concatenate([carbon, first]),
        np.concatenate([end, h]),
        np.concatenate([np.full(len(carbon), -1), other]),
        cap + pair_cap,
        np.vstack([positions[carbon], point]),
        np.vstack([_away_from_oxygen(blocks, numbers, positions, cell, carbon), outward]),
    )


def _acids(
    blocks: xr.Dataset, graph: Graph
) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Carbon, end and formula of formates, acetates, ... that join nothing."""
    z = graph.z
    oxygen = z == 8
    on_metal = oxygen & (graph.count(IS_METAL[z]) > 0)
    acid = (z == 6) & (np.diff(graph.indptr) == 3)
    acid &= (graph.count(oxygen) == 2) & (graph.count(on_metal) > 0)
    acid[blocks["link_atom"].values.ravel()] = False
    carboxylate_is_cut = bool(
        {"auto", "carboxylate", "pillar"} & set(str(blocks.attrs["rule"]).split("+"))
    )
    carbons, ends, caps = [], [], []
    for carbon in np.flatnonzero(acid).tolist():
        end = next(k for k in graph.near(carbon) if z[k] != 8)
        if z[end] == 1:
            caps.append("CHO2")
        elif carboxylate_is_cut and not IS_METAL[z[end]]:
            tail = _tail(graph, carbon, end)
            if tail is None:
                continue
            caps.append(formula(Counter(["C", "O", "O", *(chemical_symbols[z[k]] for k in tail)])))
        else:
            continue
        carbons.append(carbon)
        ends.append(end)
    return np.array(carbons, np.int64), np.array(ends, np.int64), caps


def _tail(graph: Graph, carbon: int, end: int) -> list[int] | None:
    """Atoms behind an acid carbon; None where they lead to another metal."""
    found, queue = {carbon, end}, [end]
    for atom in queue:
        for k in graph.near(atom):
            if IS_METAL[graph.z[k]]:
                return None
            if k not in found:
                found.add(k)
                queue.append(k)
    return queue


def _away_from_oxygen(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    site: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Unit vectors from the middle of the two O of each acid group through its C."""
    pair = blocks["bond_atom"].values
    vector = positions[pair[:, 1]] + blocks["bond_shift"].values @ cell - positions[pair[:, 0]]
    total = np.zeros_like(positions)
    for a, sign in ((0, 1.0), (1, -1.0)):
        to_oxygen = numbers[pair[:, 1 - a]] == 8
        np.add.at(total, pair[to_oxygen, a], sign * vector[to_oxygen])
    return _unit(-total[site])


def _pairs(
    blocks: xr.Dataset,
    graph: Graph,
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    of_atom: NDArray[np.int64],
    reach: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], list[str], NDArray, NDArray]:
    """OH, H2O or O at the ends of two metals that an O bridges, where an acid group could be."""
    z = graph.z
    metal = IS_METAL[z]
    n_metal = graph.count(metal)
    heavy = np.diff(graph.indptr) - graph.count(z == 1)
    terminal = np.flatnonzero((z == 8) & (n_metal == 1) & (heavy == 1))
    none = np.zeros(0, np.int64)
    if not len(terminal) or reach <= 0:
        return none, none, none, [], np.zeros((0, 3)), np.zeros((0, 3))
    whole = np.array(positions, float)
    member = blocks["member_atom"].values
    whole[member] += blocks["member_shift"].values @ cell
    edge = np.isin(graph.start, terminal) & metal[graph.end]
    holder = np.full(len(z), -1)
    holder[graph.start[edge]] = graph.end[edge]
    near = cKDTree(whole[terminal]).query_pairs(PAIR, output_type="ndarray")
    a, b = terminal[near[:, 0]], terminal[near[:, 1]]
    fits = (of_atom[a] == of_atom[b]) & (holder[a] != holder[b])
    a, b = a[fits], b[fits]
    bridge = _bridged(graph, n_metal)
    fits = np.array([(holder[i], holder[j]) in bridge for i, j in zip(a, b)], bool)
    a, b = a[fits], b[fits]
    order = np.argsort(np.linalg.norm(whole[a] - whole[b], axis=1), kind="stable")
    hydrogens = graph.count(z == 1)
    taken: set[int | tuple[int, int]] = set()
    rows: list[tuple[int, int]] = []
    for i, j in zip(a[order].tolist(), b[order].tolist()):
        # One site per pair of metals: the next pair of O belongs to the next edge of the brick.
        edge_of = (min(holder[i], holder[j]), max(holder[i], holder[j]))
        if taken.isdisjoint((i, j, edge_of)):
            taken |= {i, j, edge_of}
            rows.append((i, j) if (hydrogens[i], i) <= (hydrogens[j], j) else (j, i))
    rows.sort()
    pair = np.array(rows, np.int64).reshape(-1, 2)
    middle = whole[holder[pair]].mean(axis=1)
    centre = _metal_centres(whole, np.flatnonzero(metal), of_atom)[of_atom[pair[:, 0]]]
    # From the brick's centre through the middle of the two metals; where that is one point, the O
    # tell the direction.
    away = middle - centre
    beside = np.linalg.norm(away, axis=1) < 0.3
    away[beside] = (whole[pair].mean(axis=1) - middle)[beside]
    outward = _unit(away)
    ends = [next((k for k in graph.near(i) if z[k] == 1), j) for i, j in rows]
    caps = [formula({"O": 2, "H": int(hydrogens[i] + hydrogens[j])}) for i, j in rows]
    return (
        pair[:, 0],
        np.array(ends, np.int64),
        pair[:, 1],
        caps,
        centre + reach * outward,
        outward,
    )


def _bridged(graph: Graph, n_metal: NDArray[np.int64]) -> set[tuple[int, int]]:
    """Pairs of metals that an O bridges, both ways round."""
    z = graph.z
    edge = IS_METAL[z[graph.start]] & ((z == 8) & (n_metal > 1))[graph.end]
    n = len(z)
    link = sp.csr_array(
        (np.ones(int(edge.sum()), np.int8), (graph.start[edge], graph.end[edge])), shape=(n, n)
    )
    both = (link @ link.T).tocoo()
    return set(zip(both.row.tolist(), both.col.tolist()))


def _metal_centres(
    whole: NDArray[np.float64], metal: NDArray[np.int64], of_atom: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Mean position of the metals of each block: (block, 3); zero where it has none."""
    n = int(of_atom.max(initial=-1)) + 1
    total = np.stack(
        [np.bincount(of_atom[metal], weights=whole[metal, k], minlength=n) for k in range(3)], 1
    )
    return total / np.maximum(np.bincount(of_atom[metal], minlength=n), 1)[:, None]


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)
