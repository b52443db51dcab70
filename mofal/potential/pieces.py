"""Structures too large for one evaluation: overlapping pieces, whose inner atoms feel all they can.

The features of an atom depend on atoms no further away than the layers of the network times its
cutoff. So a piece that carries that much of its surroundings gives its own atoms the features that
they have in the whole, to rounding.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.potential.model import NequIPPotential

LARGEST = 60_000
"""Atoms of a piece with its surroundings: a few GB for the networks of the paper."""


def reach(potential: NequIPPotential) -> float:
    """How far away an atom can be that changes the features of another, Å."""
    return potential.architecture.n_layers * potential.r_max


def split(ds: xr.Dataset, *, reach: float, largest: int = LARGEST) -> xr.Dataset:
    """Cut one periodic structure into pieces with their surroundings.

    Parameters
    ----------
    ds : xarray.Dataset
        One structure, periodic in three directions.
    reach : float
        Width of the surroundings, Å.
    largest : int
        Atoms of a piece, its surroundings included, where that is possible.

    Returns
    -------
    xarray.Dataset
        Structures without a cell, with `parent_atom`, and `region`: 0 for atoms of the piece
        itself, each of which is in one piece, 1 for surroundings.

    Raises
    ------
    DataError
        There is more than one structure, or it is not periodic, or its cell is too small for its
        surroundings to be met once only.
    """
    from mofal.data import make_structures

    if ds.sizes["structure"] != 1 or not ds["pbc"].values.all():
        raise DataError(
            f"found {ds.sizes['structure']} structures, expected one that is periodic in three "
            "directions: mofal.data.select(ds, 0)"
        )
    cell = np.asarray(ds["cell"].values[0], float)
    # Width of the cell between opposite faces, along each of its vectors.
    widths = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    inside = np.asarray(ds["positions"].values) @ np.linalg.inv(cell)
    inside -= np.floor(inside)
    inside[inside >= 1.0] = 0.0
    n = len(inside)
    counts = _counts(widths, n, reach, largest)
    margin = reach / widths
    steps = [range(-int(np.ceil(m)), int(np.ceil(m)) + 1) for m in margin]
    where = np.minimum((inside * counts).astype(int), counts - 1)
    positions, atoms, regions, sizes = [], [], [], []
    for place in product(*(range(c) for c in counts)):
        low = np.array(place) / counts - margin
        high = (np.array(place) + 1) / counts + margin
        own = (where == np.array(place)).all(axis=1)
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for shift in product(*steps):
            x = inside + np.array(shift)
            here = ((x >= low) & (x < high)).all(axis=1)
            if not here.any():
                continue
            mine = own[here] if not any(shift) else np.zeros(int(here.sum()), bool)
            found.append((x[here] @ cell, np.flatnonzero(here), np.where(mine, 0, 1)))
        positions.append(np.concatenate([f[0] for f in found]))
        atoms.append(np.concatenate([f[1] for f in found]))
        regions.append(np.concatenate([f[2] for f in found]))
        sizes.append(len(atoms[-1]))
    parent_atom = np.concatenate(atoms)
    return make_structures(
        ds["numbers"].values[parent_atom],
        np.concatenate(positions),
        n_atoms=sizes,
        pbc=False,
        system=str(ds["system"].values[0]),
        parent_atom=parent_atom,
        region=np.concatenate(regions).astype(np.int8),
    )


def _counts(widths: np.ndarray, n: int, reach: float, largest: int) -> np.ndarray:
    """Pieces along each vector: the longest one is halved until a piece is small enough."""
    counts = np.ones(3, int)
    while n * np.prod(1.0 / counts + 2.0 * reach / widths) > largest:
        sides = widths / counts
        if sides.max() < reach:
            break  # Beyond this, surroundings grow faster than pieces shrink.
        counts[int(sides.argmax())] += 1
    return counts


def gather(features: xr.Dataset, pieces: xr.Dataset, whole: xr.Dataset) -> xr.Dataset:
    """Features of the atoms of a structure from those of its pieces.

    Parameters
    ----------
    features : xarray.Dataset
        Of `pieces`, lazy or not; it is computed here.
    pieces : xarray.Dataset
        From `split`.
    whole : xarray.Dataset
        What was split.

    Returns
    -------
    xarray.Dataset
        `features(atom, feature)`, `numbers`, `n_atoms`, `structure_index` of the whole.
    """
    kept = pieces["region"].values == 0
    values = np.asarray(features["features"].data[kept])
    out = np.empty((whole.sizes["atom"], values.shape[1]), values.dtype)
    out[pieces["parent_atom"].values[kept]] = values
    names = ("numbers", "n_atoms", "structure_index", "structure_id", "system")
    return (
        whole[[v for v in names if v in whole]]
        .assign(features=(("atom", "feature"), out))
        .assign_attrs({k: v for k, v in features.attrs.items() if k == "model_hash"})
    )
