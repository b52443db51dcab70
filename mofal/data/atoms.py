"""From `ase.Atoms` to Datasets and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mofal.data.electrons import electronic_state
from mofal.data.ragged import BASE, TEXT, fill_value, make_structures, select
from mofal.data.variables import DIM_SIZES, STATUSES, VARIABLES, Variable, validate
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

IDENTITY_ATTRS = (
    "level_of_theory",
    "level_hash",
    "isolated_atom_energies",
    "model_hash",
    "density_hash",
)
"""Attributes that say what labels, features and scores belong to; they travel in `Atoms.info`."""
_RESULTS = ("energy", "forces", "stress")
_STATE = ("charge", "n_unpaired")


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
        `info` and per-atom `arrays` whose names are registered variables come along. `charge` and
        `n_unpaired` are read however they are stated (`mofal.data.electrons`).
    system : str or sequence of str, optional
        Name of the system; default: ``info["system"]``.
    labels : bool
        Take energy, forces and stress of attached calculators (results that are there already; no
        calculation is started), else of `info` and `arrays`. What is in neither becomes NaN. A
        structure that states no `status` is converged if energy and all forces are there,
        inconsistent if some are, and not labelled (an empty status) if none is.

    Raises
    ------
    DataError
        Nothing given, positions that are not finite, a value that its variable cannot hold, or a
        charge or spin that is stated in two ways.
    """
    from ase import Atoms as AseAtoms

    frames = [atoms] if isinstance(atoms, AseAtoms) else list(atoms)
    if not frames:
        raise DataError("no structures given")
    for i, frame in enumerate(frames):
        if len(frame) == 0:
            raise DataError(f"structure {i} has no atoms")
    more: dict[str, Any] = {}
    for name, spec in VARIABLES.items():
        if name in (*BASE, "structure_id", "system", "parent", *_STATE):
            continue
        if labels and name in (*_RESULTS, "status"):
            continue
        if spec.dims[0] == "structure" and any(name in f.info for f in frames):
            more[name] = _of_structures(frames, name, spec)
        elif spec.dims[0] == "atom" and any(name in f.arrays for f in frames):
            more[name] = _of_atoms(frames, name, spec)
    more.update(_states(frames))
    if labels:
        more.update(_labels(frames))
    names = system if system is not None else [str(f.info.get("system", "")) for f in frames]
    out = make_structures(
        np.concatenate([f.numbers for f in frames]),
        np.concatenate([f.positions for f in frames]),
        n_atoms=[len(f) for f in frames],
        cell=np.array([f.cell.array for f in frames]),
        pbc=np.array([f.pbc for f in frames]),
        system=names,
        parent=[str(f.info.get("parent", "")) for f in frames],
        **more,
    )
    for key in IDENTITY_ATTRS:
        found = {str(f.info[key]) for f in frames if key in f.info}
        if len(found) > 1:
            raise DataError(f"structures with {len(found)} different {key} cannot be one Dataset")
        if found:
            out.attrs[key] = found.pop()
    return validate(out, "labels") if labels else out


def _states(frames: Sequence[Atoms]) -> dict[str, list[int]]:
    """Charges and unpaired electrons, where a structure says something of them."""
    found: list[tuple[int, int]] = []
    for i, frame in enumerate(frames):
        try:
            found.append(electronic_state(frame))
        except DataError as error:
            raise DataError(f"structure {i}: {error}") from None
    columns = dict(zip(_STATE, map(list, zip(*found))))
    return {n: v for n, v in columns.items() if any(v) or any(n in f.info for f in frames)}


def _of_structures(frames: Sequence[Atoms], name: str, spec: Variable) -> list[Any]:
    shape = tuple(DIM_SIZES[d] for d in spec.dims[1:])
    fill = np.full(shape, fill_value(name, _dtype(spec)), _dtype(spec)).tolist()
    return [f.info.get(name, fill) for f in frames]


def _of_atoms(frames: Sequence[Atoms], name: str, spec: Variable) -> np.ndarray:
    width = next(f.arrays[name].shape[1:] for f in frames if name in f.arrays)
    blocks = []
    for i, f in enumerate(frames):
        block = f.arrays.get(name)
        if block is None:
            block = np.full((len(f), *width), fill_value(name, _dtype(spec)), _dtype(spec))
        if block.shape[1:] != width:
            raise DataError(
                f"{name} of structure {i} has shape {block.shape}, of another (atom, {width})"
            )
        blocks.append(block)
    return np.concatenate(blocks)


def _dtype(spec: Variable) -> np.dtype:
    return TEXT if spec.dtype == "str" else np.dtype(spec.dtype)


def _labels(frames: Sequence[Atoms]) -> dict[str, Any]:
    energy = np.full(len(frames), np.nan)
    stress = np.full((len(frames), 6), np.nan)
    forces = [np.full((len(f), 3), np.nan) for f in frames]
    status = [str(f.info.get("status", "")) for f in frames]
    for i, frame in enumerate(frames):
        results = {n: frame.info[n] for n in ("energy", "stress") if n in frame.info}
        if "forces" in frame.arrays:
            results["forces"] = frame.arrays["forces"]
        if frame.calc is not None:
            results.update(
                {k: v for k, v in getattr(frame.calc, "results", {}).items() if v is not None}
            )
        try:
            energy[i] = results.get("energy", np.nan)
            forces[i][:] = results.get("forces", np.nan)
            stress[i] = _voigt(results.get("stress", np.nan))
        except (TypeError, ValueError) as error:
            raise DataError(f"the labels of structure {i} have foreign shapes: {error}") from None
        if "status" not in frame.info:
            there = np.isfinite(np.append(forces[i], energy[i]))
            if there.any():
                status[i] = "converged" if there.all() else "inconsistent"
        elif status[i] not in (*STATUSES, ""):
            raise DataError(
                f"structure {i} has status {status[i]!r}; expected one of {', '.join(STATUSES)}"
            )
    return {
        "energy": energy,
        "forces": np.concatenate(forces),
        "stress": stress,
        "status": status,
    }


def _voigt(stress: Any) -> np.ndarray:
    value = np.asarray(stress, np.float64)
    return value[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] if value.shape == (3, 3) else value


@overload
def to_atoms(ds: xr.Dataset, i: None = None) -> list[Atoms]: ...
@overload
def to_atoms(ds: xr.Dataset, i: int) -> Atoms: ...
def to_atoms(ds: xr.Dataset, i: int | None = None) -> list[Atoms] | Atoms:
    """Make `ase.Atoms` of all structures, or of structure `i`. Reads lazy variables.

    Registered variables become `info` and `arrays` (empty texts are left out); labels become the
    results of a `SinglePointCalculator` (where energy, forces or stress are there), so that ASE
    sees them as its own.
    """
    part = (ds if i is None else select(ds, i)).compute()
    structure, atom = _columns(part)
    out = []
    stop = 0
    for k, count in enumerate(part["n_atoms"].values.tolist()):
        start, stop = stop, stop + count
        out.append(
            _one_atoms(
                {name: values[k] for name, values in structure.items()},
                {name: values[start:stop] for name, values in atom.items()},
                {key: str(part.attrs[key]) for key in IDENTITY_ATTRS if key in part.attrs},
            )
        )
    return out if i is None else out[0]


def _columns(ds: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    known = [n for n in map(str, ds.variables) if n in VARIABLES]
    by_dim = {
        dim: {n: ds[n].values for n in known if VARIABLES[n].dims[0] == dim}
        for dim in ("structure", "atom")
    }
    return by_dim["structure"], by_dim["atom"]


def _one_atoms(
    structure: dict[str, Any], atom: dict[str, np.ndarray], attrs: dict[str, str]
) -> Atoms:
    from ase import Atoms as AseAtoms
    from ase.calculators.singlepoint import SinglePointCalculator

    out = AseAtoms(
        numbers=atom["numbers"],
        positions=atom["positions"],
        cell=structure["cell"],
        pbc=structure["pbc"],
    )
    for name, value in structure.items():
        # An empty text says nothing, and ASE's own writer of extended XYZ trips over it.
        if name not in (*BASE, *_RESULTS) and value != "":
            out.info[name] = value.item() if isinstance(value, np.generic) else str(value)
    for name, values in atom.items():
        if name not in (*BASE, *_RESULTS):
            out.arrays[name] = np.array(values)
    out.info.update(attrs)
    results = {**structure, **atom}
    kept = {n: results[n] for n in _RESULTS if n in results and not np.all(np.isnan(results[n]))}
    if "energy" in kept:
        kept["energy"] = float(kept["energy"])
    if kept:
        out.calc = SinglePointCalculator(out, **kept)
    return out
