"""Mantles within a number of atoms: which neighbours of a core stay where not all of them can."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from mofal.clusters.blueprints import Plan, expand_each, grow, join, take
from mofal.clusters.graph import BlockGraph, IntArray
from mofal.errors import ConfigError, DataError
from mofal.frameworks.heads import ACID


def neighbour_groups(graph: BlockGraph, core: int) -> list[IntArray]:
    """Half-links of a core, one array for each neighbour; only whole ones can be left out.

    Half-links to one image of a block belong together, and so do those of one acid of the core: one
    that keeps one of its two metals is no end that occurs.
    """
    own = np.arange(*graph.half_start[core : core + 2])
    far = np.column_stack([graph.half_block[own], graph.half_shift[own]])
    _, image = np.unique(far, axis=0, return_inverse=True)
    image = image.reshape(-1)
    nodes = [image]
    if graph.heads is not None:
        head = graph.heads.link_head[graph.half_link[own]]
        acid = graph.heads.link_order[graph.half_link[own]] == ACID
        mine = (graph.half_end[own] == 1) & (head >= 0) & acid
        nodes.append(np.where(mine, image.max(initial=0) + 1 + head, image))
    a, b = nodes[0], nodes[-1]
    size = int(max(a.max(initial=-1), b.max(initial=-1))) + 1
    edges = sparse.coo_array((np.ones(len(own)), (a, b)), shape=(size, size))
    label = csgraph.connected_components(edges, directed=False)[1][a]
    _, first = np.unique(label, return_index=True)
    return [own[label == label[k]] for k in np.sort(first).tolist()]


def neighbour_order(
    graph: BlockGraph, core: int, focus: npt.ArrayLike | None = None
) -> list[IntArray]:
    """Neighbours of a core in the order in which a partial mantle keeps them.

    Parameters
    ----------
    core : block
    focus : atoms of the core that matter most
        Neighbours nearest to them along the bonds come first. Default: each next one is the
        farthest from those before, so that any number of them is spread evenly.

    Returns
    -------
    list of arrays of half-links, as of `neighbour_groups`

    Raises
    ------
    DataError
        A focus that is not in the core.
    """
    groups = neighbour_groups(graph, core)
    member = graph.member_atom[slice(*graph.member_start[core : core + 2])]
    local = {atom: k for k, atom in enumerate(member.tolist())}
    inside = graph.atom_block[graph.bond_atom[:, 0]] == core
    first, second = (
        np.array([local[a] for a in ends], np.int64) for ends in graph.bond_atom[inside].T.tolist()
    )
    bonds = sparse.coo_array(
        (np.ones(len(first)), (first, second)), shape=(len(member), len(member))
    ).tocsr()
    ends = [
        np.array(
            [local[a] for a in graph.link_atom[graph.half_link[g], graph.half_end[g]].tolist()]
        )
        for g in groups
    ]
    if focus is not None and len(np.atleast_1d(focus)):
        atoms = np.atleast_1d(np.asarray(focus, dtype=np.int64)).tolist()
        if not set(atoms) <= set(local):
            raise DataError(f"focus: atoms {atoms} are not all in block {core}")
        away = csgraph.dijkstra(
            bonds, directed=False, indices=[local[a] for a in atoms], unweighted=True
        ).min(axis=0)
        order = np.argsort([away[e].min() for e in ends], kind="stable").tolist()
        return [groups[k] for k in order]
    everything = csgraph.dijkstra(bonds, directed=False, unweighted=True)
    everything[~np.isfinite(everything)] = len(member)
    apart = np.array([[everything[np.ix_(e, f)].min() for f in ends] for e in ends])
    chosen = [0] if groups else []
    while len(chosen) < len(groups):
        nearest = apart[chosen].min(axis=0)
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return [groups[k] for k in chosen]


def check_max_atoms(max_atoms: int | None) -> int | None:
    """The limit as given, or a `ConfigError`."""
    if max_atoms is not None and (int(max_atoms) != max_atoms or max_atoms < 1):
        raise ConfigError(
            f"max_atoms={max_atoms!r}: expected the atoms that a cluster may have, or None"
        )
    return max_atoms


def expand_within(
    graph: BlockGraph, cores: IntArray, depth: IntArray, max_atoms: int | None
) -> Plan:
    """Grow clusters that have at most so many atoms, where there are such.

    Where the shells asked for are too many, outer ones are left out as a whole; where the first
    one is too large, it keeps as many neighbours as fit, in the order of `neighbour_order` with
    `BlockGraph.focus` in the core as focus. Along rods a segment has fewer metals.

    Parameters
    ----------
    cores, depth : (blueprint,) blocks; shells that are wanted
    max_atoms : caps included; None: no limit

    Returns
    -------
    Plan
        With `shortened`. A cluster that no mantle makes small enough is the smallest there is.
    """
    plan = expand_each(graph, cores, depth)
    if max_atoms is None or not (plan.n_atoms > max_atoms).any():
        return plan
    rows = np.flatnonzero(plan.n_atoms > max_atoms)
    smaller = _within(graph, plan.core[rows], depth[rows], max_atoms)
    smaller = replace(smaller, shortened=np.ones(len(rows), np.bool_))
    fit = np.flatnonzero(plan.n_atoms <= max_atoms)
    order = np.argsort(np.concatenate([fit, rows]), kind="stable")
    return take(join([take(plan, fit), smaller]), order)


def _within(graph: BlockGraph, cores: IntArray, depth: IntArray, max_atoms: int) -> Plan:
    """`expand_within` of cores whose clusters are too large at `depth`."""
    done: list[Plan] = []
    at: list[IntArray] = []

    def settle(plan: Plan, rows: IntArray, fits: IntArray) -> None:
        done.append(take(plan, fits))
        at.append(rows[fits])

    left = np.arange(len(cores))
    for shells in range(int(depth.max(initial=0)) - 1, 0, -1):
        rows = left[depth[left] > shells]
        plan = expand_each(graph, cores[rows], np.full(len(rows), shells))
        fits = np.flatnonzero(plan.n_atoms <= max_atoms)
        settle(plan, rows, fits)
        left = np.setdiff1d(left, rows[fits])
    rod = np.zeros(graph.n_blocks, np.bool_) if graph.mates is None else graph.mates.has
    # A metal of a rod has its donors in any case; what can be left out is metals.
    rows = left[rod[cores[left]]]
    for shells in (1, 0):
        plan = grow(graph, cores[rows], shells, None, fewer=True)
        fits = np.flatnonzero((plan.n_atoms <= max_atoms) | (shells == 0))
        settle(plan, rows, fits)
        rows = np.delete(rows, fits)
    rows = left[~rod[cores[left]]]
    if len(rows):
        plan = _partial(graph, cores[rows], max_atoms)
        settle(plan, rows, np.arange(len(rows)))
    return take(join(done), np.argsort(np.concatenate(at), kind="stable"))


def _partial(graph: BlockGraph, cores: IntArray, max_atoms: int) -> Plan:
    """Clusters with as much of the first shell as fits, none of it where nothing does."""
    # Cores of equal blocks in equal order would share an order; there are few cores per batch.
    order = [
        neighbour_order(graph, c, np.intersect1d(graph.focus, _members(graph, c)))
        for c in cores.tolist()
    ]
    low = np.zeros(len(cores), np.int64)
    high = np.array([len(groups) for groups in order], np.int64)
    while (high - low > 1).any():
        open_ = np.flatnonzero(high - low > 1)
        middle = (low + high) // 2
        plan = _with(graph, cores, order, middle, open_)
        fits = plan.n_atoms <= max_atoms
        low[open_[fits]] = middle[open_[fits]]
        high[open_[~fits]] = middle[open_[~fits]]
    return _with(graph, cores, order, low, np.arange(len(cores)))


def _members(graph: BlockGraph, block: int) -> IntArray:
    return graph.member_atom[slice(*graph.member_start[block : block + 2])]


def _with(
    graph: BlockGraph,
    cores: IntArray,
    order: list[list[IntArray]],
    number: IntArray,
    which: IntArray,
) -> Plan:
    """Clusters of some cores, each with the first neighbours of its order."""
    keep = np.zeros(len(graph.half_link), dtype=np.bool_)
    for k in which.tolist():
        for half in order[k][: int(number[k])]:
            keep[half] = True
    return grow(graph, cores[which], 1, keep, fewer=False)
