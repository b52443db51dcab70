"""Equations of state against their definitions, against ASE's, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.eos import EquationOfState

from mofal.errors import DataError
from mofal.mechanics import fit, fit_windows
from mofal.mechanics.equations import EQUATIONS

PARAMETERS = (-1000.0, 2300.0, 35.0 * units.GPa, 5.0)


@pytest.mark.parametrize("name", EQUATIONS)
def test_equation__pressure_is_minus_the_slope(name):
    volume, h = np.linspace(2200, 2400, 9), 1e-2
    up = EQUATIONS[name](volume + h, PARAMETERS)[0]
    down = EQUATIONS[name](volume - h, PARAMETERS)[0]
    pressure = EQUATIONS[name](volume, PARAMETERS)[1]
    np.testing.assert_allclose(pressure, -(up - down) / (2 * h), atol=1e-9)


@pytest.mark.parametrize("name", EQUATIONS)
def test_equation__parameters_are_k_and_its_derivative(name):
    """K = -V dP/dV and K' = dK/dP at V0, by finite differences of the pressure."""
    _, v0, k, kp = PARAMETERS
    h = 1.0
    p = [EQUATIONS[name](np.array([v0 + s * h]), PARAMETERS)[1][0] for s in (-2, -1, 0, 1, 2)]
    moduli = [-(v0 + s * h) * (p[s + 3] - p[s + 1]) / (2 * h) for s in (-1, 0, 1)]
    assert moduli[1] == pytest.approx(k, rel=1e-5)
    assert (moduli[2] - moduli[0]) / (p[3] - p[1]) == pytest.approx(kp, rel=1e-3)


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("with_pressure", [True, False])
def test_fit__finds_what_made_the_data(name, with_pressure):
    volume = PARAMETERS[1] * (1 + 0.005 * np.arange(-4, 5)) + 3.0
    energy, pressure = EQUATIONS[name](volume, PARAMETERS)
    found = fit(volume, energy, pressure if with_pressure else None, equation=name)
    assert found.volume == pytest.approx(2300.0, rel=1e-7)
    assert found.bulk_modulus == pytest.approx(35.0, rel=1e-5)
    assert found.derivative == pytest.approx(5.0, rel=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [("Birch-Murnaghan", "birchmurnaghan"),
                                              ("Vinet", "vinet")])  # fmt: skip
def test_fit__agrees_with_ase(ours, theirs):
    volume, energy = [], []
    for x in np.linspace(0.97, 1.03, 9):
        atoms = bulk("Cu", a=3.59 * x)
        atoms.calc = EMT()
        volume.append(atoms.get_volume())
        energy.append(atoms.get_potential_energy())
    v0, _, modulus = EquationOfState(volume, energy, eos=theirs).fit()
    found = fit(np.array(volume), np.array(energy), equation=ours)
    assert found.volume == pytest.approx(v0, rel=1e-5)
    assert found.bulk_modulus == pytest.approx(modulus / units.GPa, rel=1e-3)


def test_windows__shrink_until_the_equations_agree():
    """Wide data of a stiffening crystal: the polynomial fails there and not in the middle."""
    volume = np.linspace(0.8, 1.25, 31) * 2300.0
    energy, pressure = EQUATIONS["Vinet"](volume, PARAMETERS)
    found = fit_windows(volume, energy, pressure, tolerance=0.005)
    assert found.tried[0][1] > 0.005
    assert found.agreed
    assert found.n_volumes < 31
    assert found.bulk_modulus == pytest.approx(35.0, rel=0.01)
    tight = fit_windows(volume, energy, pressure, tolerance=1e-9)
    assert not tight.agreed
    assert tight.spread == min(spread for _, spread in tight.tried)


def test_windows__shrink_where_the_modulus_changes_fast():
    """K falls to a third on the way down, as S_ld's does: the three agree, and are wrong."""
    volume = 2265.0 * (1 + 0.005 * np.arange(-4, 5))
    x = volume / 2265.0 - 1.0
    # K(V) = 8 GPa (1 + 12 x - 1000 x^2) for x < 0: what lies at V0 is known.
    bend = np.where(x < 0, 1000.0, 0.0)
    scale = 8.0 * units.GPa
    pressure = -scale * (x + 6 * x**2 - bend * x**3 / 3)
    energy = -945.0 + 2265.0 * scale * (x**2 / 2 + 2 * x**3 - bend * x**4 / 12)
    found = fit_windows(volume, energy, pressure)
    assert found.tried[0][1] < 0.02  # the equations agree on the whole window
    assert found.n_volumes < 9
    wide = [fit(volume, energy, pressure, equation=name).bulk_modulus for name in EQUATIONS]
    assert abs(np.mean(wide) - 8.0) > 0.3
    assert found.bulk_modulus == pytest.approx(8.0, rel=0.03)


def test_windows__refuse_a_grid_beside_the_minimum():
    volume = np.linspace(2310, 2500, 9)
    energy, pressure = EQUATIONS["Vinet"](volume, PARAMETERS)
    with pytest.raises(DataError, match=r"do not enclose the minimum, which lies at smaller"):
        fit_windows(volume, energy, pressure)
    with pytest.raises(DataError, match="4 volumes"):
        fit_windows(volume[:4], energy[:4])
