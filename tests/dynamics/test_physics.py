"""The integrator obeys thermodynamics: temperatures, pressures, fluctuations, energy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from scipy import stats

from mofal.data import concat, select, to_atoms
from mofal.dynamics import WalkSettings, walk
from tests.dynamics.helpers import alone, member_of, total_energy

pytestmark = pytest.mark.physics

CRYSTAL = WalkSettings(
    temperature_K=40.0,
    pressure_GPa=0.0,
    timestep_fs=4.0,
    length_fs=12000.0,
    thermostat_fs=100.0,
    barostat_fs=100.0,
    min_distance=2.0,
    sample_every=10,
    checkpoint_every=1000,
)


def mean_and_error(values, *, blocks=16):
    """Mean of a correlated series and its standard error from block averages; start left out."""
    kept = np.asarray(values)[len(values) // 8 :]
    means = np.array([block.mean() for block in np.array_split(kept, blocks)])
    return means.mean(), means.std(ddof=1) / np.sqrt(blocks)


def test_momenta__maxwell_boltzmann(grid):
    atoms = to_atoms(grid, 0)
    atoms.set_masses(np.repeat([1.0, 90.0], 32))
    rng = np.random.default_rng(0)
    member = member_of(atoms, "nvt", temperature_K=600.0)
    scaled = []
    for _ in range(20):
        member.draw_momenta(rng, ensemble="nvt")
        scaled.append(
            member.state["momenta"] / np.sqrt(atoms.get_masses() * units.kB * 600.0)[:, None]
        )
    assert stats.kstest(np.ravel(scaled), "norm").pvalue > 1e-3


def test_nvt__oscillators_have_the_exact_distribution(grid, make_springs):
    """BAOAB samples positions of harmonic oscillators exactly, whatever the time step."""
    places, stiffness = grid["positions"].values, 0.5
    settings = WalkSettings(
        ensemble="nvt",
        temperature_K=300.0,
        timestep_fs=20.0,
        thermostat_fs=60.0,
        length_fs=12000.0,
        sample_every=5,
        max_temperature=10.0,
    )
    result = walk(grid, calculator=make_springs(places, stiffness), settings=settings, seed=1)
    thermal = units.kB * 300.0
    energies = result.trace["potential_energy"].values / thermal
    mean, error = mean_and_error(energies)
    degrees = 3 * 64
    assert error < 0.01 * degrees
    assert mean == pytest.approx(0.5 * degrees, abs=4 * error)
    assert energies[20:].std() == pytest.approx(np.sqrt(0.5 * degrees), rel=0.25)


@pytest.mark.slow
def test_nvt__temperature_and_its_fluctuation(argon, make_potential):
    settings = replace(CRYSTAL, ensemble="nvt", length_fs=12000.0)
    result = walk(argon, calculator=make_potential, settings=settings, seed=2)
    temperatures = result.trace["temperature_K"].values
    mean, error = mean_and_error(temperatures)
    assert error < 1.0
    assert mean == pytest.approx(40.0, abs=4 * error)
    # Kinetic energy follows a gamma law of 3 N / 2: its relative width is sqrt(2 / 3 N).
    assert temperatures[40:].std() / 40.0 == pytest.approx(np.sqrt(2.0 / 96.0), rel=0.2)


def test_nve_limit__energy_is_kept_to_second_order(argon, make_potential):
    """With a thermostat that acts once in 10^10 fs, the error of the energy falls as dt²."""
    spreads = []
    for timestep in (16.0, 8.0):
        atoms = to_atoms(argon, 0)
        atoms.calc = make_potential()
        integrator = alone(atoms, timestep_fs=timestep, thermostat_fs=1e10)
        energies = []
        for _ in range(int(2400 / timestep)):
            integrator.step()
            energies.append(total_energy(integrator))
        drift = np.polyfit(np.arange(len(energies)), energies, 1)[0] * len(energies)
        assert abs(drift) < 3 * np.std(energies)
        spreads.append(np.std(energies))
    assert spreads[1] < 2e-3
    assert 3.0 < spreads[0] / spreads[1] < 5.0


@pytest.fixture(scope="module")
def under_pressure():
    """NPT walks at two pressures: traces and mean volumes."""
    from ase.build import bulk

    from mofal.data import from_atoms

    from .conftest import PairPotential

    start = from_atoms([bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)], system="argon")
    return {
        pressure: walk(
            start,
            calculator=PairPotential,
            settings=replace(CRYSTAL, pressure_GPa=pressure),
            seed=3,
        )
        for pressure in (0.0, 0.15)
    }


@pytest.mark.slow
@pytest.mark.parametrize("pressure", [0.0, 0.15])
def test_npt__mean_pressure_is_the_external_one(pressure, under_pressure):
    mean, error = mean_and_error(under_pressure[pressure].trace["pressure_GPa"].values)
    assert error < 0.005
    assert mean == pytest.approx(pressure, abs=4 * error)


@pytest.mark.slow
@pytest.mark.parametrize("pressure", [0.0, 0.15])
def test_npt__temperature_of_atoms(pressure, under_pressure):
    mean, error = mean_and_error(under_pressure[pressure].trace["temperature_K"].values)
    assert mean == pytest.approx(40.0, abs=4 * error)


@pytest.mark.slow
def test_npt__nvt_at_its_mean_volume_has_its_pressure(under_pressure, make_potential):
    result = under_pressure[0.15]
    volume, volume_error = mean_and_error(result.trace["volume"].values)
    atoms = to_atoms(result.frame, 0)
    edge = volume ** (1.0 / 3.0)
    atoms.set_cell(edge * np.identity(3), scale_atoms=True)
    from mofal.data import from_atoms

    settings = replace(CRYSTAL, ensemble="nvt")
    fixed = walk(from_atoms([atoms]), calculator=make_potential, settings=settings, seed=5)
    mean, error = mean_and_error(fixed.trace["pressure_GPa"].values)
    # A modulus of about 3 GPa carries the uncertainty of the volume into the pressure.
    carried = 3.0 * volume_error / volume
    assert mean == pytest.approx(0.15, abs=4 * np.hypot(error, carried))


@pytest.mark.slow
def test_npt__fluctuations_give_the_modulus_of_the_two_pressures(under_pressure):
    volumes = {p: w.trace["volume"].values for p, w in under_pressure.items()}
    means = {p: mean_and_error(v)[0] for p, v in volumes.items()}
    middle = 0.5 * (means[0.0] + means[0.15])
    finite = 0.15 * middle / (means[0.0] - means[0.15])
    fluctuation = []
    for pressure, values in volumes.items():
        kept = values[len(values) // 8 :]
        fluctuation.append(units.kB * 40.0 * means[pressure] / kept.var() / units.GPa)
    assert np.mean(fluctuation) == pytest.approx(finite, rel=0.25)


def test_npt__volume_relaxes_within_the_walk(argon, make_potential):
    """A frame 7 % too large is at its own volume after a walk of a few barostat times."""
    atoms = to_atoms(argon, 0)
    atoms.set_cell(1.04 * atoms.cell.array, scale_atoms=True)
    from mofal.data import from_atoms

    settings = replace(CRYSTAL, length_fs=1000.0, pressure_GPa=0.1)
    result = walk(from_atoms([atoms]), calculator=make_potential, settings=settings, seed=6)
    volumes = result.trace["volume"].values
    late = volumes[len(volumes) // 2 :].mean()
    assert volumes[0] / late > 1.04
    assert volumes[len(volumes) // 2 :].std() / late < 0.015


def test_integrator__drag_of_the_cell_does_not_shear(argon, make_potential):
    """An isotropic cell momentum slows all velocities alike."""
    atoms = to_atoms(argon, 0)
    atoms.calc = make_potential()
    integrator = alone(atoms, "npt", pressure_GPa=0.0, barostat_fs=100.0)
    integrator.cell_momenta = 2.0 * np.identity(3)[None]
    drag = integrator.drag()[0]
    expected = (1.0 + 3.0 / 96) * 2.0 / float(integrator.cell_masses[0, 0, 0])
    np.testing.assert_allclose(drag, expected * np.identity(3), rtol=1e-12)


def test_frames_join_with_their_parents(argon, make_potential):
    """Walks of walks: the chain of parents leads back to the start."""
    settings = replace(CRYSTAL, length_fs=200.0)
    first = walk(argon, calculator=make_potential, settings=settings, seed=1)
    second = walk(first.frame, calculator=make_potential, settings=settings, seed=2)
    pool = concat([argon, first.frame, second.frame])
    ids, parents = pool["structure_id"].values, pool["parent"].values
    assert parents.tolist() == ["", ids[0], ids[1]]
    assert isinstance(to_atoms(select(pool, [2]), 0), Atoms)
