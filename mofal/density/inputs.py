"""What users give: arrays of rows, of NumPy, Dask or xarray, checked once."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import validate_data

from mofal.density.graphs import is_dask, plain
from mofal.density.rows import DaskRows, LocalRows, Rows
from mofal.errors import DataError


def unwrap(x: Any) -> Any:
    """The array inside a DataArray, anything else as it is."""
    return x.data if type(x).__module__.startswith("xarray") else x


def check_rows(estimator: Any, x: Any, *, reset: bool) -> Any:
    """Rows (n, d) as a NumPy array of floats or a Dask array, that fit the estimator.

    Parameters
    ----------
    estimator : estimator
    x : array-like, dask.array.Array or xarray.DataArray
    reset : bool
        True when fitting: remember the number of features, and want two rows at least.

    Raises
    ------
    ValueError
        NaN or infinity (in memory), other dims, dtypes or numbers of features.
    """
    x = unwrap(x)
    if not is_dask(x):
        kinds = [np.float64, np.float32]
        if isinstance(x, np.ma.MaskedArray):
            x = plain(x)
        return validate_data(estimator, x, reset=reset, dtype=kinds, ensure_min_samples=1 + reset)
    if x.ndim != 2:
        raise DataError(f"found an array of {x.ndim} dims, expected 2: rows, features")
    if x.dtype.kind not in "fiu":
        raise DataError(f"found dtype {x.dtype}, expected real numbers")
    if reset:
        estimator.n_features_in_ = int(x.shape[1])
    elif x.shape[1] != estimator.n_features_in_:
        raise DataError(
            f"X has {x.shape[1]} features, but {type(estimator).__name__} was fitted with "
            f"{estimator.n_features_in_}"
        )
    return x


def open_rows(x: Any, weights: Any = None, labels: Any = None, *, least: int = 1) -> Rows:
    """A source of at least so many rows over a NumPy or Dask array."""
    if is_dask(x):
        rows = DaskRows(x, weights=weights, labels=labels)
        if rows.n_rows < least:
            raise DataError(f"found {rows.n_rows} row, expected at least {least}")
        return rows
    n = x.shape[0]
    columns = []
    for name, column in (("sample_weight", weights), ("labels", labels)):
        array = None if column is None else plain(column)
        if array is not None and array.shape != (n,):
            if name == "sample_weight" and array.ndim == 0:
                array = np.full(n, array)
            else:
                raise DataError(f"{name} has shape {array.shape}, expected ({n},): one per row")
        columns.append(array)
    w = columns[0]
    return LocalRows(x, weights=None if w is None else w.astype(np.float64), labels=columns[1])
