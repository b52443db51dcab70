"""Calculators whose results depend on nothing but the structure, and crystals to walk with."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from matscipy.neighbours import neighbour_list

from mofal.data import from_atoms
from mofal.dynamics.checks import search_box

ARGON = {"epsilon": 0.0104, "sigma": 3.4, "cutoff": 6.8}


class PairPotential(Calculator):
    """Lennard-Jones, shifted so that energy and force vanish at the cutoff; no memory."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.n_calls += 1
        cutoff = ARGON["cutoff"]
        box, positions = search_box(atoms.positions, atoms.cell.array, atoms.pbc)
        i, vector, distance = neighbour_list(
            "iDd",
            cutoff=cutoff,
            positions=positions,
            cell=box,
            pbc=atoms.pbc,
        )
        value, slope = _lennard_jones(distance)
        edge_value, edge_slope = _lennard_jones(np.array([cutoff]))
        pair = value - edge_value - (distance - cutoff) * edge_slope
        pull = (slope - edge_slope)[:, None] * vector / distance[:, None]
        forces = np.zeros((len(atoms), 3))
        for axis in range(3):
            forces[:, axis] = np.bincount(i, weights=pull[:, axis], minlength=len(atoms))
        self.results = {"energy": 0.5 * pair.sum(), "forces": forces}
        if atoms.pbc.all():
            virial = 0.5 * np.einsum("ij,ik->jk", vector, pull)
            self.results["stress"] = full_3x3_to_voigt_6_stress(virial / atoms.get_volume())


def _lennard_jones(distance):
    power = (ARGON["sigma"] / distance) ** 6
    value = 4.0 * ARGON["epsilon"] * (power**2 - power)
    slope = 4.0 * ARGON["epsilon"] * (-12.0 * power**2 + 6.0 * power) / distance
    return value, slope


class Springs(Calculator):
    """Every atom on a spring to its place: exact answers for everything."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, places, stiffness) -> None:
        super().__init__()
        self.places = np.array(places)
        self.stiffness = stiffness

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        away = atoms.positions - self.places
        self.results = {
            "energy": 0.5 * self.stiffness * float((away**2).sum()),
            "forces": -self.stiffness * away,
        }


@pytest.fixture
def make_potential():
    return PairPotential


@pytest.fixture
def make_springs():
    return Springs


@pytest.fixture
def argon():
    """A Lennard-Jones crystal of 32 atoms, some of them outside the cell."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    atoms.positions[3] += atoms.cell[0]
    atoms.positions[7] -= 2 * atoms.cell[2]
    atoms.rattle(0.01, seed=1)
    return from_atoms([atoms], system="argon")


@pytest.fixture
def grid():
    """64 argon atoms on a grid, no cell."""
    axes = 6.0 * np.arange(4.0)
    places = np.stack(np.meshgrid(axes, axes, axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return from_atoms([Atoms(["Ar"] * 64, places)], system="grid")
