"""Which blocks become cores: ranked by unfamiliarity, chosen as a batch, weighed by cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from mofal.clusters.blueprints import Shells, shells_of
from mofal.clusters.coverage import block_classes
from mofal.clusters.graph import FloatArray, IntArray
from mofal.clusters.greedy import Batch, Order, weigh
from mofal.clusters.pool import (
    UNSEEN,
    CostModel,
    allowed,
    make_pool,
    pool_costs,
    reduce_scores,
)
from mofal.clusters.rankings import Ranking, get_ranking
from mofal.data.ragged import TEXT
from mofal.errors import ConfigError, DataError

COVERAGES = ("features", "blocks", "none")
FADE = 0.5
"""What is left of the excess of a block over the typical one with every pick of its class."""


# ---------------------------------------------------------------------------------- arrays
def order_of(value: FloatArray, unseen: FloatArray, tie: IntArray) -> IntArray:
    """Most wanted first; ties by the number of unseen atoms, then by the seeded order."""
    return np.lexsort([tie, -unseen, -value])


# ---------------------------------------------------------------------------------- verbs
class _Ranked:
    """Pool, values and order: what `rank` and `select` have in common."""

    def __init__(
        self,
        structures: xr.Dataset,
        scores: xr.Dataset,
        blocks_by_system: Mapping[str, xr.Dataset],
        ranking: str | Ranking,
        seed: int,
        cost: str | CostModel | None,
        shells: Shells,
        roles: Sequence[str] | None,
        max_atoms: int | None,
    ) -> None:
        self.ranking = get_ranking(ranking)
        self.pool = make_pool(structures, blocks_by_system)
        depths = [shells_of(shells, n, g) for n, g in zip(self.pool.names, self.pool.graphs)]
        if "numbers" not in scores.variables:
            scores = scores.assign(numbers=structures["numbers"])
        self.scores = scores
        terms = reduce_scores(self.pool, self.ranking, scores)
        self.raw = np.asarray(self.ranking.wanted(terms), dtype=float)
        if np.isnan(self.raw).any():
            raise DataError("the ranking gave NaN for a block; it must give a number or infinity")
        self.unseen = terms[UNSEEN]
        self.may = allowed(self.pool, roles)
        if not self.may.any():
            raise DataError("no block may be a core: every one of them is a guest; pass roles=")
        weight = cost if cost is not None else self.ranking.cost
        self.cost: FloatArray | None = None
        if weight is not None:
            absolute = pool_costs(self.pool, structures, weight, depths, max_atoms)
            self.cost = absolute / np.median(absolute[self.may])
        finite = self.raw[self.may & np.isfinite(self.raw)]
        self.typical = float(np.median(finite)) if len(finite) else 0.0
        # One number per candidate from the seed: the same whatever the chunks are.
        self.tie = np.random.default_rng(np.random.SeedSequence(seed)).permutation(self.pool.size)
        self.value, self.unseen_value = weigh(self.raw, self.unseen, self.cost, self.typical)
        candidate = np.flatnonzero(self.may)
        order = order_of(self.value[candidate], self.unseen_value[candidate], self.tie[candidate])
        self.ordered = candidate[order]

    def dataset(self, chosen: IntArray, score: FloatArray) -> xr.Dataset:
        """Cores Dataset of candidates, in the order given."""
        pool, structure = self.pool, self.pool.structure_of(chosen)
        block = chosen - pool.block_start[structure]
        kind = pool.per_block(lambda graph: graph.kind, np.int64)
        names = np.array(pool.names, TEXT)
        out = xr.Dataset(
            {
                "core_structure": ("core", structure),
                "core_block": ("core", block),
                "system": ("core", names[pool.system_of[structure]]),
                "kind": ("core", kind[chosen].astype(np.int32)),
                "score": ("core", score),
                "first_score": ("core", self.value[chosen]),
                "n_unseen": ("core", self.unseen[chosen].astype(np.int64)),
            }
        )
        if self.cost is not None:
            out["relative_cost"] = ("core", self.cost[chosen])
        for key in ("model_hash", "density_hash"):
            if key in self.scores.attrs:
                out.attrs[key] = self.scores.attrs[key]
        return out


def rank(
    structures: xr.Dataset,
    scores: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    *,
    ranking: str | Ranking = "least_likely_atom",
    seed: int = 0,
    cost: str | CostModel | None = None,
    shells: Shells = 1,
    max_atoms: int | None = None,
    roles: Sequence[str] | None = None,
) -> xr.Dataset:
    """Order all blocks of all structures by how much they are wanted as cores.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
    scores : Dataset with the variable that the ranking reads, e.g. `log_likelihood` (atom)
        The same atoms in the same order. May be lazy: one task per chunk.
    blocks_by_system : blocks Dataset of each name in ``structures.system``
    ranking : name (`ranking_names`) or object; the paper's rule is ``least_likely_atom``
    seed : order of what is tied
    cost : ``"atoms"``, ``"electrons"``, ``"electrons_squared"``, ``"electrons_cubed"`` or a
        function of (n_atoms, n_electrons); weighs the estimated cost of each label
    shells, max_atoms : of the clusters as of `cut`, for their cost
    roles : roles of blocks that may be cores; default: all but guests

    Returns
    -------
    Dataset with dim core, most wanted first
        `core_structure`, `core_block`, `system`, `kind`, `score`, `first_score`, `n_unseen`.
    """
    ranked = _Ranked(
        structures, scores, blocks_by_system, ranking, seed, cost, shells, roles, max_atoms
    )
    return ranked.dataset(ranked.ordered, ranked.value[ranked.ordered])


def select(
    structures: xr.Dataset,
    scores: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    *,
    n: int,
    ranking: str | Ranking = "least_likely_atom",
    seed: int = 0,
    cost: str | CostModel | None = None,
    features: xr.Dataset | None = None,
    coverage: str | None = None,
    bandwidth: float = 1.0,
    shells: Shells = 1,
    max_atoms: int | None = None,
    roles: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Choose a batch of cores that does not take the same environment again and again.

    The most wanted block is taken; what it covers no longer counts; and so on.

    - ``coverage="features"`` (default where features are given): log-likelihoods of all atoms of
      the pool, in this and in other structures, are raised to what a density that also holds the
      picked atoms would give. Unfamiliar atoms unlike any pick keep their score.
    - ``coverage="blocks"`` (default otherwise): a pick halves the excess, over the typical block
      of the pool, of the blocks of its class (same kind, same kinds of neighbours) in its own
      walk: variable `walk` (structure) if there is one, else its own structure.
    - ``coverage="none"``: the first `n` of `rank`.

    Parameters
    ----------
    structures, scores, blocks_by_system, ranking, seed, cost, shells, max_atoms, roles
        As in `rank`.
    n : how many cores; fewer are returned where there are fewer blocks
    features : Dataset with `features` (atom, feature), what the scores were computed from
    bandwidth : multiplies the width of what a pick covers in features
    progress : called with a line of text now and then

    Returns
    -------
    Dataset with dim core, in the order of picking
        As `rank`; `score` is the value at the moment of picking, `first_score` before any pick.

    Raises
    ------
    ConfigError, DataError
        If an option cannot be meant, or the Datasets do not belong together.
    """
    if int(n) != n or n < 1:
        raise ConfigError(f"n={n!r}: expected the number of clusters, at least 1")
    mode = coverage or ("features" if features is not None else "blocks")
    if mode not in COVERAGES:
        raise ConfigError(f"unknown coverage {mode!r}; known: {', '.join(COVERAGES)}")
    if mode != "features":
        features = None
    elif features is None:
        raise ConfigError("coverage='features' needs features=...; or use coverage='blocks'")
    if not bandwidth > 0:
        raise ConfigError(f"bandwidth={bandwidth!r}: expected a positive number")
    ranked = _Ranked(
        structures, scores, blocks_by_system, ranking, seed, cost, shells, roles, max_atoms
    )
    n = min(n, len(ranked.ordered))
    if features is not None:
        chosen = ranked.ordered
        order = Order(
            candidate=chosen,
            value=ranked.value[chosen],
            unseen=ranked.unseen_value[chosen],
            cost=None if ranked.cost is None else ranked.cost[chosen],
            typical=ranked.typical,
        )
        batch = Batch(
            ranked.pool,
            ranked.ranking,
            ranked.scores,
            order,
            features,
            n=n,
            bandwidth=bandwidth,
        )
        places, score = batch.choose(n, progress)
        chosen = chosen[places]
    else:
        chosen = ranked.ordered
        score = ranked.value[chosen]
        if mode == "blocks":
            chosen, score = _faded(ranked, structures)
        chosen, score = chosen[:n], score[:n]
    return ranked.dataset(chosen, score)


def _faded(ranked: _Ranked, structures: xr.Dataset) -> tuple[IntArray, FloatArray]:
    """Candidates in the order in which they are picked, and their values at that moment.

    A pick halves what is left of the others of its class in its walk; within a class the most
    wanted comes first, so the k-th of them is halved k times, whatever happens elsewhere.
    """
    pool, ordered = ranked.pool, ranked.ordered
    walk = np.arange(len(pool.system_of))
    if "walk" in structures.variables:
        walk = np.unique(structures["walk"].values, return_inverse=True)[1].reshape(-1)
    classes = [block_classes(graph) for graph in pool.graphs]
    label = np.concatenate([classes[k] for k in pool.system_of.tolist()])[ordered]
    structure = pool.structure_of(ordered)
    system = pool.system_of[structure]
    address = np.stack([walk[structure], system, label], axis=1)
    group = np.unique(address, axis=0, return_inverse=True)[1].reshape(-1)
    weight = FADE ** np.minimum(_turns(group), 500)  # never zero: infinite times zero is no number
    excess = ranked.raw[ordered] - ranked.typical
    faded = ranked.typical + np.where(excess > 0, excess * weight, excess / weight)
    cost = None if ranked.cost is None else ranked.cost[ordered]
    value, unseen = weigh(faded, ranked.unseen[ordered] * weight, cost, ranked.typical)
    order = order_of(value, unseen, ranked.tie[ordered])
    return ordered[order], value[order]


def _turns(group: IntArray) -> IntArray:
    """How many earlier elements are in the group of each: (n,)."""
    by_group = np.argsort(group, kind="stable")
    begin = np.searchsorted(group[by_group], np.arange(group.max(initial=0) + 1))
    turn = np.empty(len(group), dtype=np.int64)
    turn[by_group] = np.arange(len(group)) - begin[group[by_group]]
    return turn


def random_cores(
    structures: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    *,
    n: int,
    seed: int,
    roles: Sequence[str] | None = None,
    take_turns: bool = True,
) -> xr.Dataset:
    """Draw cores, for seed data before there is any score (SI.4).

    Kinds of blocks take turns, so that the few bricks of a cell are not drowned by its linkers;
    within a kind every block of every structure is as likely as any other. No block is drawn twice.

    Parameters
    ----------
    structures : frames, usually perturbed ones
    blocks_by_system : blocks Dataset of each name in ``structures.system``
    n : how many; fewer are returned where there are fewer blocks
    seed : of the draw
    roles : roles of blocks that may be cores; default: all but guests
    take_turns : whether kinds do; else every block of all is as likely as any other

    Returns
    -------
    Dataset with dim core: `core_structure`, `core_block`, `system`, `kind`
    """
    if int(n) != n or n < 1:
        raise ConfigError(f"n={n!r}: expected the number of clusters, at least 1")
    pool = make_pool(structures, blocks_by_system)
    candidate = np.flatnonzero(allowed(pool, roles))
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    candidate = rng.permutation(candidate)
    structure = pool.structure_of(candidate)
    kind = pool.per_block(lambda graph: graph.kind, np.int64)[candidate]
    group = np.unique(
        np.stack([pool.system_of[structure], kind], axis=1), axis=0, return_inverse=True
    )[1].reshape(-1)
    if take_turns:
        candidate = candidate[np.argsort(_turns(group), kind="stable")]
    chosen = candidate[:n]
    structure = pool.structure_of(chosen)
    all_kinds = pool.per_block(lambda graph: graph.kind, np.int64)
    return xr.Dataset(
        {
            "core_structure": ("core", structure),
            "core_block": ("core", chosen - pool.block_start[structure]),
            "system": ("core", np.array(pool.names, TEXT)[pool.system_of[structure]]),
            "kind": ("core", all_kinds[chosen].astype(np.int32)),
        }
    )
