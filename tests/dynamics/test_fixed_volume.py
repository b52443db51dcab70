"""(N, V, σa = 0, T): the volume is kept, energy is accounted for, fluctuations are canonical."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from mofal.data import from_atoms, to_atoms
from mofal.dynamics import WalkSettings, walk
from mofal.errors import StructureError
from tests.dynamics.helpers import alone

pytestmark = pytest.mark.physics

GENTLE = WalkSettings(
    ensemble="nvst",
    temperature_K=40.0,
    timestep_fs=4.0,
    length_fs=400.0,
    thermostat_fs=100.0,
    barostat_fs=100.0,
    min_distance=2.0,
    sample_every=1,
    checkpoint_every=25,
)


class HarmonicCrystal(Calculator):
    """Atoms on springs to their lattice sites, and a shape with given elastic constants.

    E = k/2 Σ |r - h s|² + V0 (μ tr(e_dev²) + K/2 tr(e)²), e the strain of the cell against its
    start (ln of the stretch, to second order): everything about it is known.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, atoms, stiffness, shear, bulk_modulus) -> None:
        super().__init__()
        self.fractional = atoms.get_scaled_positions(wrap=False)
        self.start = np.array(atoms.cell.array)
        self.k, self.shear, self.bulk = stiffness, shear, bulk_modulus
        self.v0 = atoms.get_volume()

    def shape_energy(self, cell):
        left = np.linalg.solve(self.start, cell)
        b = left.T @ left  # left Cauchy-Green for row vectors
        w, u = np.linalg.eigh(b)
        hencky = (u * 0.5 * np.log(w)) @ u.T
        trace = np.trace(hencky)
        dev = hencky - trace / 3 * np.eye(3)
        energy = self.v0 * (self.shear * np.sum(dev * dev) + 0.5 * self.bulk * trace**2)
        # Work conjugate of the Hencky strain of an isotropic solid is the Kirchhoff stress.
        kirchhoff = self.v0 * (2 * self.shear * dev + self.bulk * trace * np.eye(3))
        return energy, kirchhoff

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        cell = atoms.cell.array
        away = atoms.positions - self.fractional @ cell
        energy, kirchhoff = self.shape_energy(cell)
        virial = kirchhoff + self.k * away.T @ away  # d(away)/d(strain) = away
        self.results = {
            "energy": energy + 0.5 * self.k * float(np.sum(away**2)),
            "forces": -self.k * away,
            "stress": full_3x3_to_voigt_6_stress(virial / atoms.get_volume()),
        }


def crystal():
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    return atoms, HarmonicCrystal(atoms, 1.0, 2.0 * units.GPa, 5.0 * units.GPa)


def integrator_of(atoms, timestep_fs, seed=1, temperature_K=300.0, bath=True, ensemble="nvst"):
    return alone(
        atoms,
        ensemble,
        timestep_fs=timestep_fs,
        temperature_K=temperature_K,
        thermostat_fs=50.0,
        barostat_fs=100.0,
        seed=seed,
        bath=bath,
    )


def test_harmonic_crystal__stress_is_the_derivative_of_the_energy():
    """The yardstick itself, by finite strains."""
    atoms, calculator = crystal()
    rng = np.random.default_rng(0)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.03 * rng.standard_normal((3, 3))),
                   scale_atoms=True)  # fmt: skip
    atoms.positions += 0.1 * rng.standard_normal((4, 3))
    atoms.calc = calculator
    stress = atoms.get_stress()
    numerical = _numerical_stress(atoms)
    np.testing.assert_allclose(stress, numerical, atol=1e-7)


def _numerical_stress(atoms, h=1e-5):
    out = np.zeros((3, 3))
    for i in range(3):
        for j in range(3):
            values = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                strain = np.eye(3)
                strain[i, j] += sign * h
                moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
                values.append(moved.get_potential_energy())
            out[i, j] = (values[0] - values[1]) / (2 * h) / atoms.get_volume()
    return full_3x3_to_voigt_6_stress(0.5 * (out + out.T))


def test_volume__is_kept_to_rounding(argon, make_potential):
    atoms = to_atoms(argon, 0)
    atoms.calc = make_potential()
    volume, start = atoms.get_volume(), np.array(atoms.cell.array)
    integrator = integrator_of(atoms, 4.0, temperature_K=40.0)
    changes = []
    for _ in range(300):
        integrator.step()
        changes.append(float(integrator.volumes()[0]) / volume - 1.0)
    assert np.abs(changes).max() < 1e-12
    assert np.abs(integrator.cells[0] - start).max() > 0.01
    momenta = integrator.cell_momenta[0]
    assert abs(np.trace(momenta)) < 1e-12 * np.abs(momenta).max()


@pytest.mark.parametrize("ensemble", ["nvst", "npt"])
def test_conserved_energy__second_order_and_no_slope(ensemble):
    """Bath off: the fluctuation of H falls as the square of the step, its drift is none."""
    spreads = []
    for timestep in (8.0, 4.0):
        atoms, atoms.calc = crystal()
        integrator = integrator_of(atoms, timestep, bath=False, ensemble=ensemble)
        energies = []
        for _ in range(int(8000 / timestep)):
            integrator.step()
            energies.append(float(integrator.conserved_energies()[0]))
        assert integrator.heat[0] == 0.0
        slope = np.polyfit(np.arange(len(energies)), energies, 1)[0]
        assert abs(slope) * len(energies) < 0.1 * np.std(energies)
        spreads.append(np.std(energies))
    assert 3.3 < spreads[0] / spreads[1] < 4.8
    assert spreads[1] < 0.01 * 12 * units.kB * 300


def test_conserved_energy__accounts_for_the_heat_of_the_bath():
    """With the bath on the energy wanders by kT's, what is conserved only by the step's error."""
    atoms, atoms.calc = crystal()
    integrator = integrator_of(atoms, 2.0)
    total, conserved = [], []
    for _ in range(1500):
        integrator.step()
        conserved.append(float(integrator.conserved_energies()[0]))
        total.append(conserved[-1] + float(integrator.heat[0]))
    assert np.std(total) > 3 * units.kB * 300
    assert np.std(conserved) < 0.05 * np.std(total)


@pytest.mark.slow
def test_equipartition__of_atoms_positions_and_the_five_shapes():
    """Kinetic energies of atoms and cell, energies of springs and of the shape: kT/2 each.

    <P_int> of this crystal, 1 % too large, is that of its bulk modulus: what the ideal gas adds,
    the springs (which the strain stretches) take away.
    """
    atoms, atoms.calc = crystal()
    atoms.set_cell(1.01 ** (1 / 3) * atoms.cell.array, scale_atoms=True)
    stretched, _ = atoms.calc.shape_energy(atoms.cell.array)
    integrator = integrator_of(atoms, 10.0, seed=5)
    thermal = units.kB * 300.0
    rows = []
    for k in range(12000):
        integrator.step()
        if k % 4 == 0 and k > 1000:
            shape = atoms.calc.shape_energy(integrator.cells[0])[0]
            springs = float(integrator.outcome.energy[0]) - shape
            shape -= stretched
            kinetic = float(integrator.kinetic_energies()[0])
            virial = np.trace(integrator.outcome.stress[0]) * float(integrator.volumes()[0])
            rows.append(
                [
                    kinetic / (6 * thermal),
                    float(integrator.cell_kinetic_energies()[0]) / (2.5 * thermal),
                    springs / (6 * thermal),
                    shape / (2.5 * thermal),
                    (2.0 * kinetic - virial) / 3.0 / thermal,
                ]
            )
    values = np.array(rows)
    blocks = np.array([b.mean(axis=0) for b in np.array_split(values, 20)])
    mean, error = blocks.mean(axis=0), blocks.std(axis=0, ddof=1) / np.sqrt(20)
    assert (error[:4] < 0.04).all()
    np.testing.assert_array_less(np.abs(mean[:4] - 1.0), 4 * error[:4] + 0.005)
    gas, springs = 4.0, -4.0  # N kT, and 2/3 of the energy of the springs
    expected = gas + springs - atoms.calc.v0 * atoms.calc.bulk * np.log(1.01) / thermal
    assert error[4] < 0.1 * abs(expected)
    assert abs(mean[4] - expected) < 4 * error[4]


def test_walk__restarts_bit_for_bit_and_tells_what_is_conserved(argon, make_potential, tmp_path):
    whole = walk(argon, calculator=make_potential(), settings=GENTLE, seed=3)
    assert "conserved_energy" in whole.trace
    assert np.ptp(whole.trace["volume"].values) < 1e-8
    assert np.isnan(whole.record["pressure_GPa"].values[0])

    class Stop(Exception):
        pass

    class Fragile(type(make_potential())):
        def calculate(self, *args, **kwargs):
            if self.n_calls == 70:
                raise KeyboardInterrupt
            super().calculate(*args, **kwargs)

    out = tmp_path / "walk.npz"
    with pytest.raises(KeyboardInterrupt):
        walk(argon, calculator=Fragile(), settings=GENTLE, seed=3, out=out)
    again = walk(argon, calculator=make_potential(), settings=GENTLE, seed=3, out=out)
    for name in whole.trace:
        np.testing.assert_array_equal(again.trace[name].values, whole.trace[name].values)
    np.testing.assert_array_equal(again.frame["positions"].values, whole.frame["positions"].values)
    np.testing.assert_array_equal(again.frame["cell"].values, whole.frame["cell"].values)


def test_walk__of_a_cluster_is_refused(make_potential):
    cluster = from_atoms([Atoms("Ar2", [[0, 0, 0], [4.0, 0, 0]])])
    with pytest.raises(StructureError, match="NVST needs"):
        walk(cluster, calculator=make_potential(), settings=replace(GENTLE), seed=0)
