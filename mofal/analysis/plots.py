"""Figures of numbers. Each takes Datasets and returns a Matplotlib Figure.

Forces are shown in meV/Å. Nothing global is touched: no pyplot, no backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.data import HeldOut
from mofal.analysis.metrics import error_table, force_errors, likelihood_correlation
from mofal.analysis.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    MODEL_COLOURS,
    ORANGE,
    VERMILLION,
    figure_style,
    new_figure,
    note,
)
from mofal.analysis.tables import element_table
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Parameters = ParamSpec("Parameters")
MANY = 4000
"""Points beyond which a scatter is drawn from a random part of them (always the same part)."""


def styled(plot: Callable[Parameters, Figure]) -> Callable[Parameters, Figure]:
    """Draw inside `figure_style`."""

    @wraps(plot)
    def wrapper(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Figure:
        with figure_style():
            figure = plot(*args, **kwargs)
            engine = figure.get_layout_engine()
            if engine is not None:
                # A legend or a bar beside the panels takes two passes: after one, titles are cut.
                engine.execute(figure)
            return figure

    return wrapper


@styled
def plot_learning_curve(
    cycles: Sequence[Mapping[str, Any]], held_out: Mapping[str, HeldOut] | None = None
) -> Figure:
    """Errors over the cycles: on new clusters before learning from them, and on held-out frames.

    Parameters
    ----------
    cycles
        Rows with `cycle` and `proposal_mae`, `proposal_mae_p95` (meV/Å).
    held_out
        With predictions `by_cycle`; the control, where there is one, is a mark at the last cycle.
    """
    rows = [row for row in cycles if row.get("proposal_mae") is not None]
    curves = {name: held for name, held in (held_out or {}).items() if held.by_cycle}
    n_panels = bool(rows) + bool(curves)
    if n_panels == 0:
        raise DataError("no cycle has an error yet: there is no learning curve to draw")
    figure = new_figure(3.6 * n_panels, 3.4)
    axes = list(np.atleast_1d(figure.subplots(1, n_panels)))
    if rows:
        ax = axes.pop(0)
        x = [row["cycle"] for row in rows]
        ax.plot(x, [row["proposal_mae"] for row in rows], "o-", color=BLUE, label="MAE")
        if all(row.get("proposal_mae_p95") is not None for row in rows):
            tail = [row["proposal_mae_p95"] for row in rows]
            ax.plot(x, tail, "s--", color=VERMILLION, label=r"MAE$_{P95}$")
        ax.set_title("New clusters, before learning them")
        _finish_curve(ax, x)
    if curves:
        ax = axes.pop(0)
        every: set[int] = set()
        lines = [
            (f"{system}, {subset}", held, subset)
            for system, held in curves.items()
            for subset in (*list(held.subsets)[:1], "all")
        ]
        colours = (VERMILLION, BLUE, GREEN, ORANGE, GREY, DARK)
        for k, (label, held, subset) in enumerate(lines):
            x = sorted(held.by_cycle)
            y = [_held_out_mae(held, held.by_cycle[cycle], subset) for cycle in x]
            colour = colours[k % len(colours)]
            ax.plot(x, y, "o-" if subset != "all" else "s--", color=colour, label=label)
            if held.control in held.predictions:
                value = _held_out_mae(held, held.predictions[held.control], subset)
                ax.plot(max(x), value, "X", color=colour, ms=9, mec="white", clip_on=False)
            every.update(x)
        if any(held.control in held.predictions for held in curves.values()):
            ax.plot([], [], "X", color=GREY, ms=9, mec="white", label="control")
        ax.set_title("Held-out frames, force MAE")
        _finish_curve(ax, sorted(every))
    return figure


def _held_out_mae(held: HeldOut, predicted: xr.Dataset, subset: str) -> float:
    table = error_table(held.labels, predicted, subsets=held.subsets, elements=False)
    return 1000.0 * float(table["mae"].sel(subset=subset))


def _finish_curve(ax: Axes, cycles: Sequence[int]) -> None:
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 4.0:
        middle = np.sqrt(low * high)
        ax.set_ylim(middle / 2.2, middle * 2.2)
    ticks = [m * 10.0**e for e in range(-1, 5) for m in (1, 2, 5)]
    low, high = ax.get_ylim()
    ax.set_yticks([tick for tick in ticks if low <= tick <= high])
    ax.set_ylim(low, high)
    ax.yaxis.set_major_formatter(ScalarFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(set(cycles)) == 1:
        ax.set_xlim(cycles[0] - 1, cycles[0] + 1)
    ax.set_xlabel("cycle")
    ax.set_ylabel("force error (meV/Å)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


@styled
def plot_force_errors(held_out: Mapping[str, HeldOut]) -> Figure:
    """Force errors per element and around the defect, a bar for each model.

    Parameters
    ----------
    held_out
        By system, with `predictions`.
    """
    shown = {name: held for name, held in held_out.items() if held.predictions}
    if not shown:
        raise DataError("no model has been judged on held-out frames yet: nothing to draw")
    figure = new_figure(7.2, 2.5 * len(shown) + 0.5)
    grid = figure.subplots(len(shown), 2, squeeze=False)
    for row, (system, held) in enumerate(shown.items()):
        tables = element_table(held)
        names = list(next(iter(tables.values()))["subset"].values)
        special = [name for name in names if name in held.subsets]
        order = [*special, "all", *(name for name in names if name not in (*special, "all"))]
        for ax, metric, label in zip(grid[row], ("mae", "mae_p95"), ("MAE", r"MAE$_{P95}$")):
            _bars(ax, tables, order, metric)
            ax.set_title(f"{system}: force {label}")
            if special:
                ax.axvspan(-0.5, len(special) - 0.5, color=ORANGE, alpha=0.13, lw=0, zorder=0)
            ax.set_xlim(-0.5, len(order) - 0.5)
        grid[row][0].set_ylabel("force error (meV/Å)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _bars(ax: Axes, tables: Mapping[str, xr.Dataset], order: list[str], metric: str) -> None:
    width = 0.8 / len(tables)
    for k, (name, table) in enumerate(tables.items()):
        heights = 1000.0 * table[metric].sel(subset=order).values
        x = np.arange(len(order)) + (k - 0.5 * (len(tables) - 1)) * width
        ax.bar(x, heights, 0.92 * width, label=name, color=MODEL_COLOURS[k % len(MODEL_COLOURS)])
    ax.set_xticks(range(len(order)), order)
    ax.grid(visible=False, axis="x")
    ax.set_ylim(bottom=0.0)


@styled
def plot_parity(held: HeldOut, *, system: str = "") -> Figure:
    """Predicted against reference force components, a panel for each model.

    Parameters
    ----------
    held
        Held-out frames with `predictions`.
    system
        Name for the title.
    """
    from matplotlib.colors import LogNorm

    figure = new_figure(2.6 * len(held.predictions) + 0.6, 3.0)
    axes = figure.subplots(1, len(held.predictions), squeeze=False, sharey=True)[0]
    reference = np.asarray(held.labels["forces"].values)
    limit = 1.05 * np.nanmax(np.abs(reference))
    image = None
    for k, (ax, (name, predicted)) in enumerate(zip(axes, held.predictions.items())):
        error = np.asarray(force_errors(held.labels, predicted).values)
        fine = np.isfinite(error)
        image = ax.hexbin(
            reference[fine],
            (reference + error)[fine],
            gridsize=60,
            extent=(-limit, limit, -limit, limit),
            norm=LogNorm(vmin=1),
            cmap="Greys",
            mincnt=1,
            linewidths=0.1,
        )
        if held.defect is not None:
            label, mask = held.defect
            chosen = fine & mask[:, None]
            ax.plot(
                *_thinned(reference[chosen], (reference + error)[chosen]),
                ".",
                color=VERMILLION,
                ms=3,
                alpha=0.6,
                mew=0,
                label=label,
            )
        ax.plot([-limit, limit], [-limit, limit], color=DARK, lw=0.8)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        ax.set_title(f"{system}: {name}" if system and k == 0 else name)
        ax.set_xlabel("reference force (eV/Å)")
        note(ax, f"MAE {1000 * np.abs(error[fine]).mean():.0f} meV/Å", where="lower right")
    axes[0].set_ylabel("predicted force (eV/Å)")
    if held.defect is not None:
        axes[0].legend(loc="upper left", markerscale=3, handletextpad=0.2)
    if image is not None:
        figure.colorbar(image, ax=axes, label="components", shrink=0.8, pad=0.01)
    return figure


def _thinned(*columns: NDArray, most: int = MANY) -> list[NDArray]:
    """The same random part of each column, when there are too many points to draw."""
    n = len(columns[0])
    if n <= most:
        return list(columns)
    chosen = np.sort(np.random.default_rng(0).choice(n, most, replace=False))
    return [column[chosen] for column in columns]


@styled
def plot_feature_map(
    training: xr.Dataset,
    new: xr.Dataset | None = None,
    *,
    training_name: str = "training data",
    new_name: str = "new clusters, core atoms",
) -> Figure:
    """Features on their two principal axes, per element: training density and new atoms.

    Parameters
    ----------
    training
        Features Dataset.
    new
        Features Dataset of the same model; only core atoms are drawn where it has `region`.

    Notes
    -----
    The axes are the principal axes of both sets, each set counting the same, element by element.
    Contours hold 50, 80, 95 and 99 % of the (smoothed) training density.
    """
    from ase.data import chemical_symbols

    numbers = np.asarray(training["numbers"].values)
    present = np.unique(numbers)
    new_numbers, new_values = np.zeros(0, int), np.zeros((0, training.sizes["feature"]))
    if new is not None:
        core = np.ones(new.sizes["atom"], bool)
        if "region" in new:
            core = new["region"].values == 0
        new_numbers, new_values = new["numbers"].values[core], new["features"].values[core]
        present = np.union1d(present, new_numbers)
    figure, axes, lowest, first = _panels(len(present), 7.2, 2.6, head=0.4)
    for ax, number in zip(axes, present):
        known = np.asarray(training["features"].values[numbers == number], dtype=float)
        fresh = np.asarray(new_values[new_numbers == number], dtype=float)
        ax.set_title(chemical_symbols[number])
        ax.set(xticks=[], yticks=[])
        if len(known) < 3:
            note(ax, f"not in the training data\n{len(fresh)} new atoms", where="upper left")
            continue
        _map_panel(ax, known, fresh)
    for ax in lowest:
        ax.set_xlabel("principal axis 1")
    for ax in first:
        ax.set_ylabel("principal axis 2")
    _map_legend(figure, training_name, new_name if len(new_numbers) else "")
    return figure


def _panels(
    n: int, width: float, height: float, *, head: float
) -> tuple[Figure, list[Axes], list[Axes], list[Axes]]:
    """A figure of `n` panels, the panels, those at the bottom of a column, those first in a row."""
    columns = {1: 1, 2: 2, 4: 2}.get(n, 3)
    rows = -(-n // columns)
    figure = new_figure(width if columns > 1 else 0.6 * width, height * rows + head)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = list(grid.ravel())
    for ax in axes[n:]:
        ax.axis("off")
    return figure, axes[:n], axes[max(0, n - columns) : n], axes[:n:columns]


def _map_panel(ax: Axes, known: NDArray, fresh: NDArray) -> None:
    plane, centre = _principal_plane(known, fresh)
    old, added = (known - centre) @ plane, (fresh - centre) @ plane
    both = np.concatenate([old, added])
    low, high = both.min(axis=0), both.max(axis=0)
    margin = 0.22 * np.maximum(high - low, 1e-6)
    low, high = low - margin, high + margin
    density, x, y = _smooth_density(old, low, high)
    levels = _mass_levels(density, (0.99, 0.95, 0.80, 0.50))
    if len(levels) > 1:
        ax.contourf(
            x, y, density.T, [*levels, density.max()], cmap="Blues", vmin=-density.max() / 4
        )
        ax.contour(x, y, density.T, levels, colors=BLUE, linewidths=0.6, alpha=0.6)
    else:
        ax.plot(*_thinned(old[:, 0], old[:, 1]), ".", color=BLUE, ms=3)
    if len(added):
        ax.plot(
            *_thinned(added[:, 0], added[:, 1], most=1500),
            "o",
            color=VERMILLION,
            ms=3.2,
            mec="white",
            mew=0.3,
            alpha=0.85,
        )
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))


def _principal_plane(known: NDArray, fresh: NDArray) -> tuple[NDArray, NDArray]:
    """Two principal axes (feature, 2) and the centre of two sets that count the same.

    With every atom counted alike, few new ones would hardly turn the axes, and what is new about
    them would lie across the picture.
    """
    sets = [part for part in (known, fresh) if len(part)]
    weights = np.concatenate([np.full(len(part), 1.0 / len(part)) for part in sets])
    points = np.concatenate(sets)
    centre = (weights @ points) / weights.sum()
    _, _, axes = np.linalg.svd(np.sqrt(weights)[:, None] * (points - centre), full_matrices=False)
    plane = np.zeros((points.shape[1], 2))
    plane[:, : min(2, len(axes))] = axes[:2].T
    # The sign of an axis is arbitrary: its largest component points up.
    largest = np.argmax(np.abs(plane), axis=0)
    return plane * np.where(plane[largest, [0, 1]] < 0.0, -1.0, 1.0), centre


def _smooth_density(points: NDArray, low: NDArray, high: NDArray) -> tuple[NDArray, ...]:
    """Histogram on a fine grid, blurred by half of Scott's rule: (nx, ny), x (nx,), y (ny,).

    The rule is meant for one hump; features have several, each narrower than the whole.
    """
    from scipy.ndimage import gaussian_filter

    size = 160
    counts, x, y = np.histogram2d(
        points[:, 0], points[:, 1], bins=size, range=np.column_stack([low, high])
    )
    spread = 0.5 * points.std(axis=0) * len(points) ** (-1.0 / 6.0)
    width = np.clip(spread / ((high - low) / size), 1.2, 12.0)
    return gaussian_filter(counts, width), 0.5 * (x[1:] + x[:-1]), 0.5 * (y[1:] + y[:-1])


def _mass_levels(density: NDArray, masses: Sequence[float]) -> list[float]:
    """Heights above which the given parts of the whole lie, rising and distinct."""
    descending = np.sort(density.ravel())[::-1]
    total = np.cumsum(descending)
    places = np.searchsorted(total, np.array(masses) * total[-1])
    return sorted({float(descending[min(place, len(descending) - 1)]) for place in places})


def _map_legend(figure: Figure, training_name: str, new_name: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor="#9ECAE1", edgecolor=BLUE, label=training_name)]
    if new_name:
        handles.append(
            Line2D([], [], marker="o", ls="", color=VERMILLION, mec="white", label=new_name)
        )
    figure.legend(handles=handles, loc="outside upper center", ncols=2)


@styled
def plot_likelihood_errors(
    errors: xr.DataArray | NDArray,
    log_likelihood: xr.DataArray | NDArray,
    numbers: NDArray,
    *,
    highlight: tuple[str, NDArray] | None = None,
    title: str = "",
) -> Figure:
    """Force error against log-likelihood, per element, with Pearson's r and a straight line.

    Parameters
    ----------
    errors
        Force errors (atom, xyz), eV/Å.
    log_likelihood
        Shape (atom,); atoms of an unseen element (-inf) are drawn in a strip at the left.
    numbers
        Atomic numbers (atom,).
    highlight
        Name and mask (atom,) of atoms to be drawn in colour.
    """
    from ase.data import chemical_symbols

    size = 1000.0 * np.linalg.norm(np.asarray(errors, dtype=float), axis=1)
    likelihood = np.asarray(log_likelihood, dtype=float)
    numbers = np.asarray(numbers)
    table = likelihood_correlation(np.asarray(errors), likelihood, numbers)
    mask = np.zeros(len(numbers), bool) if highlight is None else np.asarray(highlight[1])
    present = np.unique(numbers)
    head = 0.4 if highlight or title else 0.0
    figure, axes, lowest, first = _panels(len(present), 7.2, 2.4, head=head)
    for ax, number in zip(axes, present):
        mine = (numbers == number) & np.isfinite(size)
        seen = mine & np.isfinite(likelihood)
        unseen = mine & np.isneginf(likelihood)
        left = likelihood[seen].min() if seen.any() else 0.0
        right = likelihood[seen].max() if seen.any() else 1.0
        strip = left - 0.12 * max(right - left, 1.0)
        for chosen, colour, layer in ((~mask, BLUE, 2), (mask, VERMILLION, 3)):
            x, y = _thinned(likelihood[seen & chosen], size[seen & chosen], most=2500)
            dot = 5.5 if len(x) < 300 else 3.5
            ax.plot(x, y, ".", color=colour, ms=dot, mew=0, alpha=0.5, zorder=layer)
            away = size[unseen & chosen]
            if len(away):
                jitter = np.random.default_rng(0).uniform(-0.02, 0.02, len(away))
                ax.plot(
                    strip + jitter * (right - left), away, "x", color=colour, ms=3.5, zorder=layer
                )
        if unseen.any():
            ax.axvline(strip + 0.06 * max(right - left, 1.0), color=GREY, lw=0.8, ls=":")
            ax.text(strip, 1.0, "unseen", transform=ax.get_xaxis_transform(), ha="center",
                    va="bottom", fontsize=7.5, color=GREY)  # fmt: skip
        symbol = chemical_symbols[number]
        r = float(table["pearson_r"].sel(element=symbol))
        if np.isfinite(r) and right > left:
            slope, offset = np.polyfit(likelihood[seen], size[seen], 1)
            ends = np.array([left, right])
            ax.plot(ends, slope * ends + offset, color=DARK, lw=1.2, zorder=4)
            note(ax, f"r = {r:.2f},  R² = {r * r:.2f}")
        ax.set_title(symbol)
        top = np.nanquantile(size[mine], 0.998) if mine.any() else 1.0
        ax.set_ylim(0.0, 1.25 * max(top, 1e-9))
    for ax in lowest:
        ax.set_xlabel("log-likelihood")
    for ax in first:
        ax.set_ylabel("|ΔF| (meV/Å)")
    if highlight is not None:
        _highlight_legend(figure, highlight[0])
    if title:
        figure.suptitle(title, fontsize=9.5, fontweight="bold")
    return figure


def _highlight_legend(figure: Figure, name: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], marker="o", ls="", color=VERMILLION, label=name),
        Line2D([], [], marker="o", ls="", color=BLUE, label="other atoms"),
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)


@styled
def plot_traces(traces: Sequence[xr.Dataset], walks: xr.Dataset | None = None) -> Figure:
    """Volume and temperature along walks, coloured by the pressure; a cross where one broke off.

    Parameters
    ----------
    traces
        Traces of walks (dim ``sample``).
    walks
        Their rows, in the same order.
    """
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    if not traces:
        raise DataError("no walk has a trace: nothing to draw")
    pressures = np.full(len(traces), np.nan)
    failed = np.zeros(len(traces), bool)
    if walks is not None and walks.sizes["walk"] == len(traces):
        pressures = np.asarray(walks["pressure_GPa"].values, dtype=float)
        failed = walks["walk_status"].values.astype(object).astype(str) != "finished"
    coloured = bool(np.isfinite(pressures).any())
    low, high = (np.nanmin(pressures), np.nanmax(pressures)) if coloured else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1e-6)
    colours = colormaps["viridis"]
    figure = new_figure(7.2, 2.8)
    left, right = figure.subplots(1, 2)
    for trace, pressure, bad in zip(traces, pressures, failed):
        if trace.sizes["sample"] == 0:
            continue
        colour = colours(norm(pressure)) if np.isfinite(pressure) else GREY
        time = trace["time_fs"].values
        volume = trace["volume"].values
        volume = 100.0 * (volume / volume[0] - 1.0) if volume[0] > 0 else np.zeros_like(volume)
        for ax, values in ((left, volume), (right, trace["temperature_K"].values)):
            ax.plot(time, values, color=colour, lw=1.1, alpha=0.9)
            if bad:
                ax.plot(time[-1], values[-1], "x", color=DARK, ms=6, mew=1.6, zorder=5)
    left.set(xlabel="time (fs)", ylabel="change of volume (%)")
    left.set_title("Volume")
    right.set(xlabel="time (fs)", ylabel="temperature (K)")
    right.set_title("Temperature")
    right.set_ylim(bottom=0.0)
    if failed.any():
        right.plot([], [], "x", color=DARK, ms=6, mew=1.6, label="not finished")
        right.legend(loc="lower right")
    if coloured:
        figure.colorbar(
            ScalarMappable(norm, colours), ax=[left, right], label="pressure (GPa)", pad=0.01
        )
    return figure
