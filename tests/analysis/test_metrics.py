"""Metrics against other packages and against numbers worked out by hand."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

from mofal.analysis import (
    atom_errors,
    energy_errors,
    error_table,
    force_errors,
    likelihood_correlation,
    mae,
    mae_p,
    pearson,
    rmse,
)
from mofal.errors import DataError
from tests.helpers import raise_if_dask_computes

from .material import held_out

finite = st.floats(-1e3, 1e3, allow_nan=False)


@pytest.fixture
def errors():
    values = np.random.default_rng(0).normal(size=(1001, 3))
    values[5] = np.nan
    values[70, 1] = np.nan
    return values


def test_mae_and_rmse__sklearn(errors):
    known = errors[~np.isnan(errors)]
    zero = np.zeros_like(known)
    assert mae(errors) == pytest.approx(mean_absolute_error(zero, known), rel=1e-13)
    assert rmse(errors) == pytest.approx(root_mean_squared_error(zero, known), rel=1e-13)


def test_mae_p__by_hand():
    """Magnitudes 1..5; the 50th percentile is 3, the 60th 3.4, the 100th 5."""
    values = np.array([-1.0, 5.0, np.nan, 2.0, -4.0, 3.0])
    assert mae_p(values, 0) == 3.0
    assert mae_p(values, 50) == 4.0
    assert mae_p(values, 60) == 4.5
    assert mae_p(values, 100) == 5.0


def test_mae_p__counts_ties_with_the_percentile():
    values = np.array([0.0, 1.0, 1.0, 1.0, 9.0])
    assert mae_p(values, 50) == 3.0


@settings(max_examples=40, deadline=None)
@given(arrays(float, st.integers(1, 60), elements=finite), st.floats(0, 100))
def test_mae_p__definition(values, k):
    magnitude = np.abs(values)
    tail = magnitude[magnitude >= np.percentile(magnitude, k)]
    # A percentile between two equal values may come out an ulp above them.
    if len(tail):
        assert mae_p(values, k) == pytest.approx(tail.mean(), rel=1e-9)
    assert mae_p(values, 0) == pytest.approx(mae(values), rel=1e-12)
    assert mae_p(values, 100) == pytest.approx(magnitude.max(), rel=1e-12)


@pytest.mark.parametrize("k", [-1.0, 100.5, float("nan")])
def test_mae_p__refuses(k):
    with pytest.raises(DataError, match="expected 0 to 100"):
        mae_p(np.ones(3), k)


@pytest.mark.parametrize("chunks", [(1001, 3), (77, 2), (1000, 1)])
def test_metrics__dask_equals_numpy(errors, chunks):
    lazy = da.from_array(errors, chunks=chunks)
    with raise_if_dask_computes():
        found = [mae(lazy), rmse(lazy), mae_p(lazy, 95), mae_p(lazy, 33.3), mae_p(lazy, 0)]
    expected = [mae(errors), rmse(errors), mae_p(errors, 95), mae_p(errors, 33.3), mae(errors)]
    np.testing.assert_allclose([float(v.compute()) for v in found], expected, rtol=1e-12)


def test_metrics__nothing_known():
    empty = np.full((4, 3), np.nan)
    for values in (empty, da.from_array(empty, chunks=2)):
        assert np.isnan(np.asarray(mae(values)))
        assert np.isnan(np.asarray(rmse(values)))
        assert np.isnan(np.asarray(mae_p(values, 95)))


def test_pearson__scipy(errors):
    x, y = errors[:, 0], errors[:, 0] * 0.3 + errors[:, 1]
    use = np.isfinite(x) & np.isfinite(y)
    expected = stats.pearsonr(x[use], y[use]).statistic
    assert pearson(x, y) == pytest.approx(expected, rel=1e-12)
    lazy = pearson(da.from_array(x, chunks=100), da.from_array(y, chunks=100))
    assert float(lazy.compute()) == pytest.approx(expected, rel=1e-12)


def test_pearson__infinite_pairs_are_left_out():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    y = np.array([-np.inf, 4.0, 6.0, 8.0])
    assert pearson(x, y) == pytest.approx(1.0)
    assert np.isnan(pearson(x, np.full(4, -np.inf)))
    assert np.isnan(pearson(x, np.ones(4)))


def test_pearson__far_from_zero():
    x = 1e8 + np.arange(5.0)
    assert pearson(x, -x) == pytest.approx(-1.0, abs=1e-7)


# -- Datasets


@pytest.fixture
def small():
    """Two frames of H2O-like triples with known errors."""
    labels = xr.Dataset(
        {
            "numbers": ("atom", [8, 1, 1, 8, 1, 1]),
            "n_atoms": ("structure", [3, 3]),
            "structure_index": ("atom", [0, 0, 0, 1, 1, 1]),
            "forces": (("atom", "xyz"), np.zeros((6, 3))),
            "energy": ("structure", [-100.0, -103.0]),
            "status": ("structure", ["converged", "converged"]),
        },
        attrs={"isolated_atom_energies": '{"H": -10.0, "O": -70.0}'},
    )
    forces = np.zeros((6, 3))
    forces[0] = [3.0, 0.0, 4.0]
    forces[4] = [0.0, 2.0, 0.0]
    predicted = xr.Dataset(
        {
            "forces": (("atom", "xyz"), forces),
            "energy": ("structure", [-9.7, -12.4]),
        }
    )
    return labels, predicted


def test_force_errors__predicted_minus_reference(small):
    labels, predicted = small
    labels["forces"][0, 0] = 1.0
    found = force_errors(labels, predicted)
    assert found.values[0].tolist() == [2.0, 0.0, 4.0]
    assert found.attrs["units"] == "eV/Å"
    renamed = predicted.rename(forces="predicted_forces")
    np.testing.assert_array_equal(force_errors(labels, renamed), found)


def test_energy_errors__per_atom_and_relative_to_atoms(small):
    # Relative energies are -100 + 90 = -10 and -13; errors 0.3 and 0.6 over three atoms.
    found = energy_errors(*small)
    np.testing.assert_allclose(found, [0.1, 0.2], rtol=1e-10)


def test_error_table__by_hand(small):
    table = error_table(*small, subsets={"first": np.array([1, 0, 0, 0, 0, 0], bool)})
    assert table["subset"].values.tolist() == ["all", "H", "O", "first"]
    np.testing.assert_allclose(table["mae"], [9 / 18, 2 / 12, 7 / 6, 7 / 3])
    np.testing.assert_allclose(table["rmse"], np.sqrt([29 / 18, 4 / 12, 25 / 6, 25 / 3]))
    assert table["mae_p95"].sel(subset="O") == 4.0
    assert table["n_atoms"].values.tolist() == [6, 4, 2, 1]
    assert table["energy_avg"] == pytest.approx(0.15)
    assert table["energy_std"] == pytest.approx(0.05)


def test_error_table__failed_and_masked_labels_do_not_count(small):
    labels, predicted = small
    labels["status"] = ("structure", ["converged", "crashed"])
    labels["forces"][0, 2] = np.nan
    table = error_table(labels, predicted)
    np.testing.assert_allclose(table["mae"].sel(subset="all"), 3 / 8)
    assert table["energy_avg"] == pytest.approx(0.1)


def test_error_table__is_lazy(small):
    labels, predicted = small
    lazy = predicted.chunk({"atom": 2, "structure": 1})
    with raise_if_dask_computes():
        table = error_table(labels, lazy)
    np.testing.assert_allclose(table["mae"].values, error_table(labels, predicted)["mae"])
    np.testing.assert_allclose(table["mae_p95"].values, error_table(labels, predicted)["mae_p95"])
    assert float(table["energy_std"]) == pytest.approx(0.05)


def test_error_table__refuses_what_does_not_fit(small):
    labels, predicted = small
    with pytest.raises(DataError, match="4 atoms predicted, 6 labelled"):
        error_table(labels, predicted.isel(atom=slice(4)))
    with pytest.raises(DataError, match="subset 'core' has dtype int64"):
        error_table(labels, predicted, subsets={"core": np.arange(6)})
    with pytest.raises(DataError, match="no forces in this Dataset"):
        error_table(labels, predicted.drop_vars("forces"))


def test_atom_errors__over_frames(small):
    labels, predicted = small
    # Oxygen has components 3, 0, 4 and three zeros; one hydrogen a single 2.
    found = atom_errors(labels, predicted, k=100)
    assert found.values.tolist() == [4.0, 2.0, 0.0]
    np.testing.assert_allclose(atom_errors(labels, predicted, k=0), [7 / 6, 2 / 6, 0.0])


def test_atom_errors__needs_the_same_atoms(small):
    labels, predicted = small
    labels["numbers"][3] = 1
    with pytest.raises(DataError, match="same atoms in the same order"):
        atom_errors(labels, predicted)


def test_likelihood_correlation__per_element():
    rng = np.random.default_rng(3)
    n = 400
    numbers = np.repeat([1, 8], n)
    likelihood = rng.normal(size=2 * n)
    errors = np.abs(rng.normal(size=(2 * n, 3)))
    errors[n:] *= np.exp(-0.5 * likelihood[n:, None])
    likelihood[:7] = -np.inf
    table = likelihood_correlation(errors, likelihood, numbers)
    assert table["element"].values.tolist() == ["H", "O"]
    size = np.linalg.norm(errors, axis=1)
    expected = stats.pearsonr(size[n:], likelihood[n:]).statistic
    assert table["pearson_r"].sel(element="O") == pytest.approx(expected, rel=1e-12)
    line = np.polyval(np.polyfit(likelihood[n:], size[n:], 1), likelihood[n:])
    assert table["r_squared"].sel(element="O") == pytest.approx(r2_score(size[n:], line), rel=1e-9)
    assert table["n_unseen"].values.tolist() == [7, 0]
    assert table["n_atoms"].values.tolist() == [n - 7, n]
    with raise_if_dask_computes():
        lazy = likelihood_correlation(
            da.from_array(errors, chunks=(150, 3)), da.from_array(likelihood, chunks=130), numbers
        )
    np.testing.assert_allclose(lazy["pearson_r"].values, table["pearson_r"].values, rtol=1e-12)


def test_likelihood_correlation__element_nobody_saw():
    table = likelihood_correlation(np.ones((3, 3)), np.full(3, -np.inf), np.full(3, 72))
    assert table["element"].values.tolist() == ["Hf"]
    assert np.isnan(table["pearson_r"].values).all()
    assert table["n_unseen"].values.tolist() == [3]


def test_error_table__of_a_campaign():
    held = held_out()
    table = error_table(held.labels, held.predictions["seed"], subsets=held.subsets)
    errors = force_errors(held.labels, held.predictions["seed"]).values
    mask = held.subsets["formate"]
    assert mask.sum() == 6 * 8
    assert table["mae"].sel(subset="formate") == pytest.approx(np.abs(errors[mask]).mean())
