"""E(V) of crystals that are known, bit for bit whatever interrupts it."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT

from mofal.data import from_atoms, open_group
from mofal.errors import ConfigError
from mofal.mechanics import (
    Criteria,
    Curve,
    CurveSettings,
    energy_volume,
    reference_level,
    run_serial,
)

from .crystals import argon, fcc_argon, fcc_elasticity

EMT_LEVEL = "ase:ase.calculators.emt:EMT"
ARGON_LEVEL = "ase:tests.mechanics.crystals:make_argon"
QUICK = CurveSettings(volumes=7, criteria=Criteria(max_force=1e-4, max_stress_MPa=0.1))


def curve_of(atoms, level, directory, settings=QUICK, **more):
    one = Curve(
        from_atoms([atoms], system="crystal"),
        reference_level(level),
        directory=directory,
        settings=settings,
        **more,
    )
    run_serial(one)
    return one, energy_volume(one.gather(), tolerance=settings.tolerance)


@pytest.fixture(scope="module")
def argon_curve(tmp_path_factory):
    return curve_of(fcc_argon(), ARGON_LEVEL, tmp_path_factory.mktemp("argon"))


def test_curve__lennard_jones_has_its_lattice_sum(argon_curve):
    _, found = argon_curve
    a, modulus, *_ = fcc_elasticity(argon, 9.0, 5.3)
    assert found.windows.agreed
    assert found.windows.best.volume == pytest.approx(a**3, rel=1e-4)
    assert found.windows.bulk_modulus == pytest.approx(modulus, rel=0.01)
    assert found.windows.energy_alone.bulk_modulus == pytest.approx(modulus, rel=0.01)
    np.testing.assert_allclose(found.hysteresis[np.isfinite(found.hysteresis)], 0.0, atol=1e-5)


def test_curve__points_are_what_they_say(argon_curve):
    one, found = argon_curve
    curve = open_group(one.place / "curve.zarr").load()
    names = [str(n) for n in curve["curve_point"].values]
    assert names[0] == "minimum"
    assert {"out+000", "out-003", "out+003", "back-002", "back-000", "back+000"} <= set(names)
    assert "back-003" not in names
    wanted = curve["target_volume"].values[1:]
    np.testing.assert_allclose(curve["relaxed_volume"].values[1:], wanted, rtol=1e-8)
    assert curve["deviatoric_stress"].values.max() < 1e-4
    assert curve["largest_force"].values.max() < 1e-4
    assert curve["relaxed_pressure"].attrs["units"] == "GPa"
    assert len(found.volume) == 7


def test_curve__copper_is_what_single_points_give(tmp_path):
    """Cubic with one atom: nothing relaxes, so plain EMT energies are the curve; K about 134."""
    _, found = curve_of(bulk("Cu"), EMT_LEVEL, tmp_path)
    h, moduli = 0.02, []
    atoms = bulk("Cu")
    atoms.calc = EMT()
    v0 = found.windows.best.volume

    def pressure(volume):
        atoms.set_cell((4 * volume) ** (1 / 3) * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2,
                       scale_atoms=True)  # fmt: skip
        return -atoms.get_stress()[:3].mean()

    moduli = -v0 * (pressure(v0 + h) - pressure(v0 - h)) / (2 * h) / units.GPa
    assert abs(pressure(v0)) < 2e-3 * units.GPa
    assert found.windows.bulk_modulus == pytest.approx(moduli, rel=0.01)
    assert moduli == pytest.approx(134.0, rel=0.02)  # ASE's EMT, as its documentation has it


@pytest.mark.slow
def test_curve__a_crystal_that_is_not_cubic(tmp_path):
    """hcp Lennard-Jones: c/a relaxes at each volume; a search over a and c gives the same K."""
    from scipy.optimize import minimize

    from .crystals import make_argon

    _, found = curve_of(bulk("Ar", "hcp", a=3.75, c=6.3), ARGON_LEVEL, tmp_path)
    calculator = make_argon()

    def energy(a, c):
        atoms = bulk("Ar", "hcp", a=a, c=c)
        atoms.calc = calculator
        return atoms.get_potential_energy()

    def lowest(volume):
        """Lowest energy at a volume, over the ratio c/a."""

        def at(ratio):
            a = (2 * volume / np.sqrt(3) / ratio[0]) ** (1 / 3)
            return energy(a, ratio[0] * a)

        return minimize(at, [1.63], method="Nelder-Mead",
                        options={"xatol": 1e-5, "fatol": 1e-12}).fun  # fmt: skip

    volume = np.array(found.volume)
    np.testing.assert_allclose(found.energy, [lowest(v) for v in volume], atol=1e-7)


def test_curve__resumes_to_the_same_numbers(tmp_path, argon_curve):
    """Points removed as if they had never been made, and made again, are the same to the bit."""
    import shutil

    first = argon_curve[0]
    whole = open_group(first.place / "curve.zarr").load()
    shutil.copytree(first.place, tmp_path / first.place.name)
    one = Curve(first.structure, first.level, directory=tmp_path, settings=first.settings)
    shutil.rmtree(one.place / "curve.zarr")
    for name in ("out+002", "out+003", "back+001", "back-000"):
        one.point(name).unlink()
    assert not one.complete
    run_serial(one)
    again = one.gather()
    for name in ("positions", "cell", "energy", "stress"):
        np.testing.assert_array_equal(again[name].values, whole[name].values)


def test_curve__finds_the_lower_branch_on_the_way_back(argon_curve):
    """Both ways count: where they differ the lower energy is taken and the difference told."""
    curve = argon_curve[0].gather().copy(deep=True)
    names = [str(n) for n in curve["curve_point"].values]
    curve["energy"].values[names.index("out-002")] += 0.002
    found = energy_volume(curve)
    k = int(np.argmin(np.abs(found.volume - curve["target_volume"].values[names.index("out-002")])))
    assert names[found.index[k]] == "back-002"
    assert found.hysteresis[k] == pytest.approx(0.002, abs=1e-5)


def test_curve__a_grid_that_misses_the_minimum_has_no_fit(tmp_path):
    grid = tuple(fcc_argon().get_volume() * (1.02 + 0.01 * np.arange(6)))
    settings = CurveSettings(grid=grid, criteria=QUICK.criteria, both_ways=False)
    _, found = curve_of(fcc_argon(), ARGON_LEVEL, tmp_path, settings)
    assert found.windows is None
    assert "do not enclose the minimum" in found.problem
    assert len(found.volume) == 6


def test_curve__failed_points_are_forgotten_on_demand(tmp_path):
    settings = CurveSettings(volumes=5, criteria=Criteria(max_steps=1))
    one, _ = curve_of(fcc_argon(2), ARGON_LEVEL, tmp_path, settings)
    assert not one.sound
    assert [p.done for p in one.pieces()] == [True]
    assert one.forget_failed() == 1
    assert not one.first().done


@pytest.mark.parametrize(
    "mistake",
    [{"volumes": 4}, {"volumes": 3}, {"spacing": 0.3}, {"grid": (1.0, 2.0)}, {"tolerance": 0}],
)
def test_settings__refuse_what_cannot_be_meant(mistake):
    with pytest.raises(ConfigError):
        CurveSettings(**mistake)
