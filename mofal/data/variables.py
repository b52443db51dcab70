"""The registry: every variable once, with its dims, dtype, unit and meaning.

Nothing outside this file decides what a variable is called or what it is measured in. `validate`
compares a Dataset with the registry and names what is wrong and what would mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

FORMAT = 1
"""Version of the format of stored groups (attribute `mofal_format`)."""

DIM_SIZES = {"xyz": 3, "cell_vector": 3, "voigt": 6, "end": 2}
"""Sizes of the dims whose length is part of the contract."""

STATUSES = (
    "converged",
    "not_converged",
    "crashed",
    "timed_out",
    "out_of_memory",
    "inconsistent",
    "set_aside",
)
"""What can become of a label. Only `converged` is trained on."""

CORE, MANTLE, TERMINATION = 0, 1, 2
"""Values of `region`."""


@dataclass(frozen=True)
class Variable:
    """One variable of the data contract.

    Attributes
    ----------
    dims : tuple of str
        Its dims, in order.
    dtype : str
        NumPy kind it is stored as; ``"str"`` for variable-length text.
    units : str
        Unit, ``"1"`` for numbers without one, ``""`` for text.
    meaning : str
        What it is, for a reader of the file.
    finite : bool
        Whether NaN and infinities are an error in it.
    """

    dims: tuple[str, ...]
    dtype: str
    units: str
    meaning: str
    finite: bool = True


VARIABLES: dict[str, Variable] = {
    # structures
    "numbers": Variable(("atom",), "int32", "1", "atomic number"),
    "positions": Variable(("atom", "xyz"), "float64", "Å", "Cartesian position, not wrapped"),
    "cell": Variable(
        ("structure", "cell_vector", "xyz"), "float64", "Å", "lattice vectors as rows, 0 if none"
    ),
    "pbc": Variable(("structure", "cell_vector"), "bool", "1", "periodic along this cell vector"),
    "n_atoms": Variable(("structure",), "int64", "1", "number of atoms of the structure"),
    "structure_index": Variable(("atom",), "int64", "1", "structure that the atom belongs to"),
    "structure_id": Variable(
        ("structure",), "str", "", "hash of numbers, positions, cell and periodicity"
    ),
    "system": Variable(("structure",), "str", "", "name of the system it is a frame or a part of"),
    "parent": Variable(
        ("structure",), "str", "", "structure_id it was cut from or walked from, empty if none"
    ),
    "region": Variable(("atom",), "int8", "1", "0 core, 1 mantle, 2 termination"),
    "parent_atom": Variable(("atom",), "int64", "1", "index in the parent, -1 for a cap"),
    "charge": Variable(("structure",), "int32", "e", "total charge"),
    "n_electrons": Variable(("structure",), "int64", "1", "electrons, all of them"),
    "split": Variable(("structure",), "str", "", "train or validation"),
    "cycle": Variable(("structure",), "int64", "1", "cycle of the campaign that made it"),
    "masked": Variable(("atom",), "bool", "1", "force left out of the loss"),
    # labels
    "energy": Variable(
        ("structure",), "float64", "eV", "total energy as the reference gives it", finite=False
    ),
    "forces": Variable(
        ("atom", "xyz"), "float64", "eV/Å", "force; NaN means masked or not labelled", finite=False
    ),
    "stress": Variable(
        ("structure", "voigt"), "float64", "eV/Å³", "ASE sign, xx yy zz yz xz xy", finite=False
    ),
    "status": Variable(("structure",), "str", "", "what became of the label"),
    "reason": Variable(("structure",), "str", "", "why, where the status is not converged"),
    "wall_time": Variable(("structure",), "float64", "s", "wall time of the label", finite=False),
    # features and scores
    "features": Variable(("atom", "feature"), "float32", "1", "input of the last readout layer"),
    "log_likelihood": Variable(
        ("atom",), "float64", "1", "under the density of the atom's element, -inf if unseen",
        finite=False,
    ),
    # cores
    "core_structure": Variable(("core",), "int64", "1", "structure that holds the core"),
    "core_block": Variable(("core",), "int64", "1", "block that is the core"),
}  # fmt: skip

REQUIRED: dict[str, tuple[str, ...]] = {
    "structures": (
        "numbers",
        "positions",
        "cell",
        "pbc",
        "n_atoms",
        "structure_index",
        "structure_id",
        "system",
        "parent",
    ),
    "labels": ("n_atoms", "structure_index", "structure_id", "energy", "forces", "status"),
    "features": ("numbers", "n_atoms", "structure_index", "features"),
    "scores": ("numbers", "n_atoms", "structure_index", "log_likelihood"),
    "table": (),
}
"""What each kind of Dataset must hold; it may hold more."""


def validate(ds: xr.Dataset, kind: str) -> xr.Dataset:
    """Check a Dataset against the registry; return it unchanged.

    Values are looked at only where they are in memory: a lazy Dataset stays lazy.

    Parameters
    ----------
    ds : xarray.Dataset
        Any Dataset of the contract.
    kind : str
        Key of `REQUIRED`.

    Raises
    ------
    DataError
        A variable is missing, has foreign dims or dtype, or holds NaN where none may be.
    """
    if kind not in REQUIRED:
        raise DataError(f"unknown kind of Dataset {kind!r}; kinds: {', '.join(REQUIRED)}")
    missing = [name for name in REQUIRED[kind] if name not in ds.variables]
    if missing:
        raise DataError(
            f"this is no Dataset of {kind}: it lacks {', '.join(missing)} "
            f"(it has {', '.join(map(str, ds.data_vars)) or 'nothing'}); "
            "make one with mofal.data.from_atoms or mofal.data.read"
        )
    for name in map(str, ds.variables):
        spec = VARIABLES.get(name)
        if spec is None:
            continue
        variable = ds[name]
        if variable.dims != spec.dims and len(variable.dims) == len(spec.dims):
            raise DataError(
                f"{name} has dims {variable.dims}, expected {spec.dims}; "
                f"transpose it: ds[{name!r}].transpose(*{spec.dims})"
            )
        if variable.dims != spec.dims:
            raise DataError(f"{name} has dims {variable.dims}, expected {spec.dims}")
        if not _dtype_fits(variable.dtype, spec.dtype):
            raise DataError(
                f"{name} has dtype {variable.dtype}, expected {spec.dtype}; "
                f"convert it: ds[{name!r}].astype({spec.dtype!r})"
            )
        for dim, size in DIM_SIZES.items():
            if dim in variable.dims and variable.sizes[dim] != size:
                raise DataError(f"{name} has {variable.sizes[dim]} along {dim}, expected {size}")
        if spec.finite and variable.dtype.kind == "f" and not variable.chunks:
            bad = ~np.isfinite(variable.values)
            if bad.any():
                where = tuple(int(k) for k in np.argwhere(bad)[0])
                at = ", ".join(f"{d} {k}" for d, k in zip(variable.dims, where))
                raise DataError(
                    f"{name} holds {int(bad.sum())} values that are NaN or infinite, "
                    f"the first at {at}; drop or repair this structure"
                )
    if "n_atoms" in ds.variables and "atom" in ds.sizes and not ds["n_atoms"].chunks:
        total = int(ds["n_atoms"].sum())
        if total != ds.sizes["atom"]:
            raise DataError(
                f"n_atoms adds up to {total}, but there are {ds.sizes['atom']} atoms; "
                "select structures with mofal.data.select, not with isel"
            )
    return ds


def _dtype_fits(dtype: np.dtype, expected: str) -> bool:
    if expected == "str":
        return dtype.kind in "UTO"
    if expected == "bool":
        return dtype.kind == "b"
    return dtype.kind in ("iu" if expected.startswith("int") else "f")


def describe(ds: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with `units` and `long_name` of the registry on every known variable."""
    out = ds.copy()
    for name in map(str, out.variables):
        spec = VARIABLES.get(name)
        if spec is not None:
            out[name].attrs = {**out[name].attrs, "units": spec.units, "long_name": spec.meaning}
    return out
