"""Labels beside their structures, and levels that must not mix."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from mofal.data import from_atoms, relative_energy, select, validate
from mofal.errors import DataError
from mofal.reference import (
    LabelCache,
    attempts_table,
    check_same_level,
    gather,
    get_reference,
    import_labels,
    label_one,
    merge_labels,
)


@pytest.fixture
def frames():
    return [molecule("H2O"), molecule("HCOOH"), bulk("C", cubic=True)]


@pytest.fixture
def labels(frames, tmp_path):
    cache = LabelCache(tmp_path / "labels")
    for atoms in frames:
        label_one(atoms, "gfn1-xtb", directory=cache)
    reference = get_reference("gfn1-xtb")
    return gather(from_atoms(frames), cache, reference=reference, cache=tmp_path)


def test_gather__beside_their_structures(labels, frames):
    validate(labels, "labels")
    assert list(labels.status.values) == ["converged"] * 3
    reference = get_reference("gfn1-xtb")
    assert labels.attrs["level_hash"] == reference.level_hash
    assert json.loads(labels.attrs["level_of_theory"]) == reference.level_of_theory
    direct = reference.calculate_here(frames[1])
    np.testing.assert_allclose(labels.forces.values[3:8], direct.forces, atol=1e-9)
    assert np.isnan(labels.stress.values[:2]).all()
    assert np.isfinite(labels.stress.values[2]).all()
    assert (relative_energy(labels).values / labels.n_atoms.values > -12).all()


def test_gather__order_is_that_of_the_structures(labels, frames, tmp_path):
    other = gather(
        from_atoms(frames[::-1]),
        LabelCache(tmp_path / "labels"),
        level_hash=labels.attrs["level_hash"],
    )
    np.testing.assert_array_equal(other.energy.values, labels.energy.values[::-1])


def test_gather__failed_label_is_nan_with_its_status(faulty, tmp_path):
    attempt = label_one(molecule("H2O"), f"{faulty}?fault=raise", directory=tmp_path)
    ds = gather(from_atoms([molecule("H2O")]), [attempt])
    assert str(ds.status.values[0]) == "crashed"
    assert "fell over" in str(ds.reason.values[0])
    assert np.isnan(ds.forces.values).all()


def test_gather__missing_label(frames, tmp_path):
    cache = LabelCache(tmp_path)
    label_one(frames[0], "gfn1-xtb", directory=cache)
    with pytest.raises(DataError, match="2 of 3"):
        gather(from_atoms(frames), cache, reference=get_reference("gfn1-xtb"))
    with pytest.raises(DataError, match="which level"):
        gather(from_atoms(frames), cache)


def test_gather__two_levels(frames, tmp_path):
    attempts = [label_one(frames[0], spec, directory=tmp_path) for spec in ("gfn1-xtb", "gfn2-xtb")]
    with pytest.raises(DataError, match="two levels"):
        gather(from_atoms(frames[:1]), attempts)


def test_attempts_table__one_row_per_attempt(faulty, tmp_path):
    cache = LabelCache(tmp_path)
    label_one(molecule("H2O"), f"{faulty}?fault=raise", directory=cache, attempts=2)
    label_one(molecule("CH4"), faulty, directory=cache)
    table = attempts_table(cache)
    assert table.sizes["attempt"] == 3
    assert sorted(map(str, table.status.values)) == ["converged", "crashed", "crashed"]
    assert attempts_table([]).sizes["attempt"] == 0


def test_check_same_level__refuses_to_mix(labels):
    other = labels.assign_attrs(level_hash="other")
    assert check_same_level(labels, labels) == labels.attrs["level_hash"]
    with pytest.raises(DataError, match=r"GFN1-xTB.*allow="):
        check_same_level(labels, other)
    both = [labels.attrs["level_hash"], "other"]
    assert check_same_level(labels, other, allow=both) == both[0]
    with pytest.raises(DataError, match="do not say"):
        check_same_level(labels.drop_attrs(deep=False))


def test_merge_labels__mixed_only_by_name_and_at_one_zero(frames, labels, tmp_path):
    second = get_reference("gfn2-xtb")
    attempts = [label_one(a, second, directory=tmp_path / "two") for a in frames]
    other = gather(from_atoms(frames), attempts, reference=second, cache=tmp_path)
    with pytest.raises(DataError, match="2 levels"):
        merge_labels(labels, other)
    both = [labels.attrs["level_hash"], other.attrs["level_hash"]]
    merged = merge_labels(labels, other, allow=both)
    assert json.loads(merged.attrs["mixed_levels"]) == both
    # Energies relative to the atoms of their own level are what they were.
    expected = np.concatenate([relative_energy(labels), relative_energy(other)])
    np.testing.assert_allclose(relative_energy(merged), expected, atol=1e-9)


def test_import_labels__under_a_stated_level(labels, frames, tmp_path):
    for i, atoms in enumerate(frames):
        span = slice(*[(0, 3), (3, 8), (8, 16)][i])
        atoms.calc = SinglePointCalculator(
            atoms, energy=labels.energy.values[i], forces=labels.forces.values[span]
        )
    write(tmp_path / "old.extxyz", frames)
    theory = {"method": "GFN1-xTB", "program": "another"}
    ds = import_labels(tmp_path / "old.extxyz", level=theory, isolated_atom_energies={"H": -1.0})
    validate(ds, "labels")
    np.testing.assert_allclose(ds.energy.values, labels.energy.values, atol=1e-6)
    assert json.loads(ds.attrs["level_of_theory"]) == theory
    with pytest.raises(DataError, match="2 levels"):
        merge_labels(ds, labels)
    # Stated to be the level of a reference, they join its own.
    same = import_labels(tmp_path / "old.extxyz", level=get_reference("gfn1-xtb"))
    assert merge_labels(same, labels).sizes["structure"] == 6


def test_import_labels__refuses_what_has_no_forces(frames, tmp_path):
    frames[0].calc = SinglePointCalculator(frames[0], energy=1.0, forces=np.zeros((3, 3)))
    write(tmp_path / "half.extxyz", frames[:2])
    with pytest.raises(DataError, match=r"1 of 2.*number 1"):
        import_labels(tmp_path / "half.extxyz", level="PBE")
    with pytest.raises(DataError, match='"method"'):
        import_labels(tmp_path / "half.extxyz", level={"program": "x"})


def test_gather__a_failed_structure_costs_no_other_one(tmp_path):
    """GFN1-xTB knows no nobelium: neither its label nor its isolated atom."""
    reference = get_reference("gfn1-xtb")
    frames = [molecule("H2O"), Atoms("NoF", [[0, 0, 0], [0, 0, 2.0]])]
    attempts = [label_one(atoms, reference, directory=tmp_path) for atoms in frames]
    labels = gather(from_atoms(frames), attempts, reference=reference, cache=tmp_path)
    assert list(labels.status.values) == ["converged", "inconsistent"]
    atoms = json.loads(labels.attrs["isolated_atom_energies"])
    assert atoms == reference.isolated_atom_energies(["H", "O"], cache=tmp_path)
    good = select(labels, 0)
    alone = gather(from_atoms(frames[:1]), attempts, reference=reference, cache=tmp_path)
    assert relative_energy(good).item() == relative_energy(alone).item()
    assert merge_labels(labels, alone).attrs["isolated_atom_energies"] == json.dumps(atoms)
    # What the caller states is kept, whoever failed.
    stated = {"H": -1.0, "O": -2.0, "No": -3.0}
    labels = gather(
        from_atoms(frames), attempts, reference=reference, isolated_atom_energies=stated
    )
    assert json.loads(labels.attrs["isolated_atom_energies"]) == stated


@pytest.mark.parametrize("level", [None, 3, ["PBE"]])
def test_import_labels__level_that_is_none(tmp_path, level):
    with pytest.raises(DataError, match=r"level = .*; expected the name of the method"):
        import_labels(tmp_path / "old.extxyz", level=level)
