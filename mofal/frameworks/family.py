"""The named systems of the paper: pristine UiO-66 and its defective cells, each from one line."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mofal.errors import StructureError
from mofal.frameworks.blocks import find_blocks
from mofal.frameworks.defects import remove_blocks, substitute
from mofal.frameworks.sampling import disorder
from mofal.frameworks.symmetry import linker_pair_orbits
from mofal.frameworks.uio import pristine

if TYPE_CHECKING:
    import xarray as xr

_RELATIVES: dict[str, dict[str, str]] = {
    "UiO-66": {},
    "UiO-66-NH2": {"linker": "BDC-NH2"},
    "UiO-67": {"linker": "BPDC"},
}
_CONVENTIONAL_ONLY = ("S_reo", "S_bcu", "S_scu")
_PAIR = re.compile(r"S_ld-2-([1-9]\d*)")
# Fractions of metals, linkers and bricks that are drawn (method.md, Systems), not realised ones.
_SUPER = {
    "S_sup": (0.20, 0.20, 0.10),
    "S_sup*": (0.10, 0.10, 0.05),
}
_SUPER_REPEAT = (4, 4, 4)


def system_names() -> list[str]:
    """Names that `build` knows."""
    return [
        "S_pr",
        "S_ld",
        "S_hf",
        "S_reo",
        "S_bcu",
        "S_scu",
        "S_pr^hf",
        *(f"S_ld-2-{k}" for k in range(1, 8)),
        *_SUPER,
        *_RELATIVES,
    ]


def build(
    name: str,
    *,
    cell: str = "conventional",
    repeat: tuple[int, int, int] | None = None,
    linker: str | None = None,
    metal: str = "Zr",
    mu3: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Build a system of the UiO-66 family.

    Parameters
    ----------
    name : str
        S_pr, S_ld, S_hf, S_reo, S_bcu, S_scu, S_pr^hf, S_ld-2-1 to S_ld-2-7, S_sup, S_sup*,
        UiO-66, UiO-66-NH2, UiO-67 (method.md, Systems).
    cell : str
        ``"conventional"`` (4 bricks; 456 atoms for S_pr) or ``"primitive"`` (1 brick; 114).
    repeat : (int, int, int), optional
        Supercell of the finished cell; for S_sup and S_sup*, of the pristine cell before disorder
        is drawn (default 4 x 4 x 4).
    linker : str, optional
        Another linker in the same topology: ``"BDC"``, ``"BDC-NH2"``, ``"BPDC"``.
    metal : str
        The metal of the pristine framework.
    mu3 : bool
        For S_ld-2: let the order of mu3-O and mu3-OH count, which makes eight pairs of the seven.
    seed : int
        For S_sup and S_sup*: seed of the draws.

    Returns
    -------
    Dataset
        Of one structure, ``system`` its name.

    Raises
    ------
    StructureError
        When the name, cell, linker or repeat cannot be meant.
    """
    from mofal.frameworks.cells import supercell

    pair = _PAIR.fullmatch(name)
    if name not in system_names() and not (pair and mu3 and name == "S_ld-2-8"):
        hint = "S_ld-2-8 needs mu3=True; " if name == "S_ld-2-8" else ""
        raise StructureError(
            f"unknown system {name!r}; {hint}systems: {', '.join(system_names())}: build('S_pr')"
        )
    if cell == "primitive" and (pair or name in _CONVENTIONAL_ONLY):
        raise StructureError(
            f"{name} needs the four bricks of the conventional cell: "
            f"build({name!r}, cell='conventional')"
        )
    relative = _RELATIVES.get(name, {})
    out = pristine(
        linker=linker or relative.get("linker", "BDC"),
        metal="Hf" if name == "S_pr^hf" else metal,
        cell=cell,
        system=name,
    )
    if name in _SUPER:
        large = supercell(out, repeat or _SUPER_REPEAT)
        hf, missing_linkers, missing_bricks = _SUPER[name]
        return disorder(
            large,
            hf=hf,
            linker=missing_linkers,
            brick=missing_bricks,
            seed=seed,
            system=name,
        )
    if name == "S_hf":
        out = substitute(out, [0], "Hf")
    elif pair or name in ("S_ld", *_CONVENTIONAL_ONLY):
        blocks = find_blocks(out)
        if pair:
            pairs = _pairs(linker or "BDC", mu3)
            gone = np.array(pairs[int(pair.group(1)) - 1])
        else:
            gone = _removed(out, blocks, name)
        out = remove_blocks(out, blocks, gone)
    return supercell(out, repeat) if repeat is not None else out


@cache
def _pairs(linker: str, mu3: bool) -> tuple[tuple[int, int], ...]:
    """One pair of linkers (blocks) of each orbit."""
    ds = pristine(linker=linker)
    orbits = linker_pair_orbits(ds, find_blocks(ds), mu3=mu3)
    return tuple((int(o.pairs[0, 0]), int(o.pairs[0, 1])) for o in orbits)


def _removed(ds: xr.Dataset, blocks: xr.Dataset, name: str) -> np.ndarray:
    """Blocks that a named defective cell lacks: (block,) bool."""
    is_linker = blocks["role"].values == "linker"
    gone = np.zeros(blocks.sizes["block"], bool)
    if name == "S_ld":
        gone[np.flatnonzero(is_linker)[0]] = True
    if name in ("S_reo", "S_scu"):
        brick = np.flatnonzero(blocks["role"].values == "node")[0]
        pair = blocks["link_block"].values
        gone[pair[(pair == brick).any(axis=1)]] = True
    if name in ("S_bcu", "S_scu"):
        # Linkers in the planes perpendicular to the third cell vector.
        axis = ds["cell"].values[0, 2]
        along = np.abs(linker_axes(ds, blocks) @ (axis / np.linalg.norm(axis)))
        gone[np.flatnonzero(is_linker)[along < 0.1]] = True
    return gone


def linker_axes(ds: xr.Dataset, blocks: xr.Dataset) -> np.ndarray:
    """Unit vector between the two ends of each linker of coordination two: (linker, 3)."""
    positions, cell = ds["positions"].values, ds["cell"].values[0]
    pair = blocks["link_block"].values
    is_linker = blocks["role"].values == "linker"
    # The outer ends (on the nodes) as seen from the linker's own image.
    shift = np.zeros((blocks.attrs["n_atoms"], 3), np.int64)
    shift[blocks["member_atom"].values] = blocks["member_shift"].values
    end = is_linker[pair].argmax(axis=1)
    rows = np.arange(len(pair))
    inside = blocks["link_atom"].values[rows, end]
    tip = positions[inside] + shift[inside] @ cell
    order = np.argsort(pair[rows, end], kind="stable")
    owner, tip = pair[rows, end][order], tip[order]
    first = np.searchsorted(owner, np.flatnonzero(is_linker))
    axis = tip[first + 1] - tip[first]
    return axis / np.linalg.norm(axis, axis=1, keepdims=True)
