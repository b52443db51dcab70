"""What must not change a cluster: where the crystal stands and how its cell is written down."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mofal.clusters import cut
from mofal.data import make_structures
from mofal.frameworks import find_blocks
from tests.clusters.common import (
    atoms_of,
    cluster,
    cores_of,
    fingerprint,
    shaken,
    system,
    with_positions,
)

DISTANCE = 1e-8
FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
SEEDS = st.integers(0, 2**31)
NAMES = st.sampled_from(
    [
        ("S_pr", "primitive"),
        ("S_ld", "primitive"),
        ("S_reo", "conventional"),
        ("UiO-66-NH2", "primitive"),
    ]
)


def _all_clusters(ds, blocks, shells=1):
    name = str(ds["system"].values[0])
    n = blocks.sizes["block"]
    clusters, refused = cut(ds, {name: blocks}, cores_of([0] * n, range(n)), shells=shells)
    assert refused.sizes["core"] == 0
    return clusters


def _bag(ds, blocks, shells=1):
    """Fingerprints of the clusters of all blocks, in an order of their own."""
    clusters = _all_clusters(ds, blocks, shells)
    found = []
    for k in range(clusters.sizes["structure"]):
        one = cluster(clusters, k)
        found.append(fingerprint(one["numbers"], one["positions"]))
    return sorted(found, key=lambda f: (len(f), *np.round(f[:, 2], 4).tolist()))


def _same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=DISTANCE)


@FEW
@given(which=NAMES, seed=SEEDS, vector=st.tuples(*[st.floats(-50, 50)] * 3))
def test_translation(which, seed, vector):
    """The same atoms, all of them moved by the vector."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    moved = with_positions(frame, frame["positions"].values + np.array(vector))
    before, after = _all_clusters(frame, blocks), _all_clusters(moved, blocks)
    assert (before["parent_atom"].values == after["parent_atom"].values).all()
    step = after["positions"].values - before["positions"].values
    np.testing.assert_allclose(step, np.broadcast_to(vector, step.shape), atol=1e-10)


@FEW
@given(which=NAMES, seed=SEEDS, shells=st.integers(0, 1))
def test_wrapping(which, seed, shells):
    """Atoms put into other cells, each by itself: with the old blocks, and with new ones."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    rng = np.random.default_rng(seed)
    lattice = frame["cell"].values[0]
    jump = rng.integers(-2, 3, size=frame["positions"].shape)
    jumped = with_positions(frame, frame["positions"].values + jump @ lattice)
    before = _all_clusters(frame, blocks, shells)
    after = _all_clusters(jumped, blocks, shells)
    step = (after["positions"].values - before["positions"].values) @ np.linalg.inv(lattice)
    first = np.concatenate([[0], np.cumsum(before["n_atoms"].values)[:-1]])
    per_cluster = np.repeat(np.rint(step[first]), before["n_atoms"].values, axis=0)
    assert np.abs(step - per_cluster).max() < 1e-9
    _same(_bag(frame, blocks, shells), _bag(jumped, find_blocks(jumped), shells))


@FEW
@given(which=NAMES, seed=SEEDS)
def test_permutation(which, seed):
    """Atoms in another order: each block gives the same cluster, its atoms renumbered."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    order = np.random.default_rng(seed).permutation(frame.sizes["atom"])
    shuffled = with_positions(
        frame, frame["positions"].values[order], numbers=frame["numbers"].values[order]
    )
    others = find_blocks(shuffled)
    before, after = _all_clusters(frame, blocks), _all_clusters(shuffled, others)
    where = {
        frozenset(order[atoms_of(others, k)].tolist()): k for k in range(others.sizes["block"])
    }
    lattice = np.linalg.inv(frame["cell"].values[0])
    for k in range(blocks.sizes["block"]):
        a = cluster(before, k)
        b = cluster(after, where[frozenset(atoms_of(blocks, k).tolist())])
        real = a["region"] != 2
        mine = sorted(zip(a["parent_atom"][real].tolist(), a["numbers"][real].tolist()))
        renamed = order[b["parent_atom"][b["region"] != 2]]
        theirs = sorted(zip(renamed.tolist(), b["numbers"][b["region"] != 2].tolist()))
        assert mine == theirs
        _same(
            [fingerprint(a["numbers"], a["positions"])], [fingerprint(b["numbers"], b["positions"])]
        )
        core = a["region"] == 0
        gap = a["positions"][core].mean(axis=0) - b["positions"][b["region"] == 0].mean(axis=0)
        assert np.abs(gap @ lattice - np.rint(gap @ lattice)).max() < 1e-8


def _unimodular(rng):
    """An integer matrix of determinant one: another cell of the same lattice."""
    matrix = np.eye(3, dtype=np.int64)
    for _ in range(3):
        i, j = rng.choice(3, size=2, replace=False)
        matrix[i] += int(rng.integers(-1, 2)) * matrix[j]
    return matrix


@FEW
@given(which=NAMES, seed=SEEDS)
def test_sheared_cell(which, seed):
    """Other lattice vectors of the same lattice."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    matrix = _unimodular(np.random.default_rng(seed))
    lattice = matrix @ frame["cell"].values[0]
    scaled = frame["positions"].values @ np.linalg.inv(lattice)
    sheared = with_positions(frame, (scaled % 1.0) @ lattice, cell=lattice[None])
    _same(_bag(frame, blocks), _bag(sheared, find_blocks(sheared)))


@FEW
@given(which=NAMES, seed=SEEDS, repeat=st.sampled_from([(2, 1, 1), (1, 2, 1), (1, 1, 3)]))
def test_supercell(which, seed, repeat):
    """Several cells written as one: every cluster occurs once per cell."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    lattice = frame["cell"].values[0]
    images = np.stack(np.meshgrid(*[np.arange(r) for r in repeat], indexing="ij"), -1).reshape(
        -1, 3
    )
    positions = (images[:, None] @ lattice + frame["positions"].values[None]).reshape(-1, 3)
    large = make_structures(
        np.tile(frame["numbers"].values, len(images)),
        positions,
        n_atoms=[len(positions)],
        cell=(np.array(repeat)[:, None] * lattice)[None],
        pbc=True,
        system=which[0],
    )
    expected = [one for one in _bag(frame, blocks) for _ in images]
    _same(_bag(large, find_blocks(large)), expected)


@FEW
@given(which=NAMES, seed=SEEDS)
def test_rotation(which, seed):
    """Crystal and cell turned together: the clusters turn with them."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    turn, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    turned = with_positions(
        frame, frame["positions"].values @ turn, cell=frame["cell"].values @ turn
    )
    before, after = _all_clusters(frame, blocks), _all_clusters(turned, blocks)
    np.testing.assert_allclose(
        after["positions"].values, before["positions"].values @ turn, atol=1e-9
    )


@FEW
@given(which=NAMES, seed=SEEDS, strain=st.floats(-0.04, 0.04))
def test_strained_frames_reuse_the_blocks(which, seed, strain):
    """A walk changes the cell: blocks of the start serve every frame."""
    ds, blocks = system(*which)
    frame = shaken(ds, seed)
    change = np.eye(3) + strain * np.random.default_rng(seed).normal(size=(3, 3))
    moved = with_positions(
        frame, frame["positions"].values @ change, cell=frame["cell"].values @ change
    )
    _same(_bag(moved, blocks), _bag(moved, find_blocks(moved)))


@pytest.mark.parametrize("shells", [0, 1])
def test_primitive_and_conventional_cell_give_the_same_clusters(shells):
    bags = {}
    for cell in ("primitive", "conventional"):
        ds, blocks = system("S_pr", cell)
        clusters = _all_clusters(ds, blocks, shells)
        bags[cell] = [
            fingerprint(cluster(clusters, k)["numbers"], cluster(clusters, k)["positions"])
            for k in range(blocks.sizes["block"])
        ]
    small = {f.shape: f for f in bags["primitive"]}
    assert len(bags["conventional"]) == 4 * len(bags["primitive"])
    for found in bags["conventional"]:
        np.testing.assert_allclose(found, small[found.shape], atol=DISTANCE)
