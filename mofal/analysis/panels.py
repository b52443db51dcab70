"""Figures of the paper's analysis: learning curves, clouds, cross-validation, likelihood maps.

Each takes what the verbs of `validation` and `clouds` return and gives a Matplotlib Figure; those
with ``ax=`` draw there and return its figure. Forces are shown in meV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.pictures import _structure_panel
from mofal.analysis.plots import _thinned, styled
from mofal.analysis.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    new_figure,
    note,
)
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SETS = (VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY)
"""Colours of data sets and of kinds of atoms, in their order."""
_NAMES = {"mae": "force MAE", "rmse": "force RMSE", "mae_p95": r"force MAE$_{P95}$"}


def _figure_of(ax: Axes | None, width: float, height: float) -> tuple[Figure, Axes]:
    if ax is None:
        figure = new_figure(width, height)
        return figure, figure.subplots()
    found = ax.get_figure()
    if found is None:
        raise DataError("these axes belong to no figure")
    return found, ax  # type: ignore[return-value]


@styled
def plot_subset_curves(
    curves: Mapping[str, xr.Dataset],
    *,
    start: Mapping[str, float] | None = None,
    marks: Mapping[str, NDArray | float] | None = None,
    measure: str = "mae_p95",
    ax: Axes | None = None,
) -> Figure:
    """Error against the number of clusters, a point for each subset (paper, Figure 5.B).

    Parameters
    ----------
    curves
        By name: `learning_curve` of one data set (dims ``n_clusters``, ``subset``; a ``dataset``
        dim of length one is dropped).
    start
        By name: error of the model without clusters, eV/Å, drawn at the left end.
    marks
        By name: error of the periodic model, eV/Å, one or one per seed: dashes at the left axis. A
        point below all of them becomes a diamond.
    measure
        Variable of the curves.
    """
    figure, ax = _figure_of(ax, 4.6, 3.6)
    lowest = min(int(c["n_clusters"].values.min()) for c in curves.values())
    zero = 0.45 * lowest
    for colour, (name, curve) in zip(SETS, curves.items()):
        values = 1000.0 * curve[measure]
        if "dataset" in values.dims:
            values = values.squeeze("dataset")
        values = values.transpose("n_clusters", "subset")
        x = values["n_clusters"].values.astype(float)
        middle = np.nanmedian(values.values, axis=1)
        mark = np.atleast_1d(np.asarray((marks or {}).get(name, np.nan), float)) * 1000.0
        line_x, line_y = x, middle
        if name in (start or {}):
            line_x = np.r_[zero, x]
            line_y = np.r_[1000.0 * (start or {})[name], middle]
            ax.plot(zero, line_y[0], "o", color=colour, ms=5)
        ax.plot(line_x, line_y, "-", color=colour, label=name)
        for k, count in enumerate(x.tolist()):
            for y in values.values[k][np.isfinite(values.values[k])]:
                below = np.isfinite(mark).any() and y <= np.nanmin(mark)
                ax.plot(count, y, "D" if below else "o", color=colour, ms=5, mec="white", mew=0.5)
        for y in mark[np.isfinite(mark)]:
            ax.plot([0, 0.05], [y, y], color=colour, lw=2.5, transform=ax.get_yaxis_transform())
    ax.set(xscale="log", yscale="log")
    counts = sorted({int(n) for c in curves.values() for n in c["n_clusters"].values})
    ticks = [zero, *counts] if start else counts
    ax.set_xticks(ticks, ["0", *map(str, counts)] if start else [str(n) for n in counts])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    shown: list[float] = []
    for steps in ((1, 2, 5), (1, 2, 3, 4, 5, 7)):  # two ticks alone would look like a linear axis
        if len(shown) < 4:
            shown = [s * 10.0**e for e in range(-1, 5) for s in steps]
            shown = [s for s in shown if low <= s <= high]
    if len(shown) < 2:  # a narrow range between round numbers
        shown = [float(f"{s:.2g}") for s in np.geomspace(low, high, 5)[1:4]]
    ax.set_yticks(shown, [f"{s:g}" for s in shown])
    ax.set_ylim(low, high)
    ax.set_xlabel("clusters N")
    ax.set_ylabel(f"{_NAMES.get(measure, measure)} (meV/Å)")
    ax.legend(loc="upper right")
    if marks:
        ax.set_title("dashes: periodic models; diamonds: below them", fontsize=8.5, weight="normal")
    return figure


@styled
def plot_cross_validation(
    table: xr.Dataset, *, measure: str = "mae_p95", ax: Axes | None = None
) -> Figure:
    """Every model (rows) on every set (columns), number and colour (paper, Table SI.4).

    Parameters
    ----------
    table
        Of `cross_validation`.
    measure
        One of its variables; energies are shown in meV per atom.
    """
    from matplotlib.colors import LogNorm

    rows, columns = table.sizes["model"], table.sizes["dataset"]
    figure, ax = _figure_of(ax, 1.6 + 0.85 * columns, 0.9 + 0.36 * rows)
    values = 1000.0 * table[measure].transpose("model", "dataset").values
    size = np.abs(values)
    fine = size[np.isfinite(size) & (size > 0)]
    low, high = (fine.min(), fine.max()) if len(fine) else (1.0, 10.0)
    norm = LogNorm(low, max(high, 1.01 * low))
    ax.imshow(np.maximum(size, low), norm=norm, cmap="YlOrRd", aspect="auto", alpha=0.75)
    for i in range(rows):
        for j in range(columns):
            value = values[i, j]
            text = (
                "–"
                if not np.isfinite(value)
                else f"{value:.0f}"
                if abs(value) >= 10
                else f"{value:.1f}"
            )
            dark = np.isfinite(value) and norm(size[i, j]) > 0.75
            ax.text(j, i, text, ha="center", va="center", color="white" if dark else DARK)
    ax.set_xticks(range(columns), [str(d) for d in table["dataset"].values])
    ax.set_yticks(range(rows), [str(m) for m in table["model"].values])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    unit = "meV/atom" if measure.startswith("energy") else "meV/Å"
    ax.set_title(f"{table[measure].attrs.get('long_name', measure)} ({unit})")
    return figure


@styled
def plot_feature_clouds(
    clouds: xr.Dataset, *, new_kind: str = "", names: Mapping[str, str] | None = None
) -> Figure:
    """One panel for each set, all on one scale, points coloured by kind (paper, Figure 4).

    Parameters
    ----------
    clouds
        Of `feature_clouds`.
    new_kind
        A kind to be drawn above all others, in red.
    names
        What to call kinds.
    """
    from matplotlib.lines import Line2D

    kinds = [str(k) for k in clouds["kind_name"].values]
    order = [k for k in kinds if k != new_kind]
    colours = dict(zip(order, (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)))
    if new_kind in kinds:
        order.append(new_kind)
        colours[new_kind] = VERMILLION
    n = clouds.sizes["cloud"]
    figure = new_figure(2.7 * n + 0.2, 3.3)
    axes = figure.subplots(1, n, squeeze=False)[0]
    panel, kind = clouds["panel"].values, clouds["kind"].values.astype(object).astype(str)
    x, y = clouds["x"].values, clouds["y"].values
    # One width for all panels: how far training spreads the atoms is part of the figure.
    middles, halves = [], []
    for k in range(n):
        mine = panel == k
        ends = [(v[mine].min(), v[mine].max()) for v in (x, y)]
        middles.append([0.5 * (low + high) for low, high in ends])
        halves.append([0.56 * (high - low) for low, high in ends])
    wide, tall = np.maximum(np.max(halves, axis=0), 1e-9)
    for k, (ax, (a, b)) in enumerate(zip(axes, middles)):
        for name in order:
            mine = (panel == k) & (kind == name)
            few = _thinned(x[mine], y[mine], most=800)
            ax.plot(*few, ".", color=colours.get(name, GREY), ms=3.5, mew=0, alpha=0.6)
        ax.set(xlim=(a - wide, a + wide), ylim=(b - 1.25 * tall, b + tall))
        ax.set(xticks=[], yticks=[], xlabel="principal axis 1")
        ax.set_title(str(clouds["cloud"].values[k]))
        note(
            ax,
            f"purity {float(clouds['purity'][k]):.2f}, "
            f"silhouette {float(clouds['silhouette'][k]):.2f}",
            where="lower left",
        )
    axes[0].set_ylabel("principal axis 2")
    handles = [
        Line2D([], [], marker="o", ls="", color=colours.get(k, GREY), label=(names or {}).get(k, k))
        for k in order
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


@styled
def plot_likelihood_maps(
    maps: Mapping[str, xr.Dataset], structures: Mapping[str, xr.Dataset], *, element: str = "O"
) -> Figure:
    """Per-atom error, per-atom log-likelihood, and one against the other (paper, Figure SI.3).

    Parameters
    ----------
    maps
        Of `likelihood_maps`, by name; a column each.
    structures
        By the same names: frames, whose first is drawn.
    element
        Whose atoms the scatter shows.
    """
    from ase.data import atomic_numbers

    figure = new_figure(3.6 * len(maps), 8.2)
    grid = figure.subplots(3, len(maps), squeeze=False)
    top = max(float(np.nanquantile(one["mae_p"].values, 0.995)) for one in maps.values()) * 1000.0
    seen = [one["log_likelihood"].values for one in maps.values()]
    finite = np.concatenate([v[np.isfinite(v)] for v in seen])
    span = float(np.quantile(finite, 0.01)), float(np.quantile(finite, 0.99))
    low = min(float(np.nanmin(one["mae_p"].values)) for one in maps.values()) * 1000.0
    for column, (name, one) in enumerate(maps.items()):
        frame = structures[name]
        view, _ = _structure_panel(
            figure,
            grid[0, column],
            frame,
            0,
            values=1000.0 * one["mae_p"].values,
            label=r"MAE$_{P95}$ (meV/Å)",
            limits=(low, top),
        )
        grid[0, column].set_title(name)
        _structure_panel(
            figure,
            grid[1, column],
            frame,
            0,
            values=one["log_likelihood"].values,
            label="mean log-likelihood",
            high_is_bad=False,
            limits=span,
            view=view,
        )
        _scatter(grid[2, column], one, atomic_numbers[element], element)
    grid[2, 0].set_ylabel("|ΔF| (meV/Å)")
    return figure


def _scatter(ax: Axes, one: xr.Dataset, number: int, element: str) -> None:
    use = (one["number"].values == number) & np.isfinite(one["score"].values)
    x, y = one["score"].values[use], 1000.0 * one["error_size"].values[use]
    fine = np.isfinite(y)
    x, y = x[fine], y[fine]
    if len(x) < 2:
        note(ax, f"no {element} with a likelihood")
        return
    ax.hexbin(x, y, gridsize=45, mincnt=1, cmap="viridis", bins="log", linewidths=0.1)
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, slope * ends + offset, color=VERMILLION, lw=1.4)
    r = float(one["pearson_r"].sel(element=element))
    note(ax, f"{element}: r = {r:.2f}, R² = {r * r:.2f}")
    ax.set_xlabel("log-likelihood")
    ax.set_ylim(0.0, 1.2 * max(float(y.max()), 1e-9))


def plot_error_maps(maps: xr.Dataset, structures: xr.Dataset, **options: Any) -> Figure:
    """The structure once per model, coloured by each atom's MAE_P95 (paper, Figure 5.C).

    Parameters
    ----------
    maps
        Of `atom_error_maps`.
    structures
        Frames, whose first is drawn.
    **options
        Of `plot_atom_errors` (rings, ring_label).
    """
    from mofal.analysis.pictures import plot_atom_errors

    errors = {
        str(name): 1000.0 * maps["mae_p"].values[k] for k, name in enumerate(maps["model"].values)
    }
    return plot_atom_errors(structures, errors, **options)
