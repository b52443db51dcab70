"""A campaign in few numbers: its summary, its learning curve, its errors as tables."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr

from mofal.analysis import error_table
from mofal.campaign import paths
from mofal.campaign.directory import Site
from mofal.data import offsets
from mofal.errors import StoreError
from mofal.frameworks.defects import defect_atoms

Labels = Callable[[str], xr.Dataset]
"""Held-out labels that count, by the name of a system."""


def facts(site: Site) -> list[tuple[str, str]]:
    """What a person wants to know first: names and values, in order. Reads small files only."""
    config = site.config
    done = site.finished_cycles()
    rows = [
        ("directory", _near(site.root)),
        ("cycles", f"{max(done, 0)} of {config.cycles} finished" if done >= 0 else "no model yet"),
        ("reference", config.reference.name),
        ("systems", ", ".join(_system(site, name) for name in config.systems)),
    ]
    status: dict[str, int] = {}
    for _, relative in site.label_groups(config.cycles):
        for s in map(str, site.group(relative)["status"].values):
            status[s] = status.get(s, 0) + 1
    if status:
        rows.append(("labels", ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in status.items())))
    errors = [
        f"cycle {c}: {error:.0f}"
        for c in range(1, config.cycles + 1)
        if (error := site.proposal_error_meV(c)) is not None
    ]
    if errors:
        rows.append(("MAE_P95 on new clusters, meV/Å", ", ".join(errors)))
    ready = [name for name, there in _what_is_there(site).items() if there]
    rows.append(("to look at", ", ".join(ready) or "nothing yet"))
    return rows


def _near(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _system(site: Site, name: str) -> str:
    known = site.facts["systems"].get(name, {})
    return f"{name} ({known['n_atoms']} atoms)" if "n_atoms" in known else name


def _what_is_there(site: Site) -> dict[str, bool]:
    groups = {
        "structures": "samples.zarr", "features": "features.zarr", "scores": "scores.zarr",
        "walks": "walks.zarr", "traces": "traces.zarr",
    }  # fmt: skip
    places = [
        paths.place(0),
        *(
            paths.place(c, s)
            for c in range(1, site.config.cycles + 1)
            for s in site.config.explored
        ),
    ]
    found = {
        name: any(site.exists(f"{place}/{file}") for place in places)
        for name, file in groups.items()
    }
    labelled = bool(site.label_groups(site.config.cycles))
    judged = [
        s for s in site.config.holdout_systems if site.exists(paths.holdout(s, "model-000.zarr"))
    ]
    return {
        **found,
        "labels": labelled,
        "training_set()": labelled,
        **{f"errors({s!r})": True for s in judged},
        "learning_curve()": bool(judged) or found["scores"],
        "potential()": site.finished_cycles() >= 0,
    }


def as_text(site: Site) -> str:
    """The summary as `print` shows it."""
    rows = facts(site)
    width = max(len(name) for name, _ in rows)
    lines = [f"mofal campaign {site.config.name!r}"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def as_html(site: Site) -> str:
    """The summary as a notebook shows it."""
    cells = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in facts(site)
    )
    title = html.escape(f"mofal campaign {site.config.name}")
    return f"<div><b>{title}</b><table>{cells}</table></div>"


def learning_curve(site: Site, labels_of: Labels) -> xr.Dataset:
    """See `CampaignView.learning_curve`; `labels_of` gives the held-out labels of a system."""
    cycles = list(range(site.config.cycles + 1))
    systems = list(site.config.holdout_systems)
    shape = (len(cycles), len(systems))
    held: dict[str, np.ndarray] = {
        f"{model}_{metric}": np.full(shape, np.nan)
        for model in ("campaign", "control")
        for metric in ("mae", "mae_p95")
    }
    proposed = {metric: np.full(len(cycles), np.nan) for metric in ("mae", "mae_p95")}
    labels = {
        system: labels_of(system)
        for system in systems
        if site.exists(paths.holdout(system, "labels.zarr"))
    }
    for c in cycles:
        if c and site.exists(paths.place(c, "proposal.zarr")):
            attrs = site.group(paths.place(c, "proposal.zarr")).attrs
            for metric in proposed:
                proposed[metric][c] = float(attrs.get(f"{metric}_meV_per_A", np.nan))
        for k, system in enumerate(systems):
            for model, tag in (("campaign", "model"), ("control", "control")):
                if not site.exists(paths.holdout(system, f"{tag}-{c:03d}.zarr")):
                    continue
                judged = site.group(paths.holdout(system, f"{tag}-{c:03d}.zarr")).load()
                table = error_table(labels[system], judged, elements=False)
                for metric in ("mae", "mae_p95"):
                    held[f"{model}_{metric}"][c, k] = 1000.0 * float(
                        table[metric].sel(subset="all")
                    )
    if all(np.isnan(v).all() for v in (*held.values(), *proposed.values())):
        raise StoreError(
            f"{site.root} has no errors yet; look again when a model has been judged: "
            f"mofal status {site.root}"
        )
    units = {"units": "meV/Å"}
    return xr.Dataset(
        {
            **{f"proposal_{m}": ("cycle", v, units) for m, v in proposed.items()},
            **{name: (("cycle", "system"), v, units) for name, v in held.items()},
        },
        coords={"cycle": cycles, "system": np.array(systems, object)},
        attrs={"meaning": "force errors on held-out frames, and on clusters before learning them"},
    )


def errors(site: Site, system: str, found: dict[str, str], labels_of: Labels) -> xr.Dataset:
    """See `CampaignView.errors`; `found` names the judgement of each model."""
    known = site.config.holdout_systems
    if system not in known:
        raise StoreError(
            f"{site.root} has no held-out frames of {system!r}; it has some of: "
            f"{', '.join(known) or 'none'}"
        )
    if not found:
        raise StoreError(f"{site.root}: no model has been judged on {system} yet; look again later")
    labels = labels_of(system)
    defect = defect_atoms(site.blocks(system))
    inside = np.arange(labels.sizes["atom"]) - np.repeat(
        offsets(labels["n_atoms"].values)[:-1], labels["n_atoms"].values
    )
    subsets = {"defect": np.isin(inside, defect)} if len(defect) else {}
    tables = [
        error_table(
            labels, site.group(paths.holdout(system, f"{tag}.zarr")).load(), subsets=subsets
        )
        for tag in found.values()
    ]
    out = xr.concat(tables, "model", combine_attrs="drop_conflicts").assign_coords(
        model=np.array(list(found), object)
    )
    for name in out.data_vars:
        unit = str(out[name].attrs.get("units", ""))
        if unit.startswith("eV"):
            out[name] = (1000.0 * out[name]).assign_attrs({**out[name].attrs, "units": f"m{unit}"})
    return out
