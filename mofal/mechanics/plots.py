"""Pictures of mechanics: E(V) with its equations of state, and what moves along it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import units

from mofal.analysis.style import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
    figure_style,
    new_figure,
)
from mofal.mechanics.curve import EnergyVolume
from mofal.mechanics.equations import EQUATIONS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from mofal.mechanics.pressure_curve import PressureCurve, PressurePoints

COLOURS = (BLUE, VERMILLION, GREEN, ORANGE, GREY)


def plot_curve(
    found: EnergyVolume, *, title: str, n_atoms: int, known: np.ndarray | None = None
) -> Figure:
    """E(V) and P(V) at 0 K with the equations of state of the chosen window.

    Where `known` (n,) is given, volumes that the potential does not know are marked.
    """
    with figure_style():
        figure = new_figure(7.2, 3.2)
        left, right = figure.subplots(1, 2)
        zero = found.energy.min()
        left.plot(found.volume, 1000 * (found.energy - zero) / n_atoms, "o", color=DARK, ms=4)
        right.plot(found.volume, found.pressure, "o", color=DARK, ms=4)
        if known is not None and not known.all():
            for axes, values in ((left, 1000 * (found.energy - zero) / n_atoms),
                                 (right, found.pressure)):  # fmt: skip
                axes.plot(
                    found.volume[~known], values[~known], "x", color=VERMILLION, ms=8,
                    label="not learnt" if axes is left else None,
                )  # fmt: skip
        if found.windows is not None:
            low, high = found.windows.window
            grid = np.linspace(found.volume.min(), found.volume.max(), 200)
            for k, fit in enumerate(found.windows.fits):
                parameters = (
                    fit.energy,
                    fit.volume,
                    fit.bulk_modulus * units.GPa,
                    fit.derivative,
                )
                energy, pressure = EQUATIONS[fit.equation](grid, parameters)
                label = f"{fit.equation}: {fit.bulk_modulus:.1f} GPa"
                left.plot(
                    grid, 1000 * (energy - zero) / n_atoms, color=COLOURS[k], label=label, lw=1.2
                )
                right.plot(grid, pressure / units.GPa, color=COLOURS[k], lw=1.2)
            for axes in (left, right):
                axes.axvspan(low, high, color="#EEF3F7", zorder=0)
            left.legend()
        left.set(xlabel="volume (Å³)", ylabel="energy (meV/atom)", title=title)
        right.set(xlabel="volume (Å³)", ylabel="pressure (GPa)", title="at 0 K")
        right.axhline(0.0, color=GREY, lw=0.8)
    return figure


def plot_motion(motion: xr.Dataset, *, title: str) -> Figure:
    """Rotation of bricks, tilt and buckling of linkers, and lattice angles along the curve."""
    role = np.array([str(r) for r in motion["role"].values])
    volume = motion["point_volume"].values
    panels = (
        ("rotation of nodes (°)", motion["block_rotation"].values[:, role == "node"]),
        ("tilt of linkers (°)", motion["block_tilt"].values[:, role == "linker"]),
        ("buckling of linkers (Å)", motion["block_buckling"].values[:, role == "linker"]),
        ("change of lattice angles (°)", _against_start(motion["lattice_angle"].values, volume)),
    )
    with figure_style():
        figure = new_figure(7.2, 4.6)
        for axes, (label, values) in zip(figure.subplots(2, 2).ravel(), panels):
            axes.plot(volume, values, "-", color=BLUE, lw=0.8, alpha=0.6)
            axes.set(xlabel="volume (Å³)", ylabel=label)
        figure.suptitle(title, fontsize=9.5)
    return figure


def _against_start(angles: np.ndarray, volume: np.ndarray) -> np.ndarray:
    middle = int(np.argmin(np.abs(volume - np.median(volume))))
    return angles - angles[middle]


def plot_pressure(
    curves: Mapping[str, tuple[PressurePoints, PressureCurve]],
    *,
    title: str,
    unknown: Mapping[str, np.ndarray] | None = None,
) -> Figure:
    """P(V) of one or several systems: points with errors, the mean curve, two deviations.

    Where volumes `unknown` to the potential are given, by system, the axis is shaded there.
    """
    with figure_style():
        figure = new_figure(5.6, 3.8)
        axes: Any = figure.subplots()
        for k, (name, (points, curve)) in enumerate(curves.items()):
            colour = COLOURS[k % len(COLOURS)]
            top = curve.largest_pressure
            bound = f"> {min(top.low, top.value):.2f}" if curve.bound else f"{top.value:.2f}"
            label = f"{name}: P_max {bound} GPa"
            if curve.bulk_modulus is not None:
                label += f", K {curve.bulk_modulus.value:.1f} GPa"
            axes.plot(curve.volume, curve.pressure, color=colour, label=label)
            band = 2 * curve.deviation
            axes.fill_between(
                curve.volume, curve.pressure - band, curve.pressure + band, color=colour,
                alpha=0.2, lw=0,
            )  # fmt: skip
            for ensemble, marker in (("npt", "o"), ("nvst", "s")):
                mine = np.array([e == ensemble for e in points.ensemble])
                axes.errorbar(
                    points.volume[mine], points.pressure[mine],
                    xerr=points.volume_error[mine], yerr=points.pressure_error[mine],
                    fmt=marker, ms=4, color=colour, mfc="white", lw=1,
                )  # fmt: skip
            half = np.ptp(points.volume) / max(1, len(points.volume) - 1) / 2
            for volume in (unknown or {}).get(name, ()):
                axes.axvspan(volume - half, volume + half, color=VERMILLION, alpha=0.12, lw=0)
        axes.axhline(0.0, color=GREY, lw=0.8)
        given = {e for points, _ in curves.values() for e in points.ensemble}
        for ensemble, marker, label in (("npt", "o", "NPT"), ("nvst", "s", "fixed volume")):
            if ensemble in given:
                axes.plot([], [], marker, ms=4, color=DARK, mfc="white", label=label)
        if unknown and any(len(v) for v in unknown.values()):
            axes.fill_between([], [], [], color=VERMILLION, alpha=0.12, lw=0, label="not learnt")
        axes.set(xlabel="volume (Å³)", ylabel="pressure (GPa)", title=title)
        axes.legend()
    return figure


def plot_overlay(curves: Mapping[str, EnergyVolume], n_atoms: Mapping[str, int]) -> Figure:
    """E(V) of several systems: energies per atom against the volume relative to V0."""
    with figure_style():
        figure = new_figure(5.0, 3.6)
        axes: Any = figure.subplots()
        for k, (name, found) in enumerate(curves.items()):
            v0 = found.windows.best.volume if found.windows else found.volume[found.energy.argmin()]
            label = name
            if found.windows:
                label += f", K {found.windows.bulk_modulus:.1f} GPa"
            energy = 1000 * (found.energy - found.energy.min()) / n_atoms[name]
            axes.plot(
                found.volume / v0, energy, "o-", ms=3, color=COLOURS[k % len(COLOURS)], label=label
            )
        axes.set(xlabel="volume relative to V0", ylabel="energy (meV/atom)")
        axes.legend()
    return figure
