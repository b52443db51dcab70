"""Structures from CIF: each site is checked before symmetry spreads it, then symmetry is applied.

The file is parsed by gemmi; `spacegroups` says which operations it means.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
from ase import Atoms
from ase.cell import Cell
from ase.data import atomic_numbers
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.errors import StructureError
from mofal.frameworks.occupancy import FULL, Sites, settle
from mofal.frameworks.spacegroups import symmetry_of

# Images of one site that symmetry should have merged lie this close (Å): coordinates are printed
# with four digits, so that 0.3333 misses 1/3 by 0.002 Å in a cell of 60 Å.
SPECIAL = 0.05
# Atoms of one element this close (Å) are one atom.
SAME = 0.3

_FAR = 1e4
# A tag, and behind it words that begin like a value without quotes; then perhaps a comment.
_UNQUOTED = re.compile(r"(\s*_\S+\s+)([^'\"#;_$\[\]\s][^'\"#]*?)\s*(?:\s#.*)?")
_USED = ("_cell", "_atom_site_", "_atom_site.", "_symmetry", "_space_group")


def read_cif(file: Path, *, alternatives: str = "refuse") -> list[Atoms]:
    """Read every structure of a CIF, one per data block that has sites.

    Parameters
    ----------
    file : path
    alternatives : {"refuse", "major"}
        What becomes of disorder in the framework: a refusal that names the sites, or the larger
        alternative. Partly occupied sites that nothing binds are dropped.

    Returns
    -------
    list of Atoms
        ``info["reading"]`` says what was merged, dropped or kept.

    Raises
    ------
    StructureError
        A site of the framework is partly occupied, has no position or no element; the cell or the
        symmetry cannot be understood; there are no sites.
    """
    found = _parse(file)
    blocks = [b for b in found if any(f"_atom_site_{k}_x" in b for k in ("fract", "cartn"))]
    if not blocks:
        raise StructureError(
            f"{file} holds no atomic sites (_atom_site_fract_x ...): a CIF without a structure"
        )
    return [_structure(file, b, alternatives) for b in blocks]


def _parse(file: Path) -> list[dict[str, list[str]]]:
    """Values of each tag (lower case) of each data block."""
    from gemmi import cif

    text = _text(file)
    try:
        # Level 0: a tag without a value (a stray _end) and what is there twice are no reason to
        # refuse what is never looked at.
        try:
            document = cif.read_string(text, 0)
        except ValueError:
            document = cif.read_string(_quoted(text), 0)
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0].removeprefix("string:")
        if said.startswith("1:") and "block header" in said:
            said = "it does not begin with data_NAME"
        else:
            said = f"line {said}"
        raise StructureError(
            f"{file} cannot be read as CIF: {said}; check it with a CIF validator"
        ) from None
    return [_values(file, block) for block in document]


def _quoted(text: str) -> str:
    """The text with quotes around values of several words that have none (``..._H-M P 1``).

    Many programs write such files; within the format a tag's line can mean nothing else.
    """
    out, in_text = [], False
    for line in text.splitlines():
        in_text ^= line.startswith(";")
        match = None if in_text else _UNQUOTED.fullmatch(line)
        if match and len(match[2].split()) > 1 and " _" not in match[2]:
            line = f"{match[1]}'{match[2]}'"
        out.append(line)
    return "\n".join(out) + "\n"


def _plain(value: str) -> str:
    """A value without its quotes; ``?`` and ``.`` as they stand."""
    from gemmi import cif

    return value if value in ("?", ".") else str(cif.as_string(value))


def _values(file: Path, block: Any) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}

    def add(tag: str, values: list[str]) -> None:
        name = tag.lower()
        # The tags of mmCIF differ by one sign from those of the core dictionary.
        name = re.sub(r"^_(atom_site|cell)\.", r"_\1_", name)
        if name in out and out[name] != values and name.startswith(_USED):
            raise StructureError(
                f"{file}: {tag} stands twice in data_{block.name}, with different values: remove "
                "one of them"
            )
        out.setdefault(name, values)

    for item in block:
        if item.pair is not None:
            add(item.pair[0], [_plain(item.pair[1])])
        elif item.loop is not None:
            tags, values = list(item.loop.tags), list(item.loop.values)
            for k, tag in enumerate(tags):
                add(tag, [_plain(v) for v in values[k :: len(tags)]])
    return out


def _text(file: Path) -> str:
    """Text of a CIF: UTF-8 or UTF-16 with a mark of byte order, anything else by the byte."""
    raw = file.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", errors="replace")
    return raw.removeprefix(codecs.BOM_UTF8).decode("latin-1")


Block = Mapping[str, list[str]]


def _number(value: str) -> float | str:
    """A number without its standard uncertainty, or the text where it is none."""
    from gemmi import cif

    number = float(cif.as_number(value))
    return value if np.isnan(number) else number


def _shown(value: float | str) -> str:
    return repr(value) if isinstance(value, str) else f"{value:g}"


def _structure(file: Path, block: Block, alternatives: str) -> Atoms:
    labels = block.get("_atom_site_label", [])
    symbols = block.get("_atom_site_type_symbol", [])
    if not symbols:
        symbols = [_element_of(label) for label in labels]
    labels = labels or symbols
    kind = "fract" if "_atom_site_fract_x" in block else "cartn"
    coordinates = _coordinates(file, block, labels, kind)
    cell = _cell(file, block)
    occupancy = _occupancies(file, block, labels)
    numbers = _numbers(file, symbols, labels)
    if len(numbers) != len(coordinates):
        raise StructureError(
            f"{file}: {len(numbers)} labels and {len(coordinates)} positions do not fit together"
        )
    f = coordinates if kind == "fract" else np.linalg.solve(cell.T, coordinates.T).T
    symmetry = symmetry_of(file, block, cell)
    rotation, translation = symmetry.rotation, symmetry.translation
    images = np.einsum("oij,sj->soi", rotation, f) + translation[None]
    fractions = np.mod(images.reshape(-1, 3), 1.0)
    site = np.repeat(np.arange(len(f)), len(rotation))
    keep = _merge(fractions @ cell, cell, site)
    operation = np.tile(np.arange(len(rotation)), len(f))[keep]
    site, fractions = site[keep], fractions[keep]
    said: list[str] = []
    if (occupancy < FULL).any():
        there, said = _there(file, block, labels, alternatives, Sites(
            numbers[site], fractions @ cell, cell, occupancy[site], [labels[k] for k in site],
            ["."], ["."], operation,
        ), site)  # fmt: skip
        site, fractions = site[there], fractions[there]
    atoms = Atoms(numbers[site], positions=fractions @ cell, cell=cell, pbc=True)
    atoms = _merge_elements(atoms)
    atoms.info["reading"] = [*said, *atoms.info.pop("merged", [])]
    return atoms


def _there(
    file: Path,
    block: Block,
    labels: list[str],
    alternatives: str,
    sites: Sites,
    site: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], list[str]]:
    """Atoms that are there of a cell with partly occupied sites, and what was decided."""

    def column(tag: str) -> list[str]:
        said = block.get(tag, [])
        said = said if len(said) == len(labels) else ["."] * len(labels)
        return ["." if said[k] in ("?", ".", "", "0") else said[k] for k in site.tolist()]

    sites = replace(
        sites,
        assembly=column("_atom_site_disorder_assembly"),
        group=column("_atom_site_disorder_group"),
    )
    try:
        return settle(sites, alternatives)
    except StructureError as error:
        raise StructureError(f"{file}: {error}") from None


def _coordinates(file: Path, block: Block, labels: list[str], kind: str) -> NDArray[np.float64]:
    columns = []
    for axis in "xyz":
        name = f"_atom_site_{kind}_{axis}"
        values = [_number(v) for v in block.get(name, [])]
        for label, value in zip(labels, values):
            # 10^4 cells away no digit is left for where in its cell an atom is.
            if isinstance(value, str) or not abs(value) < _FAR:
                raise StructureError(
                    f"{file}: site {label} has no position ({name} is {_shown(value)}); remove or "
                    "complete it"
                )
        columns.append(values)
    if len({len(c) for c in columns}) != 1:
        raise StructureError(f"{file}: the columns of _atom_site_{kind}_x, y, z differ in length")
    return np.array(columns, float).T


def _cell(file: Path, block: Block) -> NDArray[np.float64]:
    values = []
    names = [f"_cell_length_{a}" for a in "abc"]
    names += [f"_cell_angle_{a}" for a in ("alpha", "beta", "gamma")]
    for name in names:
        said = block.get(name, [])
        if not said:
            raise StructureError(f"{file}: {name} is missing, expected a cell")
        value = _number(said[0])
        if isinstance(value, str) or not np.isfinite(value) or value <= 0:
            raise StructureError(f"{file}: {name} is {_shown(value)}, expected a positive number")
        if "angle" in name and value >= 180:
            raise StructureError(f"{file}: {name} is {value:g}, expected less than 180 degrees")
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


def _occupancies(file: Path, block: Block, labels: list[str]) -> NDArray[np.float64]:
    """Occupancy of each site; 1 where the file says nothing."""
    out = np.ones(len(labels))
    for k, (label, said) in enumerate(zip(labels, block.get("_atom_site_occupancy", []))):
        value = _number(said)
        if isinstance(value, str):
            if value in (".", "?"):
                continue
            raise StructureError(f"{file}: site {label} has occupancy {value!r}, expected a number")
        if value > 1.001 or value < 0:
            raise StructureError(f"{file}: site {label} has occupancy {value:g}, expected 0 to 1")
        out[k] = value
    return out


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


def _merge_elements(atoms: Atoms) -> Atoms:
    """One atom, in the middle, where atoms of one element lie within `SAME` of each other.

    Exact duplicates, and images of a site that just misses a mirror; how many went is said in
    ``info["merged"]``.
    """
    i, j, vector = neighbour_list("ijD", atoms, 1.0)
    same = (atoms.numbers[i] == atoms.numbers[j]) & (np.linalg.norm(vector, axis=1) < SAME)
    i, j, vector = i[same], j[same], vector[same]
    if not len(i):
        return atoms
    n = len(atoms)
    graph = sp.csr_array((np.ones(len(i), np.int8), (i, j)), shape=(n, n))
    _, group = csgraph.connected_components(graph, directed=False)
    first = np.full(group.max() + 1, n)
    np.minimum.at(first, group, np.arange(n))
    # The mean over the group, as seen from its first atom.
    from_first = np.flatnonzero(first[group[i]] == i)
    shift = np.zeros((n, 3))
    np.add.at(shift, i[from_first], vector[from_first])
    size = np.bincount(group)
    keep = np.unique(first)
    out = atoms[keep]
    out.positions += shift[keep] / size[group[keep]][:, None]
    count = n - len(keep)
    out.info["merged"] = [f"{count} atoms merged with others of their element within 0.3 Å"]
    return out


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
