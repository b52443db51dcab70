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
    power = (sigma / distance) ** 2
    power = power * power * power
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
    _, c11, c12, c44 = fcc_born(pair, cutoff, found.x)
    return found.x, (c11 + 2 * c12) / 3, c11, c12, c44


def fcc_born(pair, cutoff, a):
    """Pressure and C11, C12, C44 (GPa) of an fcc pair crystal of lattice constant a (Å).

    The constants are second derivatives of the energy by the Lagrangian strain (Born, Huang,
    Dynamical Theory of Crystal Lattices): under pressure not the slopes of the stress.
    """
    r, d, _ = lattice_sum(pair, cutoff, a)
    h = 1e-5
    slope = pair(d)[1]
    curvature = (pair(d + h)[1] - pair(d - h)[1]) / (2 * h)
    weight = (curvature - slope / d) / d**2
    volume = 2 * a**3 / 4
    born = np.einsum("n,ni,nj,nk,nl->ijkl", weight, r, r, r, r) / volume / units.GPa
    pressure = -(slope * d).sum() / (3 * volume) / units.GPa
    return pressure, born[0, 0, 0, 0], born[0, 0, 1, 1], born[1, 2, 1, 2]


def quasi_harmonic(pair, cutoff, start, repeat, temperature_K):
    """V0 (Å³) and K (GPa) of `repeat`³ cubic cells of an fcc pair crystal at a temperature.

    Classical lattice dynamics on the wave vectors that fit into the cell, by its own sums: what a
    simulation of that cell has, up to terms of the square of the temperature.
    """
    kT = units.kB * temperature_K
    q = np.stack(np.meshgrid(*[np.arange(2 * repeat)] * 3, indexing="ij"), -1).reshape(-1, 3)

    def free_energy(volume):
        a = (volume / repeat**3) ** (1 / 3)
        r, d, energy = lattice_sum(pair, cutoff, a)
        h = 1e-5
        slope = pair(d)[1]
        curvature = (pair(d + h)[1] - pair(d - h)[1]) / (2 * h)
        unit = r / d[:, None]
        springs = (curvature - slope / d)[:, None, None] * unit[:, :, None] * unit[:, None, :]
        springs += (slope / d)[:, None, None] * np.identity(3)
        phase = 1 - np.cos(2 * np.pi / (repeat * a) * q @ r.T)
        values = np.linalg.eigvalsh(np.einsum("qn,nij->qij", phase, springs))
        moving = values[values[:, 0] > 1e-9]
        # Twice as many wave vectors as there are, each of them once more by a reciprocal vector.
        modes = 0.5 * 0.5 * np.log(moving).sum()
        return 4 * repeat**3 * energy + kT * modes - kT * np.log(volume)

    h = 1e-3 * repeat**3 * start**3

    def pressure(volume):
        return (free_energy(volume - h) - free_energy(volume + h)) / (2 * h)

    from scipy.optimize import brentq

    guess = repeat**3 * start**3
    volume = brentq(pressure, 0.95 * guess, 1.05 * guess, xtol=1e-9)
    slope = (pressure(volume + h) - pressure(volume - h)) / (2 * h)
    return volume, -volume * slope / units.GPa


class Lattice(Pairs):
    """A pair potential among neighbours that stay neighbours: no search at every step."""

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        Calculator.calculate(self, atoms, properties, system_changes)
        self.n_calls += 1
        x, cell = self.atoms.positions, self.atoms.cell.array
        if not hasattr(self, "i"):
            i, j, shift = neighbour_list("ijS", self.atoms, self.cutoff + 1.0)
            # Each pair once: of an atom and its own image, the one of two opposite shifts.
            first = np.array([tuple(s) > (0, 0, 0) for s in shift])
            once = (i < j) | ((i == j) & first)
            self.i, self.j, self.shift = i[once], j[once], shift[once]
        vector = x[self.j] - x[self.i] + self.shift @ cell
        distance = np.linalg.norm(vector, axis=1)
        value, slope = self.pair(distance)
        inside = distance < self.cutoff
        pull = (np.where(inside, slope, 0.0) / distance)[:, None] * vector
        n = len(x)
        forces = np.stack(
            [np.bincount(self.i, p, n) - np.bincount(self.j, p, n) for p in pull.T], axis=1
        )
        energy = float(value[inside].sum())
        virial = vector.T @ pull
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": forces,
            "stress": full_3x3_to_voigt_6_stress(virial / self.atoms.get_volume()),
        }


def make_lattice() -> Calculator:
    return Lattice(argon, 9.0)
