"""Elastic constants against lattice sums, against E(V), and against what tensors must do."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from scipy.spatial.transform import Rotation

from mofal.data import from_atoms
from mofal.errors import ConfigError
from mofal.mechanics import (
    Criteria,
    Curve,
    CurveSettings,
    Elastic,
    ElasticConstants,
    ElasticSettings,
    Minimum,
    reference_level,
    run_serial,
)
from mofal.mechanics.elastic import (
    describe_elastic,
    elastic_table,
    reuss_moduli,
    symmetrise,
    to_tensor,
    voigt_moduli,
)

from .crystals import argon, fcc_argon, fcc_born, fcc_elasticity

ARGON_LEVEL = "ase:tests.mechanics.crystals:make_argon"
TIGHT = Criteria(max_force=1e-5, max_stress_MPa=0.01)


def elastic_of(atoms, level, directory, **settings):
    curve = Curve(
        from_atoms([atoms], system="crystal"),
        reference_level(level),
        directory=directory,
        settings=CurveSettings(criteria=TIGHT),
    )
    run_serial(Minimum(curve))
    one = Elastic(
        "crystal",
        curve.point("minimum"),
        curve.level,
        directory=directory,
        settings=ElasticSettings(criteria=TIGHT, **settings),
    )
    run_serial(one)
    return one


def cubic(c11, c12, c44):
    c = np.diag([c11] * 3 + [c44] * 3).astype(float)
    c[:3, :3] += c12 * (1 - np.eye(3))
    return c


def test_elastic__lennard_jones_has_its_lattice_sums(tmp_path):
    """Born's formula on the lattice: C_12 = C_44 (Cauchy), K = (C_11 + 2 C_12) / 3."""
    found = elastic_of(fcc_argon(), ARGON_LEVEL, tmp_path).gather()
    _, modulus, c11, c12, c44 = fcc_elasticity(argon, 9.0, 5.3)
    np.testing.assert_allclose(found.constants, cubic(c11, c12, c44), atol=0.003 * c11)
    assert found.reuss[0] == pytest.approx(modulus, rel=0.003)
    assert found.voigt[0] == pytest.approx(found.reuss[0], rel=1e-6)
    assert found.stable
    assert found.nonlinearity < 0.02
    assert "m-3m" in found.symmetry
    table = elastic_table(found)
    assert table["elastic_constants"].attrs["units"] == "GPa"
    text = "\n".join(describe_elastic("argon", found, modulus))
    assert "agrees with K of E(V)" in text
    assert "DIFFERS" in "\n".join(describe_elastic("argon", found, 1.1 * modulus))


def test_elastic__under_pressure_slopes_are_stress_strain_coefficients(tmp_path):
    """B_11 = C_11 - P, B_12 = C_12 + P, B_44 = C_44 - P (Wallace, 1972), from lattice sums."""
    start = fcc_argon()
    volumes = start.get_volume() * np.array([0.86, 0.87, 0.88, 0.89, 0.9])
    curve = Curve(
        from_atoms([start], system="crystal"),
        reference_level(ARGON_LEVEL),
        directory=tmp_path,
        settings=CurveSettings(grid=tuple(volumes), criteria=TIGHT, both_ways=False),
    )
    run_serial(curve)
    one = Elastic("crystal", curve.point("out-004"), curve.level, directory=tmp_path,
                  settings=ElasticSettings(criteria=TIGHT))  # fmt: skip
    run_serial(one)
    found = one.gather()
    a = volumes[0] ** (1 / 3)
    pressure, c11, c12, c44 = fcc_born(argon, 9.0, a)
    assert found.pressure == pytest.approx(pressure, rel=1e-3)
    assert pressure > 0.3
    expected = cubic(c11 - pressure, c12 + pressure, c44 - pressure)
    np.testing.assert_allclose(found.constants, expected, atol=0.003 * c11)
    h = 1e-3
    slope = (fcc_born(argon, 9.0, a + h)[0] - fcc_born(argon, 9.0, a - h)[0]) / (2 * h)
    assert found.reuss[0] == pytest.approx(-a / 3 * slope, rel=0.003)
    assert "B_ij at" in describe_elastic("argon", found, None)[0]


def test_elastic__hcp_is_hexagonal_and_its_ions_relax(tmp_path):
    """C_66 = (C_11 - C_12) / 2, C_11 = C_22, without symmetry being put in; ions do move."""
    one = elastic_of(bulk("Ar", "hcp", a=3.75, c=6.1), ARGON_LEVEL, tmp_path)
    found = one.gather()
    c = found.raw
    assert c[0, 0] == pytest.approx(c[1, 1], rel=0.01)
    assert c[5, 5] == pytest.approx((c[0, 0] - c[0, 1]) / 2, rel=0.02)
    assert c[3, 3] == pytest.approx(c[4, 4], rel=0.01)
    np.testing.assert_allclose(found.constants, c, atol=0.02 * c[0, 0])
    from mofal.mechanics.curve import Record

    strained = Record.load(one.record(5, 0.005))
    assert strained.force_calls > 2


def test_symmetrise__is_a_projection_that_keeps_what_is_symmetric():
    rng = np.random.default_rng(0)
    c = rng.standard_normal((6, 6))
    c = cubic(10, 4, 3) + 0.1 * (c + c.T)
    turns = Rotation.create_group("O").as_matrix()
    once = symmetrise(c, turns)
    np.testing.assert_allclose(symmetrise(once, turns), once, atol=1e-12)
    np.testing.assert_allclose(once, cubic(once[0, 0], once[0, 1], once[3, 3]), atol=1e-12)
    np.testing.assert_allclose(symmetrise(c, np.eye(3)[None]), c, atol=1e-12)
    assert voigt_moduli(once)[0] == pytest.approx(voigt_moduli(c)[0])  # an invariant


def test_averages__of_cubic_crystals_are_the_textbook_s():
    """Hill, Proc. Phys. Soc. A 65, 349 (1952), for cubic crystals."""
    c11, c12, c44 = 168.0, 121.0, 75.0  # copper
    found = ElasticConstants(cubic(c11, c12, c44), cubic(c11, c12, c44), 0.0, 0.0, 0.0, "m-3m")
    assert voigt_moduli(found.constants) == pytest.approx(
        ((c11 + 2 * c12) / 3, (c11 - c12 + 3 * c44) / 5)
    )
    assert reuss_moduli(found.constants) == pytest.approx(
        ((c11 + 2 * c12) / 3, 5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12)))
    )
    s11 = (c11 + c12) / ((c11 - c12) * (c11 + 2 * c12))
    assert found.young([1, 0, 0]) == pytest.approx(1 / s11)
    np.testing.assert_allclose(
        found.modes[0], sorted([c11 + 2 * c12, c11 - c12, c11 - c12, 2 * c44, 2 * c44, 2 * c44])
    )


def test_modes__do_not_depend_on_the_axes_and_name_what_is_unstable():
    c = cubic(10.0, 11.0, 3.0)
    turn = Rotation.from_rotvec([0.3, -0.4, 0.7]).as_matrix()
    full = np.einsum("ai,bj,ck,dl,ijkl->abcd", turn, turn, turn, turn, to_tensor(c))
    from mofal.mechanics.elastic import VOIGT

    turned = np.array([[full[i, j, k, m] for k, m in VOIGT] for i, j in VOIGT])
    plain, other = (ElasticConstants(x, x, 0.0, 0.0, 0.0, "") for x in (c, turned))
    np.testing.assert_allclose(plain.modes[0], other.modes[0], atol=1e-9)
    assert not plain.stable
    assert plain.softest.startswith("-1.00 GPa along")
    assert np.isnan(plain.reuss[0])
    assert "UNSTABLE" in describe_elastic("x", plain, None)[-1]


def test_elastic__a_strain_that_fails_is_named_and_tried_again(tmp_path):
    one = elastic_of(fcc_argon(), ARGON_LEVEL, tmp_path, amplitudes=(0.004,))
    from dataclasses import replace

    from mofal.mechanics.curve import Record

    path = one.record(2, 0.004)
    replace(Record.load(path), status="crashed", reason="no").save(tmp_path / "bad.npz")
    path.unlink()
    (tmp_path / "bad.npz").rename(path)
    with pytest.raises(ConfigError, match="crashed: no"):
        one.gather()
    assert one.forget_failed() == 1
    assert not one.complete


@pytest.mark.parametrize("amplitudes", [(), (0.0,), (0.01, 0.01), (0.2,)])
def test_settings__refuse_what_cannot_be_meant(amplitudes):
    with pytest.raises(ConfigError):
        ElasticSettings(amplitudes=amplitudes)
