"""Formal charges: what the graph alone says about electrons.

Metals are taken out, with their bonds; what is left falls into *fragments* (mu3-O, OH, carboxylate,
azolate, water, linker). The charge of a fragment follows from valences: every atom lacks as many
bonds as its valence exceeds its neighbours, double bonds pair lacking bonds up, and each one that
stays alone on O, N, S or a halogen is an electron that came from a metal. A metal contributes its
oxidation state. A bond that a rule cuts evenly counts as kept: its two ends are capped by H.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from mofal.frameworks.bonds import IS_METAL, Bonds
from mofal.frameworks.components import Components, components
from mofal.frameworks.kinds import group_hash, mix, refine

# Oxidation states met in frameworks, the usual one first.
_STATES = {
    (1,): "Li Na K Rb Cs Tl",
    (1, 2): "Ag Au",
    (2,): "Be Mg Ca Sr Ba Ra Zn Cd Pd Pt Ni Pb Sn",
    (2, 1): "Cu Hg",
    (2, 3): "Mn Co Rh Mo W Re Tc",
    (3, 2): "Fe Cr Ru Os Ir Yb Sm Eu",
    (3, 4): "V Tb Pr",
    (3,): "Al Ga In Sc Y La Nd Pm Gd Dy Ho Er Tm Lu Sb Bi Ac Am Cm",
    (4, 3): "Ti Ce Pu",
    (4,): "Zr Hf Ge Th Po",
    (5,): "Nb Ta Pa Np",
    (6,): "U",
}
OXIDATION: dict[int, tuple[int, ...]] = {
    atomic_numbers[s]: states for states, names in _STATES.items() for s in names.split()
}
# V takes 4 and 5 as an oxo cation, Mo and W 6 in oxides: tried last.
OXIDATION[23] = (3, 4, 5)
OXIDATION[42] = (2, 3, 6)
OXIDATION[74] = (2, 3, 6)
OXIDATION[50] = (4, 2)
OXIDATION[82] = (2, 4)

# Mn, Fe, Co, Ru, Cu, Ce, Eu, Mo, W, Rh, Os: one block may hold two oxidation states at once (Fe3O
# of two Fe(III) and one Fe(II)); for the others an unusual state is that of all its atoms (a
# paddlewheel of Cr(II)).
MIXED = frozenset({25, 26, 27, 44, 29, 58, 63, 42, 74, 45, 76})

_VALENCE = {
    1: 1, 5: 3, 6: 4, 7: 3, 8: 2, 9: 1, 14: 4, 15: 3, 16: 2, 17: 1, 33: 3, 34: 2, 35: 1, 52: 2,
    53: 1, 85: 1,
}  # fmt: skip
_SPECIAL = {
    "CO": 0, "N3": -1, "N2O": 0, "O2": 0, "O2S": 0, "NO": 0, "HF2": -1, "I3": -1, "Br3": -1,
}  # fmt: skip


def formula(counts: Counter[str] | dict[str, int]) -> str:
    """Hill formula: C and H first when there is carbon, the rest by the alphabet."""
    left = {k: v for k, v in counts.items() if v}
    order = sorted(left)
    if "C" in left:
        order = [s for s in ("C", "H") if s in left] + [s for s in order if s not in ("C", "H")]
    return "".join(f"{s}{left[s] if left[s] > 1 else ''}" for s in order)


def lacking(z: int, degree: int, n_oxo: int) -> int:
    """Bonds that an atom lacks (positive), or has too many (negative).

    Parameters
    ----------
    z : int
        Atomic number of a nonmetal.
    degree : int
        Its bonds to nonmetals, those that a rule cuts evenly included.
    n_oxo : int
        How many of them lead to O that has no other nonmetal neighbour.
    """
    valence = _VALENCE.get(z, 0)
    if z == 7 and degree == 3 and n_oxo:
        valence = 5  # nitro, nitrate, N-oxide
    elif z in (15, 33) and degree == 4:
        valence = 5
    elif z in (16, 34, 52) and degree == 4:
        valence = 6
    elif z in (16, 34, 52) and degree == 3 and n_oxo:
        valence = 4
    elif z in (16, 34, 52) and degree == 6:
        valence = 6
    elif z in (17, 35, 53) and degree == 4:
        valence = 7
    elif (z in (17, 35, 53) and degree == 3) or (z in (15, 33) and degree >= 5):
        valence = 5
    return valence - degree


def tutte_rank(
    graph: NDArray[np.bool_], copies: NDArray[np.integer], rows: NDArray[np.bool_] | None = None
) -> int:
    """How many lacking bonds double bonds can pair up, each atom in `copies` copies.

    The rank of a random skew-symmetric matrix on the edges is twice the size of a maximum matching
    (Tutte 1947; Lovász 1979), and the rank of some of its rows is how many of those vertices a
    matching can reach; no search is needed, and it is exact with probability one.

    Parameters
    ----------
    graph : (n, n) bool
        Bonds.
    copies : (n,) int
        Lacking bonds of each atom.
    rows : (n,) bool, optional
        Count only these atoms.
    """
    atoms = np.repeat(np.arange(len(copies)), copies)
    if len(atoms) < 2:
        return 0
    rng = np.random.default_rng(0)
    m = np.where(graph[np.ix_(atoms, atoms)], rng.uniform(1.0, 2.0, (len(atoms), len(atoms))), 0.0)
    upper = np.triu(m, 1)
    matrix = upper - upper.T
    if rows is not None:
        matrix = matrix[rows[atoms]]
    return int(np.linalg.matrix_rank(matrix, tol=1e-8)) if matrix.size else 0


def fragment_charge(
    z: NDArray[np.integer],
    neighbours: list[list[int]],
    *,
    n_cut: NDArray[np.integer],
    n_metal: NDArray[np.integer],
    macrocycle: bool = False,
) -> int:
    """Formal charge of one fragment without metals.

    Parameters
    ----------
    z : (n,) int
        Atomic numbers.
    neighbours : list of lists of int
        Bonded atoms of each, within the fragment.
    n_cut : (n,) int
        Evenly cut bonds of each atom: they count as bonds.
    n_metal : (n,) int
        Bonds to metals of each atom: they do not.
    macrocycle : bool
        Four unsaturated N of the fragment hold one metal (porphyrin, phthalocyanine): two of them
        are anions.

    Returns
    -------
    int
        In units of e.
    """
    counts = Counter(chemical_symbols[k] for k in z)
    special = _SPECIAL.get(formula(counts))
    if special is not None and not n_cut.any():
        return special
    n = len(z)
    degree = np.array([len(a) for a in neighbours]) + n_cut
    terminal_o = (z == 8) & (degree == 1)
    lack = np.array(
        [lacking(int(z[k]), int(degree[k]), int(terminal_o[neighbours[k]].sum())) for k in range(n)]
    )
    _pair_carboxylates(z, neighbours, degree, lack)
    cage, charge = _boron_cages(z, neighbours, degree)
    # Phosphonium: four carbons, and no O to share a double bond with.
    onium = np.isin(z, [15, 33]) & (degree == 4)
    onium &= np.array([len(a) > 0 and bool(np.all(z[a] == 6)) for a in neighbours], bool)
    charge += int(onium.sum())
    lack[cage | onium] = 0
    # Too many bonds: N+, O+, S+ (ammonium, oxonium) or B-, Si-, P- (BF4, SiF6, PF6).
    surplus = np.where(lack < 0, -lack, 0)
    negative = np.isin(z, [5, 14, 15, 33])
    charge += int(surplus[~negative].sum() - surplus[negative].sum())
    want = np.clip(lack, 0, None)
    graph = np.zeros((n, n), bool)
    for a, others in enumerate(neighbours):
        graph[a, others] = True
    # O and S at the end of a chain and on a metal would rather be anions (phenolate, not quinone):
    # they lend a bond only to atoms that find no other partner.
    donor = np.isin(z, [8, 16, 34]) & (n_metal > 0)
    graph &= ~(donor[:, None] & donor[None])

    def unpaired() -> int:
        return int(want[~donor].sum()) - tutte_rank(graph, want, rows=~donor)

    lone_pair = (z == 7) & (degree == 3) & (want == 0) & (n_metal == 0)
    signs = dict.fromkeys(_anionic_nitrogens(z, neighbours, want, n_metal, macrocycle), -1)
    signs |= dict.fromkeys(_pyridinium_nitrogens(neighbours, want, lone_pair), 1)
    for atom, sign in signs.items():
        want[atom] += sign
    for atom, sign in list(signs.items()) if not macrocycle else []:
        # What leaves an atom without a partner is none: two rings of one conjugated chain share a
        # single charge (dipyrrin), a pyridone has none.
        alone = unpaired()
        want[atom] -= sign
        if unpaired() < alone:
            del signs[atom]
        else:
            want[atom] += sign
    charge += sum(signs.values())
    alone = unpaired()
    lent = int(want[~donor].sum()) - alone - tutte_rank(graph, np.where(donor, 0, want))
    charge -= int(want[donor].sum()) - lent + alone
    if alone and not np.any(n_metal[z == 6]):
        charge += 2 * _iminium(graph, want, lone_pair & (want == 0), ~donor, alone)
    return charge


def _pair_carboxylates(
    z: NDArray[np.integer],
    neighbours: list[list[int]],
    degree: NDArray[np.integer],
    lack: NDArray[np.integer],
) -> None:
    """Give the C of each CO2 its double bond to one of its own O, in place.

    A conjugated dicarboxylate could be drawn as a quinoid of four anionic O: it is none.
    """
    for k in np.flatnonzero((z == 6) & (degree == 3) & (lack == 1)).tolist():
        oxygens = [o for o in neighbours[k] if z[o] == 8 and lack[o] == 1 and degree[o] == 1]
        others = [o for o in neighbours[k] if z[o] == 8]
        if len(oxygens) == 2 == len(others):
            lack[k] -= 1
            lack[oxygens[0]] -= 1


def _boron_cages(
    z: NDArray[np.integer], neighbours: list[list[int]], degree: NDArray[np.integer]
) -> tuple[NDArray[np.bool_], int]:
    """Vertices of closed boron cages (carboranes), and the charge of those by Wade's rules.

    A closed cage of n vertices holds n + 1 pairs of electrons; a BH gives two, a CH three.
    """
    vertex = np.isin(z, [5, 6]) & (degree >= 5) & bool(np.any(z == 5))
    charge, left = 0, set(np.flatnonzero(vertex).tolist())
    while left:
        queue = [left.pop()]
        for atom in queue:
            near = [k for k in neighbours[atom] if k in left]
            left.difference_update(near)
            queue += near
        charge += sum(2 if z[k] == 5 else 3 for k in queue) - 2 * (len(queue) + 1)
    return vertex, charge


def _iminium(
    graph: NDArray[np.bool_],
    want: NDArray[np.integer],
    lone_pair: NDArray[np.bool_],
    counted: NDArray[np.bool_],
    alone: int,
) -> int:
    """How many of `alone` atoms find a partner in the lone pair of an N (imidazolium, ...)."""
    copies = np.where(lone_pair, 1, want)
    rows = counted & ~lone_pair
    return alone - int(want[rows].sum()) + tutte_rank(graph, copies, rows=rows)


def _pyridinium_nitrogens(
    neighbours: list[list[int]], want: NDArray[np.integer], lone_pair: NDArray[np.bool_]
) -> list[int]:
    """N with three neighbours in a ring of six that is unsaturated all around."""
    out = []
    for atom in np.flatnonzero(lone_pair).tolist():
        paths = [[atom]]
        for _ in range(5):
            paths = [
                [*p, k] for p in paths for k in neighbours[p[-1]] if want[k] >= 1 and k not in p
            ]
        if any(atom in neighbours[p[-1]] for p in paths):
            out.append(atom)
    return out


def _anionic_nitrogens(
    z: NDArray[np.integer],
    neighbours: list[list[int]],
    want: NDArray[np.integer],
    n_metal: NDArray[np.integer],
    macrocycle: bool,
) -> list[int]:
    """N that carry the charge of azolates and of porphyrins.

    A five-membered ring without N-H, N-R, O or S has room for two double bonds and one lone pair:
    where a metal holds it, it is an azolate, though a larger conjugated linker could be drawn as
    a neutral quinoid.
    """
    held = [k for k in range(len(z)) if z[k] == 7 and n_metal[k] and want[k] == 1]
    if macrocycle:
        return held[:2]
    out: list[int] = []
    rings: set[frozenset[int]] = set()
    for first in held:
        for path in _rings_of_five(first, neighbours):
            ring = frozenset(path)
            if ring in rings or not all(want[k] >= 1 for k in ring):
                continue
            rings.add(ring)
            free = [k for k in held if k in ring and k not in out]
            out += free[:1]
    return out


def _rings_of_five(start: int, neighbours: list[list[int]]) -> list[list[int]]:
    paths = [[start]]
    for _ in range(4):
        paths = [[*p, k] for p in paths for k in neighbours[p[-1]] if k not in p]
    return [p for p in paths if start in neighbours[p[-1]]]


def fragment_charges(
    z: NDArray[np.integer], bonds: Bonds, cut: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """Formal charge of each fragment, written on its first atom: (atom,); zero elsewhere.

    Parameters
    ----------
    z : (atom,) int
    bonds : Bonds
        All bonds.
    cut : (half-edge,) bool
        Bonds that a rule cuts, both directions.
    """
    metal = IS_METAL[z]
    between = ~metal[bonds.i] & ~metal[bonds.j]
    inner = bonds.kept(between & ~cut)
    pieces = components(inner)
    n = len(z)
    n_cut = np.bincount(bonds.i[between & cut], minlength=n)
    n_metal = np.bincount(bonds.i[~metal[bonds.i] & metal[bonds.j]], minlength=n)
    colour = z.astype(np.uint64) + np.uint64(128) * n_cut.astype(np.uint64)
    colour += np.uint64(1024) * (n_metal > 0).astype(np.uint64)
    hashes = group_hash(refine(colour, inner, rounds=8), pieces.label, pieces.n)
    macrocycle = _macrocycles(z, bonds, pieces)
    hashes = hashes ^ mix(macrocycle.astype(np.uint64))
    first = np.empty(pieces.n, np.int64)
    first[pieces.label[::-1]] = np.arange(n - 1, -1, -1)
    _, example, kind = np.unique(hashes, return_index=True, return_inverse=True)
    indptr = inner.indptr
    charge = np.zeros(len(example), np.int32)
    for k, piece in enumerate(example.tolist()):
        if metal[first[piece]]:
            continue
        members = _members(inner.j, indptr, int(first[piece]))
        place = {a: p for p, a in enumerate(members)}
        near = [[place[b] for b in inner.j[indptr[a] : indptr[a + 1]].tolist()] for a in members]
        charge[k] = fragment_charge(
            z[members],
            near,
            n_cut=n_cut[members],
            n_metal=n_metal[members],
            macrocycle=bool(macrocycle[piece]),
        )
    out = np.zeros(n, np.int32)
    out[first] = charge[kind]
    return out


def _members(indices: NDArray[np.integer], indptr: NDArray[np.int64], start: int) -> list[int]:
    found, queue = {start}, [start]
    for atom in queue:
        for other in indices[indptr[atom] : indptr[atom + 1]].tolist():
            if other not in found:
                found.add(other)
                queue.append(other)
    return queue


def _macrocycles(z: NDArray[np.integer], bonds: Bonds, pieces: Components) -> NDArray[np.bool_]:
    """Fragments of which four N with two other neighbours each hold one and the same metal.

    All four of one image of the fragment: in a small cell a linker meets a metal by its images.
    """
    metal = IS_METAL[z]
    out = np.zeros(pieces.n, bool)
    edge = metal[bonds.i] & (z[bonds.j] == 7) & (bonds.degree[bonds.j] == 3)
    if not edge.any():
        return out
    image = bonds.shift[edge] - pieces.shift[bonds.j[edge]]
    pair = np.column_stack([bonds.i[edge], pieces.label[bonds.j[edge]], image])
    rows, count = np.unique(pair, axis=0, return_counts=True)
    out[rows[count == 4, 1]] = True
    return out


def oxidation_states(metals: dict[int, int], target: float) -> dict[int, tuple[int, ...]] | None:
    """Oxidation states of the metals of one block that add up to `target`.

    Parameters
    ----------
    metals : dict
        Atomic number -> how many.
    target : float
        Charge to balance.

    Returns
    -------
    dict or None
        Atomic number -> states of its atoms, sorted, with the fewest unusual ones; None when no
        combination fits.
    """
    options = []
    for z, count in metals.items():
        usual, *others = OXIDATION.get(z, (2, 3))
        choices = [(0, (usual,) * count)]
        for rank, other in enumerate(others):
            few = range(1, count + 1) if z in MIXED else range(count, count + 1)
            choices += [(k + 100 * rank, (usual,) * (count - k) + (other,) * k) for k in few]
        options.append([(z, cost, states) for cost, states in choices])
    best = None
    for combination in product(*options):
        total = sum(sum(states) for _, _, states in combination)
        cost = sum(c for _, c, _ in combination)
        if abs(total - target) < 1e-6 and (best is None or cost < best[0]):
            best = (cost, {z: tuple(sorted(states)) for z, _, states in combination})
    return best[1] if best else None


def usual_states(metals: dict[int, int]) -> dict[int, tuple[int, ...]]:
    """The usual oxidation state of every metal."""
    return {z: (OXIDATION.get(z, (2,))[0],) * count for z, count in metals.items()}


_NOBLE = (2, 10, 18, 36, 54, 86)


def open_shell(z: int, state: int) -> bool:
    """Whether a metal ion has a partly filled d or f shell: it needs a spin from the user."""
    if 21 <= z <= 30 or 39 <= z <= 48:
        left = z - (18 if z <= 30 else 36) - state
        return 0 < left < 10
    if 57 <= z <= 71:
        left = z - 54 - state
        return 0 < left < 14
    if 72 <= z <= 80:
        left = z - 68 - state
        return 0 < left < 10
    if 89 <= z <= 103:
        return 0 < z - 86 - state < 14
    return False
