"""Clusters of rods, and of ligands that were cut off their metals: compositions and protons."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import covalent_radii

from mofal.clusters import blueprint, candidates, cut, cut_candidates
from mofal.clusters.matched import matched_blocks, matched_shells, write_blueprints
from mofal.data import from_atoms
from mofal.frameworks import find_blocks
from mofal.frameworks.bonds import IS_METAL, bonds_of
from tests.clusters.common import cluster, cores_of
from tests.frameworks import published
from tests.frameworks.test_auto import sifsix


def load(make, repeat=(1, 1, 1)):
    ds = from_atoms(make() if repeat == (1, 1, 1) else make().repeat(repeat), system="x")
    return ds, find_blocks(ds)


def one(make, core: str, shells: int = 1, repeat=(1, 1, 1)):
    ds, blocks = load(make, repeat)
    first = int(np.flatnonzero(blocks["formula"].values == core)[0])
    clusters, refused = cut(
        ds, {"x": blocks}, cores_of([0], [first]), shells=shells, unpaired={"Cr": 3, "Co": 1}
    )
    assert refused["reason"].values.tolist() == []
    return ds, blocks, clusters


def formula(clusters) -> str:
    from ase import Atoms

    return str(Atoms(cluster(clusters, 0)["numbers"]).symbols.formula.format("hill"))


# Compositions of an independent prototype (three or two metals, neutral): any rod is as good.
SEGMENTS = [
    (published.mil53, "Cr", 1, "C56H47Cr3O20"),
    (published.mil53, "HO", 1, "C42H36Cr2O15"),
    (published.mof74, "Mg", 1, "C41H30Mg3O22"),
]


@pytest.mark.parametrize(("make", "core", "shells", "expected"), SEGMENTS)
def test_cut__segments_of_rods(make, core, shells, expected):
    _, _, clusters = one(make, core, shells)
    assert formula(clusters) == expected
    assert int(clusters["charge"][0]) == 0


@pytest.mark.parametrize(
    ("make", "core"),
    [
        (published.mil53, "Cr"), (published.mil53, "C8H4O4"), (published.mil53, "HO"),
        (published.mof74, "Mg"), (published.mof74, "C8H2O6"), (published.zif, "Zn"),
        (published.zif, "C4H5N2"), (published.cobdp, "Co"), (published.cobdp, "C12H8N4"),
        (published.dmof, "C4O8Zn2"), (sifsix, "Zn"),
    ],
)  # fmt: skip
def test_cut__metals_keep_their_donors_and_clusters_are_neutral(make, core):
    """Every metal has the neighbours that it has in the parent; one proton per head at most."""
    ds, _, clusters = one(make, core)
    atoms = make()
    parent = bonds_of(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    part = cluster(clusters, 0)
    z, x = part["numbers"], part["positions"]
    inside = bonds_of(z, x, np.eye(3), np.zeros(3, bool))
    for k in np.flatnonzero(IS_METAL[z]).tolist():
        assert inside.degree[k] == parent.degree[part["parent_atom"][k]]
    assert int(clusters["charge"][0]) == 0
    d = np.linalg.norm(x[:, None] - x[None], axis=2) + 9 * np.eye(len(x))
    assert (d > 0.6 * (covalent_radii[z][:, None] + covalent_radii[z][None])).all()
    # Caps are H on C (far acid heads), or protons on O, N, F.
    for k in np.flatnonzero(part["region"] == 2).tolist():
        assert z[k] == 1
        assert inside.degree[k] == 1
    assert ds.sizes["structure"] == 1


def test_cut__azolates_are_no_longer_charged():
    """One proton per ring where the charge wants it: ZIF-8 2+ and Co(bdp) 14+ before."""
    for make, core in ((published.zif, "Zn"), (published.cobdp, "Co")):
        _, _, clusters = one(make, core)
        assert int(clusters["charge"][0]) == 0
        part = cluster(clusters, 0)
        on_nitrogen = (part["region"] == 2).sum()
        metals = int(IS_METAL[part["numbers"]].sum())
        assert on_nitrogen >= 2 * metals - metals


def test_cut__core_of_a_rod_is_a_metal_with_its_donors():
    _, _, clusters = one(published.mil53, "Cr")
    part = cluster(clusters, 0)
    core = part["numbers"][part["region"] == 0]
    assert sorted(core.tolist()) == sorted([24] + [6] * 4 + [8] * 10 + [1] * 2)


@pytest.mark.parametrize("make", [published.mil53, published.mof74])
def test_cut__rods_in_a_supercell_give_the_same_cluster(make):
    core = {published.mil53: "Cr", published.mof74: "Mg"}[make]
    _, _, small = one(make, core)
    _, _, large = one(make, core, repeat=(1, 1, 2))
    assert formula(small) == formula(large)
    assert int(small["charge"][0]) == int(large["charge"][0])


def test_cut__positions_are_the_parents():
    ds, _, clusters = one(published.mil53, "Cr")
    part = cluster(clusters, 0)
    inner = part["parent_atom"] >= 0
    x, cell = ds["positions"].values, ds["cell"].values[0]
    expected = x[part["parent_atom"][inner]] + part["parent_shift"][inner] @ cell
    assert np.array_equal(part["positions"][inner], expected)


@pytest.mark.parametrize(("shells", "metals"), [(0, 1), (1, 3), (2, 5)])
def test_blueprint__shells_along_a_rod(shells, metals):
    ds, blocks = load(published.mil53)
    core = int(np.flatnonzero(blocks["formula"].values == "Cr")[0])
    plan = blueprint(blocks, core, shells=shells)
    z = ds["numbers"].values[plan["parent_atom"].values[plan["parent_atom"].values >= 0]]
    assert int((z == 24).sum()) == metals
    assert int(plan["charge"][0]) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("make", [published.mil53, published.mof74, published.zif])
def test_find_blocks__order_origin_and_wrapping_do_not_matter(make, seed):
    """Atoms in another order, moved and wrapped anew: the same blocks and the same cluster."""
    rng = np.random.default_rng(seed)
    atoms = make()
    turned = atoms[rng.permutation(len(atoms))]
    turned.positions += rng.uniform(0, 20, 3)
    turned.positions += rng.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    results = []
    for some in (atoms, turned):
        ds = from_atoms(some, system="x")
        blocks = find_blocks(ds)
        names = ("formula", "charge", "coordination", "kind_hash")
        rows = sorted(zip(*(blocks[n].values.tolist() for n in names)))
        metal = int(np.flatnonzero(blocks["role"].values == "node")[0])
        clusters, _ = cut(ds, {"x": blocks}, cores_of([0], [metal]), unpaired={"Cr": 3})
        results.append((rows, formula(clusters), int(clusters["charge"][0])))
    assert results[0] == results[1]


def test_cut__warm_rods_keep_their_blocks():
    """Blocks are found once: a frame that only vibrates is cut with them."""
    ds, blocks = load(published.mof74)
    rng = np.random.default_rng(4)
    warm = ds.assign(positions=ds["positions"] + 0.04 * rng.normal(size=ds["positions"].shape))
    core = int(np.flatnonzero(blocks["formula"].values == "Mg")[0])
    clusters, refused = cut(warm, {"x": blocks}, cores_of([0], [core]))
    assert refused["reason"].values.tolist() == []
    assert formula(clusters) == "C41H30Mg3O22"


# ---------------------------------------------------------------------------- orders of protons
def rod_candidates(make, core, **options):
    ds, blocks = load(make)
    first = int(np.flatnonzero(blocks["formula"].values == core)[0])
    plans = candidates(blocks, first, partial=False, **options)
    clusters, refused = cut_candidates(ds, plans, blocks, unpaired={"Cr": 3})
    assert refused["reason"].values.tolist() == []
    return ds, blocks, first, plans, clusters


@pytest.mark.parametrize(("make", "core"), [(published.mil53, "Cr"), (published.mof74, "Mg")])
def test_candidates__along_rods_compare_lengths_and_orders(make, core):
    """One, three and five metals, each with its protons in two orders: OH or acids first."""
    _, _, _, plans, clusters = rod_candidates(make, core)
    names = [str(n) for n in plans["name"].values]
    assert {"shells=1", "shells=1, acids first", "shells=2", "shells=2, acids first"} <= set(names)
    metals = {}
    for k, name in enumerate(str(n) for n in clusters["candidate"].values):
        part = cluster(clusters, k)
        metals[name] = int(IS_METAL[part["numbers"]].sum())
        assert int(clusters["charge"][k]) == 0
    assert (metals["shells=0"], metals["shells=1"], metals["shells=2"]) == (1, 3, 5)
    assert metals["shells=2, acids first"] == 5


def test_candidates__acids_first_leave_oh_alone():
    _, blocks, _, _, clusters = rod_candidates(published.mil53, "Cr", shells=(1,))
    of_atom = dict(zip(blocks["member_atom"].values.tolist(), np.repeat(
        blocks["formula"].values, blocks["block_n_atoms"].values).tolist()))  # fmt: skip
    on_hydroxide = {}
    for k, name in enumerate(str(n) for n in clusters["candidate"].values):
        part = cluster(clusters, k)
        inside = bonds_of(part["numbers"], part["positions"], np.eye(3), np.zeros(3, bool))
        holders = [int(inside.j[inside.i == c][0]) for c in np.flatnonzero(part["region"] == 2)]
        on_hydroxide[name] = sum(of_atom[int(part["parent_atom"][h])] == "HO" for h in holders)
    assert on_hydroxide["shells=1"] > 0
    assert on_hydroxide["shells=1, acids first"] == 0


@pytest.mark.parametrize("make", [published.mil53, published.mof74])
def test_cut__all_cores_at_once_as_one_by_one(make):
    """Caps in the place of far acid heads are those of their own cluster."""
    ds, blocks = load(make)
    n = blocks.sizes["block"]
    together, refused = cut(ds, {"x": blocks}, cores_of([0] * n, range(n)), unpaired={"Cr": 3})
    assert refused["reason"].values.tolist() == []
    for k in (0, n // 2, n - 1):
        alone, _ = cut(ds, {"x": blocks}, cores_of([0], [k]), unpaired={"Cr": 3})
        one, other = cluster(together, k), cluster(alone, 0)
        for name in ("numbers", "positions", "region", "parent_atom"):
            np.testing.assert_array_equal(one[name], other[name])


def test_candidates__elsewhere_there_is_one_order():
    for make, core in ((published.hkust1, "C4Cu2O8"), (published.zif, "Zn")):
        _, blocks = load(make)
        first = int(np.flatnonzero(blocks["formula"].values == core)[0])
        assert not candidates(blocks, first, shells=(0, 1))["acid_first"].values.any()


def test_matched_shells__two_along_rods(tmp_path):
    _, rod = load(published.mil53)
    _, bricks = load(published.hkust1)
    depth = matched_shells({"a": rod, "b": bricks}, 1, None, along_rods=2)
    found = dict(zip(rod["formula"].values.tolist(), depth["a"].tolist()))
    assert found == {"Cr": 2, "HO": 2, "C8H4O4": 1}
    assert set(depth["b"].tolist()) == {1}
    assert set(matched_shells({"a": rod}, 1, None)["a"].tolist()) == {1}


def test_matched_blocks__the_order_that_was_chosen_is_cut(tmp_path):
    """What force matching chose comes out of the campaign's cut: the same atoms and caps."""
    ds, blocks, first, plans, clusters = rod_candidates(published.mil53, "Cr", shells=(1,))
    table = tmp_path / "blueprints.json"
    name = "shells=1, acids first"
    verdict = {"candidate": name, "passed": True, "tolerance_meV": 100.0}
    write_blueprints(table, blocks, first, plans, {"x": {"verdict": verdict, "rows": []}})
    known = matched_blocks({"x": blocks}, table)
    shells = matched_shells(known, 1, table, along_rods=2)
    again, _ = cut(ds, known, cores_of([0], [first]), shells=shells, unpaired={"Cr": 3})
    k = [str(n) for n in clusters["candidate"].values].index(name)
    one, other = cluster(again, 0), cluster(clusters, k)
    assert np.array_equal(np.sort(one["positions"], axis=0), np.sort(other["positions"], axis=0))
    usual, _ = cut(ds, {"x": blocks}, cores_of([0], [first]), shells=shells, unpaired={"Cr": 3})
    assert not np.array_equal(
        np.sort(one["positions"], axis=0), np.sort(cluster(usual, 0)["positions"], axis=0)
    )
