"""Models against data sets, and errors against the number of clusters (Tables SI.4, SI.11; Fig. 5).

Models come in as what `mofal.potential.Potential` describes: `evaluate` is all that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.metrics import atom_errors, error_table
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

MEASURES = ("mae", "rmse", "mae_p95", "energy_avg", "energy_std")
"""What is told of a model on a set."""
_LONG = {
    "mae": ("eV/Å", "force MAE"),
    "rmse": ("eV/Å", "force RMSE"),
    "mae_p95": ("eV/Å", "force MAE_P95"),
    "energy_avg": ("eV", "mean energy error per atom"),
    "energy_std": ("eV", "standard deviation of the energy error per atom"),
}


class Evaluates(Protocol):
    """What `cross_validation` asks of a model."""

    def evaluate(self, ds: xr.Dataset) -> xr.Dataset:
        """Structures to `energy(structure)` and `forces(atom, xyz)`."""


Predictions = Mapping[str, "xr.Dataset"]
"""Predictions of one model by name of the set."""


def cross_validation(
    models: Mapping[str, Evaluates | Predictions], datasets: Mapping[str, xr.Dataset]
) -> xr.Dataset:
    """Errors of every model on every labelled set (paper, Tables SI.4, SI.5 and SI.11).

    Parameters
    ----------
    models
        By name: something with `evaluate`, or its stored predictions by name of the set.
    datasets
        Labels Datasets by name.

    Returns
    -------
    table
        Dims ``model``, ``dataset``: `mae`, `rmse`, `mae_p95` of force components, eV/Å;
        `energy_avg`, `energy_std`, eV per atom, predicted minus reference (NaN without isolated
        atoms); `n_structures` (dataset), converged ones. Lazy where the labels are.

    Raises
    ------
    DataError
        No model or no set, or a model has no predictions for a set.
    """
    import xarray as xr

    if not models or not datasets:
        raise DataError(
            f"{len(models)} models and {len(datasets)} data sets, expected at least one of each"
        )
    rows: dict[str, list[list[Any]]] = {name: [] for name in MEASURES}
    for name, model in models.items():
        row = [
            measure(labels, _predicted(name, model, key, labels))
            for key, labels in datasets.items()
        ]
        for measured in MEASURES:
            rows[measured].append([one[measured] for one in row])
    table = xr.Dataset(
        {
            name: (
                ("model", "dataset"),
                _stack(values),
                {"units": _LONG[name][0], "long_name": _LONG[name][1]},
            )
            for name, values in rows.items()
        },
        coords={"model": list(models), "dataset": list(datasets)},
    )
    counts = [int(_converged(labels).sum()) for labels in datasets.values()]
    return table.assign(n_structures=("dataset", counts))


def measure(labels: xr.Dataset, predicted: xr.Dataset) -> dict[str, Any]:
    """The `MEASURES` of one prediction, 0-d, lazy where the labels are; eV/Å and eV per atom."""
    table = error_table(labels, predicted, elements=False)
    out: dict[str, Any] = {}
    for name in MEASURES:
        if name not in table:
            out[name] = np.nan
        elif "subset" in table[name].dims:
            out[name] = table[name].data[0]
        else:
            out[name] = table[name].data
    return out


def _predicted(
    name: str, model: Evaluates | Predictions, key: str, labels: xr.Dataset
) -> xr.Dataset:
    if not isinstance(model, Mapping):
        return model.evaluate(labels)
    if key not in model:
        raise DataError(
            f"model {name!r} has predictions for {', '.join(model) or 'no set'}, none for {key!r}: "
            "give the model itself, or evaluate it there"
        )
    return model[key]


def _converged(labels: xr.Dataset) -> NDArray:
    if "status" not in labels:
        return np.ones(labels.sizes["structure"], bool)
    return np.asarray(labels["status"].values == "converged", dtype=bool)


def _stack(rows: list[list[Any]]) -> Any:
    if any(hasattr(value, "dask") for row in rows for value in row):
        import dask.array as da

        return da.stack([da.stack([da.asarray(v) for v in row]) for row in rows])
    return np.array(rows, dtype=float)


def disjoint_subsets(n: int, size: int, subsets: int, *, seed: int) -> NDArray:
    """Random subsets without a common member: (subset, size) indices, each row ascending.

    Those of a smaller size begin with the same permutation: one seed, one order.

    Raises
    ------
    DataError
        They do not fit.
    """
    if size < 1 or subsets < 1 or size * subsets > n:
        raise DataError(
            f"{subsets} disjoint subsets of {size} among {n}: they do not fit; "
            f"at most {n // max(size, 1)} do, or give a larger pool"
        )
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(n)
    return np.sort(order[: size * subsets].reshape(subsets, size), axis=1)


def learning_curve(
    pool: xr.Dataset,
    sizes: Sequence[int],
    *,
    retrain: Callable[[xr.Dataset, int], Evaluates],
    tests: Mapping[str, xr.Dataset],
    subsets: int = 3,
    seed: int = 0,
) -> xr.Dataset:
    """Errors after learning from random subsets of a pool of clusters (paper, Figure 5.B).

    One Dask task retrains and evaluates: they run on the client of the session, or on Dask's
    scheduler of the moment.

    Parameters
    ----------
    pool
        Labelled clusters.
    sizes
        Clusters per subset; 0 is the model that learns nothing new (one subset).
    retrain
        ``retrain(clusters, seed) -> model`` for one subset: usually the seed data and these
        clusters together, from the seed model. With 0 clusters it is given an empty selection. It
        must be importable on the workers, and durable if it is to survive them.
    tests
        Labels Datasets by name, to judge by.
    subsets
        Disjoint subsets per size.
    seed
        Of the draw; that of training k is the k-th child of it.

    Returns
    -------
    curve
        Dims ``n_clusters``, ``subset``, ``dataset``: as `cross_validation`; NaN where a size has
        fewer subsets. Computed.

    Raises
    ------
    DataError
        The subsets do not fit into the pool.
    """
    import dask
    import xarray as xr

    from mofal.data import select

    counts = [int(n) for n in sizes]
    n_pool = pool.sizes["structure"]
    shape = (len(counts), subsets, len(tests))
    found = {name: np.full(shape, np.nan) for name in MEASURES}
    task = dask.delayed(_one_point, pure=False)
    data = dask.delayed(dict(tests))
    jobs, places = [], []
    for row, count in enumerate(counts):
        chosen = (
            np.zeros((1, 0), int)
            if count == 0
            else disjoint_subsets(n_pool, count, subsets, seed=seed)
        )
        for column, members in enumerate(chosen):
            child = np.random.SeedSequence(seed, spawn_key=(count, column))
            jobs.append(task(select(pool, members), int(child.generate_state(1)[0]), retrain, data))
            places.append((row, column))
    for (row, column), errors in zip(places, dask.compute(*jobs)):
        for name in MEASURES:
            found[name][row, column] = errors[name]
    return xr.Dataset(
        {
            name: (
                ("n_clusters", "subset", "dataset"),
                values,
                {"units": _LONG[name][0], "long_name": _LONG[name][1]},
            )
            for name, values in found.items()
        },
        coords={"n_clusters": counts, "subset": np.arange(subsets), "dataset": list(tests)},
    )


def _one_point(
    clusters: xr.Dataset,
    seed: int,
    retrain: Callable[[xr.Dataset, int], Evaluates],
    tests: Mapping[str, xr.Dataset],
) -> dict[str, list[float]]:
    model = retrain(clusters, seed)
    rows = [measure(labels, model.evaluate(labels)) for labels in tests.values()]
    return {name: [float(row[name]) for row in rows] for name in MEASURES}


def atom_error_maps(
    labels: xr.Dataset, predictions: Mapping[Any, xr.Dataset], *, k: float = 95.0
) -> xr.Dataset:
    """MAE_P of each atom for several models, over the frames of one system (paper, Figure 5.C).

    Parameters
    ----------
    labels
        Labelled frames of one system.
    predictions
        By name of the model, or by number of clusters.
    k
        Percentile.

    Returns
    -------
    maps
        Dims ``model``, ``atom`` (of the first frame): `mae_p`, eV/Å; `numbers` (atom).
    """
    import xarray as xr

    if not predictions:
        raise DataError("no predictions: give at least one model's, by its name")
    values = [atom_errors(labels, predicted, k=k).values for predicted in predictions.values()]
    n = len(values[0])
    return xr.Dataset(
        {
            "mae_p": (
                ("model", "atom"),
                np.array(values),
                {"units": "eV/Å", "long_name": f"force MAE_P{k:g} of each atom"},
            ),
            "numbers": ("atom", labels["numbers"].values[:n]),
        },
        coords={"model": list(predictions)},
        attrs={"percentile": float(k), "n_frames": labels.sizes["structure"]},
    )
