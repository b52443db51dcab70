"""What users give: other dtypes, masks, chunks of unknown size, weights of any unit, a few rows."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from mofal.density import (
    PCA,
    GaussianMixture,
    PerElementDensity,
    QuantileScale,
    histogram,
    select_components,
    structure_minima,
)
from mofal.errors import DataError
from tests.density.mixtures import blobs, exact_log_likelihood, relative_error, start
from tests.helpers import raise_if_dask_computes

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LABELS = np.where(np.arange(2000) % 3, 6, 1)


@pytest.fixture(scope="module")
def x():
    return blobs(0, 2000, 3, 3)[0]


@pytest.fixture(scope="module")
def model(x):
    return GaussianMixture(3, random_state=0).fit(x)


@pytest.fixture(scope="module")
def density(x):
    return PerElementDensity(n_components=2).fit(x, LABELS)


def _cut(array, keep):
    """A Dask array after a mask: its chunks have unknown sizes."""
    lazy = da.from_array(array, chunks=(700, *array.shape[1:]))
    return lazy[da.from_array(keep, chunks=700)]


# ------------------------------------------------------------------------------- unknown chunks
def test_score_samples__chunks_of_unknown_size_stay_lazy(x, model, density):
    keep = np.arange(2000) % 5 > 0
    rows, labels = _cut(x, keep), _cut(LABELS, keep)
    with raise_if_dask_computes():
        scores, turned = model.score_samples(rows), PCA(2).fit(x).transform(rows)
        of_labels = density.score_samples(rows, labels)
    np.testing.assert_allclose(scores.compute(), model.score_samples(x[keep]), rtol=1e-13)
    assert turned.compute().shape == (keep.sum(), 2)
    np.testing.assert_allclose(
        of_labels.compute(), density.score_samples(x[keep], LABELS[keep]), rtol=1e-12
    )


def test_score_samples__labels_in_memory_beside_chunks_of_unknown_size(x, density):
    keep = np.arange(2000) % 5 > 0
    found = density.score_samples(_cut(x, keep), LABELS[keep]).compute()
    np.testing.assert_allclose(found, density.score_samples(x[keep], LABELS[keep]), rtol=1e-12)
    known = da.from_array(x[keep], chunks=(300, 3))
    found = density.score_samples(known, _cut(LABELS, keep)).compute()
    np.testing.assert_allclose(found, density.score_samples(x[keep], LABELS[keep]), rtol=1e-12)


def test_score_samples__columns_cut_by_different_masks(x, density):
    rows = _cut(x, np.arange(2000) % 5 > 0)
    labels = _cut(LABELS, np.arange(2000) % 4 > 0)
    with pytest.raises(DataError, match="cut by the same mask"):
        density.score_samples(rows, labels).compute()


def test_bic__counts_rows_of_chunks_of_unknown_size(x, model):
    keep = np.arange(2000) % 5 > 0
    for name in ("score", "bic", "aic"):
        found = getattr(model, name)(_cut(x, keep))
        assert found == pytest.approx(getattr(model, name)(x[keep]), rel=1e-12)
        assert getattr(model, name)(x[keep].tolist()) == pytest.approx(found, rel=1e-12)


# ------------------------------------------------------------------------------- rows that are bad
def test_score_samples__names_the_row_of_the_whole_array(x, model, density):
    bad = x.copy()
    bad[1801, 2] = np.nan
    lazy = da.from_array(bad, chunks=(700, 3))
    calls = [
        lambda: model.score_samples(lazy),
        lambda: model.predict(lazy),
        lambda: model.predict_proba(lazy),
        lambda: density.score_samples(lazy, LABELS),
        lambda: density.predict(lazy, LABELS),
        lambda: PCA(2).fit(x).transform(lazy),
    ]
    for call in calls:
        with pytest.raises(DataError, match=r"^row 1801 contains NaN"):
            call().compute()
    with pytest.raises(DataError, match="unknown place, counted from its start: row 401 "):
        model.score_samples(_cut(bad, np.ones(2000, bool))).compute()
    with pytest.raises(DataError, match=r"^row 1801 contains NaN"):
        PCA().fit(lazy)


def test_fit__masked_values_are_refused(x, model):
    """NumPy would hand out what lies below the mask."""
    masked = np.ma.masked_array(x.copy(), mask=np.zeros(x.shape, bool))
    expected = model.score_samples(x[:5])
    np.testing.assert_array_equal(model.score_samples(masked)[:5], expected)
    masked[7, 1] = np.ma.masked
    lazy = da.from_array(masked, chunks=(700, 3))
    calls = [
        lambda rows: GaussianMixture(2).fit(rows),
        lambda rows: PCA().fit(rows),
        lambda rows: PerElementDensity(n_components=1).fit(rows, LABELS),
        lambda rows: np.asarray(model.score_samples(rows)),
        lambda rows: GaussianMixture(2).fit(x, sample_weight=rows[:, 1]),
    ]
    for call in calls:
        for rows in (masked, lazy):
            with pytest.raises(DataError, match="found 1 masked values"):
                call(rows)


def test_fit__numbers_without_squares_are_refused(x):
    for scale in (1e160, 1e300):
        for rows in (x * scale, da.from_array(x * scale, chunks=(700, 3))):
            for estimator in (GaussianMixture(2, random_state=0), PCA()):
                with pytest.raises(DataError, match="overflows"), np.errstate(all="ignore"):
                    estimator.fit(rows)


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_fit__scale_shifts_scores_by_one_number(x, scale):
    plain = GaussianMixture(3, random_state=0, reg_covar=0.0, tol=1e-6).fit(x)
    scaled = GaussianMixture(3, random_state=0, reg_covar=0.0, tol=1e-6).fit(x * scale)
    difference = plain.score_samples(x) - scaled.score_samples(x * scale)
    np.testing.assert_allclose(difference, 3 * np.log(scale), rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
@pytest.mark.parametrize("offset", [1e3, 1e5, 1e8])
def test_score_samples__rows_far_from_the_origin_lose_nothing(x, kind, offset):
    """scikit-learn loses six digits (diag, spherical) or two (full, tied) at 1e5 already."""
    p = GaussianMixture(3, covariance_type=kind, random_state=0).fit(x + offset)
    exact = exact_log_likelihood(p._parameters(), x + offset)
    assert relative_error(p.score_samples(x + offset), exact) < 1e-13
    lazy = da.from_array((x + offset), chunks=(301, 3))
    assert relative_error(p.score_samples(lazy).compute(), exact) < 1e-13


# ------------------------------------------------------------------------------- dtypes and shapes
@pytest.mark.parametrize("dtype", ["f2", "i1", "u1", "i8", ">f8"])
def test_fit__dtypes_of_rows(x, dtype):
    rows = np.round(3 * x + 60).astype(dtype)
    expected = GaussianMixture(2, random_state=0, max_iter=4).fit(rows.astype(np.float64))
    for given in (rows, da.from_array(rows, chunks=(700, 2))):
        found = GaussianMixture(2, random_state=0, max_iter=4).fit(given)
        np.testing.assert_allclose(found.lower_bounds_, expected.lower_bounds_, rtol=1e-11)
        scores = np.asarray(found.score_samples(given))
        np.testing.assert_allclose(
            scores, expected.score_samples(rows.astype(np.float64)), rtol=1e-9
        )


@pytest.mark.parametrize("dtype", ["i1", "u1", "u8"])
def test_fit__dtypes_of_labels(x, density, dtype):
    labels = LABELS.astype(dtype)
    for rows, given in (
        (x, labels),
        (da.from_array(x, chunks=(700, 3)), da.from_array(labels, chunks=999)),
        (da.from_array(x, chunks=(700, 3)), labels),
    ):
        found = PerElementDensity(n_components=2).fit(rows, given)
        assert found.counts_ == density.counts_
        scores = np.asarray(found.score_samples(rows, given))
        np.testing.assert_allclose(scores, density.score_samples(x, LABELS), rtol=1e-7, atol=1e-7)
    with pytest.raises(DataError, match="below 2"):
        PerElementDensity(n_components=1).fit(x, np.full(2000, 2**64 - 1, np.uint64))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i8"])
@pytest.mark.parametrize("lazy", [False, True])
def test_fit__weights_are_summed_in_float64(x, dtype, lazy):
    """2000 weights of 40 are more than float16 can count."""
    rows = da.from_array(x, chunks=(2000, 3)) if lazy else x
    weights = np.full(2000, 40).astype(dtype)
    given = da.from_array(weights, chunks=999) if lazy else weights
    found = GaussianMixture(3, random_state=0).fit(rows, sample_weight=given)
    expected = GaussianMixture(3, random_state=0).fit(x)
    np.testing.assert_allclose(found.lower_bounds_, expected.lower_bounds_, rtol=1e-10)


@pytest.mark.parametrize("unit", [1e-20, 1e-200, 1e200])
@pytest.mark.parametrize("kind", ["full", "diag"])
def test_fit__unit_of_the_weights_does_not_matter(unit, kind):
    x, centres = blobs(2, 1500, 3, 3)
    w = np.random.default_rng(0).uniform(0.5, 2.0, size=1500)
    for settings in (start(1, centres, kind), {"covariance_type": kind}):
        settings |= {"random_state": 0, "max_iter": 5, "tol": 0.0}
        expected = GaussianMixture(3, **settings).fit(x, sample_weight=w)
        found = GaussianMixture(3, **settings).fit(x, sample_weight=unit * w)
        np.testing.assert_allclose(found.lower_bounds_, expected.lower_bounds_, rtol=1e-10)
        np.testing.assert_allclose(found.covariances_, expected.covariances_, rtol=1e-8, atol=1e-10)


def test_fit__weights_of_pca_that_cannot_be_meant(x):
    for bad in (-1.0, np.nan, np.inf):
        weights = np.ones(2000)
        weights[1234] = bad
        for rows in (x, da.from_array(x, chunks=(700, 3))):
            with pytest.raises(DataError, match="sample_weight of row 1234"):
                PCA().fit(rows, sample_weight=weights)


def test_fit__one_row_is_too_few_in_memory_and_lazy(x):
    for rows in (x[:1], da.from_array(x[:1], chunks=1)):
        with pytest.raises(ValueError, match=r"(1 sample|1 row)"):
            GaussianMixture(1).fit(rows)
        with pytest.raises(ValueError, match=r"(1 sample|1 row)"):
            select_components(rows)
        assert np.isfinite(PerElementDensity().fit(rows, [1]).score_samples(x, LABELS)[0])


@pytest.mark.parametrize(
    "change", [{"n_components": 3}, {"covariance_type": "diag"}, {"n_features": 2}]
)
def test_fit__warm_start_of_another_shape_is_refused(x, change):
    model = GaussianMixture(2, warm_start=True, random_state=0).fit(x)
    rows = x[:, : change.pop("n_features", 3)]
    with pytest.raises(DataError, match="warm_start continues from 2 components of 3 features"):
        model.set_params(**change).fit(rows)


# ------------------------------------------------------------------------------- nothing at all
@pytest.mark.parametrize("lazy", [False, True])
def test_verbs__no_rows(lazy):
    ds = xr.Dataset(
        {
            "log_likelihood": ("atom", np.empty(0)),
            "numbers": ("atom", np.empty(0, int)),
            "structure_index": ("atom", np.empty(0, int)),
            "n_atoms": ("structure", np.zeros(2, int)),
        }
    )
    given = ds.chunk(atom=1) if lazy else ds
    assert structure_minima(given)["least_likely_atom"].values.tolist() == [-1, -1]
    assert structure_minima(given)["min_log_likelihood"].values.tolist() == [np.inf, np.inf]
    assert int(histogram(given, bins=4).compute()["count"].sum()) == 0


def test_score_samples__no_rows(model, density):
    nothing = da.zeros((0, 3), chunks=(1, 3))
    assert model.score_samples(nothing).compute().shape == (0,)
    assert density.score_samples(nothing, np.empty(0, int)).compute().shape == (0,)


def test_quantile__never_zero_for_a_finite_number():
    scale = QuantileScale().fit(np.linspace(0.0, 1e-3, 100), np.ones(100, int))
    far = np.array([-1.7e308, -1e300, -1e200, -1e100, -1.0])
    q = scale.transform(far, np.ones(5, int))
    assert q[0] > 0
    assert (np.diff(q) > 0).all()
