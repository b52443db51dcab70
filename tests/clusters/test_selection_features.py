"""Batches by features: what a pick covers counts no longer, whatever ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from mofal.clusters import greedy as greedy_module
from mofal.clusters import (
    rank,
    select,
)
from mofal.clusters.coverage import Kernel
from tests.clusters.common import (
    atoms_of,
    block_values,
    core_pairs,
    features_of,
    noise_of,
    rattled_frames,
    scores_of,
    shaken,
    system,
)
from tests.helpers import assert_same_bits, chunked


def _kernel_by_hand(x, bandwidth):
    """Covariance of the difference of nearest neighbours, halved; the tenth farthest left out."""
    white = np.linalg.inv(np.linalg.cholesky(np.cov(x.T, bias=True))).T
    y = (x - x.mean(axis=0)) @ white
    gap = np.linalg.norm(y[:, None] - y[None], axis=2) + 1e9 * np.eye(len(y))
    kept = gap.min(axis=1) <= np.quantile(gap.min(axis=1), 0.9)
    step = (y - y[gap.argmin(axis=1)])[kept] @ np.linalg.inv(white)
    return bandwidth**2 * 0.5 * step.T @ step / len(step)


def _greedy_by_hand(frames, by_system, value, features, n, bandwidth=1.0):
    """The rule as it is written in the docs, without any of the code under test."""
    numbers = frames["numbers"].values
    kernels = {}
    for z in np.unique(numbers):
        x = features[numbers == z]
        kernels[z] = (_kernel_by_hand(x, bandwidth), np.log(len(x) + 1.0))
    pairs = list(block_values(frames, by_system, value, lambda atoms, v: 0))
    members = block_values(frames, by_system, value, lambda atoms, v: atoms)
    effective = value.copy()
    chosen = []
    for _ in range(n):
        left = [p for p in pairs if p not in chosen]
        unseen = {p: np.isneginf(effective[members[p]]).sum() for p in left}
        best = min(left, key=lambda p: (effective[members[p]].min(), -unseen[p]))
        chosen.append(best)
        for z in np.unique(numbers[members[best]]):
            sigma, log_n = kernels[z]
            same = np.flatnonzero(numbers == z)
            picked = [a for a in members[best] if numbers[a] == z]
            density = np.max(
                [multivariate_normal(features[a], sigma).logpdf(features[same]) for a in picked],
                axis=0,
            )
            effective[same] = np.logaddexp(effective[same], density - log_n)
    return chosen


@pytest.mark.parametrize("bandwidth", [0.5, 1.0, 4.0])
def test_select__features_equal_the_rule_by_hand(bandwidth):
    frames, by_system = rattled_frames(n=3)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(frames.sizes["atom"], 3))
    value = -10.0 + 4.0 * noise_of(frames)
    value[rng.choice(frames.sizes["atom"], 6, replace=False)] = -np.inf
    expected = _greedy_by_hand(frames, by_system, value, x, 10, bandwidth)
    chosen = select(
        frames,
        scores_of(frames, value),
        by_system,
        n=10,
        features=features_of(frames, x),
        bandwidth=bandwidth,
    )
    assert core_pairs(chosen) == expected


def test_select__features_front_grows_as_needed(monkeypatch):
    """A front of two candidates gives the same batch as all of them."""
    frames, by_system = rattled_frames(n=4)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(frames.sizes["atom"], 2))
    scores = scores_of(frames, -5.0 + 3.0 * noise_of(frames))
    options = {"n": 12, "features": features_of(frames, x)}
    expected = select(frames, scores, by_system, **options)
    monkeypatch.setattr(greedy_module, "FRONT_FACTOR", 0)
    monkeypatch.setattr(greedy_module, "FRONT_LEAST", 2)
    assert_same_bits(select(frames, scores, by_system, **options), expected)


def _plain(frames, by_system, scores, x, n, ranking, seed):
    """The rule on ties: everything in memory, everything looked at again after every pick."""
    numbers = frames["numbers"].values
    likely = scores["log_likelihood"].values
    members = block_values(frames, by_system, likely, lambda atoms, v: atoms)
    order = core_pairs(rank(frames, scores, by_system, ranking=ranking, seed=seed))
    kernel = Kernel(x, numbers)
    raised = np.full(len(numbers), -np.inf)
    chosen = []
    while len(chosen) < min(n, len(order)):
        if ranking == "lowest_quantile":
            counted = np.where(raised < likely, scores["quantile"].values, 1.0)
            lost = np.zeros(len(numbers))
        else:
            counted = np.logaddexp(likely, raised)
            lost = np.isneginf(counted)
        best = min(
            (p for p in order if p not in chosen),
            key=lambda p: (counted[members[p]].min(), -lost[members[p]].sum(), order.index(p)),
        )
        chosen.append(best)
        for z in np.unique(numbers[members[best]]):
            white, top = kernel.of(z)
            same = np.flatnonzero(numbers == z)
            own = [a for a in members[best] if numbers[a] == z]
            away = np.linalg.norm((x[same][:, None] - x[own][None]) @ white, axis=2).min(axis=1)
            raised[same] = np.logaddexp(raised[same], top - 0.5 * away**2)
    return chosen


@pytest.mark.parametrize("ranking", ["lowest_quantile", "least_likely_atom"])
@pytest.mark.parametrize("seed", range(2))
def test_select__ties_in_little_memory_as_plainly(monkeypatch, ranking, seed):
    """Few values that many blocks share: pieces that are read, looked at and put away again."""
    frames, by_system = rattled_frames(n=12)
    rng = np.random.default_rng(seed)
    n_atoms = frames.sizes["atom"]
    # Environments far apart, so that what a pick covers hangs on no rounding.
    clump = rng.integers(40, size=n_atoms)
    x = rng.normal(size=(40, 3))[clump] + 0.01 * rng.normal(size=(n_atoms, 3))
    likely = rng.choice([-60.0, -5.0, 5.0], p=[0.05, 0.2, 0.75], size=n_atoms)
    likely[rng.choice(n_atoms, 5, replace=False)] = -np.inf
    scores = scores_of(frames, likely).assign(
        quantile=("atom", rng.choice([0.0, 0.01, 0.5], p=[0.3, 0.3, 0.4], size=n_atoms))
    )
    expected = _plain(frames, by_system, scores, x, 30, ranking, seed)
    options = {"n": 30, "ranking": ranking, "seed": seed, "features": features_of(frames, x)}
    whole = select(frames, scores, by_system, **options)
    assert core_pairs(whole) == expected
    monkeypatch.setattr(greedy_module, "FRONT_FACTOR", 0)
    monkeypatch.setattr(greedy_module, "FRONT_LEAST", 3)
    monkeypatch.setattr(greedy_module, "HELD", 200)
    monkeypatch.setattr(greedy_module, "PASSING", 150)
    looked = []
    plainly = greedy_module.Batch._load

    def load(batch, piece):
        looked.append(len(piece.place))
        return plainly(batch, piece)

    monkeypatch.setattr(greedy_module.Batch, "_load", load)
    options["features"] = chunked(options["features"], 100)
    for chunks in (None, 100):
        lazy = scores if chunks is None else chunked(scores, chunks)
        assert core_pairs(select(frames, lazy, by_system, **options)) == expected
    assert len(looked) > 20
    assert max(looked) < 40


def test_select__features_do_not_repeat_an_environment():
    """Nine copies of one strange brick, and one linker that is strange in its own way."""
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 0, n=9)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(frames.sizes["atom"], 4))
    value = rng.normal(size=frames.sizes["atom"])
    for k in range(9):
        atom = k * 106 + int(atoms_of(blocks, 0)[20])
        x[atom] = 8.0 + 0.05 * rng.normal(size=4)
        value[atom] = -60.0 - k
    odd = 4 * 106 + int(atoms_of(blocks, 3)[0])
    x[odd] = -8.0
    value[odd] = -40.0
    scores, features = scores_of(frames, value), features_of(frames, x)
    plain = select(frames, scores, {"S_ld": blocks}, n=2, coverage="none")
    assert plain["core_block"].values.tolist() == [0, 0]
    cores = select(frames, scores, {"S_ld": blocks}, n=3, features=features)
    assert core_pairs(cores)[:2] == [(8, 0), (4, 3)]
    # The other copies are no longer what they were: their scores are those of covered atoms.
    assert cores["score"].values[2] < 20.0
    assert cores["first_score"].values[0] == pytest.approx(68.0)


def test_select__unseen_elements_are_covered_by_features():
    ds, blocks = system("S_hf")
    frames = shaken(ds, 0, n=3)
    rng = np.random.default_rng(3)
    x = rng.normal(size=(frames.sizes["atom"], 4))
    value = rng.normal(size=frames.sizes["atom"])
    value[frames["numbers"].values == 72] = -np.inf
    x[frames["numbers"].values == 72] = 0.01 * rng.normal(size=(3, 4))
    cores = select(
        frames, scores_of(frames, value), {"S_hf": blocks}, n=3, features=features_of(frames, x)
    )
    assert np.isposinf(cores["score"].values[0])
    assert int(cores["n_unseen"].values[0]) == 1
    assert np.isfinite(cores["score"].values[1:]).all()


def test_select__features_cover_calibrated_scores():
    ds, blocks = system("S_ld", "primitive")
    frames = shaken(ds, 0, n=3)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(frames.sizes["atom"], 2))
    error = rng.uniform(0.0, 0.1, size=frames.sizes["atom"])
    likely = np.full(frames.sizes["atom"], 5.0)
    for k in range(3):
        atom = k * 106 + int(atoms_of(blocks, 0)[10])
        error[atom], likely[atom], x[atom] = 1.0 - 0.1 * k, -80.0, 9.0
    error[106 + int(atoms_of(blocks, 2)[0])] = 0.5
    scores = scores_of(frames, likely).assign(error_bound=("atom", error))
    cores = select(
        frames,
        scores,
        {"S_ld": blocks},
        n=2,
        ranking="calibrated_score",
        features=features_of(frames, x),
    )
    assert core_pairs(cores) == [(0, 0), (1, 2)]


@pytest.mark.parametrize("kind", ["constant", "one_atom", "collinear"])
def test_select__features_that_hardly_vary(kind):
    frames, by_system = rattled_frames(n=2)
    x = np.random.default_rng(0).normal(size=(frames.sizes["atom"], 3))
    if kind == "constant":
        x[:] = 1.0
    elif kind == "one_atom":
        x[frames["numbers"].values == 40] = 2.0
    else:
        x[:, 2] = x[:, 0] + x[:, 1]
    scores = scores_of(frames, noise_of(frames))
    cores = select(frames, scores, by_system, n=12, features=features_of(frames, x))
    assert len(set(core_pairs(cores))) == 12
    assert np.isfinite(cores["score"].values).all()
