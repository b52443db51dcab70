"""How variables are laid out in shards, and how one shard is read.

All variables along one dim have the same rows in a shard, so that their Dask chunks are aligned:
chunk 7 of `features` and chunk 7 of `numbers` are the same atoms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.manifest import how_to_mend
from mofal.errors import StoreError

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

INNER_BYTES = 2 * 2**20
"""Size of an inner chunk: the least that is read, and what one CRC32C covers."""
SHARD_BYTES = 64 * 2**20
"""Size of a shard of the widest variable: the file, and the Dask chunk."""


def plan_rows(n: int, row_bytes: int, *, rows_per_shard: int | None = None) -> tuple[int, int]:
    """Rows of an inner chunk and of a shard of the widest variable along a dim of length `n`.

    A shard holds whole chunks; it may be rounded up by less than one row per chunk for that.
    """
    wanted = rows_per_shard if rows_per_shard is not None else SHARD_BYTES // row_bytes
    shard = max(1, min(wanted, n))
    inner = max(1, min(shard, INNER_BYTES // row_bytes))
    pieces = -(-shard // inner)
    inner = -(-shard // pieces)
    return inner, inner * pieces


def widen(inner: int, shard: int, row_bytes: int) -> int:
    """Rows of an inner chunk of a narrower variable: as many whole ones as are about 2 MB."""
    pieces = shard // inner
    fits = [
        k for k in range(1, pieces + 1) if pieces % k == 0 and inner * k * row_bytes <= INNER_BYTES
    ]
    return inner * max(fits, default=1)


def row_bytes(variable: xr.DataArray) -> int:
    """Bytes of one step along the first dim."""
    return max(1, variable.dtype.itemsize * int(np.prod(variable.shape[1:], dtype=np.int64)))


def grids(
    ds: xr.Dataset, *, rows_per_shard: int | None = None
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Shapes of inner chunk and shard of every variable that has a shape."""
    out: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    by_dim: dict[str, list[str]] = {}
    for name in map(str, ds.variables):
        if ds[name].size and ds[name].ndim:
            by_dim.setdefault(str(ds[name].dims[0]), []).append(name)
    for dim, names in by_dim.items():
        widest = max(row_bytes(ds[name]) for name in names)
        inner, shard = plan_rows(ds.sizes[dim], widest, rows_per_shard=rows_per_shard)
        for name in names:
            rest = ds[name].shape[1:]
            own = widen(inner, shard, row_bytes(ds[name]))
            out[name] = ((own, *rest), (shard, *rest))
    return out


class ShardReader:
    """One stored variable, for Dask to slice: reads lazily, and says what is wrong and where.

    Small and picklable: it goes to workers instead of the data.
    """

    def __init__(self, variable: xr.Variable, *, group: Path, name: str) -> None:
        grid = variable.encoding.get("shards") or variable.encoding.get("chunks") or (0,)
        self.variable = variable
        self.group = group
        self.name = name
        self.rows = grid[0]
        self.shape = variable.shape
        self.dtype = variable.dtype
        self.ndim = variable.ndim

    def __getitem__(self, key: Any) -> np.ndarray:
        index = key if isinstance(key, tuple) else (key,)
        if self.rows and self.shape[0]:
            self._check_files(index[0] if index else slice(None))
        try:
            values = np.asarray(self.variable[index].values)
            return values.astype(object) if values.dtype.kind == "T" else values
        except Exception as error:
            raise StoreError(
                f"{self.group} is damaged: {self.name}{_where(index)} cannot be read "
                f"({in_one_line(error)}); {how_to_mend(self.group)}"
            ) from error

    def _check_files(self, along: Any) -> None:
        # Zarr takes a shard that is not there, or is empty, for fill values: look before reading.
        if isinstance(along, slice):
            steps = range(*along.indices(self.shape[0]))
            touched = (
                range(
                    min(steps[0], steps[-1]) // self.rows, max(steps[0], steps[-1]) // self.rows + 1
                )
                if len(steps)
                else range(0)
            )
        else:
            rows = np.atleast_1d(np.asarray(along))
            touched = np.unique((rows % self.shape[0]) // self.rows)  # type: ignore[assignment]
        rest = ["0"] * (self.ndim - 1)
        for shard in touched:
            file = "/".join([self.name, "c", str(int(shard)), *rest])
            try:
                empty = (self.group / file).stat().st_size == 0
            except OSError:
                raise StoreError(
                    f"{self.group} is damaged: {file} is missing; {how_to_mend(self.group)}"
                ) from None
            if empty:
                raise StoreError(
                    f"{self.group} is damaged: {file} is empty; {how_to_mend(self.group)}"
                )

    def lazy(self, token: str) -> da.Array:
        """Return a Dask array whose chunks are the shards; equal tokens mean equal content."""
        import dask.array as da
        from dask.base import tokenize

        return da.from_array(
            self,
            chunks=(self.rows, *self.shape[1:]),
            name=f"{self.name}-{tokenize(str(self.group.absolute()), token, self.name)}",
            inline_array=True,
            meta=np.empty((0,) * self.ndim, self.dtype),
        )


def in_one_line(error: Exception) -> str:
    """Return the kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _where(index: tuple[Any, ...]) -> str:
    first = index[0] if index else slice(None)
    if isinstance(first, slice) and first.start is not None and first.stop is not None:
        return f", rows {first.start} to {first.stop}"
    return ""
