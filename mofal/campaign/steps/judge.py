"""Judging: before a model learns new labels, and on the held-out frames."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mofal.analysis import mae, mae_p
from mofal.campaign import paths
from mofal.campaign.directory import COMMON, Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Stage,
    Summary,
    counted,
    on_site,
    one_task,
    summary_of,
)
from mofal.data import concat, select, write_group
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr


@on_site
def propose(site: Site, cycle: int) -> Summary:
    """Test the model that proposed a cycle's clusters on their labels, before it learns them."""
    parts = []
    for c, relative in site.label_groups(cycle, whole=True):
        if c == cycle:
            ds = site.group(relative).load()
            usable = np.flatnonzero(site.usable(ds))
            if len(usable):
                parts.append(select(ds[[v for v in COMMON if v in ds]], usable))
    target = site.path(paths.place(cycle, "proposal.zarr"))
    if not parts:
        # A cycle whose clusters were all refused, or whose labels all failed, teaches nothing, but
        # is no reason to end: the model goes on learning from what there is.
        import xarray as xr

        empty = {"structures": 0, "mae_meV_per_A": None, "mae_p95_meV_per_A": None}
        write_group(xr.Dataset(attrs={"structures": 0}), target, kind="table")
        return empty
    labels = concat(parts)
    predicted, attrs = predict(site, paths.model(cycle - 1), labels, device=site.device("propose"))
    predicted.attrs.update(attrs)
    write_group(predicted, target, kind="table")
    return attrs


@on_site
def judge(site: Site, system: str, model: str, makes: str) -> Summary:
    """Predict the held-out frames of a system with one model."""
    labels = site.group(paths.holdout(system, "labels.zarr")).load()
    usable = select(labels, np.flatnonzero(site.usable(labels)))
    predicted, attrs = predict(site, model, usable, device=site.device("judge"))
    predicted.attrs.update(attrs)
    write_group(predicted, site.path(makes), kind="table")
    return attrs


def predict(
    site: Site, model: str, labels: xr.Dataset, *, device: str
) -> tuple[xr.Dataset, Summary]:
    """Predictions of a model on labels, and their errors in one line of numbers."""
    from mofal.potential import load

    potential = load(site.path(model), device=device)
    predicted = potential.evaluate(labels)
    keep = [v for v in ("energy", "forces", "stress") if v in predicted]
    out = labels[
        ["numbers", "n_atoms", "structure_index", "structure_id", "system"]
        + (["region"] if "region" in labels else [])
    ].assign({f"predicted_{v}": predicted[v] for v in keep})
    out.attrs = {"model_hash": potential.model_hash}
    error = np.asarray(predicted["forces"].values) - labels["forces"].values
    error = error[np.isfinite(error)]
    return out, {
        "model_hash": potential.model_hash,
        "mae_meV_per_A": 1000 * float(mae(error)),
        "mae_p95_meV_per_A": 1000 * float(mae_p(error, 95)),
        "structures": int(labels.sizes["structure"]),
    }


def propose_tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each cycle."""
    return one_task(site, step, PROPOSE_PRIORITY, propose, cycle=step.cycle)


def judge_tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each model and system."""
    return one_task(
        site, step, PRIORITY, judge, system=step.system, model=step.needs[0], makes=step.makes
    )


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Say how large the errors are; the task left its predictions itself."""
    summary = summary_of(outcomes)
    if summary.get("structures") == 0 and step.stage == "propose":
        return "no cluster could be labelled; the model goes on with what there is"
    if summary.get("mae_p95_meV_per_A") is None:
        return counted(site, step, outcomes, pending)
    what = "error before learning from them" if step.stage == "propose" else step.needs[0]
    return (
        f"{what}: MAE {summary['mae_meV_per_A']:.0f}, "
        f"MAE_P95 {summary['mae_p95_meV_per_A']:.0f} meV/Å"
    )


PROPOSE_PRIORITY = 50
PRIORITY = 20
PROPOSE = Stage("test before learning", PROPOSE_PRIORITY, propose_tasks, finish)
JUDGE = Stage("hold-out", PRIORITY, judge_tasks, finish, judged_title="judged")
