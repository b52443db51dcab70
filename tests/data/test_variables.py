from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

from mofal.data import VARIABLES, describe, validate
from mofal.data.variables import DIM_SIZES, REQUIRED
from mofal.errors import DataError
from tests.data.common import features, labelled
from tests.helpers import assert_same_bits, chunked, raise_if_dask_computes


def test_registry__is_consistent():
    known = {"structure", "atom", "core", "feature", *DIM_SIZES}
    known |= {"volume_point", "equation", "block", "voigt_strain", "elastic_mode", "average"}
    known |= {"element", "site"}
    known |= {"pv_point", "pv_grid"}
    for name, spec in VARIABLES.items():
        assert set(spec.dims) <= known, name
        assert spec.dtype == "str" or np.dtype(spec.dtype).kind in "bif", name
        assert bool(spec.units) == (spec.dtype != "str"), name
        assert spec.meaning, name
    assert {v for names in REQUIRED.values() for v in names} <= VARIABLES.keys()


def test_validate__returns_the_same_object():
    ds = labelled(3)
    for kind in ("structures", "labels", "table"):
        assert validate(ds, kind) is ds
    assert validate(features(3), "features")


def put(name, index, value):
    def change(ds):
        ds[name].values[index] = value
        return ds

    return change


def column(name, dims, values):
    return lambda ds: ds.assign({name: (dims, values)})


ERRORS = {
    "kind": ("maps", lambda ds: ds, "unknown kind of Dataset 'maps'; kinds: structures, labels"),
    "missing": (
        "structures",
        lambda ds: ds.drop_vars(["cell", "system"]),
        "it lacks cell, system .*make one with mofal.data.from_atoms",
    ),
    "nothing": ("scores", lambda ds: xr.Dataset(), r"it lacks .*\(it has nothing\)"),
    "transposed": (
        "labels",
        lambda ds: ds.assign(forces=ds["forces"].transpose()),
        r"forces has dims \('xyz', 'atom'\), expected .*ds\['forces'\].transpose\('atom', 'xyz'\)",
    ),
    "foreign dims": (
        "structures",
        lambda ds: ds.assign(positions=ds["positions"].rename(xyz="xzy")),
        r"positions has dims \('atom', 'xzy'\), expected \('atom', 'xyz'\)$",
    ),
    "integer energy": (
        "labels",
        lambda ds: ds.assign(energy=ds["energy"].astype(int)),
        r"energy has dtype int64, expected float64; convert it: ds\['energy'\].astype\('float64'\)",
    ),
    "float numbers": (
        "structures",
        lambda ds: ds.assign(numbers=ds["numbers"].astype(float)),
        "numbers has dtype float64, expected int32",
    ),
    "integer mask": (
        "structures",
        lambda ds: ds.assign(masked=ds["region"]),
        "masked has dtype int8, expected bool",
    ),
    "number for a name": (
        "structures",
        lambda ds: ds.assign(system=ds["n_atoms"]),
        "system has dtype int64, expected str",
    ),
    "bytes for a name": (
        "structures",
        lambda ds: ds.assign(system=ds["system"].astype("S9")),
        "system has dtype .S9, expected str",
    ),
    "stress in full": (
        "labels",
        column("stress", ("structure", "voigt"), np.zeros((5, 9))),
        "stress has 9 along voigt, expected 6",
    ),
    "NaN position": (
        "structures",
        put("positions", (4, 1), np.nan),
        "positions holds 1 values that are NaN or infinite, the first at atom 4, xyz 1",
    ),
    "infinite cell": (
        "structures",
        put("cell", (2, 0, 1), np.inf),
        "the first at structure 2, cell_vector 0, xyz 1",
    ),
    "isel": (
        "structures",
        lambda ds: ds.isel(structure=[0, 1]),
        "n_atoms adds up to .* atoms; select structures with mofal.data.select, not with isel",
    ),
    "no atoms": (
        "structures",
        put("n_atoms", 2, 0),
        "structure 2 has 0 atoms; expected at",
    ),
    "index": (
        "structures",
        lambda ds: ds.assign(structure_index=ds["structure_index"][::-1].variable),
        "structure_index of atom 0 is 4, which does not agree with n_atoms",
    ),
    "element": (
        "structures",
        put("numbers", 3, 119),
        "numbers of atom 3 is 119; expected 1",
    ),
    "no element": ("structures", put("numbers", 0, 0), "numbers of atom 0 is 0"),
    "region": ("structures", put("region", 1, -1), "region of atom 1 is -1; expected 0 to 2"),
    "status": (
        "labels",
        lambda ds: ds.assign(status=("structure", ["done"] * 5)),
        "status is 'done'; expected one of converged, not_converged",
    ),
    "hollow label": (
        "labels",
        put("energy", 3, np.nan),
        "structure 3 is converged, but its energy is not a number; .*'inconsistent'",
    ),
    "NaN features": (
        "features",
        lambda ds: ds.assign(
            features=(("atom", "feature"), np.full((ds.sizes["atom"], 2), np.nan))
        ),
        "features holds .* values that are NaN",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_validate__errors(case):
    kind, change, message = ERRORS[case]
    with pytest.raises(DataError, match=message) as caught:
        validate(change(labelled(5)), kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["forces", "stress", "wall_time"])
def test_validate__nan_where_it_has_a_meaning(name):
    ds = labelled(5)
    ds[name][:] = np.nan
    validate(ds, "labels")


def test_validate__minus_infinity_is_a_likelihood():
    ds = features(3)
    scores = ds.assign(log_likelihood=("atom", np.full(ds.sizes["atom"], -np.inf)))
    validate(scores, "scores")


def test_validate__failed_labels_have_no_energy():
    ds = labelled(3)
    ds["energy"][:] = np.nan
    ds["status"] = ("structure", ["crashed", "timed_out", ""])
    validate(ds, "labels")


def test_validate__stays_lazy():
    ds = chunked(labelled(5), 3)
    ds["positions"] = ds["positions"] * np.nan
    with raise_if_dask_computes():
        validate(ds, "labels")


def test_describe__adds_units_to_a_copy():
    ds = labelled(2)
    for name in ds.variables:
        ds[name].attrs = {"note": "kept"}
    out = describe(ds)
    assert out["forces"].attrs == {
        "note": "kept",
        "units": "eV/Å",
        "long_name": VARIABLES["forces"].meaning,
    }
    assert ds["forces"].attrs == {"note": "kept"}
    assert_same_bits(out, ds)


def test_import__is_light():
    code = (
        "import sys, mofal.data; mofal.data.__all__; "
        "heavy = {'xarray', 'dask', 'zarr', 'ase', 'torch', 'distributed', 'numpy', 'pandas'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import__all_names_are_there():
    import mofal.data

    for name in mofal.data.__all__:
        assert getattr(mofal.data, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = mofal.data.nothing
