"""Cross-validation, learning curves and maps, against sums made by hand."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import xarray as xr

from mofal.analysis import (
    atom_error_maps,
    cross_validation,
    disjoint_subsets,
    learning_curve,
)
from mofal.analysis.panels import plot_cross_validation, plot_error_maps, plot_subset_curves
from mofal.data import relative_energy, select
from mofal.errors import DataError
from tests.analysis.material import held_out


class Shifted:
    """A model whose forces are off by `force` in each component, its energies by `energy`."""

    def __init__(self, force: float, energy: float = 0.0) -> None:
        self.force, self.energy = force, energy

    def evaluate(self, ds: xr.Dataset) -> xr.Dataset:
        return xr.Dataset(
            {
                "forces": ds["forces"] + self.force,
                "energy": relative_energy(ds) + self.energy * ds["n_atoms"],
            }
        )


def test_cross_validation__rows_and_columns():
    labels = held_out("S_ld", 3).labels
    other = select(labels, [0, 1])
    table = cross_validation(
        {"a": Shifted(0.1, 0.02), "b": Shifted(-0.3)}, {"x": labels, "y": other}
    )
    for measure in ("mae", "rmse", "mae_p95"):
        np.testing.assert_allclose(table[measure], [[0.1, 0.1], [0.3, 0.3]], rtol=1e-9)
    np.testing.assert_allclose(table["energy_avg"], [[0.02, 0.02], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(table["energy_std"], 0.0, atol=1e-12)
    assert table["n_structures"].values.tolist() == [3, 2]
    assert table["mae_p95"].attrs["units"] == "eV/Å"
    plot_cross_validation(table)
    plot_cross_validation(table, measure="energy_avg")


def test_cross_validation__against_loops():
    held = held_out("S_ld", 4)
    table = cross_validation({"seed": {"D": held.predictions["seed"]}}, {"D": held.labels})
    error = (
        held.predictions["seed"]["predicted_forces"].values - held.labels["forces"].values
    ).ravel()
    worst = sorted(abs(error))
    limit = np.percentile(np.abs(error), 95)
    assert table["rmse"].item() == pytest.approx(np.sqrt(np.mean(error**2)))
    assert table["mae_p95"].item() == pytest.approx(np.mean([e for e in worst if e >= limit]))
    per_atom = (
        held.predictions["seed"]["predicted_energy"].values - relative_energy(held.labels).values
    ) / held.labels["n_atoms"].values
    assert table["energy_avg"].item() == pytest.approx(per_atom.mean())
    assert table["energy_std"].item() == pytest.approx(per_atom.std())


def test_cross_validation__lazy_stays_lazy():
    labels = held_out("S_ld", 3).labels
    lazy = labels.chunk({"atom": 100})
    table = cross_validation({"a": Shifted(0.1)}, {"x": lazy})
    assert table["mae_p95"].chunks is not None
    assert table.compute()["mae_p95"].item() == pytest.approx(0.1)


def test_cross_validation__what_is_missing():
    labels = held_out("S_ld", 2).labels
    with pytest.raises(DataError, match="none for 'y'"):
        cross_validation({"a": {"x": labels}}, {"y": labels})
    with pytest.raises(DataError, match="at least one"):
        cross_validation({}, {"y": labels})


def test_disjoint_subsets__nothing_twice():
    rows = disjoint_subsets(30, 10, 3, seed=4)
    assert sorted(rows.ravel().tolist()) == list(range(30))
    assert (np.diff(rows, axis=1) > 0).all()
    with pytest.raises(DataError, match="do not fit"):
        disjoint_subsets(30, 10, 4, seed=4)


def _retrain(clusters: xr.Dataset, seed: int) -> Shifted:
    """An error that halves with every cluster."""
    assert seed > 0
    return Shifted(0.8 * 0.5 ** clusters.sizes["structure"])


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_learning_curve__every_subset(scheduler):
    labels = held_out("S_ld", 4).labels
    with dask.config.set(scheduler=scheduler):
        curve = learning_curve(
            labels, [0, 1, 2], retrain=_retrain, tests={"D": select(labels, [0])}, subsets=2, seed=7
        )
    values = curve["mae_p95"].sel(dataset="D").values
    np.testing.assert_allclose(values[1:], [[0.4, 0.4], [0.2, 0.2]], rtol=1e-9)
    assert values[0, 0] == pytest.approx(0.8)
    assert np.isnan(values[0, 1])  # nothing to draw: one subset
    figure = plot_subset_curves(
        {"D": curve.isel(n_clusters=[1, 2])}, start={"D": 0.8}, marks={"D": 0.3}
    )
    drawn = [line.get_marker() for line in figure.axes[0].lines]
    assert drawn.count("D") == 2  # the two subsets of two clusters are below the mark


def test_learning_curve__too_small_a_pool():
    labels = held_out("S_ld", 4).labels
    with pytest.raises(DataError, match="larger pool"):
        learning_curve(labels, [3], retrain=_retrain, tests={"D": labels}, subsets=2)


def test_atom_error_maps__of_each_model():
    held = held_out("S_ld", 4)
    maps = atom_error_maps(
        held.labels, {0: held.predictions["seed"], 8: held.predictions["campaign"]}
    )
    n = int(held.labels["n_atoms"][0])
    error = (
        held.predictions["campaign"]["predicted_forces"].values - held.labels["forces"].values
    ).reshape(4, n, 3)
    mine = np.abs(error[:, 7]).ravel()
    expected = mine[mine >= np.percentile(mine, 95)].mean()
    assert maps["mae_p"].sel(model=8).values[7] == pytest.approx(expected)
    plot_error_maps(maps, held.labels)
    with pytest.raises(DataError, match="no predictions"):
        atom_error_maps(held.labels, {})
