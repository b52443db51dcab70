"""Which mechanism takes the strain: rotation of bricks, tilt and buckling of linkers, the lattice.

Paper, SI.9.4: fcu and reo compress by rotating bricks and buckling linkers, bcu and scu by a shear
that only reorients coordination bonds.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from ase.geometry import cell_to_cellpar
from numpy.typing import NDArray
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from mofal.data.ragged import offsets

if TYPE_CHECKING:
    import xarray as xr


def kabsch_angle(start: NDArray, now: NDArray) -> float:
    """Angle (degrees) of the best rotation of points (n, 3) onto others, centroids removed."""
    if len(start) < 3:
        return np.nan
    a, b = start - start.mean(axis=0), now - now.mean(axis=0)
    u, _, vt = np.linalg.svd(a.T @ b)
    sign = np.sign(np.linalg.det(u @ vt))
    rotation = (u * np.array([1.0, 1.0, sign])) @ vt
    return float(np.degrees(Rotation.from_matrix(rotation.T).magnitude()))


def plane_distance(points: NDArray) -> float:
    """Root mean square distance (Å) of points (n, 3) from their best plane."""
    if len(points) < 4:
        return 0.0
    centred = points - points.mean(axis=0)
    return float(np.linalg.svd(centred, compute_uv=False)[-1] / np.sqrt(len(points)))


def unrotated(start_cell: NDArray, cell: NDArray, positions: NDArray) -> tuple[NDArray, NDArray]:
    """Cell and positions without the rigid rotation that the cell has made since its start."""
    gradient = np.linalg.solve(start_cell, cell)  # rows: r' = r @ gradient
    rotation, _ = polar(gradient, side="left")  # gradient = stretch @ rotation
    return cell @ rotation.T, positions @ rotation.T


class _Frame:
    """One frame with its blocks made whole."""

    def __init__(self, blocks: xr.Dataset, positions: NDArray, cell: NDArray) -> None:
        start = offsets(blocks["block_n_atoms"].values)
        atom, shift = blocks["member_atom"].values, blocks["member_shift"].values
        whole = positions[atom] + shift @ cell
        self.atoms = [atom[a:b] for a, b in pairwise(start)]
        self.blocks = [whole[a:b] for a, b in pairwise(start)]
        self.centre = np.array([b.mean(axis=0) for b in self.blocks])
        self.where = {int(k): x for k, x in zip(atom, whole)}
        self.cell = cell


def _linker(frame: _Frame, blocks: xr.Dataset, block: int) -> tuple[float, float]:
    """Tilt (degrees) and buckling (Å) of a linker in a frame."""
    ends, images = blocks["link_block"].values, blocks["link_image"].values
    atoms = blocks["link_atom"].values
    partners, own, nodes = [], [], []
    for link in np.flatnonzero((ends == block).any(axis=1)):
        side = 1 if ends[link, 1] == block else 0
        # The image leads from the block at end 0 to that at end 1.
        shift = (images[link] if side == 0 else -images[link]) @ frame.cell
        partners.append(frame.where[int(atoms[link, 1 - side])] + shift)
        own.append(frame.where[int(atoms[link, side])])
        nodes.append(frame.centre[ends[link, 1 - side]] + shift)
    heavy = frame.blocks[block]
    buckling = plane_distance(np.vstack([heavy, *partners]) if partners else heavy)
    if len(own) != 2:
        return np.nan, buckling
    axis, line = own[1] - own[0], nodes[1] - nodes[0]
    length = np.linalg.norm(axis) * np.linalg.norm(line)
    if length < 1e-9:
        return np.nan, buckling
    cosine = abs(float(axis @ line)) / length
    return math.degrees(math.acos(min(1.0, float(cosine)))), buckling


def block_motion(curve: xr.Dataset, rows: NDArray, blocks: xr.Dataset) -> xr.Dataset:
    """Motion of every block along a curve, against the relaxed minimum (its first structure).

    Parameters
    ----------
    curve : Dataset
        Of `Curve.gather`: structures, the minimum first.
    rows : (n,) int array
        Structures at which to look.
    blocks : Dataset
        Blocks of the system.

    Returns
    -------
    Dataset
        Table with dims volume_point, block, cell_vector: lattice lengths and angles, rotation of
        every block, tilt and buckling of every linker.
    """
    import xarray as xr

    from mofal.data import describe

    n = int(curve["n_atoms"].values[0])
    positions = curve["positions"].values.reshape(-1, n, 3)
    cells = curve["cell"].values
    start_cell = cells[0]
    first = _Frame(blocks, positions[0], start_cell)
    linkers = np.flatnonzero([str(r) == "linker" for r in blocks["role"].values])
    shape = (len(rows), blocks.sizes["block"])
    rotation = np.full(shape, np.nan)
    tilt, buckling = np.full(shape, np.nan), np.full(shape, np.nan)
    lattice = np.zeros((len(rows), 6))
    for i, row in enumerate(np.asarray(rows, int)):
        cell, x = unrotated(start_cell, cells[row], positions[row])
        frame = _Frame(blocks, x, cell)
        rotation[i] = [kabsch_angle(a, b) for a, b in zip(first.blocks, frame.blocks)]
        for block in linkers:
            tilt[i, block], buckling[i, block] = _linker(frame, blocks, int(block))
        lattice[i] = cell_to_cellpar(cell)
    return describe(
        xr.Dataset(
            {
                "curve_structure": ("volume_point", np.asarray(rows, np.int64)),
                "point_volume": ("volume_point", curve["relaxed_volume"].values[rows]),
                "lattice_length": (("volume_point", "cell_vector"), lattice[:, :3]),
                "lattice_angle": (("volume_point", "cell_vector"), lattice[:, 3:]),
                "block_rotation": (("volume_point", "block"), rotation),
                "block_tilt": (("volume_point", "block"), tilt),
                "block_buckling": (("volume_point", "block"), buckling),
                "role": ("block", blocks["role"].values),
            }
        )
    )


def describe_motion(motion: xr.Dataset) -> list[str]:
    """Motion as lines of text: one per volume."""
    role = np.array([str(r) for r in motion["role"].values])
    nodes, linkers = role == "node", role == "linker"
    lines = ["  volume/Å³   bricks rotate   linkers tilt   buckle/Å   angles"]
    for i in range(motion.sizes["volume_point"]):
        turn = _largest(motion["block_rotation"].values[i, nodes])
        tilt = _largest(motion["block_tilt"].values[i, linkers])
        bent = _largest(motion["block_buckling"].values[i, linkers])
        angles = " ".join(f"{a:.2f}" for a in motion["lattice_angle"].values[i])
        lines.append(
            f"  {motion['point_volume'].values[i]:9.2f}   {turn:10.2f}°   {tilt:9.2f}°   "
            f"{bent:8.3f}   {angles}"
        )
    return lines


def _largest(values: NDArray) -> float:
    kept = values[np.isfinite(values)]
    return float(np.abs(kept).max()) if len(kept) else np.nan
