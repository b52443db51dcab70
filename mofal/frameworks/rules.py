"""Where a framework is cut into blocks: rules, registered by name.

A rule is a function of a `Molecule` (elements and bonds as arrays) that returns the bonds to cut,
directed from the node to the linker, and the cap of either end. Adding one takes a few lines::

    @register_rule("boronate")
    def boronate(m: Molecule) -> list[Cut]:
        boron = (m.z == 5) & (m.count(m.z == 8) == 2)
        return [Cut(m.between(boron, m.z == 6), node_cap=H_CAP, linker_cap=H_CAP)]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mofal.errors import ConfigError
from mofal.frameworks.auto import cuts_of
from mofal.frameworks.molecule import (
    FORMATE_CAP,
    H_CAP,
    LONE_PAIR,
    NO_CAP,
    PROTON,
    Cut,
    Molecule,
    _in_five_ring,
    azole_nitrogens,
)

Rule = Callable[[Molecule], list[Cut]]
_RULES: dict[str, Rule] = {}


def register_rule(name: str) -> Callable[[Rule], Rule]:
    """Register a rule under a name: ``@register_rule("boronate")`` above its function.

    Raises
    ------
    ConfigError
        When the name is taken, or holds a ``+`` (which joins rules).
    """

    def add(rule: Rule) -> Rule:
        if name in _RULES or "+" in name or not name:
            raise ConfigError(
                f"a rule cannot be called {name!r}: taken are {', '.join(_RULES)}, and '+' joins "
                "rules; choose another name"
            )
        _RULES[name] = rule
        return rule

    return add


def rule_names() -> list[str]:
    """Names of all registered rules."""
    return list(_RULES)


def apply_rule(name: str, molecule: Molecule) -> list[Cut]:
    """Cuts of a rule, or of several joined by ``+`` (``"carboxylate+azolate"``).

    Raises
    ------
    ConfigError
        When no such rule is registered.
    """
    out: list[Cut] = []
    for part in str(name).split("+"):
        rule = _RULES.get(part.strip())
        if rule is None:
            raise ConfigError(
                f"unknown rule {part.strip()!r}; rules: {', '.join(_RULES)} (join them with '+'): "
                "find_blocks(ds, rule='carboxylate')"
            )
        out += rule(molecule)
    return out


def _acid(m: Molecule, element: int, oxygens: int) -> NDArray[np.bool_]:
    """Centres of acid groups on a metal: `oxygens` O without other carbon, and one organic atom."""
    oxygen = m.z == 8
    on_metal = oxygen & (m.count(m.metal) > 0)
    ester = oxygen & (m.count((m.z != 1) & ~m.metal) > 1)
    centre = (m.z == element) & (m.degree == oxygens + 1)
    return centre & (m.count(oxygen) == oxygens) & (m.count(on_metal) > 0) & (m.count(ester) == 0)


@register_rule("carboxylate")
def carboxylate(m: Molecule) -> list[Cut]:
    """C-C between a carboxylate on a metal and its organic part; both ends get H (paper, 2.1)."""
    edges = m.between(_acid(m, 6, 2), (m.z != 1) & (m.z != 8) & ~m.metal)
    return [Cut(edges, node_cap=FORMATE_CAP, linker_cap=H_CAP)]


@register_rule("phosphonate")
def phosphonate(m: Molecule) -> list[Cut]:
    """P-C of phosphonates on a metal; both ends get H."""
    return [Cut(m.between(_acid(m, 15, 3), m.z == 6), node_cap=H_CAP, linker_cap=H_CAP)]


@register_rule("sulfonate")
def sulfonate(m: Molecule) -> list[Cut]:
    """S-C of sulfonates on a metal; both ends get H."""
    return [Cut(m.between(_acid(m, 16, 3), m.z == 6), node_cap=H_CAP, linker_cap=H_CAP)]


@register_rule("azolate")
def azolate(m: Molecule) -> list[Cut]:
    """Metal-N of azolates (five-membered rings): a proton takes the metal's place.

    No single atom stands for an azolate on a metal, so that end is never capped: a cluster goes
    on until it ends on linkers.
    """
    nitrogen = azole_nitrogens(m) & (m.degree == 3) & (m.count(m.metal) == 1)
    return [Cut(m.between(m.metal, nitrogen), node_cap=NO_CAP, linker_cap=PROTON)]


@register_rule("pillar")
def pillar(m: Molecule) -> list[Cut]:
    """Carboxylates, and metal-N of neutral ligands: pyridines, diazines, amines, nitriles.

    Nothing replaces those: a lone pair ends the bond on either side.
    """
    ring = _in_five_ring(m, (m.z == 7) | (m.z == 6))
    n_organic = m.count(m.z == 6) + m.count(m.z == 7)
    on_metal = (m.z == 7) & ~ring & (m.count(m.metal) == 1) & (m.count(m.z == 6) >= 1)
    # A nitrile is C-C-N-metal; in a cyanide the C holds a metal as well.
    nitrile_carbon = (m.z == 6) & (m.degree == 2) & (m.count(m.metal) == 0)
    nitrile = (m.degree == 2) & (m.count(nitrile_carbon) == 1)
    donor = on_metal & ((n_organic >= 2) | (m.count(m.z == 1) == 2) | nitrile)
    return [
        *carboxylate(m),
        Cut(m.between(m.metal, donor), node_cap=LONE_PAIR, linker_cap=LONE_PAIR),
    ]


@register_rule("azolate-ring")
def azolate_ring(m: Molecule) -> list[Cut]:
    """C-C between an azolate on metals and its organic part, as with carboxylates; both get H.

    The azolates stay with the metals that they bridge (the clusters of Mn-BTT or PCN-601).
    """
    ring = _in_five_ring(m, (m.z == 7) | (m.z == 6))
    held = azole_nitrogens(m) & (m.count(m.metal) > 0)
    # The carbon may be a bond further from the nitrogens that hold metals (pyrazolate).
    near = m.count(held) > 0
    azole = ring & (m.z == 6) & (near | (m.count(near & ring) > 0))
    edges = m.between(azole, (m.z == 6) & ~ring)
    return [Cut(edges, node_cap=H_CAP, linker_cap=H_CAP)]


@register_rule("auto")
def auto(m: Molecule) -> list[Cut]:
    """Any framework: behind acid heads that one unit holds, else between metal and donor."""
    return cuts_of(m)
