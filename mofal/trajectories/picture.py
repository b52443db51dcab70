"""One picture of a watched trajectory: when atoms were unfamiliar, which, and where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mofal.analysis.plots import styled
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
)  # fmt: skip
from mofal.trajectories.frames import NO_STEP
from mofal.trajectories.summary import by_kind

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = (VERMILLION, BLUE, GREEN, ORANGE, PURPLE, SKY, GREY)
_AXES = "abc"


@styled
def plot_watched(summary: xr.Dataset) -> Figure:
    """Share of unfamiliar atoms against time, by kind of block, and over the cell.

    Parameters
    ----------
    summary
        As `mofal.trajectories.watch` gives it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = new_figure(9.6, 6.6)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1.0, 1.05))
    upper, lower = halves
    left, right = upper.subplots(1, 2, width_ratios=(1.25, 1.0))
    _over_time(left, summary)
    if "unfamiliar_in_block" in summary:
        _by_kind(right, summary)
    else:
        _by_element(right, summary)
    maps = lower.subplots(1, 3)
    shares = [_map(summary, x, y) for x, y in ((0, 1), (0, 2), (1, 2))]
    high = max(float(np.nanmax(s)) for s in shares)
    for ax, share, (x, y) in zip(maps, shares, ((0, 1), (0, 2), (1, 2))):
        picture = ax.imshow(
            share.T, origin="lower", extent=(0, 1, 0, 1), cmap="magma_r", vmin=0.0,
            vmax=max(high, 1e-9), interpolation="nearest",
        )  # fmt: skip
        ax.set_xlabel(f"along {_AXES[x]}")
        ax.set_ylabel(f"along {_AXES[y]}")
        ax.grid(False)
        third = _AXES[3 - x - y]
        ax.set_title(f"Where, seen along {third}")
    bar = lower.colorbar(picture, ax=maps, shrink=0.8, pad=0.02)
    bar.set_label("unfamiliar atoms, %")
    return figure


def _time(summary: xr.Dataset) -> tuple[NDArray, str]:
    if "md_time" in summary:
        return summary["md_time"].values, "time, ps"
    steps = summary["md_step"].values
    if (steps != NO_STEP).all() and len(np.unique(steps)) == len(steps):
        return steps, "step of the simulation"
    return summary["frame_number"].values, "frame"


def _over_time(ax: Axes, summary: xr.Dataset) -> None:
    from ase.data import chemical_symbols

    x, label = _time(summary)
    counts, atoms = summary["unfamiliar_atoms"].values, summary["element_atoms"].values
    style: dict[str, Any] = {"marker": "o", "markersize": 3.0} if len(x) <= 60 else {}
    share = 100.0 * counts / atoms
    order = np.argsort(-share.mean(axis=0), kind="stable")
    for k, colour in zip(order.tolist(), _COLOURS):
        symbol = chemical_symbols[summary["element_number"].values[k]]
        ax.plot(x, share[:, k], color=colour, linewidth=1.2, label=symbol, **style)
    whole = 100.0 * counts.sum(axis=1) / atoms.sum()
    ax.plot(x, whole, color=DARK, linewidth=2.2, label="all atoms", **style)
    threshold = float(summary.attrs["unfamiliar_quantile"])
    ax.axhline(100.0 * threshold, color=GREY, linestyle="--", linewidth=1.0)
    ax.annotate(
        "were all of it known", (1.0, 100.0 * threshold), xycoords=("axes fraction", "data"),
        ha="right", va="bottom", fontsize=7.5, color=GREY, xytext=(0, 2),
        textcoords="offset points",
    )  # fmt: skip
    ax.set_ylim(0.0, 1.25 * max(float(share.max()), 200.0 * threshold))  # room for the legend
    ax.set_xlabel(label)
    if label == "frame":
        from matplotlib.ticker import MaxNLocator

        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(f"atoms below quantile {threshold:g}, %")
    ax.set_title("When")
    ax.legend(ncols=4, fontsize=7.5, loc="upper left", columnspacing=1.0, handlelength=1.4)


def _bars(ax: Axes, names: list[str], share: NDArray, threshold: float) -> None:
    place = np.arange(len(names))
    ax.barh(place, 100.0 * share, color=BLUE, height=0.65)
    ax.axvline(100.0 * threshold, color=GREY, linestyle="--", linewidth=1.0)
    ax.set_yticks(place, names, fontsize=7.5)
    ax.set_ylim(max(len(names), 5) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("unfamiliar atoms, %")


def _by_kind(ax: Axes, summary: xr.Dataset) -> None:
    names, share, number = by_kind(summary)
    shown = [f"{_short(name)} ({n})" for name, n in zip(names, number.tolist())]
    _bars(ax, shown, share, float(summary.attrs["unfamiliar_quantile"]))
    ax.set_title("Which blocks (how many there are)")


def _by_element(ax: Axes, summary: xr.Dataset) -> None:
    from ase.data import chemical_symbols

    counts = summary["unfamiliar_atoms"].values.sum(axis=0)
    share = counts / (summary["element_atoms"].values * max(summary.sizes["structure"], 1))
    order = np.argsort(-share, kind="stable")
    names = [chemical_symbols[z] for z in summary["element_number"].values[order]]
    _bars(ax, names, share[order], float(summary.attrs["unfamiliar_quantile"]))
    ax.set_title("Which elements")


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _map(summary: xr.Dataset, x: int, y: int) -> NDArray:
    """Percent of unfamiliar atoms over the cell, looked at along the third vector."""
    where = summary["site_position"].values
    n = int(np.clip(np.sqrt(len(where) / 40.0), 4, 40))
    edges = np.linspace(0.0, 1.0, n + 1)
    every = np.histogram2d(where[:, x], where[:, y], bins=(edges, edges))[0]
    weights = summary["unfamiliar_frames"].values / max(summary.sizes["structure"], 1)
    found = np.histogram2d(where[:, x], where[:, y], bins=(edges, edges), weights=weights)[0]
    share: NDArray = np.full(every.shape, np.nan)
    np.divide(100.0 * found, every, out=share, where=every > 0)
    return share
