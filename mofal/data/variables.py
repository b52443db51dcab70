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

STRING = np.dtypes.StringDType()  # type: ignore[attr-defined]
"""Type of variables that hold text."""

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
    missing : int
        What an integer is where a structure does not have it, when others beside it do.
    """

    dims: tuple[str, ...]
    dtype: str
    units: str
    meaning: str
    finite: bool = True
    missing: int = 0


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
        ("structure",),
        "str",
        "",
        "hash of numbers, positions, cell, periodicity, and charge and spin that are not zero",
    ),
    "system": Variable(("structure",), "str", "", "name of the system it is a frame or a part of"),
    "parent": Variable(
        ("structure",), "str", "", "structure_id it was cut from or walked from, empty if none"
    ),
    "region": Variable(("atom",), "int8", "1", "0 core, 1 mantle, 2 termination"),
    "parent_atom": Variable(
        ("atom",), "int64", "1", "index in the parent, -1 for a cap", missing=-1
    ),
    "charge": Variable(("structure",), "int32", "e", "total charge"),
    "n_unpaired": Variable(
        ("structure",), "int32", "1",
        "unpaired electrons; 0: as few as the number of electrons allows",
    ),
    "n_electrons": Variable(
        ("structure",), "int64", "1", "electrons, all of them; -1 if not counted", missing=-1
    ),
    "split": Variable(("structure",), "str", "", "train or validation"),
    "cycle": Variable(("structure",), "int64", "1", "cycle of the campaign that made it"),
    "masked": Variable(("atom",), "bool", "1", "force left out of the loss"),
    "force_weight": Variable(
        ("atom",), "float64", "1",
        "weight of the squared force error of an atom of a cluster; NaN: as its region has it",
        finite=False,
    ),
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
    # predictions of a potential, and which one and on what it was tried
    "predicted_energy": Variable(
        ("structure",), "float64", "eV", "relative to isolated atoms", finite=False
    ),
    "predicted_forces": Variable(("atom", "xyz"), "float64", "eV/Å", "force", finite=False),
    "predicted_stress": Variable(
        ("structure", "voigt"), "float64", "eV/Å³", "NaN for finite structures", finite=False
    ),
    "model": Variable(("structure",), "str", "", "whose prediction it is: model-002, control-002"),
    "judged": Variable(("structure",), "str", "", "held out, or proposed by this model"),
    # features and scores
    "features": Variable(("atom", "feature"), "float32", "1", "input of the last readout layer"),
    "quantile": Variable(
        ("atom",),
        "float64",
        "1",
        "of the log-likelihood among known atoms of the element, 0 as unfamiliar as can be",
    ),
    "error_bound": Variable(
        ("atom",), "float64", "eV/Å",
        "upper bound of the force error, at the coverage in the attribute error_coverage",
        finite=False,
    ),
    "drawn": Variable(("structure",), "bool", "1", "its core was drawn at random, not selected"),
    "log_likelihood": Variable(
        ("atom",), "float64", "1", "under the density of the atom's element, -inf if unseen",
        finite=False,
    ),
    # mechanics: along structures of a curve, and along its tables
    "relaxed_volume": Variable(("structure",), "float64", "Å³", "volume of the cell", finite=False),
    "target_volume": Variable(
        ("structure",), "float64", "Å³", "volume asked for, NaN for a free cell", finite=False
    ),
    "relaxed_pressure": Variable(
        ("structure",), "float64", "GPa", "minus a third of the stress's trace", finite=False
    ),
    "deviatoric_stress": Variable(
        ("structure",), "float64", "GPa", "largest component of the traceless stress",
        finite=False,
    ),
    "largest_force": Variable(
        ("structure",), "float64", "eV/Å", "largest component of a force", finite=False
    ),
    "force_calls": Variable(("structure",), "int64", "1", "force calls of the relaxation"),
    "curve_point": Variable(("structure",), "str", "", "point of the curve: way and step from V0"),
    "point_status": Variable(("structure",), "str", "", "relaxed, or what became of it"),
    "point_reason": Variable(("structure",), "str", "", "why, where it is not relaxed"),
    "curve_structure": Variable(
        ("volume_point",), "int64", "1", "structure of the curve that counts at this volume"
    ),
    "point_volume": Variable(("volume_point",), "float64", "Å³", "volume"),
    "point_energy": Variable(("volume_point",), "float64", "eV", "lower energy of both ways"),
    "point_pressure": Variable(("volume_point",), "float64", "GPa", "pressure there"),
    "hysteresis": Variable(
        ("volume_point",), "float64", "eV", "energy of the way out less that of the way back",
        finite=False,
    ),
    "lattice_length": Variable(("volume_point", "cell_vector"), "float64", "Å", "lengths a, b, c"),
    "lattice_angle": Variable(
        ("volume_point", "cell_vector"), "float64", "degree", "angles alpha, beta, gamma"
    ),
    "block_rotation": Variable(
        ("volume_point", "block"), "float64", "degree", "rotation of the block against the minimum"
    ),
    "block_tilt": Variable(
        ("volume_point", "block"), "float64", "degree",
        "angle of a linker's axis to the line between its two nodes; NaN for others", finite=False,
    ),
    "block_buckling": Variable(
        ("volume_point", "block"), "float64", "Å",
        "root mean square distance of a linker from its best plane; NaN for others", finite=False,
    ),
    "unfamiliar_share": Variable(
        ("volume_point",), "float64", "1", "share of atoms below the threshold of familiarity"
    ),
    "mean_log_likelihood": Variable(
        ("volume_point",), "float64", "1", "mean over the atoms", finite=False
    ),
    "equation_of_state": Variable(("equation",), "str", "", "name of the equation of state"),
    "bulk_modulus": Variable(("equation",), "float64", "GPa", "K = -V dP/dV at V0"),
    "equilibrium_volume": Variable(("equation",), "float64", "Å³", "V0, of the cell given"),
    "equilibrium_energy": Variable(("equation",), "float64", "eV", "E0"),
    "bulk_modulus_derivative": Variable(("equation",), "float64", "1", "dK/dP at V0"),
    "energy_residual": Variable(("equation",), "float64", "eV", "root mean square"),
    "pressure_residual": Variable(
        ("equation",), "float64", "GPa", "root mean square", finite=False
    ),
    "elastic_constants": Variable(
        ("voigt", "voigt_strain"), "float64", "GPa", "C_ij (B_ij under pressure), symmetrised"
    ),
    "elastic_constants_raw": Variable(
        ("voigt", "voigt_strain"), "float64", "GPa", "d stress_i / d strain_j as it came"
    ),
    "elastic_eigenvalue": Variable(
        ("elastic_mode",), "float64", "GPa", "eigenvalue of the constants in Mandel's form"
    ),
    "elastic_eigenstrain": Variable(
        ("voigt", "elastic_mode"), "float64", "1", "strain of the mode; shears are twice ε"
    ),
    "average_name": Variable(("average",), "str", "", "Voigt, Reuss or Hill"),
    "average_bulk_modulus": Variable(
        ("average",), "float64", "GPa", "bulk modulus; NaN where unstable", finite=False
    ),
    "average_shear_modulus": Variable(
        ("average",), "float64", "GPa", "shear modulus; NaN where unstable", finite=False
    ),
    "pv_name": Variable(("pv_point",), "str", "", "ensemble and condition of the point"),
    "pv_volume": Variable(("pv_point",), "float64", "Å³", "volume, mean or given"),
    "pv_volume_error": Variable(("pv_point",), "float64", "Å³", "standard error, 0 if given"),
    "pv_pressure": Variable(("pv_point",), "float64", "GPa", "pressure, mean or given"),
    "pv_pressure_error": Variable(("pv_point",), "float64", "GPa", "standard error, 0 if given"),
    "pv_drift": Variable(
        ("pv_point",), "float64", "eV/ps", "slope of the conserved energy per atom; NaN in NPT",
        finite=False,
    ),
    "pv_runs": Variable(("pv_point",), "int64", "1", "runs of the point"),
    "pv_hysteresis": Variable(
        ("pv_point",), "float64", "GPa", "pressure, way out less way back; NaN with one way",
        finite=False,
    ),
    "pv_hysteresis_error": Variable(
        ("pv_point",), "float64", "GPa", "its standard error; NaN with one way",
        finite=False,
    ),
    "pv_fluctuation_modulus": Variable(
        ("pv_point",), "float64", "GPa", "bulk modulus from the fluctuations of V in NPT; else NaN",
        finite=False,
    ),
    "pv_fluctuation_modulus_error": Variable(
        ("pv_point",), "float64", "GPa", "its standard error; NaN outside NPT",
        finite=False,
    ),
    "pv_regression_modulus": Variable(
        ("pv_point",), "float64", "GPa", "bulk modulus from pressure against V in NPT; else NaN",
        finite=False,
    ),
    "pv_regression_modulus_error": Variable(
        ("pv_point",), "float64", "GPa", "its standard error; NaN outside NPT",
        finite=False,
    ),
    "curve_volume": Variable(("pv_grid",), "float64", "Å³", "volume"),
    "curve_pressure": Variable(("pv_grid",), "float64", "GPa", "mean of the Gaussian process"),
    "curve_deviation": Variable(("pv_grid",), "float64", "GPa", "its standard deviation"),
    # trajectories that are watched: along frames, elements, blocks, and the atoms of one frame
    "frame_number": Variable(
        ("structure",), "int64", "1", "number of the frame in its trajectory, from 0"
    ),
    "md_step": Variable(
        ("structure",), "int64", "1", "step of the simulation as its file states it, -1 if not",
        missing=-1,
    ),
    "md_time": Variable(("structure",), "float64", "ps", "time of the simulation"),
    "least_quantile": Variable(
        ("structure",), "float64", "1",
        "smallest quantile of an atom of the frame, or of the core of a cluster in its frame",
    ),
    "unfamiliar_atoms": Variable(
        ("structure", "element"), "int64", "1", "atoms below the threshold of familiarity"
    ),
    "unfamiliar_in_block": Variable(
        ("structure", "block"), "int32", "1", "atoms of the block below the threshold"
    ),
    "element_number": Variable(("element",), "int32", "1", "atomic number"),
    "element_atoms": Variable(("element",), "int64", "1", "atoms of the element in a frame"),
    "block_formula": Variable(("block",), "str", "", "formula of the block"),
    "block_role": Variable(("block",), "str", "", "node, linker, guest, ..."),
    "block_coordination": Variable(("block",), "int64", "1", "links of the block to others"),
    "block_size": Variable(("block",), "int64", "1", "atoms of the block"),
    "block_centre": Variable(
        ("block", "xyz"), "float64", "1", "centre in fractional coordinates, in the first frame"
    ),
    "site_number": Variable(("site",), "int32", "1", "atomic number of an atom of a frame"),
    "site_position": Variable(
        ("site", "xyz"), "float64", "1", "fractional coordinates in the first frame, wrapped"
    ),
    "unfamiliar_frames": Variable(
        ("site",), "int64", "1", "frames in which the atom was below the threshold"
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
    if kind == "table":
        # A table has rows of its own (blocks, walks, attempts), whose columns may share a name
        # with a variable of structures or atoms.
        return ds
    for name in map(str, ds.variables):
        spec = VARIABLES.get(name)
        if spec is None:
            continue
        variable = ds[name]
        _check_variable(name, spec, variable)
    _check_ragged(ds)
    _check_values(ds)
    if kind == "labels":
        _check_labels(ds)
    return ds


def _check_variable(name: str, spec: Variable, variable: xr.DataArray) -> None:
    if variable.dims != spec.dims:
        mend = ""
        if set(variable.dims) == set(spec.dims):
            mend = f"; transpose it: ds[{name!r}].transpose{spec.dims}"
        raise DataError(f"{name} has dims {variable.dims}, expected {spec.dims}{mend}")
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


def _in_memory(ds: xr.Dataset, name: str) -> np.ndarray | None:
    return ds[name].values if name in ds.variables and not ds[name].chunks else None


def check_counts(n_atoms: np.ndarray) -> None:
    """Raise unless every structure has an atom."""
    if n_atoms.size and n_atoms.min() < 1:
        raise DataError(
            f"structure {int(n_atoms.argmin())} has {int(n_atoms.min())} atoms; expected at least 1"
        )


def _check_ragged(ds: xr.Dataset) -> None:
    mend = "select structures with mofal.data.select, not with isel"
    count = _in_memory(ds, "n_atoms")
    if count is None:
        return
    check_counts(count)
    if "atom" not in ds.sizes:
        return
    total = int(count.sum())
    if total != ds.sizes["atom"]:
        raise DataError(
            f"n_atoms adds up to {total}, but there are {ds.sizes['atom']} atoms; {mend}"
        )
    index = _in_memory(ds, "structure_index")
    if index is not None:
        wrong = np.flatnonzero(index != np.repeat(np.arange(len(count)), count))
        if len(wrong):
            k = int(wrong[0])
            raise DataError(
                f"structure_index of atom {k} is {int(index[k])}, which does not agree with "
                f"n_atoms; {mend}"
            )


def _check_values(ds: xr.Dataset) -> None:
    for name, low, high in (("numbers", 1, 118), ("region", CORE, TERMINATION)):
        values = _in_memory(ds, name)
        if values is not None and values.size and (values.min() < low or values.max() > high):
            k = int(np.flatnonzero((values < low) | (values > high))[0])
            raise DataError(f"{name} of atom {k} is {int(values[k])}; expected {low} to {high}")
    status = _in_memory(ds, "status")
    if status is not None:
        odd = sorted(set(map(str, status.tolist())) - {*STATUSES, ""})
        if odd:
            raise DataError(f"status is {odd[0]!r}; expected one of {', '.join(STATUSES)}")


def _check_labels(ds: xr.Dataset) -> None:
    status, energy = _in_memory(ds, "status"), _in_memory(ds, "energy")
    if status is None or energy is None:
        return
    hollow = np.flatnonzero((status.astype(object) == "converged") & ~np.isfinite(energy))
    if len(hollow):
        raise DataError(
            f"structure {int(hollow[0])} is converged, but its energy is not a number; "
            "its status should be 'inconsistent'"
        )


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
        if spec is not None and out[name].dims == spec.dims:
            out[name].attrs = {**out[name].attrs, "units": spec.units, "long_name": spec.meaning}
    return out
