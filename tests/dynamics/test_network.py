"""Internal coordinates against what they linearise."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from mofal.data import from_atoms
from mofal.dynamics import Network, internal_coordinates
from mofal.dynamics.network import KINDS, torsion_gradients
from mofal.errors import ConfigError, DataError
from mofal.frameworks.bonds import find_bonds
from mofal.frameworks.uio import pristine

from .helpers import coordinates_of


@pytest.fixture(scope="module")
def crooked():
    """Nitromethane-like asymmetric molecule, moved off every symmetry."""
    atoms = molecule("CH3CONH2")
    atoms.rattle(0.05, seed=2)
    return atoms


def test_torsion_gradients__finite_differences(crooked):
    rng = np.random.default_rng(0)
    places = rng.normal(size=(5, 4, 3))
    gradients = torsion_gradients(places)

    def angle(place):
        return Atoms("H4", place).get_dihedral(0, 1, 2, 3)

    step = 1e-5
    for row in range(5):
        for a in range(4):
            for k in range(3):
                forward, back = places[row].copy(), places[row].copy()
                forward[a, k] += step
                back[a, k] -= step
                change = (angle(forward) - angle(back) + 180.0) % 360.0 - 180.0
                expected = np.radians(change) / (2 * step)
                assert abs(gradients[row, a, k]) == pytest.approx(abs(expected), abs=2e-4)
    # One sign for all four atoms.
    np.testing.assert_allclose(gradients.sum(axis=1), 0.0, atol=1e-10)


def test_internal_coordinates__stretch_is_change_of_distance(crooked):
    ds = from_atoms([crooked])
    found = coordinates_of(ds)
    pairs = find_bonds(ds)["bond_atom"].values
    rng = np.random.default_rng(1)
    move = 1e-5 * rng.normal(size=(len(crooked), 3))
    before = [crooked.get_distance(i, j) for i, j in pairs]
    moved = crooked.copy()
    moved.positions += move
    after = [moved.get_distance(i, j) for i, j in pairs]
    change = (found.matrix @ move.ravel())[found.kind == KINDS.index("stretch")]
    np.testing.assert_allclose(change, np.subtract(after, before), atol=1e-9)


def test_internal_coordinates__nothing_changes_when_all_moves_and_turns(crooked):
    found = coordinates_of(from_atoms([crooked]))
    n = len(crooked)
    assert sorted(np.unique(found.kind)) == [0, 1, 2, 3, 4]
    for axis in np.identity(3):
        moved = np.tile(axis, (n, 1))
        turned = np.cross(axis, crooked.positions)
        # Out-of-plane rows are measured against the plane of the neighbours, and are invariant
        # when the centre lies in it or is lifted along its normal.
        assert np.abs(found.matrix @ moved.ravel()).max() < 1e-12
        assert np.abs(found.matrix @ turned.ravel()).max() < 1e-10


def test_internal_coordinates__only_rigid_motions_are_free(crooked):
    found = coordinates_of(from_atoms([crooked]), near=0.0)
    stiffness = np.linalg.eigvalsh(found.hessian(0.0).toarray())
    assert (stiffness[:6] < 1e-9).all()
    assert stiffness[6] > 0.05


def test_internal_coordinates__crystal_has_three_free_translations():
    found = coordinates_of(pristine(cell="primitive"))
    stiffness = np.linalg.eigvalsh(found.hessian(0.0).toarray())
    assert (np.abs(stiffness[:3]) < 1e-9).all()
    assert stiffness[3] > 0.05


def test_internal_coordinates__strain_of_stretches():
    ds = pristine(cell="primitive")
    found = coordinates_of(ds)
    bonds = find_bonds(ds)
    rng = np.random.default_rng(3)
    strain = 1e-6 * rng.normal(size=(3, 3))
    strain = 0.5 * (strain + strain.T)
    cell, positions = ds["cell"].values[0], ds["positions"].values
    pairs, shifts = bonds["bond_atom"].values, bonds["bond_shift"].values
    vectors = positions[pairs[:, 1]] + shifts @ cell - positions[pairs[:, 0]]
    after = np.linalg.norm(vectors @ (np.identity(3) + strain), axis=1)
    expected = after - np.linalg.norm(vectors, axis=1)
    change = np.einsum("mij,ij->m", found.strain, strain)[found.kind == 0]
    np.testing.assert_allclose(change, expected, atol=1e-11)


@pytest.mark.parametrize("shift_by", [0, 2])
def test_internal_coordinates__do_not_depend_on_the_image(shift_by):
    ds = pristine(cell="primitive")
    moved = ds.copy(deep=True)
    moved["positions"][20:60] += shift_by * ds["cell"].values[0, 1]
    one, two = coordinates_of(ds), coordinates_of(moved)
    np.testing.assert_allclose(
        one.hessian(0.1).toarray(), two.hessian(0.1).toarray(), rtol=0, atol=1e-9
    )
    for found in (one, two):
        push = found.matrix.T @ (found.stiffness * found.strain[:, 0, 1])
        np.testing.assert_allclose(
            push, one.matrix.T @ (one.stiffness * one.strain[:, 0, 1]), atol=1e-9
        )


def test_internal_coordinates__hand_made_chain():
    """Atoms in a row, periodic: the Hessian of a chain of springs."""
    chain = Atoms("C3", [[0, 0, 0], [1.5, 0, 0], [3.0, 0, 0]], cell=[4.5, 9, 9], pbc=True)
    network = Network(stretch=2.0, angle=0.0, torsion=0.0, plane=0.0, near=0.0, floor=1.0)
    found = internal_coordinates(
        chain.numbers,
        chain.positions,
        chain.cell.array,
        chain.pbc,
        [[0, 1], [1, 2], [2, 0]],
        [[0, 0, 0], [0, 0, 0], [1, 0, 0]],
        network=network,
    )
    along = found.hessian(1.0).toarray()[::3, ::3]
    np.testing.assert_allclose(along, [[5, -2, -2], [-2, 5, -2], [-2, -2, 5]])


def test_internal_coordinates__metal_bonds_are_softer():
    ds = from_atoms([bulk("MgO", "rocksalt", a=4.2)])
    found = coordinates_of(ds, metal_stretch=7.0, stretch=35.0, metal_angle=0.3)
    assert set(found.stiffness[found.kind == 0]) == {7.0}
    assert set(found.stiffness[found.kind == 1]) == {0.3}
    assert not (found.kind == KINDS.index("torsion")).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stretch": -1.0}, "stretch is -1.0"),
        ({"near": float("inf")}, "near is inf"),
        ({"floor": 0.0}, "write floor=0.2"),
    ],
)
def test_network__refuses(change, message):
    with pytest.raises(ConfigError, match=message):
        Network(**change)


def test_internal_coordinates__refuses_impossible_bonds():
    given = ([6, 6], np.zeros((2, 3)), np.zeros((3, 3)), np.zeros(3, bool))
    with pytest.raises(DataError, match="same place"):
        internal_coordinates(*given, [[0, 1]], [[0, 0, 0]], network=Network(near=0.0))
    with pytest.raises(DataError, match="names atom 5"):
        internal_coordinates(*given, [[0, 5]], [[0, 0, 0]])
    with pytest.raises(DataError, match="one shift per bond"):
        internal_coordinates(*given, [[0, 1]], np.zeros((0, 3)))
