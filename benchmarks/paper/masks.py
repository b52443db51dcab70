"""Which atoms are meant: formates, those near a defect."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mofal.analysis import bonded_kinds
from mofal.data import atom_slice

FORMATE = "C-HOO"
CARBONS = {"C-COO": "carboxylate", "C-CCC": "ring, C-C", "C-HCC": "ring, C-H", FORMATE: "formate"}


def formate_mask(ds: xr.Dataset) -> np.ndarray:
    """Atoms of formates, H and O included: (atom,)."""
    from mofal.frameworks.bonds import bonds_of

    mask = np.zeros(ds.sizes["atom"], bool)
    kinds = bonded_kinds(ds)
    for i in range(ds.sizes["structure"]):
        span = atom_slice(ds, i)
        carbon = np.flatnonzero(kinds[span] == FORMATE)
        bonds = bonds_of(
            ds["numbers"].values[span],
            ds["positions"].values[span],
            ds["cell"].values[i],
            ds["pbc"].values[i],
        )
        for c in carbon.tolist():
            mine = [c, *bonds.j[bonds.indptr[c] : bonds.indptr[c + 1]].tolist()]
            mask[span.start + np.array(mine)] = True
    return mask


def defect_mask(ds: xr.Dataset) -> np.ndarray:
    """Formates and Hf: (atom,)."""
    return formate_mask(ds) | (ds["numbers"].values == 72)


def far_mask(ds: xr.Dataset, away: float) -> np.ndarray:
    """Atoms farther than `away` Å from every defect atom, images included: (atom,)."""
    from ase.geometry import get_distances

    defect = defect_mask(ds)
    out = np.ones(ds.sizes["atom"], bool)
    for i in range(ds.sizes["structure"]):
        span = atom_slice(ds, i)
        x = ds["positions"].values[span]
        if defect[span].any():
            d = get_distances(
                x, x[defect[span]], cell=ds["cell"].values[i], pbc=ds["pbc"].values[i]
            )[1]
            out[span] = d.min(axis=1) > away
    return out
