from __future__ import annotations

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from mofal.data import from_atoms, select, to_atoms
from mofal.errors import DataError
from tests.data.common import labelled
from tests.helpers import assert_same_bits, chunked


def water(**results):
    atoms = molecule("H2O")
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


def test_from_atoms__one_or_many():
    one, many = from_atoms(water(), system="w"), from_atoms([water(), water()], system=["w", "v"])
    assert_same_bits(select(many, 0), one)
    assert many["system"].values.tolist() == ["w", "v"]


def test_from_atoms__does_not_start_a_calculation():
    atoms = water()
    atoms.calc = EMT()
    ds = from_atoms(atoms, labels=True)
    assert np.isnan(ds["energy"].item())
    assert ds["status"].item() == ""
    assert atoms.calc.results == {}


def test_from_atoms__partial_results():
    forces = np.ones((3, 3))
    forces[1] = np.nan
    ds = from_atoms(
        [water(energy=1.0, forces=np.ones((3, 3))), water(energy=1.0, forces=forces), water()],
        labels=True,
    )
    assert ds["status"].values.tolist() == ["converged", "inconsistent", ""]
    assert np.array_equal(ds["forces"].values[3:6], forces, equal_nan=True)
    assert np.isnan(ds["stress"].values).all()


def test_from_atoms__labels_in_info_and_arrays():
    atoms = water()
    atoms.info["energy"] = -3.5
    atoms.arrays["forces"] = np.full((3, 3), 0.5)
    ds = from_atoms(atoms, labels=True)
    assert ds["energy"].item() == -3.5
    assert ds["forces"].values.tolist() == [[0.5] * 3] * 3
    assert ds["status"].item() == "converged"


def test_from_atoms__full_stress_to_voigt():
    stress = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])
    ds = from_atoms(water(energy=0.0, forces=np.zeros((3, 3)), stress=stress), labels=True)
    assert ds["stress"].values.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_from_atoms__some_have_what_others_lack():
    first, second = water(), water()
    first.info["charge"] = -2
    first.info["n_electrons"] = 12
    second.arrays["parent_atom"] = np.array([4, 5, -1])
    ds = from_atoms([first, second])
    assert ds["charge"].values.tolist() == [-2, 0]
    assert ds["n_electrons"].values.tolist() == [12, -1]
    assert ds["parent_atom"].values.tolist() == [-1, -1, -1, 4, 5, -1]


ERRORS = {
    "none": (lambda a: [], "no structures given"),
    "empty": (lambda a: [a, a[:0]], "structure 1 has no atoms"),
    "nan": (lambda a: [a, _moved(a)], "positions holds 1 values that are NaN .* at atom 3, xyz 0"),
    "levels": (
        lambda a: [_info(a, level_hash="a"), _info(a, level_hash="b")],
        "2 different level_hash cannot be one Dataset",
    ),
    "status": (lambda a: [_info(a, status="good")], "structure 0 has status 'good'; expected one"),
    "charge": (lambda a: [_info(a, charge="two")], "charge=two is no whole number"),
    "widths": (
        lambda a: [_arrays(a, features=np.zeros((3, 2))), _arrays(a, features=np.zeros((3, 4)))],
        "features of structure 1 has shape",
    ),
    "forces": (
        lambda a: [_arrays(a, forces=np.zeros((3, 2)))],
        "the labels of structure 0 have foreign shapes",
    ),
    "hollow": (lambda a: [_info(a, status="converged")], "its status should be 'inconsistent'"),
}


def _moved(atoms):
    out = atoms.copy()
    out.positions[0, 0] = np.nan
    return out


def _info(atoms, **info):
    out = atoms.copy()
    out.info.update(info)
    return out


def _arrays(atoms, **arrays):
    out = atoms.copy()
    out.arrays.update(arrays)
    return out


@pytest.mark.parametrize("case", ERRORS)
def test_from_atoms__errors(case):
    make, message = ERRORS[case]
    with pytest.raises(DataError, match=message):
        from_atoms(make(molecule("H2O")), labels=True)


def test_to_atoms__one_of_many():
    ds = labelled(6)
    for i in (0, 5, -1):
        one, same = to_atoms(ds, i), to_atoms(ds)[i]
        assert one == same
        assert one.info == same.info
        assert one.calc.results.keys() == same.calc.results.keys() >= {"energy", "stress"}
        for key, value in one.calc.results.items():
            assert np.array_equal(value, same.calc.results[key], equal_nan=True)
    with pytest.raises(DataError, match="structure 6 of a Dataset that has 6"):
        to_atoms(ds, 6)


def test_to_atoms__lazy_input():
    ds = labelled(6)
    assert to_atoms(chunked(ds, 4), 2).info == to_atoms(ds, 2).info
    assert [a.info for a in to_atoms(chunked(ds, 4))] == [a.info for a in to_atoms(ds)]


def test_to_atoms__labels_are_results():
    ds = labelled(2)
    ds["energy"][1] = np.nan
    ds["stress"][1] = np.nan
    first, second = to_atoms(ds)
    assert first.get_potential_energy() == ds["energy"].values[0]
    assert first.get_stress().tolist() == ds["stress"].values[0].tolist()
    with pytest.raises(PropertyNotImplementedError):
        second.get_potential_energy()


def test_to_atoms__own_copies():
    ds = labelled(2)
    before = ds.copy(deep=True)
    atoms = to_atoms(ds, 0)
    atoms.positions += 1
    atoms.arrays["region"][:] = 2
    atoms.cell[:] = 0
    assert_same_bits(ds, before)


def test_to_atoms__features_keep_their_model():
    ds = labelled(4).drop_vars("reason")
    values = np.arange(2.0 * ds.sizes["atom"], dtype=np.float32).reshape(-1, 2)
    ds = ds.assign(features=(("atom", "feature"), values)).assign_attrs(model_hash="cafe")
    back = from_atoms(to_atoms(ds), labels=True)
    assert_same_bits(back, ds)
    assert back.attrs["model_hash"] == "cafe"
