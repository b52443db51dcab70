"""How long potentials hold a structure, as a picture: bond strain against time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mofal.analysis.plots import styled
from mofal.analysis.style import MODEL_COLOURS, new_figure
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

Runs = Mapping[str, "tuple[xr.Dataset, xr.Dataset]"]
"""By model: records of the runs (dim ``walk``) and their traces (dim ``sample``)."""


@styled
def plot_holding(runs: Mapping[str, Runs]) -> Figure:
    """Largest relative change of a bond's length against time, for each system and model.

    Parameters
    ----------
    runs
        By system, then by model in the order shown: `walk_status`, `stopped_fs` of each run;
        `time_fs`, `largest_strain`, `walk_index` of the samples. A cross marks a break.

    Raises
    ------
    DataError
        There are no runs.
    """
    shown = {system: models for system, models in runs.items() if models}
    if not shown:
        raise DataError("no run has been made: there is nothing to show of how long models hold")
    figure = new_figure(max(4.2 * len(shown), 5.0), 3.2)
    axes = np.atleast_1d(figure.subplots(1, len(shown), sharey=True))
    longest = 0.0
    for ax, (system, models) in zip(axes, shown.items()):
        for colour, (model, (records, traces)) in zip(MODEL_COLOURS, models.items()):
            status = [str(s) for s in records["walk_status"].values]
            label = f"{model}: {status.count('finished')} of {len(status)} held"
            longest = max(longest, float(records["planned_fs"].max()))
            for k, ended in enumerate(status):
                of = np.flatnonzero(traces["walk_index"].values == k)
                time = traces["time_fs"].values[of]
                strain = 100 * traces["largest_strain"].values[of]
                ax.plot(time, strain, color=colour, lw=1.2, alpha=0.9, label=label)
                label = "_"  # one entry in the legend for all runs of a model
                if ended != "finished" and len(time):
                    ax.plot(time[-1], strain[-1], "x", color=colour, ms=8, mew=2, clip_on=False)
        temperature = float(next(iter(models.values()))[0]["temperature_K"].values[0])
        ax.set_title(f"{system}, {temperature:.0f} K")
        ax.set_xlabel("time (fs)")
        ax.set_xlim(0, longest)
        ax.set_ylim(0, None)
        ax.legend(loc="upper right")
    axes[0].set_ylim(0, 1.35 * axes[0].get_ylim()[1])  # room for the legend; shared by all
    axes[0].set_ylabel("largest change of a bond (%)")
    return figure
