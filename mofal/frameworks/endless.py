"""Blocks without end: rods, sheets, and bonds that a rule does not cut. Each is refused by name."""

from __future__ import annotations

from collections import Counter
from typing import NoReturn

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.auto import is_auto
from mofal.frameworks.bonds import IS_METAL, Bonds
from mofal.frameworks.charges import formula
from mofal.frameworks.components import Components, components
from mofal.frameworks.partition import partition
from mofal.frameworks.rules import rule_names

_SHAPE = {1: "a rod", 2: "a sheet", 3: "a network"}


def direction_text(periods: NDArray[np.integer]) -> str:
    """Lattice directions as crystallographers write them: ``[0 0 1]``."""
    if len(periods) == 3:
        return "all three directions"
    out = []
    for row in np.asarray(periods):
        g = np.gcd.reduce(row)
        out.append("[" + " ".join(str(int(v) // int(g)) for v in row) + "]")
    return " and ".join(out)


def inorganic_bonds(z: NDArray[np.integer], bonds: Bonds) -> Bonds:
    """Bonds of the inorganic part: metals, what binds to them, and the C, P, S of acid groups."""
    metal = IS_METAL[z]
    donor = np.zeros(len(z), bool)
    donor[bonds.j[metal[bonds.i]]] = True
    donor &= ~metal & (z != 6)
    # A donor that bridges metals, or the two or three O of one acid group.
    acid = np.isin(z, [6, 15, 16])
    n_donor_o = np.bincount(bonds.i[(donor & (z == 8))[bonds.j]], minlength=len(z))
    inside = metal | donor | (acid & (n_donor_o >= 2))
    edges = inside[bonds.i] & inside[bonds.j]
    # Ring N-N or N-C bonds of azoles belong to the linker, not to the inorganic part.
    edges &= ~((z[bonds.i] == 7) & (z[bonds.j] == 7))
    return bonds.kept(edges)


def refuse_endless(
    z: NDArray[np.integer], bonds: Bonds, pieces: Components, inner: Bonds, rule: str
) -> NoReturn:
    """Refuse a structure with an infinite block; the message names directions and a way out.

    Raises
    ------
    StructureError
        Always.
    """
    first = int(pieces.endless(inner)[0])
    members = np.flatnonzero(pieces.label == first)
    metals = sorted({chemical_symbols[k] for k in z[members] if IS_METAL[k]})
    what = "/".join(metals) if metals else formula(Counter(chemical_symbols[k] for k in z[members]))
    skeleton = inorganic_bonds(z, bonds)
    rods = components(skeleton)
    endless = [p for p in rods.endless(skeleton).tolist() if pieces.label[rods.label == p][0]
               in pieces.endless(inner)]  # fmt: skip
    if endless:
        periods = rods.periods(skeleton, endless[0])
        way = (
            "find_blocks(ds, rule='auto') takes it apart"
            if not is_auto(rule) and _is_finite(z, bonds, "auto")
            else "what holds its metals together cannot be cut"
        )
        raise StructureError(
            f"the {what} node is {_SHAPE[len(periods)]}, infinite along "
            f"{direction_text(periods)}: it cannot be a block of finite size; {way}"
        )
    periods = pieces.periods(inner, first)
    finite = _rules_that_cut(z, bonds, rule, rule_names())
    hint = (
        f"find_blocks(ds, rule='{finite}') cuts it (mofal blocks --rule {finite}; in a campaign "
        f"file rule: {finite})"
        if finite
        else "no registered rule cuts it: register one with "
        "mofal.frameworks.register_rule (docs/frameworks.md)"
    )
    raise StructureError(
        f"after the cuts of rule {rule!r} a block around {what} is still infinite along "
        f"{direction_text(periods)}, though its inorganic part is finite; {hint}"
    )


def _rules_that_cut(
    z: NDArray[np.integer], bonds: Bonds, rule: str, names: list[str]
) -> str | None:
    """Fewest rules, joined by ``+``, that leave finite blocks: one, one more, or those needed."""
    given = rule.split("+")
    # Rules by name first: what they cut is known. `auto` is what finds its own way.
    others = [name for name in names if name not in given and name != "auto"]
    for candidate in (*others, *(f"{rule}+{name}" for name in others)):
        if _is_finite(z, bonds, candidate):
            return candidate
    needed = [*given, *others]
    if not _is_finite(z, bonds, "+".join(needed)):
        return "auto" if "auto" not in given and _is_finite(z, bonds, "auto") else None
    for name in reversed(list(needed)):
        fewer = [k for k in needed if k != name]
        if _is_finite(z, bonds, "+".join(fewer)):
            needed = fewer
    return "+".join(needed)


def _is_finite(z: NDArray[np.integer], bonds: Bonds, rule: str) -> bool:
    _, _, pieces = partition(z, bonds, rule)
    return not pieces.loops.any()
