"""Candidates for force matching: blueprints worth comparing, and their clusters in every frame."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import xarray as xr

from mofal.clusters.blueprints import (
    Plan,
    check_cores,
    check_shells,
    expand,
    join,
    on_rods,
    plan_dataset,
)
from mofal.clusters.cutting import cut
from mofal.clusters.graph import BlockGraph, IntArray, block_graph
from mofal.clusters.mantle import check_max_atoms, expand_within, neighbour_order
from mofal.data.ragged import TEXT
from mofal.errors import ConfigError, DataError


def candidates(
    blocks: xr.Dataset,
    core: int,
    *,
    shells: Sequence[int] = (0, 1, 2),
    partial: bool | Sequence[float] = True,
    focus: npt.ArrayLike | None = None,
    acid_first: bool | None = None,
    max_atoms: int | None = None,
) -> xr.Dataset:
    """Blueprints worth comparing for one core, small to large.

    Parameters
    ----------
    blocks : Dataset of kind ``blocks``
    core : the block
    shells : whole shells of neighbours to try
    partial : also mantles of part of the first shell, for where the whole of it is too dear: True
        for half of the neighbours, or the fractions to try
    focus : atoms of the parent that matter most, e.g. a formate; partial mantles keep the
        neighbours that are nearest to them along the bonds. Default: neighbours spread evenly.
    acid_first : also clusters whose protons go to acids before OH and phenolates; default: along
        rods, where the ends of a segment can be closed in several ways
    max_atoms : most atoms of a candidate; a larger one is proposed with the part of its mantle that
        fits, as `cut` makes it

    Returns
    -------
    Dataset as of `blueprint`, with `name`, `shells` (-1: partial), `links` (JSON) and `acid_first`
    on dim blueprint
    """
    graph = block_graph(blocks)
    check_cores(graph, np.array([core]))
    check_max_atoms(max_atoms)
    order = neighbour_order(graph, core, focus)
    graph = replace(
        graph, focus=np.atleast_1d(np.asarray([] if focus is None else focus, np.int64))
    )
    if acid_first is None:
        acid_first = on_rods(graph)[core]
    names, plans, depth, links, acids = [], [], [], [], []
    for first in (False, True) if acid_first else (False,):
        ordered = replace(graph, acid_first=np.full(graph.n_blocks, first))
        for shell in sorted({check_shells(shell) for shell in shells}):
            plan = expand_within(ordered, np.array([core]), np.array([shell]), max_atoms)
            if max_atoms is not None and plan.n_atoms[0] > max_atoms:
                continue
            whole = int(plan.whole_shells[0]) if plan.shortened[0] else shell
            part = whole == 0 and shell > 0 and len(plan.piece_block) > 1
            name = _part_of(graph, plan) if part else f"shells={whole}"
            names.append(name + (", acids first" if first else ""))
            plans.append(plan)
            depth.append(-1 if part else whole)
            links.append("null")
            acids.append(first)
    fractions = (0.5,) if partial is True else tuple(partial or ())
    for fraction in fractions:
        if not 0 < fraction < 1:
            raise ConfigError(f"partial={fraction}: expected fractions between 0 and 1")
        n_kept = round(fraction * len(order))
        if not 0 < n_kept < len(order):
            continue
        keep = np.zeros(len(graph.half_link), dtype=np.bool_)
        keep[np.concatenate(order[:n_kept])] = True
        plan = expand(graph, np.array([core]), 1, keep=keep)
        if max_atoms is not None and plan.n_atoms[0] > max_atoms:
            continue
        names.append(_part_of(graph, plan))
        plans.append(plan)
        depth.append(-1)
        links.append(json.dumps(sorted(graph.half_link[keep].tolist())))
        acids.append(False)
    if not plans:
        raise ConfigError(
            "no candidate: give shells="
            if max_atoms is None
            else f"max_atoms={max_atoms}: the smallest cluster around block {core} has "
            f"{int(expand(graph, np.array([core]), 0).n_atoms[0])} atoms"
        )
    sizes = [int(plan.n_atoms[0]) for plan in plans]
    by_size = sorted(range(len(plans)), key=lambda k: (sizes[k], k))
    # In a small block graph two candidates can be the same cluster: the first name stays.
    distinct: list[int] = []
    for k in by_size:
        if not any(_same(plans[k], plans[other]) for other in distinct):
            distinct.append(k)
    out = plan_dataset(join([plans[k] for k in distinct]))
    return out.assign(
        name=("blueprint", np.array([names[k] for k in distinct], TEXT)),
        shells=("blueprint", np.array([depth[k] for k in distinct], dtype=np.int64)),
        links=("blueprint", np.array([links[k] for k in distinct], TEXT)),
        acid_first=("blueprint", np.array([acids[k] for k in distinct], np.bool_)),
    )


def _part_of(graph: BlockGraph, plan: Plan) -> str:
    """Name of a candidate with part of the first shell."""
    core = int(plan.core[0])
    half = slice(*graph.half_start[core : core + 2])
    far = np.column_stack([graph.half_block[half], graph.half_shift[half]])
    if graph.mates is not None:
        mate = slice(*graph.mates.start[core : core + 2])
        far = np.concatenate(
            [far, np.column_stack([graph.mates.block[mate], graph.mates.shift[mate]])]
        )
    n = len(np.unique(far, axis=0))
    return f"{n - int(plan.left_out[0])} of {n} neighbours"


def _same(one: Plan, other: Plan) -> bool:
    """Whether two blueprints are the same atoms with the same caps (order aside)."""
    if len(one.inner_atom) != len(other.inner_atom):
        return False

    def rows(plan: Plan) -> IntArray:
        cap = np.zeros(len(plan.inner_atom), np.int64)
        cap[plan.cap_atom] = 1 + plan.cap_outer
        table = np.column_stack([plan.inner_atom, plan.shift, cap])
        return table[np.lexsort(table.T[::-1])]

    return np.array_equal(rows(one), rows(other))


def cut_candidates(
    structures: xr.Dataset,
    blueprints: xr.Dataset,
    blocks: xr.Dataset,
    *,
    unpaired: Mapping[str, int] | None = None,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Cut every candidate from every frame of one system.

    Parameters
    ----------
    structures : frames of one system
    blueprints : Dataset of `candidates`
    blocks : blocks Dataset of the system

    Returns
    -------
    clusters, refused : as of `cut`; clusters with `candidate` (structure), its name
    """
    systems = {str(name) for name in structures["system"].values}
    if len(systems) != 1:
        raise DataError(f"force matching needs frames of one system, found {sorted(systems)}")
    n, m = structures.sizes["structure"], blueprints.sizes["blueprint"]
    which = np.tile(np.arange(m), n)
    cores = xr.Dataset(
        {
            "core_structure": ("core", np.repeat(np.arange(n), m)),
            "core_block": ("core", blueprints["core"].values[which]),
            "core_blueprint": ("core", which),
        }
    )
    name = systems.pop()
    clusters, refused = cut(
        structures, {name: blocks}, cores, blueprints={name: blueprints}, unpaired=unpaired
    )
    names = np.array([str(text) for text in blueprints["name"].values], TEXT)
    clusters = clusters.assign(candidate=("structure", names[which[clusters["core_index"].values]]))
    refused = refused.assign(candidate=("core", names[which[refused["core"].values]]))
    return clusters, refused
