"""Error metrics (paper, section Methods, and method.md): arrays first, Dataset verbs below.

Array functions take NumPy or Dask arrays. On Dask arrays they stay lazy and return a 0-d Dask
array; the work is one pass over the chunks and a small combination at the end. NaN is a masked
error and is left out. The sign convention is predicted minus reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

Array = Any
"""A NumPy or a Dask array."""


# -- arrays


def mae(errors: Array) -> Array:
    """Mean absolute error over all finite entries; NaN where there are none.

    Parameters
    ----------
    errors
        Any shape, any unit.
    """
    return _mean(np.abs(_array(errors)))


def rmse(errors: Array) -> Array:
    """Root of the mean squared error over all finite entries; NaN where there are none."""
    return np.sqrt(_mean(_array(errors) ** 2))


def mae_p(errors: Array, k: float) -> Array:
    """MAE over the errors whose magnitude is at least the k-th percentile (paper, MAE_P).

    ``k = 0`` is the MAE, ``k = 100`` the largest error. The percentile interpolates linearly, as
    NumPy's default does.

    Parameters
    ----------
    errors
        Any shape; every entry counts by itself (for forces: every component).
    k
        0 to 100; 95 is the paper's main one.
    """
    if not 0.0 <= k <= 100.0:
        raise DataError(f"percentile is {k}, expected 0 to 100: write mae_p(errors, 95)")
    flat = np.abs(_array(errors)).reshape(-1)
    if isinstance(flat, np.ndarray):
        return _tail_mean(flat[~np.isnan(flat)], k)
    import dask.array as da

    # The mean over the tail needs the largest entries only, and `topk` reduces chunk by chunk.
    # Masked entries become -1, below every magnitude; counting them afterwards keeps this lazy.
    flat = da.where(da.isnan(flat), -1.0, flat)
    tail = da.topk(flat, _tail_length(flat.shape[0], k))
    finite = (flat >= 0.0).sum()
    return da.map_blocks(
        lambda top, n: np.asarray(_tail_mean(top[top >= 0.0], k, n=int(n))),
        tail.rechunk(-1),
        finite,
        drop_axis=0,
        dtype=float,
        meta=np.zeros(()),
    )


def pearson(x: Array, y: Array, *, where: Array | None = None) -> Array:
    """Pearson correlation over the pairs in which both are finite; NaN for fewer than two.

    Parameters
    ----------
    x, y
        Same shape.
    where
        Boolean, same shape: pairs to count.
    """
    x, y = _array(x), _array(y)
    use = np.isfinite(x) & np.isfinite(y)
    if where is not None:
        use = use & where
    n = use.sum()
    count = np.maximum(n, 1)
    dx = np.where(use, x, 0.0)
    dy = np.where(use, y, 0.0)
    dx = np.where(use, dx - dx.sum() / count, 0.0)
    dy = np.where(use, dy - dy.sum() / count, 0.0)
    norm = np.sqrt((dx * dx).sum() * (dy * dy).sum())
    fine = (n > 1) & (norm > 0.0)
    return np.where(fine, (dx * dy).sum() / np.where(fine, norm, 1.0), np.nan)[()]


def atom_mae_p(errors: NDArray, k: float) -> NDArray:
    """MAE_P of each atom over frames: shape (frame, n, 3) to (n,). NaN is left out."""
    values = np.moveaxis(np.abs(np.asarray(errors, dtype=float)), 1, 0)
    return np.array([mae_p(atom, k) for atom in values])


def _array(values: Array) -> Array:
    if hasattr(values, "dims") and hasattr(values, "data"):
        values = values.data
    return values if hasattr(values, "dask") else np.asarray(values, dtype=float)


def _mean(values: Array) -> Array:
    use = ~np.isnan(values)
    n = use.sum()
    mean = np.where(use, values, 0.0).sum() / np.maximum(n, 1)
    return np.where(n > 0, mean, np.nan)[()]


def _tail_length(n: int, k: float) -> int:
    """How many of the largest of `n` values decide the percentile and the mean beyond it."""
    return max(1, n - int(np.floor((n - 1) * k / 100.0)))


def _tail_mean(values: NDArray, k: float, *, n: int | None = None) -> float:
    """Mean of the values at or above the k-th percentile of `n` values.

    `values` holds at least the `_tail_length(n, k)` largest of them.
    """
    n = len(values) if n is None else n
    if n == 0:
        return float("nan")
    # Magnitudes, largest first; place h from below is place n - 1 - h from above.
    descending = np.sort(values)[::-1]
    place = (n - 1) * k / 100.0
    low, high = int(np.floor(place)), int(np.ceil(place))
    lower, upper = descending[n - 1 - low], descending[n - 1 - high]
    threshold = lower + (upper - lower) * (place - low)
    return float(descending[descending >= threshold].mean())


METRICS: dict[str, Callable[[Array], Array]] = {
    "mae": mae,
    "rmse": rmse,
    "mae_p95": lambda errors: mae_p(errors, 95),
}
"""Metrics of a table, by name."""


# -- Datasets


def force_errors(reference: xr.Dataset, predicted: xr.Dataset) -> xr.DataArray:
    """Force errors (atom, xyz), eV/Å: predicted minus reference; NaN where the label is masked.

    Parameters
    ----------
    reference
        Labels Dataset.
    predicted
        What `Potential.evaluate` returns for the same structures (`forces`), or a stored
        prediction (`predicted_forces`).
    """
    found, expected = _values(predicted, "forces"), _values(reference, "forces")
    if found.shape != expected.shape:
        raise DataError(
            f"{found.shape[0]} atoms predicted, {expected.shape[0]} labelled: "
            "evaluate the very structures that the labels belong to"
        )
    error = found - expected
    return _data_array(error, ("atom", "xyz"), "eV/Å", "force error, predicted minus reference")


def energy_errors(reference: xr.Dataset, predicted: xr.Dataset) -> xr.DataArray:
    """Energy errors per atom (structure,), eV: predicted minus reference.

    Both relative to the isolated atoms at the labels' level of theory (method.md, Energy zero).
    """
    from mofal.data import relative_energy

    n_atoms = reference["n_atoms"].values
    error = (_values(predicted, "energy") - relative_energy(reference).data) / n_atoms
    return _data_array(
        error, ("structure",), "eV", "energy error per atom, predicted minus reference"
    )


def error_table(
    reference: xr.Dataset,
    predicted: xr.Dataset,
    *,
    subsets: Mapping[str, NDArray] | None = None,
    elements: bool = True,
) -> xr.Dataset:
    """Errors of a model on labels: over all atoms, per element, per subset; and of the energy.

    Parameters
    ----------
    reference
        Labels Dataset; only structures whose `status` is "converged" count, where there is one.
    predicted
        Predictions for the same structures.
    subsets
        Masks (atom,) by name.
    elements
        Whether each element becomes a subset of its own.

    Returns
    -------
    table
        Dim ``subset``: `subset` names, `n_atoms`, and `mae`, `rmse`, `mae_p95` of force
        components, eV/Å. Without dim: `energy_avg` and `energy_std` (ΔE_avg and ΔE_std of the
        paper, eV per atom) where both hold energies. Lazy where the forces are.
    """
    import xarray as xr
    from ase.data import chemical_symbols

    errors = _masked(force_errors(reference, predicted).data, _converged_atoms(reference)[:, None])
    numbers = reference["numbers"].values
    masks: dict[str, NDArray] = {"all": np.ones(len(numbers), bool)}
    if elements:
        for number in np.unique(numbers):
            masks[chemical_symbols[number]] = numbers == number
    for name, mask in (subsets or {}).items():
        masks[name] = _mask(mask, len(numbers), name)
    rows = {
        metric: [function(_masked(errors, mask[:, None])) for mask in masks.values()]
        for metric, function in METRICS.items()
    }
    labels = {"mae": "MAE", "rmse": "RMSE", "mae_p95": "MAE_P95"}
    table = xr.Dataset(
        {
            name: (
                "subset",
                _stack(values),
                {"units": "eV/Å", "long_name": f"force {labels[name]}"},
            )
            for name, values in rows.items()
        },
        coords={"subset": list(masks)},
    )
    table["n_atoms"] = ("subset", [int(mask.sum()) for mask in masks.values()])
    has_energy = "isolated_atom_energies" in reference.attrs and "energy" in reference
    if has_energy and any(name in predicted for name in ("energy", "predicted_energy")):
        per_atom = _masked(energy_errors(reference, predicted).data, _converged(reference))
        average = _mean(per_atom)
        table["energy_avg"] = ((), average, {"units": "eV"})
        table["energy_std"] = ((), np.sqrt(_mean((per_atom - average) ** 2)), {"units": "eV"})
    return table


def atom_errors(reference: xr.Dataset, predicted: xr.Dataset, *, k: float = 95.0) -> xr.DataArray:
    """MAE_P of each atom over the frames of one system (atom of the first frame,), eV/Å.

    Raises
    ------
    DataError
        Frames that do not hold the same atoms in the same order.
    """
    counts = reference["n_atoms"].values
    n = int(counts[0])
    numbers = reference["numbers"].values
    if (counts != n).any() or (numbers.reshape(len(counts), n) != numbers[:n]).any():
        raise DataError(
            "the frames do not hold the same atoms in the same order: give the frames of one "
            "system, mofal.data.select(labels, labels['system'] == name)"
        )
    errors = _masked(force_errors(reference, predicted).data, _converged_atoms(reference)[:, None])
    values = atom_mae_p(np.asarray(errors).reshape(len(counts), n, 3), k)
    return _data_array(values, ("atom",), "eV/Å", f"force MAE_P{k:g} over {len(counts)} frames")


def likelihood_correlation(
    errors: xr.DataArray | NDArray, log_likelihood: xr.DataArray | NDArray, numbers: NDArray
) -> xr.Dataset:
    """How well the log-likelihood foretells the force error, per element (paper, Fig. SI.3).

    Parameters
    ----------
    errors
        Force errors (atom, xyz), eV/Å.
    log_likelihood
        Shape (atom,). Atoms of an unseen element (-inf) are counted, and left out of r and R².
    numbers
        Atomic numbers (atom,).

    Returns
    -------
    table
        Dim ``element`` (symbols): `pearson_r`, `r_squared` (of a straight line, r²), `n_atoms`
        that entered, `n_unseen`. Lazy where the errors are.
    """
    import xarray as xr
    from ase.data import chemical_symbols

    size = np.sqrt((_array(errors) ** 2).sum(axis=1))
    likelihood = _array(log_likelihood)
    present = np.unique(np.asarray(numbers))
    values, counted, unseen = [], [], []
    for number in present:
        mine = np.asarray(numbers) == number
        values.append(pearson(size, likelihood, where=mine))
        counted.append((mine & np.isfinite(size) & np.isfinite(likelihood)).sum())
        unseen.append((mine & np.isneginf(likelihood)).sum())
    r = _stack(values)
    return xr.Dataset(
        {
            "pearson_r": ("element", r),
            "r_squared": ("element", r**2),
            "n_atoms": ("element", _stack(counted)),
            "n_unseen": ("element", _stack(unseen)),
        },
        coords={"element": [chemical_symbols[number] for number in present]},
    )


def _values(ds: xr.Dataset, name: str) -> Array:
    for candidate in (name, f"predicted_{name}"):
        if candidate in ds:
            return ds[candidate].data
    raise DataError(
        f"no {name} in this Dataset (it has {', '.join(map(str, ds.data_vars))}): "
        "label the structures, or evaluate a potential on them"
    )


def _data_array(values: Array, dims: tuple[str, ...], units: str, name: str) -> xr.DataArray:
    import xarray as xr

    return xr.DataArray(values, dims=dims, attrs={"units": units, "long_name": name})


def _converged(reference: xr.Dataset) -> NDArray:
    if "status" not in reference:
        return np.ones(reference.sizes["structure"], bool)
    return np.asarray(reference["status"].values == "converged", dtype=bool)


def _converged_atoms(reference: xr.Dataset) -> NDArray:
    return np.repeat(_converged(reference), reference["n_atoms"].values)


def _masked(errors: Array, mask: NDArray) -> Array:
    return np.where(mask, errors, np.nan)


def _mask(mask: NDArray, n: int, name: str) -> NDArray:
    found = np.asarray(mask)
    if found.dtype != bool or found.shape != (n,):
        raise DataError(
            f"subset {name!r} has dtype {found.dtype} and shape {found.shape}, "
            f"expected booleans of shape ({n},)"
        )
    return found


def _stack(values: list[Array]) -> Array:
    if any(hasattr(value, "dask") for value in values):
        import dask.array as da

        return da.stack(values)
    return np.asarray(values)
