"""Hydrogens that a diffraction experiment did not see, put where chemistry leaves one way only.

C-H of carbon whose bonds say how many it lacks; the H of OH between two or three metals, where the
bond valence of the O says that it is one; the four mu3-OH of an M6O8 cube of tetravalent metals;
OH and water at the ends of metals, where the charge says how many of either. Whatever else is
missing is left to the checks, which refuse it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mofal.errors import StructureError
from mofal.frameworks.blocks import blocks_from_bonds
from mofal.frameworks.bonds import IS_METAL, Bonds, bond_lengths, bonds_of
from mofal.frameworks.checks import lacking_carbon
from mofal.frameworks.valence import BARE_OXYGEN, oxygen_valences

if TYPE_CHECKING:
    import xarray as xr

CH_LENGTH, OH_LENGTH = 1.09, 0.97
# Bonds of carbon (Å) shorter than the first are part of a double bond or a ring, longer than the
# second single; between the two nobody can tell. Allen et al., J. Chem. Soc. Perkin Trans. 2 1987,
# S1: aromatic C-C 1.38, C(sp2)-C(sp2) 1.46, C(sp3)-C 1.51; C-N 1.34 and 1.47; C-O 1.36 and 1.43.
_MULTIPLE = {6: 1.445, 7: 1.40, 8: 1.34}
_SINGLE = {6: 1.465, 7: 1.43, 8: 1.385}
# A bridging O of less than this lacks two protons (water), not one.
_WATER = 0.75
_TETRAVALENT = (40, 72, 58, 90, 92)
_TURNS = 36


def add_hydrogens(atoms: Atoms, *, rule: str = "auto") -> tuple[Atoms, list[str]]:
    """Complete a framework with the hydrogens that its file leaves out.

    Parameters
    ----------
    atoms : Atoms
        Periodic; without atoms in one place.
    rule : str
        How it is cut into blocks, whose charges say how many protons are missing.

    Returns
    -------
    atoms : Atoms
        The given ones in their order, then the H.
    notes : list of str
        What was added, and where a choice was made.

    Raises
    ------
    StructureError
        Carbon that lacks a hydrogen, but it cannot be told how many; protons are missing at the
        ends of metals, and more than one way leads there.
    """
    grown = _Grown(atoms)
    notes = _on_carbon(grown)
    notes += _on_bridges(grown, rule)
    notes += _on_nodes(grown, rule)
    return grown.atoms(), notes


class _Grown:
    """A structure that hydrogens are put on, and its bonds."""

    def __init__(self, atoms: Atoms) -> None:
        self.start = atoms
        self.cell = np.asarray(atoms.cell.array)
        self.pbc = np.asarray(atoms.pbc)
        self.numbers: NDArray[np.integer] = np.asarray(atoms.numbers, np.int32)
        self.positions = np.asarray(atoms.positions, float)
        self.bonds = self._bonds()

    def _bonds(self) -> Bonds:
        return bonds_of(self.numbers, self.positions, self.cell, self.pbc)

    def vectors(self, k: int) -> tuple[NDArray[np.integer], NDArray[np.float64]]:
        """Neighbours of an atom, and the vectors to them (Å)."""
        span = slice(self.bonds.indptr[k], self.bonds.indptr[k + 1])
        j = self.bonds.j[span]
        return j, self.positions[j] + self.bonds.shift[span] @ self.cell - self.positions[k]

    def put(self, places: list[NDArray[np.float64]]) -> None:
        """Add H at some places and find the bonds anew."""
        if places:
            self.numbers = np.concatenate([self.numbers, np.ones(len(places), np.int32)])
            self.positions = np.concatenate([self.positions, np.array(places)])
            self.bonds = self._bonds()

    def atoms(self) -> Atoms:
        n = len(self.start)
        out = self.start.copy()
        if len(self.numbers) > n:
            out += Atoms(self.numbers[n:], positions=self.positions[n:])
        return out

    def room(self, point: NDArray[np.float64], but: int) -> float:
        """Distance (Å) from a point to the nearest atom other than one."""
        d = self.positions - point
        inverse = np.linalg.pinv(self.cell)
        d -= np.round(d @ inverse) * self.pbc @ self.cell
        length = np.linalg.norm(d, axis=1)
        length[but] = np.inf
        return float(length.min())


def _unit(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(v / np.linalg.norm(v))


def _across(axis: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two directions at right angles to an axis and to each other."""
    one = _unit(np.cross(axis, np.eye(3)[np.abs(axis).argmin()]))
    return one, np.cross(axis, one)


# ------------------------------------------------------------------------------- carbon
def _on_carbon(grown: _Grown) -> list[str]:
    lacking = lacking_carbon(grown.numbers, grown.positions, grown.cell, grown.bonds)
    places: list[NDArray[np.float64]] = []
    kinds: Counter[str] = Counter()
    for k in lacking:
        j, v = grown.vectors(k)
        length = np.linalg.norm(v, axis=1)
        z = grown.numbers[j]
        u = v / length[:, None]
        if len(j) == 3:
            places.append(_unit(-u.sum(axis=0)) * CH_LENGTH + grown.positions[k])
            kinds["CH of sp3 carbon"] += 1
        elif len(j) == 2:
            count = _two_or_one(grown, k, z, length)
            axis = _unit(-u.sum(axis=0))
            if count == 1:
                places.append(grown.positions[k] + CH_LENGTH * axis)
                kinds["CH of sp2 carbon"] += 1
            else:
                side = _unit(np.cross(u[0], u[1]))
                half = np.radians(109.47 / 2)
                for sign in (1, -1):
                    out = np.cos(half) * axis + sign * np.sin(half) * side
                    places.append(grown.positions[k] + CH_LENGTH * out)
                kinds["CH2"] += 1
        elif len(j) == 1 and length[0] > _SINGLE.get(int(z[0]), 1.465):
            places += _methyl(grown, k, u[0])
            kinds["CH3, turned to where there is most room"] += 1
        else:
            raise StructureError(
                f"C (atom {k}) has {len(j)} neighbours: no geometry tells which hydrogens it "
                "lacks; add them by hand"
            )
    grown.put(places)
    if not places:
        return []
    return [f"added {len(places)} H on C ({', '.join(f'{c} {n}' for n, c in kinds.items())})"]


def _two_or_one(grown: _Grown, k: int, z: NDArray[np.integer], length: NDArray[np.float64]) -> int:
    """Hydrogens of a bent carbon with two neighbours, by the lengths of its bonds."""
    kinds = list(zip(z.tolist(), length.tolist()))
    if all(d > _SINGLE.get(e, np.inf) for e, d in kinds):
        return 2
    if any(d < _MULTIPLE.get(e, 0.0) for e, d in kinds):
        return 1
    said = " and ".join(f"{chemical_symbols[e]} at {d:.2f} Å" for e, d in kinds)
    raise StructureError(
        f"C (atom {k}) lacks one hydrogen or two: bonds to {said} are neither single nor double; "
        "add them by hand"
    )


def _methyl(grown: _Grown, k: int, u: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    one, other = _across(u)
    best: tuple[float, list[NDArray[np.float64]]] = (-1.0, [])
    for turn in np.radians(np.arange(0, 120, 10)):
        own = []
        for third in np.radians([0.0, 120.0, 240.0]):
            side = np.cos(turn + third) * one + np.sin(turn + third) * other
            own.append(grown.positions[k] + CH_LENGTH * (-u / 3 + np.sqrt(8) / 3 * side))
        room = min(grown.room(p, k) for p in own)
        best = max(best, (room, own), key=lambda pair: pair[0])
    return best[1]


# ------------------------------------------------------------------------------- bridges
def _bare_oxygen(grown: _Grown) -> NDArray[np.int64]:
    """Number of metals of each O that has nothing else; 0 for other atoms."""
    z, bonds = grown.numbers, grown.bonds
    metals = np.bincount(bonds.i[IS_METAL[z[bonds.j]]], minlength=len(z))
    return np.where((z == 8) & (metals == bonds.degree), metals, 0)


def _valences(grown: _Grown) -> NDArray[np.float64]:
    length = bond_lengths(grown.bonds, grown.positions, grown.cell)
    return oxygen_valences(grown.numbers, grown.bonds, length)


def _on_bridges(grown: _Grown, rule: str) -> list[str]:
    """OH between metals: the bond valence of the O leaves room for one H, and the charge wants it.

    A bond that is long for other reasons is no OH: V(IV)=O and V(III)-OH of one average structure
    differ by the charge of the metal alone, and then the file is believed as it is.
    """
    metals, valence = _bare_oxygen(grown), _valences(grown)
    lack = np.flatnonzero((metals > 1) & (valence < BARE_OXYGEN) & (valence > _WATER))
    if not len(lack) or len(lack) > -int(_blocks(grown, rule)["charge"].values.sum()):
        return []
    places, kinds = [], Counter[str]()
    for k in lack.tolist():
        _, v = grown.vectors(k)
        out = -(v / np.linalg.norm(v, axis=1)[:, None]).sum(axis=0)
        if np.linalg.norm(out) < 0.3:
            continue  # straight or flat: no side to put it on
        places.append(grown.positions[k] + OH_LENGTH * _unit(out))
        kinds[f"mu{metals[k]}-OH"] += 1
    grown.put(places)
    text = ", ".join(f"{c} {n}" for n, c in kinds.items())
    return [f"added {len(places)} H on O ({text})"] if places else []


# ------------------------------------------------------------------------------- nodes
def _on_nodes(grown: _Grown, rule: str) -> list[str]:
    """The mu3-OH of M6O8 cubes, then OH and water at the ends of metals, by the charge."""
    blocks = _blocks(grown, rule)
    notes: list[str] = []
    places: list[NDArray[np.float64]] = []
    kinds: Counter[str] = Counter()
    start = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])
    metals, valence = _bare_oxygen(grown), _valences(grown)
    cubes = 0
    for b in range(blocks.sizes["block"]):
        need = -int(blocks["charge"].values[b])
        own = blocks["member_atom"].values[start[b] : start[b + 1]]
        if need <= 0 or not IS_METAL[grown.numbers[own]].any():
            continue
        if any(blocks["link_cap_charge"].values[_links_of(blocks, b)].ravel()):
            continue  # what a block of a rod lacks is told by the whole cell alone
        chosen = _cube(grown, own, metals, valence) if need >= 4 else []
        for k in chosen:
            _, v = grown.vectors(k)
            out = -(v / np.linalg.norm(v, axis=1)[:, None]).sum(axis=0)
            places.append(grown.positions[k] + OH_LENGTH * _unit(out))
            kinds["mu3-OH"] += 1
        cubes += bool(chosen)
        need -= len(chosen)
        for k, count in _ends(grown, own, metals, need, str(blocks["formula"].values[b])):
            places += _terminal(grown, k, count)
            has = 1 in grown.numbers[grown.vectors(k)[0]]
            kinds["H2O at the end of a metal" if has or count == 2 else "OH at the end"] += 1
    if cubes:
        notes.append(f"of the two equal patterns of mu3-OH one was taken ({cubes} nodes)")
    if places:
        grown.put(places)
        text = ", ".join(f"{c} {n}" for n, c in kinds.items())
        notes.insert(0, f"added {len(places)} H on nodes ({text})")
    return notes


def _blocks(grown: _Grown, rule: str) -> xr.Dataset:
    length = bond_lengths(grown.bonds, grown.positions, grown.cell)
    return blocks_from_bonds(grown.numbers, grown.bonds, rule=rule, length=length)


def _links_of(blocks: xr.Dataset, b: int) -> NDArray[np.bool_]:
    return np.asarray((blocks["link_block"].values == b).any(axis=1))


def _cube(
    grown: _Grown, own: NDArray[np.integer], metals: NDArray[np.int64], valence: NDArray[np.float64]
) -> list[int]:
    """Four of the eight bare mu3-O of a cube of six tetravalent metals, no two on one edge."""
    bridges = own[metals[own] == 3]
    if len(bridges) != 8 or (np.isin(grown.numbers[own], _TETRAVALENT)).sum() != 6:
        return []
    # Corners of the cube that share an edge share two metals, across a face one, opposite none.
    sets = {int(k): _metals_of(grown, int(k)) for k in bridges}
    first = min(sets, key=lambda k: (round(float(valence[k]), 2), k))
    side = [k for k in sets if k == first or len(sets[k] & sets[first]) == 1]
    return sorted(side) if len(side) == 4 else []


def _metals_of(grown: _Grown, k: int) -> set[int]:
    j, _ = grown.vectors(k)
    return {int(a) for a in j if IS_METAL[grown.numbers[a]]}


def _ends(
    grown: _Grown,
    own: NDArray[np.integer],
    metals: NDArray[np.int64],
    need: int,
    name: str,
) -> list[tuple[int, int]]:
    """O at the ends of metals of a node that get H, and how many each."""
    if need <= 0:
        return []
    z = grown.numbers
    bare = own[metals[own] == 1].tolist()
    hydroxide = []
    for k in own[z[own] == 8].tolist():
        j, _ = grown.vectors(k)
        around = z[j]
        if len(j) == 2 and (around == 1).sum() == 1 and IS_METAL[around].sum() == 1:
            hydroxide.append(k)
    most = 2 * len(bare) + len(hydroxide)
    if need > most or need < len(bare):
        if not bare and not hydroxide:
            return []  # nothing here takes a proton: the checks say what is the matter
        raise StructureError(
            f"the {name} node lacks {need} protons, and {len(bare)} bare O and {len(hydroxide)} OH "
            f"at the ends of its metals take {len(bare)} to {most}: add them by hand"
        )
    count = dict.fromkeys(bare, 1)
    waters = need - len(bare)
    # Water lies further from its metal than OH; one on each metal before the second on any.
    where: dict[int, list[tuple[float, int]]] = {}
    for k in bare + hydroxide:
        j, v = grown.vectors(k)
        at = int(np.flatnonzero(IS_METAL[z[j]])[0])
        where.setdefault(int(j[at]), []).append((-float(np.linalg.norm(v[at])), k))
    turns = [sorted(some) for some in where.values()]
    order = [some[t][1] for t in range(max(map(len, turns))) for some in turns if t < len(some)]
    per_metal = {len(some) for some in turns}
    if 0 < waters < len(order) and (len(per_metal) > 1 or waters % len(turns)):
        raise StructureError(
            f"the {name} node lacks {need} protons: which of the {len(order)} O at the ends of its "
            f"{len(turns)} metals are water ({waters} are) has more than one answer; add them by "
            "hand"
        )
    for k in order[:waters]:
        count[k] = count.get(k, 0) + 1
    return sorted(count.items())


def _terminal(grown: _Grown, k: int, count: int) -> list[NDArray[np.float64]]:
    """Places of one or two H on an O at the end of a metal, turned to where there is room."""
    j, v = grown.vectors(k)
    metal = _unit(v[np.flatnonzero(IS_METAL[grown.numbers[j]])[0]])
    here = grown.positions[k]
    old = np.flatnonzero(grown.numbers[j] == 1)
    if len(old):
        # A second H in the plane of the first and the metal, 106 degrees from the first.
        h = _unit(v[old[0]])
        aside = _unit(-metal - (-metal @ h) * h)
        angle = np.radians(106.0)
        return [here + OH_LENGTH * (np.cos(angle) * h + np.sin(angle) * aside)]
    one, other = _across(metal)
    angle = np.radians(115.0 if count == 1 else 127.0)
    best: tuple[float, list[NDArray[np.float64]]] = (-1.0, [])
    for turn in np.linspace(0, 2 * np.pi, _TURNS, endpoint=False):
        own = []
        for half in (0.0,) if count == 1 else (0.0, np.pi):
            side = np.cos(turn + half) * one + np.sin(turn + half) * other
            own.append(here + OH_LENGTH * (np.cos(angle) * metal + np.sin(angle) * side))
        room = min(grown.room(p, k) for p in own)
        best = max(best, (room, own), key=lambda pair: pair[0])
    return best[1]
