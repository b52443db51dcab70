"""Harmonic samples have the statistics they claim, and look like a framework at 600 K."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from scipy import stats

from mofal.data import from_atoms, select, to_atoms, validate
from mofal.dynamics import Network, sample_harmonic
from mofal.dynamics.harmonic import HarmonicSampler
from mofal.errors import ConfigError, StructureError
from mofal.frameworks.bonds import find_bonds
from mofal.frameworks.uio import pristine

from .helpers import coordinates_of

KT = units.kB * 600.0


@pytest.fixture(scope="module")
def crystal():
    return pristine(cell="primitive")


@pytest.fixture(scope="module")
def frames(crystal):
    return sample_harmonic(crystal, n=12, seed=7)


def test_draw__covariance_is_the_inverse_hessian():
    acid = from_atoms([molecule("HCOOH")])
    coordinates = coordinates_of(acid)
    sampler = HarmonicSampler(coordinates, floor=0.5, temperature_K=600.0)
    rng = np.random.default_rng(0)
    n = 20000
    draws = np.array([sampler.draw(rng).ravel() for _ in range(n)])
    hessian = coordinates.hessian(0.5).toarray()
    # Whitened draws are independent standard normals: every entry of their covariance is known
    # with its error.
    white = draws @ np.linalg.cholesky(hessian) / np.sqrt(KT)
    size = white.shape[1]
    covariance = white.T @ white / n
    spread = np.sqrt((1.0 + np.identity(size)) / n)
    pulls = (covariance - np.identity(size)) / spread
    assert np.abs(pulls).max() < 4.5
    assert np.abs(white.mean(axis=0)).max() < 4.5 / np.sqrt(n)
    assert stats.kstest(white[:, 0], "norm").pvalue > 1e-3


def test_draw__equipartition_in_a_crystal(crystal):
    coordinates = coordinates_of(crystal)
    sampler = HarmonicSampler(coordinates, floor=0.2, temperature_K=600.0)
    rng = np.random.default_rng(1)
    hessian = coordinates.hessian(0.2)
    n, size = 300, 3 * crystal.sizes["atom"]
    energies = np.array(
        [0.5 * u @ (hessian @ u) for u in (sampler.draw(rng).ravel() for _ in range(n))]
    )
    # A chi-square law with as many degrees of freedom as coordinates.
    assert energies.mean() == pytest.approx(0.5 * size * KT, abs=4 * KT * np.sqrt(size / 2 / n))
    assert energies.std() == pytest.approx(KT * np.sqrt(size / 2), rel=0.2)


def test_draw__floor_bounds_what_is_floppy(crystal):
    weak = Network(torsion=1e-6, near=1e-6, floor=0.5)
    coordinates = coordinates_of(crystal, **weak.__dict__)
    sampler = HarmonicSampler(coordinates, floor=weak.floor, temperature_K=600.0)
    rng = np.random.default_rng(2)
    draws = np.array([sampler.draw(rng) for _ in range(200)])
    assert np.sqrt((draws**2).mean(axis=0)).max() < 1.15 * np.sqrt(KT / weak.floor)


def test_follow__is_the_minimum_under_strain(crystal):
    coordinates = coordinates_of(crystal)
    sampler = HarmonicSampler(coordinates, floor=0.2, temperature_K=600.0)
    strain = 0.01 * np.array([[1.0, 0.2, 0.0], [0.2, -0.5, 0.1], [0.0, 0.1, 0.3]])

    def energy(u):
        change = coordinates.matrix @ u.ravel() + np.einsum("mij,ij->m", coordinates.strain, strain)
        return 0.5 * (coordinates.stiffness * change**2).sum() + 0.1 * (u**2).sum()

    relaxed = sampler.follow(strain)
    lowest = energy(relaxed)
    assert lowest < 0.8 * energy(np.zeros_like(relaxed))
    rng = np.random.default_rng(3)
    for _ in range(5):
        direction = rng.normal(size=relaxed.shape)
        up = energy(relaxed + 1e-3 * direction) - lowest
        down = energy(relaxed - 1e-3 * direction) - lowest
        assert up > 0
        assert up == pytest.approx(down, rel=1e-6)


def test_sample_harmonic__conjugate_gradients_agree(crystal, monkeypatch):
    direct = sample_harmonic(crystal, n=2, seed=4)
    monkeypatch.setattr("mofal.dynamics.harmonic.LARGEST_FACTORED", 10)
    iterated = sample_harmonic(crystal, n=2, seed=4)
    np.testing.assert_allclose(iterated["positions"], direct["positions"], rtol=0, atol=1e-8)


def test_sample_harmonic__frames(crystal, frames):
    validate(frames, "structures")
    assert frames.sizes["structure"] == 12
    assert set(frames["parent"].values) == {crystal["structure_id"].values[0]}
    assert set(frames["system"].values) == {crystal["system"].values[0]}
    volume = np.abs(np.linalg.det(frames["cell"].values))
    relative = volume / abs(np.linalg.det(crystal["cell"].values[0])) - 1.0
    assert (relative > -0.03).all()
    assert (relative < 0.05).all()
    assert np.ptp(relative) > 0.02
    assert len(set(frames["structure_id"].values)) == 12


def set_of_bonds(ds, i):
    found = find_bonds(ds, i)
    return {
        (*pair, *shift)
        for pair, shift in zip(
            found["bond_atom"].values.tolist(), found["bond_shift"].values.tolist()
        )
    }


def test_sample_harmonic__bonds_stay(crystal, frames):
    expected = set_of_bonds(crystal, 0)
    assert len(expected) == 148
    for i in range(frames.sizes["structure"]):
        assert set_of_bonds(frames, i) == expected


def test_sample_harmonic__amplitudes_of_600_kelvin(crystal, frames):
    """Root mean square displacements of a framework at 600 K: 0.1 to 0.4 Å, H the largest."""
    still = sample_harmonic(crystal, n=40, seed=1, volume_strain=0.0, shear=0.0)
    away = still["positions"].values.reshape(40, -1, 3) - crystal["positions"].values
    size = np.sqrt((away**2).sum(axis=2).mean(axis=0))
    numbers = crystal["numbers"].values
    mean = {z: size[numbers == z].mean() for z in (1, 6, 8, 40)}
    assert 0.08 < mean[40] < mean[8] < mean[6] < mean[1] < 0.4


def test_sample_harmonic__seed_decides(crystal, frames):
    again = sample_harmonic(crystal, n=3, seed=np.random.SeedSequence(7))
    np.testing.assert_array_equal(
        again["positions"].values, frames["positions"].values[: again.sizes["atom"]]
    )
    other = sample_harmonic(crystal, n=3, seed=8)
    assert not np.allclose(other["positions"], again["positions"])


def test_sample_harmonic__given_bonds_are_used(crystal):
    bonds = find_bonds(crystal)
    given = {"bonds": bonds["bond_atom"].values, "shifts": bonds["bond_shift"].values}
    one = sample_harmonic(crystal, n=2, seed=1, **given)
    two = sample_harmonic(crystal, n=2, seed=1)
    np.testing.assert_array_equal(one["positions"], two["positions"])
    fewer = {name: value[:-20] for name, value in given.items()}
    three = sample_harmonic(crystal, n=2, seed=1, **fewer)
    assert not np.allclose(one["positions"], three["positions"])


def test_sample_harmonic__cluster_keeps_no_cell():
    acid = from_atoms([molecule("HCOOH")])
    found = sample_harmonic(acid, n=4, seed=1)
    assert not found["cell"].values.any()
    assert not found["pbc"].values.any()


def test_sample_harmonic__fixed_volume_is_exact(crystal):
    found = sample_harmonic(crystal, n=3, seed=1, volume_strain=0.02, shear=0.02)
    volume = np.abs(np.linalg.det(found["cell"].values))
    np.testing.assert_allclose(
        volume, 1.02 * abs(np.linalg.det(crystal["cell"].values[0])), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"n": 0}, ConfigError, "n is 0"),
        ({"temperature_K": -5.0}, ConfigError, "temperature_K is -5"),
        ({"volume_strain": (0.1, -0.1)}, ConfigError, "volume_strain"),
        ({"temperature_K": 60000.0}, StructureError, "no sound frame in 100 tries"),
    ],
)
def test_sample_harmonic__refuses(change, error, message):
    acid = from_atoms([molecule("HCOOH")])
    with pytest.raises(error, match=message):
        sample_harmonic(acid, **{"n": 2, "seed": 1, **change})


@pytest.mark.slow
@pytest.mark.physics
def test_sample_harmonic__realistic_under_gfn1_xtb(crystal, frames):
    """Potential energy near equipartition, forces as in dynamics at 600 K, by a real method."""
    tblite = pytest.importorskip("tblite.ase")
    one = to_atoms(select(frames, [1]), 0)
    ideal = to_atoms(crystal, 0)
    for atoms in (one, ideal):
        atoms.calc = tblite.TBLite(method="GFN1-xTB", verbosity=0)
    size = np.sqrt((one.get_forces() ** 2).mean())
    assert 0.8 < size < 2.0
    rise = one.get_potential_energy() - ideal.get_potential_energy()
    assert 0.6 < rise / (1.5 * KT * len(one)) < 1.8
