"""The one figure of the README, from findings that were kept: what clusters mend, and what for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMES = {
    "S_pr": "perfect",
    "S_ld": "one linker\nmissing",
    "S_hf": "Hf for Zr",
    "S_reo": "a node missing",
}
LABELS = {"S_pr": (-14, 6), "S_ld": (5, -3), "S_ld-2-1": (5, -8), "S_reo": (5, -3),
          "S_bcu": (5, -8), "S_scu": (5, -3), "S_sup": (-34, 2)}  # fmt: skip
"""Where a name stands beside its point."""


def ours(results: Path, claim: int) -> dict[str, Any]:
    """Numbers of a claim that has been run.

    Raises
    ------
    DataError
        There are none.
    """
    file = results / f"claim-{claim:02d}.json"
    if not file.exists():
        raise DataError(
            f"found no {file.name} in {results}; run --claim {claim} --results {results}"
        )
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def first_screen(results: Path) -> Figure:
    """Errors before and after ten clusters, and bulk moduli against the paper's."""
    from mofal.analysis.style import BLUE, DARK, GREY, VERMILLION, figure_style, new_figure

    before = ours(results, 2)["ours"]
    ten = ours(results, 3)["ours"]
    modulus = ours(results, 11)
    names = list(NAMES)
    start = [before[f"MAE_P95 on {s} (meV/Å)"] for s in names]
    after = [start[0], *(ten[f"MAE_P95 at N = 10 on {s} (meV/Å)"] for s in names[1:])]
    with figure_style():
        figure = new_figure(8.2, 3.3)
        left, right = figure.subplots(1, 2, width_ratios=(1.2, 1.0))
        x = np.arange(len(names))
        left.bar(x - 0.2, start, 0.38, color=GREY, label="knows the perfect crystal alone")
        left.bar(x[1:] + 0.2, [np.mean(v) for v in after[1:]], 0.38, color=BLUE,
                 label="has seen ten clusters of the defect")  # fmt: skip
        for k, values in enumerate(after[1:], start=1):
            left.plot([k + 0.2] * len(values), values, ".", color=DARK, ms=5)
        left.axhline(start[0], color=GREY, lw=0.9, ls=":")
        left.set_xticks(x, [NAMES[s] for s in names])
        left.set_ylabel("force error, MAE$_{P95}$ (meV/Å)")
        left.legend(loc="upper left")
        keys = [s for s in LABELS if isinstance(modulus["ours"].get(f"K of {s} (GPa)"), float)]
        paper = [modulus["paper"][f"K of {s} (GPa)"] for s in keys]
        here = [modulus["ours"][f"K of {s} (GPa)"] for s in keys]
        file = results / "claim-12.json"
        if file.exists():
            found = json.loads(file.read_text())
            if isinstance(found["ours"].get("K of S_sup (GPa)"), float):
                keys.append("S_sup")
                paper.append(found["paper"]["K of S_sup (GPa)"])
                here.append(found["ours"]["K of S_sup (GPa)"])
        top = 1.1 * max(paper + here)
        right.plot([0, top], [0, top], color=GREY, lw=0.9, ls=":")
        right.plot(paper, here, "o", color=VERMILLION, ms=5)
        for s, a, b in zip(keys, paper, here):
            right.annotate(s.replace("-2-1", "-2"), (a, b), LABELS[s], textcoords="offset points",
                           fontsize=8)  # fmt: skip
        right.set_xlim(0, top)
        right.set_ylim(0, top)
        right.set_xlabel("bulk modulus in the paper (GPa)")
        right.set_ylabel("here, by one potential (GPa)")
    return figure
