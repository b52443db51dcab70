"""Formal charges of fragments and metals, against textbook chemistry."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import atomic_numbers

from mofal.frameworks.charges import (
    formula,
    fragment_charge,
    open_shell,
    oxidation_states,
)


def charge(symbols, bonds, *, metal=(), cut=(), macrocycle=False):
    """Charge of a fragment from its bonds; `metal` and `cut` list atoms, once per such bond."""
    names = symbols.split()
    near = [[] for _ in names]
    for a, b in bonds:
        near[a].append(b)
        near[b].append(a)
    z = np.array([atomic_numbers[s] for s in names])
    n_metal = np.bincount(metal, minlength=len(z)) if metal else np.zeros(len(z), int)
    n_cut = np.bincount(cut, minlength=len(z)) if cut else np.zeros(len(z), int)
    return fragment_charge(z, near, n_cut=n_cut, n_metal=n_metal, macrocycle=macrocycle)


def ring(*members):
    return list(zip(members, (*members[1:], members[0])))


BENZENE = ring(0, 1, 2, 3, 4, 5)

FRAGMENTS = {
    "oxide": (-2, "O", [], {"metal": (0, 0, 0)}),
    "hydroxide": (-1, "O H", [(0, 1)], {"metal": (0, 0, 0)}),
    "water": (0, "O H H", [(0, 1), (0, 2)], {"metal": (0,)}),
    "oxonium": (1, "O H H H", [(0, 1), (0, 2), (0, 3)], {}),
    "fluoride": (-1, "F", [], {"metal": (0, 0)}),
    "formate": (-1, "C O O H", [(0, 1), (0, 2), (0, 3)], {"metal": (1, 2)}),
    "formate on one O": (-1, "C O O H", [(0, 1), (0, 2), (0, 3)], {"metal": (1,)}),
    "formic acid": (0, "C O O H H", [(0, 1), (0, 2), (0, 3), (1, 4)], {"metal": (2,)}),
    "carboxylate, cut": (-1, "C O O", [(0, 1), (0, 2)], {"metal": (1, 2), "cut": (0,)}),
    "carbonate": (-2, "C O O O", [(0, 1), (0, 2), (0, 3)], {"metal": (1, 2, 3)}),
    "nitrate": (-1, "N O O O", [(0, 1), (0, 2), (0, 3)], {"metal": (1, 2)}),
    "nitrate, free": (-1, "N O O O", [(0, 1), (0, 2), (0, 3)], {}),
    "sulfate": (-2, "S O O O O", [(0, k) for k in (1, 2, 3, 4)], {"metal": (1, 2)}),
    "sulfonate, cut": (-1, "S O O O", [(0, k) for k in (1, 2, 3)], {"metal": (1,), "cut": (0,)}),
    "phosphonate, cut": (
        -2, "P O O O", [(0, k) for k in (1, 2, 3)], {"metal": (1, 2, 3), "cut": (0,)}
    ),
    "phosphonate on metals, sulfonate free": (
        -3, "C C C C C C H H H H P O O O S O O O",
        [*BENZENE, *((k, k + 5) for k in (1, 2)), *((k, k + 4) for k in (4, 5)), (0, 10), (3, 14)]
        + [(10, k) for k in (11, 12, 13)] + [(14, k) for k in (15, 16, 17)],
        {"metal": (11, 12, 13)}
    ),
    "phosphate": (-3, "P O O O O", [(0, k) for k in (1, 2, 3, 4)], {"metal": (1, 2, 3, 4)}),
    "perchlorate": (-1, "Cl O O O O", [(0, k) for k in (1, 2, 3, 4)], {}),
    "tetrafluoroborate": (-1, "B F F F F", [(0, k) for k in (1, 2, 3, 4)], {}),
    "hexafluorosilicate": (-2, "Si F F F F F F", [(0, k) for k in range(1, 7)], {"metal": (1, 2)}),
    "hexafluorophosphate": (-1, "P F F F F F F", [(0, k) for k in range(1, 7)], {}),
    "ammonium": (1, "N H H H H", [(0, k) for k in (1, 2, 3, 4)], {}),
    "carbon dioxide": (0, "O C O", [(0, 1), (1, 2)], {}),
    "carbonyl": (0, "C O", [(0, 1)], {"metal": (0,)}),
    "cyanide": (-1, "C N", [(0, 1)], {"metal": (0, 1)}),
    "azide": (-1, "N N N", [(0, 1), (1, 2)], {"metal": (0, 2)}),
    "thiocyanate": (-1, "S C N", [(0, 1), (1, 2)], {"metal": (2,)}),
    "dinitrogen": (0, "N N", [(0, 1)], {}),
    "acetonitrile": (
        0, "C C N H H H", [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5)], {"metal": (2,)}
    ),
    "methoxide": (-1, "C O H H H", [(0, 1), (0, 2), (0, 3), (0, 4)], {"metal": (1, 1)}),
    "dimethylformamide": (
        0,
        "C O N C C H H H H H H H",
        [(0, 1), (0, 2), (0, 5), (2, 3), (2, 4)] + [(3, k) for k in (6, 7, 8)]
        + [(4, k) for k in (9, 10, 11)],
        {"metal": (1,)},
    ),
    "benzene, two cuts": (
        0, "C C C C C C H H H H", [*BENZENE, (1, 6), (2, 7), (4, 8), (5, 9)], {"cut": (0, 3)}
    ),
    "phenolate": (
        -1, "C C C C C C H H H H H O",
        [*BENZENE, (1, 6), (2, 7), (3, 8), (4, 9), (5, 10), (0, 11)], {"metal": (11, 11)}
    ),
    "catecholate": (
        -2, "C C C C C C H H H H O O",
        [*BENZENE, (2, 6), (3, 7), (4, 8), (5, 9), (0, 10), (1, 11)], {"metal": (10, 11)}
    ),
    "quinone, free": (
        0, "C C C C C C H H H H O O",
        [*BENZENE, (1, 6), (2, 7), (4, 8), (5, 9), (0, 10), (3, 11)], {}
    ),
    "acetylacetonate": (
        -1, "C C C C C O O H H H H H H H",
        [(0, 1), (1, 2), (0, 3), (2, 4), (0, 5), (2, 6), (1, 7)]
        + [(3, k) for k in (8, 9, 10)] + [(4, k) for k in (11, 12, 13)], {"metal": (5, 6)}
    ),
    "pyridine": (
        0, "N C C C C C H H H H H",
        [*BENZENE, (1, 6), (2, 7), (3, 8), (4, 9), (5, 10)], {"metal": (0,)}
    ),
    "pyridine N-oxide": (
        0, "N C C C C C H H H H H O",
        [*BENZENE, (1, 6), (2, 7), (3, 8), (4, 9), (5, 10), (0, 11)], {"metal": (11,)}
    ),
    "imidazolate": (
        -1, "N C N C C H H H", [*ring(0, 1, 2, 3, 4), (1, 5), (3, 6), (4, 7)], {"metal": (0, 2)}
    ),
    "imidazole": (
        0, "N C N C C H H H H", [*ring(0, 1, 2, 3, 4), (1, 5), (3, 6), (4, 7), (2, 8)],
        {"metal": (0,)}
    ),
    "triazolate": (-1, "N N C N C H H", [*ring(0, 1, 2, 3, 4), (2, 5), (4, 6)],
                   {"metal": (0, 1, 3)}),
    "tetrazolate": (-1, "N N N N C H", [*ring(0, 1, 2, 3, 4), (4, 5)], {"metal": (0, 1, 2, 3)}),
    "nitrobenzene": (
        0, "C C C C C C H H H H H N O O",
        [*BENZENE, (1, 6), (2, 7), (3, 8), (4, 9), (5, 10), (0, 11), (11, 12), (11, 13)], {}
    ),
    "superoxide-free dioxygen": (0, "O O", [(0, 1)], {}),
    "sulfur dioxide": (0, "S O O", [(0, 1), (0, 2)], {}),
    "imidazolium": (
        1, "N C N C C H H H H H",
        [*ring(0, 1, 2, 3, 4), (0, 5), (1, 6), (2, 7), (3, 8), (4, 9)], {}
    ),
    "pyridinium": (
        1, "N C C C C C H H H H H H", [*BENZENE, *((k, k + 6) for k in range(6))], {}
    ),
    "bipyridinium, two cuts": (
        2, "N C C C C C N C C C C C H H H H H H H H",
        [*BENZENE, *ring(6, 7, 8, 9, 10, 11), (3, 9),
         *zip((1, 2, 4, 5, 7, 8, 10, 11), range(12, 20))], {"cut": (0, 6)}
    ),
    "guanidinium": (
        1, "C N N N H H H H H H",
        [(0, k) for k in (1, 2, 3)] + [(1 + k // 2, 4 + k) for k in range(6)], {}
    ),
    "pyridine with an amine": (
        0, "N C C C C C H H H H N H H",
        [*BENZENE, *((k, k + 5) for k in (1, 2, 4, 5)), (3, 10), (10, 11), (10, 12)],
        {"metal": (0,)}
    ),
    "tetramethylphosphonium": (
        1, "P C C C C " + "H " * 12,
        [(0, k) for k in (1, 2, 3, 4)] + [(1 + k // 3, 5 + k) for k in range(12)], {}
    ),
    "trimethylphosphine": (
        0, "P C C C " + "H " * 9,
        [(0, k) for k in (1, 2, 3)] + [(1 + k // 3, 4 + k) for k in range(9)], {"metal": (0,)}
    ),
    "dipyrrin": (
        -1, "N C C C C C N C C C C H H H H H H H",
        [*ring(0, 1, 2, 3, 4), (4, 5), (5, 7), *ring(6, 7, 8, 9, 10),
         *zip((1, 2, 3, 5, 8, 9, 10), range(11, 18))], {"metal": (0, 6)}
    ),
    "cyclopentadienide": (
        -1, "C C C C C H H H H H", [*ring(0, 1, 2, 3, 4), *((k, k + 5) for k in range(5))],
        {"metal": (0, 1, 2, 3, 4)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAGMENTS)
def test_fragment_charge__textbook(name):
    expected, symbols, bonds, more = FRAGMENTS[name]
    assert charge(symbols, bonds, **more) == expected


@pytest.mark.parametrize(("carbons", "expected"), [(0, -2), (1, -1), (2, 0)])
def test_fragment_charge__icosahedral_cages(carbons, expected):
    # B12H12(2-), CB11H12(-), C2B10H12: Wade's rules.
    phi = (1 + np.sqrt(5)) / 2
    corner = [(0, a, b * phi) for a in (1, -1) for b in (1, -1)]
    x = np.array([np.roll(c, k) for c in corner for k in range(3)])
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    cage = [(a, b) for a in range(12) for b in range(a) if far[a, b] < 2.1]
    assert len(cage) == 30
    names = ["C"] * carbons + ["B"] * (12 - carbons) + ["H"] * 12
    assert charge(" ".join(names), [*cage, *((k, k + 12) for k in range(12))]) == expected


def test_fragment_charge__bispyrazolate_is_no_quinoid():
    # 1,4-benzenedipyrazolate: a neutral quinoid could be drawn, the metals say azolate.
    ring6 = ring(0, 1, 2, 3, 4, 5)
    left, right = ring(6, 7, 8, 9, 10), ring(11, 12, 13, 14, 15)
    names = ["C"] * 6 + ["C", "C", "N", "N", "C"] * 2 + ["H"] * 8
    hydrogens = list(zip((1, 2, 4, 5, 7, 10, 12, 15), range(16, 24)))
    bonds = [*ring6, *left, *right, (0, 6), (3, 11), *hydrogens]
    assert charge(" ".join(names), bonds, metal=(8, 9, 13, 14)) == -2


def test_fragment_charge__porphyrin():
    # Four pyrroles (N, Ca, Cb, Cb, Ca) and four meso C, all with H outside.
    names, bonds = [], []
    for k in range(4):
        base = 5 * k
        names += ["N", "C", "C", "C", "C"]
        bonds += ring(base, base + 1, base + 2, base + 3, base + 4)
    for k in range(4):
        meso = 20 + k
        names.append("C")
        bonds += [(5 * k + 4, meso), (meso, 5 * ((k + 1) % 4) + 1)]
    for atom in [*(5 * k + m for k in range(4) for m in (2, 3)), 20, 21, 22, 23]:
        bonds.append((atom, len(names)))
        names.append("H")
    nitrogens = tuple(5 * k for k in range(4))
    assert charge(" ".join(names), bonds, metal=nitrogens, macrocycle=True) == -2


@pytest.mark.parametrize(
    ("metals", "target", "states"),
    [
        ({"Zr": 6}, 24, {"Zr": (4,) * 6}),
        ({"Zr": 5, "Hf": 1}, 24, {"Zr": (4,) * 5, "Hf": (4,)}),
        ({"Zr": 6}, 20, None),
        ({"Cu": 2}, 4, {"Cu": (2, 2)}),
        ({"Cu": 4}, 4, {"Cu": (1,) * 4}),
        ({"Fe": 3}, 8, {"Fe": (2, 3, 3)}),
        ({"Cr": 3}, 8, None),
        ({"Cr": 2}, 4, {"Cr": (2, 2)}),
        ({"Ce": 6}, 24, {"Ce": (4,) * 6}),
        ({"Zn": 4}, 8, {"Zn": (2,) * 4}),
        ({"Zn": 4}, 7, None),
        ({"U": 1}, 6, {"U": (6,)}),
    ],
)
def test_oxidation_states__balance(metals, target, states):
    found = oxidation_states({atomic_numbers[s]: n for s, n in metals.items()}, target)
    if states is None:
        assert found is None
    else:
        assert found == {atomic_numbers[s]: tuple(sorted(v)) for s, v in states.items()}


@pytest.mark.parametrize(
    ("symbol", "state", "partly"),
    [
        ("Zr", 4, False), ("Hf", 4, False), ("Ti", 4, False), ("Ti", 3, True), ("Zn", 2, False),
        ("Cu", 2, True), ("Cu", 1, False), ("Fe", 3, True), ("Cr", 3, True), ("Al", 3, False),
        ("Ce", 4, False), ("Ce", 3, True), ("Eu", 3, True), ("La", 3, False), ("Lu", 3, False),
        ("Y", 3, False), ("Cd", 2, False), ("Pt", 2, True), ("U", 6, False), ("In", 3, False),
        ("Ag", 1, False), ("Mo", 2, True), ("W", 6, False), ("Au", 1, False), ("Ta", 5, False),
    ],
)  # fmt: skip
def test_open_shell__d_and_f(symbol, state, partly):
    assert open_shell(atomic_numbers[symbol], state) is partly


def test_formula__hill():
    assert formula({"H": 4, "C": 6}) == "C6H4"
    assert formula({"Zr": 6, "O": 32, "H": 4, "C": 12}) == "C12H4O32Zr6"
    assert formula({"Zn": 1, "H": 2, "O": 1}) == "H2OZn"
