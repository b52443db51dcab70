"""Partly occupied sites: what nothing binds is dropped, one alternative kept where that is asked.

A disordered site holds alternatives, of which a crystal has one in each cell. CIF names them by
assemblies (what is disordered together) and groups (its alternatives); where it does not, atoms
that cannot both be there are alternatives of each other. Which of them is meant is for the user to
say: without a word of theirs the file is refused by the names of its sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from ase.data import chemical_symbols, covalent_radii
from matscipy.neighbours import neighbour_list
from numpy.typing import NDArray
from scipy.sparse import csgraph

from mofal.errors import StructureError
from mofal.frameworks.bonds import bond_cutoffs
from mofal.frameworks.charges import formula

ALTERNATIVES = ("refuse", "major")
# Occupancies from here on are full: refinements print 0.9995.
FULL = 0.999
# Below this fraction of the sum of covalent radii two atoms are alternatives of each other.
_BOTH = 0.62
# A site that is empty in more cells than not is left empty.
_PRESENT = 0.5


@dataclass(frozen=True)
class Sites:
    """The atoms of a cell with what their file says of their disorder.

    Attributes
    ----------
    numbers : (atom,) int
    positions : (atom, 3) float, Å
    cell : (3, 3) float, Å
    occupancy : (atom,) float
    label : sequence of str
        Name of the site of each atom.
    assembly, group : sequences of str
        ``_atom_site_disorder_assembly`` and ``_group`` of each atom; ``"."`` for none.
    image : (atom,) int
        Number of the symmetry operation that made it.
    """

    numbers: NDArray[np.integer]
    positions: NDArray[np.float64]
    cell: NDArray[np.float64]
    occupancy: NDArray[np.float64]
    label: Sequence[str]
    assembly: Sequence[str]
    group: Sequence[str]
    image: NDArray[np.integer]


def settle(sites: Sites, alternatives: str) -> tuple[NDArray[np.bool_], list[str]]:
    """Decide which atoms of a disordered cell are there.

    Parameters
    ----------
    sites : Sites
    alternatives : {"refuse", "major"}
        Whether to keep the larger alternative of what is disordered.

    Returns
    -------
    keep : (atom,) bool array
    notes : list of str
        What was dropped, and what was kept of which alternatives.

    Raises
    ------
    StructureError
        Atoms of the framework are disordered and `alternatives` is ``"refuse"``; the sites are
        named. Without the file's name.
    """
    partial = sites.occupancy < FULL
    keep = np.ones(len(partial), bool)
    if not partial.any():
        return keep, []
    bonded, rivals = _pairs(sites, partial)
    piece, held = _pieces(partial, bonded)
    loose = partial & ~held[piece]
    notes = _dropped(sites, loose)
    keep &= ~loose
    bound = partial & ~loose
    if not bound.any():
        return keep, notes
    if alternatives == "refuse":
        raise StructureError(_refusal(sites, bound, rivals))
    chosen, said = _larger(sites, bound, piece, rivals)
    keep &= ~bound | chosen
    return keep, notes + said


def _pairs(sites: Sites, partial: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of atoms that are bonded, and pairs that cannot both be there: (n, 2) each."""
    z = sites.numbers
    i, j, d = neighbour_list(
        "ijd",
        positions=sites.positions,
        cell=sites.cell,
        pbc=[True] * 3,
        numbers=z,
        cutoff=_cutoffs(z),
    )
    some = (i < j) & (partial[i] | partial[j])
    i, j, d = i[some], j[some], d[some]
    apart = np.array([_other_group(sites, a, b) for a, b in zip(i.tolist(), j.tolist())], bool)
    both = partial[i] & partial[j]
    close = d < _BOTH * (covalent_radii[z[i]] + covalent_radii[z[j]])
    # Alternatives of one assembly exclude each other also where they do not touch: those that lie
    # beside each other are enough, for the fragments carry the rest.
    rival = both & (close | apart)
    bond = (d < bond_cutoffs()[z[i], z[j]]) & ~rival & ~close
    pairs = np.column_stack([i, j])
    return pairs[bond], pairs[rival]


def _cutoffs(z: NDArray[np.integer]) -> dict[tuple[int, int], float]:
    present = np.unique(z).tolist()
    longest = bond_cutoffs()
    # Metals make no bonds with each other; yet two of them in one place are alternatives.
    return {
        (a, b): max(float(longest[a, b]), _BOTH * float(covalent_radii[a] + covalent_radii[b]), 0.1)
        for k, a in enumerate(present)
        for b in present[k:]
    }


def _other_group(sites: Sites, a: int, b: int) -> bool:
    """Whether two atoms belong to different alternatives, as the file says."""
    one, other = sites.group[a], sites.group[b]
    if "." in (one, other) or sites.assembly[a] != sites.assembly[b]:
        return False
    # A negative group is disordered over a symmetry element: its images are its alternatives.
    return one != other or (one.startswith("-") and sites.image[a] != sites.image[b])


def _pieces(
    partial: NDArray[np.bool_], bonded: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Connected pieces of what is partly there, and which of them hang on what is fully there."""
    n = len(partial)
    inside = partial[bonded].all(axis=1)
    graph = sp.csr_array(
        (np.ones(int(inside.sum()), np.int8), (bonded[inside, 0], bonded[inside, 1])), shape=(n, n)
    )
    n_pieces, piece = csgraph.connected_components(graph, directed=False)
    held = np.zeros(n_pieces, bool)
    mixed = bonded[~inside]
    held[piece[mixed[partial[mixed]]]] = True
    # More than half of a cell is no guest in it: a framework that is partly occupied as a whole.
    size = np.bincount(piece, minlength=n_pieces)
    held |= 2 * size > n
    return piece, held


def _names(sites: Sites, atoms: NDArray[np.bool_], most: int = 6) -> str:
    labels = list(dict.fromkeys(sites.label[k] for k in np.flatnonzero(atoms).tolist()))
    more = f" and {len(labels) - most} more" if len(labels) > most else ""
    return ", ".join(labels[:most]) + more


def _dropped(sites: Sites, loose: NDArray[np.bool_]) -> list[str]:
    if not loose.any():
        return []
    # As many atoms as there are on average, not as many as there are places.
    share: Counter[str] = Counter()
    for k in np.flatnonzero(loose).tolist():
        share[chemical_symbols[int(sites.numbers[k])]] += float(sites.occupancy[k])  # type: ignore[assignment]
    what = formula({symbol: max(round(count), 1) for symbol, count in share.items()})
    return [f"dropped partly occupied sites that nothing binds ({_names(sites, loose)}; {what})"]


def _refusal(sites: Sites, bound: NDArray[np.bool_], rivals: NDArray[np.int64]) -> str:
    first = int(np.flatnonzero(bound)[0])
    labels = list(dict.fromkeys(sites.label[k] for k in np.flatnonzero(bound).tolist()))
    others = f" and {len(labels) - 1} other site{'s' if len(labels) > 2 else ''}"
    against = [sites.label[b if a == first else a] for a, b in rivals.tolist() if first in (a, b)]
    beside = f", an alternative of {against[0]}" if against else ""
    return (
        f"site {sites.label[first]} is partly occupied ({sites.occupancy[first]:g}){beside}"
        f"{others if len(labels) > 1 else ''}: disorder in the crystal; keep the larger "
        "alternative of each with read_framework(path, alternatives='major') (mofal blocks "
        "--alternatives major; in a campaign file alternatives: major), or set the occupancy of "
        "the ones that you mean to 1 and remove the others"
    )


def _larger(
    sites: Sites, bound: NDArray[np.bool_], piece: NDArray[np.int64], rivals: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Of the alternatives that exclude each other the one that is there most often."""
    rivals = rivals[bound[rivals].all(axis=1)]
    # Where a piece excludes itself (no groups are named, or it lies over a symmetry element), what
    # one operation made of it is an alternative by itself; where that does, too, each of its atoms.
    unit = piece.copy()
    for parts in (sites.image, np.arange(len(bound))):
        torn = np.unique(unit[rivals[unit[rivals[:, 0]] == unit[rivals[:, 1]], 0]])
        apart = bound & np.isin(unit, torn)
        pairs = np.column_stack([unit[apart], np.asarray(parts)[apart]])
        _, number = np.unique(pairs, axis=0, return_inverse=True)
        unit[apart] = unit.max() + 1 + number.ravel()
    members: dict[int, list[int]] = {}
    for k in np.flatnonzero(bound).tolist():
        members.setdefault(int(unit[k]), []).append(k)
    against: dict[int, set[int]] = {}
    for a, b in unit[rivals].tolist():
        against.setdefault(a, set()).add(b)
        against.setdefault(b, set()).add(a)
    share = {u: float(sites.occupancy[m].mean()) for u, m in members.items()}

    def rank(u: int) -> tuple[float, str, int, int]:
        own = members[u]
        return (-share[u], sites.group[own[0]], int(sites.image[own[0]]), own[0])

    chosen = np.zeros(len(bound), bool)
    taken: set[int] = set()
    over: Counter[tuple[str, str]] = Counter()
    alone_kept: set[str] = set()
    empty: set[str] = set()
    for u in sorted(members, key=rank):
        if against.get(u, set()) & taken:
            continue
        first = members[u][0]
        others = {sites.label[members[v][0]] for v in against.get(u, ())}
        there = share[u] + sum(share[v] for v in against.get(u, ()))
        here = f"{sites.label[first]} {share[u]:g}"
        if there < _PRESENT - 1e-6:
            empty.add(here)
            continue
        taken.add(u)
        chosen[members[u]] = True
        if others:
            over[here, ", ".join(sorted(others))] += 1
        else:
            alone_kept.add(here)
    notes = [
        f"kept of alternatives {here} ({count} places, not {there})"
        for (here, there), count in over.items()
    ]
    if alone_kept:
        notes.append(f"kept partly occupied {_some(alone_kept)}")
    if empty:
        notes.append(f"left out partly occupied {_some(empty)}")
    return chosen, notes


def _some(names: set[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return " and ".join(sorted(names)[:most]) + more
