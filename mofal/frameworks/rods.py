"""Units: what becomes of the inorganic part of a framework, finite or endless.

Metals that share a donor atom, or that one acid head bridges, belong together. Where that makes
something finite, it is one unit (the brick of UiO-66). Where it goes on for ever, less is held
together: first without the acid heads (finite cores joined by O-C-O), then without the O of acids
and phenolates (oligomers of oxo and OH), and last every metal is a unit of its own (a rod).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mofal.frameworks.bonds import Bonds
from mofal.frameworks.components import Components, components
from mofal.frameworks.molecule import Molecule

WHOLE, CORE, OLIGOMER, SINGLE = range(4)


@dataclass(frozen=True)
class Units:
    """Units of one structure, by their metals.

    Attributes
    ----------
    label : (atom,) int array
        Unit of each metal; -1 for other atoms.
    shift : (atom, 3) int array
        Lattice shift that makes the metals of a unit one piece.
    level : (atom,) int8 array
        How far the inorganic part was taken apart: `WHOLE`, `CORE`, `OLIGOMER` or `SINGLE`.
    """

    label: NDArray[np.int64]
    shift: NDArray[np.int64]
    level: NDArray[np.int8]


def find_units(m: Molecule, centre: NDArray[np.bool_]) -> Units:
    """Units of a structure.

    Parameters
    ----------
    m : Molecule
    centre : (atom,) bool
        Centres of its acid heads.
    """
    z, metal = m.z, m.metal
    n = len(z)
    n_metal = m.count(metal)
    label = np.full(n, -1, np.int64)
    shift = np.zeros((n, 3), np.int64)
    level = np.zeros(n, np.int8)
    shared = ~metal & (n_metal > 1)
    chain = (z == 8) & (m.count(~metal & (z != 1)) > 0)
    donor = ~metal & (n_metal > 0)
    # Acid heads, and carbonates, phosphates, sulfates, ...: but an oxalate is a ligand.
    bridge = np.isin(z, [5, 6, 14, 15, 16, 33, 34]) & (m.count(donor & (z == 8)) > 1)
    bridge &= ~(centre & (m.count(centre) > 0))
    bridging_oxygen = (z == 8) & donor & (m.count(bridge) > 0)
    stages = (
        metal | shared | bridge | bridging_oxygen,
        metal | shared,
        metal | (shared & ~chain),
        metal,
    )
    left = metal.copy()
    total = 0
    for stage, inside in enumerate(stages):
        if not left.any():
            break
        pieces, endless = _pieces(m, inside, bridge)
        done = left & ~endless[pieces.label]
        names, found = np.unique(pieces.label[done], return_inverse=True)
        label[done] = total + found
        shift[done] = pieces.shift[done]
        level[done] = stage
        total += len(names)
        left &= ~done
    return Units(label, shift, level)


def _pieces(
    m: Molecule, inside: NDArray[np.bool_], bridge: NDArray[np.bool_]
) -> tuple[Components, NDArray[np.bool_]]:
    """What is connected through some atoms, and which of the pieces have no end."""
    bonds: Bonds = m.bonds
    edge = inside[bonds.i] & inside[bonds.j]
    # Two donors (N-N of azoles, O-O) or two acid centres hold no metals together.
    through = m.metal | bridge
    edge &= through[bonds.i] ^ through[bonds.j]
    graph = bonds.kept(edge)
    pieces = components(graph)
    endless = np.zeros(pieces.n, bool)
    endless[pieces.endless(graph)] = True
    return pieces, endless
