"""GFN-xTB labels: physics, convergence, isolated atoms."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from tblite.ase import TBLite

from mofal.errors import ReferenceError
from mofal.reference import get_reference
from mofal.reference.base import refusal, why_not
from mofal.reference.xtb import unpaired_valence


@pytest.fixture(scope="module")
def xtb():
    return get_reference("gfn1-xtb?accuracy=0.01")


@pytest.mark.physics
@pytest.mark.parametrize("name", ["HCOOH", "diamond"])
def test_calculate__forces_are_the_energy_gradient(xtb, name, tmp_path):
    atoms = bulk("C", cubic=True) if name == "diamond" else molecule(name)
    atoms.rattle(0.05, seed=1)
    forces = xtb.calculate(atoms, directory=tmp_path).forces
    step = 1e-3
    for a, c in [(0, 0), (1, 2)]:
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[a, c] += sign * step
            energies.append(xtb.calculate(moved, directory=tmp_path).energy)
        numeric = -(energies[0] - energies[1]) / (2 * step)
        assert forces[a, c] == pytest.approx(numeric, abs=1e-3)


@pytest.mark.physics
def test_calculate__stress_has_the_sign_of_ase(xtb, tmp_path):
    atoms = bulk("C", cubic=True)
    stress = xtb.calculate(atoms, directory=tmp_path).stress
    step, energies = 1e-3, []
    for sign in (1, -1):
        strained = atoms.copy()
        strained.set_cell(atoms.cell * (1 + sign * step), scale_atoms=True)
        energies.append(xtb.calculate(strained, directory=tmp_path).energy)
    # dE/d(strain) along all three axes is the volume times the trace.
    trace = (energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
    assert stress[:3].sum() == pytest.approx(trace, rel=1e-3, abs=1e-4)


def test_calculate__cluster_has_no_stress(xtb, tmp_path):
    attempt = xtb.calculate(molecule("H2O"), directory=tmp_path)
    assert attempt.converged
    assert np.isnan(attempt.stress).all()
    assert attempt.forces.shape == (3, 3)


def test_calculate__not_converged_is_a_result(tmp_path):
    attempt = get_reference("gfn1-xtb?max_iterations=2").calculate(
        molecule("HCOOH"), directory=tmp_path
    )
    assert attempt.status == "not_converged"
    assert "2 cycles" in attempt.reason
    assert np.isnan(attempt.energy)
    assert np.isnan(attempt.forces).all()
    assert "SCF not converged" in attempt.log_tail


def test_calculate__method_is_named(tmp_path):
    water = molecule("H2O")
    energies = [
        get_reference(name).calculate(water, directory=tmp_path).energy
        for name in ("gfn1-xtb", "gfn2-xtb")
    ]
    # Values of the two methods in tblite's own documentation.
    assert energies[0] == pytest.approx(-156.967506, abs=1e-4)
    assert energies[1] == pytest.approx(-137.967776, abs=1e-4)


def test_calculate__same_with_and_without_its_own_process(tmp_path):
    atoms = molecule("CH3OH")
    here = get_reference("gfn1-xtb").calculate(atoms, directory=tmp_path)
    there = get_reference("gfn1-xtb?isolated=true").calculate(atoms, directory=tmp_path)
    assert there.converged
    assert there.energy == pytest.approx(here.energy, abs=1e-9)
    np.testing.assert_allclose(there.forces, here.forces, atol=1e-9)
    assert list(tmp_path.glob("attempt-*")) == []


def test_calculate__leaves_the_structure_alone(xtb, tmp_path):
    atoms = molecule("H2O")
    atoms.set_initial_charges([-0.8, 0.4, 0.4])  # partial charges of a neutral molecule
    before = atoms.positions.copy()
    attempt = xtb.calculate(atoms, directory=tmp_path)
    np.testing.assert_array_equal(atoms.positions, before)
    assert atoms.calc is None
    atoms.set_initial_charges(None)
    assert attempt.energy == xtb.calculate(atoms, directory=tmp_path).energy


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda a: a.positions.__setitem__((0, 0), np.nan), "not finite"),
        (lambda a: a.info.update(charge=10), "0 electrons"),
        (lambda a: a.__delitem__(slice(None)), "no atoms"),
        (lambda a: a.set_pbc(True), "no cell vector"),
        (lambda a: a.positions.__setitem__(1, a.positions[0] + 0.01), "atoms 0 and 1 are 0.02 Å"),
    ],
)
def test_calculate__what_cannot_be_labelled(xtb, tmp_path, break_it, words):
    atoms = molecule("H2O")
    break_it(atoms)
    attempt = xtb.calculate(atoms, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert words in attempt.reason


def test_calculate__too_close_over_the_boundary(xtb, tmp_path):
    atoms = bulk("C", cubic=True)
    atoms.positions[0], atoms.positions[1] = [0.0, 0, 0], [3.5, 0, 0]
    attempt = xtb.calculate(atoms, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "apart" in attempt.reason
    slab = atoms.copy()
    slab.pbc = [False, True, True]
    slab.positions[1] = [5.0, 0.0, 0.0]
    assert why_not(slab) == ""


@pytest.mark.parametrize("where", ["here", "in a process"])
def test_calculate__periodic_along_some_directions_only(tmp_path, where):
    reference = get_reference("gfn1-xtb" if where == "here" else "gfn1-xtb?isolated=true")
    chain = molecule("C2H4")
    chain.set_cell([8.0, 9.0, 10.0])
    chain.pbc = [True, False, False]
    attempt = reference.calculate(chain, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "some directions only; expected all or none" in attempt.reason
    # Another calculator may well know them: that is for whoever names it to say.
    other = get_reference("ase:ase.calculators.emt:EMT").calculate(chain, directory=tmp_path)
    assert other.converged


def test_isolated_atom_energies__kept_on_disk(xtb, tmp_path):
    first = xtb.isolated_atom_energies(["O", "H", "Zr", "Hf"], cache=tmp_path)
    assert list(first) == ["H", "O", "Zr", "Hf"]
    file = next(tmp_path.glob("*.json"))
    assert xtb.level_hash in file.name
    file.write_text(file.read_text().replace(str(first["H"]), "-1.25"))
    assert xtb.isolated_atom_energies(["H"], cache=tmp_path) == {"H": -1.25}


def test_isolated_atom_energies__damaged_file_is_made_anew(xtb, tmp_path):
    good = xtb.isolated_atom_energies(["H"], cache=tmp_path)
    next(tmp_path.glob("*.json")).write_text('{"H": ')
    with pytest.warns(UserWarning, match="damaged"):
        assert xtb.isolated_atom_energies(["H"], cache=tmp_path) == good


def test_isolated_atom_energies__no_element(xtb, tmp_path):
    with pytest.raises(ReferenceError, match="'Xx'"):
        xtb.isolated_atom_energies(["Xx"], cache=tmp_path)


def test_isolated_atom_energies__stated_by_the_user(tmp_path):
    spec = 'gfn1-xtb?isolated_atom_energies={"H":-3.5}'
    assert get_reference(spec).isolated_atom_energies(["H"], cache=tmp_path) == {"H": -3.5}
    # They are no part of the level, but do not mix with those that are calculated.
    assert get_reference("gfn1-xtb").isolated_atom_energies(["H"], cache=tmp_path)["H"] < -10


@pytest.mark.parametrize(
    ("symbols", "n_unpaired", "expected"),
    [
        ("Gd2", 14, 0),  # 4f7 each, in the core
        ("SmCu", 6, 1),  # 4f5 and a d9
        ("Sm", 1, 0),
        ("Sm2", 2, 0),
        ("Eu", 0, 0),
        ("EuCu", 1, 1),
        ("Cu2", 2, 2),
        ("LaLu", 0, 0),
    ],
)
def test_unpaired_valence__f_electrons_are_in_the_core(symbols, n_unpaired, expected) -> None:
    assert unpaired_valence(Atoms(symbols).numbers, n_unpaired) == expected


@pytest.mark.parametrize(("metal", "n_unpaired"), [("Gd", 7), ("Sm", 5), ("Sm", 1), ("Eu", 6)])
def test_calculate__spin_of_a_lanthanide(xtb, tmp_path, metal, n_unpaired) -> None:
    d = 2.4
    ring = [[0, 0, 0], [d, 0, 0], [-d / 2, 0.866 * d, 0], [-d / 2, -0.866 * d, 0]]
    atoms = Atoms(f"{metal}Cl3", ring, info={"n_unpaired": n_unpaired})
    assert refusal(xtb, atoms) == ""
    label = xtb.calculate(atoms, directory=tmp_path)
    assert label.converged, label.reason
    assert label.n_unpaired == n_unpaired
    # tblite itself is given a closed shell.
    atoms.info.clear()
    atoms.calc = TBLite(method="GFN1-xTB", multiplicity=1, verbosity=0)
    assert label.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_refusal__f_electrons_against_d_are_no_number(xtb) -> None:
    """Gd has 7 in its core, parallel; 4 in all says nothing of those that xTB has."""
    assert "give 7 and more, or 1" in refusal(
        xtb, Atoms("GdCu2", np.eye(3) * 3, info={"n_unpaired": 4})
    )


def test_refusal__elements_beyond_the_method(xtb, tmp_path) -> None:
    atoms = Atoms("UO2", [[0, 0, 0], [0, 0, 1.8], [0, 0, -1.8]])
    assert "no parameters for U" in refusal(xtb, atoms)
    assert xtb.calculate(atoms, directory=tmp_path).status == "inconsistent"
