"""`mofal report`: what a campaign found, from its store, as one page and its pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths, plan
from mofal.campaign.steps.hold import table
from mofal.campaign.view import (
    CampaignView,
    as_records,
    atom_mask,
    holdout_table,
    open_campaign,
    tags,
)
from mofal.frameworks.defects import defect_atoms

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
    from mofal.analysis import write_report
    from mofal.data import write_json

    view = open_campaign(path)
    if progress is not None:
        progress("writing the report")
    directory = view.path / "report"
    page = write_report(collect(view), directory)
    rows = holdout_table(view)
    if rows:
        write_json(as_records(rows), directory / "holdout.json")
    return Path(page)


def collect(view: CampaignView) -> Any:
    """Gather what the report shows: a `mofal.analysis.ReportData`."""
    from mofal.analysis import ReportData

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
    from mofal.commands.report_mechanics import report_mechanics

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
    from mofal.commands.status import model_hash
    from mofal.data import read_json

    site = view.site
    rows = []
    for c in range(view.config.cycles + 1):
        groups = [p for k, p in site.label_groups(c) if k == c]
        if not groups:
            continue
        status = [str(s) for g in groups for s in site.group(g)["status"].values]
        good, aside = status.count("converged"), status.count("set_aside")
        row: dict[str, Any] = {
            "cycle": c,
            "labelled": good,
            "failed": len(status) - good - aside,
            "set_aside": aside,
        }
        if c:
            reasons = [
                len(read_json(site.path(paths.place(c, s, "refused.json"))))
                for s in view.config.explored
                if site.exists(paths.place(c, s, "refused.json"))
            ]
            row["refused"] = sum(reasons)
        if site.exists(paths.place(c, "proposal.zarr")):
            attrs = view.proposal(c).attrs
        else:
            attrs = {}
        if "mae_meV_per_A" in attrs:
            row["proposal_mae"] = float(attrs["mae_meV_per_A"])
            row["proposal_mae_p95"] = float(attrs["mae_p95_meV_per_A"])
        if site.exists(paths.model(c)):
            row["steps"] = site.model_record(paths.model(c)).get("steps")
            row["model_hash"] = model_hash(site, c)
        rows.append(row)
    return rows


def _predictions(ds: xr.Dataset) -> xr.Dataset:
    names = {f"predicted_{v}": v for v in ("energy", "forces", "stress")}
    return ds.load().rename({k: v for k, v in names.items() if k in ds})


def _held_out(view: CampaignView) -> dict[str, Any]:
    from mofal.analysis import HeldOut
    from mofal.campaign.view import judged_labels

    known = tags(view)
    if "seed" not in known:
        return {}
    site = view.site
    out = {}
    for system in view.config.holdout_systems:
        if not site.exists(paths.holdout(system, "model-000.zarr")):
            continue
        labels = judged_labels(view, system)
        defect = defect_atoms(view.blocks(system))
        out[system] = HeldOut(
            labels=labels,
            predictions={m: _predictions(view.judgement(system, t)) for m, t in known.items()},
            subsets={"formate": atom_mask(labels, defect)} if len(defect) else {},
            scores=_seed_scores(view, labels),
            by_cycle={
                c: _predictions(view.judgement(system, f"model-{c:03d}"))
                for c in range(view.config.cycles + 1)
                if site.exists(paths.holdout(system, f"model-{c:03d}.zarr"))
            },
        )
    return out


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
    from mofal.data import atom_slice, select

    frame = select(samples, chosen)
    scores = select(site.group(paths.place(1, system, "scores.zarr")).load(), chosen)
    cores = np.zeros(frame.sizes["atom"], bool)
    for k, parent in enumerate(parents):
        if parent == ids[chosen]:
            span = atom_slice(clusters, k)
            core = clusters["region"].values[span] == 0
            cores[clusters["parent_atom"].values[span][core]] = True
    return {
        "training_features": site.group(paths.place(1, "training_features.zarr")).load(),
        "new_features": fresh,
        "frame": frame,
        "frame_scores": scores,
        "frame_cores": cores,
        "clusters": clusters,
    }


def _traces(view: CampaignView) -> list[Any]:
    out = []
    for c, relative in view._groups("traces.zarr"):
        ds = view.site.group(relative).load()
        for k in np.unique(ds["walk_index"].values):
            out.append(ds.isel(sample=np.flatnonzero(ds["walk_index"].values == k)))
        del c
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
