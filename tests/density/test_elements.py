"""Densities of several labels: one pass, repairs, laziness, and exact storage."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr
from sklearn.mixture import GaussianMixture as Reference

from mofal.density import GaussianMixture, PerElementDensity, fit_density, score
from mofal.density.parameters import COVARIANCE_TYPES
from mofal.errors import DataError, StoreError
from tests.density.mixtures import blobs
from tests.helpers import raise_if_dask_computes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def rows():
    """Features of three elements, one of them rare, as float32."""
    rng = np.random.default_rng(0)
    labels = rng.choice([1, 6, 40], p=[0.45, 0.5, 0.05], size=6000)
    x = np.empty((6000, 5))
    for i, (label, k) in enumerate(((1, 1), (6, 3), (40, 2))):
        own = labels == label
        x[own] = blobs(i, int(own.sum()), 5, k, spread=8.0)[0]
    return x.astype(np.float32), labels


@pytest.fixture(scope="module")
def density(rows):
    return PerElementDensity(max_components=6).fit(
        *rows, model_hash="abc", fitted_on={"groups": ["cycle-000"]}
    )


def test_fit__finds_the_number_for_each_label(density, rows):
    assert {k: m.n_components for k, m in density.mixtures_.items()} == {1: 1, 6: 3, 40: 2}
    assert density.counts_ == {k: int((rows[1] == k).sum()) for k in (1, 6, 40)}
    assert all(
        curve.best == density.mixtures_[k].n_components for k, curve in density.curves_.items()
    )


def test_fit__each_label_is_fitted_to_its_own_rows(rows):
    """One component each: mean and covariance are those of the rows of the label."""
    x, labels = rows
    density = PerElementDensity(n_components=1, reg_covar=0.0).fit(x, labels)
    for label in (1, 6, 40):
        own = x[labels == label].astype(np.float64)
        model = density.mixtures_[label]
        n = own.shape[0]
        expected = np.cov(own.T, bias=True)
        extra = np.diag(np.diagonal(model.covariances_[0] - expected))
        np.testing.assert_allclose(model.means_[0], own.mean(0), rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(model.covariances_[0] - extra, expected, rtol=1e-8, atol=1e-8)
        scale = np.mean([np.var(x[labels == k].astype(float), axis=0) for k in (1, 6, 40)], axis=0)
        np.testing.assert_allclose(np.diagonal(extra), (6 / n) ** 2 * scale, rtol=1e-4)


def test_score_samples__equals_sklearn_with_the_same_parameters(density, rows):
    x, labels = rows
    scores = density.score_samples(x, labels)
    for label, model in density.mixtures_.items():
        theirs = Reference(model.n_components)
        theirs.weights_, theirs.means_ = model.weights_, model.means_
        theirs.precisions_cholesky_ = model.precisions_cholesky_
        theirs.n_features_in_ = 5
        own = labels == label
        np.testing.assert_allclose(
            scores[own], theirs.score_samples(x[own].astype(np.float64)), rtol=1e-10, atol=1e-10
        )


def test_score_samples__label_never_seen(density, rows):
    x, labels = rows
    foreign = labels[:50].copy()
    foreign[7] = 72
    scores = density.score_samples(x[:50], foreign)
    assert scores[7] == -np.inf
    assert np.isfinite(np.delete(scores, 7)).all()
    assert density.predict(x[:50], foreign)[7] == -1
    assert density.quantile(scores, foreign)[7] == 0.0


@pytest.mark.parametrize("chunks", [(6000, 6000), (777, 777), (777, 1001), (1000, 6000)])
def test_fit__dask_gives_the_same_for_any_chunking(density, rows, chunks):
    x, labels = rows
    lazy = da.from_array(x, chunks=(chunks[0], 5)), da.from_array(labels, chunks=chunks[1])
    other = PerElementDensity(max_components=6).fit(*lazy)
    for label, model in density.mixtures_.items():
        found = other.mixtures_[label]
        assert found.n_components == model.n_components
        np.testing.assert_allclose(found.means_, model.means_, rtol=1e-7, atol=1e-7)
    with raise_if_dask_computes():
        scores, which = density.score_samples(*lazy), density.predict(*lazy)
        quantiles = density.quantile(scores, lazy[1].rechunk(scores.chunks))
    assert scores.chunks[0] == lazy[0].chunks[0]
    expected = density.score_samples(x, labels)
    np.testing.assert_allclose(scores.compute(), expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(which.compute(), density.predict(x, labels))
    np.testing.assert_allclose(quantiles.compute(), density.quantile(expected, labels), atol=1e-9)


def test_fit__weight_zero_is_no_row(rows):
    x, labels = rows
    weight = (np.arange(6000) % 3 > 0).astype(float)
    some = PerElementDensity(n_components=2).fit(x[weight > 0], labels[weight > 0])
    weighted = PerElementDensity(n_components=2).fit(x, labels, sample_weight=weight)
    assert weighted.counts_ == some.counts_
    assert weighted.mixtures_[1].lower_bound_ == pytest.approx(
        some.mixtures_[1].lower_bound_, abs=0.05
    )
    only = PerElementDensity(n_components=2).fit(x, labels, sample_weight=(labels != 40) * 1.0)
    assert sorted(only.mixtures_) == [1, 6]


@pytest.mark.parametrize("pca", [3, 0.95])
@pytest.mark.parametrize("lazy", [False, True])
def test_fit__after_projection(rows, pca, lazy):
    """All labels are projected on the same directions: those of the variance within labels."""
    x, labels = rows
    given = (
        (da.from_array(x, chunks=(1000, 5)), da.from_array(labels, chunks=1500)) if lazy else rows
    )
    density = PerElementDensity(n_components=2, pca=pca).fit(*given)
    mean, directions = density.projection_
    within = np.mean(
        [np.cov(x[labels == k].T.astype(float), bias=True) for k in (1, 6, 40)], axis=0
    )
    values = np.linalg.eigvalsh(within)[::-1]
    k = directions.shape[1]
    assert k == (3 if pca == 3 else int(np.searchsorted(values.cumsum() / values.sum(), pca)) + 1)
    np.testing.assert_allclose(
        np.diagonal(directions.T @ within @ directions), values[:k], rtol=1e-5
    )
    scores = np.asarray(density.score_samples(*given))
    own = labels == 6
    expected = density.mixtures_[6].score_samples((x[own] - mean) @ directions)
    np.testing.assert_allclose(scores[own], expected, rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------- repairs
def test_fit__labels_with_a_handful_of_rows(rows):
    x, labels = rows[0], rows[1].copy()
    labels[:1], labels[1:4] = 72, 30
    density = PerElementDensity(max_components=6).fit(x, labels)
    assert density.mixtures_[72].n_components == density.mixtures_[30].n_components == 1
    scores = density.score_samples(x, labels)
    assert np.isfinite(scores).all()
    # With one row the density is as broad as labels are on average, not a spike on that row.
    scale = np.mean([np.var(x[labels == k].astype(float), axis=0) for k in (1, 6, 40)], axis=0)
    np.testing.assert_allclose(np.diagonal(density.mixtures_[72].covariances_[0]), scale, rtol=1e-3)
    nudged = x[:1] + 0.1 * np.sqrt(scale)
    assert density.score_samples(nudged, [72])[0] > scores[0] - 1.0


@pytest.mark.parametrize("pca", [None, 3])
def test_fit__constant_and_copied_features(rows, pca):
    x, labels = rows[0].copy(), rows[1]
    x[:, 1] = 4.0
    x[:, 3] = x[:, 2]
    x[labels == 6, 0] = -1.0
    density = PerElementDensity(max_components=4, pca=pca).fit(x, labels)
    scores = density.score_samples(x, labels)
    assert np.isfinite(scores).all()
    moved = x[:1].copy()
    moved[0, 3] += 1.0
    assert density.score_samples(moved, labels[:1])[0] < scores[0]


def test_fit__all_features_constant():
    density = PerElementDensity().fit(np.ones((40, 3)), np.ones(40, int))
    assert np.isfinite(density.score_samples(np.ones((2, 3)), [1, 1])).all()


def test_fit__regularisation_follows_the_scale(rows):
    """Other units of a feature shift every score by the same number."""
    x, labels = rows[0].astype(np.float64), rows[1]
    factor = np.array([1e3, 1.0, 1e-3, 1.0, 10.0])
    settings = {"n_components": 3, "random_state": 1, "tol": 1e-6}
    plain = PerElementDensity(**settings).fit(x, labels).score_samples(x, labels)
    scaled = PerElementDensity(**settings).fit(x * factor, labels).score_samples(x * factor, labels)
    np.testing.assert_allclose(plain - scaled, np.log(factor).sum(), atol=1e-4)


ERRORS = [
    ({"n_components": "best"}, "n_components='best'"),
    ({"n_components": 0}, "n_components=0"),
    ({"pca": 9}, "expected 1 to 5"),
    ({"covariance_type": "round"}, "covariance_type='round'"),
    ({"reg_covar": -1.0}, "reg_covar=-1.0"),
]


@pytest.mark.parametrize(("settings", "message"), ERRORS)
def test_fit__settings_that_cannot_be_meant(rows, settings, message):
    with pytest.raises(DataError, match=message):
        PerElementDensity(**settings).fit(*rows)


def test_fit__rows_that_cannot_be_meant(rows, density):
    x, labels = rows
    with pytest.raises(DataError, match="one per row"):
        PerElementDensity().fit(x, labels[:-1])
    with pytest.raises(DataError, match="whole numbers"):
        PerElementDensity().fit(x, labels.astype(float))
    with pytest.raises(DataError, match="1 dims"):
        PerElementDensity().fit(x[:, 0], labels)
    with pytest.raises(DataError, match="real numbers"):
        PerElementDensity().fit(x.astype(complex), labels)
    with pytest.raises(DataError, match="no row"):
        PerElementDensity().fit(x[:0], labels[:0])
    with pytest.raises(DataError, match="not fitted"):
        PerElementDensity().score_samples(x, labels)
    with pytest.raises(DataError, match="found 4 features, the density was fitted with 5"):
        density.score_samples(x[:, :4], labels)
    bad = x.copy()
    bad[4321, 1] = np.nan
    with pytest.raises(DataError, match="row 4321 contains NaN"):
        PerElementDensity().fit(bad, labels)


# -------------------------------------------------------------------------------------- storage
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("pca", [None, 3])
def test_save__scores_are_equal_bit_for_bit(rows, tmp_path, kind, pca):
    x, labels = rows
    density = PerElementDensity(n_components=3, covariance_type=kind, pca=pca).fit(
        x, labels, model_hash="abc", fitted_on={"groups": ["cycle-000"]}
    )
    density.save(tmp_path / "density.zarr")
    read = PerElementDensity.load(tmp_path / "density.zarr")
    scores = density.score_samples(x, labels)
    assert read.score_samples(x, labels).tobytes() == scores.tobytes()
    assert read.quantile(scores, labels).tobytes() == density.quantile(scores, labels).tobytes()
    assert read.density_hash == density.density_hash
    assert read.model_hash == "abc"
    assert read.fitted_on == density.fitted_on
    assert read.fitted_on["groups"] == ["cycle-000"]
    assert read.counts_ == density.counts_
    assert read.curves_ == density.curves_
    assert read.get_params() == density.get_params()
    for label, model in density.mixtures_.items():
        assert read.mixtures_[label].lower_bound_ == model.lower_bound_
        assert read.mixtures_[label].n_iter_ == model.n_iter_


def test_save__is_a_plain_group_without_pickle(density, tmp_path):
    density.save(tmp_path / "density.zarr")
    ds = xr.open_zarr(tmp_path / "density.zarr", consolidated=False)
    assert ds.sizes["component"] == 6
    group = zarr.open_group(tmp_path / "density.zarr", mode="r")
    assert group.metadata.zarr_format == 3
    assert all(a.dtype.kind in "fiu" for _, a in group.arrays())
    assert ds.attrs["density_hash"] == density.density_hash


def test_save__never_replaces_another_density(density, rows, tmp_path):
    density.save(tmp_path / "density.zarr")
    density.save(tmp_path / "density.zarr")
    other = PerElementDensity(n_components=1).fit(*rows)
    with pytest.raises(StoreError, match="holds another density"):
        other.save(tmp_path / "density.zarr")
    with pytest.raises(DataError, match="not fitted"):
        PerElementDensity().save(tmp_path / "b.zarr")


def test_load__refuses_what_is_no_density(tmp_path):
    from mofal.data import write_group

    write_group(xr.Dataset({"a": ("x", np.arange(3.0))}), tmp_path / "a.zarr", kind="table")
    with pytest.raises(DataError, match="this is no density"):
        PerElementDensity.load(tmp_path / "a.zarr")
    with pytest.raises(StoreError):
        PerElementDensity.load(tmp_path / "missing.zarr")


def test_density_hash__depends_on_parameters_alone(rows, density):
    again = PerElementDensity(max_components=6).fit(*rows, fitted_on={"note": "other"})
    assert again.density_hash == density.density_hash
    assert PerElementDensity(n_components=1).fit(*rows).density_hash != density.density_hash


# ---------------------------------------------------------------------------------------- verbs
def _dataset(rows, chunks=None) -> xr.Dataset:
    x, labels = rows
    n = np.full(60, 100)
    ds = xr.Dataset(
        {
            "features": (("atom", "feature"), x),
            "numbers": ("atom", labels.astype(np.int32)),
            "n_atoms": ("structure", n),
            "structure_index": ("atom", np.repeat(np.arange(60), n)),
        },
        attrs={"model_hash": "abc"},
    )
    return ds if chunks is None else ds.chunk(chunks)


def test_score__dataset_in_dataset_out(rows, density):
    from mofal.data import validate

    ds = _dataset(rows, {"atom": 1000})
    with raise_if_dask_computes():
        scored = score(ds, density)
    validate(scored, "scores")
    assert scored.attrs == {"model_hash": "abc", "density_hash": density.density_hash}
    assert "features" not in scored
    assert dict(scored.chunks)["atom"] == (1000,) * 6
    np.testing.assert_allclose(
        scored["log_likelihood"].values, density.score_samples(*rows), rtol=1e-12, atol=1e-12
    )


def test_score__features_of_another_potential(rows, density):
    ds = _dataset(rows).assign_attrs(model_hash="xyz")
    with pytest.raises(DataError, match="features are those of potential xyz"):
        score(ds, density)
    with pytest.raises(DataError, match="without features"):
        score(ds.drop_vars("features"), density)


def test_fit_density__from_a_dataset(rows, density):
    found = fit_density(_dataset(rows), max_components=6)
    assert found.model_hash == "abc"
    assert found.density_hash == density.density_hash


def test_mixtures__are_gaussian_mixtures(density):
    assert all(isinstance(m, GaussianMixture) for m in density.mixtures_.values())
    assert density.mixtures_[6].sample(5)[0].shape == (5, 5)
