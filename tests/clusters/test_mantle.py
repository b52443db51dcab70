"""Clusters within a number of atoms: what of the mantle stays, and that they are sound."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import covalent_radii
from hypothesis import given
from hypothesis import strategies as st

from mofal.clusters import candidates, cut, extract
from mofal.clusters.graph import block_graph
from mofal.clusters.mantle import neighbour_order
from mofal.data import from_atoms
from mofal.errors import ConfigError
from mofal.frameworks import find_blocks
from mofal.frameworks.bonds import IS_METAL, bonds_of
from mofal.frameworks.defects import defect_atoms
from tests.clusters.common import atoms_of, cluster, cores_of, scores_of, shaken, system
from tests.clusters.test_properties import FEW
from tests.frameworks import published

UNPAIRED = {"Cr": 3, "Cu": 1, "Co": 1}


def load(make):
    ds = from_atoms(make(), system="x")
    return ds, find_blocks(ds)


def cut_one(ds, blocks, core, **options):
    name = str(ds["system"].values[0])
    return cut(ds, {name: blocks}, cores_of([0], [core]), unpaired=UNPAIRED, **options)


def pieces(ds, blocks, clusters):
    """Which images of which blocks a cluster holds."""
    part = cluster(clusters, 0)
    graph = block_graph(blocks)
    real = part["region"] != 2
    atom = part["parent_atom"][real]
    image = part["parent_shift"][real] - graph.atom_shift[atom]
    return {(int(b), *s) for b, s in zip(graph.atom_block[atom], image.tolist())}


def check_sound(ds, blocks, clusters):
    """Valence, caps, parity and charge, from the bonds of the cluster by itself."""
    part = cluster(clusters, 0)
    z, x, parent = part["numbers"], part["positions"], part["parent_atom"]
    whole = bonds_of(
        ds["numbers"].values, ds["positions"].values, ds["cell"].values[0], np.ones(3, bool)
    )
    inside = bonds_of(z, x, np.eye(3), np.zeros(3, bool))
    cap = part["region"] == 2
    degree = whole.degree[parent]
    # A cap is one bond; carbon and metals have as many neighbours as in the parent.
    assert (inside.degree[cap] == 1).all()
    strict = ~cap & (IS_METAL[z] | (z == 6) | (z == 1))
    np.testing.assert_array_equal(inside.degree[strict], degree[strict])
    # Donors may have lost metals, and gained no more than that.
    assert (inside.degree[~cap] <= degree[~cap]).all()
    d = np.linalg.norm(x[:, None] - x[None], axis=2) + 9 * np.eye(len(x))
    assert (d > 0.6 * (covalent_radii[z][:, None] + covalent_radii[z][None])).all()
    electrons = int(z.sum()) - int(clusters["charge"][0])
    assert electrons == int(clusters["n_electrons"][0])
    assert (electrons - int(clusters["n_unpaired"][0])) % 2 == 0
    assert int(clusters["charge"][0]) == 0


@pytest.mark.parametrize(
    ("make", "core", "shells", "limits"),
    [
        (published.mof5, "C6O13Zn4", 1, (80, 60, 29)),
        (published.mof5, "C6H4", 1, (60,)),
        (published.hkust1, "C4Cu2O8", 1, (50, 18)),
        (published.dmof, "C4O8Zn2", 1, (90, 60)),
        (published.zif, "C4H5N2", 1, (60,)),
        (published.mil53, "Cr", 2, (150, 100, 64)),
        (published.mil53, "C8H4O4", 2, (200, 110)),
        (published.mil53, "HO", 2, (100, 70)),
        (published.mof74, "Mg", 2, (100, 80, 64)),
        (published.mof74, "C8H2O6", 1, (150,)),
    ],
)
def test_cut__max_atoms_is_kept_and_clusters_are_sound(make, core, shells, limits):
    ds, blocks = load(make)
    k = int(np.flatnonzero(blocks["formula"].values == core)[0])
    whole, _ = cut_one(ds, blocks, k, shells=shells)
    assert not whole["mantle_shortened"].values.any()
    before, core_atoms = pieces(ds, blocks, whole), set(atoms_of(blocks, k).tolist())
    for limit in limits:
        clusters, refused = cut_one(ds, blocks, k, shells=shells, max_atoms=limit)
        assert refused["reason"].values.tolist() == []
        assert int(clusters["n_atoms"][0]) <= limit
        assert bool(clusters["mantle_shortened"][0])
        check_sound(ds, blocks, clusters)
        now = pieces(ds, blocks, clusters)
        assert now < before
        before = now
        part = cluster(clusters, 0)
        own = set(part["parent_atom"][part["region"] == 0].tolist())
        # All of the core is there, where it is in the parent.
        assert core_atoms <= own
        np.testing.assert_allclose(
            part["positions"][part["region"] != 2],
            (
                ds["positions"].values[part["parent_atom"]]
                + part["parent_shift"] @ ds["cell"].values[0]
            )[part["region"] != 2],
            atol=1e-10,
        )


def test_cut__no_limit_that_is_not_reached_changes_anything():
    ds, blocks = system("S_ld", "primitive")
    cores = cores_of([0] * blocks.sizes["block"], range(blocks.sizes["block"]))
    usual, _ = cut(ds, {"S_ld": blocks}, cores)
    limited, _ = cut(ds, {"S_ld": blocks}, cores, max_atoms=int(usual["n_atoms"].max()))
    assert usual.identical(limited)
    assert set(usual["mantle_shells"].values.tolist()) == {1}


def test_cut__what_is_too_large_alone_is_refused():
    ds, blocks = system("S_pr", "primitive")
    brick = int(np.flatnonzero(blocks["role"].values == "node")[0])
    clusters, refused = cut_one(ds, blocks, brick, max_atoms=65)
    assert clusters.sizes["structure"] == 0
    assert refused["reason"].values[0] == "66 atoms with the smallest mantle, max_atoms is 65"
    with pytest.raises(ConfigError, match="expected the atoms that a cluster may have"):
        cut_one(ds, blocks, brick, max_atoms=0)


@pytest.mark.parametrize(
    ("make", "core", "limit"),
    [
        (published.mof5, "C6H4", 20),
        (published.zif, "C4H5N2", 12),
        (published.mil53, "C8H4O4", 20),
        (published.mil53, "HO", 10),
    ],
)
def test_cut__a_linker_without_its_nodes_is_refused(make, core, limit):
    """Benzene, an azole, an acid and water are molecules, and no environments of a framework."""
    ds, blocks = load(make)
    k = int(np.flatnonzero(blocks["formula"].values == core)[0])
    clusters, refused = cut_one(ds, blocks, k, max_atoms=limit)
    assert clusters.sizes["structure"] == 0
    said = f"no neighbour of it fits, max_atoms is {limit}: a molecule by itself"
    assert refused["reason"].values.tolist() == [said]


def test_cut__what_is_near_a_missing_linker_stays():
    """Of the carboxylates of a brick those near its formate keep their linkers, by distance."""
    ds, blocks = system("S_ld")
    k = int(np.flatnonzero(blocks["n_missing"].values == 1)[0])
    clusters, _ = cut_one(ds, blocks, k, max_atoms=116)
    assert int(clusters["mantle_left_out"][0]) == 6
    part = cluster(clusters, 0)
    x, carbon, core = part["positions"], part["numbers"] == 6, part["region"] == 0
    formate = np.isin(part["parent_atom"], defect_atoms(blocks)) & carbon & core
    assert formate.sum() == 1
    heads = np.flatnonzero(carbon & core & ~formate)
    outer = x[(part["region"] == 1) & carbon]
    kept = np.linalg.norm(x[heads][:, None] - outer[None], axis=2).min(axis=1) < 1.7
    assert kept.sum() == 5
    away = np.linalg.norm(x[heads] - x[formate], axis=1)
    assert away[kept].max() <= away[~kept].max()
    assert away[kept].mean() < 0.75 * away[~kept].mean()


def test_neighbour_order__spread_evenly():
    """The second of twelve neighbours of an octahedron lies opposite to the first."""
    ds, blocks = system("S_pr")
    graph = block_graph(blocks)
    order = neighbour_order(graph, 0)
    assert [len(g) for g in order] == [1] * 12
    ends = graph.link_atom[graph.half_link[np.concatenate(order)], 0]
    x, cell = ds["positions"].values[ends], ds["cell"].values[0]
    step = (x - x[0]) @ np.linalg.inv(cell)
    d = np.linalg.norm((step - np.rint(step)) @ cell, axis=1)
    assert d[1] > 0.99 * d.max()


def test_extract__costs_are_those_of_what_is_cut():
    ds, blocks = system("S_pr", "primitive")
    frames = shaken(ds, 1, amplitude=0.01, n=2)
    score = np.random.default_rng(0).normal(size=frames.sizes["atom"])
    options = {"n": 4, "cost": "atoms", "max_atoms": 120}
    clusters, refused, cores = extract(
        frames, scores_of(frames, score), {"S_pr": blocks}, coverage="none", **options
    )
    assert refused.sizes["core"] == 0
    assert clusters["n_atoms"].values.max() <= 120
    sizes = dict(zip(cores["core_block"].values.tolist(), cores["relative_cost"].values.tolist()))
    by_cut = dict(
        zip(clusters["parent_block"].values.tolist(), clusters["n_atoms"].values.tolist())
    )
    assert len({round(by_cut[k] / sizes[k], 6) for k in by_cut}) == 1


def test_candidates__max_atoms():
    _, blocks = system("S_ld", "primitive")
    k = int(np.flatnonzero(blocks["role"].values == "node")[0])
    plans = candidates(blocks, k, shells=(0, 1, 2), max_atoms=150)
    assert plans["n_atoms"].values.max() <= 150
    assert plans["name"].values.tolist() == ["shells=0", "5 of 10 neighbours", "8 of 10 neighbours"]
    with pytest.raises(ConfigError, match="the smallest cluster around block 0 has 66 atoms"):
        candidates(blocks, k, max_atoms=60)


@FEW
@given(
    which=st.sampled_from([("S_ld", "primitive"), ("S_scu", "conventional")]),
    limits=st.tuples(st.integers(70, 200), st.integers(70, 200)),
    shells=st.integers(1, 2),
)
def test_cut__a_larger_limit_holds_what_a_smaller_one_does(which, limits, shells):
    ds, blocks = system(*which)
    few, many = sorted(limits)
    node = int(np.flatnonzero(blocks["role"].values == "node")[0])
    small, _ = cut_one(ds, blocks, node, shells=shells, max_atoms=few)
    large, _ = cut_one(ds, blocks, node, shells=shells, max_atoms=many)
    assert int(small["n_atoms"][0]) <= few
    assert pieces(ds, blocks, small) <= pieces(ds, blocks, large)
    check_sound(ds, blocks, small)
