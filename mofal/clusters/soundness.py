"""Is a cluster sound? Bonds that broke, rings that opened, atoms that came too close."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from scipy.spatial import cKDTree

from mofal.clusters.blueprints import Plan
from mofal.clusters.frames import FrameCheck, describe_bond
from mofal.clusters.graph import BlockGraph, FloatArray, IntArray, ragged_take

NEAREST = 0.6
"""Two atoms are too close below this multiple of the sum of their covalent radii: H-H 0.37 Å,
C-H 0.64 Å, C-C 0.91 Å. A bond of a walk at 600 K is compressed to 0.8 at most."""
APART = 20.0
"""Å between clusters that share a tree."""


def nearest_pairs(
    numbers: IntArray,
    positions: FloatArray,
    n_atoms: IntArray,
    *,
    nearest: float = NEAREST,
) -> tuple[FloatArray, dict[int, str]]:
    """Smallest distance in each cluster, and which of them hold atoms that are too close.

    Parameters
    ----------
    numbers, positions : (atom,), (atom, 3) Å
    n_atoms : (cluster,) atoms of each cluster, one after another
    nearest : smallest distance, in sums of covalent radii

    Returns
    -------
    smallest : (cluster,) Å, NaN for a single atom or positions that are not finite
    reasons : cluster -> one line on the pair that is nearest for its elements
    """
    n = len(n_atoms)
    smallest = np.full(n, np.nan)
    reasons: dict[int, str] = {}
    start = np.concatenate([[0], np.cumsum(n_atoms)]).astype(np.int64)
    first = 0
    while first < n:  # a tree of some 300,000 atoms at a time
        last = max(first + 1, int(np.searchsorted(start, start[first] + 300_000, side="right")) - 1)
        span = slice(start[first], start[last])
        owner = np.repeat(np.arange(last - first), n_atoms[first:last])
        near, found = _nearest_in(numbers[span], positions[span], owner, last - first, nearest)
        smallest[first:last] = near
        for cluster, (a, b) in found.items():
            begin = start[first + cluster] - start[first]
            one, two = numbers[span][a], numbers[span][b]
            distance = np.linalg.norm(positions[span][a] - positions[span][b])
            reasons[first + cluster] = (
                f"atoms too close: {chemical_symbols[one]} and {chemical_symbols[two]} (atoms "
                f"{a - begin} and {b - begin} of the cluster) at {distance:.2f} Å"
            )
        first = last
    return smallest, reasons


def _nearest_in(
    numbers: IntArray, positions: FloatArray, owner: IntArray, n: int, nearest: float
) -> tuple[FloatArray, dict[int, tuple[int, int]]]:
    """`nearest_pairs` in one tree: smallest distance, and the nearest pair of what is too close."""
    smallest = np.full(n, np.nan)
    finite = np.isfinite(positions).all(axis=1)
    sound = np.bincount(owner[~finite], minlength=n) == 0
    use = np.flatnonzero(sound[owner])
    if not len(use):
        return smallest, {}
    # The clusters are set side by side, too far apart to meet.
    low = np.full((n, 3), np.inf)
    high = np.full((n, 3), -np.inf)
    np.minimum.at(low, owner[use], positions[use])
    np.maximum.at(high, owner[use], positions[use])
    width = np.where(np.isfinite(low[:, 0]), high[:, 0] - low[:, 0], 0.0)
    local = positions[use] - low[owner[use]]
    local[:, 0] += np.concatenate([[0.0], np.cumsum(width + APART)[:-1]])[owner[use]]
    tree = cKDTree(local)
    radius = covalent_radii[numbers[use]]
    # Every molecule has a bond shorter than this; where not, its atoms are asked one by one.
    reach = max(1.25, nearest * 2 * float(radius.max()) + 1e-9)
    near = tree.query_pairs(reach, output_type="ndarray")
    distance = np.linalg.norm(local[near[:, 0]] - local[near[:, 1]], axis=1)
    np.fmin.at(smallest, owner[use][near[:, 0]], distance)
    rest = np.flatnonzero(np.isnan(smallest[owner[use]]))
    if len(rest):
        alone, _ = tree.query(local[rest], k=2, distance_upper_bound=APART / 2)
        np.fmin.at(
            smallest, owner[use][rest], np.where(np.isfinite(alone[:, 1]), alone[:, 1], np.nan)
        )
    ratio = distance / radius[near].sum(axis=1)
    close = np.flatnonzero(ratio < nearest)
    close = close[np.argsort(-ratio[close], kind="stable")]  # the nearest is written last
    pairs = use[np.sort(near[close], axis=1)]
    return smallest, {int(owner[a]): (int(a), int(b)) for a, b in pairs.tolist()}


def broken_in(
    plan: Plan, graph: BlockGraph, check: FrameCheck, numbers: IntArray
) -> dict[int, str]:
    """Reasons of the blueprints that hold, or cut, a bond that is broken in this frame."""
    if check.holds:
        return {}
    n = len(plan.core)
    owner = np.repeat(np.arange(n), plan.n_pieces)
    reasons: dict[int, str] = {}
    links = np.flatnonzero(check.broken_links)
    touched = np.isin(plan.piece_block, graph.link_block[links])
    degree = np.diff(graph.half_start)
    half, near = ragged_take(graph.half_start, degree, plan.piece_block[touched])
    at_link = check.broken_links[graph.half_link[half]]
    for cluster, link in zip(
        owner[touched][near[at_link]].tolist(), graph.half_link[half[at_link]].tolist()
    ):
        reasons[cluster] = describe_bond(
            graph.link_atom[link],
            check.link_length[link],
            check.link_limit[link],
            numbers,
            word="bond between blocks",
        )
    worst = _worst_bonds(graph, check, np.unique(plan.piece_block))
    damaged = np.isin(plan.piece_block, list(worst))
    for cluster, block in zip(owner[damaged].tolist(), plan.piece_block[damaged].tolist()):
        bond, word = worst[block]
        reasons[cluster] = describe_bond(
            graph.bond_atom[bond],
            check.bond_length[bond],
            check.bond_limit[bond],
            numbers,
            word=word,
        )
    return reasons


def _worst_bonds(
    graph: BlockGraph, check: FrameCheck, wanted: IntArray
) -> dict[int, tuple[int, str]]:
    """One broken bond of each damaged block, of a ring if one opened, and what it is called."""
    broken = check.broken_bonds & np.isin(graph.atom_block[graph.bond_atom[:, 0]], wanted)
    bonds = np.flatnonzero(broken)
    ratio = check.bond_length[bonds] / check.bond_limit[bonds]
    found: dict[int, tuple[int, str]] = {}
    for bond in bonds[np.argsort(-ratio, kind="stable")].tolist():
        block = int(graph.atom_block[graph.bond_atom[bond, 0]])
        if block in found and found[block][1] == "ring":
            continue
        if _in_ring(graph, block, bond):
            found[block] = (bond, "ring")
        elif block not in found:
            found[block] = (bond, "bond")
    return found


def _in_ring(graph: BlockGraph, block: int, bond: int) -> bool:
    """Whether the atoms of a recorded bond are joined by other bonds of the block, too."""
    first, second = graph.bond_atom[bond].tolist()
    own = np.flatnonzero(graph.atom_block[graph.bond_atom[:, 0]] == block)
    near: dict[int, list[int]] = {}
    for k in own.tolist():
        if k != bond:
            a, b = graph.bond_atom[k].tolist()
            near.setdefault(a, []).append(b)
            near.setdefault(b, []).append(a)
    reached, queue = {first}, [first]
    while queue:
        for atom in near.get(queue.pop(), ()):
            if atom not in reached:
                reached.add(atom)
                queue.append(atom)
    return second in reached
