"""Fits follow scikit-learn's, iteration by iteration, however the rows are chunked."""

from __future__ import annotations

import warnings

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference
from threadpoolctl import threadpool_limits

from mofal.density import GaussianMixture
from mofal.density.parameters import COVARIANCE_TYPES
from mofal.errors import DataError
from tests.density.mixtures import blobs, draw, random_parameters, relative_error, start
from tests.helpers import raise_if_dask_computes

BOUND = 1e-8
"""Largest difference of the lower bound to scikit-learn's, at every iteration."""

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def _compare(ours: GaussianMixture, theirs: Reference, tolerance: float = BOUND) -> None:
    assert ours.n_iter_ == theirs.n_iter_
    assert ours.converged_ == theirs.converged_
    difference = np.array(ours.lower_bounds_) - np.array(theirs.lower_bounds_)
    assert np.abs(difference).max() < tolerance
    assert ours.lower_bound_ == ours.lower_bounds_[-1]


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_fit__follows_sklearn_at_every_iteration(kind):
    x, centres = blobs(0, 6007, 5, 6)
    settings = {**start(1, centres, kind), "max_iter": 25, "tol": 1e-7}
    theirs = Reference(6, **settings).fit(x)
    ours = GaussianMixture(6, **settings).fit(x)
    _compare(ours, theirs)
    for name in ("weights_", "means_", "covariances_", "precisions_", "precisions_cholesky_"):
        found, expected = getattr(ours, name), getattr(theirs, name)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert relative_error(ours.score_samples(x), theirs.score_samples(x)) < 1e-7
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-6)
    assert (ours.predict(x) == theirs.predict(x)).all()
    assert ours.bic(x) == pytest.approx(theirs.bic(x), rel=1e-9)
    assert ours.aic(x) == pytest.approx(theirs.aic(x), rel=1e-9)
    assert ours.score(x) == pytest.approx(theirs.score(x), abs=1e-9)


@pytest.mark.parametrize("condition", [1e4, 1e8])
@pytest.mark.parametrize("kind", ["full", "tied"])
def test_fit__follows_sklearn_on_ill_conditioned_data(kind, condition):
    """Narrow components take the stable form; the fit then follows all the same."""
    p = random_parameters(3, n_components=4, n_features=4, condition=condition, kind=kind)
    x = draw(p, 4000)
    given = {
        "covariance_type": kind,
        "weights_init": np.full(4, 0.25),
        "means_init": p.means,
        "precisions_init": np.linalg.inv(2.0 * p.covariances),
        "reg_covar": 0.0,
        "max_iter": 12,
        "tol": 0.0,
    }
    given["precisions_init"] += np.swapaxes(given["precisions_init"], -1, -2)
    given["precisions_init"] *= 0.5
    _compare(GaussianMixture(4, **given).fit(x), Reference(4, **given).fit(x))


CHUNKS = [(6007,), (1, 6006), 1500, 13, 1201]


@pytest.mark.parametrize("chunks", CHUNKS)
def test_fit__dask_follows_sklearn_for_any_chunking(chunks):
    x, centres = blobs(0, 6007, 5, 6)
    settings = {**start(1, centres, "full"), "max_iter": 3 if chunks == 13 else 8, "tol": 0.0}
    theirs = Reference(6, **settings).fit(x)
    lazy = da.from_array(x, chunks=(chunks, 5))
    ours = GaussianMixture(6, **settings).fit(lazy)
    _compare(ours, theirs)
    assert relative_error(ours.score_samples(lazy).compute(), theirs.score_samples(x)) < 1e-8


def test_fit__a_thousand_chunks_and_columns_in_chunks():
    x, centres = blobs(0, 3003, 4, 3)
    settings = {**start(1, centres, "full"), "max_iter": 2, "tol": 0.0}
    ours = GaussianMixture(3, **settings).fit(da.from_array(x, chunks=(3, 2)))
    _compare(ours, Reference(3, **settings).fit(x))


def test_fit__empty_and_unknown_chunks():
    x, centres = blobs(0, 2000, 3, 3)
    settings = {**start(1, centres, "full"), "max_iter": 4, "tol": 0.0}
    theirs = Reference(3, **settings).fit(x)
    gaps = da.from_array(x, chunks=((500, 0, 1500, 0), 3))
    _compare(GaussianMixture(3, **settings).fit(gaps), theirs)
    unknown = da.from_array(x, chunks=(700, 3))
    unknown = unknown[da.from_array(np.ones(2000, bool), chunks=700)]
    _compare(GaussianMixture(3, **settings).fit(unknown), theirs)


@pytest.mark.parametrize("init_params", ["kmeans", "k-means++", "random", "random_from_data"])
def test_fit__start_does_not_depend_on_chunks_or_threads(init_params):
    """More rows than the sample holds, so that which rows are sampled matters."""
    x, _ = blobs(4, 40_000, 3, 5)
    model = GaussianMixture(5, init_params=init_params, random_state=3, max_iter=0)
    reference = model.fit(x).means_.copy()
    for limit in (1, 2):
        with threadpool_limits(limit):
            assert (model.fit(x).means_ == reference).all()
    for chunks in (40_000, 12_345, 999):
        assert (model.fit(da.from_array(x, chunks=(chunks, 3))).means_ == reference).all()
    other = GaussianMixture(5, init_params=init_params, random_state=4, max_iter=0).fit(x)
    assert (other.means_ != reference).any()


def test_fit__result_does_not_depend_on_the_number_of_threads():
    x, _ = blobs(4, 100_000, 3, 5)
    found = []
    for limit in (1, 2):
        with threadpool_limits(limit):
            model = GaussianMixture(5, random_state=3, max_iter=5).fit(x)
            found.append((model.means_.tobytes(), model.score_samples(x).tobytes()))
    assert found[0] == found[1]


def test_fit__finds_what_was_drawn():
    p = random_parameters(11, n_components=4, n_features=3, spread=8.0)
    model = GaussianMixture(4, random_state=0).fit(draw(p, 20_000))
    order = np.linalg.norm(model.means_[:, None] - p.means[None], axis=2).argmin(0)
    assert sorted(order) == [0, 1, 2, 3]
    np.testing.assert_allclose(model.means_[order], p.means, atol=0.1)
    np.testing.assert_allclose(model.covariances_[order], p.covariances, atol=0.1)
    np.testing.assert_allclose(model.weights_[order], p.weights, atol=0.02)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_fit__weight_two_is_two_rows(kind):
    x, centres = blobs(2, 1500, 3, 3)
    count = np.random.default_rng(0).integers(0, 4, size=1500)
    settings = {**start(1, centres, kind), "max_iter": 6, "tol": 0.0}
    twice = GaussianMixture(3, **settings).fit(np.repeat(x, count, axis=0))
    weighted = GaussianMixture(3, **settings).fit(x, sample_weight=count)
    lazy = GaussianMixture(3, **settings).fit(
        da.from_array(x, chunks=(400, 3)), sample_weight=da.from_array(count, chunks=333)
    )
    for model in (weighted, lazy):
        np.testing.assert_allclose(model.lower_bounds_, twice.lower_bounds_, rtol=1e-11)
        np.testing.assert_allclose(model.covariances_, twice.covariances_, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("lazy", [False, True])
def test_fit__float32_rows_are_summed_in_float64(lazy):
    x, centres = blobs(0, 5000, 4, 3)
    x = (x + 100.0).astype(np.float32)
    settings = {**start(1, centres + 100.0, "full"), "max_iter": 6, "tol": 0.0}
    theirs = Reference(3, **settings).fit(x.astype(np.float64))
    given = da.from_array(x, chunks=(1234, 4)) if lazy else x
    ours = GaussianMixture(3, **settings).fit(given)
    _compare(ours, theirs)
    assert ours.means_.dtype == np.float64
    assert relative_error(np.asarray(ours.score_samples(given)), theirs.score_samples(x)) < 1e-6


def test_fit__n_init_keeps_the_best_start():
    x, _ = blobs(5, 3000, 2, 8, spread=2.0)
    several = GaussianMixture(8, init_params="random", n_init=6, random_state=0, tol=1e-5).fit(x)
    seeds = np.random.RandomState(0).randint(2**31 - 1, size=7)[1:]
    assert np.unique(seeds).size == 6
    single = GaussianMixture(8, init_params="random", n_init=1, random_state=0, tol=1e-5).fit(x)
    assert several.lower_bound_ > single.lower_bound_


def test_fit__warm_start_goes_on_where_it_stopped():
    x, centres = blobs(0, 3000, 4, 3)
    settings = {**start(1, centres, "full"), "tol": 0.0}
    whole = GaussianMixture(3, max_iter=8, **settings).fit(x)
    parts = GaussianMixture(3, max_iter=4, warm_start=True, **settings)
    first = parts.fit(x).lower_bounds_
    second = parts.fit(x).lower_bounds_
    np.testing.assert_allclose(first + second, whole.lower_bounds_, rtol=1e-12)


def test_fit__no_iterations_keep_the_start():
    x, centres = blobs(0, 500, 4, 3)
    settings = start(1, centres, "full")
    model = GaussianMixture(3, max_iter=0, **settings).fit(x)
    np.testing.assert_array_equal(model.means_, settings["means_init"])
    np.testing.assert_allclose(model.precisions_, settings["precisions_init"], atol=1e-14)


def test_fit__progress_is_one_line_per_iteration():
    x, _ = blobs(0, 500, 4, 3)
    lines: list[str] = []
    GaussianMixture(3, max_iter=4, tol=0.0, random_state=0).fit(x, progress=lines.append)
    assert [line.split(":")[0] for line in lines] == [f"iteration {i}" for i in range(1, 5)]


def test_fit__says_that_it_did_not_converge():
    x, _ = blobs(0, 500, 4, 3)
    with pytest.warns(ConvergenceWarning, match="no convergence in 2 iterations"):
        GaussianMixture(3, max_iter=2, tol=0.0, random_state=0).fit(x)


# ------------------------------------------------------------------------------- repairs and errors
def test_fit__constant_feature_is_regularised():
    x, _ = blobs(0, 800, 3, 2)
    x[:, 1] = 7.0
    model = GaussianMixture(2, random_state=0).fit(x)
    np.testing.assert_allclose(model.covariances_[:, 1, 1], 1e-6, rtol=1e-6)
    assert np.isfinite(model.score_samples(x)).all()


def test_fit__singular_component_is_an_error_that_names_it():
    x, _ = blobs(0, 800, 3, 2)
    x[:, 1] = x[:, 0]
    with pytest.raises(DataError, match="covariance of component 0 is not positive definite"):
        GaussianMixture(2, reg_covar=0.0, random_state=0).fit(x)


def test_fit__fewer_distinct_rows_than_components():
    x = np.repeat(np.arange(3.0)[:, None], 20, axis=0)
    model = GaussianMixture(5, random_state=0).fit(x)
    assert np.isfinite(model.score_samples(x)).all()
    assert np.isfinite(model.means_).all()
    assert model.weights_.sum() == pytest.approx(1.0)


def test_fit__regularisation_may_differ_between_features():
    x, _ = blobs(0, 800, 3, 2)
    reg = np.array([0.0, 0.5, 2.0])
    plain = GaussianMixture(1, reg_covar=0.0).fit(x)
    model = GaussianMixture(1, reg_covar=reg).fit(x)
    np.testing.assert_allclose(
        model.covariances_[0] - plain.covariances_[0], np.diag(reg), atol=1e-9
    )


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fit__not_finite_rows_are_refused(lazy, bad):
    x, _ = blobs(0, 800, 3, 2)
    x[456, 2] = bad
    given = da.from_array(x, chunks=(100, 3)) if lazy else x
    message = "row 456 contains NaN or infinity" if lazy else "contains (NaN|infinity)"
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2).fit(given)
    model = GaussianMixture(2, random_state=0).fit(x[:400])
    with pytest.raises(ValueError, match=r"contains (NaN|infinity)"):
        np.asarray(model.score_samples(given))


SETTINGS = [
    ({"n_components": 0}, "n_components=0"),
    ({"n_components": 2.5}, "n_components=2.5"),
    ({"covariance_type": "round"}, "covariance_type='round'"),
    ({"init_params": "guess"}, "init_params='guess'"),
    ({"tol": -1.0}, "tol=-1.0"),
    ({"max_iter": -1}, "max_iter=-1"),
    ({"reg_covar": -1e-3}, "reg_covar=-0.001"),
    ({"reg_covar": np.ones(2)}, r"reg_covar has shape \(2,\)"),
    ({"means_init": np.ones((1, 3))}, r"means_init has shape \(1, 3\), expected \(2, 3\)"),
    ({"weights_init": [0.5, 0.6]}, "adds up to 1.1"),
    ({"precisions_init": -np.ones((2, 3, 3))}, "not symmetric positive definite"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_fit__settings_that_cannot_be_meant(settings, message):
    x, _ = blobs(0, 100, 3, 2)
    with pytest.raises(DataError, match=message):
        GaussianMixture(**{"n_components": 2, **settings}).fit(x)


def test_fit__fewer_rows_than_components():
    with pytest.raises(DataError, match="n_samples = 4"):
        GaussianMixture(5).fit(np.random.default_rng(0).normal(size=(4, 2)))
    with pytest.raises(DataError, match="n_samples = 1"):
        GaussianMixture(2).fit(np.eye(3), sample_weight=[1.0, 0.0, 0.0])


@pytest.mark.parametrize("lazy", [False, True])
def test_fit__weights_that_cannot_be_meant(lazy):
    x, _ = blobs(0, 100, 3, 2)
    given = da.from_array(x, chunks=(30, 3)) if lazy else x
    weights = np.ones(100)
    weights[77] = -1
    with pytest.raises(DataError, match="sample_weight of row 77"):
        GaussianMixture(2).fit(given, sample_weight=weights)
    with pytest.raises(DataError, match="one per row"):
        GaussianMixture(2).fit(given, sample_weight=np.ones(99))


def test_score_samples__wrong_number_of_features():
    x, _ = blobs(0, 100, 3, 2)
    model = GaussianMixture(2, random_state=0).fit(x)
    with pytest.raises(ValueError, match="features"):
        model.score_samples(da.zeros((10, 4)))
    with pytest.raises(ValueError, match="features"):
        model.score_samples(np.zeros((10, 4)))


# ------------------------------------------------------------------------------------------ using
def test_score_samples__lazy_on_dask():
    x, _ = blobs(0, 3000, 3, 4)
    model = GaussianMixture(4, random_state=0).fit(x)
    lazy = da.from_array(x, chunks=(700, 2))
    with raise_if_dask_computes():
        scores, labels = model.score_samples(lazy), model.predict(lazy)
        shares = model.predict_proba(lazy)
    assert scores.chunks == labels.chunks == ((700, 700, 700, 700, 200),)
    assert shares.shape == (3000, 4)
    np.testing.assert_allclose(scores.compute(), model.score_samples(x), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(labels.compute(), model.predict(x))
    np.testing.assert_allclose(shares.compute(), model.predict_proba(x), atol=1e-12)
    assert model.score(lazy) == pytest.approx(model.score(x), rel=1e-12)
    assert model.bic(lazy) == pytest.approx(model.bic(x), rel=1e-12)


@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_sample__equals_sklearn(kind):
    x, centres = blobs(0, 2000, 3, 4)
    settings = {**start(1, centres, kind), "max_iter": 5, "tol": 0.0, "random_state": 5}
    ours, which = GaussianMixture(4, **settings).fit(x).sample(50)
    theirs, which_theirs = Reference(4, **settings).fit(x).sample(50)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_array_equal(which, which_theirs)


def test_fit_predict__is_predict_after_fit():
    x, _ = blobs(0, 500, 3, 4)
    model = GaussianMixture(4, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(model.fit_predict(x), model.predict(x))


@pytest.mark.parametrize("lazy", [False, True])
def test_fit__takes_data_arrays(lazy):
    x, _ = blobs(0, 500, 3, 2)
    array = xr.DataArray(x, dims=("atom", "feature"))
    given = array.chunk(atom=123) if lazy else array
    expected = GaussianMixture(2, random_state=0).fit(x)
    model = GaussianMixture(2, random_state=0).fit(given)
    np.testing.assert_allclose(model.means_, expected.means_, rtol=1e-9)
    scores = model.score_samples(given)
    assert isinstance(scores, da.Array if lazy else np.ndarray)
    np.testing.assert_allclose(np.asarray(scores), expected.score_samples(x), rtol=1e-9)
