"""Figures show what they are given, with labels and units, and touch nothing global."""

from __future__ import annotations

import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import xarray as xr

from mofal.analysis import plots
from mofal.analysis.data import HeldOut
from mofal.analysis.metrics import error_table, force_errors
from mofal.errors import DataError

from .material import features, held_out, report_data, walks


def texts(figure):
    figure.canvas.draw()
    return [t.get_text() for t in figure.findobj(matplotlib.text.Text) if t.get_text()]


def test_plots__touch_nothing_global():
    before = dict(matplotlib.rcParams)
    plots.plot_learning_curve(report_data().cycles)
    assert dict(matplotlib.rcParams) == before
    script = (
        "import sys, mofal.analysis, mofal.dynamics; "
        "heavy = {'matplotlib', 'torch', 'xarray', 'jinja2', 'ase', 'dask'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules); "
        "from mofal.analysis import plots, pictures, report; "
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_plot_learning_curve__values():
    figure = plots.plot_learning_curve(report_data().cycles)
    (ax,) = figure.axes
    lines = {line.get_label(): line for line in ax.lines}
    assert lines["MAE"].get_xdata().tolist() == [1, 2]
    assert lines["MAE"].get_ydata().tolist() == [410.0, 190.0]
    assert ax.get_ylabel() == "force error (meV/Å)"
    assert ax.get_yscale() == "log"


def test_plot_learning_curve__held_out_and_control():
    held = held_out()
    figure = plots.plot_learning_curve([], {"S_ld": held})
    (ax,) = figure.axes
    line = next(line for line in ax.lines if line.get_label() == "S_ld, formate")
    assert line.get_xdata().tolist() == [0, 1, 2]
    expected = [
        1000 * float(error_table(held.labels, p, subsets=held.subsets)["mae"].sel(subset="formate"))
        for p in (held.by_cycle[0], held.by_cycle[1], held.by_cycle[2])
    ]
    np.testing.assert_allclose(line.get_ydata(), expected)
    assert "control" in texts(figure)


def test_plot_learning_curve__nothing_yet():
    with pytest.raises(DataError, match="no learning curve"):
        plots.plot_learning_curve([{"cycle": 0, "labelled": 20}])


def test_plot_learning_curve__one_cycle():
    figure = plots.plot_learning_curve(report_data().cycles[:2])
    low, high = figure.axes[0].get_ylim()
    assert low < 410 < 1500 < high
    figure.canvas.draw()


def test_plot_force_errors__bars_are_the_table():
    held = held_out()
    figure = plots.plot_force_errors({"S_ld": held})
    left = figure.axes[0]
    assert [t.get_text() for t in left.get_xticklabels()] == ["formate", "all", "H", "C", "O", "Zr"]
    bars = {c.get_label(): [p.get_height() for p in c.patches] for c in left.containers}
    assert list(bars) == ["seed", "control", "campaign"]
    table = error_table(held.labels, held.predictions["control"], subsets=held.subsets)
    order = ["formate", "all", "H", "C", "O", "Zr"]
    np.testing.assert_allclose(bars["control"], 1000 * table["mae"].sel(subset=order))


def test_plot_force_errors__nobody_judged():
    with pytest.raises(DataError, match="no model has been judged"):
        plots.plot_force_errors({"S_ld": HeldOut(labels=held_out().labels)})


def test_plot_parity__says_the_error():
    held = held_out()
    figure = plots.plot_parity(held, system="S_ld")
    errors = force_errors(held.labels, held.predictions["campaign"]).values
    assert f"MAE {1000 * np.abs(errors).mean():.0f} meV/Å" in texts(figure)
    assert "reference force (eV/Å)" in texts(figure)


def test_plot_feature_map__panels():
    figure = plots.plot_feature_map(features(1, n=300), features(2, n=40, fresh=True))
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert titles == ["H", "C", "O", "Zr"]
    dots = figure.axes[1].lines[-1]
    assert len(dots.get_xdata()) == 80


def test_plot_feature_map__only_cores_and_unseen_elements():
    new = features(2, n=40)
    new["region"] = ("atom", np.arange(new.sizes["atom"]) % 2)
    new["numbers"] = xr.where(new["numbers"] == 40, 72, new["numbers"])
    training = features(1, n=300)
    figure = plots.plot_feature_map(training, new)
    assert len(figure.axes[1].lines[-1].get_xdata()) == 40
    assert any(text.startswith("not in the training data\n") for text in texts(figure))
    assert "Hf" in [ax.get_title(loc="left") for ax in figure.axes]


def test_principal_plane__shows_what_is_new():
    """Few new atoms off in one direction: that direction is in the picture."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(5000, 6)) * np.array([3, 2, 0.1, 0.1, 0.1, 0.1])
    fresh = known[:10] + np.array([0, 0, 0, 6.0, 0, 0])
    plane, centre = plots._principal_plane(known, fresh)
    gap = ((fresh - centre) @ plane).mean(axis=0) - ((known - centre) @ plane).mean(axis=0)
    assert np.linalg.norm(gap) > 4.0
    np.testing.assert_allclose(plane.T @ plane, np.identity(2), atol=1e-12)


def test_smooth_density__mass_levels():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20000, 2))
    density, x, y = plots._smooth_density(points, np.array([-5.0, -5.0]), np.array([5.0, 5.0]))
    half = plots._mass_levels(density, (0.5,))[0]
    inside = density[np.searchsorted(x, points[:, 0]) - 1, np.searchsorted(y, points[:, 1]) - 1]
    assert (inside > half).mean() == pytest.approx(0.5, abs=0.03)


def test_plot_likelihood_errors__correlation_is_written():
    held = held_out()
    errors = force_errors(held.labels, held.predictions["seed"])
    likelihood = held.scores["seed"]["log_likelihood"].values.copy()
    numbers = held.labels["numbers"].values
    likelihood[numbers == 40] = -np.inf
    figure = plots.plot_likelihood_errors(
        errors, likelihood, numbers, highlight=held.defect, title="seed"
    )
    found = texts(figure)
    size = np.linalg.norm(errors, axis=1)
    r = np.corrcoef(size[numbers == 8], likelihood[numbers == 8])[0, 1]
    assert f"r = {r:.2f},  R² = {r * r:.2f}" in found
    assert "unseen" in found
    assert sum(text.startswith("r = ") for text in found) == 3


def test_plot_traces__exploded_walks_are_marked():
    table, traces = walks()
    figure = plots.plot_traces(traces, table)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    assert "pressure (GPa)" in texts(figure)
    plain = plots.plot_traces(traces)
    assert "pressure (GPa)" not in texts(plain)
    with pytest.raises(DataError, match="no walk has a trace"):
        plots.plot_traces([])
