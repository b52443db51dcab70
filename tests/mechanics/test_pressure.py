"""P(V): errors of correlated series, curves with intervals, and a crystal at 10 K."""

from __future__ import annotations

import numpy as np
import pytest

from mofal.data import from_atoms
from mofal.errors import ConfigError, DataError
from mofal.mechanics import (
    Criteria,
    Curve,
    CurveSettings,
    Minimum,
    PressureSettings,
    PressureVolume,
    fit_pressure,
    reference_level,
    run_serial,
)
from mofal.mechanics.curve import Record
from mofal.mechanics.pressure import (
    PressurePoints,
    converged,
    describe_pressure,
    mean_and_error,
    pressure_table,
)

from .crystals import argon, fcc_argon, fcc_elasticity

SHORT = PressureSettings(
    temperature_K=10.0,
    pressures_GPa=(-0.05, 0.05),
    volumes=(0.96, 0.98, 1.0, 1.02),
    length_fs=2000.0,
    timestep_fs=5.0,
    sample_every=2,
    barostat_fs=300.0,
    draws=100,
)


def test_error__of_a_correlated_series_is_that_of_many_runs():
    """AR(1) with a memory of 20 samples: the stated error is the scatter of independent means."""
    rng = np.random.default_rng(0)
    keep = np.exp(-1 / 20)
    settings = PressureSettings(dropped=0.2, blocks=10)
    means, errors = [], []
    for _ in range(200):
        noise = rng.standard_normal(2500) * np.sqrt(1 - keep**2)
        x = np.empty(2500)
        x[0] = rng.standard_normal()
        for k in range(1, 2500):
            x[k] = keep * x[k - 1] + noise[k]
        mean, error = mean_and_error([x], settings)
        means.append(mean)
        errors.append(error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.2)


def points_on(curve, volume, ensemble, error=0.005, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for v, e in zip(volume, ensemble):
        p = curve(v)
        npt = e == "npt"
        dv = error / abs(curve(v + 0.5) - curve(v - 0.5)) if npt else 0.0
        rows.append(
            {
                "name": e, "ensemble": e,
                "volume": v + (dv * rng.standard_normal() if npt else 0),
                "volume_error": dv if npt else 0.0,
                "pressure": p + (0 if npt else error * rng.standard_normal()),
                "pressure_error": 0.0 if npt else error, "drift": np.nan,
            }
        )  # fmt: skip
    return PressurePoints.of(rows)


def collapse(volume):
    """A crystal of K = 36 GPa at 9100 Å³ that gives way at 8700 Å³ and 1.05 GPa."""
    x = (9100.0 - volume) / 9100.0
    return 36.0 * x - 36.0 / (2 * 400 / 9100) * x**2 + 0.0


def test_fit__finds_k_v0_and_the_largest_pressure_within_its_intervals():
    volume = np.r_[np.linspace(8450, 8850, 17), np.linspace(8900, 9300, 12)]
    ensemble = ["nvst"] * 17 + ["npt"] * 12
    inside = []
    for seed in range(6):
        found = fit_pressure(points_on(collapse, volume, ensemble, seed=seed), draws=150)
        assert not found.bound
        truth = (9100.0, 36.0, collapse(8700.0))
        given = (found.equilibrium_volume, found.bulk_modulus, found.largest_pressure)
        inside.append([i.low - 0.01 <= t <= i.high + 0.01 for t, i in zip(truth, given)])
        assert given[0].value == pytest.approx(9100, abs=8)
        assert given[1].value == pytest.approx(36, abs=2)
        assert given[2].value == pytest.approx(truth[2], abs=0.02)
    assert np.mean(inside) > 0.7


def test_fit__a_maximum_at_the_edge_is_a_lower_bound():
    volume = np.linspace(8750, 9300, 14)
    points = points_on(collapse, volume, ["nvst"] * 14)
    found = fit_pressure(points, draws=60)
    assert found.bound
    text = "\n".join(describe_pressure("S", points, found, temperature_K=300))
    assert "P_max > " in text
    assert "classical nuclei" in text
    table = pressure_table(points, found)
    assert table["pv_pressure"].attrs["units"] == "GPa"
    with pytest.raises(DataError, match="3 points"):
        fit_pressure(points_on(collapse, volume[:3], ["nvst"] * 3))


@pytest.mark.slow
@pytest.mark.physics
def test_pressure__argon_at_10_k_and_its_two_ensembles(tmp_path):
    """NPT and (N, V, σa = 0, T) lie on one curve; K is 8 to 9 % below that at 0 K (classical)."""
    curve = Curve(
        from_atoms([fcc_argon(2)], system="argon"),
        reference_level("ase:tests.mechanics.crystals:make_argon"),
        directory=tmp_path,
        settings=CurveSettings(criteria=Criteria(max_force=1e-4, max_stress_MPa=0.1)),
    )
    run_serial(Minimum(curve))
    one = PressureVolume(curve, SHORT)
    run_serial(one)
    points, lost = one.gather()
    assert not lost
    assert one.complete
    squeezed = Record.load(one.starts()[0.96].output)
    assert squeezed.status == "relaxed"
    assert squeezed.volume == pytest.approx(0.96 * curve.minimum_volume, rel=1e-8)
    found = fit_pressure(points, draws=100)
    a, modulus, *_ = fcc_elasticity(argon, 9.0, 5.3)
    assert found.bulk_modulus.value == pytest.approx(0.915 * modulus, rel=0.12)
    assert 1.0 < found.equilibrium_volume.value / (8 * a**3) < 1.03
    assert found.bound
    on_curve = np.interp(points.volume, found.volume, found.pressure)
    npt = np.array([e == "npt" for e in points.ensemble])
    errors = np.hypot(points.pressure_error, modulus / points.volume * points.volume_error)
    assert (np.abs(on_curve - points.pressure)[npt] < 5 * errors[npt] + 0.005).all()
    assert np.nanmax(points.drift) < 1e-4
    converged(one)


def test_pressure__a_run_that_leaves_the_crystal_is_told(tmp_path):
    """A run that exploded is named, and tried again on demand; the other points go on."""
    from dataclasses import replace

    from mofal.mechanics.curve import _save

    curve = Curve(
        from_atoms([fcc_argon()], system="argon"),
        reference_level("ase:tests.mechanics.crystals:make_argon"),
        directory=tmp_path,
    )
    run_serial(Minimum(curve))
    one = PressureVolume(curve, replace(SHORT, length_fs=400.0, blocks=4))
    pieces = [p for p in one.pieces() if p.kind == "walk"]
    _save(pieces[0].output, {"status": "exploded", "reason": "the cell", "volume": [1.0]})
    run_serial(one)
    points, lost = one.gather()
    assert len(points.volume) == 5
    assert lost == ["npt-0.050-0: exploded: the cell"]
    assert one.forget_failed() == 1
    assert not one.complete


@pytest.mark.parametrize(
    "mistake",
    [
        {"pressures_GPa": (), "volumes": (1.0,)},
        {"volumes": (0.2,) * 5},
        {"runs": 0},
        {"length_fs": 100.0},
        {"temperature_K": 0.0},
    ],
)
def test_settings__refuse_what_cannot_be_meant(mistake):
    with pytest.raises(ConfigError):
        PressureSettings(**mistake)
