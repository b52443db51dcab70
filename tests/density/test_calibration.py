"""Quantiles that never saturate, and bounds of the force error whose coverage is what was asked."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest

from mofal.density import ErrorBound, PerElementDensity, QuantileScale
from mofal.density.conformal import coverage
from mofal.errors import DataError
from tests.density.mixtures import blobs
from tests.helpers import raise_if_dask_computes


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 40], size=5000)
    return np.where(
        labels == 1, -rng.chisquare(8, 5000), 30.0 - 5.0 * rng.exponential(size=5000)
    ), labels


@pytest.fixture(scope="module")
def scale(scores):
    return QuantileScale().fit(*scores)


def test_quantile__is_the_empirical_quantile(scale, scores):
    values, labels = scores
    for label in (1, 40):
        own = values[labels == label]
        rank = np.searchsorted(np.sort(own), own, side="right") / (own.size + 1)
        np.testing.assert_allclose(scale.transform(own, np.full(own.size, label)), rank, atol=2e-3)


@pytest.mark.parametrize("label", [1, 40])
def test_quantile__strictly_monotonic_everywhere(scale, scores, label):
    """Also far below and above everything that was met: novel atoms do not tie."""
    own = scores[0][scores[1] == label]
    low, high = own.min(), own.max()
    below = low - np.geomspace(1e-6, 1e12, 2000)[::-1]
    inside = np.linspace(low, high, 5000)
    above = high + np.geomspace(1e-6, 1e3, 300)
    grid = np.concatenate([below, inside, above])
    q = scale.transform(grid, np.full(grid.size, label))
    assert (np.diff(q) > 0).all()
    assert 0 < q[0] < 1e-9
    assert q[-1] < 1


def test_quantile__next_number_below_the_minimum_is_told_apart(scale, scores):
    low = scores[0][scores[1] == 1].min()
    novel = np.array([-1e6, -1e6 * (1 - 1e-12), low - 1e-9, low])
    assert (np.diff(scale.transform(novel, np.ones(4, int))) > 0).all()


def test_quantile__minus_infinity_and_unknown_labels_are_zero(scale):
    assert scale.transform([-np.inf, 5.0], [1, 99]).tolist() == [0.0, 0.0]


def test_quantile__labels_are_on_one_footing(scale, scores):
    """The same quantile for the same rank, whatever the log-likelihoods of the label."""
    values, labels = scores
    q = scale.transform(values, labels)
    for label in (1, 40):
        np.testing.assert_allclose(
            np.quantile(q[labels == label], [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.01
        )


def test_quantile__lazy(scale, scores):
    values, labels = (da.from_array(c, chunks=700) for c in scores)
    with raise_if_dask_computes():
        q = scale.transform(values, labels)
    np.testing.assert_array_equal(q.compute(), scale.transform(*scores))


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0, 2.0], [-np.inf, 1.0, 1.5]])
def test_quantile__few_or_equal_values(values):
    labels = np.ones(len(values), int)
    grid = np.linspace(-50, 50, 400)
    q = QuantileScale().fit(values, labels).transform(grid, np.ones(400, int))
    assert (np.diff(q) > 0).all()
    assert 0 < q.min() < q.max() < 1


def test_quantile__what_cannot_be_fitted():
    with pytest.raises(DataError, match="NaN"):
        QuantileScale().fit([np.nan], [1])
    with pytest.raises(DataError, match="expected as many"):
        QuantileScale().fit([1.0, 2.0], [1])


def test_calibrate__validation_rows_replace_training_rows():
    x, _ = blobs(0, 3000, 4, 2)
    labels = np.ones(3000, int)
    density = PerElementDensity(n_components=8).fit(x[:100], labels[:100])
    other = density.score_samples(x[100:], labels[100:])
    before = density.quantile(other, labels[100:]).mean()
    density.calibrate(da.from_array(x[100:], chunks=(900, 4)), labels[100:])
    after = density.quantile(other, labels[100:]).mean()
    # On rows it was not fitted to, an overfitted density is less sure than on its own.
    assert before < 0.45
    assert after == pytest.approx(0.5, abs=0.01)


# ------------------------------------------------------------------------------- conformal bounds
def _structures(rng, n, *, shift=1.0, size=(5, 60)):
    """Errors that grow with novelty, and that a structure's atoms have in common."""
    count = rng.integers(*size, n)
    index = np.repeat(np.arange(n), count)
    common = np.exp(0.8 * rng.normal(size=n))[index] * shift
    q = rng.uniform(size=index.size)
    error = np.abs(rng.normal(size=index.size)) * (0.05 - 0.1 * np.log(q)) * common
    return q, error, index


@pytest.mark.parametrize("coverage", [0.8, 0.9])
@pytest.mark.parametrize("at_once", [False, True])
def test_error_bound__covers_as_stated_on_structures_not_used(coverage, at_once):
    """Mean coverage over many draws, within its standard error; and not idly wide."""
    rng = np.random.default_rng(1)
    met = []
    for i in range(60):
        bound = ErrorBound(coverage, at_once=at_once, random_state=i).fit(*_structures(rng, 60))
        seen = bound.coverage_on(*_structures(rng, 100))
        met.append(seen.structures if at_once else seen.atoms)
    error = np.std(met) / np.sqrt(len(met))
    assert np.mean(met) > coverage - 3 * error
    assert np.mean(met) < coverage + 0.06


def test_error_bound__by_atom_would_cover_too_little():
    """Crystals of many atoms beside small clusters with larger errors: one crystal would outvote
    forty clusters, and the bound fail on every second structure."""

    def mixed(rng):
        large = _structures(rng, 30, size=(400, 401), shift=0.4)
        small = _structures(rng, 30, size=(10, 11), shift=2.0)
        small = (*small[:2], small[2] + 30)
        return tuple(np.concatenate(pair) for pair in zip(large, small))

    rng = np.random.default_rng(2)
    by_structure, by_atom = [], []
    for i in range(20):
        q, e, s = mixed(rng)
        new = mixed(rng)
        by_structure.append(ErrorBound(0.9, random_state=i).fit(q, e, s).coverage_on(*new).atoms)
        atoms = ErrorBound(0.9, random_state=i).fit(q, e, np.arange(q.size))
        by_atom.append(atoms.coverage_on(*new).atoms)
    assert np.mean(by_structure) > 0.89
    assert np.mean(by_atom) < 0.75


def test_error_bound__shift_is_reported():
    rng = np.random.default_rng(3)
    bound = ErrorBound(0.9).fit(*_structures(rng, 100))
    seen = bound.coverage_on(*_structures(rng, 300, shift=3.0))
    assert seen.stated == 0.9
    assert seen.high < 0.9
    assert seen.low < seen.atoms < seen.high
    assert seen.n_structures == 300


def test_error_bound__grows_with_novelty_without_end():
    bound = ErrorBound(0.9).fit(*_structures(np.random.default_rng(4), 100))
    grid = np.geomspace(1e-30, 0.999, 500)
    values = bound.predict(grid)
    assert (np.diff(values) <= 0).all()
    assert values[0] > 5 * values[-1]
    assert bound.predict(np.array([0.0])) == np.inf
    lazy = da.from_array(grid, chunks=100)
    with raise_if_dask_computes():
        out = bound.predict(lazy)
    np.testing.assert_array_equal(out.compute(), values)


def test_error_bound__masked_and_unseen_atoms_are_passed_over():
    q, e, s = _structures(np.random.default_rng(5), 60)
    spoiled_q, spoiled_e = q.copy(), e.copy()
    spoiled_q[::50], spoiled_e[1::50] = 0.0, np.nan
    keep = (spoiled_q > 0) & np.isfinite(spoiled_e)
    first = ErrorBound(0.9).fit(spoiled_q, spoiled_e, s)
    second = ErrorBound(0.9).fit(q[keep], e[keep], s[keep])
    assert first.factor_ == second.factor_


def test_error_bound__what_cannot_be_promised():
    q, e, s = _structures(np.random.default_rng(6), 15)
    with pytest.raises(
        DataError, match=r"found 15 labelled structures, a coverage of 0\.9 needs at least 18"
    ):
        ErrorBound(0.9).fit(q, e, s)
    with pytest.raises(DataError, match=r"coverage=1\.5"):
        ErrorBound(1.5)
    with pytest.raises(DataError, match="expected as many"):
        ErrorBound(0.5).fit(q[:-1], e, s)
    with pytest.raises(DataError, match="NaN among the quantiles"):
        ErrorBound(0.5).fit(np.full_like(q, np.nan), e, s)
    fitted = ErrorBound(0.8).fit(q, e, s)
    with pytest.raises(DataError, match="no labelled atom"):
        fitted.coverage_on([0.5], [np.nan], [0])


# ------------------------------------------------------------------ a bound kept with the density
def _labelled(seed: int, n_structures: int, density_rows: bool = False):
    """Features, labels, force errors and structures: the error grows with the distance from 0."""
    rng = np.random.default_rng(seed)
    index = np.repeat(np.arange(n_structures), 20)
    width = rng.uniform(0.5, 2.0, size=n_structures)[index]
    x = rng.normal(size=(index.size, 3)) * width[:, None]
    error = np.abs(rng.normal(size=index.size)) * 0.1 * np.exp(0.3 * np.linalg.norm(x, axis=1))
    return x, np.where(np.arange(index.size) % 3 == 0, 8, 6), error, index


def test_bound_errors__holds_as_often_as_stated_and_survives_the_disk(tmp_path):
    x, z, _, _ = _labelled(0, 60)
    density = PerElementDensity(2, random_state=0).fit(x, z)
    a, za, error, index = _labelled(1, 200)
    before = density.density_hash
    density.calibrate(
        a[:400], za[:400]
    )  # quantiles of other rows are not what the bound is made on
    density.bound_errors(a, za, error, index, coverage=0.8)
    b, zb, fresh, where = _labelled(2, 400)
    likelihood = density.score_samples(b, zb)
    found = density.error_bound(likelihood, zb)
    met = coverage(found, fresh, where, stated=0.8)
    assert 0.75 < met.atoms < 0.9
    assert met.n_structures == 400
    own = ErrorBound(0.8).fit(
        density.training_quantiles_.transform(density.score_samples(a, za), za), error, index
    )
    np.testing.assert_array_equal(
        found, own.predict(density.training_quantiles_.transform(likelihood, zb))
    )
    density.save(tmp_path / "density.zarr")
    again = PerElementDensity.load(tmp_path / "density.zarr")
    assert again.density_hash == before
    np.testing.assert_array_equal(again.error_bound(likelihood, zb), found)
    np.testing.assert_array_equal(again.quantile(likelihood, zb), density.quantile(likelihood, zb))
    assert np.isinf(again.error_bound(again.score_samples(b[:1], [1]), np.array([1])))[0]


def test_bound_errors__too_few_structures_and_none_at_all():
    x, z, error, index = _labelled(0, 16)
    density = PerElementDensity(1, random_state=0).fit(x, z)
    with pytest.raises(DataError, match="keeps no bound"):
        density.error_bound(np.zeros(1), np.array([6]))
    with pytest.raises(DataError, match=r"found 16 labelled structures.*needs at least 18"):
        density.bound_errors(x, z, error, index)
