"""The part of a report that is about mechanics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mofal.campaign.steps.mechanics import campaign_plans
from mofal.data import open_group
from mofal.errors import MofalError
from mofal.mechanics.show import uio_cells

if TYPE_CHECKING:
    from mofal.campaign.directory import Site


PUBLISHED = {
    "S_pr": (38.1, "37", "1.09"),
    "S_reo": (17.7, "13", "> 0.34"),
    "S_bcu": (10.7, "8", "0.19"),
    "S_scu": (4.9, "2", "0.05"),
    "S_sup": (12.5, "", ""),
    "S_ld": (None, "32", "1.01"),
}
"""K at 0 K, K and P_max at 300 K (GPa) of the paper; experiment for S_pr: K 37.9, V0 9,009 Å³."""


def report_mechanics(site: Site) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the report's table, and its figures by name; both empty where there is nothing."""
    from mofal.mechanics import energy_volume, fit_pressure
    from mofal.mechanics.plots import plot_motion, plot_overlay, plot_pressure

    if site.config.mechanics is None or not site.path("mechanics").is_dir():
        return [], {}
    plans = campaign_plans(site)
    found: dict[str, Any] = {}
    pressures: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    rows = []
    for name, one in plans.curves.items():
        row: dict[str, Any] = {"system": name}
        cells = uio_cells(one.structure, one.blocks)
        if (one.place / "curve.zarr").exists():
            result = energy_volume(open_group(one.place / "curve.zarr").load())
            if result.windows is not None:
                found[name] = result
                row["K at 0 K (GPa)"] = f"{result.windows.bulk_modulus:.1f}"
                v0 = result.windows.best.volume
                row["V0 (Å³)"] = f"{v0:.0f}"
                if cells is not None:
                    row["V0 per 456-atom cell (Å³)"] = f"{v0 / cells:.0f}"
            if (one.place / "motion.zarr").exists():
                motion = open_group(one.place / "motion.zarr").load()
                figures[f"motion-{name}"] = plot_motion(motion, title=name)
        elastic = plans.elastic.get(name)
        if elastic is not None and elastic.complete:
            try:
                c = elastic.gather()
                row["C11 C12 C44 (GPa)"] = " ".join(
                    f"{c.constants[k]:.1f}" for k in ((0, 0), (0, 1), (3, 3))
                )
                row["Born"] = "stable" if c.stable else "unstable"
            except MofalError as error:
                row["Born"] = str(error)
        pv = plans.pressures.get(name)
        if pv is not None and pv.complete:
            try:
                points, _ = pv.gather()
                curve = fit_pressure(points, draws=pv.settings.draws, seed=pv.settings.seed)
                pressures[name] = points, curve
                top = curve.largest_pressure
                row[f"P_max at {pv.settings.temperature_K:g} K (GPa)"] = (
                    f"> {top.value:.2f}" if curve.bound else top.text(".2f")
                )
                if curve.bulk_modulus is not None:
                    key = f"K at {pv.settings.temperature_K:g} K (GPa)"
                    row[key] = curve.bulk_modulus.text(".1f")
            except MofalError as error:
                row["P(V)"] = str(error)
        if len(row) == 1:
            continue
        paper = _published(site, name)
        if paper is not None:
            row["paper (PBE): K at 0 K (GPa)"] = "" if paper[0] is None else f"{paper[0]:.1f}"
            row["paper (PBE): K, P_max at 300 K (GPa)"] = " / ".join(p for p in paper[1:] if p)
        rows.append(row)
    if found:
        sizes = {n: int(plans.curves[n].structure["n_atoms"].values[0]) for n in found}
        figures = {"energy-volume": plot_overlay(found, sizes), **figures}
    if pressures:
        figures["pressure-volume"] = plot_pressure(pressures, title="P(V), classical nuclei")
    return rows, figures


def _published(site: Site, name: str) -> tuple[float | None, str, str] | None:
    """The paper's values for a system; a primitive cell with a defect has more of them."""
    settings = site.config.systems.get(name)
    if settings is None or (settings.cell == "primitive" and settings.build != "S_pr"):
        return None
    return PUBLISHED.get(str(settings.build))
