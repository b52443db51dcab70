"""Which structures train and which validate: the same for the same seed, whatever the order."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mofal.data.ragged import TEXT
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

TRAIN, VALIDATION = "train", "validation"


def split_array(
    ids: list[str],
    sources: list[str],
    *,
    fraction: float,
    seed: int,
    previous: list[str] | None = None,
) -> list[str]:
    """Divide structures into training and validation, source by source.

    Structures are put in an order by a hash of seed and identity, so the order of the data does not
    matter, and what is assigned already stays where it is: new structures fill each source up to
    the fraction, so that it holds over a campaign.

    Parameters
    ----------
    ids, sources : list of str
        Identity and source of each structure.
    fraction : float
        Part that validates, of each source.
    previous : list of str, optional
        ``"train"``, ``"validation"``, or ``""`` for a new structure.

    Returns
    -------
    list of str
        ``"train"`` or ``"validation"`` for each.
    """
    out = list(previous) if previous is not None else [""] * len(ids)
    by_source: dict[str, list[int]] = {}
    for i, source in enumerate(sources):
        by_source.setdefault(source, []).append(i)
    for members in by_source.values():
        wanted = round(fraction * len(members)) - sum(out[i] == VALIDATION for i in members)
        new = sorted((i for i in members if not out[i]), key=lambda i: _rank(seed, ids[i]))
        for place, i in enumerate(new):
            out[i] = VALIDATION if place < wanted else TRAIN
    _leave_none_empty(out, ids, seed, previous)
    return out


def _rank(seed: int, identity: str) -> str:
    return hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()


def _leave_none_empty(
    out: list[str], ids: list[str], seed: int, previous: list[str] | None
) -> None:
    """A training needs both parts: where sources are too small for the fraction, move one."""
    if len(out) < 2:
        return
    for lacking in (VALIDATION, TRAIN):
        if lacking not in out:
            free = [i for i in range(len(out)) if previous is None or not previous[i]]
            if free:
                out[min(free, key=lambda i: _rank(seed, ids[i]))] = lacking


def split_structures(ds: xr.Dataset, *, fraction: float = 0.2, seed: int) -> xr.Dataset:
    """Give each structure its part: the variable `split(structure)`.

    The fraction holds within each source, a source being a system, its crystals and its clusters
    apart. Structures that have a part already keep it (Section SI.3 of the paper: new structures
    are distributed following a fixed fraction).

    Parameters
    ----------
    ds : xarray.Dataset
        Structures.
    fraction : float
        Part that validates.
    seed : int
        Of the campaign.

    Returns
    -------
    xarray.Dataset
        `ds` with `split`.

    Raises
    ------
    DataError
        A value of `split` that is neither ``"train"`` nor ``"validation"``.
    """
    n = ds.sizes["structure"]
    previous: list[str] | None = None
    if "split" in ds:
        previous = [str(v) for v in ds["split"].values]
        foreign = sorted(set(previous) - {TRAIN, VALIDATION, ""})
        if foreign:
            raise DataError(
                f"split holds {foreign[0]!r}; expected 'train', 'validation' or '' (new)"
            )
    periodic = np.any(ds["pbc"].values, axis=1).tolist()
    systems = [str(s) for s in ds["system"].values] if "system" in ds else [""] * n
    sources = [f"{s}|{'crystal' if p else 'cluster'}" for s, p in zip(systems, periodic)]
    parts = split_array(
        [str(v) for v in ds["structure_id"].values],
        sources,
        fraction=fraction,
        seed=seed,
        previous=previous,
    )
    return ds.assign(split=("structure", np.array(parts, TEXT)))
