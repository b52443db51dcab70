"""Perturbed frames without a model: exact thermal samples of a harmonic network on the bonds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse.linalg as spl
import xarray as xr
from ase import units
from ase.data import covalent_radii
from numpy.typing import NDArray

from mofal.data import atom_slice, make_structures
from mofal.dynamics.checks import search_box
from mofal.dynamics.network import InternalCoordinates, Network, internal_coordinates
from mofal.errors import ConfigError, StructureError
from mofal.frameworks.bonds import find_bonds

MAX_TRIES = 100
LARGEST_FACTORED = 6000
"""Coordinates up to which the Hessian is factorised; beyond, its fill-in costs more than
conjugate gradients, whose number of steps the floor keeps small."""


class HarmonicSampler:
    """Draws displacements of the network's thermal distribution, and follows strains.

    Parameters
    ----------
    coordinates
        Internal coordinates of the structure.
    floor
        Spring of every atom to its place, eV/Å².
    temperature_K
        K.
    """

    def __init__(
        self, coordinates: InternalCoordinates, *, floor: float, temperature_K: float
    ) -> None:
        self.coordinates = coordinates
        self.floor = floor
        self.thermal = units.kB * temperature_K
        self.hessian = coordinates.hessian(floor)
        self._solve = self._make_solve()

    def _make_solve(self) -> Callable[[NDArray], NDArray]:
        if self.hessian.shape[0] <= LARGEST_FACTORED:
            factor = spl.splu(self.hessian, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0)
            return factor.solve
        diagonal = self.hessian.diagonal()
        scale = spl.LinearOperator(self.hessian.shape, matvec=lambda v: v / diagonal, dtype=float)

        def solve(push: NDArray) -> NDArray:
            solution, failed = spl.cg(self.hessian, push, rtol=1e-11, maxiter=20000, M=scale)
            if failed:
                raise StructureError(
                    "the harmonic network is too floppy to be solved: raise its floor, "
                    f"Network(floor={10 * self.floor:g})"
                )
            return solution

        return solve

    def draw(self, rng: np.random.Generator) -> NDArray:
        """Displacements (n, 3), Å, with covariance kT H⁻¹ exactly.

        With white noise z on every spring, ``u = H⁻¹ (Bᵀ √K z)`` has the covariance
        ``H⁻¹ (Bᵀ K B) H⁻¹ = H⁻¹``: one sparse solve, no dense factor, so that large frameworks
        can be drawn too.
        """
        coordinates = self.coordinates
        springs = rng.standard_normal(len(coordinates.stiffness))
        places = rng.standard_normal(coordinates.matrix.shape[1])
        push = coordinates.matrix.T @ (np.sqrt(coordinates.stiffness) * springs)
        push = np.sqrt(self.thermal) * (push + np.sqrt(self.floor) * places)
        return self._solve(push).reshape(-1, 3)

    def follow(self, strain: NDArray) -> NDArray:
        """Displacements (n, 3), Å, beyond the homogeneous ones that relax a strain (3, 3)."""
        coordinates = self.coordinates
        change = np.einsum("mij,ij->m", coordinates.strain, strain)
        push = -(coordinates.matrix.T @ (coordinates.stiffness * change))
        return self._solve(push).reshape(-1, 3)


def sample_harmonic(
    structures: xr.Dataset,
    i: int = 0,
    *,
    n: int,
    temperature_K: float = 600.0,
    seed: int | tuple[int, ...] | np.random.SeedSequence,
    bonds: NDArray | None = None,
    shifts: NDArray | None = None,
    network: Network | None = None,
    volume_strain: float | tuple[float, float] = (-0.03, 0.05),
    shear: float = 0.01,
    closest: float = 0.75,
    farthest: float = 1.25,
    progress: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Frames around one structure, thermal in a harmonic network on its bonds.

    Nothing of a model or a reference enters, so that such frames can judge a model. Frame k depends
    on the seed and on k, not on `n`.

    Parameters
    ----------
    structures
        Structures Dataset.
    i
        Which of them to perturb.
    n
        Number of frames.
    temperature_K
        K.
    seed
        Whole number, tuple of them, or SeedSequence (it is not changed).
    bonds, shifts
        Shapes (b, 2), (b, 3): bonds and the lattice shift of their second atom. Found by
        `mofal.frameworks.find_bonds` where not given.
    network
        Stiffnesses (see `Network`).
    volume_strain
        Relative change of volume, drawn uniformly from this range (one number: that change).
        Ignored, as is `shear`, where the structure is not periodic along all cell vectors.
    shear
        Standard deviation of each element of a symmetric traceless strain.
    closest
        A frame is drawn again when two atoms come closer than this factor times the sum of their
        covalent radii, or, for pairs that are not bonded in the structure, than 1.2 times that sum
        (or 0.85 times their distance in the structure, where that is less).
    farthest
        A frame is drawn again when a bond is longer than this factor times its length in the
        structure.

    Returns
    -------
    frames
        Structures Dataset of `n` frames, `parent` the structure; attribute `n_redrawn`.

    Raises
    ------
    StructureError
        No acceptable frame in 100 tries: the network is too soft, or the temperature too high.
    """
    network = network if network is not None else Network()
    if n < 1:
        raise ConfigError(f"n is {n}, expected at least 1 frame")
    if not temperature_K > 0.0:
        raise ConfigError(f"temperature_K is {temperature_K}, expected a positive number")
    low, high = _range(volume_strain)
    atoms = atom_slice(structures, i)
    numbers = structures["numbers"].values[atoms]
    positions = structures["positions"].values[atoms]
    cell = structures["cell"].values[i]
    pbc = structures["pbc"].values[i]
    if bonds is None or shifts is None:
        found = find_bonds(structures, i)
        bonds, shifts = found["bond_atom"].values, found["bond_shift"].values
    coordinates = internal_coordinates(
        numbers, positions, cell, pbc, bonds, shifts, network=network
    )
    sampler = HarmonicSampler(coordinates, floor=network.floor, temperature_K=temperature_K)
    guard = _BondGuard(
        numbers, positions, cell, pbc, bonds, shifts, closest=closest, farthest=farthest
    )
    root = seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    new_positions, new_cells, n_redrawn = [], [], 0
    for k in range(n):
        rng = np.random.default_rng(
            np.random.SeedSequence(root.entropy, spawn_key=(*root.spawn_key, k))
        )
        for _ in range(MAX_TRIES):
            strain = np.zeros((3, 3))
            if pbc.all():
                strain = _draw_strain(rng, low, high, shear)
            moved = (positions + sampler.follow(strain) + sampler.draw(rng)) @ (
                np.identity(3) + strain
            )
            new_cell = cell @ (np.identity(3) + strain)
            problem = guard.check(moved, new_cell)
            if not problem:
                break
            n_redrawn += 1
        else:
            raise StructureError(
                f"no sound frame in {MAX_TRIES} tries at {temperature_K:g} K ({problem}): lower "
                "temperature_K, narrow volume_strain, or raise the stiffness of the network"
            )
        new_positions.append(moved)
        new_cells.append(new_cell)
        if progress is not None and (k + 1) % 50 == 0:
            progress(f"{k + 1} of {n} frames drawn")
    frames = make_structures(
        np.tile(numbers, n),
        np.concatenate(new_positions),
        n_atoms=np.full(n, len(numbers)),
        cell=np.array(new_cells),
        pbc=np.tile(pbc, (n, 1)),
        system=str(structures["system"].values[i]),
        parent=str(structures["structure_id"].values[i]),
    )
    frames.attrs["n_redrawn"] = n_redrawn
    return frames


def _range(value: float | tuple[float, float]) -> tuple[float, float]:
    low, high = (value, value) if isinstance(value, (int, float)) else value
    if not -0.5 < low <= high < 1.0:
        raise ConfigError(
            f"volume_strain is ({low}, {high}), expected a range of relative changes: "
            "write volume_strain=(-0.03, 0.05)"
        )
    return float(low), float(high)


def _draw_strain(rng: np.random.Generator, low: float, high: float, shear: float) -> NDArray:
    """Symmetric strain (3, 3) with exactly the drawn change of volume."""
    volume = rng.uniform(low, high)
    matrix = rng.standard_normal((3, 3))
    shape = shear * (matrix + matrix.T) / np.sqrt(2.0)
    shape -= np.trace(shape) / 3.0 * np.identity(3)
    deformation = np.identity(3) + shape
    deformation *= ((1.0 + volume) / np.linalg.det(deformation)) ** (1.0 / 3.0)
    return deformation - np.identity(3)


class _BondGuard:
    """Refuses frames whose bonds are no longer the structure's: blocks would not fit them."""

    def __init__(
        self,
        numbers: NDArray,
        positions: NDArray,
        cell: NDArray,
        pbc: NDArray,
        bonds: NDArray,
        shifts: NDArray,
        *,
        closest: float,
        farthest: float,
    ) -> None:
        self.numbers = np.asarray(numbers, dtype=np.int32)
        self.pbc = np.asarray(pbc, dtype=bool)
        self.bonds = np.asarray(bonds)
        self.shifts = np.asarray(shifts)
        self.closest = closest
        self.farthest = farthest
        self.radii = covalent_radii[numbers]
        self.cutoff = 1.2 * 2.0 * float(self.radii.max())
        self.lengths = self._lengths(positions, cell)
        both = np.concatenate([self.bonds, self.bonds[:, ::-1]])
        self.bonded = _keys(both, np.concatenate([self.shifts, -self.shifts]))
        i, j, shift, distance = self._pairs(positions, cell)
        self.start = dict(zip(_rows(i, j, shift), distance.tolist()))

    def _lengths(self, positions: NDArray, cell: NDArray) -> NDArray:
        first, second = self.bonds[:, 0], self.bonds[:, 1]
        return np.linalg.norm(positions[second] + self.shifts @ cell - positions[first], axis=1)

    def _pairs(
        self, positions: NDArray, cell: NDArray
    ) -> tuple[NDArray, NDArray, NDArray, NDArray]:
        from matscipy.neighbours import neighbour_list

        box, shifted = search_box(positions, cell, self.pbc)
        return neighbour_list(
            "ijSd",
            cutoff=self.cutoff,
            positions=shifted,
            cell=box,
            pbc=self.pbc,
            numbers=self.numbers,
        )

    def check(self, positions: NDArray, cell: NDArray) -> str:
        stretched = self._lengths(positions, cell) / self.lengths
        if len(stretched) and stretched.max() > self.farthest:
            i, j = self.bonds[int(np.argmax(stretched))]
            return f"the bond of atoms {i} and {j} is stretched by a factor {stretched.max():.2f}"
        i, j, shift, distance = self._pairs(positions, cell)
        radii = self.radii[i] + self.radii[j]
        # Few pairs are this close; only for them it matters whether they are bonded.
        suspect = np.flatnonzero(distance < 1.2 * radii)
        keys = _rows(i[suspect], j[suspect], shift[suspect])
        for k, key in zip(suspect.tolist(), keys):
            limit = self.closest * radii[k]
            if key not in self.bonded:
                limit = max(limit, min(1.2 * radii[k], 0.85 * self.start.get(key, np.inf)))
            if distance[k] < limit:
                return f"atoms {i[k]} and {j[k]} are {distance[k]:.2f} Å apart, limit {limit:.2f} Å"
        return ""


def _rows(i: NDArray, j: NDArray, shifts: NDArray) -> list[tuple[int, int, tuple[int, ...]]]:
    return list(zip(i.tolist(), j.tolist(), map(tuple, shifts.tolist())))


def _keys(bonds: NDArray, shifts: NDArray) -> set[tuple[int, int, tuple[int, ...]]]:
    return set(_rows(bonds[:, 0], bonds[:, 1], shifts))
