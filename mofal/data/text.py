"""Text files: extended XYZ without loss, and whatever else ASE reads.

ASE's own writer keeps 8 decimals, and since ASE 3.23 the keys `energy` and `forces` become a
calculator's results on reading. Here numbers are written so that they read back bit for bit, and
labels stay labels (`SinglePointCalculator` on the way in, energy/forces/stress on the way out).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.ragged import atom_slice, from_atoms
from mofal.data.store import atomic_path
from mofal.data.variables import VARIABLES
from mofal.errors import DataError, StructureError

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

_XYZ = (".xyz", ".extxyz")
_SKIPPED = frozenset({"numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"})


def read_atoms(path: str | os.PathLike[str]) -> list[Atoms]:
    """Read every frame of a file that ASE knows.

    Raises
    ------
    StructureError
        The file is missing, empty, or cannot be understood; or a position is not a number.
    """
    import ase.io

    file = Path(path)
    if not file.is_file():
        raise StructureError(f"{file} does not exist")
    if file.stat().st_size == 0:
        raise StructureError(f"{file} is empty")
    try:
        frames = ase.io.read(file, index=":")
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise StructureError(
            f"{file} cannot be read as a structure: {reason}; "
            "expected extended XYZ, CIF, or another format that ase.io.read knows"
        ) from None
    if not isinstance(frames, list) or not frames:
        raise StructureError(f"{file} holds no structure")
    for i, frame in enumerate(frames):
        place = f"{file}, structure {i}" if len(frames) > 1 else f"{file}"
        if len(frame) == 0:
            raise StructureError(f"{place} has no atoms")
        bad = np.flatnonzero(~np.isfinite(frame.positions).all(axis=1))
        if len(bad):
            raise StructureError(f"{place}: the position of atom {bad[0]} is not a number")
        if not np.isfinite(frame.cell.array).all():
            raise StructureError(f"{place}: the cell holds a value that is not a number")
        if (frame.numbers == 0).any():
            k = int(np.flatnonzero(frame.numbers == 0)[0])
            raise StructureError(f"{place}: atom {k} is of an unknown element")
    return frames


def read(path: str | os.PathLike[str], *, system: str | None = None) -> xr.Dataset:
    """Read structures, with labels where the file has them.

    Parameters
    ----------
    path : path
        Extended XYZ, CIF, or anything that `ase.io.read` knows; all frames are read.
    system : str, optional
        Name of the system; default: what the file says, else the file's name.

    Raises
    ------
    StructureError
        See `read_atoms`.
    """
    frames = read_atoms(path)
    labelled = any(f.calc is not None and f.calc.results for f in frames)
    name: str | list[str]
    if system is not None:
        name = system
    else:
        name = [str(f.info.get("system") or Path(path).stem) for f in frames]
    for f in frames:
        for key in ("level_of_theory", "isolated_atom_energies"):
            if isinstance(f.info.get(key), dict):
                f.info[key] = json.dumps(f.info[key], sort_keys=True)
    return from_atoms(frames, system=name, labels=labelled)


def write(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write structures as extended XYZ so that reading gives the same Dataset, bit for bit.

    For other formats (by the ending of the name) ASE's writers are used, with their limits.
    """
    file = Path(path)
    if file.suffix not in _XYZ:
        import ase.io

        from mofal.data.ragged import to_atoms

        with atomic_path(file) as temporary:
            named = temporary.with_name(temporary.name + file.suffix)
            ase.io.write(named, to_atoms(ds))
            named.rename(temporary)
        return file
    ds = ds.load() if any(ds[v].chunks for v in ds.variables) else ds
    with atomic_path(file) as temporary, temporary.open("w") as handle:
        for i in range(ds.sizes["structure"]):
            handle.write(_frame(ds, i))
    return file


def _frame(ds: xr.Dataset, i: int) -> str:
    from ase.data import chemical_symbols

    span = atom_slice(ds, i)
    symbols = [chemical_symbols[z] for z in ds["numbers"][span].values]
    properties = ["species:S:1", "pos:R:3"]
    columns: list[np.ndarray] = [ds["positions"][span].values]
    for name in map(str, ds.data_vars):
        spec = VARIABLES.get(name)
        if spec is None or name in _SKIPPED or spec.dims[0] != "atom" or name == "features":
            continue
        values = ds[name][span].values
        if name == "forces" and np.isnan(values).all():
            continue
        kind = {"f": "R", "i": "I", "b": "L"}[values.dtype.kind]
        table = values.reshape(len(symbols), -1)
        properties.append(f"{name}:{kind}:{table.shape[1]}")
        columns.append(table)
    comment = [f"Properties={':'.join(properties)}"]
    cell = ds["cell"][i].values
    if np.any(cell):
        comment.insert(0, f'Lattice="{" ".join(_number(v) for v in cell.ravel())}"')
    comment.append(f'pbc="{" ".join("T" if p else "F" for p in ds["pbc"][i].values)}"')
    for name in map(str, ds.data_vars):
        spec = VARIABLES.get(name)
        if spec is None or name in _SKIPPED or spec.dims[0] != "structure":
            continue
        value = ds[name].values[i]
        if spec.dtype == "str":
            if str(value):
                comment.append(f"{name}={_quoted(str(value))}")
        elif np.ndim(value):
            if not np.isnan(value).all():
                full = np.asarray(value)[[0, 5, 4, 5, 1, 3, 4, 3, 2]] if name == "stress" else value
                comment.append(f'{name}="{" ".join(_number(v) for v in full)}"')
        elif not (np.asarray(value).dtype.kind == "f" and np.isnan(value)):
            comment.append(f"{name}={_number(value)}")
    for key in ("level_of_theory", "level_hash", "isolated_atom_energies"):
        if key in ds.attrs:
            comment.append(f"{key}={_quoted(str(ds.attrs[key]))}")
    lines = [str(len(symbols)), " ".join(comment)]
    for k, symbol in enumerate(symbols):
        lines.append(
            " ".join([symbol, *(_number(v) for c in columns for v in np.atleast_1d(c[k]))])
        )
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    item = value.item() if hasattr(value, "item") else value
    if isinstance(item, bool):
        return "T" if item else "F"
    return repr(item)


def _quoted(text: str) -> str:
    if "\n" in text:
        raise DataError(f"a line break cannot be written to extended XYZ: {text!r}")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
