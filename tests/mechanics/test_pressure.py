"""P(V): errors of correlated series, curves with intervals, and a crystal at 10 K."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ase import units

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
from mofal.mechanics.convergence import converged, influence, needing
from mofal.mechanics.curve import Record, _save
from mofal.mechanics.fluctuations import volume_fluctuations
from mofal.mechanics.plots import plot_pressure
from mofal.mechanics.pressure_curve import (
    PressurePoints,
    at_zero,
    describe_pressure,
    mean_and_error,
    pressure_table,
    smooth,
)

from .crystals import argon, fcc_argon, quasi_harmonic

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


def test_fit__its_intervals_hold_where_a_parabola_is_all_there_is():
    """Eight points with 12 MPa on a parabola: K and V0 scatter no further than they claim."""
    volume, ensemble = np.linspace(8900, 9300, 8), ["nvst", "npt"] * 4
    inside, moduli, widths = [], [], []
    for seed in range(20):
        points = points_on(collapse, volume, ensemble, seed=seed, error=0.012)
        found = fit_pressure(points, draws=100)
        k, v = found.bulk_modulus, found.equilibrium_volume
        inside.append([k.low <= 36.0 <= k.high, v.low <= 9100.0 <= v.high])
        moduli.append(k.value)
        widths.append(k.high - k.low)
    assert (np.mean(inside, axis=0) > 0.6).all()
    assert np.mean(widths) > 0.35 * 4 * np.std(moduli)


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
    drawn = plot_pressure({"S": (points, found)}, title="", unknown={"S": volume[:2]}).axes[0]
    told = [text.get_text() for text in drawn.get_legend().get_texts()]
    assert told[0].startswith("S: P_max > ")
    assert told[1:] == ["fixed volume", "not learnt"]
    with pytest.raises(DataError, match="3 points"):
        fit_pressure(points_on(collapse, volume[:3], ["nvst"] * 3))


@pytest.mark.slow
@pytest.mark.physics
def test_pressure__argon_has_its_quasi_harmonic_curve_in_both_ensembles(tmp_path):
    """(N, V, σa = 0, T) and NPT against lattice dynamics of the same cell at T* = 0.017."""
    settings = replace(SHORT, temperature_K=2.0, pressures_GPa=(-0.04, 0.0),
                       volumes=(0.97, 0.99, 1.01, 1.03), length_fs=8000.0, timestep_fs=20.0,
                       both_ways=False)  # fmt: skip
    one = pressure_of(tmp_path, settings)
    run_serial(one)
    points, lost = one.gather()
    assert not lost
    assert one.complete
    squeezed = Record.load(one.starts()[0.97, False].output)
    assert squeezed.status == "relaxed"
    assert squeezed.volume == pytest.approx(0.97 * one.curve.minimum_volume, rel=1e-8)
    volume, modulus = quasi_harmonic(argon, 9.0, 5.3, 2, 2.0)
    npt = np.array([e == "npt" for e in points.ensemble])
    held = PressurePoints.of(
        [
            {k: getattr(points, k)[n] for k in ("volume", "volume_error", "pressure",
                                                "pressure_error")}
            | {"name": points.names[n], "ensemble": "nvst", "drift": 0.0}
            for n in np.flatnonzero(~npt)
        ]
    )  # fmt: skip
    found = fit_pressure(held, draws=100)
    assert found.bulk_modulus.value == pytest.approx(modulus, rel=0.01)
    assert found.equilibrium_volume.value == pytest.approx(volume, rel=3e-4)
    assert found.bound
    # The NPT points took no part in that curve: they lie on it.
    on_curve = np.interp(points.volume[npt], found.volume, found.pressure)
    errors = modulus / volume * points.volume_error[npt]
    assert errors.max() < 0.003
    assert (np.abs(on_curve - points.pressure[npt]) < 4 * errors).all()
    calm = points.names.index("npt+0.000")
    assert points.regression_modulus[calm] == pytest.approx(modulus, rel=0.05)
    fluctuating = points.fluctuation_modulus[calm], points.fluctuation_modulus_error[calm]
    assert abs(fluctuating[0] - modulus) < 4 * fluctuating[1]
    assert np.nanmax(points.drift) < 1e-4
    assert fit_pressure(points, draws=60).bulk_modulus.value == pytest.approx(modulus, rel=0.02)


def pressure_of(directory, settings, repeat=2):
    curve = Curve(
        from_atoms([fcc_argon(repeat)], system="argon"),
        reference_level("ase:tests.mechanics.crystals:make_lattice"),
        directory=directory,
        settings=CurveSettings(criteria=Criteria(max_force=1e-4, max_stress_MPa=0.1)),
    )
    run_serial(Minimum(curve))
    return PressureVolume(curve, settings)


def test_pressure__runs_go_on_until_it_is_converged(tmp_path):
    """Short runs at 20 K: more of the points that weigh most, to a limit; started again, none."""
    settings = replace(SHORT, temperature_K=20.0, pressures_GPa=(0.0,),
                       volumes=(0.98, 1.0, 1.02, 1.04), length_fs=400.0, blocks=4,
                       until_converged=True, max_runs=4, pressure_change_GPa=5e-4,
                       modulus_change_GPa=0.02)  # fmt: skip
    one = pressure_of(tmp_path, settings)
    planned = len(one.pieces())
    lines = []
    run_serial(one, lines.append)
    told = [line for line in lines if "not converged" in line]
    assert told
    points, _ = one.gather()
    runs = dict(zip(points.names, points.runs))
    # Two ways at each volume but where a way ends.
    assert runs["nvst1.0200"] >= 2
    assert np.isfinite(points.hysteresis[points.names.index("nvst1.0200")])
    assert np.isnan(points.hysteresis[points.names.index("npt+0.000")])
    assert len(one.pieces()) == planned + sum(one.more().values())
    assert max(runs.values()) <= 4
    assert converged(one)[0] or "4 runs: raise" in told[-1]
    for name in one.more():
        assert f"more of {name}" in "\n".join(told)
    before = one.more()
    again = PressureVolume(one.curve, replace(settings, until_converged=False, max_runs=1))
    assert again.key == one.key
    assert again.more() == before
    assert again.extend() == []
    run_serial(one, lines.append)
    assert one.more() == before


def test_influence__is_the_spread_that_the_errors_make():
    """Against curves through points that are drawn with their errors, all at once."""
    volume = np.linspace(8750, 9300, 12)
    points = points_on(collapse, volume, ["nvst"] * 12, error=0.002)
    loud = replace(points, pressure_error=np.where(np.arange(12) == 7, 0.02, 0.002))
    kernel = smooth(loud).process.kernel_
    rng = np.random.default_rng(1)
    moduli = []
    for _ in range(300):
        noise = loud.pressure_error * rng.standard_normal(12)
        curve = smooth(replace(loud, pressure=loud.pressure + noise), kernel=kernel)
        moduli.append(at_zero(curve.volume, curve.curve)[1])
    expected = np.sqrt((influence(loud)[:, 0] ** 2).sum())
    assert np.std(moduli) == pytest.approx(expected, rel=0.15)
    assert needing(loud, modulus=True, pressure=False)[0][0] == loud.names[7]
    assert needing(loud, modulus=False, pressure=False) == []


def test_fluctuations__of_a_gas_of_known_compliance():
    """Volumes and pressures drawn from a Gaussian with <δV²> = kT V / K and <δV δP> = -kT."""
    kT = units.kB * 300.0 / units.GPa
    modulus, mean, n = 30.0, 9000.0, 40_000
    rng = np.random.default_rng(3)
    spread = np.sqrt(kT * mean / modulus)
    found = []
    for _ in range(20):
        v = mean + spread * rng.standard_normal(n)
        p = -modulus / mean * (v - mean) + 0.1 * spread * modulus / mean * rng.standard_normal(n)
        found.append(volume_fluctuations([v[: n // 2], v[n // 2 :]], [p[: n // 2], p[n // 2 :]],
                                         temperature_K=300.0))  # fmt: skip
    found = np.array(found)
    assert found[:, 0].mean() == pytest.approx(modulus, rel=0.01)
    assert found[:, 2].mean() == pytest.approx(modulus, rel=0.003)
    for k in (0, 2):
        assert np.sqrt((found[:, k + 1] ** 2).mean()) == pytest.approx(found[:, k].std(), rel=0.4)
    assert found[:, 3].mean() < 0.3 * found[:, 1].mean()


def test_pressure__points_added_later_leave_the_runs_of_others_where_they_are(tmp_path):
    """What a run begins from decides: volumes passed on the way to it, and nothing beside."""
    curve = Curve(
        from_atoms([fcc_argon(1)], system="argon"),
        reference_level("ase:tests.mechanics.crystals:make_lattice"),
        directory=tmp_path,
    )

    def records(**more):
        one = PressureVolume(curve, replace(SHORT, **more))
        return {(n, k): one.record(n, k) for n, e, v in one.points() for k, _ in one.runs(n, e, v)}

    def moved(**more):
        other = records(**more)
        return {key for key in first if first[key] != other.get(key)}

    first = records(volumes=(0.96, 0.98, 1.0, 1.02))
    back = {("nvst1.0000", 1), ("nvst0.9800", 1)}
    assert back < first.keys()
    assert not moved(volumes=(0.96, 0.98, 1.0, 1.02, 1.04), pressures_GPa=(-0.05, 0.0, 0.05))
    # Another end: every way back begins there.
    assert moved(volumes=(0.94, 0.96, 0.98, 1.0, 1.02)) == back
    # The way to 0.96 leads over 0.97 now.
    assert moved(volumes=(0.96, 0.97, 0.98, 1.0, 1.02)) == back | {("nvst0.9600", 0)}
    assert set(first.values()).isdisjoint(records(barostat_fs=400.0).values())
    assert not moved(volumes=(0.96, 0.98, 1.0, 1.02), draws=50, blocks=5, runs=2)
    # Names show three digits; runs are told apart by all.
    near = [records(pressures_GPa=(p,))["npt+0.123", 0] for p in (0.1226, 0.1234)]
    assert near[0] != near[1]


def test_pressure__a_run_that_leaves_the_crystal_is_told(tmp_path):
    """A run that exploded is named, and tried again on demand; the other points go on."""
    settings = replace(SHORT, length_fs=400.0, blocks=4, both_ways=False)
    one = pressure_of(tmp_path, settings)
    pieces = [p for p in one.pieces() if p.kind == "walk"]
    _save(pieces[0].output, {"status": "exploded", "reason": "the cell", "volume": [1.0]})
    run_serial(one)
    points, lost = one.gather()
    assert len(points.volume) == 5
    assert lost == ["npt-0.050-0: exploded: the cell"]
    assert one.forget_failed() == 1
    assert not one.complete


def test_pressure__a_start_that_fails_is_told_and_tried_again(tmp_path):
    """What begins at a volume whose relaxation left the crystal is not begun."""
    settings = replace(SHORT, length_fs=400.0, blocks=4, both_ways=False)
    one = pressure_of(tmp_path, settings)
    start = one.starts()[0.96, False].output
    begin = Record.load(one.curve.point("minimum"))
    replace(begin, status="bond_broken", reason="a bond").save(start)
    run_serial(one)
    points, lost = one.gather()
    assert len(points.volume) == 5
    assert lost[0] == "start at 0.9600 V0: bond_broken: a bond"
    assert "nvst0.9600-0: not_begun" in lost[1]
    assert one.forget_failed() == 2  # the start, and what was to begin from it
    run_serial(one)
    assert one.gather()[1] == []


@pytest.mark.parametrize(
    "mistake",
    [
        {"pressures_GPa": (), "volumes": (1.0,)},
        {"volumes": (0.2, 0.3, 0.4, 0.45)},
        {"volumes": (0.96, 0.98, 0.98, 1.0, 1.02)},
        {"pressures_GPa": (0.1, 0.1001)},
        {"runs": 0},
        {"runs": 3, "max_runs": 2, "until_converged": True},
        {"length_fs": 100.0},
        {"temperature_K": 0.0},
    ],
)
def test_settings__refuse_what_cannot_be_meant(mistake):
    with pytest.raises(ConfigError):
        PressureSettings(**mistake)
