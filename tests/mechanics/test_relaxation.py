"""Relaxations end where two criteria say, keep what they must keep, and fail with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from mofal.errors import ConfigError
from mofal.mechanics import Criteria, relax
from mofal.mechanics.relaxation import deviator, displaced, scaled

from .crystals import fcc_argon, make_argon


@pytest.fixture
def skewed():
    """A sheared, rattled fcc crystal."""
    atoms = fcc_argon()
    strain = np.array([[1.02, 0.03, 0.0], [0.0, 0.99, 0.02], [0.0, 0.0, 1.0]])
    atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
    return displaced(atoms, 0.05, (1,))


def test_volume__is_kept_and_shape_relaxes(skewed):
    found = relax(skewed, make_argon(), cell="volume")
    assert found.status == "relaxed"
    assert found.atoms.get_volume() == pytest.approx(skewed.get_volume(), rel=1e-8)
    assert np.abs(found.forces).max() < 0.001
    assert np.abs(deviator(found.stress)).max() < 1e-3 * units.GPa
    lengths = found.atoms.cell.lengths()
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=1e-3)
    np.testing.assert_allclose(found.atoms.cell.angles(), 90.0, atol=0.05)


def test_volume__ase_s_own_criterion_passes_a_larger_deviator(skewed):
    """What the second criterion is for: the rows of the cell are divided by the atoms."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import LBFGS

    atoms = bulk("Cu", cubic=True).repeat(3)
    atoms.set_cell(atoms.cell.array * [1.0005, 1.0, 0.9995], scale_atoms=True)
    atoms.calc = EMT()
    LBFGS(FrechetCellFilter(atoms, constant_volume=True), logfile=None).run(fmax=0.002)
    assert np.abs(deviator(atoms.get_stress())).max() > 1e-3 * units.GPa
    done = relax(atoms, EMT(), criteria=Criteria(max_force=0.002))
    assert np.abs(deviator(done.stress)).max() < 1e-3 * units.GPa


def test_free__all_of_the_stress_vanishes(skewed):
    found = relax(skewed, make_argon(), cell="free")
    assert found.status == "relaxed"
    assert np.abs(found.stress).max() < 1e-3 * units.GPa


def test_fixed__cell_does_not_move(skewed):
    found = relax(skewed, make_argon(), cell="fixed")
    np.testing.assert_array_equal(found.atoms.cell.array, skewed.cell.array)


def test_lbfgs__has_the_answer_of_fire():
    """Plain ASE FIRE with the same filter, as an independent way to the same minimum."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import FIRE

    start = displaced(scaled(fcc_argon(), 140.0), 0.2, (3,))
    ours = relax(start, make_argon(), criteria=Criteria(max_force=1e-4, max_stress_MPa=0.1))
    theirs = start.copy()
    theirs.calc = make_argon()
    fire = FIRE(FrechetCellFilter(theirs, constant_volume=True), logfile=None)
    for _ in fire.irun(fmax=0.0, steps=3000):
        force, stress = theirs.get_forces(), deviator(theirs.get_stress())
        if np.abs(force).max() < 1e-4 and np.abs(stress).max() < 1e-4 * units.GPa:
            break
    assert ours.energy == pytest.approx(theirs.get_potential_energy(), abs=1e-6)


def test_status__says_what_went_wrong(skewed):
    few = relax(skewed, make_argon(), criteria=Criteria(max_steps=2))
    assert (few.status, few.reason) == ("not_converged", "not done after 2 steps")
    lengths = np.array([np.linalg.norm(skewed.positions[1] - skewed.positions[0])])
    bonds = np.array([[0, 1]]), np.zeros((1, 3), int), 0.5 * lengths
    broken = relax(skewed, make_argon(), bonds=bonds)
    assert broken.status == "bond_broken"
    assert "atoms 0 and 1" in broken.reason
    assert np.isnan(broken.energy)

    class Failing(type(make_argon())):
        def calculate(self, *args, **kwargs):
            if self.n_calls == 2:
                raise RuntimeError("no convergence")
            super().calculate(*args, **kwargs)

    from .crystals import argon

    crashed = relax(skewed, Failing(argon, 9.0))
    assert (crashed.status, crashed.reason) == ("crashed", "RuntimeError: no convergence")


@pytest.mark.parametrize("mistake", [{"max_force": 0.0}, {"max_steps": 0}, {"max_stretch": 1.0}])
def test_criteria__refuse_what_cannot_be_meant(mistake):
    with pytest.raises(ConfigError):
        Criteria(**mistake)
