"""Structures from CIF: each site is checked before symmetry spreads it, then symmetry is applied.

Operations that the file lists are applied as they stand. Only a file without any is read by the
number or the name of its space group.
"""

from __future__ import annotations

import codecs
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_numbers
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray

from mofal.errors import StructureError

# Images of one site that symmetry should have merged lie this close (Å): coordinates are printed
# with four digits, so that 0.3333 misses 1/3 by 0.002 Å in a cell of 60 Å.
SPECIAL = 0.05

_FAR = 1e4

_OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
_NUMBERS = (
    "_space_group_it_number",
    "_space_group.it_number",
    "_symmetry_int_tables_number",
)
_NAMES = (
    "_space_group_name_h-m_alt",
    "_space_group.name_h-m_alt",
    "_symmetry_space_group_name_h-m",
)
_TERM = re.compile(r"([+-]?)(?:(\d+)/(\d+)|(\d*\.?\d+)|([xyz]))")


def read_cif(file: Path) -> list[Atoms]:
    """Read every structure of a CIF, one per data block that has sites.

    Raises
    ------
    StructureError
        A site is partly occupied, has no position or no element; the cell or the symmetry cannot
        be understood; there are no sites.
    """
    from ase.io.cif import parse_cif

    text = _text(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(parse_cif(io.StringIO(text)))
    except Exception as error:
        said = str(error).strip()
        # The reader asserts that a file begins with a data block, without a word.
        reason = said.splitlines()[0] if said else "it does not begin with data_NAME"
        raise StructureError(
            f"{file} cannot be read as CIF: {reason}; check it with a CIF validator"
        ) from None
    blocks = [b for b in found if any(f"_atom_site_{k}_x" in b for k in ("fract", "cartn"))]
    if not blocks:
        raise StructureError(
            f"{file} holds no atomic sites (_atom_site_fract_x ...): a CIF without a structure"
        )
    return [_structure(file, b) for b in blocks]


def _text(file: Path) -> str:
    """Text of a CIF: UTF-8 or UTF-16 with a mark of byte order, anything else by the byte."""
    raw = file.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    return raw.removeprefix(codecs.BOM_UTF8).decode("latin-1")


def parse_operation(text: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rotation (3, 3) and translation (3,) of an operation such as ``-x+1/2,y,-z``.

    Raises
    ------
    ValueError
        When it is none.
    """
    rotation, translation = np.zeros((3, 3), np.int64), np.zeros(3)
    parts = re.sub(r"\s+", "", text.lower()).split(",")
    if len(parts) != 3:
        raise ValueError(f"{text!r} has {len(parts)} parts, expected 3")
    for row, part in enumerate(parts):
        if not part or "".join(m.group() for m in _TERM.finditer(part)) != part:
            raise ValueError(f"{part!r} is no sum of x, y, z and fractions")
        for sign, above, below, number, axis in _TERM.findall(part):
            factor = -1 if sign == "-" else 1
            if axis:
                rotation[row, "xyz".index(axis)] += factor
            elif number:
                translation[row] += factor * float(number)
            else:
                translation[row] += factor * int(above) / int(below)
    if abs(round(float(np.linalg.det(rotation)))) != 1:
        raise ValueError(f"{text!r} is no rotation")
    return rotation, translation


def _column(block: Any, name: str) -> list[Any]:
    value = block.get(name)
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _first(block: Any, names: tuple[str, ...]) -> Any:
    return next((block[n] for n in names if n in block and block[n] not in ("?", ".")), None)


def _structure(file: Path, block: Any) -> Atoms:
    labels = [str(v) for v in _column(block, "_atom_site_label")]
    symbols = [str(v) for v in _column(block, "_atom_site_type_symbol")]
    if not symbols:
        symbols = [_element_of(label) for label in labels]
    labels = labels or symbols
    kind = "fract" if "_atom_site_fract_x" in block else "cartn"
    coordinates = _coordinates(file, block, labels, kind)
    cell = _cell(file, block)
    _check_occupancies(file, block, labels)
    numbers = _numbers(file, symbols, labels)
    if len(numbers) != len(coordinates):
        raise StructureError(
            f"{file}: {len(numbers)} labels and {len(coordinates)} positions do not fit together"
        )
    f = coordinates if kind == "fract" else np.linalg.solve(cell.T, coordinates.T).T
    rotation, translation = _symmetry(file, block, cell)
    images = np.einsum("oij,sj->soi", rotation, f) + translation[None]
    fractions = np.mod(images.reshape(-1, 3), 1.0)
    site = np.repeat(np.arange(len(f)), len(rotation))
    keep = _merge(fractions @ cell, cell, site)
    return Atoms(numbers[site[keep]], positions=fractions[keep] @ cell, cell=cell, pbc=True)


def _coordinates(file: Path, block: Any, labels: list[str], kind: str) -> NDArray[np.float64]:
    columns = []
    for axis in "xyz":
        name = f"_atom_site_{kind}_{axis}"
        values = _column(block, name)
        for label, value in zip(labels, values):
            # 10^4 cells away no digit is left for where in its cell an atom is.
            if isinstance(value, str) or not abs(value) < _FAR:
                raise StructureError(
                    f"{file}: site {label} has no position ({name} is {value!r}); remove or "
                    "complete it"
                )
        columns.append(values)
    if len({len(c) for c in columns}) != 1:
        raise StructureError(f"{file}: the columns of _atom_site_{kind}_x, y, z differ in length")
    return np.array(columns, float).T


def _cell(file: Path, block: Any) -> NDArray[np.float64]:
    values = []
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
        values.append(float(value))
    # The determinant of the metric: not positive where three such angles meet at no corner.
    cosine = np.cos(np.radians(values[3:]))
    metric = 1 + 2 * cosine.prod() - (cosine**2).sum()
    cell = np.asarray(Cell.fromcellpar(values).array) if metric > 1e-9 else np.zeros((3, 3))
    if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < 1e-3:
        raise StructureError(
            f"{file}: no cell has angles of {', '.join(f'{v:g}' for v in values[3:])} degrees"
        )
    return cell


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


def _element_of(label: str) -> str:
    """Symbol that a label begins with: OW1 is oxygen, ZR1 zirconium."""
    letters = re.match(r"[A-Za-z]{1,2}", label)
    name = letters.group().capitalize() if letters else label
    known = name in atomic_numbers and name != "X"
    return label if known or name[:1] not in atomic_numbers else name[:1]


def _numbers(file: Path, symbols: list[str], labels: list[str]) -> NDArray[np.int32]:
    out = []
    for symbol, label in zip(symbols, labels):
        # "Zr4+", "O2-" and "Zr1" name an element too; D is hydrogen.
        letters = re.match(r"[A-Za-z]{1,2}", symbol)
        name = letters.group().capitalize() if letters else ""
        name = "H" if name == "D" else name
        if name not in atomic_numbers or name == "X":
            raise StructureError(
                f"{file}: site {label} is of element {symbol!r}, which is none; "
                "correct _atom_site_type_symbol or remove the site"
            )
        out.append(atomic_numbers[name])
    return np.array(out, np.int32)


def _symmetry(
    file: Path, block: Any, cell: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rotations (n, 3, 3) and translations (n, 3), for fractional columns."""
    texts = next((t for t in (_column(block, n) for n in _OPERATIONS) if t), [])
    texts = [str(t) for t in texts if str(t) not in ("?", ".")]
    if texts:
        try:
            parsed = [parse_operation(t) for t in texts]
        except (ValueError, ZeroDivisionError) as error:
            raise StructureError(f"{file}: a symmetry operation cannot be read: {error}") from None
        return np.array([r for r, _ in parsed]), np.array([t for _, t in parsed])
    group = _first(block, _NUMBERS)
    if group is None:
        group = _first(block, _NAMES)
    if group is None:
        return np.eye(3, dtype=np.int64)[None], np.zeros((1, 3))
    return _operations_of(file, group, cell)


def _operations_of(
    file: Path, group: Any, cell: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    from ase.spacegroup import Spacegroup

    name = int(group) if str(group).strip().isdigit() else str(group)
    # Rhombohedral groups are tabulated on hexagonal axes (setting 1) and on rhombohedral ones (2).
    hexagonal = abs(Cell(cell).angles()[2] - 120.0) < 0.5
    try:
        spacegroup = Spacegroup(name)
        if spacegroup.no in (146, 148, 155, 160, 161, 166, 167) and not hexagonal:
            spacegroup = Spacegroup(spacegroup.no, 2)
        rotation, translation = spacegroup.get_op()
    except Exception:
        raise StructureError(
            f"{file}: space group {group!r} is not known, and the file lists no operations; write "
            "it in P 1, or with _space_group_symop_operation_xyz"
        ) from None
    return np.asarray(rotation, np.int64), np.asarray(translation, float)


def _merge(
    positions: NDArray[np.float64], cell: NDArray[np.float64], site: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Images to keep: of those of one site that coincide, the first."""
    if len(np.unique(site)) == len(site):
        return np.arange(len(site))
    # The search cuts the cell into boxes as wide as its cutoff: one of 0.05 Å would make 10^9.
    i, j, d = neighbour_list("ijd", positions=positions, cell=cell, pbc=[True] * 3, cutoff=1.0)
    later = (site[i] == site[j]) & (i > j) & (d < SPECIAL)
    keep = np.ones(len(positions), bool)
    keep[i[later]] = False
    return np.flatnonzero(keep)
