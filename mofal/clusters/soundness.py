"""Is a cluster sound? Bonds that broke, rings that opened, atoms that came too close."""

from __future__ import annotations

import numpy as np
from ase.data import covalent_radii
from scipy.spatial import cKDTree

from mofal.clusters.blueprints import Plan
from mofal.clusters.frames import FrameCheck, describe_bond
from mofal.clusters.graph import BlockGraph, FloatArray, IntArray, ragged_take

NEAREST = 0.6
"""Two atoms are too close below this multiple of the sum of their covalent radii: H-H 0.37 Å,
C-H 0.64 Å, C-C 0.91 Å. A bond of a walk at 600 K is compressed to 0.8 at most."""


def nearest_pairs(
    numbers: IntArray, positions: FloatArray, owner: IntArray, n: int, *, nearest: float = NEAREST
) -> tuple[FloatArray, FloatArray, IntArray]:
    """Smallest distance in each cluster, and the pair that is nearest for its elements.

    Parameters
    ----------
    numbers, positions, owner : (atom,), (atom, 3) Å, (atom,) cluster of each atom, ascending

    Returns
    -------
    smallest : (cluster,) Å, NaN for a single atom or positions that are not finite
    ratio : (cluster,) smallest distance in sums of covalent radii, inf if none is near
    pair : (cluster, 2) the atoms of that ratio, -1 if there is none
    """
    smallest = np.full(n, np.nan)
    ratio = np.full(n, np.inf)
    pair = np.full((n, 2), -1, dtype=np.int64)
    finite = np.isfinite(positions).all(axis=1)
    sound = np.bincount(owner[~finite], minlength=n) == 0
    use = np.flatnonzero(sound[owner])
    if not len(use):
        return smallest, ratio, pair
    # One tree for all clusters: they are set side by side, too far apart to meet. (Boxes of the
    # clusters decide how far; the loss of digits is below 1e-9 Å for 1e6 Å.)
    low = np.full((n, 3), np.inf)
    high = np.full((n, 3), -np.inf)
    np.minimum.at(low, owner[use], positions[use])
    np.maximum.at(high, owner[use], positions[use])
    width = np.where(sound, (high - low)[:, 0], 0.0)
    width[~np.isfinite(width)] = 0.0
    begin = np.concatenate([[0.0], np.cumsum(width + 20.0)[:-1]])
    local = positions[use] - low[owner[use]]
    local[:, 0] += begin[owner[use]]
    tree = cKDTree(local)
    reach, _ = tree.query(local, k=2, distance_upper_bound=10.0)
    np.fmin.at(smallest, owner[use], np.where(np.isfinite(reach[:, 1]), reach[:, 1], np.nan))
    radius = covalent_radii[numbers[use]]
    near = tree.query_pairs(nearest * 2 * radius.max() + 1e-9, output_type="ndarray")
    if len(near):
        distance = np.linalg.norm(local[near[:, 0]] - local[near[:, 1]], axis=1)
        relative = distance / radius[near].sum(axis=1)
        order = np.argsort(-relative, kind="stable")  # the smallest is written last
        cluster = owner[use][near[order, 0]]
        ratio[cluster] = relative[order]
        pair[cluster] = use[near[order]]
    return smallest, ratio, pair


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
