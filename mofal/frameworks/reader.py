"""Frameworks from files: CIF, extended XYZ, anything that ASE reads, checked before it is used."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import StructureError
from mofal.frameworks.checks import check_structure

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

# Images of one CIF site that symmetry should have merged lie this close (Å): coordinates are
# printed with four digits, so that 0.3333 misses 1/3 by 0.002 Å in a cell of 60 Å.
_SPECIAL = 0.05


def read_framework(
    path: str | os.PathLike[str],
    *,
    index: int | None = None,
    rule: str = "carboxylate",
    charge: int | None = 0,
    system: str | None = None,
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

    Returns
    -------
    Dataset
        Of one structure. Attributes: ``notes`` (``"dehydroxylated"``, ``"2 interpenetrated
        nets"``, ``"4 guest molecules"``, ...), ``formula`` of the cell, ``rule``.

    Raises
    ------
    StructureError
        One line: what was found, what was expected, and what to do.
    """
    from mofal.data import from_atoms

    file = Path(path)
    try:
        atoms = _atoms(file, index)
        ds = from_atoms(atoms, system=system if system is not None else file.stem)
        blocks = check_structure(ds, rule=rule, charge=charge)
    except StructureError as error:
        text = str(error)
        raise StructureError(text if str(file) in text else f"{file}: {text}") from None
    ds.attrs["notes"] = blocks.attrs["notes"]
    ds.attrs["formula"] = str(atoms.symbols.formula.format("hill"))
    ds.attrs["rule"] = rule
    return ds


def _atoms(file: Path, index: int | None) -> Atoms:
    """One structure of a file, as it is written there."""
    from mofal.data.text import read_atoms

    if file.is_dir():
        raise StructureError(f"{file} is a directory, expected a file such as framework.cif")
    is_cif = file.suffix.lower() in (".cif", ".mcif")
    if is_cif and file.is_file() and file.stat().st_size:
        frames = _read_cif(file)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = read_atoms(file)
    if index is None and len(frames) > 1:
        raise StructureError(
            f"{file} holds {len(frames)} structures, expected one: say which, "
            "read_framework(path, index=0)"
        )
    try:
        atoms = frames[index or 0]
    except IndexError:
        raise StructureError(
            f"{file} holds {len(frames)} structures, there is none of index {index}"
        ) from None
    atoms.calc = None
    return atoms


def _read_cif(file: Path) -> list[Atoms]:
    """Structures of a CIF, its sites checked before symmetry spreads them."""
    from ase.io.cif import parse_cif

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(parse_cif(str(file)))
    except Exception as error:
        raise StructureError(
            f"{file} cannot be read as CIF: {_first_line(error)}; check it with a CIF validator"
        ) from None
    blocks = [b for b in found if _has_sites(b)]
    if not blocks:
        raise StructureError(
            f"{file} holds no atomic sites (_atom_site_fract_x ...): a CIF without a structure"
        )
    return [_from_cif_block(file, b) for b in blocks]


def _has_sites(block: Any) -> bool:
    return any(k in block for k in ("_atom_site_fract_x", "_atom_site_cartn_x"))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _column(block: Any, name: str) -> list[Any]:
    value = block.get(name)
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _from_cif_block(file: Path, block: Any) -> Atoms:
    labels = [str(v) for v in _column(block, "_atom_site_label")]
    symbols = [str(v) for v in _column(block, "_atom_site_type_symbol")] or labels
    labels = labels or symbols
    for axis in "xyz":
        for name in ("_atom_site_fract_" + axis, "_atom_site_cartn_" + axis):
            for label, value in zip(labels, _column(block, name)):
                if isinstance(value, str) or not np.isfinite(value):
                    raise StructureError(
                        f"{file}: site {label} has no position ({name} is {value!r}); remove or "
                        "complete it"
                    )
    _check_cell_tags(file, block)
    _check_occupancies(file, block, labels)
    _check_elements(file, symbols, labels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Merging images of a site is done here, with the tolerance and the note in view.
            atoms = block.get_atoms(
                store_tags=False,
                primitive_cell=False,
                subtrans_included=True,
                fractional_occupancies=False,
            )
    except Exception as error:
        raise StructureError(
            f"{file}: its symmetry or cell cannot be understood: {_first_line(error)}; write it in "
            "P 1 with another program"
        ) from None
    return _merge_images(atoms)


def _check_cell_tags(file: Path, block: Any) -> None:
    names = [f"_cell_length_{a}" for a in "abc"]
    names += [f"_cell_angle_{a}" for a in ("alpha", "beta", "gamma")]
    for name in names:
        value = block.get(name)
        if value is None:
            raise StructureError(f"{file}: {name} is missing, expected a cell")
        if isinstance(value, str) or not np.isfinite(value) or value <= 0:
            raise StructureError(f"{file}: {name} is {value!r}, expected a positive number")
        if "angle" in name and value >= 180:
            raise StructureError(f"{file}: {name} is {value!r}, expected less than 180 degrees")


def _check_occupancies(file: Path, block: Any, labels: list[str]) -> None:
    """Refuse sites that are only partly there: which of them are is for the user to say."""
    partial = []
    for label, value in zip(labels, _column(block, "_atom_site_occupancy")):
        if isinstance(value, str):
            if value in (".", "?"):
                continue
            raise StructureError(f"{file}: site {label} has occupancy {value!r}, expected a number")
        if value > 1.001 or value < 0:
            raise StructureError(f"{file}: site {label} has occupancy {value:g}, expected 0 to 1")
        if value < 0.999:
            partial.append((label, float(value)))
    if partial:
        label, value = partial[0]
        others = f" and {len(partial) - 1} other sites" if len(partial) > 1 else ""
        raise StructureError(
            f"{file}: site {label} is partly occupied ({value:g}){others}: disorder in the "
            "crystal; choose one alternative, set its occupancy to 1 and remove the others"
        )


def _check_elements(file: Path, symbols: list[str], labels: list[str]) -> None:
    from ase.data import atomic_numbers

    for symbol, label in zip(symbols, labels):
        # "Zr4+", "O2-" and "Zr1" name an element too; D is hydrogen.
        letters = re.match(r"[A-Za-z]{1,2}", symbol)
        name = letters.group().capitalize() if letters else ""
        if (name not in atomic_numbers and name != "D") or name == "X":
            raise StructureError(
                f"{file}: site {label} is of element {symbol!r}, which is none; "
                "correct _atom_site_type_symbol or remove the site"
            )


def _merge_images(atoms: Atoms) -> Atoms:
    """Drop images of a site on a special position that rounding has kept apart."""
    from matscipy.neighbours import neighbour_list

    if not len(atoms) or abs(np.linalg.det(atoms.cell.array)) < 1e-6:
        return atoms
    i, j = neighbour_list("ij", atoms, cutoff=_SPECIAL)
    z = atoms.numbers
    kinds = atoms.arrays.get("spacegroup_kinds", np.arange(len(atoms)))
    same = (z[i] == z[j]) & (kinds[i] == kinds[j]) & (i > j)
    if same.any():
        del atoms[np.unique(i[same]).tolist()]
    return atoms
