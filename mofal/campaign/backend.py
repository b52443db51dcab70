"""A campaign as xarray opens it: ``xr.open_datatree("my-campaign", engine="mofal")``.

Registered in the package's metadata as the backend ``mofal``. A campaign's groups lie in plain
directories, which are no Zarr groups themselves, so xarray's own engine cannot open the whole. With
``chunks={}`` what is large comes as Dask arrays whose chunks are shards.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from xarray import Dataset, DataTree, Variable
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from mofal.campaign.directory import CONFIG, RECORDS, WORK, Site
from mofal.data import open_group
from mofal.errors import StoreError

SUFFIX = ".zarr"


class MofalBackend(BackendEntrypoint):
    """Groups of the store, and whole campaigns, lazily and checked."""

    description = "Campaigns and groups of mofal"
    url = "https://github.com/mofal/mofal"
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a campaign's directory. Single groups are Zarr, and Zarr's."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        return (Path(filename_or_obj) / CONFIG).is_file()

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        drop_variables: str | Iterable[str] | None = None,
        group: str | None = None,
    ) -> Dataset:
        """Open one group: its own path, or a campaign and ``group="cycle-001/proposal"``."""
        path = Path(filename_or_obj)
        if group is not None:
            path = path / f"{group.strip('/').removesuffix(SUFFIX)}{SUFFIX}"
        elif (path / CONFIG).is_file():
            raise StoreError(
                f"{path} is a whole campaign; open it with xarray.open_datatree, or name one "
                'group: group="cycle-000/labels"'
            )
        return _open(path, drop_variables)

    def open_groups_as_dict(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> dict[str, Dataset]:
        """Open every group of a campaign by its place."""
        site = Site(filename_or_obj)
        root = Dataset(attrs={"name": site.config.name, "identity": str(site.facts["identity"])})
        found = {"/": root}
        for path in _groups(site.root):
            name = "/" + path.relative_to(site.root).as_posix().removesuffix(SUFFIX)
            found[name] = _open(path, drop_variables)
        return found

    def open_datatree(
        self, filename_or_obj: Any, *, drop_variables: str | Iterable[str] | None = None
    ) -> DataTree:
        """Open a whole campaign."""
        return DataTree.from_dict(
            self.open_groups_as_dict(filename_or_obj, drop_variables=drop_variables)
        )


class _Shards(BackendArray):
    """What lies on disk, read as far as it is asked for; xarray chunks it where it is told to."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype, self._array = array.shape, array.dtype, array

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.BASIC
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        # Inside a task already where it is chunked: no further threads.
        return np.asarray(self._array[key].compute(scheduler="synchronous"))


def _open(path: Path, drop: str | Iterable[str] | None) -> Dataset:
    ds = open_group(path)
    if drop is not None:
        ds = ds.drop_vars([drop] if isinstance(drop, str) else list(drop), errors="ignore")
    for name in list(ds.variables):
        variable = ds[name].variable
        if variable.chunks is not None:
            shards = dict(zip(variable.dims, (c[0] for c in variable.chunks)))
            lazy = indexing.LazilyIndexedArray(_Shards(variable.data))
            encoding = {**variable.encoding, "preferred_chunks": shards}
            ds[name] = Variable(variable.dims, lazy, variable.attrs, encoding)
    return ds


def _groups(root: Path) -> list[Path]:
    """Finished groups of a campaign, what is under way aside."""
    out = []
    for directory, below, _ in os.walk(root):
        groups = [b for b in below if b.endswith(SUFFIX)]
        out += [Path(directory) / b for b in groups]
        below[:] = [b for b in below if b not in (*groups, WORK, RECORDS, "report")]
    return sorted(p for p in out if (p / "zarr.json").is_file())
