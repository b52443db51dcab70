"""The named systems of the paper: pristine UiO-66 and its defective cells, each from one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import StructureError
from mofal.frameworks.blocks import find_blocks
from mofal.frameworks.defects import remove_blocks, substitute
from mofal.frameworks.uio import pristine

if TYPE_CHECKING:
    import xarray as xr

_RELATIVES = {
    "UiO-66": {},
    "UiO-66-NH2": {"linker": "BDC-NH2"},
    "UiO-67": {"linker": "BPDC"},
}
_CONVENTIONAL_ONLY = ("S_reo", "S_bcu", "S_scu")


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
        *_RELATIVES,
    ]


def build(
    name: str,
    *,
    cell: str = "conventional",
    repeat: tuple[int, int, int] = (1, 1, 1),
    linker: str | None = None,
    metal: str = "Zr",
) -> xr.Dataset:
    """Build a system of the UiO-66 family.

    Parameters
    ----------
    name : str
        S_pr, S_ld, S_hf, S_reo, S_bcu, S_scu, S_pr^hf, UiO-66, UiO-66-NH2, UiO-67 (method.md,
        Systems).
    cell : str
        ``"conventional"`` (4 bricks; 456 atoms for S_pr) or ``"primitive"`` (1 brick; 114).
    repeat : (int, int, int)
        Supercell of the finished cell.
    linker : str, optional
        Another linker in the same topology: ``"BDC"``, ``"BDC-NH2"``, ``"BPDC"``.
    metal : str
        The metal of the pristine framework.

    Returns
    -------
    Dataset
        Of one structure, ``system`` its name.

    Raises
    ------
    StructureError
        When the name, cell, linker or repeat cannot be meant.
    """
    from mofal.frameworks.supercell import supercell

    if name not in system_names():
        raise StructureError(
            f"unknown system {name!r}; systems: {', '.join(system_names())}: build('S_pr')"
        )
    if cell == "primitive" and name in _CONVENTIONAL_ONLY:
        raise StructureError(
            f"{name} needs the four bricks of the conventional cell: "
            f"build({name!r}, cell='conventional')"
        )
    options: dict[str, Any] = {"linker": linker or "BDC", "metal": metal, "cell": cell}
    options.update({k: v for k, v in _RELATIVES.get(name, {}).items() if linker is None})
    if name == "S_pr^hf":
        options["metal"] = "Hf"
    out = pristine(**options, system=name)
    if name == "S_hf":
        out = substitute(out, [0], "Hf")
    elif name in ("S_ld", *_CONVENTIONAL_ONLY):
        blocks = find_blocks(out)
        out = remove_blocks(out, blocks, _removed(out, blocks, name))
    return supercell(out, repeat) if tuple(repeat) != (1, 1, 1) else out


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
