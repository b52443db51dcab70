"""Blocks do not depend on where atoms are, in which order, or in which cell they are written."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mofal.data import from_atoms, make_structures
from mofal.frameworks import build, disorder, find_blocks, supercell
from tests.frameworks import published


def primitive(atoms):
    """The quarter of a face-centred cell whose atoms differ by no lattice vector."""
    lattice = atoms.cell.array[0, 0] / 2 * (1 - np.eye(3))
    inside = np.mod(np.linalg.solve(lattice.T, atoms.positions.T).T, 1.0)
    inside = np.mod(np.round(inside, 6), 1.0)
    _, first = np.unique(inside, axis=0, return_index=True)
    out = atoms[np.sort(first)]
    assert 4 * len(out) == len(atoms)
    out.set_cell(lattice)
    return out


CASES = {
    "S_pr, primitive": lambda: build("S_pr", cell="primitive"),
    "S_ld, primitive": lambda: build("S_ld", cell="primitive"),
    "S_scu": lambda: build("S_scu"),
    "UiO-66-NH2, primitive": lambda: build("UiO-66-NH2", cell="primitive"),
    "DMOF-1": lambda: from_atoms(published.dmof(), system="DMOF-1"),
    "disordered": lambda: disorder(build("S_pr"), hf=0.3, linker=3, brick=1, seed=5),
    "HKUST-1, primitive": lambda: from_atoms(primitive(published.hkust1()), system="HKUST-1"),
    "ZIF-8": lambda: from_atoms(published.zif(), system="ZIF-8"),
    "MIL-88B": lambda: from_atoms(published.mil88b(), system="MIL-88B"),
}
RULES = {"DMOF-1": "pillar", "ZIF-8": "azolate"}
_made: dict[str, tuple] = {}


def case(name):
    if name not in _made:
        ds = CASES[name]()
        _made[name] = ds, find_blocks(ds, rule=RULES.get(name, "carboxylate"))
    return _made[name]


def remade(ds, numbers, positions, cell):
    return make_structures(
        numbers, positions, n_atoms=[len(numbers)], cell=cell[None], pbc=True, system="x"
    )


def census(blocks, copies=1):
    """How many blocks of each kind, with all that is said of a block."""
    columns = ("kind_hash", "formula", "role", "charge", "coordination", "n_missing", "open_shell")
    rows = zip(*(blocks[c].values.tolist() for c in columns))
    return Counter({row: n * copies for row, n in Counter(rows).items()})


def partition_of(blocks):
    """Blocks as a set of sets of atoms."""
    start = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])
    member = blocks["member_atom"].values.tolist()
    return {frozenset(member[a:b]) for a, b in pairwise(start.tolist())}


def link_vectors(ds, blocks):
    """Broken bonds as (atom, atom, vector rounded): independent of wrapping."""
    x, cell = ds["positions"].values, ds["cell"].values[0]
    atom = blocks["link_atom"].values
    vector = x[atom[:, 1]] + blocks["link_shift"].values @ cell - x[atom[:, 0]]
    return {
        (*a, *v) for a, v in zip(atom.tolist(), (np.round(vector, 6) + 0.0).tolist())
    }  # fmt: skip


def whole_blocks(ds, blocks):
    """Atoms of every block made whole."""
    x = ds["positions"].values[blocks["member_atom"].values]
    return x + blocks["member_shift"].values @ ds["cell"].values[0]


def graph_edges(blocks):
    """Links between whole blocks, each block named by its first atom, up to images: sorted."""
    start = np.concatenate([[0], np.cumsum(blocks["block_n_atoms"].values)])[:-1]
    name = np.minimum.reduceat(blocks["member_atom"].values, start)
    pair = np.sort(name[blocks["link_block"].values], axis=1)
    return Counter(map(tuple, pair.tolist()))


fast = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
names = st.sampled_from(sorted(CASES))
seeds = st.integers(0, 2**32 - 1)


@fast
@given(name=names, shift=st.tuples(*[st.floats(-50, 50)] * 3))
def test_find_blocks__translation(name, shift):
    ds, before = case(name)
    moved = remade(
        ds, ds["numbers"].values, ds["positions"].values + np.array(shift), ds["cell"].values[0]
    )
    after = find_blocks(moved, rule=before.attrs["rule"])
    for variable in ("kind_hash", "member_atom", "member_shift", "link_atom", "link_shift",
                     "link_block", "link_image", "charge"):  # fmt: skip
        assert np.array_equal(before[variable].values, after[variable].values), variable
    assert np.allclose(whole_blocks(moved, after) - whole_blocks(ds, before), shift, atol=1e-9)


@fast
@given(name=names, seed=seeds)
def test_find_blocks__wrapping(name, seed):
    ds, before = case(name)
    cell = ds["cell"].values[0]
    wraps = np.random.default_rng(seed).integers(-3, 4, (ds.sizes["atom"], 3))
    moved = remade(ds, ds["numbers"].values, ds["positions"].values + wraps @ cell, cell)
    after = find_blocks(moved, rule=before.attrs["rule"])
    assert partition_of(before) == partition_of(after)
    assert census(before) == census(after)
    assert link_vectors(ds, before) == link_vectors(moved, after)
    # Each whole block is the same molecule up to one lattice vector.
    difference = whole_blocks(moved, after) - whole_blocks(ds, before)
    start = np.concatenate([[0], np.cumsum(before["block_n_atoms"].values)])
    for a, b in pairwise(start.tolist()):
        assert np.allclose(difference[a:b], difference[a], atol=1e-9)
    vectors = np.linalg.solve(cell.T, difference.T).T
    assert np.allclose(vectors, np.rint(vectors), atol=1e-9)


@fast
@given(name=names, seed=seeds)
def test_find_blocks__permutation(name, seed):
    ds, before = case(name)
    order = np.random.default_rng(seed).permutation(ds.sizes["atom"])
    moved = remade(
        ds, ds["numbers"].values[order], ds["positions"].values[order], ds["cell"].values[0]
    )
    after = find_blocks(moved, rule=before.attrs["rule"])
    assert {frozenset(order[list(b)].tolist()) for b in partition_of(after)} == partition_of(before)
    assert census(before) == census(after)
    kinds = [dict(zip(b["kind"].values.tolist(), b["kind_hash"].values.tolist()))
             for b in (before, after)]  # fmt: skip
    assert kinds[0] == kinds[1]
    back = {(order[int(a)], order[int(b)], *v) for a, b, *v in link_vectors(moved, after)}
    assert back == link_vectors(ds, before)


@fast
@given(name=names, seed=seeds)
def test_find_blocks__sheared_cell(name, seed):
    ds, before = case(name)
    rng = np.random.default_rng(seed)
    matrix = np.eye(3, dtype=int)
    for _ in range(2):
        i, j = rng.permutation(3)[:2]
        matrix[i] += rng.choice([-1, 1]) * matrix[j]
    assert round(np.linalg.det(matrix)) == 1
    cell = matrix @ ds["cell"].values[0]
    moved = remade(ds, ds["numbers"].values, ds["positions"].values, cell)
    after = find_blocks(moved, rule=before.attrs["rule"])
    assert partition_of(before) == partition_of(after)
    assert census(before) == census(after)
    assert link_vectors(ds, before) == link_vectors(moved, after)
    assert graph_edges(before) == graph_edges(after)


@fast
@given(name=names, seed=seeds)
def test_find_blocks__supercells(name, seed):
    ds, before = case(name)
    matrix = np.random.default_rng(seed).integers(-1, 3, (3, 3))
    matrix[np.arange(3), np.arange(3)] = [1, 2, 1]
    copies = abs(round(float(np.linalg.det(matrix))))
    if copies == 0 or copies > 8:
        matrix, copies = np.diag([2, 1, 3]), 6
    large = supercell(ds, matrix)
    assert large.sizes["atom"] == copies * ds.sizes["atom"]
    after = find_blocks(large, rule=before.attrs["rule"])
    assert census(after) == census(before, copies)
    assert after.sizes["link"] == copies * before.sizes["link"]
    # The copies of an atom lie in blocks of one kind.
    kind = np.empty(large.sizes["atom"], object)
    kind[after["member_atom"].values] = np.repeat(
        after["kind_hash"].values, after["block_n_atoms"].values
    )
    table = kind.reshape(copies, -1)
    assert np.all(table == table[0])


@pytest.mark.parametrize("name", ["S_pr", "S_pr^hf"])
def test_find_blocks__primitive_and_conventional(name):
    one = find_blocks(build(name, cell="primitive"))
    four = find_blocks(build(name))
    assert census(four) == census(one, 4)


@fast
@given(seed=seeds)
def test_supercell__is_the_same_crystal(seed):
    ds, _ = case("S_ld, primitive")
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-2, 3, (3, 3))
    copies = abs(round(float(np.linalg.det(matrix))))
    if not 1 <= copies <= 12:
        matrix, copies = np.array([[1, 1, -1], [1, -1, 1], [-1, 1, 1]]), 4
    large = supercell(ds, matrix)
    cell, small = large["cell"].values[0], ds["cell"].values[0]
    assert abs(np.linalg.det(cell)) == pytest.approx(copies * abs(np.linalg.det(small)))
    # Every copy sits at its atom up to the small lattice, and no two at the same place.
    x = large["positions"].values.reshape(copies, -1, 3) - ds["positions"].values
    f = np.linalg.solve(small.T, x.reshape(-1, 3).T).T
    assert np.allclose(f, np.rint(f), atol=1e-9)
    place = np.linalg.solve(cell.T, large["positions"].values.T).T
    unique = np.unique(np.round(np.mod(place + 1e-6, 1.0), 5), axis=0)
    assert len(unique) == large.sizes["atom"]
