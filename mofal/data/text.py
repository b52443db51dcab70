"""Text files: extended XYZ without loss, and whatever else ASE reads.

ASE's own writer keeps 8 decimals, and since ASE 3.23 the keys `energy` and `forces` become a
calculator's results on reading. Here numbers are written so that they read back bit for bit, and
labels stay labels (`SinglePointCalculator` on the way in, energy/forces/stress on the way out).

ASE's reader guesses types: the text ``12`` becomes a number, ``T`` a boolean, ``1e5`` (which may
well be the start of a hash) a float. Text that it would not give back is written as JSON, which it
knows by the prefix ``_JSON``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.atoms import IDENTITY_ATTRS, from_atoms, to_atoms
from mofal.data.documents import parse_json
from mofal.data.ragged import offsets, select
from mofal.data.variables import VARIABLES
from mofal.errors import ConfigError, DataError, StructureError
from mofal.files import atomic_path, not_written

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

_XYZ = (".xyz", ".extxyz")
_ELSEWHERE = frozenset({"numbers", "positions", "cell", "pbc", "n_atoms", "structure_index"})
"""What has a place of its own in the file, or follows from it."""
_LEAST_LINE = 2
"""Bytes of the line of an atom, at the very least."""
_COLUMNS = re.compile(rb":[RISLrisl]:([0-9]+)")
_BRACKETS = re.compile(rb"[\[{(]")
_MOST_BRACKETS = 10_000
_ATOMS_AT_ONCE = 100_000
_VOIGT_TO_FULL = [0, 5, 4, 5, 1, 3, 4, 3, 2]


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
    if file.suffix.lower() in _XYZ:
        _check_counts(file)
    try:
        # An "@" in a name is part of the name here, not ASE's way to choose frames.
        frames = ase.io.read(file, index=":", do_not_split_by_at_sign=True)
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


def _energies(value: Any, path: str | os.PathLike[str]) -> str:
    """JSON text of energies by element that a file states, as an object or as text of one.

    Raises
    ------
    StructureError
        It is something else, or holds what is no number.
    """
    where = f"{path}: isolated_atom_energies"
    try:
        content = parse_json(value, where=where) if isinstance(value, str) else value
    except ConfigError as error:
        raise StructureError(str(error)) from None
    if not isinstance(content, dict) or not all(type(v) in (int, float) for v in content.values()):
        raise StructureError(f'{where} are none; expected eV by element, e.g. {{"H": -10.9}}')
    return value if isinstance(value, str) else json.dumps(content, sort_keys=True)


def _check_counts(file: Path) -> None:
    """Refuse an XYZ file whose numbers of atoms its lines cannot hold: ASE would count to them."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        frame = 0
        while (head := stream.readline(100).strip()).isdigit():
            left = size - stream.tell()
            if len(head) > 18 or int(head) > left // _LEAST_LINE:
                number = (
                    head.decode() if len(head) < 30 else f"a number of {len(head)} digits or more"
                )
                raise StructureError(
                    f"{file}, structure {frame}: its first line says {number} atoms, more than "
                    f"the {left} bytes that follow can hold"
                )
            comment = stream.readline()
            wide = [int(n[:18]) for n in _COLUMNS.findall(comment)]
            if any(columns > left for columns in wide):
                raise StructureError(
                    f"{file}, structure {frame}: its Properties say {max(wide)} columns, more than "
                    f"the {left} bytes that follow can hold"
                )
            if len(_BRACKETS.findall(comment)) > _MOST_BRACKETS:  # ASE's time goes by their square
                raise StructureError(
                    f"{file}, structure {frame}: its comment line has more than {_MOST_BRACKETS} "
                    "brackets"
                )
            for _ in range(int(head)):
                if not stream.readline():
                    return  # too short: ASE says so
            frame += 1


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
    labelled = any((f.calc is not None and f.calc.results) or "status" in f.info for f in frames)
    return of_frames(frames, path, system=system, labelled=labelled)


def of_frames(
    frames: list[Atoms],
    path: str | os.PathLike[str],
    *,
    system: str | None = None,
    labelled: bool = False,
) -> xr.Dataset:
    """Make the Dataset of frames that `read_atoms` gave; see `read`."""
    name: str | list[str]
    if system is not None:
        name = system
    else:
        name = [str(f.info.get("system", Path(path).stem)) for f in frames]
    for f in frames:
        if isinstance(f.info.get("level_of_theory"), dict):
            f.info["level_of_theory"] = json.dumps(f.info["level_of_theory"], sort_keys=True)
        if "isolated_atom_energies" in f.info:
            f.info["isolated_atom_energies"] = _energies(f.info["isolated_atom_energies"], path)
    try:
        return from_atoms(frames, system=name, labels=labelled)
    except DataError as error:
        raise StructureError(f"{path}: {error}") from error


def write(ds: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write structures as extended XYZ so that reading gives the same Dataset, bit for bit.

    All registered variables are written except `features`, and the attributes that say what labels
    belong to; other attributes and variables are not. For other formats (by the ending of the name)
    ASE's writers are used, with their limits. Reads lazy variables, some structures at a time.

    Raises
    ------
    DataError
        The ending names no format that ASE writes, or an integer is too large for it.
    StoreError
        The disk refused.
    """
    file = Path(path)
    try:
        with atomic_path(file) as temporary:
            if file.suffix.lower() in _XYZ:
                with temporary.open("w", encoding="ascii", newline="\n") as handle:
                    handle.writelines(_frames(ds))
            else:
                _write_other(ds, file, temporary)
    except OSError as error:
        raise not_written(file, error) from error
    return file


def _write_other(ds: xr.Dataset, file: Path, temporary: Path) -> None:
    import ase.io
    from ase.io.formats import UnknownFileTypeError, filetype

    try:
        ase.io.write(temporary, to_atoms(ds), format=filetype(file.name, read=False))
    except OSError:
        raise
    except UnknownFileTypeError:
        raise DataError(
            f"{file} has no ending of a format that can be written; expected e.g. .extxyz or .cif"
        ) from None
    except Exception as error:
        raise DataError(
            f"ASE cannot write {file}: {error}; write extended XYZ instead: "
            f"{file.with_suffix('.extxyz').name}"
        ) from error


def _frames(ds: xr.Dataset) -> Iterator[str]:
    keep = [n for n in map(str, ds.variables) if n in VARIABLES and n != "features"]
    ds = ds[keep]
    start = offsets(ds["n_atoms"].values)
    first = 0
    while first < ds.sizes["structure"]:
        last = int(np.searchsorted(start, start[first] + _ATOMS_AT_ONCE, "right")) - 1
        last = max(first + 1, last)
        part = select(ds, slice(first, last)).compute()
        span = offsets(part["n_atoms"].values)
        columns, header = _atom_columns(part)
        for i in range(last - first):
            yield _frame(part, i, slice(int(span[i]), int(span[i + 1])), columns, header)
        first = last


def _atom_columns(ds: xr.Dataset) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tables of what is written per atom, and how the header names them."""
    columns: dict[str, np.ndarray] = {}
    header: dict[str, str] = {}
    for name in ("positions", *map(str, ds.variables)):
        if name in columns or (name in _ELSEWHERE and name != "positions"):
            continue
        if VARIABLES[name].dims[0] != "atom":
            continue
        values = ds[name].values
        if values.dtype.kind in "iu" and values.size and np.abs(values).max() >= 2**31:
            raise DataError(
                f"{name} holds {int(values[np.abs(values).argmax()])}, and extended XYZ as ASE "
                "reads it holds integers of 32 bits; write a group instead: "
                "mofal.data.write_group"
            )
        table = values.reshape(len(values), -1)
        kind = {"f": "R", "i": "I", "u": "I", "b": "L"}[values.dtype.kind]
        columns[name] = table
        header[name] = f"{'pos' if name == 'positions' else name}:{kind}:{table.shape[1]}"
    return columns, header


def _frame(
    ds: xr.Dataset,
    i: int,
    span: slice,
    columns: dict[str, np.ndarray],
    header: dict[str, str],
) -> str:
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in ds["numbers"].values[span].tolist()]
    tables = {name: table[span] for name, table in columns.items()}
    if "forces" in tables and np.isnan(tables["forces"]).all():
        del tables["forces"]
    comment = []
    cell = ds["cell"].values[i].ravel()
    if np.any(cell) or np.signbit(cell).any():
        comment.append(f'Lattice="{_numbers(cell)}"')
    comment.append(":".join(["Properties=species:S:1", *(header[name] for name in tables)]))
    comment.append(f'pbc="{_numbers(ds["pbc"].values[i])}"')
    for name in map(str, ds.variables):
        if name in _ELSEWHERE or VARIABLES[name].dims[0] != "structure":
            continue
        value = ds[name].values[i]
        if VARIABLES[name].dtype == "str":
            comment.append(f"{name}={_quoted(str(value))}")
        elif not np.all(np.isnan(value)):
            full = value[_VOIGT_TO_FULL] if name == "stress" else np.atleast_1d(value)
            comment.append(
                f'{name}="{_numbers(full)}"' if len(full) > 1 else f"{name}={_numbers(full)}"
            )
    for key in IDENTITY_ATTRS:
        if key in ds.attrs:
            comment.append(f"{key}={_quoted(str(ds.attrs[key]))}")
    rows = zip(symbols, *(map(_row, table.tolist()) for table in tables.values()))
    lines = [str(len(symbols)), " ".join(comment), *map(" ".join, rows)]
    return "\n".join(lines) + "\n"


def _numbers(values: np.ndarray) -> str:
    return _row(np.asarray(values).tolist())


def _row(values: list[Any]) -> str:
    return " ".join(
        ("T" if value else "F") if isinstance(value, bool) else repr(value) for value in values
    )


@lru_cache(maxsize=1024)
def _quoted(text: str) -> str:
    from ase.io.extxyz import key_val_str_to_dict

    if text.isascii() and text.isprintable() and not text.startswith("_JSON"):
        plain = _delimited(text)
        back = key_val_str_to_dict(f"key={plain}").get("key")
        if isinstance(back, str) and back == text:
            return plain
    return _delimited(f"_JSON {json.dumps(text)}")


def _delimited(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
