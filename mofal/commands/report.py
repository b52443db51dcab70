"""`mofal report`: what a campaign found, from its store, as one page and its pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.analysis import ReportData, write_report
from mofal.campaign import paths, plan
from mofal.campaign.steps.hold import table
from mofal.campaign.view import (
    CampaignView,
    as_records,
    cycle_table,
    held_out,
    holdout_table,
    open_campaign,
    predictions,
)
from mofal.commands.explore import write_page
from mofal.commands.report_mechanics import report_mechanics
from mofal.data import atom_slice, select, write_json

if TYPE_CHECKING:
    import xarray as xr

Say = Callable[[str], None]


def report(path: str | os.PathLike[str], *, progress: Say | None = None) -> Path:
    """Write the report of a campaign, finished or under way, into ``PATH/report``.

    Parameters
    ----------
    path : path
        Directory of the campaign.
    progress : callable, optional
        Takes lines.

    Returns
    -------
    path
        The page: one self-contained HTML file, its pictures as PNG files beside it.

    Raises
    ------
    CampaignError
        There is no campaign.
    """
    view = open_campaign(path)
    if progress is not None:
        progress("writing the report")
    directory = view.path / "report"
    data = collect(view)
    directory.mkdir(parents=True, exist_ok=True)
    data.explorer, hint = write_page(view, directory)
    data.summary += [hint] if hint else []
    page = write_report(data, directory)
    rows = holdout_table(view)
    if rows:
        write_json(as_records(rows), directory / "holdout.json")
    return Path(page)


def collect(view: CampaignView) -> Any:
    """Gather what the report shows: a `mofal.analysis.ReportData`."""
    site = view.site
    first = next(
        (s for s in view.config.explored if site.exists(paths.place(1, s, "clusters.zarr"))), None
    )
    more: dict[str, Any] = {}
    if first is not None and site.exists(paths.place(1, "density.zarr")):
        more = _first_cycle(view, first)
    if any(site.exists(paths.place(1, s, "walks.zarr")) for s in view.config.explored):
        more["walks"] = view.walks
        more["traces"] = _traces(view)
    more["mechanics"], more["mechanics_figures"] = report_mechanics(site)
    return ReportData(
        title=f"mofal campaign: {view.config.name}",
        summary=_summary(view),
        systems=_systems(view),
        cycles=_cycles(view),
        held_out=_held_out(view),
        holding=view.holding,
        holding_lines=table(view.site),
        attempts=view.attempts,
        facts=_facts(view),
        **more,
    )


def _summary(view: CampaignView) -> list[str]:
    done = view.site.finished_cycles()
    left = plan.unfinished(view.site.steps(), view.site.exists)
    lines = [
        f"{max(done, 0)} of {view.config.cycles} cycles are finished."
        + (f" Not finished yet; next comes: {left[0].name}." if left else ""),
        f"Reference: {view.config.reference.name}. Systems explored: "
        f"{', '.join(view.config.explored)}.",
    ]
    return lines


def _systems(view: CampaignView) -> list[dict[str, Any]]:
    rows = []
    for name, settings in view.config.systems.items():
        facts = view.site.facts["systems"][name]
        rows.append(
            {
                "system": name,
                "from": settings.build or Path(str(settings.file)).name,
                "cell": settings.cell if settings.build else "of the file",
                "atoms": facts["n_atoms"],
                "blocks": facts["n_blocks"],
                "explored": "yes" if settings.explore else "no",
                "held out": "yes" if name in view.config.holdout_systems else "no",
            }
        )
    return rows


def _cycles(view: CampaignView) -> list[dict[str, Any]]:
    rows = cycle_table(view.site)
    for row in rows:
        for how, met in (view.coverage(row["cycle"]) if row["cycle"] else {}).items():
            row[f"within the {met.stated:g} bound, {how} cores"] = (
                f"{100 * met.atoms:.0f} % ({100 * met.low:.0f} to {100 * met.high:.0f}) "
                f"of {met.n_structures}"
            )
    return rows


def _held_out(view: CampaignView) -> dict[str, Any]:
    return {
        system: replace(
            held,
            scores=_seed_scores(view, held.labels),
            by_cycle={
                c: predictions(view, system, f"model-{c:03d}")
                for c in range(view.config.cycles + 1)
                if view.site.exists(paths.holdout(system, f"model-{c:03d}.zarr"))
            },
        )
        for system, held in held_out(view).items()
    }


def _seed_scores(view: CampaignView, labels: xr.Dataset) -> dict[str, Any]:
    """Log-likelihoods of held-out atoms in the seed model's features and training density."""
    from mofal.density import score

    if not view.site.exists(paths.place(1, "density.zarr")):
        return {}
    features = view.potential(0).featurize(labels)
    return {"seed": score(features, view.density(1)).compute()}


def _first_cycle(view: CampaignView, system: str) -> dict[str, Any]:
    """Compare what the seed model knew with what it met first, in its own features."""
    site = view.site
    seed = view.potential(0)
    clusters = site.group(paths.place(1, system, "clusters.zarr")).load()
    fresh = seed.featurize(clusters).assign(region=clusters["region"])
    samples = site.group(paths.place(1, system, "samples.zarr")).load()
    # The frame whose cores were chosen most often shows most.
    parents = [str(p) for p in clusters["parent"].values]
    ids = [str(s) for s in samples["structure_id"].values]
    chosen = max(range(len(ids)), key=lambda k: (parents.count(ids[k]), -k))
    frame = select(samples, chosen)
    scores = select(site.group(paths.place(1, system, "scores.zarr")).load(), chosen)
    cores = np.zeros(frame.sizes["atom"], bool)
    for k, parent in enumerate(parents):
        if parent == ids[chosen]:
            span = atom_slice(clusters, k)
            core = clusters["region"].values[span] == 0
            cores[clusters["parent_atom"].values[span][core]] = True
    return {
        "training_features": _thinned(site.group(paths.place(1, "training_features.zarr"))),
        "new_features": fresh,
        "frame": frame,
        "frame_scores": scores,
        "frame_cores": cores,
        "clusters": clusters,
    }


MOST_ON_MAP = 200_000
"""Atoms that the map of features is drawn from."""


def _thinned(features: xr.Dataset) -> xr.Dataset:
    """Every so many-th atom, where there are more than a map can show."""
    step = max(1, features.sizes["atom"] // MOST_ON_MAP)
    if step == 1:
        return features.load()
    return features[["features", "numbers"]].isel(atom=slice(None, None, step)).load()


def _traces(view: CampaignView) -> list[Any]:
    out = []
    for _, relative in view.groups("traces.zarr"):
        ds = view.site.group(relative).load()
        for k in np.unique(ds["walk_index"].values):
            out.append(ds.isel(sample=np.flatnonzero(ds["walk_index"].values == k)))
    return out


def _facts(view: CampaignView) -> dict[str, str]:
    site = view.site
    facts = {
        "seed": str(view.config.seed),
        "level of theory": site.facts["level_hash"],
        "elements": " ".join(site.elements),
        "identity of the campaign": site.facts["identity"],
    }
    for _, relative in site.label_groups(0):
        attrs = site.group(relative).attrs
        theory = json.loads(attrs.get("level_of_theory", "{}"))
        facts["level of theory"] = f"{theory.get('method', '?')} ({site.facts['level_hash']})"
        facts["versions"] = ", ".join(
            f"{k} {v}" for k, v in json.loads(attrs.get("versions", "{}")).items()
        )
    facts["this report"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return facts
