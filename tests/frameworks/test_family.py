"""The UiO-66 family: compositions, coordination and symmetry of every named system."""

from __future__ import annotations

import numpy as np
import pytest
import spglib
from ase.formula import Formula
from matscipy.neighbours import neighbour_list

from mofal.data import to_atoms
from mofal.errors import StructureError
from mofal.frameworks import (
    bare,
    build,
    find_blocks,
    linker_pair_orbits,
    symmetry_operations,
    system_names,
)
from mofal.frameworks.uio import linkers

BRICK = {"C": 12, "H": 4, "O": 32, "M": 6}


def composition(ds):
    symbols = to_atoms(ds, 0).get_chemical_symbols()
    return {s: symbols.count(s) for s in sorted(set(symbols))}


def coordination(ds):
    blocks = find_blocks(ds)
    node = blocks["role"].values == "node"
    return sorted(blocks["coordination"].values[node].tolist())


def count_roles(ds):
    role = find_blocks(ds)["role"].values
    return {name: int((role == name).sum()) for name in np.unique(role)}


CELLS = [
    # name, formula, coordination of the bricks, linkers: method.md, Systems
    ("S_pr", "C192H112O128Zr24", [12, 12, 12, 12], 24),
    ("S_ld", "C186H110O128Zr24", [11, 11, 12, 12], 23),
    ("S_hf", "C192H112O128Zr23Hf", [12, 12, 12, 12], 24),
    ("S_reo", "C108H72O96Zr18", [8, 8, 8], 12),
    ("S_bcu", "C144H96O128Zr24", [8, 8, 8, 8], 16),
    ("S_scu", "C84H64O96Zr18", [4, 4, 8], 8),
    ("S_pr^hf", "C192H112O128Hf24", [12, 12, 12, 12], 24),
    ("UiO-66", "C192H112O128Zr24", [12, 12, 12, 12], 24),
    ("UiO-66-NH2", "C192H136N24O128Zr24", [12, 12, 12, 12], 24),
    ("UiO-67", "C336H208O128Zr24", [12, 12, 12, 12], 24),
]


@pytest.mark.parametrize(("name", "formula", "coordinations", "n_linkers"), CELLS)
def test_build__composition_and_coordination(name, formula, coordinations, n_linkers):
    ds = build(name)
    assert composition(ds) == dict(sorted(Formula(formula).count().items()))
    assert coordination(ds) == coordinations
    assert count_roles(ds) == {"node": len(coordinations), "linker": n_linkers}
    assert str(ds["system"].values[0]) == name
    assert set(find_blocks(ds)["charge"].values.tolist()) == {0}


@pytest.mark.parametrize(
    ("name", "n_atoms"),
    [("S_pr", 456), ("S_ld", 448), ("S_hf", 456), ("S_reo", 294), ("S_bcu", 392), ("S_scu", 262)],
)
def test_build__atom_counts_of_the_paper(name, n_atoms):
    assert build(name).sizes["atom"] == n_atoms


@pytest.mark.parametrize(("name", "n_atoms"), [("S_pr", 114), ("S_ld", 106), ("S_hf", 114)])
def test_build__primitive_cell(name, n_atoms):
    ds = build(name, cell="primitive")
    assert ds.sizes["atom"] == n_atoms
    volume = abs(np.linalg.det(ds["cell"].values[0]))
    assert volume == pytest.approx(20.75**3 / 4, rel=1e-12)


def test_build__geometry_of_method():
    ds = build("S_pr")
    z, x, cell = ds["numbers"].values, ds["positions"].values, ds["cell"].values[0]
    assert np.allclose(cell, 20.75 * np.eye(3))
    zr = x[:6]
    assert np.all(z[:6] == 40)
    assert np.allclose(np.linalg.norm(zr, axis=1), 2.496)
    i, j, d = neighbour_list("ijd", positions=x, cell=cell, pbc=[True] * 3, cutoff=2.4)
    zr_o = d[(z[i] == 40) & (z[j] == 8)]
    assert len(zr_o) == 24 * 8  # every Zr holds eight O
    assert zr_o.min() > 2.0
    assert zr_o.max() < 2.3
    carboxylate = d[(z[i] == 6) & (z[j] == 8) & (d < 2.0)]
    assert len(carboxylate) == 2 * 48
    assert np.allclose(carboxylate, np.hypot(0.586, 1.127))


@pytest.mark.parametrize("name", [n for n in system_names() if not n.startswith("S_sup")])
def test_build__no_two_atoms_too_close(name):
    ds = build(name)
    z = ds["numbers"].values
    i, j, d = neighbour_list(
        "ijd",
        positions=ds["positions"].values,
        cell=ds["cell"].values[0],
        pbc=[True] * 3,
        cutoff=2.4,
    )
    assert d.min() > 0.96  # O-H
    assert d[(z[i] != 1) & (z[j] != 1)].min() > 1.26  # C-O
    hydrogens = d[(z[i] == 1) & (z[j] == 1)]
    assert hydrogens.size == 0 or hydrogens.min() > 1.7  # NH2, biphenyl


@pytest.mark.parametrize("name", ["S_ld", "S_reo", "S_bcu", "S_scu"])
def test_build__formate_geometry(name):
    ds = build(name)
    blocks = find_blocks(ds)
    carbon, hydrogen = blocks["defect_atom"].values, blocks["defect_hydrogen"].values
    x, cell = ds["positions"].values, ds["cell"].values[0]
    f = np.linalg.solve(cell.T, (x[hydrogen] - x[carbon]).T).T
    length = np.linalg.norm((f - np.rint(f)) @ cell, axis=1)
    assert len(length) == {"S_ld": 2, "S_reo": 12, "S_bcu": 16, "S_scu": 20}[name]
    assert np.allclose(length, 1.10, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "with_mu3", "without"),
    [("S_pr", 216, 225), ("S_reo", 215, 221), ("S_bcu", 119, 139), ("S_scu", 111, 123)],
)
def test_build__space_groups(name, with_mu3, without):
    def number(ds):
        cell = ds["cell"].values[0]
        f = np.linalg.solve(cell.T, ds["positions"].values.T).T
        return spglib.get_symmetry_dataset((cell, f, ds["numbers"].values), symprec=1e-3).number

    ds = build(name)
    assert number(ds) == with_mu3
    assert number(bare(ds)) == without


@pytest.mark.parametrize("name", ["S_pr", "S_ld", "S_bcu", "S_scu"])
@pytest.mark.parametrize("stripped", [False, True])
def test_symmetry_operations__as_many_as_spglib(name, stripped):
    ds = bare(build(name)) if stripped else build(name)
    z, x, cell = ds["numbers"].values, ds["positions"].values, ds["cell"].values[0]
    ours = symmetry_operations(z, x, cell)
    f = np.linalg.solve(cell.T, x.T).T
    reference = spglib.get_symmetry((cell, f, z), symprec=1e-3)
    assert len(ours) == len(reference["rotations"])
    for rotation, translation, image in zip(
        ours.rotation[:7], ours.translation[:7], ours.permutation[:7]
    ):
        gap = f @ rotation + translation - f[image]
        assert np.abs((gap - np.rint(gap)) @ cell).max() < 1e-3
        assert np.array_equal(z, z[image])


def test_linker_pair_orbits__seven_pairs():
    ds = build("S_pr")
    orbits = linker_pair_orbits(ds, find_blocks(ds))
    assert [o.multiplicity for o in orbits] == [12, 12, 12, 24, 24, 96, 96]
    pairs = np.vstack([o.pairs for o in orbits])
    assert len(np.unique(pairs, axis=0)) == 24 * 23 // 2


def test_linker_pair_orbits__eight_with_ordered_mu3():
    ds = build("S_pr")
    orbits = linker_pair_orbits(ds, find_blocks(ds), mu3=True)
    assert [o.multiplicity for o in orbits] == [12, 12, 12, 24, 24, 48, 48, 96]
    split = [o for o in orbits if o.multiplicity == 48]
    assert split[0].distance == pytest.approx(split[1].distance)


def test_build__pairs_of_missing_linkers_are_distinct():
    seen = set()
    for k in range(1, 8):
        ds = build(f"S_ld-2-{k}")
        assert ds.sizes["atom"] == 440
        assert np.mean(coordination(ds)) == 11
        # Distances between all Zr and the four new H tell the seven apart.
        blocks = find_blocks(ds)
        h = blocks["defect_hydrogen"].values
        zr = np.flatnonzero(ds["numbers"].values == 40)
        x, cell = ds["positions"].values, ds["cell"].values[0]
        f = np.linalg.solve(cell.T, (x[h][:, None] - x[h][None]).reshape(-1, 3).T).T
        d = np.linalg.norm((f - np.rint(f)) @ cell, axis=1)
        assert len(zr) == 24
        seen.add(tuple(np.round(np.sort(d), 3)))
    assert len(seen) == 7


def test_build__eighth_pair_on_request():
    assert build("S_ld-2-8", mu3=True).sizes["atom"] == 440
    with pytest.raises(StructureError, match="mu3=True"):
        build("S_ld-2-8")


def test_build__repeat_and_hafnium():
    ds = build("S_ld", repeat=(1, 2, 1))
    assert ds.sizes["atom"] == 896
    hf = build("S_pr", metal="Hf")
    assert composition(hf)["Hf"] == 24
    assert build("S_ld", linker="BPDC").sizes["atom"] == 696 - 20 + 2


def test_build__lattice_constant_follows_linker():
    assert linkers()["BDC"].lattice_constant == pytest.approx(20.75, abs=1e-9)
    # Diffraction gives 26.8 to 26.9 Å for UiO-67.
    assert linkers()["BPDC"].lattice_constant == pytest.approx(26.85, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "S_xy"}, "unknown system 'S_xy'.*S_pr, S_ld"),
        ({"name": "S_pr", "cell": "fcc"}, "unknown cell 'fcc'.*'conventional'"),
        ({"name": "S_reo", "cell": "primitive"}, "four bricks"),
        ({"name": "S_pr", "linker": "BTC"}, "unknown linker 'BTC'.*BPDC"),
        ({"name": "S_pr", "metal": "Zz"}, "'Zz' is no metal"),
        ({"name": "S_pr", "metal": "C"}, "'C' is no metal"),
        ({"name": "S_sup", "seed": -1}, "seed=-1: expected a whole number"),
        ({"name": "S_pr", "repeat": (99999, 99999, 99999)}, r"4.56e\+17 atoms, more than"),
        ({"name": "S_pr", "repeat": (0, 1, 1)}, "holds no cell"),
        ({"name": "S_pr", "repeat": (1.5, 1, 1)}, "three integers"),
        ({"name": "S_pr", "repeat": (2, 2)}, "three integers"),
    ],
)
def test_build__refuses(arguments, message):
    name = arguments.pop("name")
    with pytest.raises(StructureError, match=message):
        build(name, **arguments)
