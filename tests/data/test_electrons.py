"""Charge and unpaired electrons, however a file states them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write as write_with_ase

from mofal.data import concat, from_atoms, read, structure_ids, to_atoms, write
from mofal.data.electrons import electronic_state
from mofal.errors import DataError, StructureError

NH4 = [
    [0, 0, 0],
    [0.59, 0.59, 0.59],
    [-0.59, -0.59, 0.59],
    [-0.59, 0.59, -0.59],
    [0.59, -0.59, -0.59],
]


def oxygen(**info: Any) -> Atoms:
    atoms = Atoms("O2", [[0, 0, 0], [0, 0, 1.2]])
    atoms.info.update(info)
    return atoms


def moments(*values: float) -> Atoms:
    atoms = oxygen()
    atoms.set_initial_magnetic_moments(values)
    return atoms


def charges(*values: float) -> Atoms:
    atoms = Atoms("NH4", NH4)
    atoms.set_initial_charges(values)
    return atoms


STATED = {
    "nothing": (oxygen(), (0, 0)),
    "zeros": (moments(0, 0), (0, 0)),
    "moments": (moments(1, 1), (0, 2)),
    "moments, the other way round": (moments(-1, -1), (0, 2)),
    "moments of a calculation": (moments(0.93, 0.93), (0, 2)),
    "multiplicity": (oxygen(multiplicity=3), (0, 2)),
    "multiplicity, text": (oxygen(multiplicity="3"), (0, 2)),
    "multiplicity and moments": (moments(1, 1), (0, 2)),
    "singlet": (oxygen(multiplicity=1), (0, 0)),
    "uhf": (oxygen(uhf=2, charge=0), (0, 2)),
    "capitals": (oxygen(Charge=-1, n_unpaired=1), (-1, 1)),
    "partial charges": (charges(-0.2, 0.3, 0.3, 0.3, 0.3), (1, 0)),
    "partial charges, rounded": (charges(-0.21, 0.3, 0.3, 0.3, 0.3), (1, 0)),
    "partial charges of a neutral": (charges(-0.4, 0.1, 0.1, 0.1, 0.1), (0, 0)),
    "total_charge": (oxygen(total_charge=-1.0), (-1, 0)),
    # S, 2S or 2S + 1: the number of electrons leaves one of them.
    "spin of a doublet": (oxygen(charge=-1, spin=1), (-1, 1)),
    "spin of a doublet as its multiplicity": (oxygen(charge=-1, spin=2), (-1, 1)),
    "spin of one half": (oxygen(charge=-1, spin=0.5), (-1, 1)),
    "no spin": (oxygen(spin=0), (0, 0)),
    "spin beside what it means": (oxygen(spin=1, multiplicity=3), (0, 2)),
    "spin beside what it means, 2S": (oxygen(spin=2, multiplicity=3), (0, 2)),
    "spin of OMol": (oxygen(spin=3, n_unpaired=2), (0, 2)),
}


@pytest.mark.parametrize("case", STATED)
def test_electronic_state__as_stated(case: str) -> None:
    atoms, expected = STATED[case]
    assert electronic_state(atoms) == expected
    ds = from_atoms(atoms)
    found = [int(ds[v][0]) if v in ds else 0 for v in ("charge", "n_unpaired")]
    assert tuple(found) == expected
    # The identity of what is neither charged nor open-shell is what it was without the statement.
    plain = from_atoms(Atoms(atoms.symbols, atoms.positions))
    assert (ds.structure_id.values[0] == plain.structure_id.values[0]) == (expected == (0, 0))
    assert structure_ids(ds).tolist() == ds.structure_id.values.tolist()


CONTRADICTIONS = {
    "two charges": (oxygen(charge=0, total_charge=1), "charge=0 and total_charge=1"),
    "charge and charges": (charges(0.2, 0.2, 0.2, 0.2, 0.2), None),
    "two spins": (oxygen(multiplicity=3, n_unpaired=0), "n_unpaired=0 and multiplicity=3"),
    "parity": (oxygen(n_unpaired=1), "1 unpaired electrons contradict 16 electrons"),
    "parity of an ion": (oxygen(charge=1, multiplicity=3), "contradict 15 electrons"),
    "odd singlet": (oxygen(charge=1, multiplicity=1), "odd number of electrons, 15"),
    "more than there are": (Atoms("H", info={"n_unpaired": 3}), "contradict 1 electrons"),
    "no multiplicity": (oxygen(multiplicity=0), "multiplicity=0 is no multiplicity"),
    "half a charge": (oxygen(charge=0.5), "charge=0.5 is no whole number"),
    "a word": (oxygen(charge="plus"), "charge=plus is no whole number"),
    "not whole": (moments(0.5, 0.1), "add up to 0.6, which is no whole number"),
    "charges not whole": (charges(0.1, 0.1, 0.1, 0, 0), "add up to 0.3"),
    "antiferromagnetic": (moments(1, -1), "both signs"),
    "ferrimagnetic": (moments(3, -1), "both signs"),
    "not a number": (charges(np.nan, 0, 0, 0, 0), "not a number"),
    "ambiguous": (oxygen(spin=1), "spin=1 means 0 unpaired electrons .* or 2 unpaired"),
    "ambiguous 2": (oxygen(spin=2), "2 unpaired electrons .* or 4 unpaired"),
    "spin of another parity": (oxygen(spin=0.5), "contradicts 16 electrons"),
    "negative spin": (oxygen(spin=-1), "spin=-1 is no spin"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_electronic_state__contradictions(case: str) -> None:
    atoms, words = CONTRADICTIONS[case]
    if words is None:
        atoms.info["charge"] = 0
        words = "charge=0 and initial_charges that add up to 1"
    with pytest.raises(DataError, match=words) as error:
        from_atoms([oxygen(), atoms])
    assert "structure 1: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_electronic_state__vectors() -> None:
    atoms = oxygen()
    atoms.set_initial_magnetic_moments([[0, 0, 1], [0, 0, 1]])
    with pytest.raises(DataError, match="vectors"):
        electronic_state(atoms)


def test_electronic_state__results_of_a_calculation(tmp_path: Any) -> None:
    """ASE's reader makes results of `magmom` and `charges`; they count where nothing else does."""
    atoms = oxygen()
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, magmom=1.98)
    assert electronic_state(atoms) == (0, 2)
    write_with_ase(tmp_path / "a.extxyz", atoms)
    assert read(tmp_path / "a.extxyz").n_unpaired.values.tolist() == [2]
    atoms.info["multiplicity"] = 1
    assert electronic_state(atoms) == (0, 0)
    ion = Atoms("NH4", NH4)
    ion.calc = SinglePointCalculator(ion, charges=[-0.2, 0.3, 0.3, 0.3, 0.3])
    assert electronic_state(ion) == (1, 0)
    ion.calc = SinglePointCalculator(
        ion, charges=[-0.2, 0.3, 0.3, 0.3, 0.0]
    )  # of nobody knows what
    assert electronic_state(ion) == (0, 0)


def test_read__file_as_ase_writes_it(tmp_path: Any) -> None:
    triplet = molecule("O2")  # ASE knows that it is one
    write_with_ase(tmp_path / "a.extxyz", [triplet, molecule("H2O")])
    ds = read(tmp_path / "a.extxyz")
    assert ds.n_unpaired.values.tolist() == [2, 0]
    again = read(write(ds, tmp_path / "b.extxyz"))
    assert again.n_unpaired.values.tolist() == [2, 0]
    assert again.structure_id.values.tolist() == ds.structure_id.values.tolist()
    back = from_atoms(to_atoms(again))
    assert back.structure_id.values.tolist() == ds.structure_id.values.tolist()
    joined = concat([from_atoms(molecule("CH4")), ds])
    assert joined.n_unpaired.values.tolist() == [0, 2, 0]
    (tmp_path / "c.extxyz").write_text(
        "1\nProperties=species:S:1:pos:R:3 spin=1 charge=1\nO 0 0 0\n"
    )
    assert read(tmp_path / "c.extxyz").n_unpaired.values.tolist() == [1]
    (tmp_path / "d.extxyz").write_text("1\nProperties=species:S:1:pos:R:3 spin=1\nO 0 0 0\n")
    with pytest.raises(StructureError, match=r"d\.extxyz: structure 0: spin=1 means"):
        read(tmp_path / "d.extxyz")
