from __future__ import annotations

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, example, given, settings

from mofal.data import concat, from_atoms, make_structures, read, select, to_atoms, write
from mofal.data.text import _quoted
from mofal.errors import DataError, StoreError, StructureError
from tests.data.common import AWKWARD_TEXT, datasets, labelled, texts
from tests.helpers import assert_same_bits, chunked

many = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@many
@given(ds=datasets())
def test_write__reads_back_bit_for_bit(tmp_path_factory, ds):
    path = write(ds, tmp_path_factory.mktemp("xyz") / "a.extxyz")
    back = read(path)
    assert_same_bits(back, ds)
    assert back.attrs == ds.attrs


@many
@given(ds=datasets())
def test_to_atoms__and_back_bit_for_bit(ds):
    back = from_atoms(to_atoms(ds), labels="status" in ds)
    # Texts that are empty in all structures are not in `info`: nobody can tell that they were.
    unsaid = [n for n in ds.variables if n not in back and not any(map(str, ds[n].values))]
    assert_same_bits(back, ds.drop_vars(unsaid))
    assert set(unsaid) <= {"split", "reason"}
    assert back.attrs == ds.attrs


def test_to_atoms__survives_the_writer_of_ase(tmp_path):
    """An empty text makes that writer lose the key that follows it."""
    ds = labelled(4)
    for name in ("system", "parent", "reason"):
        ds[name] = ("structure", ["S_pr", "", "a b", ""])
    ase.io.write(tmp_path / "a.extxyz", to_atoms(ds))
    back = ase.io.read(tmp_path / "a.extxyz", ":")
    for k, (frame, expected) in enumerate(zip(back, to_atoms(ds), strict=True)):
        assert frame.info.keys() == expected.info.keys()
        for name in ("system", "parent", "reason"):
            assert frame.info.get(name, "") == ds[name].values[k]


@many
@given(ds=datasets(labels=True))
def test_write__ase_alone_sees_labels_as_results(tmp_path_factory, ds):
    """The trap since ASE 3.23: energy and forces leave info and arrays for a calculator."""
    path = write(ds, tmp_path_factory.mktemp("xyz") / "a.extxyz")
    frames = ase.io.read(path, ":")
    stop = 0
    for i, frame in enumerate(frames):
        start, stop = stop, stop + len(frame)
        forces = ds["forces"].values[start:stop]
        results = frame.calc.results if frame.calc is not None else {}
        assert not {"energy", "forces", "stress"} & {*frame.info, *frame.arrays}
        assert np.array_equal(results.get("energy", np.nan), ds["energy"].values[i], equal_nan=True)
        if np.isnan(forces).all():
            assert "forces" not in results
        else:
            assert np.array_equal(frame.get_forces(), forces, equal_nan=True)
        if not np.isnan(ds["stress"].values[i]).all():
            assert np.array_equal(results["stress"], ds["stress"].values[i], equal_nan=True)
        assert frame.info["reason"] == str(ds["reason"].values[i])
        assert np.array_equal(frame.positions, ds["positions"].values[start:stop])
        assert np.array_equal(frame.pbc, ds["pbc"].values[i])


@many
@given(text=texts)
@example(text='" \\')
def test_quoted__ase_gives_it_back(text):
    from ase.io.extxyz import key_val_str_to_dict

    line = f"before=1 key={_quoted(text)} after=2"
    assert line.isascii()
    assert line.isprintable()
    assert key_val_str_to_dict(line) == {"before": 1, "key": text, "after": 2}


def test_quoted__plain_text_stays_plain():
    assert _quoted("UiO-66") == '"UiO-66"'
    assert _quoted('{"method": "GFN1-xTB"}') == '"{\\"method\\": \\"GFN1-xTB\\"}"'


@pytest.mark.parametrize("text", AWKWARD_TEXT)
def test_write__awkward_text(tmp_path, text):
    ds = make_structures([1], np.zeros((1, 3)), n_atoms=[1], system=text, parent=text)
    assert_same_bits(read(write(ds, tmp_path / "a.xyz")), ds)


def test_write__several_blocks_of_structures(tmp_path, monkeypatch):
    ds = labelled(23)
    monkeypatch.setattr("mofal.data.text._ATOMS_AT_ONCE", 20)
    assert_same_bits(read(write(ds, tmp_path / "a.extxyz")), ds)
    lazy = write(chunked(ds, 7), tmp_path / "b.extxyz")
    assert lazy.read_bytes() == (tmp_path / "a.extxyz").read_bytes()


def test_write__leaves_a_lazy_dataset_lazy(tmp_path):
    ds = chunked(labelled(5), 7)
    write(ds, tmp_path / "a.extxyz")
    assert ds["positions"].chunks is not None


def test_read__labels_and_structures_without(tmp_path):
    labels = labelled(3)
    bare = labels[["numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"]]
    bare = bare.assign({k: labels[k] for k in ("structure_id", "system", "parent")})
    both = concat([labels, bare.assign_attrs(level_hash=labels.attrs["level_hash"])])
    assert both["status"].values.tolist() == ["converged"] * 3 + [""] * 3
    assert_same_bits(read(write(both, tmp_path / "a.extxyz")), both)


def test_read__labels_that_all_failed(tmp_path):
    ds = select(labelled(4), [0, 1])
    ds["energy"][:] = np.nan
    ds["forces"][:] = np.nan
    ds["stress"][:] = np.nan
    ds["status"] = ("structure", np.array(["crashed", "timed_out"], ds["status"].dtype))
    assert_same_bits(read(write(ds, tmp_path / "a.extxyz")), ds)


def test_read__file_of_ase(tmp_path):
    water = molecule("H2O")
    water.calc = SinglePointCalculator(
        water, energy=-1.25, forces=np.arange(9.0).reshape(3, 3), stress=np.arange(6.0)
    )
    water.info["charge"] = 0
    ase.io.write(tmp_path / "water.extxyz", [water, water])
    ds = read(tmp_path / "water.extxyz")
    assert ds["energy"].values.tolist() == [-1.25, -1.25]
    assert ds["forces"].values[:3].tolist() == water.get_forces().tolist()
    assert ds["stress"].values[1].tolist() == list(range(6))
    assert ds["status"].values.tolist() == ["converged"] * 2
    assert ds["system"].values.tolist() == ["water"] * 2
    assert ds["charge"].values.tolist() == [0, 0]
    assert read(tmp_path / "water.extxyz", system="x")["system"].values.tolist() == ["x"] * 2


@pytest.mark.parametrize("name", ["at@0.xyz", "100%d.xyz", "with space [1].xyz", "ü.extxyz"])
def test_write__odd_file_names(tmp_path, name):
    ds = labelled(2)
    assert_same_bits(read(write(ds, tmp_path / name)), ds)


def test_write__other_formats(tmp_path):
    cell = Atoms("NaCl", positions=[[0, 0, 0], [2.5, 2.5, 2.5]], cell=[5, 5, 5], pbc=True)
    ds = from_atoms(cell, system="salt")
    back = read(write(ds, tmp_path / "salt.cif"))
    assert back["numbers"].values.tolist() == [11, 17]
    assert back["system"].values.tolist() == ["salt"]
    assert np.allclose(back["positions"], ds["positions"], atol=1e-6)


def test_write__unknown_ending(tmp_path):
    with pytest.raises(DataError, match="has no ending of a format"):
        write(labelled(1), tmp_path / "a.nonsense")
    assert list(tmp_path.iterdir()) == []


def test_write__format_that_cannot_hold_it(tmp_path):
    with pytest.raises(DataError, match=r"write extended XYZ instead: a\.extxyz"):
        write(labelled(3), tmp_path / "a.vasp")
    assert list(tmp_path.iterdir()) == []


def test_write__integer_too_large(tmp_path):
    ds = labelled(2)
    ds["parent_atom"][3] = 2**31
    with pytest.raises(DataError, match="parent_atom holds 2147483648"):
        write(ds, tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


def test_write__into_a_file_as_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="could not be written"):
        write(labelled(1), tmp_path / "file" / "a.xyz")


FRAME = "2\nProperties=species:S:1:pos:R:3 {}\nH 0 0 0\nO 0 0 1\n"
BROKEN = {
    "missing": (None, "does not exist"),
    "empty": ("", "is empty"),
    "noise": ("hello\n", "cannot be read as a structure"),
    "truncated": ("3\n\nH 0 0 0\n", "cannot be read as a structure"),
    "nan": ("1\n\nH 0 nan 0\n", "the position of atom 0 is not a number"),
    "infinite": ("2\n\nH 0 0 0\nH 0 inf 0\n", "the position of atom 1 is not a number"),
    "second frame": ("1\n\nH 0 0 0\n1\n\nH 0 nan 0\n", "structure 1: the position of atom 0"),
    "no atoms": ("0\n\n", "has no atoms"),
    "unknown element": ("1\n\nX 0 0 0\n", "atom 0 is of an unknown element"),
    "cell": (FRAME.format('Lattice="1 0 0 0 nan 0 0 0 1"'), "the cell holds a value"),
    "status": (FRAME.format("energy=1.0 status=fine"), "status 'fine'; expected one of"),
    "charge": (FRAME.format("charge=0.5"), "charge=0.5 is no whole number"),
    "region": (
        "1\nProperties=species:S:1:pos:R:3:region:I:1\nH 0 0 0 7\n",
        "region of atom 0 is 7; expected 0 to 2",
    ),
    "levels": (
        FRAME.format("level_hash=a") + FRAME.format("level_hash=b"),
        "2 different level_hash",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_read__broken_files(tmp_path, case):
    content, message = BROKEN[case]
    path = tmp_path / "broken.xyz"
    if content is not None:
        path.write_text(content)
    with pytest.raises(StructureError) as caught:
        read(path)
    assert message in str(caught.value)
    assert "broken.xyz" in str(caught.value)
    assert "\n" not in str(caught.value)
