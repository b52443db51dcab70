"""Is this still a framework? Pure array checks that end a walk before it turns into nonsense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mofal.frameworks.bonds import complete_cell


def min_distance(
    numbers: NDArray, positions: NDArray, cell: NDArray, pbc: NDArray, cutoff: float
) -> tuple[float, int, int]:
    """Shortest distance below `cutoff` under periodic boundaries, and between which atoms.

    Parameters
    ----------
    numbers, positions, cell, pbc
        Shapes (n,), (n, 3), (3, 3), (3,); Å. The cell of a cluster is zeros.
    cutoff
        Å.

    Returns
    -------
    distance, i, j
        ``(inf, -1, -1)`` where no pair is closer than `cutoff`.
    """
    from matscipy.neighbours import neighbour_list

    box, shifted = search_box(positions, cell, pbc)
    first, second, distance = neighbour_list(
        "ijd",
        cutoff=float(cutoff),
        positions=shifted,
        cell=box,
        pbc=np.asarray(pbc, dtype=bool),
        numbers=np.asarray(numbers, dtype=np.int32),
    )
    if len(distance) == 0:
        return np.inf, -1, -1
    closest = int(np.argmin(distance))
    return float(distance[closest]), int(first[closest]), int(second[closest])


def search_box(positions: NDArray, cell: NDArray, pbc: NDArray) -> tuple[NDArray, NDArray]:
    """A cell with volume for a neighbour search, and positions inside it where nothing repeats.

    Fully periodic structures are returned as they are.
    """
    positions = np.asarray(positions, dtype=float)
    periodic = np.asarray(pbc, dtype=bool)
    box = complete_cell(positions, np.asarray(cell, dtype=float), periodic)
    if periodic.all():
        return box, positions
    lowest = np.linalg.solve(box.T, positions.T).T.min(axis=0) - 0.01
    return box, positions - np.where(periodic, 0.0, lowest) @ box


def principal_stretches(start_cell: NDArray, cell: NDArray) -> NDArray:
    """Principal stretches (3,) of `cell` against `start_cell` (rows are cell vectors).

    They are rotation free; a cell that flipped its handedness counts as collapsed (zeros).
    """
    gradient = np.linalg.solve(np.asarray(start_cell, float), np.asarray(cell, float))
    if np.linalg.det(gradient) <= 0.0:
        return np.zeros(3)
    return np.linalg.svd(gradient, compute_uv=False)


def check_motion(
    positions: NDArray,
    momenta: NDArray,
    forces: NDArray,
    temperature: float,
    *,
    highest_temperature: float,
    max_force: float,
) -> str:
    """Why a step is not sane ("" when it is): NaN, forces, temperature. Cheap, for every step."""
    if not (
        np.all(np.isfinite(positions))
        and np.all(np.isfinite(momenta))
        and np.all(np.isfinite(forces))
    ):
        return "a position, momentum or force is not a finite number"
    largest = float(np.sqrt(np.max(np.einsum("ij,ij->i", forces, forces), initial=0.0)))
    if largest > max_force:
        return f"force {largest:.1f} eV/Å on an atom, limit {max_force:g} eV/Å"
    if temperature > highest_temperature:
        return f"temperature {temperature:.0f} K, limit {highest_temperature:.0f} K"
    return ""


def check_cell(start_cell: NDArray, cell: NDArray, *, max_stretch: float) -> str:
    """Why a cell is not sane ("" when it is): collapsed, blown up or skewed."""
    if not np.all(np.isfinite(cell)):
        return "the cell is not finite"
    stretches = principal_stretches(start_cell, cell)
    low, high = float(stretches.min()), float(stretches.max())
    if low * max_stretch < 1.0 or high > max_stretch:
        return (
            f"cell stretched by factors {low:.2f} to {high:.2f} of the start frame, "
            f"limits {1.0 / max_stretch:.2f} to {max_stretch:.2f}"
        )
    return ""


def bond_lengths(positions: NDArray, cell: NDArray, bonds: NDArray, shifts: NDArray) -> NDArray:
    """Lengths of bonds, Å: shape (n_bonds,).

    Parameters
    ----------
    positions, cell
        Shapes (n, 3), (3, 3); Å.
    bonds, shifts
        Pairs of atoms, and the lattice shift of the second against the first: shapes (n_bonds, 2)
        and (n_bonds, 3).
    """
    vectors = positions[bonds[:, 1]] - positions[bonds[:, 0]] + shifts @ cell
    return np.sqrt(np.einsum("ij,ij->i", vectors, vectors))


def check_bond_strain(
    lengths: NDArray, expected: NDArray, bonds: NDArray, *, max_strain: float
) -> str:
    """Which bond is stretched or squeezed beyond the limit most ("" for none)."""
    strain = lengths / expected - 1.0
    worst = int(np.argmax(np.abs(strain))) if len(strain) else -1
    if worst < 0 or abs(strain[worst]) <= max_strain:
        return ""
    i, j = (int(v) for v in bonds[worst])
    return (
        f"the bond of atoms {i} and {j} is {lengths[worst]:.2f} Å, {strain[worst]:+.0%} of its "
        f"{expected[worst]:.2f} Å, limit {max_strain:.0%}"
    )


def check_distances(
    numbers: NDArray, positions: NDArray, cell: NDArray, pbc: NDArray, *, shortest: float
) -> str:
    """Which atoms are too close ("" for none). Costs a neighbour search."""
    distance, first, second = min_distance(numbers, positions, cell, pbc, shortest)
    if first >= 0:
        return f"atoms {first} and {second} are {distance:.2f} Å apart, limit {shortest:g} Å"
    return ""
