"""What tests of several rooms need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr


@contextmanager
def raise_if_dask_computes(*, at_most: int = 0) -> Iterator[None]:
    """Fail if Dask is asked to compute more than `at_most` times inside the block."""
    computed = 0

    def scheduler(dsk: Any, keys: Any, **kwargs: Any) -> Any:
        nonlocal computed
        computed += 1
        if computed > at_most:
            raise AssertionError(f"Dask computed {computed} times, expected at most {at_most}")
        return dask.get(dsk, keys, **kwargs)

    with dask.config.set(scheduler=scheduler):
        yield


def number_of_tasks(*arrays: Any) -> int:
    """Tasks of a graph, as they would be sent to a scheduler."""
    optimized = dask.optimize(*(a.data if isinstance(a, xr.DataArray) else a for a in arrays))
    return sum(len(dict(a.__dask_graph__())) for a in optimized if isinstance(a, da.Array))


def chunked(ds: xr.Dataset, rows: int, *, dim: str = "atom") -> xr.Dataset:
    """Make what lies along a dim lazy, in chunks of `rows`, and leave the rest in memory."""
    out = ds.copy()
    for name in ds.data_vars:
        if dim in ds[name].dims:
            out[name] = ds[name].chunk({dim: rows})
    return out


def assert_same_bits(actual: xr.Dataset, expected: xr.Dataset) -> None:
    """Assert equality of variables, dims, dtypes and every bit; attributes are not compared.

    xarray's own comparison takes -0.0 for 0.0.
    """
    assert set(actual.variables) == set(expected.variables)
    for name in expected.variables:
        a, b = actual[name], expected[name]
        assert a.dims == b.dims, name
        assert a.shape == b.shape, name
        if b.dtype.kind in "TUO":
            assert a.values.tolist() == b.values.tolist(), name
            continue
        assert a.dtype == b.dtype, name
        same = np.ascontiguousarray(a.values).tobytes() == np.ascontiguousarray(b.values).tobytes()
        assert same, f"{name}:\n{a.values}\n{b.values}"
