"""Bonds under any periodicity, against a plain search over images."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mofal.data import from_atoms
from mofal.errors import StructureError
from mofal.frameworks import build, find_bonds
from mofal.frameworks.bonds import IS_METAL, bond_cutoffs, bonds_of, complete_cell


def plain_bonds(z, x, cell, pbc, reach=3):
    """All pairs, all images: the reference. Hydrogens bond to one atom only."""
    axes = [range(-reach, reach + 1) if p else (0,) for p in pbc]
    found = {}
    for shift in np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3):
        vector = x[None] + shift @ cell - x[:, None]
        d = np.linalg.norm(vector, axis=2)
        for i, j in np.argwhere((d < bond_cutoffs()[z[:, None], z[None]]) & (d > 1e-6)):
            found[(int(i), int(j), *shift.tolist())] = d[i, j]
    # Zr...C is no bond where an O of that C is on the same Zr.
    onward = {}
    for a, b, *s in found:
        onward.setdefault(a, []).append((b, np.array(s)))
    for a, b, *s in list(found):
        if z[a] == 40 and z[b] == 6:
            via = any(
                z[o] == 8
                and any(m == a and np.array_equal(back, -(t + s)) for m, back in onward[o])
                for o, t in onward[b]
            )
            if via:
                found.pop((a, b, *s))
                found.pop((b, a, *(-np.array(s)).tolist()))
    bridges = (z == 5) | IS_METAL[z]
    lost = set()
    for i in np.flatnonzero(z == 1):
        mine = sorted((d, key) for key, d in found.items() if key[0] == i)
        for _, (a, b, *s) in mine[1:]:
            if not (bridges[b] and bridges[mine[0][1][1]]):
                lost |= {(a, b, *s), (b, a, *(-np.array(s)).tolist())}
    return set(found) - lost


def as_set(bonds):
    return set(
        zip(bonds.i.tolist(), bonds.j.tolist(), *(bonds.shift[:, k].tolist() for k in range(3)))
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_bonds_of__equals_plain_search(seed, pbc):
    rng = np.random.default_rng(seed)
    pbc = np.array(pbc, bool)
    cell = np.diag([2.6, 3.4, 3.0]) + rng.uniform(-0.6, 0.6, (3, 3))
    n = 5
    z = rng.choice([1, 6, 8, 40], n)
    # Atoms may lie anywhere, also far outside the cell.
    x = (rng.random((n, 3)) + rng.integers(-2, 3, (n, 3)) * pbc) @ cell
    lattice = complete_cell(x, cell, pbc)
    bonds = bonds_of(z, x, cell, pbc)
    assert as_set(bonds) == plain_bonds(z, x, lattice, pbc, reach=8)
    forward = bonds.kept(bonds.forward)
    assert 2 * len(forward.i) == len(bonds.i)


def test_find_bonds__atom_bonds_to_its_own_image():
    chain = Atoms("C", positions=[[7.9, 0.2, 0.1]], cell=[1.4, 9, 9], pbc=True)
    bonds = find_bonds(from_atoms(chain, system="chain"))
    assert bonds.sizes["bond"] == 1
    assert bonds["bond_atom"].values.tolist() == [[0, 0]]
    assert bonds["bond_shift"].values.tolist() == [[1, 0, 0]]
    assert bonds["bond_length"].values == pytest.approx([1.4])


def test_find_bonds__vectors_follow_the_convention():
    ds = build("S_pr", cell="primitive")
    bonds = find_bonds(ds)
    x, cell = ds["positions"].values, ds["cell"].values[0]
    pair = bonds["bond_atom"].values
    vector = x[pair[:, 1]] + bonds["bond_shift"].values @ cell - x[pair[:, 0]]
    assert np.allclose(np.linalg.norm(vector, axis=1), bonds["bond_length"].values)
    assert bonds.sizes["bond"] == 148


@pytest.mark.parametrize(
    ("name", "n_bonds"), [("H2O", 2), ("C6H6", 12), ("CH3OH", 5), ("C2H2", 3), ("CO2", 2)]
)
def test_find_bonds__molecules_without_a_cell(name, n_bonds):
    assert find_bonds(from_atoms(molecule(name), system=name)).sizes["bond"] == n_bonds


def test_bonds_of__hydrogen_has_one_bond():
    # A hydrogen bond squeezed to 1.2 Å: the nearer oxygen has it.
    z = np.array([8, 1, 8])
    x = np.array([[0.0, 0, 0], [0, 0, 1.0], [0, 0, 2.2]])
    bonds = bonds_of(z, x, np.zeros((3, 3)), np.zeros(3, bool))
    assert as_set(bonds) == {(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)}
    # Between two boron atoms it keeps both (diborane).
    boron = bonds_of(np.array([5, 1, 5]), x * 1.2, np.zeros((3, 3)), np.zeros(3, bool))
    assert len(boron.i) == 4


def test_bonds_of__carboxylate_carbon_is_not_on_the_metal():
    ds = build("S_pr")
    z = ds["numbers"].values
    pair = find_bonds(ds)["bond_atom"].values
    elements = {tuple(sorted(p)) for p in z[pair].tolist()}
    assert (6, 40) not in elements
    assert (40, 40) not in elements
    # Each Zr holds eight O, also when the frame shakes as at 600 K.
    rng = np.random.default_rng(0)
    x = ds["positions"].values + rng.normal(0, 0.06, (len(z), 3))
    shaken = bonds_of(z, x, ds["cell"].values[0], np.ones(3, bool))
    still = bonds_of(z, ds["positions"].values, ds["cell"].values[0], np.ones(3, bool))
    assert as_set(shaken) == as_set(still)


@pytest.mark.parametrize(
    ("cell", "pbc", "message"),
    [
        (np.zeros((3, 3)), (1, 1, 1), "cell vector 0 is zero"),
        (np.diag([5.0, 5, 0]), (1, 1, 1), "cell vector 2 is zero"),
        ([[5.0, 0, 0], [0, 5, 0], [5, 5, 0]], (1, 1, 1), "no volume"),
        ([[5.0, 0, 0], [10, 0, 0], [0, 0, 1]], (1, 1, 0), "no volume"),
    ],
)
def test_bonds_of__refuses_impossible_cells(cell, pbc, message):
    with pytest.raises(StructureError, match=message):
        bonds_of(np.array([6]), np.zeros((1, 3)), np.array(cell, float), np.array(pbc, bool))


def test_find_bonds__refuses_what_is_no_number():
    ds = build("S_pr", cell="primitive")
    bad = ds.copy(deep=True)
    bad["positions"].values[7, 1] = np.nan
    with pytest.raises(StructureError, match=r"position of atom 7 \(O\) is not a number"):
        find_bonds(bad)
    bad = ds.copy(deep=True)
    bad["cell"].values[0, 0, 0] = np.inf
    with pytest.raises(StructureError, match="cell holds a value"):
        find_bonds(bad)
    bad = ds.copy(deep=True)
    bad["numbers"].values[3] = 0
    with pytest.raises(StructureError, match="atom 3 has atomic number 0"):
        find_bonds(bad)


def test_bonds_of__chelating_carboxylate():
    # A chelate on Zr: C at 2.65 Å, closer than a Zr-C bond may be long; the O hold the metal.
    z = np.array([40, 8, 8, 6, 1])
    x = np.array([[0, 0, 0], [1.95, 1.08, 0], [1.95, -1.08, 0], [2.62, 0, 0], [3.72, 0, 0]])
    bonds = bonds_of(z, x, np.zeros((3, 3)), np.zeros(3, bool))
    assert bond_cutoffs()[40, 6] > 2.62
    assert bonds.degree.tolist() == [2, 2, 2, 3, 1]
