"""Groups on disk: plain Zarr v3, written once, renamed into place, checked when opened.

A group that exists is complete. It is written under a temporary name beside its place, flushed,
given a manifest of its files, and renamed. Readers without mofal use
``xarray.open_zarr(path, consolidated=False)``. The format is specified in docs/format.md.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mofal.data.manifest import (
    MANIFEST,
    check_group,
    has_manifest,
    how_to_mend,
    read_manifest,
    refuse_format,
    write_manifest,
)
from mofal.data.shards import ShardReader, grids, in_one_line
from mofal.data.variables import FORMAT, STRING, VARIABLES, describe, validate
from mofal.errors import DataError, StoreError
from mofal.files import atomic_path, not_written, read_json, remove_leftovers, write_json

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "MANIFEST",
    "atomic_path",
    "check_group",
    "open_group",
    "read_json",
    "remove_leftovers",
    "write_group",
    "write_json",
]

"""What text is stored as; in memory it is Python strings (`mofal.data.ragged.TEXT`)."""


def write_group(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    kind: str = "structures",
    rows_per_shard: int | None = None,
) -> Path:
    """Write a Dataset as an immutable group.

    Lazy variables are computed and written shard by shard, by Dask's scheduler of the moment, so
    that memory holds a few shards and never a whole variable. If the group is there already,
    nothing is written: a group that exists is complete, and whoever made it made the same.

    Parameters
    ----------
    ds : xarray.Dataset
        Coordinates that are no dims are stored as variables.
    path : path
        Ends in ``.zarr`` by convention.
    kind : str
        What it is validated as (`mofal.data.variables.REQUIRED`), ``"table"`` for anything.
    rows_per_shard : int, optional
        Rows along the first dim of each variable; default: shards of about 64 MB of the widest.

    Raises
    ------
    DataError
        It breaks the data contract.
    StoreError
        The disk refused (nothing is left behind), or something else is in that place.
    """
    final = Path(path)
    if rows_per_shard is not None and rows_per_shard < 1:
        raise DataError(f"rows_per_shard is {rows_per_shard}; expected at least 1")
    if _is_taken(final):
        return final
    out = _storable(ds, kind)
    encoding = _lay_out(out, rows_per_shard)
    lazy = [name for name in map(str, out.variables) if out[name].chunks is not None]
    try:
        with atomic_path(final) as temporary:
            # What is in memory here is written from here; what is not, wherever Dask computes it.
            _to_zarr(_cut(out.drop_vars(lazy), encoding), temporary, "w", encoding, here=True)
            if lazy:
                rest = out[lazy].drop_vars(list(out.indexes))
                _to_zarr(rest, temporary, "a", encoding, here=False)
            write_manifest(temporary)
    except OSError as error:
        raise not_written(final, error) from error
    return final


def _lay_out(out: xr.Dataset, rows_per_shard: int | None) -> dict[str, dict[str, Any]]:
    """Return the encoding of every variable; give lazy ones chunks that are whole shards."""
    encoding: dict[str, dict[str, Any]] = {}
    layout = grids(out, rows_per_shard=rows_per_shard)
    for name in map(str, out.variables):
        encoding[name] = {"compressors": _codecs()}
        if name not in layout:
            continue
        inner, shard = layout[name]
        if name in out.indexes:
            encoding[name]["chunks"] = out[name].shape
        elif out[name].dtype.kind == "T":
            # Text of any length has no place in shards: a chunk of it is as long as a shard.
            encoding[name]["chunks"] = shard
        else:
            encoding[name].update(chunks=inner, shards=shard)
        if out[name].chunks is not None:
            # As tasks: each shard waits for its own few chunks, never for all of them.
            out[name] = out[name].copy(data=out[name].data.rechunk(shard, method="tasks"))
    return encoding


def _cut(ds: xr.Dataset, encoding: dict[str, dict[str, Any]]) -> xr.Dataset:
    """Cut what is in memory into shards, one task each.

    Zarr writes the shards of one array side by side and does not wait for the others when one
    fails; what comes late would make the temporary directory again after it was removed.
    """
    import dask.array as da

    for name in map(str, ds.variables):
        shard = encoding[name].get("shards") or encoding[name].get("chunks")
        if shard and name not in ds.indexes:
            pieces = da.from_array(ds[name].values, chunks=shard, name=False)
            ds[name] = ds[name].copy(data=pieces)
    return ds


def _to_zarr(
    ds: xr.Dataset,
    path: Path,
    mode: Literal["w", "a"],
    encoding: dict[str, dict[str, Any]],
    *,
    here: bool,
) -> None:
    delayed = ds.to_zarr(
        path,
        mode=mode,
        consolidated=False,
        encoding={name: encoding[name] for name in map(str, ds.variables)},
        zarr_format=3,
        compute=False,
        # Travels with the arrays to other processes, as zarr's config would not.
        write_empty_chunks=True,
    )
    _compute(delayed, here=here)


def _is_taken(final: Path) -> bool:
    """Tell whether the group is there already; refuse a place that holds something else."""
    try:
        if not final.exists() or (final.is_dir() and not any(final.iterdir())):
            return False
        if final.is_dir() and has_manifest(final):
            return True
    except OSError as error:
        raise not_written(final, error) from error
    what = "a directory that is no finished group" if final.is_dir() else "a file"
    raise StoreError(f"{final} is {what}; choose another path, or delete it first")


def _codecs() -> tuple[Any, ...]:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return ZstdCodec(level=3), Crc32cCodec()


def _storable(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """Return a copy in the form that is stored: validated, described, text as text."""
    if "n_atoms" in ds.variables and ds["n_atoms"].chunks is not None:
        ds = ds.assign(n_atoms=ds["n_atoms"].compute())
    out = describe(validate(ds, kind).reset_coords())
    for name in map(str, out.variables):
        variable = out[name]
        if variable.dtype.kind in "OU" and name not in out.indexes:
            if variable.dtype.kind == "O" and variable.chunks is None:
                _refuse_objects(name, variable.values)
            out[name] = variable.astype(STRING)
        spec = VARIABLES.get(name)
        if spec is not None and spec.finite and variable.dtype.kind == "f" and variable.chunks:
            # validate looks only at what is in memory: here the chunks pass by anyway.
            out[name] = variable.copy(
                data=variable.data.map_blocks(
                    _refuse_not_finite, name=None, variable=name, dtype=variable.dtype
                )
            )
        out[name].encoding = {}
    out.encoding = {}
    out.attrs = {
        **out.attrs,
        "mofal_format": FORMAT,
        "mofal_kind": kind,
        "written_by": json.dumps(_versions(), sort_keys=True),
    }
    for owner, attrs in [("Dataset", out.attrs), *((n, out[n].attrs) for n in out.variables)]:
        _refuse_attrs(str(owner), attrs)
    return out


def _refuse_objects(name: str, values: np.ndarray) -> None:
    odd = [v for v in values.ravel() if not isinstance(v, str)]
    if odd:
        raise DataError(f"{name} holds {odd[0]!r}; expected text or numbers, not Python objects")


def _refuse_not_finite(block: np.ndarray, *, variable: str) -> np.ndarray:
    bad = ~np.isfinite(block)
    if bad.any():
        raise DataError(
            f"{variable} holds {int(bad.sum())} values in one chunk that are NaN or infinite; "
            "drop or repair these structures"
        )
    return block


def _refuse_attrs(owner: str, attrs: dict[Any, Any]) -> None:
    for key, value in attrs.items():
        plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
        try:
            json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError):
            raise DataError(
                f"the attribute {key!r} of {owner} has no JSON form: {value!r}; "
                "make it a string or a number"
            ) from None


def _compute(delayed: Any, *, here: bool) -> None:
    """Compute by threads that are waited for, or by the scheduler that the user has chosen.

    Dask does not wait for other tasks either when one fails.
    """
    import dask
    import dask.threaded
    from dask.base import get_scheduler
    from dask.system import CPU_COUNT

    if not here and get_scheduler() not in (None, dask.threaded.get):
        delayed.compute()
        return
    pool = ThreadPoolExecutor(dask.config.get("num_workers", None) or CPU_COUNT)
    try:
        delayed.compute(scheduler="threads", pool=pool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _versions() -> dict[str, str]:
    import dask
    import xarray
    import zarr

    from mofal import __version__

    return {
        "mofal": __version__,
        "numpy": np.__version__,
        "dask": dask.__version__,
        "xarray": xarray.__version__,
        "zarr": zarr.__version__,
    }


def open_group(path: str | os.PathLike[str], *, check: bool = True) -> xr.Dataset:
    """Open a group lazily, with Dask chunks that are whole shards.

    Variables along `structure`, text, and scalars are small and are loaded; all others stay on
    disk. A damaged shard that is met later, while computing, is a StoreError too.

    Parameters
    ----------
    path : path
    check : bool
        Compare the files with the manifest (all sizes, and the content of small files).

    Raises
    ------
    StoreError
        The group is missing, damaged, or of a newer format.
    """
    import xarray as xr

    group = Path(path)
    manifest = read_manifest(group) if check else {}
    try:
        ds = xr.open_dataset(group, engine="zarr", consolidated=False, chunks=None, cache=False)
        refuse_format(group, ds.attrs.get("mofal_format"))
        token = manifest.get("checksum") or str((group / "zarr.json").stat())
        order = [n for n in VARIABLES if n in ds] + [n for n in ds.data_vars if n not in VARIABLES]
        ds = ds[order]
        for name in order:
            variable = ds[name].variable
            eager = "structure" in variable.dims or variable.dtype.kind in "TO"
            reader = ShardReader(variable, group=group, name=str(name))
            data: Any
            if eager or variable.ndim == 0 or variable.size == 0:
                data = reader[()]
            else:
                data = reader.lazy(token)
            ds[name] = xr.Variable(variable.dims, data, variable.attrs, variable.encoding)
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"{group} is damaged: it cannot be read ({in_one_line(error)}); {how_to_mend(group)}"
        ) from error
    return ds
