"""What counts as sane."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.geometry import get_distances
from scipy.spatial.transform import Rotation

from mofal.dynamics.checks import (
    check_cell,
    check_distances,
    check_motion,
    min_distance,
    principal_stretches,
)


@pytest.mark.parametrize("seed", range(3))
def test_min_distance__agrees_with_ase_for_unwrapped_positions(seed):
    rng = np.random.default_rng(seed)
    atoms = bulk("NaCl", "rocksalt", a=5.6).repeat((2, 2, 1))
    atoms.rattle(0.4, seed=seed)
    atoms.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    _, distances = get_distances(atoms.positions, cell=atoms.cell, pbc=True)
    np.fill_diagonal(distances, np.inf)
    found = min_distance(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, 4.0)
    assert found[0] == pytest.approx(distances.min(), abs=1e-10)
    assert distances[found[1], found[2]] == pytest.approx(distances.min(), abs=1e-10)


def test_min_distance__cluster_and_slab():
    water = molecule("H2O")
    none = np.zeros(3, bool)
    found = min_distance(water.numbers, water.positions, np.zeros((3, 3)), none, 1.2)
    assert found[0] == pytest.approx(water.get_distance(0, 1), abs=1e-6)
    assert min_distance(water.numbers, water.positions, np.zeros((3, 3)), none, 0.5)[1] == -1
    cell = np.diag([3.0, 3.0, 0.0])
    found = min_distance([2], [[0.0, 0.0, 1.0]], cell, np.array([1, 1, 0], bool), 3.5)
    assert found == (pytest.approx(3.0), 0, 0)


def test_principal_stretches__no_rotation():
    cell = np.array([[0.0, 7.0, 7.0], [7.0, 0.0, 7.0], [7.0, 7.0, 0.0]])
    strain = np.diag([1.1, 1.0, 0.8])
    rotation = Rotation.from_rotvec([0.3, -1.0, 0.2]).as_matrix()
    np.testing.assert_allclose(
        np.sort(principal_stretches(cell, cell @ strain @ rotation)), [0.8, 1.0, 1.1], rtol=1e-12
    )
    flipped = cell @ np.diag([1.0, 1.0, -1.0])
    assert principal_stretches(cell, flipped).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": np.array([[np.nan, 0, 0]])}, "not a finite number"),
        ({"momenta": np.array([[np.inf, 0, 0]])}, "not a finite number"),
        ({"forces": np.array([[0, np.nan, 0]])}, "not a finite number"),
        ({"forces": np.array([[30.0, 40.0, 10.0]])}, "force 51.0 eV/Å"),
        ({"temperature": 3000.0}, "temperature 3000 K, limit 2400 K"),
        ({}, ""),
    ],
)
def test_check_motion__says_why(change, message):
    given = {
        "positions": np.zeros((1, 3)),
        "momenta": np.zeros((1, 3)),
        "forces": np.full((1, 3), 25.0),
        "temperature": 600.0,
        **change,
    }
    found = check_motion(**given, highest_temperature=2400.0, max_force=50.0)
    assert message in found
    assert bool(found) == bool(message)


@pytest.mark.parametrize(
    ("deformation", "message"),
    [
        (np.identity(3), ""),
        (0.75 * np.identity(3), "cell stretched"),
        (1.3 * np.identity(3), "cell stretched"),
        (np.array([[1.0, 0.6, 0], [0.6, 1.0, 0], [0, 0, 1.0]]), "cell stretched"),
        (np.diag([1.0, 1.0, -1.0]), "cell stretched"),
        (np.full((3, 3), np.nan), "cell is not finite"),
    ],
)
def test_check_cell__stretches(deformation, message):
    cell = bulk("Cu").cell.array
    found = check_cell(cell, cell @ deformation, max_stretch=1.25)
    assert message in found
    assert bool(found) == bool(message)


def test_check_distances__close_atoms_over_the_boundary():
    numbers, cell, pbc = np.array([1, 1]), 5.0 * np.identity(3), np.ones(3, bool)
    positions = np.array([[0.1, 0, 0], [4.7, 0, 0]])
    found = check_distances(numbers, positions, cell, pbc, shortest=0.6)
    assert "0.40 Å apart, limit 0.6 Å" in found
    assert check_distances(numbers, positions, cell, pbc, shortest=0.3) == ""
