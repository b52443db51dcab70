"""Ragged structures: flat along `atom`, with `n_atoms(structure)` (CF contiguous ragged arrays).

Array functions first, then the verbs on Datasets, then the way from and to `ase.Atoms`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mofal.data.hashing import structure_hash
from mofal.data.variables import STATUSES, VARIABLES, describe, validate
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

_LABELS = ("energy", "forces", "stress", "status", "reason", "wall_time")
_BASE = frozenset({"numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"})
_LEVEL_ATTRS = ("level_of_theory", "level_hash", "isolated_atom_energies")
_NOT_COMPARABLE = {
    "level_hash": "labels of two levels of theory",
    "model_hash": "features of two models",
    "density_hash": "scores of two densities",
}
TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- arrays
def offsets(n_atoms: np.ndarray) -> np.ndarray:
    """First atom of each structure, and the total at the end: shape (structure + 1,)."""
    return np.concatenate([[0], np.cumsum(n_atoms, dtype=np.int64)])


def gather_index(n_atoms: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Flat atom indices of the chosen structures, in their order: shape (atom,)."""
    start = offsets(n_atoms)[:-1][indices]
    count = np.asarray(n_atoms)[indices]
    shift = np.repeat(start - offsets(count)[:-1], count)
    return np.arange(int(count.sum()), dtype=np.int64) + shift


def count_elements(numbers: np.ndarray, structure_index: np.ndarray, n: int) -> np.ndarray:
    """How many atoms of each element each structure has: shape (structure, 119)."""
    out = np.zeros((n, 119), np.int64)
    np.add.at(out, (np.asarray(structure_index), np.asarray(numbers)), 1)
    return out


# ---------------------------------------------------------------------------------- verbs
def make_structures(
    numbers: np.ndarray,
    positions: np.ndarray,
    *,
    n_atoms: Sequence[int] | np.ndarray,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | bool | None = None,
    system: str | Sequence[str] = "",
    parent: str | Sequence[str] = "",
    **more: Any,
) -> xr.Dataset:
    """Make a structures Dataset from flat arrays.

    Parameters
    ----------
    numbers : (atom,) int
    positions : (atom, 3) float, Å
    n_atoms : (structure,) int
    cell : (structure, 3, 3) float, Å, optional
        None, or zeros, for a finite structure.
    pbc : (structure, 3) bool, optional
        Default: periodic wherever there is a cell.
    system, parent : str or sequence of str
        One for all, or one each.
    **more
        Further registered variables, e.g. `region`.

    Raises
    ------
    DataError
        Shapes do not fit together.
    """
    import xarray as xr

    count = np.asarray(n_atoms, np.int64)
    n = len(count)
    z = np.asarray(numbers, np.int32)
    xyz = np.asarray(positions, np.float64).reshape(-1, 3)
    if len(z) != len(xyz) or len(z) != count.sum():
        raise DataError(
            f"{len(z)} numbers, {len(xyz)} positions and n_atoms adding up to {int(count.sum())} "
            "do not belong together"
        )
    lattice = np.zeros((n, 3, 3)) if cell is None else np.asarray(cell, np.float64)
    lattice = lattice.reshape(n, 3, 3)
    if pbc is None:
        periodic = np.abs(lattice).sum(axis=2) > 0
    else:
        periodic = np.broadcast_to(np.asarray(pbc, np.bool_), (n, 3)).copy()
    start = offsets(count)
    ids = [
        structure_hash(z[a:b], xyz[a:b], lattice[i], periodic[i])
        for i, (a, b) in enumerate(pairwise(start))
    ]
    variables: dict[str, Any] = {
        "numbers": ("atom", z),
        "positions": (("atom", "xyz"), xyz),
        "cell": (("structure", "cell_vector", "xyz"), lattice),
        "pbc": (("structure", "cell_vector"), periodic),
        "n_atoms": ("structure", count),
        "structure_index": ("atom", np.repeat(np.arange(n), count)),
        "structure_id": ("structure", np.array(ids, TEXT)),
        "system": ("structure", _text(system, n)),
        "parent": ("structure", _text(parent, n)),
    }
    for name, value in more.items():
        spec = VARIABLES.get(name)
        if spec is None:
            raise DataError(f"{name!r} is no registered variable (mofal/data/variables.py)")
        dtype = TEXT if spec.dtype == "str" else np.dtype(spec.dtype)
        variables[name] = (spec.dims, np.asarray(value, dtype))
    return validate(describe(xr.Dataset(variables)), "structures")


def _text(value: str | Iterable[str], n: int) -> np.ndarray:
    values = [value] * n if isinstance(value, str) else [str(v) for v in value]
    if len(values) != n:
        raise DataError(f"{len(values)} names for {n} structures")
    return np.array(values, TEXT)


def atom_slice(ds: xr.Dataset, i: int) -> slice:
    """Atoms of structure `i` as a slice along `atom`."""
    start = offsets(ds["n_atoms"].values)
    n = len(start) - 1
    if not -n <= i < n:
        raise DataError(f"structure {i} of a Dataset that has {n}")
    i %= n
    return slice(int(start[i]), int(start[i + 1]))


def select(ds: xr.Dataset, indices: int | Sequence[int] | np.ndarray | slice) -> xr.Dataset:
    """Choose structures by position, with their atoms, in the order given; stays lazy.

    Parameters
    ----------
    indices : int, sequence of int, boolean mask or slice
        Along `structure`.
    """
    n = ds.sizes["structure"]
    if isinstance(indices, slice):
        chosen = np.arange(n)[indices]
    else:
        chosen = np.atleast_1d(np.asarray(indices))
        if chosen.size == 0:
            chosen = chosen.astype(np.int64)
        if chosen.dtype == bool:
            if len(chosen) != n:
                raise DataError(f"a mask of {len(chosen)} for {n} structures")
            chosen = np.flatnonzero(chosen)
    if chosen.size and (chosen.min() < -n or chosen.max() >= n):
        raise DataError(f"structure {int(chosen.max())} of a Dataset that has {n}")
    chosen = chosen % n if n else chosen
    count = ds["n_atoms"].values
    out = ds.isel(structure=chosen)
    if "atom" in ds.sizes:
        out = out.isel(atom=gather_index(count, chosen))
        if "structure_index" in out:
            index = np.repeat(np.arange(len(chosen)), count[chosen])
            out["structure_index"] = ("atom", index, ds["structure_index"].attrs)
    return out


def concat(datasets: Sequence[xr.Dataset]) -> xr.Dataset:
    """Join Datasets of structures, labels, features or scores, one after the other.

    A variable that only some of them have is filled: NaN for labels and numbers, ``""`` for text,
    core (0) for `region`, -1 for `parent_atom`.

    Raises
    ------
    DataError
        There is none, or labels of two levels of theory (or features of two models) would be mixed.
    """
    import xarray as xr

    parts = [d for d in datasets if d.sizes.get("structure", 0) > 0] or list(datasets[:1])
    if not parts:
        raise DataError("nothing to concatenate")
    attrs: dict[str, Any] = {}
    for part in parts:
        for key, value in part.attrs.items():
            if key in _NOT_COMPARABLE and attrs.get(key, value) != value:
                raise DataError(
                    f"{_NOT_COMPARABLE[key]} in one Dataset: {attrs[key]} and {value}; "
                    "they are not comparable"
                )
            attrs[key] = value
    names = list(dict.fromkeys(str(v) for part in parts for v in part.data_vars))
    filled = []
    for part in parts:
        missing = {}
        for name in names:
            if name not in part:
                spec = next(p[name] for p in parts if name in p)
                shape = tuple(part.sizes.get(d, spec.sizes[d]) for d in spec.dims)
                missing[name] = (spec.dims, _filler(name, spec.dtype, shape), spec.attrs)
        filled.append(part.assign(missing) if missing else part)
    shift = 0
    renumbered = []
    for part in filled:
        if "structure_index" in part:
            part = part.assign(structure_index=part["structure_index"] + shift)
        shift += part.sizes["structure"]
        renumbered.append(part)
    by_dim: dict[str, xr.DataArray] = {}
    for name in names:
        dims = renumbered[0][name].dims
        along = "atom" if "atom" in dims else "structure" if "structure" in dims else None
        if along is None:
            by_dim[name] = renumbered[0][name]
        else:
            by_dim[name] = xr.concat(
                [p[name] for p in renumbered], dim=along, coords="minimal", compat="override"
            )
    out = xr.Dataset(by_dim)
    for name in names:
        out[name].attrs = renumbered[0][name].attrs
    out.attrs = attrs
    return out


def _filler(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    if dtype.kind in "UTO":
        return np.full(shape, "", TEXT)
    if dtype.kind == "f":
        return np.full(shape, np.nan, dtype)
    return np.full(shape, -1 if name == "parent_atom" else 0, dtype)


def relative_energy(ds: xr.Dataset) -> xr.DataArray:
    """Energy minus the isolated atoms at the same level, in eV: shape (structure,).

    This is what a potential is trained on (method.md, Energy zero): totals of a capped cluster and
    of a crystal differ per atom by far more than what is to be learnt.

    Raises
    ------
    DataError
        The isolated-atom energies of an element are not known.
    """
    import xarray as xr

    text = ds.attrs.get("isolated_atom_energies")
    if text is None:
        raise DataError(
            "these labels carry no isolated_atom_energies: "
            'set ds.attrs["isolated_atom_energies"] to JSON such as {"H": -10.9, ...} in eV'
        )
    from ase.data import atomic_numbers, chemical_symbols

    per_element = np.full(119, np.nan)
    for symbol, value in json.loads(text).items():
        per_element[atomic_numbers[symbol]] = value
    counts = count_elements(
        ds["numbers"].values, ds["structure_index"].values, ds.sizes["structure"]
    )
    present = np.flatnonzero(counts.sum(axis=0))
    unknown = [chemical_symbols[z] for z in present if np.isnan(per_element[z])]
    if unknown:
        raise DataError(
            f"the isolated-atom energy of {', '.join(unknown)} at this level of theory is not "
            "known; add it to isolated_atom_energies"
        )
    atoms = counts[:, present] @ per_element[present]
    return xr.DataArray(
        ds["energy"].values - atoms,
        dims="structure",
        attrs={"units": "eV", "long_name": "energy minus isolated atoms"},
    )


# ---------------------------------------------------------------------------------- ase.Atoms
def from_atoms(
    atoms: Atoms | Sequence[Atoms],
    *,
    system: str | Sequence[str] | None = None,
    labels: bool = False,
) -> xr.Dataset:
    """Make a structures Dataset from `ase.Atoms`.

    Parameters
    ----------
    atoms : ase.Atoms or sequence of them
        `info` and per-atom `arrays` whose names are registered variables come along.
    system : str or sequence of str, optional
        Name of the system; default: ``info["system"]``.
    labels : bool
        Take energy, forces and stress of attached calculators (results that are there already; no
        calculation is started). What a calculator does not have becomes NaN.

    Raises
    ------
    DataError
        Nothing given, or positions that are not finite.
    """
    from ase import Atoms as AseAtoms

    frames = [atoms] if isinstance(atoms, AseAtoms) else list(atoms)
    if not frames:
        raise DataError("no structures given")
    n = len(frames)
    for i, frame in enumerate(frames):
        if len(frame) == 0:
            raise DataError(f"structure {i} has no atoms")
    more: dict[str, Any] = {}
    for name, spec in VARIABLES.items():
        if name in _BASE or name in ("structure_id", "system", "parent"):
            continue
        if spec.dims[0] == "structure" and any(name in f.info for f in frames):
            fill = _filler(name, _np_dtype(spec.dtype), (VARIABLE_WIDTH.get(name, 1),))[0]
            more[name] = [f.info.get(name, fill) for f in frames]
        elif spec.dims[0] == "atom" and any(name in f.arrays for f in frames):
            blocks = []
            for f in frames:
                if name in f.arrays:
                    blocks.append(f.arrays[name])
                else:
                    width = next(g.arrays[name].shape[1:] for g in frames if name in g.arrays)
                    blocks.append(_filler(name, _np_dtype(spec.dtype), (len(f), *width)))
            more[name] = np.concatenate(blocks)
    if labels:
        more.update(_calculator_results(frames))
    names = system if system is not None else [str(f.info.get("system", "")) for f in frames]
    out = make_structures(
        np.concatenate([f.numbers for f in frames]),
        np.concatenate([f.positions for f in frames]),
        n_atoms=[len(f) for f in frames],
        cell=np.array([f.cell.array for f in frames]).reshape(n, 3, 3),
        pbc=np.array([f.pbc for f in frames]).reshape(n, 3),
        system=names,
        parent=[str(f.info.get("parent", "")) for f in frames],
        **more,
    )
    if labels:
        validate(out, "labels")
    for key in _LEVEL_ATTRS:
        found = {str(f.info[key]) for f in frames if key in f.info}
        if len(found) > 1:
            raise DataError(f"structures with {len(found)} different {key} cannot be one Dataset")
        if found:
            out.attrs[key] = found.pop()
    return out


VARIABLE_WIDTH = {"stress": 6}


def _np_dtype(name: str) -> np.dtype:
    return TEXT if name == "str" else np.dtype(name)


def _calculator_results(frames: Sequence[Atoms]) -> dict[str, Any]:
    energy = np.full(len(frames), np.nan)
    stress = np.full((len(frames), 6), np.nan)
    forces = [np.full((len(f), 3), np.nan) for f in frames]
    status = [str(f.info.get("status", "")) for f in frames]
    for i, frame in enumerate(frames):
        results = getattr(frame.calc, "results", {}) if frame.calc is not None else {}
        if "energy" in results:
            energy[i] = float(results["energy"])
        if "forces" in results:
            forces[i] = np.asarray(results["forces"], float)
        if "stress" in results:
            value = np.asarray(results["stress"], float)
            stress[i] = (
                value if value.shape == (6,) else value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
            )
        if not status[i]:
            whole = np.isfinite(energy[i]) and np.isfinite(forces[i]).all()
            status[i] = "converged" if whole else "inconsistent"
        if status[i] not in STATUSES:
            raise DataError(
                f"structure {i} has status {status[i]!r}; expected one of {', '.join(STATUSES)}"
            )
    return {
        "energy": energy,
        "forces": np.concatenate(forces),
        "stress": stress,
        "status": status,
    }


@overload
def to_atoms(ds: xr.Dataset, i: None = None) -> list[Atoms]: ...
@overload
def to_atoms(ds: xr.Dataset, i: int) -> Atoms: ...
def to_atoms(ds: xr.Dataset, i: int | None = None) -> list[Atoms] | Atoms:
    """Make `ase.Atoms` of all structures, or of structure `i`.

    Registered variables become `info` and `arrays`; labels become the results of a
    `SinglePointCalculator` (where energy or forces are there), so that ASE sees them as its own.
    """
    chosen = range(ds.sizes["structure"]) if i is None else [i]
    out = [_one_atoms(ds, k) for k in chosen]
    return out if i is None else out[0]


def _one_atoms(ds: xr.Dataset, i: int) -> Atoms:
    from ase import Atoms as AseAtoms
    from ase.calculators.singlepoint import SinglePointCalculator

    span = atom_slice(ds, i)
    out = AseAtoms(
        numbers=ds["numbers"][span].values,
        positions=ds["positions"][span].values,
        cell=ds["cell"][i].values,
        pbc=ds["pbc"][i].values,
    )
    for name in map(str, ds.data_vars):
        spec = VARIABLES.get(name)
        if spec is None or name in _BASE or name in _LABELS[:3]:
            continue
        if spec.dims == ("structure",):
            value = ds[name].values[i]
            out.info[name] = str(value) if spec.dtype == "str" else value.item()
        elif spec.dims[0] == "atom":
            out.arrays[name] = np.array(ds[name][span].values)
    for key in _LEVEL_ATTRS:
        if key in ds.attrs:
            out.info[key] = str(ds.attrs[key])
    results: Mapping[str, Any] = {}
    if "energy" in ds:
        results = {
            "energy": float(ds["energy"].values[i]),
            "forces": ds["forces"][span].values,
            "stress": ds["stress"].values[i] if "stress" in ds else np.full(6, np.nan),
        }
        kept = {k: v for k, v in results.items() if not np.all(np.isnan(v))}
        if kept:
            out.calc = SinglePointCalculator(out, **kept)
    return out
