"""Which symmetry operations a CIF means.

Believed in this order: the list of operations, the Hall symbol, the Hermann-Mauguin symbol with its
setting, the number. What is less believed must still agree with what is more; and a number or a
symbol that fits several settings (origins, cell choices, axes) is no answer: the file is refused,
and the settings that there are, are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mofal.errors import StructureError

OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv.pos_as_xyz",
)
MAGNETIC = (
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop.magn_operation_xyz",
)
HALL = (
    "_space_group_name_hall",
    "_space_group.name_hall",
    "_symmetry_space_group_name_hall",
    "_symmetry.space_group_name_hall",
)
NAMES = (
    "_space_group_name_h-m_alt",
    "_space_group.name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_symmetry.space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group.name_h-m_full",
    "_symmetry.space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
    "_space_group.name_h-m_ref",
)
NUMBERS = (
    "_space_group_it_number",
    "_space_group.it_number",
    "_symmetry_int_tables_number",
    "_symmetry.int_tables_number",
)
CODES = (
    "_space_group_it_coordinate_system_code",
    "_space_group.it_coordinate_system_code",
)
_TERM = re.compile(r"([+-]?)(?:(\d+)/(\d+)|(\d*\.?\d+)|([xyz]))")
# How far the lengths and angles of a cell may be from what symmetry asks for: files are rounded,
# and relaxed cells are seldom symmetrised; a wrong setting misses by far more.
_METRIC = 0.02
# Suffixes of ICSD and of others: S, O1 and Z, O2 are the origin choices, H and R the axes.
_SUFFIX = {"s": "1", "z": "2", "o1": "1", "o2": "2", "1": "1", "2": "2", "h": "H", "r": "R"}
_WITH_E = (39, 41, 64, 67, 68)

Key = frozenset[tuple[int, ...]]


@dataclass(frozen=True)
class Symmetry:
    """Operations on fractional columns: rotations (n, 3, 3) and translations (n, 3)."""

    rotation: NDArray[np.int64]
    translation: NDArray[np.float64]

    @property
    def key(self) -> Key:
        """The set of operations, translations in 24ths of the cell, modulo the lattice."""
        shift = np.rint(24 * self.translation).astype(np.int64) % 24
        rows = np.column_stack([self.rotation.reshape(-1, 9), shift])
        return frozenset(tuple(row) for row in rows.tolist())


@dataclass(frozen=True)
class Setting:
    """One setting of the table: its names and operations."""

    number: int
    name: str
    hall: str
    origin: str
    code: str
    symmetry: Symmetry
    key: Key


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


def symmetry_of(file: Path, values: Mapping[str, list[str]], cell: NDArray[np.float64]) -> Symmetry:
    """Operations of one data block.

    Parameters
    ----------
    file : path
        For messages.
    values : mapping
        Values of each tag (lower case) of the block.
    cell : (3, 3) float, Å

    Returns
    -------
    Symmetry
        The identity alone where the block says nothing about symmetry.

    Raises
    ------
    StructureError
        An operation cannot be read, the operations are no group, what the file says about its
        space group disagrees or does not fit the cell, or it fits several settings.
    """
    listed = _listed(file, values)
    hall, name, number = (_said(values, tags) for tags in (HALL, NAMES, NUMBERS))
    said_by: list[tuple[str, list[Setting]]] = []
    if name:
        said_by.append((f"Hermann-Mauguin symbol {name!r}", by_name(name)))
    if number:
        said_by.append((f"number {number}", by_number(number)))
    code = _said(values, CODES)
    if code:
        said_by = [(text, _of_code(found, code)) for text, found in said_by]
    said_by = [(text, found) for text, found in said_by if found]
    from_hall = by_hall(hall) if hall else None
    if listed is not None:
        _same(file, listed, "the operations listed", from_hall, f"Hall symbol {hall!r}")
        for text, found in said_by:
            _agree(file, listed, "the operations listed", found, text)
        return _fits(file, listed, cell, "the operations listed")
    if from_hall is not None:
        for text, found in said_by:
            _agree(file, from_hall, f"Hall symbol {hall!r}", found, text)
        return _fits(file, from_hall, cell, f"Hall symbol {hall!r}")
    if not said_by:
        group = next((g for g in (name, number, hall) if g), None)
        if group is None:
            return Symmetry(np.eye(3, dtype=np.int64)[None], np.zeros((1, 3)))
        raise StructureError(
            f"{file}: space group {group!r} is not known, and the file lists no operations; write "
            "it in P 1, or with _space_group_symop_operation_xyz"
        )
    return _one_setting(file, said_by, cell)


def _listed(file: Path, values: Mapping[str, list[str]]) -> Symmetry | None:
    texts = next((t for t in (values.get(n, []) for n in OPERATIONS) if t), [])
    texts = [t for t in texts if t not in ("?", ".", "")]
    if not texts:
        if any(values.get(n) for n in MAGNETIC):
            raise StructureError(
                f"{file} lists magnetic operations only: write it in P 1, or with "
                "_space_group_symop_operation_xyz"
            )
        return None
    try:
        parsed = [parse_operation(t) for t in texts]
    except (ValueError, ZeroDivisionError) as error:
        raise StructureError(f"{file}: a symmetry operation cannot be read: {error}") from None
    out = Symmetry(np.array([r for r, _ in parsed]), np.array([t for _, t in parsed]))
    if not _closed(out):
        raise StructureError(
            f"{file}: the {len(texts)} operations listed are no group (the product of two of them "
            "is missing): complete _space_group_symop_operation_xyz"
        )
    return out


def _closed(symmetry: Symmetry) -> bool:
    """Whether every product of two operations is one of them, up to lattice vectors."""
    r, t = symmetry.rotation, symmetry.translation
    if len(r) == 1:
        return bool(np.array_equal(r[0], np.eye(3)) and np.allclose(t[0], np.rint(t[0])))
    products = np.einsum("aij,bjk->abik", r, r).reshape(-1, 3, 3)
    shifts = (np.einsum("aij,bj->abi", r, t) + t[:, None]).reshape(-1, 3)
    # Which rotation, as one integer; translations are compared within a hundredth of the cell.
    weights = 3 ** np.arange(9)
    code, found = r.reshape(-1, 9) @ weights, products.reshape(-1, 9) @ weights
    order = np.argsort(code, kind="stable")
    first = np.searchsorted(code[order], found)
    last = np.searchsorted(code[order], found, side="right")
    left = np.ones(len(found), bool)
    for k in range(int((last - first).max(initial=0))):
        mine = first + k < last
        gap = shifts[mine] - t[order[(first + k)[mine]]]
        left[mine] &= np.abs(gap - np.rint(gap)).max(axis=1) > 0.01
    return not left.any()


def _said(values: Mapping[str, list[str]], tags: Iterable[str]) -> str:
    for tag in tags:
        for value in values.get(tag, [])[:1]:
            if value.strip() not in ("", "?", ".") and not (tag in NUMBERS and value == "0"):
                return " ".join(value.split())
    return ""


@cache
def settings() -> list[Setting]:
    """Every setting of every space group that gemmi's table holds."""
    import gemmi

    out = []
    for group in gemmi.spacegroup_table():
        symmetry = _from_gemmi(group.operations())
        origin = group.ext.strip("\0 ")
        out.append(
            Setting(
                group.number,
                group.hm,
                group.hall,
                origin,
                group.qualifier.strip("\0 ") or origin.lower(),
                symmetry,
                symmetry.key,
            )
        )
    return out


def _from_gemmi(operations: Any) -> Symmetry:
    rotation = np.array([o.rot for o in operations], np.int64) // 24
    translation = np.array([o.tran for o in operations], float) / 24
    return Symmetry(rotation, translation)


def by_hall(symbol: str) -> Symmetry | None:
    """Operations of a Hall symbol, also one that no table lists; None where it is none."""
    import gemmi

    try:
        return _from_gemmi(gemmi.symops_from_hall(symbol.replace("_", " ").strip()))
    except (RuntimeError, ValueError):
        return None


def by_number(number: str) -> list[Setting]:
    """All settings of a space group of the International Tables."""
    return [s for s in settings() if str(s.number) == number.strip()]


def _squeezed(symbol: str) -> str:
    return re.sub(r"[\s_()~]+", "", symbol).lower()


@cache
def _names() -> dict[str, list[Setting]]:
    """Settings by name, without spaces: as the table writes them, and short (P 21/c)."""
    out: dict[str, list[Setting]] = {}
    for s in settings():
        out.setdefault(_squeezed(s.name), []).append(s)
    # A short monoclinic symbol means unique axis b, as the International Tables print it; the cell
    # decides where another axis is meant.
    for s in settings():
        if 3 <= s.number <= 15:
            short = _squeezed(" ".join(w for w in s.name.split() if w != "1"))
            known = out.setdefault(short, [])
            if s not in known:
                known.append(s)
    return out


def by_name(symbol: str) -> list[Setting]:
    """Settings that a Hermann-Mauguin symbol can mean.

    Short, full and extended by a setting (``F d -3 m :2``), with and without spaces, with the
    double glide e, without the bar that cubic symbols lacked before 1983 (``F m 3 m``).
    """
    text, origin = _squeezed(symbol), ""
    match = re.fullmatch(r"(.+?):(.+)", text) or re.fullmatch(r"(.+[a-z0-9])(o1|o2)", text)
    if match is None and re.fullmatch(r".+\s(S|Z|H|R|:?[12])", symbol.strip()):
        bare, last = symbol.strip().rsplit(None, 1)
        if not _named(text) and _named(_squeezed(bare)):
            text, origin = _squeezed(bare), _SUFFIX.get(last.lower(), "")
    elif match is not None:
        text, origin = match[1], _SUFFIX.get(match[2], match[2])
    elif text.startswith("h") and not _named(text):
        text, origin = "r" + text[1:], "H"  # H 3 of the Protein Data Bank
    found = _named(text)
    if origin:
        chosen = [s for s in found if s.origin == origin or s.code == origin]
        found = chosen or [s for s in found if not s.origin]
    return found


def _named(text: str) -> list[Setting]:
    names = _names()
    for candidate in _spellings(text):
        if candidate in names:
            return names[candidate]
        if "e" in candidate[1:]:
            spelt = [candidate[0] + candidate[1:].replace("e", glide) for glide in "abc"]
            found = [s for k in spelt for s in names.get(k, []) if s.number in _WITH_E]
            if found:
                return found
    return []


def _spellings(text: str) -> list[str]:
    """A squeezed symbol, then its short form, then with the bar of cubic groups."""
    out = [text]
    # 2/m of a full symbol is m; 4/m before -3 is m too.
    short = re.sub(r"(?<![46])21?/([a-e m n])", r"\1", text)
    short = re.sub(r"4[1-3]?/([a-dmn])-3", r"\1-3", short)
    out.append(short)
    out += [re.sub(r"^([pifr][a-dmn])3", r"\1-3", s) for s in (text, short)]
    return list(dict.fromkeys(out))


def _of_code(found: list[Setting], code: str) -> list[Setting]:
    """Of some settings those of a coordinate system code (b1, -c2, 2, h, ba-c, 1cab)."""
    wanted = code.strip().lower()
    chosen = [
        s for s in found
        if wanted in (s.code.lower(), s.origin.lower(), s.origin.lower() + s.code.lower())
    ]  # fmt: skip
    return chosen or found


def _strain(symmetry: Symmetry, cell: NDArray[np.float64]) -> float:
    """How far the operations change lengths and angles of the cell, relative."""
    metric = cell @ cell.T
    length = np.sqrt(np.diag(metric))
    turned = np.einsum("oji,jk,okl->oil", symmetry.rotation, metric, symmetry.rotation)
    return float(np.abs((turned - metric) / (length[:, None] * length)).max())


def _fits(file: Path, symmetry: Symmetry, cell: NDArray[np.float64], what: str) -> Symmetry:
    if _strain(symmetry, cell) > _METRIC:
        raise StructureError(
            f"{file}: {what} of the space group do not fit the cell (they change its lengths or "
            "angles): another setting is meant, or the cell is wrong"
        )
    return symmetry


def _point_group(symmetry: Symmetry) -> tuple[tuple[int, int], ...]:
    rotations = np.unique(symmetry.rotation.reshape(-1, 9), axis=0).reshape(-1, 3, 3)
    trace = np.trace(rotations, axis1=1, axis2=2)
    determinant = np.rint(np.linalg.det(rotations)).astype(int)
    return tuple(sorted(zip(determinant.tolist(), trace.tolist())))


def _same(file: Path, symmetry: Symmetry, what: str, other: Symmetry | None, text: str) -> None:
    if other is not None and symmetry.key != other.key:
        _refuse(file, what, symmetry, text)


def _agree(file: Path, symmetry: Symmetry, what: str, found: list[Setting], text: str) -> None:
    """Refuse where none of some settings is the symmetry that is believed."""
    key = symmetry.key
    if any(s.key == key for s in found):
        return
    known = any(s.key == key for s in settings())
    # A setting that no table lists (another origin, a larger cell) is told by its point group.
    if not known and _point_group(symmetry) in {_point_group(s.symmetry) for s in found}:
        return
    _refuse(file, what, symmetry, text)


def _refuse(file: Path, what: str, symmetry: Symmetry, text: str) -> None:
    key = symmetry.key
    mine = next((s for s in settings() if s.key == key), None)
    name = f" ({_title(mine)})" if mine else f" ({len(key)} operations)"
    raise StructureError(
        f"{file}: {what}{name} and the {text} of the space group disagree: correct the one that "
        "is wrong, or remove it"
    )


def _title(s: Setting) -> str:
    return f"{s.name}{':' + s.origin if s.origin else ''}"


def _one_setting(
    file: Path, said_by: list[tuple[str, list[Setting]]], cell: NDArray[np.float64]
) -> Symmetry:
    """The one setting that symbol and number mean, and that fits the cell."""
    text, found = said_by[0]
    for other, more in said_by[1:]:
        both = [s for s in found if s in more]
        if not both:
            raise StructureError(
                f"{file}: the {text} and the {other} of the space group disagree: correct the one "
                "that is wrong, or list the operations (_space_group_symop_operation_xyz)"
            )
        found = both
    fitting = [s for s in found if _strain(s.symmetry, cell) <= _METRIC]
    if not fitting:
        raise StructureError(
            f"{file}: the {text} of the space group does not fit the cell in any setting "
            f"({', '.join(dict.fromkeys(_title(s) for s in found))}): correct the cell or the group"
        )
    if text.startswith("Hermann"):
        fitting = _as_printed(fitting)
    if len({s.key for s in fitting}) > 1:
        names = ", ".join(f"{_title(s)} (Hall {s.hall!r})" for s in fitting[:6])
        names += f" and {len(fitting) - 6} more" if len(fitting) > 6 else ""
        raise StructureError(
            f"{file}: the {text} alone does not say which setting of the space group is meant: "
            f"{names}; add _space_group_name_Hall, or list the operations"
        )
    return fitting[0].symmetry


def _as_printed(found: list[Setting]) -> list[Setting]:
    """Of what one symbol can mean in this cell, what the International Tables print it for.

    A short monoclinic symbol has unique axis b, then c, then a; Cmme is Cmma, not Cmmb.
    """
    number = found[0].number
    if number in _WITH_E and len({s.name for s in found}) > 1:
        return [s for s in found if s.name == found[0].name]
    for axis in "bca":
        chosen = [s for s in found if s.code.lstrip("-").startswith(axis)]
        if 3 <= number <= 15 and chosen:
            return chosen
    return found
