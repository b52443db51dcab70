"""Selection and cutting together: a batch of sound clusters, refused ones replaced by the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from mofal.clusters.blueprints import Shells
from mofal.clusters.cutting import cut
from mofal.clusters.selection import select
from mofal.data import concat

_CUT_OPTIONS = ("blueprints", "unpaired", "stretch", "nearest", "task_mb")


def extract(
    structures: xr.Dataset,
    scores: xr.Dataset,
    blocks_by_system: Mapping[str, xr.Dataset],
    *,
    n: int,
    shells: Shells = 1,
    max_atoms: int | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> tuple[xr.Dataset, xr.Dataset, xr.Dataset]:
    """Choose and cut `n` sound clusters (Section 2.4); each refused one is replaced by the next.

    Parameters
    ----------
    structures, scores, blocks_by_system, n, shells, max_atoms
        As in `select` and `cut`.
    progress : called with a line of text now and then
    **options : further options of `select` and of `cut`

    Returns
    -------
    clusters : Dataset of kind ``structures``, at most `n` of them
        As of `cut`; `core_index` runs along `cores`.
    refused : Dataset with dim core, the refused ones with their reasons
    cores : Dataset with dim core, all that were looked at, in the order of picking
    """
    cutting = {name: options.pop(name) for name in _CUT_OPTIONS if name in options}
    parts: list[xr.Dataset] = []
    refusals: list[xr.Dataset] = []
    looked_at, accepted, wanted = 0, 0, n
    while True:
        # Picking is greedy: the first cores stay the same when more are asked for.
        cores = select(
            structures,
            scores,
            blocks_by_system,
            n=wanted,
            shells=shells,
            max_atoms=max_atoms,
            progress=progress,
            **options,
        )
        fresh = cores.isel(core=slice(looked_at, None))
        clusters, refused = cut(
            structures,
            blocks_by_system,
            fresh,
            shells=shells,
            max_atoms=max_atoms,
            progress=progress,
            **cutting,
        )
        parts.append(clusters.assign(core_index=clusters["core_index"] + looked_at))
        refusals.append(refused.assign_coords(core=refused["core"] + looked_at))
        looked_at = cores.sizes["core"]
        accepted += clusters.sizes["structure"]
        if accepted >= n or looked_at < wanted:
            break
        wanted = looked_at + 2 * (n - accepted)
    refused = xr.concat(refusals, dim="core") if len(refusals) > 1 else refusals[0]
    return _first(concat(parts) if len(parts) > 1 else parts[0], n), refused, cores


def _first(clusters: xr.Dataset, n: int) -> xr.Dataset:
    """The first `n` structures."""
    if clusters.sizes["structure"] <= n:
        return clusters
    n_atoms = int(clusters["n_atoms"].values[:n].sum())
    return clusters.isel(structure=slice(0, n), atom=slice(0, n_atoms))
