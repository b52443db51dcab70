"""A campaign in few numbers: its summary, its learning curve, its errors as tables."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.errors import StoreError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.view import CampaignView


def facts(view: CampaignView) -> list[tuple[str, str]]:
    """What a person wants to know first: names and values, in order. Reads small files only."""
    site, config = view.site, view.config
    done = site.finished_cycles()
    rows = [
        ("directory", str(view.path)),
        ("cycles", f"{max(done, 0)} of {config.cycles} finished" if done >= 0 else "no model yet"),
        ("reference", config.reference.name),
        ("systems", ", ".join(_system(view, name) for name in config.systems)),
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
    ready = [name for name, there in _what_is_there(view).items() if there]
    rows.append(("to look at", ", ".join(ready) or "nothing yet"))
    return rows


def _system(view: CampaignView, name: str) -> str:
    known = view.site.facts["systems"].get(name, {})
    return f"{name} ({known['n_atoms']} atoms)" if "n_atoms" in known else name


def _what_is_there(view: CampaignView) -> dict[str, bool]:
    groups = {
        "structures": "samples.zarr", "features": "features.zarr", "scores": "scores.zarr",
        "walks": "walks.zarr", "traces": "traces.zarr",
    }  # fmt: skip
    found = {name: bool(view._groups(file)) for name, file in groups.items()}
    labelled = bool(view.site.label_groups(view.config.cycles))
    judged = [
        s
        for s in view.config.holdout_systems
        if view.site.exists(paths.holdout(s, "model-000.zarr"))
    ]
    return {
        **found,
        "labels": labelled,
        "training_set()": labelled,
        **{f"errors({s!r})": True for s in judged},
        "learning_curve()": bool(judged) or found["scores"],
        "potential()": view.site.finished_cycles() >= 0,
    }


def as_text(view: CampaignView) -> str:
    """The summary as `print` shows it."""
    rows = facts(view)
    width = max(len(name) for name, _ in rows)
    lines = [f"mofal campaign {view.config.name!r}"]
    return "\n".join([*lines, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def as_html(view: CampaignView) -> str:
    """The summary as a notebook shows it."""
    cells = "".join(
        f"<tr><th style='text-align:left;vertical-align:top'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for name, value in facts(view)
    )
    title = html.escape(f"mofal campaign {view.config.name}")
    return f"<div><b>{title}</b><table>{cells}</table></div>"


def learning_curve(view: CampaignView) -> xr.Dataset:
    """See `CampaignView.learning_curve`."""
    import xarray as xr

    cycles = list(range(view.config.cycles + 1))
    systems = list(view.config.holdout_systems)
    shape = (len(cycles), len(systems))
    held: dict[str, np.ndarray] = {
        f"{model}_{metric}": np.full(shape, np.nan)
        for model in ("campaign", "control")
        for metric in ("mae", "mae_p95")
    }
    proposed = {metric: np.full(len(cycles), np.nan) for metric in ("mae", "mae_p95")}
    for c in cycles:
        if c and view.site.exists(paths.place(c, "proposal.zarr")):
            attrs = view.proposal(c).attrs
            for metric in proposed:
                proposed[metric][c] = float(attrs.get(f"{metric}_meV_per_A", np.nan))
        for k, system in enumerate(systems):
            for model, tag in (("campaign", "model"), ("control", "control")):
                if not view.site.exists(paths.holdout(system, f"{tag}-{c:03d}.zarr")):
                    continue
                table = _table(view, system, f"{tag}-{c:03d}", subsets={}, elements=False)
                for metric in ("mae", "mae_p95"):
                    held[f"{model}_{metric}"][c, k] = 1000.0 * float(
                        table[metric].sel(subset="all")
                    )
    if all(np.isnan(v).all() for v in (*held.values(), *proposed.values())):
        raise StoreError(
            f"{view.path} has no errors yet; look again when a model has been judged: "
            f"mofal status {view.path}"
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


def errors(view: CampaignView, system: str) -> xr.Dataset:
    """See `CampaignView.errors`."""
    import xarray as xr

    from mofal.campaign.view import atom_mask, judged_labels, tags
    from mofal.frameworks.defects import defect_atoms

    known = view.config.holdout_systems
    if system not in known:
        raise StoreError(
            f"{view.path} has no held-out frames of {system!r}; it has some of: "
            f"{', '.join(known) or 'none'}"
        )
    found = tags(view)
    if not found:
        raise StoreError(f"{view.path}: no model has been judged on {system} yet; look again later")
    labels = judged_labels(view, system)
    defect = defect_atoms(view.blocks(system))
    subsets = {"defect": atom_mask(labels, defect)} if len(defect) else {}
    tables = [_table(view, system, tag, subsets=subsets, labels=labels) for tag in found.values()]
    out = xr.concat(tables, "model", combine_attrs="drop_conflicts").assign_coords(
        model=np.array(list(found), object)
    )
    for name in out.data_vars:
        if out[name].attrs.get("units") in ("eV/Å", "eV"):
            unit = str(out[name].attrs["units"])
            out[name] = (1000.0 * out[name]).assign_attrs({**out[name].attrs, "units": f"m{unit}"})
    return out


def _table(
    view: CampaignView,
    system: str,
    tag: str,
    *,
    subsets: dict[str, Any],
    elements: bool = True,
    labels: xr.Dataset | None = None,
) -> xr.Dataset:
    from mofal.analysis import error_table
    from mofal.campaign.view import judged_labels

    reference = judged_labels(view, system) if labels is None else labels
    predicted = view.judgement(system, tag).load()
    return error_table(reference, predicted, subsets=subsets, elements=elements)
