"""The pool of candidates: every block of every structure, reduced from scores chunk by chunk.

Per-structure (here: per-block) reductions over a flat, possibly lazy array whose chunks split
structures: each chunk gives partial results for the blocks it touches, and these are combined. One
task per chunk, whatever the number of atoms, blocks or structures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters.graph import (
    BlockGraph,
    BoolArray,
    FloatArray,
    IntArray,
    block_graph,
    ragged_take,
)
from mofal.clusters.mantle import expand_within
from mofal.clusters.rankings import REDUCTIONS, Ranking, reduce_blocks
from mofal.data.computing import compute
from mofal.errors import ConfigError, DataError

UNSEEN = "unseen"


@dataclass(frozen=True)
class Pool:
    """All blocks of all structures, numbered in one go.

    Attributes
    ----------
    atom_start : (structure + 1,) first atom of each structure
    block_start : (structure + 1,) first candidate of each structure
    system_of : (structure,) index into `graphs`
    graphs, names : one per system
    """

    atom_start: IntArray
    block_start: IntArray
    system_of: IntArray
    graphs: tuple[BlockGraph, ...]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of candidates."""
        return int(self.block_start[-1])

    def structure_of(self, candidate: IntArray) -> IntArray:
        """Structure of each candidate."""
        return np.searchsorted(self.block_start, candidate, side="right") - 1

    def block_of(self, candidate: IntArray) -> IntArray:
        """Block of each candidate in its structure."""
        return candidate - self.block_start[self.structure_of(candidate)]

    def candidate_of(self, low: int, high: int) -> IntArray:
        """Candidate of each atom ``low:high`` of the flat axis; chunks may split structures."""
        out = np.empty(high - low, dtype=np.int64)
        first = int(np.searchsorted(self.atom_start, low, side="right")) - 1
        last = int(np.searchsorted(self.atom_start, high, side="left"))
        for k in range(first, last):
            begin, end = max(low, self.atom_start[k]), min(high, self.atom_start[k + 1])
            block = self.graphs[self.system_of[k]].atom_block
            local = slice(begin - self.atom_start[k], end - self.atom_start[k])
            out[begin - low : end - low] = block[local] + self.block_start[k]
        return out

    def n_atoms_of(self, candidate: IntArray) -> IntArray:
        """Number of atoms of each candidate."""
        structure = self.structure_of(candidate)
        block, system = candidate - self.block_start[structure], self.system_of[structure]
        out = np.empty(len(candidate), dtype=np.int64)
        for k, graph in enumerate(self.graphs):
            here = system == k
            out[here] = graph.block_n_atoms[block[here]]
        return out

    def atoms_of(self, candidate: IntArray) -> tuple[IntArray, IntArray]:
        """Flat atom indices of candidates, and for each its position in `candidate`."""
        structure = self.structure_of(candidate)
        block = candidate - self.block_start[structure]
        atoms, owners = [], []
        for system in np.unique(self.system_of[structure]).tolist():
            graph = self.graphs[system]
            here = np.flatnonzero(self.system_of[structure] == system)
            member, owner = ragged_take(graph.member_start, graph.block_n_atoms, block[here])
            begin = self.atom_start[structure[here]]
            atoms.append(graph.member_atom[member] + begin[owner])
            owners.append(here[owner])
        if not atoms:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        flat, owner = np.concatenate(atoms), np.concatenate(owners)
        order = np.argsort(flat, kind="stable")
        return flat[order], owner[order]

    def per_block(self, value: Callable[[BlockGraph], np.ndarray], dtype: Any) -> np.ndarray:
        """A property of the blocks of each system, repeated for every structure."""
        table = [np.asarray(value(graph), dtype=dtype) for graph in self.graphs]
        return np.concatenate([table[k] for k in self.system_of.tolist()] or [np.zeros(0, dtype)])


def make_pool(structures: xr.Dataset, blocks_by_system: Mapping[str, xr.Dataset]) -> Pool:
    """Number the candidates of all structures.

    Raises
    ------
    DataError
        If a system has no blocks, or not as many atoms as its blocks.
    """
    systems = [str(name) for name in structures["system"].values]
    names = tuple(dict.fromkeys(systems))
    unknown = [name for name in names if name not in blocks_by_system]
    if unknown:
        raise DataError(
            f"no blocks for system {unknown[0]!r}; known: "
            f"{', '.join(sorted(blocks_by_system)) or 'none'}; add "
            "blocks_by_system[name] = mofal.frameworks.find_blocks(structures, i)"
        )
    graphs = tuple(block_graph(blocks_by_system[name]) for name in names)
    index = {name: k for k, name in enumerate(names)}
    system_of = np.array([index[name] for name in systems], dtype=np.int64)
    n_atoms = np.asarray(structures["n_atoms"].values, dtype=np.int64)
    expected = np.array([graph.n_atoms for graph in graphs], dtype=np.int64)[system_of]
    wrong = np.flatnonzero(expected != n_atoms)
    if len(wrong):
        k = int(wrong[0])
        raise DataError(
            f"structure {k} has {n_atoms[k]} atoms, the blocks of system {systems[k]!r} have "
            f"{expected[k]}: it is not a frame of that system; give it a name of its own"
        )
    n_blocks = np.array([graph.n_blocks for graph in graphs], dtype=np.int64)[system_of]
    return Pool(
        atom_start=np.concatenate([[0], np.cumsum(n_atoms)]).astype(np.int64),
        block_start=np.concatenate([[0], np.cumsum(n_blocks)]).astype(np.int64),
        system_of=system_of,
        graphs=graphs,
        names=names,
    )


# ---------------------------------------------------------------------------------- reductions
def reduce_chunk(
    pool: Pool, ranking: Ranking, score: FloatArray, numbers: IntArray, low: int
) -> tuple[IntArray, dict[str, FloatArray]]:
    """Partial reductions of the candidates that atoms ``low:low + len(score)`` touch.

    Returns
    -------
    candidate : (touched,); terms : (touched,) each, with `unseen`, the atoms at minus infinity
    """
    if np.isnan(score).any():
        at = low + int(np.flatnonzero(np.isnan(score))[0])
        raise DataError(f"{ranking.variable} of atom {at} is NaN; score every atom before ranking")
    candidate, local = np.unique(pool.candidate_of(low, low + len(score)), return_inverse=True)
    terms = reduce_blocks(ranking, score, numbers, local, len(candidate))
    unseen = np.bincount(local, weights=np.isneginf(score), minlength=len(candidate)).astype(float)
    return candidate, {**terms, UNSEEN: unseen}


def combine(
    pool: Pool, ranking: Ranking, parts: Sequence[tuple[IntArray, dict[str, FloatArray]]]
) -> dict[str, FloatArray]:
    """Terms of all candidates from partial ones: (candidate,) each."""
    how_of = {**ranking.reductions, UNSEEN: "sum"}
    out = {name: np.full(pool.size, REDUCTIONS[how][1]) for name, how in how_of.items()}
    for candidate, terms in parts:
        for name, how in how_of.items():
            # A candidate occurs once in each part, so plain indexing is safe.
            out[name][candidate] = REDUCTIONS[how][0](out[name][candidate], terms[name])
    return out


def reduce_scores(pool: Pool, ranking: Ranking, scores: xr.Dataset) -> dict[str, FloatArray]:
    """Terms of all candidates, from scores in memory or lazy: one task per chunk."""
    score, numbers = score_arrays(pool, ranking, scores)
    if ranking.sample > 0:
        step = max(1, score.shape[0] // ranking.sample)
        ranking.fit(np.asarray(score[::step], dtype=float))
    if not hasattr(score, "dask"):
        return combine(pool, ranking, [reduce_chunk(pool, ranking, score, numbers, 0)])
    import dask

    shared = dask.delayed(pool, pure=True, traverse=False)
    judge = dask.delayed(ranking, traverse=False)
    low = np.concatenate([[0], np.cumsum(score.chunks[0])])
    task = dask.delayed(reduce_chunk, pure=True)
    parts = [
        task(shared, judge, s, z, int(begin))
        for s, z, begin in zip(
            score.to_delayed().ravel(), _like(numbers, score).to_delayed().ravel(), low
        )
    ]
    return combine(pool, ranking, compute(*parts))


def score_arrays(pool: Pool, ranking: Ranking, scores: xr.Dataset) -> tuple[Any, Any]:
    """Score and atomic number of every atom, as they are (NumPy or Dask)."""
    for name in (ranking.variable, "numbers"):
        if name not in scores.variables:
            raise DataError(
                f"scores have no {name!r} (they have {', '.join(map(str, scores.data_vars))}); "
                + (
                    "merge it: scores.assign(numbers=structures['numbers'])"
                    if name == "numbers"
                    else "choose another ranking, or add that variable"
                )
            )
    score, numbers = scores[ranking.variable].data, scores["numbers"].data
    if score.shape != (pool.atom_start[-1],):
        raise DataError(
            f"{ranking.variable} has shape {score.shape}, the structures have "
            f"{pool.atom_start[-1]} atoms: score the structures that you rank"
        )
    return score, numbers


def _like(array: Any, other: Any) -> Any:
    """The array as a Dask array with the chunks of another along the first axis."""
    import dask.array

    chunks = (other.chunks[0], *array.shape[1:])
    if hasattr(array, "dask"):
        return array.rechunk(chunks)
    return dask.array.from_array(array, chunks=chunks)


def gather(array: Any, index: IntArray) -> np.ndarray:
    """Rows of a NumPy or Dask array by sorted index, in memory."""
    rows = array[index]
    return np.asarray(rows.compute() if hasattr(rows, "dask") else rows)


# ---------------------------------------------------------------------------------- costs
def cluster_sizes(
    graph: BlockGraph, numbers: IntArray, depth: IntArray, max_atoms: int | None = None
) -> tuple[IntArray, IntArray]:
    """Atoms and electrons (caps included) of the cluster of every block: (block,) each.

    Parameters
    ----------
    numbers : (atom,) atomic numbers of a structure of the system
    depth : (block,) shells of each cluster
    max_atoms : most atoms of a cluster, as of `cut`
    """
    n_atoms, n_electrons = [], []
    for first in range(0, graph.n_blocks, 2000):  # 2000 clusters of 200 atoms: 60 MB
        cores = np.arange(first, min(first + 2000, graph.n_blocks))
        plan = expand_within(graph, cores, depth[cores], max_atoms)
        z = np.asarray(numbers)[plan.inner_atom].astype(np.int64)
        z[plan.cap_atom] = plan.cap_number
        owner = np.repeat(np.arange(len(cores)), plan.n_atoms)
        n_atoms.append(plan.n_atoms)
        n_electrons.append(np.bincount(owner, weights=z).astype(np.int64) - plan.charge)
    return np.concatenate(n_atoms), np.concatenate(n_electrons)


CostModel = Callable[[FloatArray, FloatArray], FloatArray]
COSTS: dict[str, CostModel] = {
    "atoms": lambda n_atoms, n_electrons: n_atoms,
    "electrons": lambda n_atoms, n_electrons: n_electrons,
    "electrons_squared": lambda n_atoms, n_electrons: n_electrons**2,
    "electrons_cubed": lambda n_atoms, n_electrons: n_electrons**3,
}
"""Cost of a label from (n_atoms, n_electrons): the unit does not matter, ratios do."""


def pool_costs(
    pool: Pool,
    structures: xr.Dataset,
    cost: str | CostModel,
    depths: Sequence[IntArray],
    max_atoms: int | None = None,
) -> FloatArray:
    """Estimated cost of the label of every candidate: (candidate,).

    Parameters
    ----------
    depths : for each system (block,) shells of each cluster
    max_atoms : most atoms of a cluster, as of `cut`
    """
    if isinstance(cost, str) and cost not in COSTS:
        raise ConfigError(
            f"unknown cost {cost!r}; known: {', '.join(COSTS)}, or a function of "
            "(n_atoms, n_electrons)"
        )
    model = COSTS[cost] if isinstance(cost, str) else cost
    tables = []
    for system, graph in enumerate(pool.graphs):
        first = int(np.flatnonzero(pool.system_of == system)[0])
        span = slice(pool.atom_start[first], pool.atom_start[first + 1])
        numbers = np.asarray(structures["numbers"][span].values)
        sizes = cluster_sizes(graph, numbers, depths[system], max_atoms)
        value = np.asarray(model(*(size.astype(float) for size in sizes)), dtype=float)
        if value.shape != (graph.n_blocks,) or not np.all(value > 0):
            raise ConfigError("a cost must be one positive number for every cluster")
        tables.append(value)
    return np.concatenate([tables[k] for k in pool.system_of.tolist()])


def allowed(pool: Pool, roles: Sequence[str] | None) -> BoolArray:
    """Which candidates may be cores: (candidate,) bool."""
    if roles is None:
        # A loose molecule has no links, hence no mantle: its environment cannot be carried.
        return pool.per_block(lambda graph: graph.role != "guest", np.bool_)
    known = sorted({str(role) for graph in pool.graphs for role in graph.role})
    unknown = sorted(set(roles) - set(known))
    if unknown:
        raise ConfigError(f"no block has the role {unknown[0]!r}; roles here: {', '.join(known)}")
    return pool.per_block(lambda graph: np.isin(graph.role, list(roles)), np.bool_)
