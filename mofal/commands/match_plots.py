"""Pictures of force matching: against the distance from the cut, and on the structure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.analysis.pictures import plot_cluster_values
from mofal.data import select

if TYPE_CHECKING:
    import xarray as xr


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def plot_by_distance(table: xr.Dataset, tolerance_meV: float, level: str, path: Path) -> None:
    """Force difference against the distance to the nearest cap, one line per candidate.

    A cap stands, along each cut bond, for the atom that was cut off.
    """
    from mofal.clusters.blueprints import CORE, MANTLE

    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4.0), constrained_layout=True)
    candidate = table["candidate_index"].values
    colours = plt.get_cmap("viridis")(np.linspace(0.1, 0.85, table.sizes["candidate"]))
    for k, name in enumerate(str(c) for c in table["candidate"].values):
        values = 1000 * table["rmse_distance"].values[k]
        good = np.isfinite(values)
        axes.plot(
            table["distance"].values[good], values[good], "o-", color=colours[k], label=name, ms=4
        )
        for region, marker in ((CORE, "o"), (MANTLE, "x")):
            mine = (candidate == k) & (table["region"].values == region)
            axes.plot(
                table["cut_distance"].values[mine],
                1000 * table["rmse"].values[mine],
                marker,
                color=colours[k],
                alpha=0.4,
                ms=3,
                mfc="none",
            )
    axes.axhline(tolerance_meV, color="0.4", ls="--", lw=1, label="tolerance (core)")
    axes.set(
        xlabel="distance to the nearest cap (Å)",
        ylabel="RMSE of forces (meV/Å)",
        yscale="log",
        title=f"Cluster against parent, {level}",
    )
    axes.plot([], [], "o", color="0.4", ms=3, mfc="none", label="an atom of the core")
    axes.plot([], [], "x", color="0.4", ms=3, label="an atom of the mantle")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_on_structure(table: xr.Dataset, clusters: xr.Dataset, level: str, path: Path) -> None:
    """Each candidate in its first frame, atoms coloured by the RMSE of their forces.

    Caps are white: they have no counterpart in the parent (the paper's Figure SI.2).
    """
    figure = plot_cluster_values(
        select(clusters, first_rows(table, clusters)),
        1000 * table["rmse"].values,
        titles=[str(name) for name in table["candidate"].values],
        label=f"RMSE, {level} (meV/Å)",
    )
    figure.savefig(path, dpi=150)


def write_structures(table: xr.Dataset, clusters: xr.Dataset, path: Path) -> None:
    """Write the candidates with the RMSE of each atom in meV/Å, for a viewer; caps are NaN."""
    from ase import Atoms
    from ase.io import write

    index = table["candidate_index"].values
    frames = []
    for k, x in enumerate(first_frames(table, clusters)):
        mine = index == k
        atoms = Atoms(numbers=table["numbers"].values[mine], positions=x)
        atoms.info["candidate"] = str(table["candidate"].values[k])
        atoms.arrays["rmse_meV_per_A"] = 1000 * table["rmse"].values[mine]
        atoms.arrays["region"] = table["region"].values[mine]
        frames.append(atoms)
    write(path, frames, format="extxyz")


def first_frames(table: xr.Dataset, clusters: xr.Dataset) -> list[np.ndarray]:
    """Positions of each candidate of the table in its first frame, Å."""
    start = np.concatenate([[0], np.cumsum(clusters["n_atoms"].values)])
    rows = first_rows(table, clusters)
    return [clusters["positions"].values[start[k] : start[k + 1]] for k in rows]


def first_rows(table: xr.Dataset, clusters: xr.Dataset) -> list[int]:
    """Which of the clusters is each candidate of the table in its first frame."""
    names = [str(name) for name in clusters["candidate"].values]
    return [names.index(str(name)) for name in table["candidate"].values]
