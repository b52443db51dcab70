"""Donors that lost their metals: protons where the charge wants them, far acid heads cut off.

Only for blocks whose ligands were cut off their metals (the rule `auto`): rods, azolates, bridges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mofal.clusters.graph import BlockGraph, BoolArray, IntArray
from mofal.clusters.links import HeadTable
from mofal.frameworks.heads import ACID, AZOLE, OTHER, OXIDE, PHENOLATE

# Which kind takes a proton first, after the heads that lost every metal; and the other way round.
_ORDER = (OXIDE, PHENOLATE, AZOLE, ACID, OTHER)
_ACID_FIRST = (ACID, AZOLE, PHENOLATE, OXIDE, OTHER)


@dataclass(frozen=True)
class Ends:
    """What is done at the cut donors of some clusters.

    Attributes
    ----------
    proton : (cut half-link,) bool array
        Which get their proton.
    gone_piece, gone_head : (n,) int arrays
        Acid heads that are cut off: of which piece, which head.
    charge : (cluster,) int array
        What this adds to the charge of each cluster.
    """

    proton: BoolArray
    gone_piece: IntArray
    gone_head: IntArray
    charge: IntArray


def choose_ends(
    graph: BlockGraph,
    table: HeadTable,
    *,
    cluster: IntArray,
    block: IntArray,
    half: IntArray,
    near: IntArray,
    kept_half: IntArray,
    kept_near: IntArray,
    kept_far: IntArray,
    charge: IntArray,
    acid_first: BoolArray,
    is_core: BoolArray,
) -> Ends:
    """Choose protons, and acid heads to cut off.

    Parameters
    ----------
    cluster, block : (piece,)
    half, near : (cut,) half-links that lead out of the cluster, and the piece that each leaves
    kept_half, kept_near, kept_far : (kept,) half-links within, and the pieces at their two ends
    charge : (cluster,) without any of this
    acid_first : (cluster,) acids take protons before OH and phenolate
    is_core : (piece,) of these no head is cut off: the atoms of a core all stay
    """
    n_clusters = len(charge)
    order = np.where(graph.half_end[half] == 1, table.link_order[graph.half_link[half]], 0)
    head = np.where(graph.half_end[half] == 1, table.link_head[graph.half_link[half]], -1)
    width = max(len(table.order), 1)
    inside = table.link_head[graph.half_link[kept_half]]
    mine = (graph.half_end[kept_half] == 1) & (inside >= 0)
    held = np.unique(kept_near[mine] * width + inside[mine])

    # Far acid heads: those of a ligand that another of its heads holds.
    lost = np.flatnonzero(head >= 0)
    key = np.unique(near[lost] * width + head[lost])
    key = key[~np.isin(key, held)]
    piece, which = key // width, key % width
    cut_off = (table.inner[which] >= 0) & ~is_core[piece]
    gone_piece, gone_head = piece[cut_off], which[cut_off]
    extra = np.bincount(
        cluster[gone_piece], weights=-table.charge[gone_head], minlength=n_clusters
    ).astype(np.int64)
    is_gone = np.isin(near * width + head, key[cut_off]) & (head >= 0)

    proton = np.zeros(len(half), np.bool_)
    need = -(charge + extra)
    candidates = np.flatnonzero((order > 0) & ~is_gone)
    by_cluster: dict[int, list[int]] = {}
    for k in candidates.tolist():
        by_cluster.setdefault(int(cluster[near[k]]), []).append(k)
    neighbours: dict[int, int] = {}
    for a, b in zip(kept_near[mine].tolist(), kept_far[mine].tolist()):
        neighbours[a] = min(b, neighbours.get(a, b))
    held_keys = set(held.tolist())
    for c, rows in by_cluster.items():
        if need[c] > 0:
            kinds = _ACID_FIRST if acid_first[c] else _ORDER
            chosen = _pick(
                rows, int(need[c]), near, head, order, kinds, table, held_keys, neighbours
            )
            proton[chosen] = True
    extra += np.bincount(cluster[near[proton]], minlength=n_clusters)
    return Ends(proton, gone_piece, gone_head, extra)


def _pick(
    rows: list[int],
    need: int,
    near: IntArray,
    head: IntArray,
    order: IntArray,
    kinds: tuple[int, ...],
    table: HeadTable,
    held: set[int],
    neighbours: dict[int, int],
) -> list[int]:
    """Which cut donors of one cluster get a proton: `need` of them, or as many as there are."""
    width = max(len(table.order), 1)
    groups: dict[tuple[int, int], list[int]] = {}
    for k in rows:
        groups.setdefault((int(near[k]), int(head[k])), []).append(k)
    chosen: list[int] = []
    turns: list[tuple[tuple[int, ...], list[int]]] = []
    for (piece, which), own in groups.items():
        kind = kinds.index(int(order[own[0]]))
        lost_all = piece * width + which not in held
        # One proton per head; one that lost every metal takes as many as it has charges.
        most = max(int(-table.charge[which]), 1) if lost_all else 1
        end = neighbours.get(piece, piece)
        turns.append(((0 if lost_all else 1, kind, end, piece, which), own[:most]))
    turns.sort(key=lambda turn: turn[0])
    # Ends by turns: the first of each end, then the second of each.
    for tier in sorted({turn[0][:2] for turn in turns}):
        ends: dict[int, list[list[int]]] = {}
        for key, own in turns:
            if key[:2] == tier:
                ends.setdefault(key[2], []).append(own)
        for own in _by_turns(list(ends.values())):
            for k in own:
                if len(chosen) == need:
                    return chosen
                chosen.append(k)
    return chosen


def _by_turns(ends: list[list[list[int]]]) -> list[list[int]]:
    out = []
    for k in range(max(len(e) for e in ends)):
        # First, last, second, last but one: far ends follow one another.
        row = [e[k] for e in ends if k < len(e)]
        while row:
            out.append(row.pop(0))
            if row:
                out.append(row.pop())
    return out
