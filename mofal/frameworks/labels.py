"""Defect labels: which brick lacks which linker, read off the structure itself.

A capped site (a formate, an acetate, a pair of OH and water; see `capped_sites`) is where a linker
could be. Two of them that face each other at a linker's length are one missing linker; several that
point at one place where a brick would be mark a missing brick; one by itself stays a capped site.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.frameworks.bonds import IS_METAL, free_origin
from mofal.frameworks.capped import capped_sites

if TYPE_CHECKING:
    import xarray as xr

LABELS = ("missing linker", "missing brick", "capped site")
_FACING = 2.5  # Å: how far a formate may be from where its partner points, at 600 K


def label_defects(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> xr.Dataset:
    """Add defect labels to a blocks Dataset.

    Parameters
    ----------
    blocks : Dataset
        From `blocks_from_bonds`.
    numbers : (atom,) int
    positions : (atom, 3) float, Å
    cell : (3, 3) float, Å
    pbc : (3,) bool

    Returns
    -------
    Dataset
        With ``defect_label(defect)``, ``defect_block(defect)`` (the brick), ``defect_atom(defect)``
        (the carbon of its formate or acetate, or the O of its OH), ``defect_hydrogen(defect)`` (the
        atom that ends it: H, or C of an acetate's methyl), ``defect_other(defect)`` (the O of the
        water beside an OH, else -1), ``defect_cap(defect)`` (formula of the cap),
        ``defect_partner(defect)`` (the defect at the other end of a missing linker, else -1),
        ``defect_hole(defect)`` (number of the missing brick, else -1) and ``n_missing(block)``
        (linkers that each block lacks).
    """
    n_blocks = blocks.sizes["block"]
    of_atom = np.empty(len(numbers), np.int64)
    of_atom[blocks["member_atom"].values] = np.repeat(
        np.arange(n_blocks), blocks["block_n_atoms"].values
    )
    length, reach = _linker_and_brick(blocks, numbers, positions, cell, of_atom)
    sites = capped_sites(blocks, numbers, positions, cell, of_atom, reach)
    n = len(sites.atom)
    label = np.full(n, LABELS.index("capped site"))
    partner = np.full(n, -1, np.int64)
    hole = np.full(n, -1, np.int64)
    if n and length > 0:
        tip = sites.point + length * sites.outward
        partner = _facing(sites.point, tip, sites.outward, cell, pbc)
        label[partner >= 0] = LABELS.index("missing linker")
        alone = np.flatnonzero(partner < 0)
        centre = sites.point[alone] + (length + reach) * sites.outward[alone]
        groups = _clusters(centre, cell, pbc, 1.5 * _FACING)
        size = np.bincount(groups, minlength=groups.max(initial=-1) + 1)
        shared = size[groups] > 1
        _, hole[alone[shared]] = np.unique(groups[shared], return_inverse=True)
        label[alone[shared]] = LABELS.index("missing brick")
    return blocks.assign(
        {
            "defect_label": ("defect", np.array(LABELS)[label]),
            "defect_block": ("defect", of_atom[sites.atom]),
            "defect_atom": ("defect", sites.atom),
            "defect_hydrogen": ("defect", sites.end),
            "defect_other": ("defect", sites.other),
            "defect_cap": ("defect", np.array(sites.cap, "U24")),
            "defect_partner": ("defect", partner),
            "defect_hole": ("defect", hole),
            "n_missing": (
                "block",
                np.bincount(of_atom[sites.atom], minlength=n_blocks).astype(np.int32),
            ),
        }
    )


def _linker_and_brick(
    blocks: xr.Dataset,
    numbers: NDArray[np.integer],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    of_atom: NDArray[np.int64],
) -> tuple[float, float]:
    """Distance between the two acid carbons of a linker, and from one to its brick's centre, Å.

    The first is zero where no linker joins two bricks only, both where there is no linker.
    """
    pair = blocks["link_block"].values
    atom = blocks["link_atom"].values
    shift = blocks["link_shift"].values
    role = blocks["role"].values
    is_linker = role == "linker"
    ditopic = blocks["coordination"].values == 2
    inner = np.zeros((len(numbers), 3), np.int64)
    inner[blocks["member_atom"].values] = blocks["member_shift"].values
    node_end = is_linker[pair].argmax(axis=1) == 1
    mine = is_linker[pair].sum(axis=1) == 1
    pair, atom, shift, node_end = pair[mine], atom[mine], shift[mine], node_end[mine]
    if not len(pair):
        return 0.0, 0.0
    rows = np.arange(len(pair))
    at_linker = np.where(node_end, 1, 0)
    inside, outside = atom[rows, at_linker], atom[rows, 1 - at_linker]
    sign = np.where(at_linker == 0, 1, -1)[:, None]
    # The acid carbon as seen from the whole linker.
    x = positions[outside] + (inner[inside] + sign * shift) @ cell
    owner = pair[rows, at_linker]
    order = np.argsort(owner, kind="stable")
    owner, x = owner[order], x[order]
    both = np.flatnonzero((owner[1:] == owner[:-1]) & ditopic[owner[1:]])
    length = float(np.median(np.linalg.norm(x[both + 1] - x[both], axis=1))) if len(both) else 0.0
    metal = np.flatnonzero(IS_METAL[numbers])
    whole = positions[metal] + inner[metal] @ cell
    count = np.maximum(np.bincount(of_atom[metal], minlength=len(role)), 1)
    centre = np.stack(
        [np.bincount(of_atom[metal], weights=whole[:, k], minlength=len(role)) for k in range(3)],
        axis=1,
    )
    middle = centre / count[:, None]
    carbon = positions[outside] + inner[outside] @ cell
    reach = np.linalg.norm(carbon - middle[pair[rows, 1 - at_linker]], axis=1)
    return length, float(np.median(reach))


def _facing(
    carbon: NDArray[np.float64],
    tip: NDArray[np.float64],
    outward: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Partner of each formate: nearest to where it points, pointing back, each the other's."""
    n = len(carbon)
    i, j, d = _near(np.vstack([tip, carbon]), cell, pbc, _FACING)
    cross = (i < n) & (j >= n)
    i, j, d = i[cross], j[cross] - n, d[cross]
    back = np.einsum("ij,ij->i", outward[i], outward[j]) < -0.7
    i, j, d = i[back], j[back], d[back]
    out = np.full(n, -1, np.int64)
    order = np.argsort(d, kind="stable")[::-1]
    out[i[order]] = j[order]
    mutual = (out >= 0) & (out[out] == np.arange(n))
    return np.where(mutual, out, -1)


def _clusters(
    x: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> NDArray[np.int64]:
    """Group points that are near each other: (n,) labels."""
    if not len(x):
        return np.zeros(0, np.int64)
    i, j, _ = _near(x, cell, pbc, cutoff)
    graph = sp.csr_array((np.ones(len(i), np.int8), (i, j)), shape=(len(x), len(x)))
    return csgraph.connected_components(graph, directed=False)[1].astype(np.int64)


def _near(
    x: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_], cutoff: float
) -> tuple[NDArray[np.integer], NDArray[np.integer], NDArray[np.float64]]:
    from mofal.frameworks.bonds import complete_cell

    lattice = complete_cell(x, cell, pbc)
    return neighbour_list(
        "ijd", positions=x - free_origin(x, lattice, pbc), cell=lattice, pbc=pbc, cutoff=cutoff
    )
