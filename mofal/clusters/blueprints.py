"""Blueprints: which block images make a cluster. Geometry comes later, frame by frame.

A blueprint knows blocks, lattice shifts and caps, and no positions: it serves every frame of a
system as long as the bonds hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xarray as xr

from mofal.clusters.graph import BlockGraph, BoolArray, FloatArray, IntArray, ragged_take
from mofal.clusters.graph import block_graph as _block_graph
from mofal.clusters.heads import choose_ends
from mofal.clusters.links import HeadTable, Mates
from mofal.errors import DataError

Shells = int | Mapping[str, npt.ArrayLike]
"""Shells of neighbouring blocks: one number, or for each system one number per block."""
CORE, MANTLE, TERMINATION = 0, 1, 2
LARGEST_KEY = 2**62
LARGE = 150
"""Atoms: a segment of a rod with three metals that passes this has two."""
SMALL_BRIDGE = 4
"""Atoms of a bridge along a rod at most."""
CLOSING = 6
"""Shells that may be added where a block's end can have no cap (a metal without its azolates)."""


@dataclass(frozen=True)
class Plan:
    """Blueprints one after another, as flat arrays of pieces (block images), atoms and caps.

    Attributes
    ----------
    core : (blueprint,) block
    n_pieces, n_atoms, n_caps : (blueprint,) `n_atoms` counts the caps, which come last
    piece_block, piece_shell : (piece,); piece_shift : (piece, 3), lattice shift of the image
    parent_atom : (atom,) atom of the parent, -1 for a cap
    inner_atom : (atom,) the same, but for a cap the atom that it is bonded to
    shift : (atom, 3) lattice shift; for a cap that of the atom it is bonded to
    region : (atom,) 0 core, 1 mantle, 2 termination
    cap_atom : (cap,) its index along `atom`
    cap_outer : (cap,) atom of the parent that it replaces; cap_outer_shift : (cap, 3)
    cap_link, cap_number : (cap,); cap_length : (cap,) Å
    whole_shells : (blueprint,) shells of the mantle, 0 where part of the first one is left out
    left_out : (blueprint,) neighbours of the core that are not in the mantle
    shortened : (blueprint,) the mantle is smaller than was asked for, to keep to a number of atoms
    """

    core: IntArray
    n_pieces: IntArray
    n_atoms: IntArray
    n_caps: IntArray
    piece_block: IntArray
    piece_shift: IntArray
    piece_shell: IntArray
    parent_atom: IntArray
    inner_atom: IntArray
    shift: IntArray
    region: IntArray
    cap_atom: IntArray
    cap_outer: IntArray
    cap_outer_shift: IntArray
    cap_link: IntArray
    cap_number: IntArray
    cap_length: FloatArray
    charge: IntArray
    whole_shells: IntArray
    left_out: IntArray
    shortened: BoolArray


def expand(
    graph: BlockGraph, cores: IntArray, shells: int, *, keep: BoolArray | None = None
) -> Plan:
    """Grow clusters from their cores, shell by shell of block images.

    Parameters
    ----------
    cores : (blueprint,) blocks
    shells : how many shells of neighbouring blocks make the mantle
        Where an end can have no cap, the block behind it is taken along.
    keep : (half-link,) bool, optional
        Which half-links of the cores are followed in the first shell; default: all of them.

    Notes
    -----
    Along a rod a shell is one more metal on either side (`BlockGraph.mates`), with all of its
    ligands: one shell is a segment of three metals, of two where three pass `LARGE` atoms.
    """
    plan = grow(graph, cores, shells, keep, fewer=False)
    if graph.mates is None or shells != 1 or keep is not None:
        return plan
    large = graph.mates.has[plan.core] & (plan.n_atoms > LARGE)
    if not large.any():
        return plan
    rows = np.arange(len(plan.core))
    small = grow(graph, plan.core[large], shells, None, fewer=True)
    order = np.concatenate([rows[~large], rows[large]])
    return take(join([take(plan, rows[~large]), small]), np.argsort(order, kind="stable"))


def grow(
    graph: BlockGraph, cores: IntArray, shells: int, keep: BoolArray | None, *, fewer: bool
) -> Plan:
    """`expand`; with `fewer`, a segment of a rod has two metals and not three."""
    n = len(cores)
    step = int(np.abs(graph.half_shift).max(initial=0))
    if graph.mates is not None:
        step = max(step, int(np.abs(graph.mates.shift).max(initial=0)))
    reach = step * (shells + CLOSING + 1)
    base = 2 * reach + 1
    if n > 1 and n * graph.n_blocks * base**3 >= LARGEST_KEY:
        parts = np.array_split(cores, 2)
        return join([grow(graph, part, shells, keep, fewer=fewer) for part in parts])

    def key(cluster: IntArray, block: IntArray, shift: IntArray) -> IntArray:
        code = cluster * graph.n_blocks + block
        for axis in range(3):
            code = code * base + shift[:, axis] + reach
        return code

    degree = np.diff(graph.half_start)
    never = graph.link_cap[graph.half_link, graph.half_end] < 0
    cluster = np.arange(n)
    block = np.asarray(cores, dtype=np.int64)
    shift = np.zeros((n, 3), dtype=np.int64)
    shell = np.zeros(n, dtype=np.int64)
    known = np.sort(key(cluster, block, shift))
    front = slice(0, n)
    for level in range(1, shells + CLOSING + 1):
        half, owner = ragged_take(graph.half_start, degree, block[front])
        if level > shells:
            # Ends that no cap can close take the block behind them along.
            half, owner = half[never[half]], owner[never[half]]
        elif level == 1 and keep is not None:
            follow = keep[half] | never[half]
            half, owner = half[follow], owner[follow]
        far_block, far_shift = graph.half_block[half], graph.half_shift[half]
        if graph.mates is not None and level <= shells:
            half, owner, far_block, far_shift = _along_rods(
                graph, graph.mates, block[front], half, owner, level, fewer
            )
        new_cluster = cluster[front][owner]
        new_block = far_block
        new_shift = shift[front][owner] + far_shift
        code, first = np.unique(key(new_cluster, new_block, new_shift), return_index=True)
        first = first[~_contains(known, code)]
        if not len(first) and level > shells:
            break
        front = slice(len(cluster), len(cluster) + len(first))
        cluster = np.concatenate([cluster, new_cluster[first]])
        block = np.concatenate([block, new_block[first]])
        shift = np.concatenate([shift, new_shift[first]])
        shell = np.concatenate([shell, np.full(len(first), level)])
        known = np.sort(key(cluster, block, shift))
    else:
        raise DataError(
            f"the cluster around block {cores[cluster[-1]]} does not end: after {CLOSING} more "
            "shells it still has ends that no cap may close; give the rule a cap for one side"
        )
    order = np.argsort(cluster, kind="stable")
    cluster, block, shift, shell = cluster[order], block[order], shift[order], shell[order]

    member, piece = ragged_take(graph.member_start, graph.block_n_atoms, block)
    half, near = ragged_take(graph.half_start, degree, block)
    far_shift = shift[near] + graph.half_shift[half]
    far = key(cluster[near], graph.half_block[half], far_shift)
    cut = ~_contains(known, far)
    charge = np.bincount(cluster, weights=graph.charge[block], minlength=n)
    ends, table = None, graph.heads
    if table is not None:
        own = key(cluster, block, shift)
        sort = np.argsort(own)
        ends = choose_ends(
            graph,
            table,
            cluster=cluster,
            block=block,
            half=half[cut],
            near=near[cut],
            kept_half=half[~cut],
            kept_near=near[~cut],
            kept_far=sort[np.searchsorted(own[sort], far[~cut])],
            is_core=shell == 0,
            charge=np.rint(charge).astype(np.int64),
            acid_first=np.zeros(n, np.bool_)
            if graph.acid_first is None
            else graph.acid_first[np.asarray(cores, np.int64)],
        )
    left_out = _left_out(graph, key, cluster, block, shift, shell)
    half, near = half[cut], near[cut]
    link, end = graph.half_link[half], graph.half_end[half]
    capped = graph.link_cap[link, end] > 0
    if ends is None or table is None:
        charge += np.bincount(cluster[near], weights=graph.link_cap_charge[link, end], minlength=n)
    else:
        charge += ends.charge
        capped &= ends.proton | (table.link_head[link] < 0)
    half, near, link, end = half[capped], near[capped], link[capped], end[capped]
    inner = graph.link_atom[link, end]
    outer = graph.link_atom[link, 1 - end]
    inner_shift = graph.atom_shift[inner] + shift[near]
    outward = graph.link_shift[link] * np.where(end == 0, 1, -1)[:, None]
    cap_number, cap_length = graph.link_cap[link, end], graph.link_cap_length[link, end]
    core_like = np.zeros(len(member), np.bool_)
    if ends is not None and table is not None:
        width = max(len(table.order), 1)
        gone = np.isin(
            piece * width + table.member_head[member], ends.gone_piece * width + ends.gone_head
        ) & (table.member_head[member] >= 0)
        member, piece = member[~gone], piece[~gone]
        # An H in the place of each acid head that is cut off.
        k = ends.gone_head
        near = np.concatenate([near, ends.gone_piece])
        inner = np.concatenate([inner, table.inner[k]])
        outer = np.concatenate([outer, table.centre[k]])
        back = graph.atom_shift[table.inner[k]] + shift[ends.gone_piece]
        inner_shift = np.concatenate([inner_shift, back])
        outward = np.concatenate([outward, table.shift[k]])
        link = np.concatenate([link, np.full(len(k), -1)])
        cap_number = np.concatenate([cap_number, np.ones(len(k), np.int64)])
        cap_length = np.concatenate([cap_length, table.length[k]])
        core_like = _core_heads(graph, table, cluster, block, shift, shell, member, piece)
        # Caps of one cluster are together, those in the place of heads last, as its atoms are.
        by_cluster = np.argsort(cluster[near], kind="stable")
        near, link = near[by_cluster], link[by_cluster]
        inner, inner_shift = inner[by_cluster], inner_shift[by_cluster]
        outer, outward = outer[by_cluster], outward[by_cluster]
        cap_number, cap_length = cap_number[by_cluster], cap_length[by_cluster]

    atom_cluster = np.concatenate([cluster[piece], cluster[near]])
    order = np.argsort(atom_cluster, kind="stable")
    parent = graph.member_atom[member]
    region = np.where((shell[piece] == 0) | core_like, CORE, MANTLE)
    is_cap = np.concatenate([np.zeros(len(piece), bool), np.ones(len(near), bool)])[order]
    return Plan(
        core=np.asarray(cores, dtype=np.int64),
        n_pieces=np.bincount(cluster, minlength=n),
        n_atoms=np.bincount(atom_cluster, minlength=n),
        n_caps=np.bincount(cluster[near], minlength=n),
        piece_block=block,
        piece_shift=shift,
        piece_shell=shell,
        parent_atom=np.concatenate([parent, np.full(len(near), -1)])[order],
        inner_atom=np.concatenate([parent, inner])[order],
        shift=np.concatenate([graph.member_shift[member] + shift[piece], inner_shift])[order],
        region=np.concatenate([region, np.full(len(near), TERMINATION)])[order],
        cap_atom=np.flatnonzero(is_cap),
        cap_outer=outer,
        cap_outer_shift=inner_shift + outward,
        cap_link=link,
        cap_number=cap_number,
        cap_length=cap_length,
        charge=np.rint(charge).astype(np.int64),
        whole_shells=np.where(left_out > 0, 0, shells),
        left_out=left_out,
        shortened=np.zeros(n, np.bool_),
    )


def _left_out(
    graph: BlockGraph,
    key: Callable[[IntArray, IntArray, IntArray], IntArray],
    cluster: IntArray,
    block: IntArray,
    shift: IntArray,
    shell: IntArray,
) -> IntArray:
    """Neighbours of each core that are not among the pieces: (cluster,)."""
    core = np.flatnonzero(shell == 0)
    half, near = ragged_take(graph.half_start, np.diff(graph.half_start), block[core])
    near_core, far_block, far_shift = core[near], graph.half_block[half], graph.half_shift[half]
    if graph.mates is not None:
        count = np.diff(graph.mates.start)
        mate, near = ragged_take(graph.mates.start[:-1], count, block[core])
        near_core = np.concatenate([near_core, core[near]])
        far_block = np.concatenate([far_block, graph.mates.block[mate]])
        far_shift = np.concatenate([far_shift, graph.mates.shift[mate]])
    far, first = np.unique(
        key(cluster[near_core], far_block, shift[near_core] + far_shift), return_index=True
    )
    missing = ~_contains(np.sort(key(cluster, block, shift)), far)
    return np.bincount(cluster[near_core][first[missing]], minlength=len(core))


def _along_rods(
    graph: BlockGraph,
    mates: Mates,
    block: IntArray,
    half: IntArray,
    owner: IntArray,
    level: int,
    fewer: bool,
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Steps of one shell where there are rods: half-links, owners, far blocks and their shifts.

    A metal of a rod steps to its mates and takes its ligands along. A ligand steps to its metals
    in the first shell only: further on it leads to other rods.
    """
    at_unit = mates.has[block[owner]]
    never = graph.link_cap[graph.half_link[half], graph.half_end[half]] < 0
    follow = (level == 1) | (at_unit & never)
    # Blocks that neither are metals of a rod nor hold one are as everywhere else.
    holds_unit = np.zeros(graph.n_blocks, np.bool_)
    unit_half = mates.has[graph.half_block]
    near_block = np.repeat(np.arange(graph.n_blocks), np.diff(graph.half_start))
    holds_unit[near_block[unit_half]] = True
    follow |= ~at_unit & ~holds_unit[block[owner]]
    half, owner = half[follow], owner[follow]
    count = np.diff(mates.start)
    if fewer:
        count = np.minimum(count, 1)
    units = np.where(mates.has[block], block, 0)
    mate, of = ragged_take(mates.start[:-1], np.where(mates.has, count, 0), units)
    real = mates.has[block[of]]
    mate, of = mate[real], of[real]
    return (
        half,
        np.concatenate([owner, of]),
        np.concatenate([graph.half_block[half], mates.block[mate]]),
        np.concatenate([graph.half_shift[half], mates.shift[mate]]),
    )


def _core_heads(
    graph: BlockGraph,
    table: HeadTable,
    cluster: IntArray,
    block: IntArray,
    shift: IntArray,
    shell: IntArray,
    member: IntArray,
    piece: IntArray,
) -> BoolArray:
    """Atoms of the heads that hold a core which is a metal of a rod: (kept member,).

    A metal alone is no environment: its donors count as core with it.
    """
    out = np.zeros(len(member), np.bool_)
    if graph.mates is None:
        return out
    cores = np.flatnonzero((shell == 0) & graph.mates.has[block])
    if not len(cores):
        return out
    half, near = ragged_take(graph.half_start, np.diff(graph.half_start), block[cores])
    head = table.link_head[graph.half_link[half]]
    far = graph.half_block[half]
    at = shift[cores[near]] + graph.half_shift[half]
    wanted = {
        (int(c), int(b), *s, int(h))
        for c, b, s, h in zip(cluster[cores[near]], far, at.tolist(), head)
        if h >= 0
    }
    rows = np.flatnonzero(table.member_head[member] >= 0)
    for k in rows.tolist():
        p = piece[k]
        key = (
            int(cluster[p]),
            int(block[p]),
            *shift[p].tolist(),
            int(table.member_head[member[k]]),
        )
        out[k] = key in wanted
    return out


def _contains(ordered: IntArray, wanted: IntArray) -> BoolArray:
    """Whether each of `wanted` occurs in the sorted array."""
    if not len(ordered):
        return np.zeros(len(wanted), dtype=np.bool_)
    at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return ordered[at] == wanted


def join(plans: list[Plan]) -> Plan:
    """One plan of several, atoms renumbered."""
    begin = np.cumsum([0] + [len(plan.parent_atom) for plan in plans])
    merged = {
        name: np.concatenate([getattr(plan, name) for plan in plans])
        for name in Plan.__dataclass_fields__
    }
    merged["cap_atom"] = np.concatenate([p.cap_atom + b for p, b in zip(plans, begin)])
    return Plan(**merged)


def take(plan: Plan, which: IntArray) -> Plan:
    """Some blueprints of a plan, in the order asked for, repeats allowed."""

    def begin(count: IntArray) -> IntArray:
        return np.cumsum(count) - count

    piece, _ = ragged_take(begin(plan.n_pieces), plan.n_pieces, which)
    atom, _ = ragged_take(begin(plan.n_atoms), plan.n_atoms, which)
    cap, _ = ragged_take(begin(plan.n_caps), plan.n_caps, which)
    region = plan.region[atom]
    return Plan(
        core=plan.core[which],
        n_pieces=plan.n_pieces[which],
        n_atoms=plan.n_atoms[which],
        n_caps=plan.n_caps[which],
        charge=plan.charge[which],
        whole_shells=plan.whole_shells[which],
        left_out=plan.left_out[which],
        shortened=plan.shortened[which],
        cap_atom=np.flatnonzero(region == TERMINATION),
        region=region,
        **{n: getattr(plan, n)[piece] for n in ("piece_block", "piece_shift", "piece_shell")},
        **{n: getattr(plan, n)[atom] for n in ("parent_atom", "inner_atom", "shift")},
        **{
            n: getattr(plan, n)[cap]
            for n in ("cap_outer", "cap_outer_shift", "cap_link", "cap_number", "cap_length")
        },
    )


def expand_each(graph: BlockGraph, cores: IntArray, depth: IntArray) -> Plan:
    """`expand` with a number of shells for each core: (core,)."""
    depths = np.unique(depth).tolist()
    if len(depths) <= 1:
        return expand(graph, cores, depths[0] if depths else 0)
    rows = [np.flatnonzero(depth == d) for d in depths]
    plan = join([expand(graph, cores[row], d) for row, d in zip(rows, depths)])
    return take(plan, np.argsort(np.concatenate(rows), kind="stable"))


def blueprint(
    blocks: xr.Dataset,
    core: int | Sequence[int] | IntArray,
    *,
    shells: int = 1,
    links: Sequence[int] | None = None,
) -> xr.Dataset:
    """Say which block images, with which lattice shifts and caps, make a cluster (SI.5).

    Parameters
    ----------
    blocks : Dataset of kind ``blocks``
    core : int or (blueprint,) ints
        The block, or one block per blueprint, whose environments are wanted.
    shells : int
        Shells of neighbouring blocks in the mantle; 0 gives the capped core alone. In small cells
        the images of a block are distinct blocks.
    links : sequence of int, optional
        A partial mantle: only these links of the core are followed in the first shell, the
        others are capped. One core only.

    Returns
    -------
    Dataset with dims blueprint, piece, atom, cap, xyz
        `core`, `n_pieces`, `n_atoms`, `n_caps`, `charge` (blueprint); `piece_block`,
        `piece_shell`, `piece_shift` (piece); `parent_atom`, `region`, `parent_shift` (atom);
        `cap_atom`, `cap_link`, `cap_outer`, `cap_number`, `cap_length` in Å (cap). Pieces, atoms
        and caps of one blueprint are contiguous; caps are the last atoms of their blueprint.

    Raises
    ------
    DataError
        If a core is not a block, a link does not belong to the core, or `shells` is negative.
    """
    graph = _block_graph(blocks)
    cores = np.atleast_1d(np.asarray(core, dtype=np.int64))
    keep = None if links is None else _links_to_keep(graph, cores, links)
    return plan_dataset(expand(graph, check_cores(graph, cores), check_shells(shells), keep=keep))


def on_rods(graph: BlockGraph) -> BoolArray:
    """Blocks that are metals of a rod, or bridge such metals: (block,) bool.

    A bridge is what holds its rod together (OH, oxo): smaller than what joins two rods.
    """
    out = np.zeros(graph.n_blocks, np.bool_)
    if graph.mates is None:
        return out
    out |= graph.mates.has
    near = np.repeat(np.arange(graph.n_blocks), np.diff(graph.half_start))
    held = np.bincount(near[out[graph.half_block]], minlength=graph.n_blocks) > 1
    return out | (held & (graph.block_n_atoms <= SMALL_BRIDGE))


def check_cores(graph: BlockGraph, cores: IntArray) -> IntArray:
    """Cores as given, or a `DataError` that names the first one that is no block."""
    wrong = (cores < 0) | (cores >= graph.n_blocks)
    if wrong.any():
        raise DataError(
            f"core {cores[wrong][0]} is not a block: this system has blocks 0 to "
            f"{graph.n_blocks - 1}"
        )
    return cores


def check_shells(shells: int) -> int:
    """Number of shells as given, or a `DataError`."""
    if isinstance(shells, str) or int(shells) != shells or shells < 0:
        raise DataError(f"shells={shells!r}: expected 0 (core and caps), 1 (paper), 2, ...")
    return int(shells)


def shells_of(shells: Shells, system: str, graph: BlockGraph) -> IntArray:
    """Shells of the cluster around every block of a system: (block,).

    Raises
    ------
    DataError
        If the numbers do not fit the blocks.
    """
    if not isinstance(shells, Mapping):
        return np.full(graph.n_blocks, check_shells(shells))
    if system not in shells:
        raise DataError(f"no shells for system {system!r}; known: {', '.join(sorted(shells))}")
    given = np.asarray(shells[system])
    if given.shape != (graph.n_blocks,):
        raise DataError(
            f"shells of system {system!r} have shape {given.shape}, expected one number for each "
            f"of its {graph.n_blocks} blocks"
        )
    for value in np.unique(given).tolist():
        check_shells(value)
    return given.astype(np.int64)


def _links_to_keep(graph: BlockGraph, cores: IntArray, links: Sequence[int]) -> BoolArray:
    if len(cores) != 1:
        raise DataError(f"a partial mantle needs one core, found {len(cores)}: call it per core")
    own = slice(*graph.half_start[cores[0] : cores[0] + 2])
    wanted = np.asarray(links, dtype=np.int64)
    stranger = wanted[~np.isin(wanted, graph.half_link[own])]
    if len(stranger):
        raise DataError(
            f"link {stranger[0]} does not touch block {cores[0]}; its links are "
            f"{sorted(set(graph.half_link[own].tolist()))}"
        )
    keep = np.zeros(len(graph.half_link), dtype=np.bool_)
    keep[own] = np.isin(graph.half_link[own], wanted)
    return keep


def plan_dataset(plan: Plan) -> xr.Dataset:
    """A `Plan` as the Dataset that `blueprint` documents."""
    return xr.Dataset(
        {
            "core": ("blueprint", plan.core),
            "n_pieces": ("blueprint", plan.n_pieces),
            "n_atoms": ("blueprint", plan.n_atoms),
            "n_caps": ("blueprint", plan.n_caps),
            "charge": ("blueprint", plan.charge),
            "whole_shells": ("blueprint", plan.whole_shells),
            "left_out": ("blueprint", plan.left_out),
            "shortened": ("blueprint", plan.shortened),
            "piece_block": ("piece", plan.piece_block),
            "piece_shell": ("piece", plan.piece_shell),
            "piece_shift": (("piece", "xyz"), plan.piece_shift),
            "parent_atom": ("atom", plan.parent_atom),
            "inner_atom": ("atom", plan.inner_atom),
            "parent_shift": (("atom", "xyz"), plan.shift),
            "region": ("atom", plan.region.astype(np.int8)),
            "cap_atom": ("cap", plan.cap_atom),
            "cap_link": ("cap", plan.cap_link),
            "cap_outer": ("cap", plan.cap_outer),
            "cap_outer_shift": (("cap", "xyz"), plan.cap_outer_shift),
            "cap_number": ("cap", plan.cap_number),
            "cap_length": ("cap", plan.cap_length, {"units": "Å"}),
        }
    )


def dataset_plan(ds: xr.Dataset) -> Plan:
    """The `Plan` of a Dataset that `blueprint` made."""
    missing = [name for name in ("core", "parent_atom", "cap_outer") if name not in ds.variables]
    if missing:
        raise DataError(
            f"not a blueprint: {', '.join(missing)} missing; make one with "
            "mofal.clusters.blueprint(blocks, core)"
        )
    names = {"shift": "parent_shift"}
    return Plan(
        **{name: np.asarray(ds[names.get(name, name)].values) for name in Plan.__dataclass_fields__}
    )
