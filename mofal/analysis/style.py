"""One look for all figures: legible in print and on a phone, safe for colour-blind readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mofal.errors import DependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design), black and sky blue for text and backgrounds.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY, DARK = "#CC79A7", "#56B4E9", "#F0E442", "#8C8C8C", "#222222"

MODEL_COLOURS = (GREY, SKY, VERMILLION, BLUE, GREEN, PURPLE)
"""Models in the order of a report: what was, the control, what is."""

ELEMENT_COLOURS = {
    "H": "#F2F2F2",
    "C": "#5A5A5A",
    "N": "#3B6FB6",
    "O": "#D6604D",
    "Zr": "#2A9D8F",
    "Hf": "#B07AA1",
    "Zn": "#7D80B0",
    "Cu": "#C88033",
    "Ti": "#BFC2C7",
}
OTHER_ELEMENT = "#E0A458"

_PARAMETERS: Any = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.0,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "mathtext.default": "regular",
    "axes.unicode_minus": True,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib set as all figures of mofal want it, inside the block."""
    try:
        import matplotlib
    except ImportError:
        raise DependencyError(
            "plots need matplotlib; install it: pip install 'mofal[report]'"
        ) from None
    with matplotlib.rc_context(_PARAMETERS):
        yield


def new_figure(width: float, height: float, **layout: Any) -> Figure:
    """A figure of its own, without pyplot: nothing global, no display needed. Inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", **layout)


def note(ax: Axes, text: str, *, where: str = "upper right") -> None:
    """A short text in a corner of a panel."""
    vertical, horizontal = where.split()
    ax.text(
        0.97 if horizontal == "right" else 0.03,
        0.96 if vertical == "upper" else 0.04,
        text,
        transform=ax.transAxes,
        ha=horizontal,
        va="top" if vertical == "upper" else "bottom",
        fontsize=8.5,
        color=DARK,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )
