"""The UiO-66 family from geometry: bricks on a face-centred cubic lattice, linkers between them.

Every length is that of method.md (Systems); the linkers are written in their own frame and carried
to each of the twelve directions around a brick.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.bonds import IS_METAL

if TYPE_CHECKING:
    import xarray as xr

# Brick, in Å from its centre, cubic axes (method.md).
METAL = 2.496
MU3_O = 1.006
MU3_OH = 1.396
OH = 0.97
CARBOXYLATE_C = 20.75 / np.sqrt(8.0) - 2.895
CARBOXYLATE_O_INWARD = 0.586
CARBOXYLATE_O_SIDE = 1.127

# Half of the twelve directions of a brick, one per linker: the other half belongs to neighbours.
DIRECTIONS = np.array([[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]])
FCC = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
PRIMITIVE = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2


@dataclass(frozen=True)
class Linker:
    """A linker in its own frame.

    Attributes
    ----------
    name : str
        What it is called, with its carboxylates.
    half_length : float
        From its centre to the carboxylate C, Å.
    numbers : (n,) int array
        Its atoms without the carboxylates.
    positions : (n, 3) float array
        Å, along (its axis, the side in its plane, the normal).
    """

    name: str
    half_length: float
    numbers: NDArray[np.int32]
    positions: NDArray[np.float64]

    @property
    def lattice_constant(self) -> float:
        """Edge of the conventional cell that fits this linker, Å."""
        return float(np.sqrt(8.0) * (CARBOXYLATE_C + self.half_length))


_RING = [("C", s * 1.395, 0.0, 0.0) for s in (1, -1)]
_RING += [("C", s * 0.6975, t * 1.208, 0.0) for s in (1, -1) for t in (1, -1)]
_RING_H = [("H", s * 1.2425, t * 2.152, 0.0) for s in (1, -1) for t in (1, -1)]


def _turned(
    atoms: list[tuple[str, float, float, float]], degrees: float, shift: float
) -> list[tuple[str, float, float, float]]:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return [(e, x + shift, c * y - s * z, s * y + c * z) for e, x, y, z in atoms]


def _amino() -> list[tuple[str, float, float, float]]:
    # One ring H gives way to NH2, planar, C-N 1.37 Å along the old C-H bond (aniline-like).
    carbon = np.array([0.6975, 1.208, 0.0])
    out = np.array([0.5, np.sqrt(0.75), 0.0])
    nitrogen = carbon + 1.37 * out
    atoms = [*_RING, *_RING_H[1:], ("N", float(nitrogen[0]), float(nitrogen[1]), 0.0)]
    for sign in (1, -1):
        c, s = 0.5, sign * np.sqrt(0.75)
        turned = np.array([c * out[0] - s * out[1], s * out[0] + c * out[1], 0.0])
        hydrogen = nitrogen + 1.01 * turned
        atoms.append(("H", float(hydrogen[0]), float(hydrogen[1]), 0.0))
    return atoms


@cache
def linkers() -> dict[str, Linker]:
    """Linkers that the builder knows, by name."""
    # Biphenyl: rings 1.49 Å apart, each turned by 20 degrees against the carboxylates, so that
    # the four H of the inner edge keep 2.3 Å (flat biphenyl would leave them 1.8 Å).
    ring = [*_RING, *_RING_H]
    centre = 1.49 / 2 + 1.395
    tables = {
        "BDC": (2.895, ring),
        "BDC-NH2": (2.895, _amino()),
        "BPDC": (
            centre + 1.395 + 1.50,
            _turned(ring, 20.0, centre) + _turned(ring, -20.0, -centre),
        ),
    }
    return {
        name: Linker(
            name,
            half,
            np.array([atomic_numbers[a[0]] for a in atoms], np.int32),
            np.array([a[1:] for a in atoms]),
        )
        for name, (half, atoms) in tables.items()
    }


def brick_template(metal: str) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Atoms of one brick M6O4(OH)4(CO2)12 around the origin: numbers (54,), positions (54, 3) Å."""
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], float)
    axes = np.vstack([np.eye(3), -np.eye(3)])
    h = MU3_OH + OH / np.sqrt(3.0)
    parts = [
        (metal, METAL * axes),
        ("O", MU3_O * corners),
        ("O", -MU3_OH * corners),
        ("H", -h * corners),
    ]
    directions = np.vstack([DIRECTIONS, -DIRECTIONS]).astype(float)
    along, side, _ = _frames(directions)
    inward = CARBOXYLATE_C - CARBOXYLATE_O_INWARD
    parts.append(("C", CARBOXYLATE_C * along))
    parts.append(("O", inward * along + CARBOXYLATE_O_SIDE * side))
    parts.append(("O", inward * along - CARBOXYLATE_O_SIDE * side))
    numbers = np.concatenate([np.full(len(p), atomic_numbers[e]) for e, p in parts])
    return numbers.astype(np.int32), np.vstack([p for _, p in parts])


def _frames(
    directions: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Axis, side (in the cubic plane that holds the axis) and normal of <110> directions."""
    along = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    normal = (directions == 0).astype(float)
    return along, np.cross(normal, along), normal


def pristine(
    *,
    linker: str = "BDC",
    metal: str = "Zr",
    cell: str = "conventional",
    repeat: tuple[int, int, int] = (1, 1, 1),
    system: str = "S_pr",
) -> xr.Dataset:
    """Build the pristine framework: a structures Dataset of one structure, bricks first.

    Parameters
    ----------
    linker : str
        ``"BDC"`` (UiO-66), ``"BDC-NH2"`` (UiO-66-NH2) or ``"BPDC"`` (UiO-67).
    metal : str
        Symbol of the metal, e.g. ``"Zr"`` or ``"Hf"``.
    cell : str
        ``"conventional"`` (cubic, 4 bricks) or ``"primitive"`` (1 brick).
    repeat : (int, int, int)
        Cells along each cell vector.
    system : str
        Name of the system.
    """
    from mofal.data import make_structures

    known = linkers()
    if linker not in known:
        raise StructureError(
            f"unknown linker {linker!r}; linkers: {', '.join(known)}: build('S_pr', linker='BDC')"
        )
    if metal not in atomic_numbers or not IS_METAL[atomic_numbers[metal]]:
        raise StructureError(f"{metal!r} is no metal: give a symbol, build('S_pr', metal='Hf')")
    if cell not in ("primitive", "conventional"):
        raise StructureError(
            f"unknown cell {cell!r}; cells: 'primitive', 'conventional': "
            "build('S_pr', cell='conventional')"
        )
    piece = known[linker]
    a = piece.lattice_constant
    vectors = a * (np.eye(3) if cell == "conventional" else PRIMITIVE)
    n = np.asarray(repeat)
    grid = np.stack(np.meshgrid(*(np.arange(k) for k in n), indexing="ij"), -1).reshape(-1, 3)
    inside = a * (FCC if cell == "conventional" else FCC[:1])
    centres = ((grid @ vectors)[:, None] + inside[None]).reshape(-1, 3)
    brick_z, brick_x = brick_template(metal)
    along, side, normal = _frames(DIRECTIONS.astype(float))
    frames = np.stack([along, side, normal], axis=1)
    middle = a / 4 * DIRECTIONS
    linker_x = middle[:, None] + np.einsum("aj,djk->dak", piece.positions, frames)
    per_brick = linker_x.reshape(-1, 3)
    positions = np.vstack(
        [
            (centres[:, None] + brick_x[None]).reshape(-1, 3),
            (centres[:, None] + per_brick[None]).reshape(-1, 3),
        ]
    )
    numbers = np.concatenate(
        [np.tile(brick_z, len(centres)), np.tile(piece.numbers, len(centres) * len(DIRECTIONS))]
    )
    return make_structures(
        numbers,
        positions,
        n_atoms=[len(numbers)],
        cell=(vectors * n[:, None])[None],
        pbc=True,
        system=system,
    )
