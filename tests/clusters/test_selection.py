"""Rankings, batches that do not repeat themselves, costs, lazy scores, random cores."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import xarray as xr

from mofal.clusters import (
    check_ranking,
    cut,
    extract,
    get_ranking,
    random_cores,
    rank,
    ranking_names,
    select,
)
from mofal.clusters import rankings as rankings_module
from mofal.clusters.graph import block_graph
from mofal.clusters.pool import cluster_sizes
from mofal.data import concat, make_structures
from mofal.errors import ConfigError, DataError
from tests.clusters.common import (
    atoms_of,
    block_values,
    blocks_dataset,
    core_pairs,
    cores_of,
    count_tasks,
    features_of,
    first_of,
    noise_of,
    rattled_frames,
    scores_of,
    shaken,
    system,
)
from tests.helpers import assert_same_bits, chunked


# ------------------------------------------------------------------------- rankings
def test_rank__least_likely_atom_is_the_rule_of_the_paper():
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    lowest = block_values(frames, by_system, value, lambda atoms, v: v[atoms].min())
    expected = sorted(lowest, key=lowest.__getitem__)
    ranked = rank(frames, scores_of(frames, value), by_system)
    assert core_pairs(ranked) == expected
    np.testing.assert_allclose(ranked["score"].values, [-lowest[p] for p in expected])
    # The first one holds the least likely atom of all.
    structure, block = expected[0]
    assert int(value.argmin()) in structure * 106 + atoms_of(by_system["S_ld"], block)


def test_rank__unseen_ties_by_their_number_then_by_seed():
    frames, by_system = rattled_frames(n=2)
    blocks = by_system["S_ld"]
    value = noise_of(frames)
    for structure, block, n_unseen in [(0, 1, 2), (0, 2, 3), (1, 3, 2), (1, 4, 2)]:
        value[structure * 106 + atoms_of(blocks, block)[:n_unseen]] = -np.inf
    orders = set()
    for seed in range(20):
        ranked = rank(frames, scores_of(frames, value), by_system, seed=seed)
        top = core_pairs(ranked)[:4]
        assert top[0] == (0, 2)
        assert set(top[1:]) == {(0, 1), (1, 3), (1, 4)}
        assert ranked["n_unseen"].values[:5].tolist() == [3, 2, 2, 2, 0]
        orders.add(tuple(top))
    assert len(orders) > 1
    again = rank(frames, scores_of(frames, value), by_system, seed=3)
    once_more = rank(frames, scores_of(frames, value), by_system, seed=3)
    assert core_pairs(again) == core_pairs(once_more)


def test_rank__sum_below_threshold():
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    ranking = get_ranking("sum_below_threshold", threshold=-1.0)
    ranked = rank(frames, scores_of(frames, value), by_system, ranking=ranking)
    total = block_values(
        frames, by_system, value, lambda atoms, v: np.clip(-1.0 - v[atoms], 0, None).sum()
    )
    np.testing.assert_allclose(ranked["score"].values, [total[p] for p in core_pairs(ranked)])
    assert (np.diff(ranked["score"].values) <= 1e-12).all()
    by_quantile = rank(frames, scores_of(frames, value), by_system, ranking="sum_below_threshold")
    low = np.quantile(value, 0.05)
    total = block_values(
        frames, by_system, value, lambda atoms, v: np.clip(low - v[atoms], 0, None).sum()
    )
    np.testing.assert_allclose(
        by_quantile["score"].values, [total[p] for p in core_pairs(by_quantile)], atol=1e-12
    )


def test_rank__mean_without_hydrogen():
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    numbers = frames["numbers"].values
    ranked = rank(frames, scores_of(frames, value), by_system, ranking="mean_without_hydrogen")
    mean = block_values(
        frames, by_system, value, lambda atoms, v: v[atoms][numbers[atoms] != 1].mean()
    )
    expected = np.array([np.median(value) - mean[p] for p in core_pairs(ranked)])
    np.testing.assert_allclose(ranked["score"].values, expected, atol=1e-12)


def test_rank__calibrated_score():
    frames, by_system = rattled_frames()
    error = np.abs(noise_of(frames))
    scores = scores_of(frames, noise_of(frames, 1)).assign(error_bound=("atom", error))
    ranked = rank(frames, scores, by_system, ranking="calibrated_score")
    largest = block_values(frames, by_system, error, lambda atoms, v: v[atoms].max())
    assert core_pairs(ranked) == sorted(largest, key=lambda p: -largest[p])


def test_rank__lowest_quantile():
    frames, by_system = rattled_frames()
    quantile = np.random.default_rng(0).uniform(size=frames.sizes["atom"])
    scores = scores_of(frames, noise_of(frames, 1)).assign(quantile=("atom", quantile))
    ranked = rank(frames, scores, by_system, ranking="lowest_quantile")
    lowest = block_values(frames, by_system, quantile, lambda atoms, v: v[atoms].min())
    assert core_pairs(ranked) == sorted(lowest, key=lowest.__getitem__)


def test_rank__per_cost_weighs_atoms():
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    n_atoms = [166, *[140] * 5]
    lowest = block_values(frames, by_system, value, lambda atoms, v: -v[atoms].min())
    typical = np.median(list(lowest.values()))
    ranked = rank(frames, scores_of(frames, value), by_system, ranking="per_cost")
    relative = np.array([n_atoms[b] for _, b in core_pairs(ranked)]) / 140
    np.testing.assert_allclose(ranked["relative_cost"].values, relative)
    excess = np.array([lowest[p] for p in core_pairs(ranked)]) - typical
    expected = np.where(excess > 0, excess / relative, excess * relative)
    np.testing.assert_allclose(ranked["score"].values, expected)
    assert (np.diff(expected) <= 1e-12).all()


def test_rank__cost_prefers_the_cheaper_of_two_equals():
    frames, by_system = rattled_frames(n=1)
    blocks = by_system["S_ld"]
    brick, linker = first_of(blocks, "node"), first_of(blocks, "linker")
    value = np.zeros(frames.sizes["atom"])
    for block in (brick, linker):
        value[atoms_of(blocks, block)[0]] = -10.0
    value[atoms_of(blocks, brick)[0]] = -10.5
    scores = scores_of(frames, value)
    assert core_pairs(rank(frames, scores, by_system))[0] == (0, brick)
    cheap = rank(frames, scores, by_system, cost="atoms", shells=0)
    assert core_pairs(cheap)[0] == (0, linker)
    steep = rank(frames, scores, by_system, cost=lambda atoms, electrons: electrons**3, shells=0)
    named = rank(frames, scores, by_system, cost="electrons_cubed", shells=0)
    assert_same_bits(steep, named)


def test_cluster_sizes__equal_what_is_cut():
    frames, by_system = rattled_frames(n=1)
    blocks = by_system["S_ld"]
    n = blocks.sizes["block"]
    for shells in (0, 1, 2):
        depth = np.full(n, shells)
        atoms, electrons = cluster_sizes(block_graph(blocks), frames["numbers"].values, depth)
        clusters, _ = cut(frames, by_system, cores_of([0] * n, range(n)), shells=shells)
        assert atoms.tolist() == clusters["n_atoms"].values.tolist()
        assert electrons.tolist() == clusters["n_electrons"].values.tolist()


class NearestToZero:
    """A ranking from outside."""

    variable = "log_likelihood"
    reductions = {"least": "min", "size": "total"}  # noqa: RUF012
    cost = None
    sample = 0

    def fit(self, score):
        raise AssertionError("not asked for")

    def terms(self, score, numbers):
        return {"least": np.abs(score), "size": np.ones(len(score))}

    def wanted(self, reduced):
        return -reduced["least"] - 0 * reduced["size"]


class _Point:
    name = "nearest_to_zero"

    def load(self):
        return NearestToZero


def test_get_ranking__from_an_entry_point(monkeypatch):
    monkeypatch.setattr(rankings_module, "entry_points", lambda group: [_Point()])
    assert "nearest_to_zero" in ranking_names()
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    ranked = rank(frames, scores_of(frames, value), by_system, ranking="nearest_to_zero")
    least = block_values(frames, by_system, value, lambda atoms, v: np.abs(v[atoms]).min())
    assert core_pairs(ranked) == sorted(least, key=least.__getitem__)


def test_get_ranking__errors():
    with pytest.raises(ConfigError, match=r"unknown ranking 'best'; known: .*least_likely_atom"):
        get_ranking("best")
    with pytest.raises(ConfigError, match="is not a ranking"):
        get_ranking(object())
    with pytest.raises(ConfigError, match="unexpected keyword"):
        get_ranking("sum_below_threshold", limit=3)

    class Odd(NearestToZero):
        reductions = {"least": "median"}  # noqa: RUF012

    with pytest.raises(ConfigError, match="min, max, sum, total"):
        get_ranking(Odd())


@pytest.mark.parametrize("name", ranking_names())
def test_check_ranking__built_in(name):
    check_ranking(name)


def test_check_ranking__finds_what_is_wrong():
    class Likeliest(NearestToZero):
        def fit(self, score):
            pass

        def terms(self, score, numbers):
            return {"least": -score, "size": np.ones(len(score))}

    with pytest.raises(ConfigError, match="more wanted when its atoms became likelier"):
        check_ranking(Likeliest())

    class Relative(Likeliest):
        reductions = {"least": "min"}  # noqa: RUF012

        def terms(self, score, numbers):
            return {"least": score - score[np.isfinite(score)].mean()}

        def wanted(self, reduced):
            return -reduced["least"]

    with pytest.raises(ConfigError, match="depend on other atoms"):
        check_ranking(Relative())

    class Nothing(Relative):
        def wanted(self, reduced):
            return np.full(len(reduced["least"]), np.nan)

    with pytest.raises(ConfigError, match="expected a number"):
        check_ranking(Nothing())


# ------------------------------------------------------------------------- extraction
def test_extract__shells_of_each_block():
    frames, by_system = rattled_frames(n=2)
    scores = scores_of(frames, noise_of(frames))
    depth = np.array([1, 0, 0, 0, 1, 0])
    clusters, _, _ = extract(frames, scores, by_system, n=12, shells={"S_ld": depth})
    sizes = {0: (66, 166), 1: (12, 140)}
    found = {}
    for block, n_atoms in zip(clusters["parent_block"].values, clusters["n_atoms"].values):
        found.setdefault(int(block), set()).add(int(n_atoms))
    assert found == {b: {sizes[int(b > 0)][depth[b]]} for b in range(6)}
    ranked = rank(frames, scores, by_system, cost="atoms", shells={"S_ld": depth})
    relative = {b: c for (_, b), c in zip(core_pairs(ranked), ranked["relative_cost"].values)}
    assert relative[4] / relative[1] == pytest.approx(140 / 12)


def test_select__more_cores_begin_with_the_same():
    frames, by_system = rattled_frames()
    scores = scores_of(frames, noise_of(frames))
    features = features_of(frames, np.random.default_rng(0).normal(size=(frames.sizes["atom"], 3)))
    for options in ({}, {"features": features}, {"coverage": "none"}):
        few = select(frames, scores, by_system, n=5, **options)
        many = select(frames, scores, by_system, n=14, **options)
        assert core_pairs(many)[:5] == core_pairs(few)


def test_extract__refused_clusters_are_replaced():
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 0, n=4)
    by_system = {"S_ld": blocks}
    scores = scores_of(frames, noise_of(frames))
    order = core_pairs(select(frames, scores, by_system, n=100))
    # The frame of the first pick loses a hydrogen of its brick: most of its clusters are refused.
    lost = order[0][0]
    brick = atoms_of(blocks, first_of(blocks, "node"))
    hydrogen = next(a for a in brick if ds["numbers"].values[a] == 1)
    frames["positions"].values[106 * lost + hydrogen] += 1.5
    clusters, refused, cores = extract(frames, scores, by_system, n=6)
    assert clusters.sizes["structure"] == 6
    assert order[: cores.sizes["core"]] == core_pairs(cores)
    expected = [p for p in order if p[0] != lost][:6]
    found = list(
        zip(clusters["parent_structure"].values.tolist(), clusters["parent_block"].values.tolist())
    )
    assert found == expected
    assert [order[k] for k in clusters["core_index"].values] == expected
    assert {order[k][0] for k in refused["core"].values} == {lost}
    assert all("broken bond" in str(r) for r in refused["reason"].values)
    # All that there is, where that is less than what was asked for.
    clusters, refused, cores = extract(frames, scores, by_system, n=1000)
    assert cores.sizes["core"] == 24
    assert clusters.sizes["structure"] + refused.sizes["core"] == 24


# ------------------------------------------------------------------------- batches: blocks
def test_select__one_core_is_the_rule_of_the_paper():
    frames, by_system = rattled_frames()
    value = noise_of(frames)
    best = core_pairs(rank(frames, scores_of(frames, value), by_system))[0]
    rng = np.random.default_rng(0)
    features = features_of(frames, rng.normal(size=(frames.sizes["atom"], 4)))
    for options in ({}, {"features": features}, {"coverage": "none"}):
        chosen = select(frames, scores_of(frames, value), by_system, n=1, **options)
        assert core_pairs(chosen) == [best]


def test_select__none_is_the_order_of_the_ranking():
    frames, by_system = rattled_frames()
    scores = scores_of(frames, noise_of(frames))
    expected = rank(frames, scores, by_system)
    chosen = select(frames, scores, by_system, n=7, coverage="none")
    assert core_pairs(chosen) == core_pairs(expected)[:7]


def test_select__blocks_take_turns_within_a_walk():
    """All bricks of one frame are alike: each halves what the others of that frame count."""
    ds, blocks = system("S_pr")
    frames = shaken(ds, 0, n=2)
    value = 10.0 + 0.1 * noise_of(frames)
    numbers = frames["numbers"].values
    value[numbers == 40] -= 20.0
    linkers = np.flatnonzero(blocks["role"].values == "linker")
    value[456 + atoms_of(blocks, int(linkers[5]))] -= 13.0
    scores = scores_of(frames, value)
    plain = select(frames, scores, {"S_pr": blocks}, n=4, coverage="none")
    assert set(plain["kind"].values.tolist()) == {0}
    cores = select(frames, scores, {"S_pr": blocks}, n=4)
    # One brick of each frame (20 below the typical block), the odd linker (13), bricks (10).
    assert [s for s, _ in core_pairs(cores)[:2]] in ([0, 1], [1, 0])
    assert cores["kind"].values.tolist()[:3] == [0, 0, 1]
    assert core_pairs(cores)[2] == (1, int(linkers[5]))
    # Ordinary linkers wait until all bricks are taken.
    many = select(frames, scores, {"S_pr": blocks}, n=9)
    assert (many["kind"].values == 0).sum() == 8


def test_select__frames_of_one_walk_cover_each_other():
    frames, by_system = rattled_frames(n=4)
    blocks = by_system["S_ld"]
    value = 5.0 + 0.1 * noise_of(frames)
    for structure, depth in enumerate([9.0, 8.0, 7.0, 6.0]):
        value[structure * 106 + atoms_of(blocks, 0)[0]] -= depth
        value[structure * 106 + atoms_of(blocks, 1)[0]] -= depth / 10
    scores = scores_of(frames, value)
    apart = select(frames, scores, by_system, n=4)
    assert core_pairs(apart) == [(0, 0), (1, 0), (2, 0), (3, 0)]
    walks = frames.assign(walk=("structure", np.array([7, 7, 8, 8])))
    together = select(walks, scores, by_system, n=4)
    assert core_pairs(together) == [(0, 0), (2, 0), (1, 0), (3, 0)]
    typical = np.median(rank(frames, scores, by_system)["score"].values)
    faded = together["score"].values - typical
    first = together["first_score"].values - typical
    np.testing.assert_allclose(faded / first, [1.0, 1.0, 0.5, 0.5])


def test_select__unseen_atoms_fade_with_their_class():
    """At minus infinity there is no excess to halve: the number of such atoms is what fades."""
    frames, by_system = rattled_frames(n=3)
    blocks = by_system["S_ld"]
    value = noise_of(frames)
    value[atoms_of(blocks, 0)[:4]] = -np.inf
    value[106 + atoms_of(blocks, 0)[:4]] = -np.inf
    value[atoms_of(blocks, 2)[:3]] = -np.inf
    walks = frames.assign(walk=("structure", np.array([0, 0, 1])))
    plain = select(walks, scores_of(walks, value), by_system, n=3, coverage="none")
    assert plain["core_block"].values.tolist() == [0, 0, 2]
    cores = select(walks, scores_of(walks, value), by_system, n=3)
    assert cores["core_block"].values.tolist() == [0, 2, 0]


def test_select__every_candidate_once():
    frames, by_system = rattled_frames(n=3)
    rng = np.random.default_rng(1)
    features = features_of(frames, rng.normal(size=(frames.sizes["atom"], 4)))
    scores = scores_of(frames, noise_of(frames))
    for options in ({}, {"features": features}, {"coverage": "none"}):
        chosen = core_pairs(select(frames, scores, by_system, n=1000, **options))
        assert len(chosen) == len(set(chosen)) == 18


# ------------------------------------------------------------------------- lazy scores
@pytest.mark.parametrize("rows", [37, 106, 200, 10_000])
@pytest.mark.parametrize("ranking", ["least_likely_atom", "mean_without_hydrogen"])
def test_select__lazy_equals_in_memory(rows, ranking):
    ds, blocks = system("S_ld", "primitive")
    other, others = system("S_pr", "primitive")
    frames = concat([shaken(ds, 0, n=3), shaken(other, 1, n=2)])
    by_system = {"S_ld": blocks, "S_pr": others}
    rng = np.random.default_rng(0)
    value = rng.normal(size=frames.sizes["atom"])
    value[::97] = -np.inf
    scores = scores_of(frames, value)
    features = features_of(frames, rng.normal(size=(frames.sizes["atom"], 4)))
    for options in ({}, {"cost": "electrons"}):
        expected = select(frames, scores, by_system, n=9, ranking=ranking, **options)
        lazy = select(chunked(frames, rows), chunked(scores, rows), by_system, n=9,
                      ranking=ranking, **options)  # fmt: skip
        assert core_pairs(lazy) == core_pairs(expected)
        np.testing.assert_allclose(lazy["score"].values, expected["score"].values, rtol=1e-12)
    expected = select(frames, scores, by_system, n=9, ranking=ranking, features=features)
    lazy = select(
        frames,
        chunked(scores, rows),
        by_system,
        n=9,
        ranking=ranking,
        features=chunked(features, rows),
    )
    assert core_pairs(lazy) == core_pairs(expected)
    np.testing.assert_allclose(lazy["score"].values, expected["score"].values, rtol=1e-9)


def test_select__tasks_grow_with_chunks_and_not_with_blocks():
    tasks = {}
    for n in (4, 16):
        frames, by_system = rattled_frames(n=n)
        scores = scores_of(frames, noise_of(frames))
        features = features_of(frames, np.random.default_rng(0).normal(size=(106 * n, 4)))
        for chunks in (4, 8):
            rows = 106 * n // chunks
            lazy = chunked(scores.drop_vars("structure_index"), rows)
            work = partial(select, frames, lazy, by_system, n=4, features=chunked(features, rows))
            tasks[n, chunks] = count_tasks(work)
    assert tasks[4, 4] == tasks[16, 4]
    assert tasks[4, 8] <= 2 * tasks[4, 4]


# ------------------------------------------------------------------------- random cores
def test_random_cores__kinds_take_turns():
    frames, by_system = rattled_frames(n=5, name="S_pr")
    cores = random_cores(frames, by_system, n=8, seed=0)
    assert sorted(cores["kind"].values.tolist()) == [0] * 4 + [1] * 4
    assert len(set(core_pairs(cores))) == 8
    rest = random_cores(frames, by_system, n=1000, seed=0)
    assert len(set(core_pairs(rest))) == rest.sizes["core"] == 35


def test_random_cores__seeded():
    frames, by_system = rattled_frames(n=5)
    first = random_cores(frames, by_system, n=6, seed=1)
    assert_same_bits(random_cores(frames, by_system, n=6, seed=1), first)
    assert core_pairs(random_cores(frames, by_system, n=6, seed=2)) != core_pairs(first)
    only = random_cores(frames, by_system, n=6, seed=1, roles=["linker"])
    blocks = by_system["S_ld"]
    assert {blocks["role"].values[b] for _, b in core_pairs(only)} == {"linker"}


# ------------------------------------------------------------------------- guests and errors
def _with_guest():
    ds = make_structures(
        [6, 1, 2], np.array([[0, 0, 0], [1.1, 0, 0], [4.0, 4, 4]]), n_atoms=[3],
        cell=8 * np.eye(3)[None], pbc=True, system="g",
    )  # fmt: skip
    none = (0, 0, 0)
    blocks = blocks_dataset(
        [[0, 1], [2]], [], bonds=[(0, 1, none)], role=["node", "guest"], kind=[0, 1]
    )
    return ds, {"g": blocks}


def test_rank__guests_are_no_cores_unless_asked_for():
    ds, by_system = _with_guest()
    scores = scores_of(ds, [0.0, 0.0, -9.0])
    assert core_pairs(rank(ds, scores, by_system)) == [(0, 0)]
    assert core_pairs(rank(ds, scores, by_system, roles=["node", "guest"])) == [(0, 1), (0, 0)]
    assert random_cores(ds, by_system, n=5, seed=0).sizes["core"] == 1


def test_select__errors_name_what_is_wrong():
    frames, by_system = rattled_frames(n=2)
    scores = scores_of(frames, noise_of(frames))
    nan = scores_of(frames, np.where(np.arange(212) == 130, np.nan, 0.0))
    short = scores.isel(atom=slice(0, 100))
    x = features_of(frames, np.ones((212, 2)))
    guest, its_system = _with_guest()
    all_guests = {"g": its_system["g"].assign(role=("block", np.array(["guest", "guest"])))}
    guest_scores = scores_of(guest, [0.0, 0.0, 0.0])
    table = [
        (lambda: select(frames, scores, by_system, n=0), ConfigError, "n=0"),
        (lambda: select(frames, scores, by_system, n=2.5), ConfigError, "n=2.5"),
        (lambda: select(frames, scores, by_system, n=2, coverage="all"), ConfigError, "'all'"),
        (
            lambda: select(frames, scores, by_system, n=2, coverage="features"),
            ConfigError,
            "needs features",
        ),
        (
            lambda: select(frames, scores, by_system, n=2, features=x, bandwidth=0),
            ConfigError,
            "bandwidth=0",
        ),
        (lambda: rank(frames, scores, by_system, cost="euros"), ConfigError, "'euros'"),
        (lambda: rank(frames, scores, by_system, cost=lambda a, e: -a), ConfigError, "positive"),
        (lambda: rank(frames, scores, by_system, roles=["brick"]), ConfigError, "'brick'"),
        (lambda: rank(frames, scores, by_system, shells=-1), DataError, "shells=-1"),
        (
            lambda: rank(frames, scores, by_system, shells={"S_ld": [1, 2]}),
            DataError,
            "each of its 6 blocks",
        ),
        (
            lambda: rank(frames, scores, by_system, shells={"S_pr": [1]}),
            DataError,
            "no shells for system 'S_ld'",
        ),
        (lambda: rank(frames, scores, {}), DataError, "no blocks for system 'S_ld'"),
        (lambda: rank(frames, nan, by_system), DataError, "atom 130 is NaN"),
        (lambda: rank(frames, short, by_system), DataError, "100.*212 atoms"),
        (
            lambda: rank(frames, scores, by_system, ranking="calibrated_score"),
            DataError,
            "no 'error_bound'",
        ),
        (
            lambda: select(frames, scores, by_system, n=1, features=x.isel(atom=slice(9))),
            DataError,
            "212 rows",
        ),
        (
            lambda: select(
                frames,
                scores.rename(log_likelihood="error_bound"),
                by_system,
                n=1,
                features=x,
                ranking="calibrated_score",
            ),
            DataError,
            "needs log_likelihood beside error_bound",
        ),
        (lambda: rank(guest, guest_scores, all_guests), DataError, "guest"),
        (lambda: random_cores(frames, by_system, n=0, seed=0), ConfigError, "n=0"),
        (
            lambda: rank(frames, scores, {"S_ld": system("S_pr", "primitive")[1]}),
            DataError,
            "106 atoms.*114",
        ),
    ]
    for call, error, text in table:
        with pytest.raises(error, match=text):
            call()


def test_rank__keeps_the_hashes_of_model_and_density():
    frames, by_system = rattled_frames(n=1)
    scores = scores_of(frames, noise_of(frames))
    scores.attrs = {"model_hash": "aa", "density_hash": "bb"}
    assert rank(frames, scores, by_system).attrs == {"model_hash": "aa", "density_hash": "bb"}


def test_select__many_structures_of_several_systems_stay_in_their_place():
    ds, blocks = system("S_ld", "primitive")
    other, others = system("S_pr", "primitive")
    frames = concat([shaken(other, 1), shaken(ds, 0, n=2), shaken(other, 2)])
    by_system = {"S_ld": blocks, "S_pr": others}
    value = np.zeros(frames.sizes["atom"])
    start = np.cumsum([0, *frames["n_atoms"].values])
    value[start[3] + atoms_of(others, 4)[2]] = -3.0
    value[start[1] + atoms_of(blocks, 2)[1]] = -2.0
    cores = select(frames, scores_of(frames, value), by_system, n=2)
    assert core_pairs(cores) == [(3, 4), (1, 2)]
    assert [str(s) for s in cores["system"].values] == ["S_pr", "S_ld"]
    assert isinstance(cores, xr.Dataset)
