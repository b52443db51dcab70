"""Relaxation of atoms and cell, at fixed volume, at fixed cell, or free: until forces are small.

ASE's filters divide the rows of the cell by the number of atoms, so that its own criterion passes
a deviatoric stress of some MPa; here forces and stress have a criterion each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.stress import voigt_6_to_full_3x3_stress
from numpy.typing import NDArray

from mofal.dynamics.checks import bond_lengths, check_bond_strain, check_cell, check_distances
from mofal.errors import ConfigError
from mofal.mechanics.descent import Coordinates, Metric, QuasiNewton

VOLUME_TOLERANCE = 1e-6
"""Largest relative change of the volume in a relaxation that holds it."""

MAX_STEP = 0.2
"""Farthest that an atom goes in one step, Å (as in ASE)."""

MAX_STRAIN = 0.02
"""Largest strain of the cell in one step."""

UPHILL = 1e-5
"""Rise of the energy (eV per atom) that counts as one: sums of single precision are not exact."""

MOST_REFUSED = 10
"""Steps out of the crystal that are taken back before a relaxation is said to leave it."""

METRIC_STEPS = 40
"""Steps after which the metric is made anew: what is not done by then has come far."""

Bonds = tuple[NDArray, NDArray, NDArray]


@dataclass(frozen=True)
class Criteria:
    """When a relaxation ends.

    Attributes
    ----------
    max_force : float
        Largest component of a force, eV/Å.
    max_stress_MPa : float
        Largest component of the stress that is being relaxed, MPa.
    max_steps : int
        Steps (each a force call) after which it is given up.
    max_stretch : float
        Largest principal stretch of the cell against the start.
    min_distance : float
        Å between two atoms.
    max_bond_strain : float
        Largest relative change of a bond, where bonds are given.
    """

    max_force: float = 0.001
    max_stress_MPa: float = 1.0
    max_steps: int = 2000
    max_stretch: float = 1.5
    min_distance: float = 0.6
    max_bond_strain: float = 0.3

    def __post_init__(self) -> None:
        for name in ("max_force", "max_stress_MPa", "min_distance", "max_bond_strain"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value!r}, expected a positive number")
        if not self.max_stretch > 1:
            raise ConfigError(f"max_stretch is {self.max_stretch!r}, expected a factor above 1")
        if self.max_steps < 1:
            raise ConfigError(f"max_steps is {self.max_steps!r}, expected at least 1")


@dataclass(frozen=True)
class Relaxed:
    """Where a relaxation ended.

    Attributes
    ----------
    atoms : ase.Atoms
        Without a calculator; where the status is not "relaxed", the last sane step.
    status : str
        "relaxed", "not_converged", "bond_broken", "exploded" or "crashed".
    reason : str
        Why, in one line; empty where it relaxed.
    energy : float
        eV; as all numbers below NaN where it crashed.
    forces : (n, 3) array
        eV/Å.
    stress : (6,) array
        eV/Å³, ASE's sign and order.
    force_calls : int
    """

    atoms: Atoms
    status: str
    reason: str
    energy: float
    forces: NDArray[np.float64]
    stress: NDArray[np.float64]
    force_calls: int

    @property
    def pressure_GPa(self) -> float:
        """Pressure, GPa: -tr(stress)/3."""
        return -float(self.stress[:3].mean()) / units.GPa


def deviator(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    """Traceless part of a stress in Voigt order, same unit."""
    out = np.array(stress, float)
    out[:3] -= out[:3].mean()
    return out


def relax(
    atoms: Atoms,
    calculator: Any,
    *,
    cell: str = "volume",
    criteria: Criteria | None = None,
    bonds: Bonds | None = None,
) -> Relaxed:
    """Relax atoms, and the cell as far as it may move, with LBFGS in the metric of the bonds.

    Parameters
    ----------
    atoms : ase.Atoms
        Start; it is not changed.
    calculator : ase calculator
        Gives energy, forces and stress.
    cell : str
        ``"volume"``: free shape at the volume of the start; ``"free"``: all of it, at zero stress;
        ``"fixed"``: atoms alone.
    criteria : Criteria, optional
    bonds : tuple of arrays, optional
        Pairs (n, 2), lattice shifts (n, 3) and lengths (n,) in Å of what must hold together.

    Returns
    -------
    Relaxed
        With a status; nothing is raised for a relaxation that fails on its way.

    Notes
    -----
    The cell moves along traceless symmetric strains where its volume is kept, whose exponential has
    determinant one: the volume stays to rounding (paper, SI.9.2, asks for the volume alone).
    """
    if cell not in ("volume", "free", "fixed"):
        raise ConfigError(f"cell is {cell!r}, expected 'volume', 'free' or 'fixed'")
    criteria = criteria or Criteria()
    work = atoms.copy()
    work.calc = calculator
    start_cell = np.array(work.cell.array)
    volume = work.get_volume()
    sane = work.copy()
    calls = 0
    status, reason = "not_converged", f"not done after {criteria.max_steps} steps"
    # Far from a minimum a step along a soft mode may lead uphill: it is taken back, and the reach
    # of the next ones is halved until they lead down again.
    reach, refused = 1.0, 0
    lowest, gradient, step = np.inf, np.zeros(0), np.zeros(0)
    try:
        place = Coordinates(work, cell)
        optimizer = QuasiNewton(Metric(work, place.basis))
        while True:
            found = place.gradient()
            forces, stress = work.get_forces(), work.get_stress()
            calls += 1
            problem = _problem(work, start_cell, forces, stress, criteria, bonds)
            refused += bool(problem)
            if problem and (not step.size or refused > MOST_REFUSED):
                status, reason = problem
                break
            rises = bool(problem)
            if not problem:
                rises = float(work.get_potential_energy()) > lowest + UPHILL * len(work)
            done = not problem and _done(forces, stress, cell, criteria)
            if done or not rises:
                sane = work.copy()
            if done:
                status, reason = "relaxed", ""
                break
            if calls > criteria.max_steps:
                if rises:
                    place.move(-step)
                break
            if problem:
                optimizer.discard()
            else:
                optimizer.learn(found)
            if rises:
                place.move(-step)
                reach = 0.5 * min(reach, place.share(step, MAX_STEP, MAX_STRAIN))
            else:
                lowest, gradient = float(work.get_potential_energy()), found
                reach = min(1.0, 1.5 * reach)
            if calls % METRIC_STEPS == 0:
                optimizer = QuasiNewton(Metric(work, place.basis))
            wanted = optimizer.step(gradient)
            step = place.shortened(wanted, reach * MAX_STEP, reach * MAX_STRAIN)
            optimizer.took(gradient, step)
            place.move(step)
    except MemoryError:
        raise
    except Exception as error:
        # A calculator that fails far away ends this point, and not the others.
        first = (str(error).strip().splitlines() or [""])[0]
        status, reason = "crashed", f"{type(error).__name__}: {first}"
    if status not in ("relaxed", "not_converged"):
        n = len(work)
        return Relaxed(
            sane, status, reason, np.nan, np.full((n, 3), np.nan), np.full(6, np.nan), calls
        )
    energy = float(work.get_potential_energy())
    forces, stress = np.array(work.get_forces()), np.array(work.get_stress())
    change = work.get_volume() / volume - 1.0
    if cell == "volume" and abs(change) > VOLUME_TOLERANCE:
        status, reason = "not_converged", f"the volume changed by {change:.1e} on the way"
    return Relaxed(sane, status, reason, energy, forces, stress, calls)


def _done(forces: NDArray, stress: NDArray, cell: str, criteria: Criteria) -> bool:
    if np.abs(forces).max() >= criteria.max_force:
        return False
    if cell == "fixed":
        return True
    relaxing = deviator(stress) if cell == "volume" else stress
    return bool(np.abs(relaxing).max() < criteria.max_stress_MPa * 1e-3 * units.GPa)


def _problem(
    work: Atoms,
    start_cell: NDArray,
    forces: NDArray,
    stress: NDArray,
    criteria: Criteria,
    bonds: Bonds | None,
) -> tuple[str, str] | None:
    """Status and reason where this is no crystal any more."""
    if not (np.isfinite(forces).all() and np.isfinite(stress).all()):
        return "exploded", "a force or the stress is not a finite number"
    found = check_cell(start_cell, work.cell.array, max_stretch=criteria.max_stretch)
    found = found or check_distances(
        work.numbers,
        work.positions,
        work.cell.array,
        work.pbc,
        shortest=criteria.min_distance,
    )
    if found:
        return "exploded", found
    if bonds is not None:
        pairs, shifts, expected = bonds
        lengths = bond_lengths(work.positions, work.cell.array, pairs, shifts)
        broken = check_bond_strain(lengths, expected, pairs, max_strain=criteria.max_bond_strain)
        if broken:
            return "bond_broken", broken
    return None


def scaled(atoms: Atoms, volume: float) -> Atoms:
    """Return a copy at another volume (Å³), shape and fractional coordinates kept."""
    out = atoms.copy()
    factor = (volume / atoms.get_volume()) ** (1.0 / 3.0)
    out.set_cell(factor * atoms.cell.array, scale_atoms=True)
    return out


def displaced(atoms: Atoms, displacement: float, seed: tuple[int, ...]) -> Atoms:
    """Return a copy with seeded random displacements (standard deviation in Å per component).

    What symmetry forbids, a rotation of the bricks say, is found only from a start without it.
    """
    out = atoms.copy()
    rng = np.random.default_rng(np.random.SeedSequence(seed))
    out.positions += displacement * rng.standard_normal((len(atoms), 3))
    return out


def full_stress(stress: NDArray) -> NDArray:
    """Stress (6,) in Voigt order as a matrix (3, 3)."""
    return np.asarray(voigt_6_to_full_3x3_stress(stress))
