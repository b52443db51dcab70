"""Principal components equal scikit-learn's, with signs that do not depend on the chunking."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn.decomposition import PCA as Reference

from mofal.density import PCA
from mofal.errors import DataError
from tests.density.mixtures import blobs
from tests.helpers import raise_if_dask_computes


@pytest.fixture(scope="module")
def x():
    rows, _ = blobs(0, 2003, 6, 3)
    return rows * [1.0, 2.0, 0.5, 1.0, 3.0, 0.1] + 50.0


@pytest.mark.parametrize("chunks", [None, (2003, 6), (500, 3), (7, 6)])
@pytest.mark.parametrize("n_components", [None, 3, 0.9, 1])
def test_fit__equals_sklearn(x, chunks, n_components):
    given = x if chunks is None else da.from_array(x, chunks=chunks)
    ours, theirs = PCA(n_components).fit(given), Reference(n_components).fit(x)
    assert ours.n_components_ == theirs.n_components_
    for name in ("explained_variance_", "explained_variance_ratio_", "mean_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-10)
    assert ours.noise_variance_ == pytest.approx(theirs.noise_variance_, rel=1e-9)
    signs = np.sign((ours.components_ * theirs.components_).sum(1))
    np.testing.assert_allclose(ours.components_, theirs.components_ * signs[:, None], atol=1e-10)
    np.testing.assert_allclose(
        np.asarray(ours.transform(given)), theirs.transform(x) * signs, atol=1e-8
    )


def test_fit__largest_entry_of_each_direction_is_positive(x):
    for rows in (x, -x, x[::-1], x[:, ::-1]):
        components = PCA().fit(rows).components_
        largest = np.abs(components).argmax(axis=1)
        assert (components[np.arange(6), largest] > 0).all()


def test_fit__directions_without_variance_are_determined(x):
    """Copies of features: the null space has one canonical basis, whatever the rounding."""
    copies = np.concatenate([x, x[:, :4]], axis=1)
    first = PCA().fit(copies)
    second = PCA().fit(da.from_array(copies, chunks=(77, 10)))
    np.testing.assert_allclose(first.components_, second.components_, atol=1e-7)
    np.testing.assert_allclose(first.components_ @ first.components_.T, np.eye(10), atol=1e-12)


def test_fit__weight_two_is_two_rows(x):
    count = np.random.default_rng(0).integers(0, 3, size=x.shape[0])
    twice = PCA().fit(np.repeat(x, count, axis=0))
    weighted = PCA().fit(da.from_array(x, chunks=(300, 6)), sample_weight=count)
    np.testing.assert_allclose(weighted.explained_variance_, twice.explained_variance_, rtol=1e-11)


def test_transform__lazy_and_back(x):
    lazy = da.from_array(x, chunks=(400, 6))
    model = PCA(6).fit(x)
    with raise_if_dask_computes():
        turned = model.transform(lazy)
    assert turned.shape == (2003, 6)
    np.testing.assert_allclose(model.inverse_transform(turned).compute(), x, rtol=1e-10)


def test_transform__whitened(x):
    model = PCA(4, whiten=True).fit(x)
    np.testing.assert_allclose(np.cov(model.transform(x).T), np.eye(4), atol=1e-9)
    whole = PCA(whiten=True).fit(x)
    np.testing.assert_allclose(whole.inverse_transform(whole.transform(x)), x, rtol=1e-9)


@pytest.mark.parametrize(
    ("n_components", "message"),
    [(0, "n_components=0"), (7, "expected 1 to 6"), (1.5, "n_components=1.5"), ("mle", "'mle'")],
)
def test_fit__settings_that_cannot_be_meant(x, n_components, message):
    with pytest.raises(DataError, match=message):
        PCA(n_components).fit(x)


def test_fit__not_finite_rows_are_refused(x):
    bad = x.copy()
    bad[5, 2] = np.nan
    with pytest.raises(DataError, match="row 5 contains NaN"):
        PCA().fit(da.from_array(bad, chunks=(400, 6)))
