"""Structures in spatial domains: what the whole gives, lazily, a task for each domain."""

from __future__ import annotations

from itertools import product

import dask
import numpy as np
import pytest
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st

from mofal import data
from mofal.campaign.examples import seed_place
from mofal.data import make_structures
from mofal.errors import DataError, PotentialError
from mofal.frameworks import build
from mofal.potential import create, load
from mofal.potential.domains import cut_domain, grid_of, halo_factor, make_box, reach
from mofal.potential.standalone import neighbour_edges
from tests.potential.conftest import EXACT


@pytest.fixture(scope="module")
def exact():
    """Untrained, double precision, with a shorter reach than the rest of the room's."""
    chosen = EXACT.model_copy(update={"r_max": 3.1})
    return create(chosen, ["H", "O", "Zr"], seed=3, avg_num_neighbors=8.0)


@pytest.fixture(scope="module")
def triclinic():
    """A sheared crystal with atoms outside its cell, a slab of it, and a cluster without a cell."""
    rng = np.random.default_rng(0)
    atoms = bulk("ZrO", "rocksalt", a=4.6, cubic=True).repeat((3, 2, 2))
    atoms.set_cell(
        atoms.cell.array @ np.array([[1, 0.16, 0], [0.1, 1, 0.24], [0.02, 0, 1]]), scale_atoms=True
    )
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape) + 7.7
    slab, cluster = atoms.copy(), atoms.copy()
    slab.pbc = [True, False, True]
    cluster.pbc, cluster.cell = False, None
    return data.from_atoms([atoms, slab, cluster], system="oxide")


@pytest.fixture(scope="module")
def whole(exact, triclinic):
    return exact.evaluate(triclinic), exact.featurize(triclinic)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(grid=st.tuples(*[st.integers(1, 3)] * 3))
def test_domains__give_what_the_whole_gives(exact, triclinic, whole, grid):
    """The cell is smaller than the surroundings: an atom's own images are among what it feels."""
    found = exact.evaluate(triclinic, domains=grid)
    assert float(abs(whole[0]["forces"]).max()) > 0.1
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(found[name], whole[0][name], rtol=0, atol=1e-9)
    assert np.isnan(found["stress"].values[2]).all()
    features = exact.featurize(triclinic, domains=grid)
    np.testing.assert_allclose(features["features"], whole[1]["features"], rtol=0, atol=1e-6)
    assert features.attrs == whole[1].attrs


def test_domains__of_a_framework_in_single_precision():
    """The potential that travels with mofal, on a crystal that is cut in two."""
    model = load(seed_place("uio66-gfn1") / "model")
    ds = build("S_pr", cell="primitive", repeat=(4, 1, 1))
    shift = np.random.default_rng(0).normal(scale=0.05, size=ds["positions"].shape)
    ds = make_structures(
        ds["numbers"].values,
        ds["positions"].values + shift,
        n_atoms=ds["n_atoms"].values,
        cell=ds["cell"].values,
    )
    one, cut = model.evaluate(ds), model.evaluate(ds, domains=(2, 1, 1))
    np.testing.assert_allclose(cut["energy"], one["energy"], atol=1e-6 * ds.sizes["atom"])
    np.testing.assert_allclose(cut["forces"], one["forces"], atol=1e-4)
    np.testing.assert_allclose(cut["stress"], one["stress"], atol=1e-6)
    expected = model.featurize(ds)["features"]
    found = model.featurize(ds, domains=(2, 1, 1))["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_domains__are_lazy_and_one_task_each(exact, triclinic, whole):
    lazy = triclinic.chunk(atom=48)

    def never(*_, **__):
        raise AssertionError("something was computed")

    lazy["n_atoms"] = lazy["n_atoms"].compute()
    with dask.config.set(scheduler=never):
        found = exact.evaluate(lazy, domains=(2, 2, 1))
    graph = dict(found["forces"].data.__dask_graph__())
    names = [str(key[0] if isinstance(key, tuple) else key) for key in graph]
    assert sum(name.startswith("evaluate_domain") for name in names) == 3 * 4
    with dask.config.set(scheduler="threads"):
        np.testing.assert_allclose(found["forces"], whole[0]["forces"], rtol=0, atol=1e-9)


def test_domains__in_memory_go_to_the_client_of_the_session(exact, triclinic, whole):
    from distributed import Client

    how = {"processes": False, "n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    seen = []
    with Client(**how) as client:
        found = exact.evaluate(triclinic, domains=(2, 1, 1))
        seen = [text for text in client.run_on_scheduler(_prefixes) if "evaluate_domain" in text]
    assert seen
    np.testing.assert_allclose(found["forces"], whole[0]["forces"], rtol=0, atol=1e-9)


def _prefixes(dask_scheduler):
    return list(dask_scheduler.task_prefixes)


def test_domains__only_what_is_too_large_is_cut(exact, triclinic, whole):
    for domains in ("auto", 96):
        found = exact.evaluate(triclinic, domains=domains)
        for name in ("energy", "forces"):
            # Alone instead of in a batch of three: not the same bits.
            np.testing.assert_allclose(found[name], whole[0][name], rtol=0, atol=1e-12)
    cut = exact.evaluate(triclinic, domains=80)
    np.testing.assert_allclose(cut["forces"], whole[0]["forces"], rtol=0, atol=1e-9)


def test_domain__holds_what_reaches_it_and_no_more():
    """Against distances: everything within the reach of an edge path, nothing that has none."""
    rng = np.random.default_rng(1)
    n, side, r_max, layers = 900, 30.0, 3.0, 2
    positions, cell = rng.uniform(-side, 2 * side, (n, 3)), np.diag([side] * 3)
    box = make_box(np.full(n, 8), positions, cell, np.ones(3, bool))
    edges, _ = neighbour_edges(positions, cell, np.ones(3, bool), r_max)
    owned = []
    for place in product(range(2), range(3), range(1)):
        domain = cut_domain(box, (2, 3, 1), place, r_max=r_max, n_layers=layers)
        own = domain.atom[: domain.own]
        owned += own.tolist()
        felt = set(own.tolist())
        for _ in range(layers):
            felt |= set(edges[1][np.isin(edges[0], sorted(felt))].tolist())
        assert set(domain.atom.tolist()) == felt
        lengths = domain.positions[domain.edges[1]] - domain.positions[domain.edges[0]]
        assert np.linalg.norm(lengths, axis=1).max() < r_max
        # Each of its own atoms has all its neighbours.
        count = np.bincount(domain.edges[0], minlength=len(domain.atom))[: domain.own]
        np.testing.assert_array_equal(count, np.bincount(edges[0], minlength=n)[own])
    assert sorted(owned) == list(range(n))


def test_grid__as_many_domains_as_a_bound_wants():
    widths = np.array([250.0, 120.0, 120.0])
    grid = grid_of(widths, 180_000, reach=12.0, largest=60_000)
    assert grid[0] >= grid[1] == grid[2]
    assert 180_000 / np.prod(grid) * halo_factor(widths, grid, 12.0) <= 60_000
    assert grid_of(widths, 180_000, reach=12.0, largest=10**6) == (1, 1, 1)
    assert halo_factor(np.full(3, 24.0), (1, 1, 1), 12.0) == pytest.approx(8.0)
    assert max(grid_of(widths, 180_000, reach=12.0, largest=1)) < 250.0 / 6.0  # it ends


def test_domains__mistakes_are_told(exact, triclinic):
    for wrong in (0, -3, True, "all", (2, 2), (2, 0, 1), 2.5):
        with pytest.raises(DataError, match="expected 'auto', the largest number of atoms"):
            exact.evaluate(triclinic, domains=wrong)
    foreign = create(EXACT, ["H", "Zr"], seed=1, avg_num_neighbors=6.0)
    with pytest.raises(PotentialError, match="no type for O"):
        foreign.featurize(triclinic, domains=(2, 1, 1))
    exploded = triclinic.assign(positions=triclinic["positions"] * np.nan)
    with pytest.raises(DataError, match="864 values that are NaN"):
        exact.featurize(exploded, domains=(2, 1, 1))
    with pytest.raises(DataError, match="exploded"):  # where nobody has looked before
        exact.featurize(exploded.chunk(atom=96), domains=(2, 1, 1)).compute()
    assert reach(exact) == pytest.approx(6.2)
