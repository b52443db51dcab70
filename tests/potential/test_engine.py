"""Engines: a batch is what the potential says of each, walks start again to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase.build import bulk

from mofal import data
from mofal.dynamics import Plan, WalkSettings, walks
from mofal.dynamics.engine import Systems
from mofal.errors import PotentialError
from mofal.potential import choose
from mofal.potential.compiling import compile_seconds, entry
from mofal.potential.engine import NetworkEngine
from mofal.potential.neighbours import MovingNeighbours
from mofal.potential.network import neighbour_edges
from tests.potential.test_onboard import fitted


def systems_of(ds):
    n = ds["n_atoms"].values
    first = np.concatenate([[0], np.cumsum(n)[:-1]])
    arrays = [ds[name].values for name in ("numbers", "pbc", "positions", "cell")]
    numbers, pbc, positions, cell = arrays
    return Systems(tuple(range(len(n))), numbers, n, first, pbc, positions, cell)


def test_engine__as_the_potential_says(exact, mixed):
    """Crystals, a slab, molecules, an atom: energies, forces, stress and quantiles of one pass."""
    density, _ = fitted(exact, mixed)
    out = exact.engine(density=density).evaluate(systems_of(mixed))
    wanted, features = exact.evaluate(mixed), exact.featurize(mixed)
    np.testing.assert_allclose(out.energy, wanted["energy"], atol=1e-9)
    np.testing.assert_allclose(out.forces, wanted["forces"], atol=1e-9)
    voigt = out.stress[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_allclose(voigt, wanted["stress"], atol=1e-9)
    labels = features["numbers"].values
    quantile = density.quantile(density.score_samples(features["features"].values, labels), labels)
    np.testing.assert_allclose(out.quantile, quantile, rtol=1e-4, atol=1e-9)
    for i, atoms in enumerate(data.to_atoms(mixed)):
        if len(atoms) > 1 and not atoms.pbc.any():
            d = atoms.get_all_distances()
            assert out.shortest[i] == pytest.approx(d[d > 0].min())


def test_engine__a_density_of_another_potential_is_refused(exact, single, mixed):
    density, _ = fitted(exact, mixed)
    with pytest.raises(PotentialError, match="fit the density anew"):
        single.engine(density=density)


@pytest.mark.parametrize("pbc", [True, False])
def test_moving_neighbours__are_all_there_in_one_order(pbc):
    """Along moves and strains, against a search anew; a list found later gives the same order."""
    rng = np.random.default_rng(0)
    atoms = bulk("Cu", cubic=True).repeat(2)
    x, cell, flags = atoms.positions, atoms.cell.array.copy(), np.full(3, pbc)
    moving = MovingNeighbours(flags, 4.0)
    for _ in range(40):
        x = x + rng.normal(0, 0.04, x.shape)
        strain = np.eye(3) + 0.002 * rng.standard_normal((3, 3))
        if pbc:
            x, cell = x @ strain, cell @ strain
        edges, shifts, shortest = moving.edges(x, cell)
        wanted, wanted_shifts = neighbour_edges(x, cell, flags, 4.0)
        rows = np.column_stack([wanted.T, wanted_shifts])
        order = np.lexsort(rows.T[[4, 3, 2, 1, 0]])
        np.testing.assert_array_equal(np.column_stack([edges.T, shifts]), rows[order])
        lengths = x[wanted[1]] - x[wanted[0]] + wanted_shifts @ cell
        assert shortest == pytest.approx(np.linalg.norm(lengths, axis=1).min())
    assert 1 < moving.searches < 20


def test_engine__walks_start_again_to_the_bit_and_are_alone_what_they_are_together(exact, tmp_path):
    class Stop(BaseException):
        pass

    def stop(line):
        if "walk at 6" in line:
            raise Stop

    frames = []
    for repeat in (1, 2):
        atoms = bulk("ZrO", "rocksalt", a=4.6, cubic=True).repeat((1, 1, repeat))
        atoms.rattle(0.02, seed=repeat)
        frames.append(atoms)
    ds = data.from_atoms(frames, system="oxide")
    settings = WalkSettings(
        temperature_K=50.0, length_fs=10.0, barostat_fs=5.0, sample_every=2, checkpoint_every=4,
        max_temperature=1e9, max_force=1e9, min_distance=1e-3, max_stretch=9.0, pressure_GPa=0.0,
    )  # fmt: skip
    plans = [Plan(k, k, out=tmp_path / f"{k}.npz", settings=settings) for k in range(2)]
    with pytest.raises(Stop):
        walks(ds, plans, calculator=exact.engine(), together=2, progress=stop)
    again = walks(ds, plans, calculator=exact.engine(), together=2)
    for k, found in enumerate(again):
        (other,) = walks(ds, [plans[k]._replace(out=None)], calculator=exact.engine())
        assert found.record["walk_status"].item() == "finished"
        assert found.record["walk_engine"].item().startswith("eager, torch")
        for name in ("positions", "cell"):
            np.testing.assert_array_equal(found.frame[name], other.frame[name])
        np.testing.assert_array_equal(
            found.trace["potential_energy"], other.trace["potential_energy"]
        )


def test_choose__compiled_where_the_work_is_worth_it(single, tmp_path, monkeypatch):
    def asked(wanted="auto", evaluations=10.0):
        how = {"evaluations": evaluations, "seconds_each": 0.02, "folder": tmp_path}
        return choose(single, wanted, **how).engine

    assert asked() == asked("eager", 1e9) == "eager"
    assert asked(evaluations=1e6) == asked("compiled") == "compiled"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert asked(evaluations=1e6) == "eager"
    with pytest.raises(PotentialError, match="C\\+\\+ compiler"):
        asked("compiled")
    with pytest.raises(PotentialError, match="auto, eager or compiled"):
        asked("fast")
    place = entry(single, folder=tmp_path)
    place.mkdir()
    (place / "about.json").write_text(json.dumps({"seconds": 77.0}))
    assert compile_seconds(tmp_path) == 77.0
    assert asked() == asked("compiled") == "compiled"  # one that is there costs nothing
    assert isinstance(single.engine(), NetworkEngine)
