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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mofal.errors import ConfigError
from mofal.frameworks.bonds import IS_METAL, Bonds
from mofal.frameworks.caps import FORMATE_CH

OPEN = 0  # nothing is put there: the bond was a lone pair's (a pillar's N on a metal)
NEVER = -1  # this end cannot be capped: a cluster takes the block at the other end as well


@dataclass(frozen=True)
class Cap:
    """What replaces the lost atom at one end of a cut bond.

    Attributes
    ----------
    number : int
        Atomic number; `OPEN` (0) for nothing, `NEVER` (-1) where no cap makes sense.
    length : float or None
        Length of the new bond, Å; None: the standard length for the pair of elements.
    charge : int
        Formal charge that comes with the cap: 0 where the bond was cut evenly, +1 for a proton
        that takes the place of a metal ion.
    """

    number: int
    length: float | None = None
    charge: int = 0


H_CAP = Cap(1)
FORMATE_CAP = Cap(1, FORMATE_CH)
PROTON = Cap(1, charge=1)
LONE_PAIR = Cap(OPEN)
NO_CAP = Cap(NEVER)


@dataclass(frozen=True)
class Cut:
    """Bonds that a rule cuts.

    Attributes
    ----------
    edges : (half-edge,) bool array
        True where the half-edge leads from the node to the linker. Both directions of one bond
        may be set: then it joins two nodes (oxalate).
    node_cap, linker_cap : Cap
        What ends the bond on the node, and on the linker.
    """

    edges: NDArray[np.bool_]
    node_cap: Cap
    linker_cap: Cap


@dataclass(frozen=True)
class Molecule:
    """Elements and bonds of one structure, as a rule sees them.

    Attributes
    ----------
    z : (atom,) int array
        Atomic numbers.
    bonds : Bonds
        Half-edges.
    """

    z: NDArray[np.integer]
    bonds: Bonds

    @property
    def metal(self) -> NDArray[np.bool_]:
        """Which atoms are metals: (atom,)."""
        return IS_METAL[self.z]

    @property
    def degree(self) -> NDArray[np.int64]:
        """Number of bonds of each atom: (atom,)."""
        return self.bonds.degree

    def count(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many bonded neighbours of each atom are in `mask`: (atom,)."""
        return np.bincount(self.bonds.i[mask[self.bonds.j]], minlength=len(self.z))

    def between(self, start: NDArray[np.bool_], end: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Half-edges that lead from an atom in `start` to one in `end`: (half-edge,)."""
        return start[self.bonds.i] & end[self.bonds.j]


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
    from mofal.frameworks.auto import cuts_of

    return cuts_of(m)


def azole_nitrogens(m: Molecule) -> NDArray[np.bool_]:
    """N of five-membered rings with another N beside it or across one C: no pyrrole of a porphyrin.

    Shape (atom,).
    """
    nitrogen = _in_five_ring(m, (m.z == 7) | (m.z == 6)) & (m.z == 7)
    between = (m.z == 6) & (m.count(nitrogen) > 1)
    return nitrogen & ((m.count(nitrogen) > 0) | (m.count(between) > 0))


def _in_five_ring(m: Molecule, allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Atoms that lie on a ring of five `allowed` atoms: (atom,).

    Counted as closed walks of five steps, which only a ring of five gives where there is no
    ring of three at hand.
    """
    import scipy.sparse as sp

    n = len(m.z)
    inside = allowed[m.bonds.i] & allowed[m.bonds.j] & (m.bonds.i != m.bonds.j)
    a = sp.csr_array(
        (np.ones(int(inside.sum()), np.int64), (m.bonds.i[inside], m.bonds.j[inside])),
        shape=(n, n),
    )
    two = a @ a
    three = two @ a
    triangles = three.diagonal()
    near_triangle = triangles + a @ triangles > 0
    return np.asarray((two * three).sum(axis=1) > 0) & ~near_triangle
