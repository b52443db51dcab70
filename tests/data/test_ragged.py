from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mofal.data import (
    atom_slice,
    concat,
    converged,
    count_elements,
    gather_index,
    make_structures,
    offsets,
    open_group,
    relative_energy,
    select,
    structure_hash,
    structure_ids,
    validate,
    write_group,
)
from mofal.errors import DataError
from tests.data.common import datasets, features, labelled
from tests.helpers import assert_same_bits, chunked, number_of_tasks, raise_if_dask_computes

many = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
WATER = {"numbers": [8, 1, 1], "positions": np.eye(3), "n_atoms": [3]}


# ------------------------------------------------------------------------------------ arrays
def test_offsets__counts():
    assert offsets(np.array([2, 1, 4])).tolist() == [0, 2, 3, 7]
    assert offsets(np.array([], int)).tolist() == [0]


def test_gather_index__any_order_and_repeats():
    n_atoms = np.array([2, 1, 3])
    assert gather_index(n_atoms, np.array([2, 0, 2])).tolist() == [3, 4, 5, 0, 1, 3, 4, 5]
    assert gather_index(n_atoms, np.array([], int)).tolist() == []


def test_count_elements__by_hand():
    counts = count_elements(np.array([1, 8, 1, 6]), np.array([0, 0, 0, 2]), 3)
    assert counts.shape == (3, 119)
    assert counts[0, [1, 6, 8]].tolist() == [2, 0, 1]
    assert counts[1].sum() == 0
    assert counts[2, 6] == counts.sum() - 3 == 1


# ------------------------------------------------------------------------------------ select
@many
@given(ds=datasets(), data=st.data())
def test_select__concat_of_selects_is_select_of_concat(ds, data):
    n = ds.sizes["structure"]
    chosen = data.draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=6))
    cut = data.draw(st.integers(0, len(chosen)))
    whole = select(ds, chosen)
    parts = [select(ds, p) for p in (chosen[:cut], chosen[cut:]) if p]
    assert_same_bits(concat(parts), whole)
    assert_same_bits(concat([select(ds, i) for i in chosen]), whole)
    validate(whole, "structures")
    assert whole["structure_id"].values.tolist() == structure_ids(whole).tolist()


@many
@given(ds=datasets(), data=st.data())
def test_select__masks_and_slices_mean_their_indices(ds, data):
    n = ds.sizes["structure"]
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    assert_same_bits(select(ds, np.array(mask)), select(ds, np.flatnonzero(mask)))
    span = data.draw(st.slices(n))
    assert_same_bits(select(ds, span), select(ds, np.arange(n)[span]))
    assert_same_bits(select(ds, slice(None)), ds)


@many
@given(ds=datasets(), data=st.data(), rows=st.integers(1, 9))
def test_select__lazy_is_the_same(ds, data, rows):
    n = ds.sizes["structure"]
    chosen = data.draw(st.lists(st.integers(-n, n - 1), max_size=6))
    lazy = chunked(ds, rows)
    with raise_if_dask_computes():
        part = select(lazy, chosen)
    assert_same_bits(part.compute(), select(ds, chosen))


def test_select__does_not_change_its_input():
    ds = labelled(5)
    before = ds.copy(deep=True)
    select(ds, [3, 1])["positions"][:] = 0
    assert_same_bits(ds, before)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (5, "structure 5 of a Dataset that has 5"),
        ([0, -6, 2], "structure -6 of a Dataset that has 5"),
        ([1.5], "by integers or a mask, not by float64"),
        ([True, False], "a mask of 2 for 5 structures"),
        (["a"], "by integers or a mask"),
    ],
)
def test_select__errors(indices, message):
    with pytest.raises(DataError, match=message):
        select(labelled(5), indices)


def test_select__of_contiguous_structures_touches_only_their_chunks():
    ds = chunked(features(400), 100)
    one = select(ds, 200)
    everything = number_of_tasks(ds["features"])
    assert everything > 50
    assert number_of_tasks(one["features"]) <= 6
    assert number_of_tasks(one["structure_index"]) <= 4


# ------------------------------------------------------------------------------------ atom_slice
@many
@given(ds=datasets())
def test_atom_slice__covers_all_atoms_once(ds):
    n = ds.sizes["structure"]
    spans = [atom_slice(ds, i) for i in range(n)]
    assert [s.start for s in spans] == [0, *(s.stop for s in spans[:-1])]
    assert spans[-1].stop == ds.sizes["atom"]
    for i, span in enumerate(spans):
        assert (ds["structure_index"].values[span] == i).all()
        assert atom_slice(ds, i - n) == span


@pytest.mark.parametrize("i", [3, -4])
def test_atom_slice__outside(i):
    with pytest.raises(DataError, match=f"structure {i} of a Dataset that has 3"):
        atom_slice(labelled(3), i)


# ------------------------------------------------------------------------------------ concat
def test_concat__of_one_is_itself():
    ds = labelled(3)
    joined = concat([ds])
    assert_same_bits(joined, ds)
    assert joined.attrs == ds.attrs
    assert joined["positions"].attrs == ds["positions"].attrs


def test_concat__keeps_attributes_of_variables():
    joined = concat([labelled(3), labelled(2, seed=1)])
    assert joined["structure_index"].attrs["units"] == "1"
    assert joined["forces"].attrs["units"] == "eV/Å"


def test_concat__fills_what_is_missing():
    bare = make_structures(**WATER, system="water")
    joined = concat([bare, labelled(2)])
    assert np.isnan(joined["energy"].values[0])
    assert np.isnan(joined["forces"].values[:3]).all()
    assert np.isnan(joined["stress"].values[0]).all()
    assert joined["status"].values[0] == ""
    assert joined["region"].values[:3].tolist() == [0, 0, 0]
    assert joined["parent_atom"].values[:3].tolist() == [-1] * 3
    validate(joined, "labels")
    assert joined.attrs["level_hash"] == labelled(2).attrs["level_hash"]


def test_concat__fills_lazily():
    lazy = chunked(make_structures(**WATER), 2)
    with raise_if_dask_computes():
        joined = concat([lazy, chunked(labelled(4), 3)])
    assert joined["forces"].chunks[0][:2] == (2, 1)
    assert_same_bits(joined.compute(), concat([make_structures(**WATER), labelled(4)]))


def some_failed(n=5):
    ds = labelled(n)
    status = ["crashed" if k % 2 else "converged" for k in range(n)]
    energy = np.where(np.array(status) == "converged", ds["energy"].values, np.nan)
    return ds.assign(
        status=("structure", np.array(status)), energy=("structure", energy)
    ), np.flatnonzero(np.array(status) == "converged")


@pytest.mark.parametrize("stored", [True, False])
def test_where__xarray_finds_the_converged_rows(tmp_path, stored):
    ds, good = some_failed()
    if stored:
        write_group(ds, tmp_path / "labels.zarr", kind="labels")
        ds = open_group(tmp_path / "labels.zarr")
    else:
        ds = concat([ds])
    rows = ds.where(ds.status == "converged", drop=True)
    assert rows.sizes["structure"] == len(good)
    assert set(rows["status"].values) == {"converged"}
    assert rows["structure_id"].values.tolist() == ds["structure_id"].values[good].tolist()
    assert rows["energy"].values.tolist() == ds["energy"].values[good].tolist()
    # What else people do with text, each of which puts a missing value beside it or sorts it.
    per_structure = ds[["status", "energy"]]
    assert per_structure.where(ds.status == "converged").status.isnull().values.sum() == 2
    assert per_structure.shift(structure=1).status.isnull().values.tolist()[:2] == [True, False]
    counted = per_structure.set_coords("status").groupby("status").count()
    assert counted["energy"].values.tolist() == [3, 0]
    assert len(per_structure.to_dataframe().query("status == 'converged'")) == len(good)
    assert per_structure.sortby("status").status.values[0] == "converged"


def test_converged__rows_with_their_atoms_and_nothing_computed():
    ds, good = some_failed()
    lazy = chunked(ds, 3)
    with raise_if_dask_computes():
        found = converged(lazy)
    assert_same_bits(found.compute(), select(ds, good))
    validate(found.compute(), "labels")
    with pytest.raises(DataError, match="carry no status"):
        converged(ds.drop_vars("status"))


def test_concat__text_of_any_type():
    a, b = labelled(2), labelled(2, seed=1)
    b["system"] = ("structure", b["system"].values.astype(object))
    a["parent"] = ("structure", np.array(["a", "bc"]))
    joined = concat([a, b])
    assert joined["system"].dtype.kind == joined["parent"].dtype == object
    assert joined["parent"].values.tolist()[:2] == ["a", "bc"]


def test_concat__empty_parts_do_not_count():
    ds = labelled(3)
    assert_same_bits(concat([select(ds, []), ds, select(ds, [])]), ds)
    assert concat([select(ds, [])]).sizes["structure"] == 0


def test_concat__isolated_atoms_of_both():
    a, b = labelled(2), labelled(2, seed=1)
    a.attrs["isolated_atom_energies"] = '{"C": -1.5, "H": -0.5}'
    b.attrs["isolated_atom_energies"] = '{"H": -0.5, "O": -2.25, "Zr": -40.125}'
    joined = concat([a, b])
    whole = labelled(2)
    assert joined.attrs["isolated_atom_energies"] == whole.attrs["isolated_atom_energies"]
    relative_energy(joined)


CONCAT_ERRORS = {
    "nothing": (lambda a, b: [], "nothing to concatenate"),
    "levels": (lambda a, b: [a, b.assign_attrs(level_hash="f")], "labels of two levels of theory"),
    "models": (
        lambda a, b: [a.assign_attrs(model_hash="e"), b.assign_attrs(model_hash="f")],
        "features of two models",
    ),
    "isolated": (
        lambda a, b: [a, b.assign_attrs(isolated_atom_energies='{"H": -0.6}')],
        "the isolated H has -0.5 eV in one Dataset and -0.6",
    ),
    "positions": (lambda a, b: [a, b.drop_vars("positions")], "Dataset 1 lacks positions"),
    "unregistered integer": (
        lambda a, b: [a, b.assign(tag=("structure", np.arange(2)))],
        "Dataset 0 lacks tag",
    ),
    "widths": (
        lambda a, b: [features(3, width=4), features(3, width=5)],
        "features of Dataset 1 has dims",
    ),
}


@pytest.mark.parametrize("case", CONCAT_ERRORS)
def test_concat__errors(case):
    make, message = CONCAT_ERRORS[case]
    with pytest.raises(DataError, match=message):
        concat(make(labelled(2), labelled(2, seed=1)))


# ------------------------------------------------------------------------------------ laziness
def test_verbs__never_compute():
    ds = chunked(labelled(9), 7)
    with raise_if_dask_computes():
        validate(ds, "labels")
        joined = concat([ds, select(ds, [4, 2]), select(ds, slice(1, 4))])
        energy = relative_energy(joined)
        atom_slice(joined, 3)
    assert joined["forces"].chunks is not None
    assert joined["structure_index"].chunks is not None
    assert isinstance(energy.data, da.Array)


# ------------------------------------------------------------------------------------ energy
def test_relative_energy__by_hand():
    ds = make_structures(
        [8, 1, 1, 6, 8, 1],
        np.arange(18.0).reshape(6, 3),
        n_atoms=[3, 2, 1],
        energy=[-100.0, -50.5, -0.25],
    ).assign_attrs(isolated_atom_energies='{"H": -0.5, "O": -70.0, "C": -30.25, "Zr": 1.0}')
    # -100 - (-70 - 2 * 0.5), -50.5 - (-30.25 - 70), -0.25 + 0.5
    assert relative_energy(ds).values.tolist() == [-29.0, 49.75, 0.25]
    assert relative_energy(ds).dims == ("structure",)


@pytest.mark.parametrize("rows", [1, 3, 7, 1000])
def test_relative_energy__lazy_is_bit_for_bit(rows):
    ds = labelled(31, seed=3)
    ds.attrs["isolated_atom_energies"] = '{"C": -1034.1, "H": -13.7, "O": -2041.3, "Zr": -1289.9}'
    assert (
        relative_energy(chunked(ds, rows)).values.tobytes() == relative_energy(ds).values.tobytes()
    )


def test_relative_energy__of_one_does_not_depend_on_the_others():
    ds = labelled(31, seed=3)
    ds.attrs["isolated_atom_energies"] = '{"C": -1034.1, "H": -13.7, "O": -2041.3, "Zr": -1289.9}'
    alone = [relative_energy(select(ds, i)).item() for i in range(31)]
    assert alone == relative_energy(ds).values.tolist()


def test_relative_energy__mixed_laziness():
    ds = labelled(12)
    mixed = ds.assign(numbers=ds["numbers"].chunk(atom=5))
    assert np.array_equal(relative_energy(mixed), relative_energy(ds))
    mixed = chunked(ds, 5).assign(structure_index=ds["structure_index"].chunk(atom=4))
    assert np.array_equal(relative_energy(mixed), relative_energy(ds))


def test_relative_energy__unlabelled_stays_nan():
    ds = labelled(3)
    ds["energy"][1] = np.nan
    assert np.isnan(relative_energy(ds).values).tolist() == [False, True, False]


def test_relative_energy__errors():
    ds = labelled(4)
    with pytest.raises(DataError, match=r"isolated-atom energy of C, Zr .* not known"):
        relative_energy(ds.assign_attrs(isolated_atom_energies='{"H": 0.0, "O": 0.0}'))
    lazy = relative_energy(
        chunked(ds, 5).assign_attrs(isolated_atom_energies='{"H": 0.0, "O": 0.0, "C": 0.0}')
    )
    with pytest.raises(DataError, match="isolated-atom energy of Zr"):
        lazy.compute()
    del ds.attrs["isolated_atom_energies"]
    with pytest.raises(DataError, match="carry no isolated_atom_energies"):
        relative_energy(ds)


# ------------------------------------------------------------------------------------ making
def test_make_structures__identity():
    ds = make_structures(**WATER, cell=np.diag([9.0, 9, 0]))
    assert ds["pbc"].values.tolist() == [[True, True, False]]
    expected = structure_hash([8, 1, 1], np.eye(3), np.diag([9.0, 9, 0]), [True, True, False])
    assert ds["structure_id"].item() == expected
    assert structure_ids(ds).tolist() == [expected]


def test_make_structures__an_ion_is_another_structure():
    two = {"numbers": [8, 1, 1] * 2, "positions": np.tile(np.eye(3), (2, 1)), "n_atoms": [3, 3]}
    neutral = make_structures(**WATER)["structure_id"].item()
    ds = make_structures(**two, charge=[0, -1])
    ids = ds["structure_id"].values.tolist()
    ion = structure_hash([8, 1, 1], np.eye(3), np.zeros((3, 3)), [False] * 3, -1)
    assert ids == [neutral, ion]
    assert neutral != ion
    assert structure_ids(ds).tolist() == ids
    # A Dataset that knows no charge holds neutral structures.
    whole = concat([make_structures(**WATER), select(ds, 1)])
    assert structure_ids(whole).tolist() == whole["structure_id"].values.tolist() == ids


def test_structure_ids__find_a_change():
    ds = labelled(4)
    ds["positions"][0, 0] += 1e-12
    changed = structure_ids(ds) != ds["structure_id"].values
    assert changed.tolist() == [True, False, False, False]


MAKE_ERRORS = {
    "lengths": ({"n_atoms": [4]}, "do not belong together"),
    "flat positions": ({"positions": np.zeros(9)}, "do not belong together"),
    "negative": ({"n_atoms": [4, -1]}, "structure 1 has -1 atoms"),
    "empty structure": ({"n_atoms": [3, 0]}, "structure 1 has 0 atoms"),
    "cell": ({"cell": np.zeros((2, 3, 3))}, "cell has shape"),
    "pbc": ({"pbc": [True, False]}, "pbc has shape"),
    "names": ({"system": ["a", "b"]}, "2 names for 1 structures"),
    "element": ({"numbers": [8, 1, 0]}, "numbers of atom 2 is 0; expected 1 to 118"),
    "far element": ({"numbers": [8, 1, 200]}, "numbers of atom 2 is 200"),
    "half element": ({"numbers": [8, 1, 1.5]}, "numbers holds 1.5, expected int32"),
    "symbols": ({"numbers": ["O", "H", "H"]}, "numbers holds .*'O'.*, expected int32"),
    "not finite": ({"positions": np.full((3, 3), np.nan)}, "positions holds 9 values that are NaN"),
    "unregistered": ({"colour": [1]}, "'colour' is no registered variable; registered: region"),
    "half charge": ({"charge": [0.5]}, "charge holds 0.5, expected int32"),
    "large charge": ({"charge": [2**40]}, "charge holds 1099511627776"),
    "nan charge": ({"charge": [np.nan]}, "charge holds nan"),
    "short": ({"region": [0, 1]}, "region has shape .* expected 1 dims .* with 3 along atom"),
    "dims": ({"energy": [[1.0]]}, "energy has shape"),
    "ragged": ({"forces": [[0, 0, 0], [0], [0]]}, "forces cannot be float64"),
    "stress": ({"stress": np.zeros((1, 9))}, "stress has 9 along voigt, expected 6"),
}


@pytest.mark.parametrize("case", MAKE_ERRORS)
def test_make_structures__errors(case):
    change, message = MAKE_ERRORS[case]
    with pytest.raises(DataError, match=message):
        make_structures(**{**WATER, **change})


def test_make_structures__none():
    ds = make_structures([], [], n_atoms=[])
    assert dict(ds.sizes) == {"atom": 0, "xyz": 3, "structure": 0, "cell_vector": 3}
    assert isinstance(ds, xr.Dataset)
