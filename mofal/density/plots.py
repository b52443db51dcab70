"""Plots of aggregates. Each takes what a verb of `mofal.density` returns, lazy or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.errors import DependencyError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density.selection import Curve


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise DependencyError(
            "plots need matplotlib; install it: pip install 'mofal[report]'"
        ) from None
    # A figure of its own and no pyplot: nothing global, no display needed.
    return Figure(figsize=(5, 3.5), layout="constrained").add_subplot()


def plot_curve(curve: Curve, *, ax: Any = None) -> Any:
    """BIC and AIC against the number of components, the choice marked.

    Parameters
    ----------
    curve : Curve
        From `select_components`, or of a label of `PerElementDensity`.
    ax : matplotlib Axes, optional

    Returns
    -------
    matplotlib Axes
    """
    ax = _axes(ax)
    for name in ("bic", "aic"):
        ax.plot(curve.n_components, getattr(curve, name), marker="o", label=name.upper())
    ax.axvline(curve.best, color="0.5", ls="--", label=f"{curve.best} by {curve.criterion.upper()}")
    ax.set(xlabel="components", ylabel="criterion (lower is better)")
    ax.legend(frameon=False)
    return ax


def plot_histogram(ds: xr.Dataset, *, names: dict[int, str] | None = None, ax: Any = None) -> Any:
    """Histograms of every label that occurs, each normalised to a density.

    Parameters
    ----------
    ds : xarray.Dataset
        From `histogram`.
    names : dict of int to str, optional
        What to call the labels.
    ax : matplotlib Axes, optional
    """
    ds, ax = ds.compute(), _axes(ax)
    edges = ds["edge"].values
    outside = ds["below"].values + ds["above"].values
    for label in map(int, ds["label"].values):
        count = ds["count"].values[label]
        total = count.sum() + outside[label]
        if total:
            height = count / (total * np.diff(edges))
            text = (names or {}).get(label, str(label))
            if ds["below"].values[label]:
                text += f" ({int(ds['below'].values[label])} below)"
            ax.stairs(height, edges, label=text)
    ax.set(xlabel=ds.attrs["variable"].replace("_", "-"), ylabel="probability density")
    ax.legend(frameon=False)
    return ax


def plot_minima(ds: xr.Dataset, *, ax: Any = None) -> Any:
    """Least likely atom of each structure, sorted, one line per system where systems are known.

    Parameters
    ----------
    ds : xarray.Dataset
        From `structure_minima`.
    ax : matplotlib Axes, optional
    """
    ds, ax = ds.compute(), _axes(ax)
    values = ds["min_log_likelihood"].values
    systems = (
        ds["system"].values.astype(object).astype(str)
        if "system" in ds
        else np.full(values.size, "")
    )
    for system in np.unique(systems):
        own = np.sort(values[systems == system])
        shown = np.where(np.isfinite(own), own, np.nan)
        unseen = int((~np.isfinite(own)).sum())
        text = (system or "all") + (f" ({unseen} with an unseen element)" if unseen else "")
        ax.plot((np.arange(own.size) + 0.5) / own.size, shown, label=text)
    ax.set(xlabel="fraction of structures", ylabel="log-likelihood of the least likely atom")
    ax.legend(frameon=False)
    return ax


def plot_density_map(ds: xr.Dataset, *, variable: str = "count", ax: Any = None) -> Any:
    """Map of the plane of two principal directions.

    Parameters
    ----------
    ds : xarray.Dataset
        From `density_map`.
    variable : {"count", "mean_log_likelihood"}
    ax : matplotlib Axes, optional
    """
    from matplotlib.colors import LogNorm

    ax = _axes(ax)
    ds = ds.compute()
    table = ds[variable].values
    shown = np.where(ds["count"].values > 0, table, np.nan)
    norm = LogNorm() if variable == "count" and np.nanmax(shown, initial=0) > 1 else None
    image = ax.pcolormesh(ds["first"].values, ds["second"].values, shown, norm=norm)
    ax.figure.colorbar(image, ax=ax, label=variable.replace("_", " "))
    off = int(ds["outside"].values)
    ax.set(xlabel="first direction", ylabel="second direction")
    if off:
        ax.set_title(f"{off} atoms outside", fontsize="small")
    return ax
