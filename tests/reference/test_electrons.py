"""Charge and spin reach every reference, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from mofal.data import from_atoms
from mofal.errors import ReferenceError
from mofal.reference import LabelCache, get_reference, label_one
from mofal.reference.base import begin, refusal, why_not
from mofal.reference.cache import decode, encode

TBLITE = "ase:tblite.ase:TBLite?method=GFN1-xTB&verbosity=0"
EMT = "ase:ase.calculators.emt:EMT"


def triplet() -> Atoms:
    atoms = Atoms("O2", [[0, 0, 0.622978], [0, 0, -0.622978]])
    atoms.set_initial_magnetic_moments([1, 1])
    return atoms


def ammonium() -> Atoms:
    d = 0.59
    atoms = Atoms("NH4", [[0, 0, 0], [d, d, d], [-d, -d, d], [-d, d, -d], [d, -d, -d]])
    atoms.set_initial_charges([-0.2, 0.3, 0.3, 0.3, 0.3])
    return atoms


@pytest.mark.parametrize(
    "form", ["gfn1-xtb", "gfn1-xtb?isolated=true", TBLITE, f"{TBLITE}&electrons=initial"]
)
def test_calculate__triplet_and_cation(form: str, tmp_path: Path) -> None:
    # From tblite's own command line with --spin 2 and --charge 1.
    reference = get_reference(form)
    oxygen = reference.calculate(triplet(), directory=tmp_path)
    assert oxygen.energy == pytest.approx(-248.0431, abs=1e-3)
    assert (oxygen.charge, oxygen.n_unpaired) == (0, 2)
    ion = reference.calculate(ammonium(), directory=tmp_path)
    assert ion.energy == pytest.approx(-133.5332, abs=1e-3)
    assert (ion.charge, ion.n_unpaired) == (1, 0)
    # What was set for them does not stay for the next one.
    plain = reference.calculate(Atoms("O2", triplet().positions), directory=tmp_path)
    assert plain.energy == pytest.approx(-248.1154, abs=1e-3)
    assert refusal(reference, triplet()) == ""


def test_label_one__kept_with_the_label(tmp_path: Path) -> None:
    ds = from_atoms(triplet())
    made = label_one(ds, "gfn1-xtb", directory=tmp_path)
    (kept,) = LabelCache(tmp_path).records()
    assert (kept.charge, kept.n_unpaired, kept.energy) == (0, 2, made.energy)
    assert kept.structure_id == str(ds.structure_id.values[0])
    closed = label_one(Atoms("O2", triplet().positions), "gfn1-xtb", directory=tmp_path)
    assert closed.energy < made.energy - 0.05
    # A record from before there was such a thing.
    assert decode(encode(closed)).n_unpaired == 0


def test_level_and_identity__neutral_closed_shells_are_what_they_were() -> None:
    assert get_reference("gfn1-xtb").level_hash == "46f2f8ea50bbe40ea11b"
    water = begin(get_reference("gfn1-xtb"), molecule("H2O"))
    assert water.structure_id == "be11d03c500838a1166e"


@pytest.mark.parametrize("atoms", [triplet(), ammonium()], ids=["spin", "charge"])
def test_calculate__calculator_that_knows_neither(atoms: Atoms, tmp_path: Path) -> None:
    reference = get_reference(EMT)
    attempt = reference.calculate(atoms, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "EMT has no parameter for it" in attempt.reason
    assert "electrons=initial" in attempt.reason
    assert refusal(reference, atoms) == attempt.reason
    assert get_reference(f"{EMT}?electrons=ignore").calculate(atoms, directory=tmp_path).converged
    assert get_reference(f"{EMT}?electrons=ignore").level_hash == reference.level_hash
    with pytest.raises(ReferenceError, match="electrons = 'yes'"):
        get_reference(f"{EMT}?electrons=yes")


def test_calculate__level_that_fixes_another_charge(tmp_path: Path) -> None:
    attempt = get_reference(f"{TBLITE}&charge=-1").calculate(ammonium(), directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert "asks for charge=1, and the reference fixes charge=-1" in attempt.reason


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"spin": 1}, "spin=1 means 0 unpaired electrons"),
        ({"n_unpaired": 1}, "contradict 10 electrons"),
        ({"charge": 1, "total_charge": 2}, "stated twice"),
        ({"charge": 10}, "0 electrons"),
    ],
)
def test_calculate__what_cannot_be(info: dict, words: str, tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info.update(info)
    attempt = get_reference("gfn1-xtb").calculate(atoms, directory=tmp_path)
    assert attempt.status == "inconsistent"
    assert words in attempt.reason


def test_why_not__charged_lattice_and_references_of_others() -> None:
    cell = molecule("H2O", vacuum=3.0)
    cell.pbc = True
    cell.info["charge"] = 2
    assert "charged lattice" in why_not(cell, electrons=True)
    # A reference that does not say that it takes them gets none.
    assert "takes no spin" in why_not(triplet())
    assert "carries the charge 1" in why_not(ammonium())


@pytest.mark.slow
def test_gpaw__moment_and_charge(tmp_path: Path) -> None:
    reference = get_reference("gpaw:lcao?h=0.25&max_retries=0")
    gas = reference.calculate(triplet(), directory=tmp_path)
    assert gas.converged, gas.log_tail
    # PBE's triplet below two spin-paired reference atoms; the singlet does not even converge.
    assert gas.energy == pytest.approx(-8.3, abs=0.3)
    ion = reference.calculate(ammonium(), directory=tmp_path)
    neutral = reference.calculate(molecule("NH3"), directory=tmp_path)
    # Proton affinity of ammonia, 8.8 to 9.0 eV, from a spin-paired H (12.5 eV with PBE).
    affinity = neutral.energy + 12.5 - ion.energy
    assert affinity == pytest.approx(8.9, abs=0.7)
    odd = molecule("OH")
    odd.set_initial_magnetic_moments(None)
    assert "n_unpaired=1" in refusal(reference, odd)
    odd.info["multiplicity"] = 2
    assert refusal(reference, odd) == ""
    assert reference.cost(odd).memory_bytes > reference.cost(molecule("H2O")).memory_bytes
    assert np.isfinite(gas.forces).all()
