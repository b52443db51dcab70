"""Frameworks from files: CIF, extended XYZ, anything that ASE reads, checked before it is used."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.errors import ConfigError, StructureError
from mofal.frameworks.checks import check_cell, check_overlaps, check_structure
from mofal.frameworks.cif import read_cif
from mofal.frameworks.hydrogens import add_hydrogens as complete
from mofal.frameworks.occupancy import ALTERNATIVES

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms


def read_framework(
    path: str | os.PathLike[str],
    *,
    index: int | None = None,
    rule: str = "auto",
    charge: int | None = 0,
    system: str | None = None,
    alternatives: str = "refuse",
    add_hydrogens: bool = False,
) -> xr.Dataset:
    """Read one framework from a file and check it.

    Parameters
    ----------
    path : path
        CIF, extended XYZ, POSCAR, or anything else that `ase.io.read` knows.
    index : int, optional
        Which structure of the file; needed where it holds several.
    rule : str
        Rule that cuts blocks (`rule_names`).
    charge : int or None
        Formal charge that the cell should have; None: do not look at it.
    system : str, optional
        Name of the system; default: the name of the file.
    alternatives : {"refuse", "major"}
        What becomes of disorder in the framework of a CIF: a refusal that names the sites, or the
        larger alternative of each. Partly occupied sites that nothing binds are always dropped.
    add_hydrogens : bool
        Complete C-H, bridging OH, and OH and water of nodes where geometry and charge leave one
        way only (`mofal.frameworks.hydrogens`).

    Returns
    -------
    Dataset
        Of one structure. Attributes: ``notes`` (``"dehydroxylated"``, ``"2 interpenetrated
        nets"``, ``"4 guest molecules"``, ...), ``formula`` of the cell, ``rule``.

    Raises
    ------
    StructureError
        One line: what was found, what was expected, and what to do.
    ConfigError
        `alternatives` is neither of the two.
    """
    from mofal.data import from_atoms

    if alternatives not in ALTERNATIVES:
        raise ConfigError(f"alternatives={alternatives!r}: expected {' or '.join(ALTERNATIVES)}")
    file = Path(path)
    try:
        atoms = _atoms(file, index, alternatives)
        said = atoms.info.pop("reading", [])
        if add_hydrogens:
            check_cell(atoms.positions, atoms.cell.array, atoms.pbc)
            check_overlaps(
                atoms.numbers.astype(np.int32), atoms.positions, atoms.cell.array, atoms.pbc
            )
            atoms, added = complete(atoms, rule=rule)
            said = [*said, *added]
        ds = from_atoms(atoms, system=system if system is not None else file.stem)
        blocks = check_structure(ds, rule=rule, charge=charge)
    except StructureError as error:
        text = str(error)
        raise StructureError(text if str(file) in text else f"{file}: {text}") from None
    notes = [blocks.attrs["notes"]] if blocks.attrs["notes"] else []
    ds.attrs["notes"] = ", ".join([*notes, *said])
    ds.attrs["formula"] = str(atoms.symbols.formula.format("hill"))
    ds.attrs["rule"] = rule
    return ds


def read_structures(
    path: str | os.PathLike[str], *, system: str | None = None, alternatives: str = "refuse"
) -> xr.Dataset:
    """Read all structures of a file as they are, with labels where it has them.

    A CIF goes through the reader of frameworks (settings of space groups, occupancies, merged
    images), everything else through `mofal.data.read`. No building blocks are looked for.

    Parameters
    ----------
    path : path
    system : str, optional
        Name of the system; default: what the file says, else the file's name.
    alternatives : {"refuse", "major"}
        As in `read_framework`.

    Returns
    -------
    Dataset
        One structure for each frame, or for each data block of a CIF that has sites. Attribute
        ``notes``: what was merged, dropped or kept, where something was.

    Raises
    ------
    StructureError
        One line: what was found, what was expected, and what to do.
    """
    from mofal.data import concat, from_atoms, read

    file = Path(path)
    if not _is_cif(file):
        return read(file, system=system)
    try:
        frames = read_frames(file, alternatives=alternatives)
    except StructureError as error:
        text = str(error)
        raise StructureError(text if str(file) in text else f"{file}: {text}") from None
    notes = [line for atoms in frames for line in atoms.info.pop("reading", [])]
    name = file.stem if system is None else system
    ds = concat([from_atoms(atoms, system=name) for atoms in frames])
    if notes:
        ds.attrs["notes"] = ", ".join(notes)
    return ds


def read_frames(file: Path, *, alternatives: str = "refuse") -> list[Atoms]:
    """Read every structure of a file as it is written there, a CIF by the reader of frameworks.

    Raises
    ------
    StructureError
        See `read_cif` and `mofal.data.text.read_atoms`.
    """
    from mofal.data.text import read_atoms

    if _is_cif(file):
        return read_cif(file, alternatives=alternatives)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_atoms(file)


def _is_cif(file: Path) -> bool:
    return file.suffix.lower() in (".cif", ".mcif") and file.is_file() and file.stat().st_size > 0


def _atoms(file: Path, index: int | None, alternatives: str) -> Atoms:
    """One structure of a file, as it is written there."""
    if file.is_dir():
        raise StructureError(f"{file} is a directory, expected a file such as framework.cif")
    frames = read_frames(file, alternatives=alternatives)
    if index is None and len(frames) > 1:
        raise StructureError(
            f"{file} holds {len(frames)} structures, expected one: say which, "
            "read_framework(path, index=0) (mofal blocks --index 0)"
        )
    try:
        atoms = frames[index or 0]
    except IndexError:
        raise StructureError(
            f"{file} holds {len(frames)} structures, there is none of index {index}"
        ) from None
    atoms.calc = None
    return atoms
