"""Crystals whose mechanics are known without mofal: lattice sums of pair potentials."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from matscipy.neighbours import neighbour_list


class Pairs(Calculator):
    """A pair potential given by value, slope and cutoff; energies end smoothly or not at all."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, pair, cutoff) -> None:
        super().__init__()
        self.pair, self.cutoff, self.n_calls = pair, cutoff, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        i, vector, distance = neighbour_list("iDd", self.atoms, self.cutoff)
        value, slope = self.pair(distance)
        pull = slope[:, None] * vector / distance[:, None]
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pull)
        virial = 0.5 * np.einsum("ij,ik->jk", vector, pull)
        self.results = {
            "energy": 0.5 * float(value.sum()),
            "free_energy": 0.5 * float(value.sum()),
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(virial / atoms.get_volume()),
        }


def argon(distance, epsilon=0.0104, sigma=3.4, cutoff=9.0):
    """Lennard-Jones with energy, slope and curvature going to zero at the cutoff."""
    power = (sigma / distance) ** 6
    value = 4 * epsilon * (power**2 - power)
    slope = 4 * epsilon * (-12 * power**2 + 6 * power) / distance
    x = np.clip((distance - 0.75 * cutoff) / (0.25 * cutoff), 0.0, 1.0)
    fade = 1 - x**3 * (10 - 15 * x + 6 * x**2)
    fade_slope = -30 * x**2 * (1 - x) ** 2 / (0.25 * cutoff)
    return value * fade, slope * fade + value * fade_slope


def springs(distance, k=2.0, rest=2.5):
    """Nearest neighbours of an fcc crystal on harmonic springs (up to 1.2 of their length)."""
    return 0.5 * k * (distance - rest) ** 2, k * (distance - rest)


def make_argon() -> Calculator:
    return Pairs(argon, 9.0)


def make_springs() -> Calculator:
    return Pairs(springs, 3.0)


def fcc_argon(repeat=1) -> Atoms:
    return bulk("Ar", "fcc", a=5.3, cubic=True).repeat(repeat)


def fcc_springs(repeat=1) -> Atoms:
    return bulk("Cu", "fcc", a=2.5 * np.sqrt(2.0), cubic=True).repeat(repeat)


def lattice_sum(pair, cutoff, a, reach=4):
    """Energy per atom (eV) of an fcc crystal of lattice constant a, by its own sum."""
    n = np.arange(-reach * 2, reach * 2 + 1)
    grid = np.stack(np.meshgrid(n, n, n, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[(grid.sum(axis=1) % 2 == 0) & (np.abs(grid).sum(axis=1) > 0)]
    r = 0.5 * a * grid
    d = np.linalg.norm(r, axis=1)
    inside = d < cutoff
    return r[inside], d[inside], 0.5 * pair(d[inside])[0].sum()


def fcc_elasticity(pair, cutoff, start):
    """a0 (Å), K, C11, C12, C44 (GPa) of an fcc pair crystal: lattice sums, no relaxation."""
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda a: lattice_sum(pair, cutoff, a)[2],
        bracket=(0.97 * start, start, 1.03 * start),
        options={"xtol": 1e-12},
    )
    a = found.x
    r, d, _ = lattice_sum(pair, cutoff, a)
    h = 1e-5
    slope = pair(d)[1]
    curvature = (pair(d + h)[1] - pair(d - h)[1]) / (2 * h)
    weight = (curvature - slope / d) / d**2
    born = np.einsum("n,ni,nj,nk,nl->ijkl", weight, r, r, r, r) / (2 * a**3 / 4) / units.GPa
    c11, c12, c44 = born[0, 0, 0, 0], born[0, 0, 1, 1], born[1, 2, 1, 2]
    return a, (c11 + 2 * c12) / 3, c11, c12, c44
