"""Many walks at once are the walks that they would be alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from mofal.data import from_atoms
from mofal.dynamics import Plan, walk, walks
from mofal.dynamics.arrays import NumpyArrays, TorchArrays, exponential
from mofal.dynamics.engine import CalculatorEngine
from mofal.dynamics.integrator import Integrator
from mofal.errors import ConfigError
from tests.dynamics.helpers import member_of
from tests.dynamics.test_walker import NPT, same


def crystals():
    """Argon of three sizes."""
    frames = []
    for n, repeat in enumerate([(2, 2, 2), (2, 2, 1), (2, 1, 1)]):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(repeat)
        atoms.rattle(0.02, seed=n)
        frames.append(atoms)
    return from_atoms(frames, system="argon")


@pytest.mark.parametrize("ensemble", ["npt", "nvt", "nvst"])
def test_walks__the_same_bits_alone_and_in_company(ensemble, make_potential):
    """Sizes, temperatures, lengths and seeds differ; one explodes; places are refilled."""
    ds = crystals()
    base = replace(NPT, ensemble=ensemble, length_fs=160.0)
    settings = [
        base,
        replace(base, temperature_K=25.0, length_fs=120.0),
        replace(base, pressure_GPa=0.1, timestep_fs=2.0),
        replace(base, temperature_K=200.0, min_distance=3.4),  # two come too close
        replace(base, thermostat_fs=50.0),
    ]
    plans = [Plan(k % 3, (7, k), settings=s) for k, s in enumerate(settings)]
    together = walks(ds, plans, calculator=make_potential, together=3)
    statuses = [w.record["walk_status"].item() for w in together]
    assert statuses == ["finished", "finished", "finished", "exploded", "finished"]
    for plan, found in zip(plans, together):
        other = walk(
            ds, plan.frame, calculator=make_potential, settings=plan.settings, seed=plan.seed
        )
        same(found, other)


def test_walks__of_two_ensembles_are_refused(argon, make_potential):
    plans = [Plan(0, 1, settings=NPT), Plan(0, 2, settings=replace(NPT, ensemble="nvt"))]
    with pytest.raises(ConfigError, match="npt and nvt"):
        walks(argon, plans, calculator=make_potential)


def test_walks__bonds_of_some_and_a_calculator_that_fails_one(argon, make_potential):
    """A walker that cannot be computed ends alone."""

    class Choosy(make_potential):
        def calculate(self, atoms=None, properties=("energy",), system_changes=None):
            if len(atoms) == 16 and self.n_calls > 20:
                raise RuntimeError("not this one")
            super().calculate(atoms, properties)

    ds = crystals()
    plans = [Plan(k, k, settings=NPT) for k in range(3)]
    found = walks(ds, plans, calculator=Choosy, together=3)
    assert [w.record["walk_status"].item() for w in found] == ["finished", "crashed", "finished"]
    assert "not this one" in found[1].record["walk_reason"].item()
    same(found[2], walk(ds, 2, calculator=make_potential, settings=NPT, seed=2))


class Springs3:
    """Atoms on springs to their places and a stress of its own, for any kind of array."""

    model_hash, name = "", "springs"

    def __init__(self, places, xp):
        self.places, self.xp, self.device = xp.real(places), xp, "cpu"

    def evaluate(self, systems, *, stress=True):
        from mofal.dynamics.engine import Outcome

        away = systems.positions - self.places
        stresses = 0.0 * systems.cells + 0.001 * systems.cells
        n = len(systems.keys)
        return Outcome(self.xp.real(np.zeros(n)), -0.5 * away, stresses)


@pytest.mark.parametrize("ensemble", ["nvt", "npt", "nvst"])
def test_integrator__torch_does_what_numpy_does(ensemble, monkeypatch):
    """The arrays of a GPU, on a CPU: equal to rounding."""
    pytest.importorskip("torch")
    frames = [bulk("Ar", "fcc", a=5.3, cubic=True).repeat(k) for k in (1, 2)]
    places = np.concatenate([a.positions for a in frames])
    from mofal.dynamics import integrator as module

    found = []
    for xp in (NumpyArrays(), TorchArrays("cpu")):
        monkeypatch.setattr(module, "arrays_of", lambda _, xp=xp: xp)
        members = [
            member_of(a, ensemble, seed=k, barostat_fs=200.0, key=k) for k, a in enumerate(frames)
        ]
        run = Integrator(Springs3(places, xp), ensemble, members)
        for _ in range(20):
            run.step()
        found.append([run.state(k) for k in range(2)])
        assert xp.host(run.largest_forces()).shape == (2,)
    for one, two in zip(*found):
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=1e-10, atol=1e-10)


def test_exponential__of_small_matrices():
    from scipy.linalg import expm

    rng = np.random.default_rng(0)
    m = 0.002 * rng.standard_normal((5, 3, 3))
    found = exponential(m, np.identity(3)[None])
    np.testing.assert_allclose(found, [expm(x) for x in m], rtol=0, atol=1e-15)


def test_calculator_engine__one_calculator_for_several_systems(argon, make_potential):
    """Clusters and crystals side by side: each has what it has alone, a cluster no stress."""
    from mofal.data import to_atoms
    from mofal.dynamics.engine import Systems

    one, two = to_atoms(argon, 0), Atoms("Ar2", [[0, 0, 0], [3.9, 0, 0]])
    engine = CalculatorEngine(make_potential())
    systems = Systems(
        (0, 1),
        np.concatenate([one.numbers, two.numbers]),
        np.array([32, 2]),
        np.array([0, 32]),
        np.array([one.pbc, two.pbc]),
        np.concatenate([one.positions, two.positions]),
        np.stack([one.cell.array, two.cell.array]),
    )
    out = engine.evaluate(systems, stress=False)
    for atoms, rows, k in ((one, slice(0, 32), 0), (two, slice(32, 34), 1)):
        atoms.calc = make_potential()
        np.testing.assert_array_equal(out.forces[rows], atoms.get_forces())
        assert out.energy[k] == atoms.get_potential_energy()
    assert np.isfinite(out.stress[0]).all()
    assert np.isnan(out.stress[1]).all()
