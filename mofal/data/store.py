"""Groups on disk: plain Zarr v3, written once, renamed into place, checked when opened.

A group that exists is complete. It is written under a temporary name beside its place, flushed,
given a manifest of its files, and renamed. Readers without mofal use
``xarray.open_zarr(path, consolidated=False)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.variables import FORMAT, VARIABLES, describe, validate
from mofal.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

INNER_BYTES = 2 * 2**20
SHARD_BYTES = 64 * 2**20
MANIFEST = "manifest/zarr.json"
"""The manifest is the attributes of an empty Zarr group of that name, so that every Zarr reader
passes over it in silence."""
_SMALL = 2**16
"""Files up to this size are checked by content whenever a group is opened, larger ones by size
(a flipped byte in them is met by the CRC32C of the chunk when it is read)."""


# ---------------------------------------------------------------------------------- JSON files
def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write JSON under a temporary name, flush it to the disk and rename it into place."""
    target = Path(path)
    text = json.dumps(content, indent=1, sort_keys=True) + "\n"
    with atomic_path(target) as temporary:
        temporary.write_text(text)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file.

    Raises
    ------
    StoreError
        It is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is damaged ({error}); delete it to have it made again") from None


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `target`; what is written there becomes `target`, or nothing.

    Works for files and for directories. A target that exists is replaced if it is a file, and left
    alone (the new one is dropped) if it is a directory: a finished group is never changed.
    """
    final = Path(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        if temporary.is_dir():
            _flush_tree(temporary)
            try:
                os.rename(temporary, final)
            except OSError:
                if not final.is_dir():
                    raise
                shutil.rmtree(temporary, ignore_errors=True)
        else:
            _flush(temporary)
            os.replace(temporary, final)
        _flush(final.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        elif temporary.exists():
            temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _flush_tree(root: Path) -> None:
    for directory, _, files in os.walk(root):
        for name in files:
            _flush(Path(directory) / name)
        _flush(Path(directory))


def remove_leftovers(directory: str | os.PathLike[str]) -> list[Path]:
    """Delete half-written groups that a killed process left below a directory; return them.

    Call it only while holding the lock of the campaign: what another process is writing looks the
    same.
    """
    gone = []
    for path in sorted(Path(directory).rglob(".*.tmp")):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        gone.append(path)
    return gone


# ---------------------------------------------------------------------------------- groups
def write_group(
    ds: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    kind: str = "structures",
    rows_per_shard: int | None = None,
) -> Path:
    """Write a Dataset as an immutable group.

    Computes lazy variables shard by shard. If the group is there already, nothing is written: a
    group that exists is complete, and whoever made it made the same.

    Parameters
    ----------
    ds : xarray.Dataset
    path : path
        Ends in ``.zarr`` by convention.
    kind : str
        What it is validated as (`mofal.data.variables.REQUIRED`), ``"table"`` for anything.
    rows_per_shard : int, optional
        Along the first dim; default: shards of about 64 MB.

    Raises
    ------
    DataError
        It breaks the data contract.
    StoreError
        The disk refused.
    """
    import xarray as xr
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    final = Path(path)
    if final.is_dir():
        return final
    out = describe(validate(ds, kind))
    out = out.drop_vars([c for c in out.coords if c not in out.dims], errors="ignore")
    out.attrs = {
        **out.attrs,
        "mofal_format": FORMAT,
        "mofal_kind": kind,
        "written_by": json.dumps(_versions(), sort_keys=True),
    }
    encoding: dict[str, dict[str, Any]] = {}
    for name in map(str, out.variables):
        variable = out[name]
        if variable.dtype.kind == "O":
            out[name] = variable.astype(np.dtypes.StringDType())  # type: ignore[attr-defined]
            variable = out[name]
        variable.encoding = {}
        codecs: tuple[Any, ...] = (ZstdCodec(level=3), Crc32cCodec())
        encoding[name] = {"compressors": codecs}
        if variable.ndim == 0 or variable.size == 0:
            continue
        chunks, shards = _grid(variable.shape, variable.dtype.itemsize, rows_per_shard)
        encoding[name]["chunks"] = chunks
        if variable.dtype.kind != "T":
            encoding[name]["shards"] = shards
        if variable.chunks is not None:
            out[name] = variable.chunk(dict(zip(variable.dims, shards)))
            if variable.dtype.kind == "T":
                encoding[name]["chunks"] = shards
    try:
        with atomic_path(final) as temporary:
            with zarr.config.set({"array.write_empty_chunks": True}):
                xr.Dataset.to_zarr(
                    out, temporary, mode="w", consolidated=False, encoding=encoding, zarr_format=3
                )
            _write_manifest(temporary)
    except OSError as error:
        raise StoreError(f"{final} could not be written: {error.strerror or error}") from error
    return final


def _grid(
    shape: tuple[int, ...], itemsize: int, rows_per_shard: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    row = max(1, itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    inner = max(1, min(shape[0], INNER_BYTES // row))
    want = rows_per_shard if rows_per_shard is not None else SHARD_BYTES // row
    per_shard = max(1, min(want, shape[0]))
    inner = min(inner, per_shard)
    # A shard holds whole chunks.
    per_shard = -(-per_shard // inner) * inner
    return (inner, *shape[1:]), (per_shard, *shape[1:])


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


def _files(group: Path) -> list[Path]:
    return sorted(p for p in group.rglob("*") if p.is_file() and p != group / MANIFEST)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write_manifest(group: Path) -> None:
    entries = {
        p.relative_to(group).as_posix(): {"size": p.stat().st_size, "sha256": _sha256(p)}
        for p in _files(group)
    }
    content = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"mofal_format": FORMAT, "files": entries},
    }
    (group / MANIFEST).parent.mkdir()
    (group / MANIFEST).write_text(json.dumps(content, indent=0, sort_keys=True))


def check_group(path: str | os.PathLike[str], *, full: bool = False) -> None:
    """Compare a group with its manifest.

    Parameters
    ----------
    full : bool
        Read every file; default: large files by size, small ones and all metadata by content.

    Raises
    ------
    StoreError
        A file is missing, truncated or changed.
    """
    group = Path(path)
    mend = f"restore {group} from a copy, or delete it to have this stage run again"
    if not group.exists():
        raise StoreError(f"{group} does not exist")
    if not group.is_dir() or not (group / "zarr.json").is_file():
        raise StoreError(f"{group} is no Zarr v3 group (it has no zarr.json); {mend}")
    if not (group / MANIFEST).is_file():
        raise StoreError(
            f"{group} has no manifest: it was not written by mofal, or is damaged; {mend}"
        )
    try:
        manifest = read_json(group / MANIFEST)["attributes"]
        files, found = manifest["files"], manifest["mofal_format"]
    except (KeyError, TypeError):
        raise StoreError(f"{group / MANIFEST} is damaged; {mend}") from None
    _refuse_newer(group, found)
    for name, entry in files.items():
        file = group / name
        if not file.is_file():
            raise StoreError(f"{group} is damaged: {name} is missing; {mend}")
        size = file.stat().st_size
        if size != entry["size"]:
            raise StoreError(
                f"{group} is damaged: {name} has {size} bytes, expected {entry['size']}; {mend}"
            )
        if (full or size <= _SMALL) and _sha256(file) != entry["sha256"]:
            raise StoreError(f"{group} is damaged: {name} was changed after it was written; {mend}")


def _refuse_newer(group: Path, found: Any) -> None:
    if not isinstance(found, int):
        raise StoreError(f"{group} states no mofal_format: it is damaged, or another program's")
    if found > FORMAT:
        raise StoreError(
            f"{group} has format {found}, this mofal reads up to {FORMAT}; "
            "update it: pip install --upgrade mofal"
        )


def open_group(path: str | os.PathLike[str], *, check: bool = True) -> xr.Dataset:
    """Open a group lazily, with Dask chunks that are whole shards.

    Variables along `structure` alone are small and are loaded; those along `atom` stay on disk.

    Raises
    ------
    StoreError
        The group is missing, damaged, or of a newer format.
    """
    import xarray as xr

    group = Path(path)
    if check:
        check_group(group)
    try:
        ds = xr.open_zarr(group, consolidated=False, chunks=None)
        order = [n for n in VARIABLES if n in ds] + [n for n in ds.data_vars if n not in VARIABLES]
        ds = ds[order]
        for name in order:
            variable = ds[name]
            grid = variable.encoding.get("shards") or variable.encoding.get("chunks")
            if "structure" in variable.dims or variable.dtype.kind == "T" or not grid:
                variable.load()
            else:
                ds[name] = variable.chunk(dict(zip(variable.dims, grid)))
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(
            f"{group} cannot be read ({type(error).__name__}: {error}); "
            "restore it from a copy, or delete it to have this stage run again"
        ) from error
    _refuse_newer(group, ds.attrs.get("mofal_format"))
    for name in map(str, ds.variables):
        spec = VARIABLES.get(name)
        if spec is not None and spec.dtype == "bool" and ds[name].dtype.kind != "b":
            ds[name] = ds[name].astype(bool)
    return ds
