"""Training: of the model that a cycle ends with, and of its control."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.campaign import paths, plan
from mofal.campaign.directory import Site
from mofal.campaign.given import given_place, start_potential
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Heard,
    Stage,
    Summary,
    counted,
    notice,
    on_site,
    one_task,
    progress_files,
    summary_of,
)
from mofal.potential import train as train_potential
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    from mofal.potential import NequIPPotential, TrainingSettings


@on_site
def train(site: Site, cycle: int, last: bool) -> Summary:
    """Train the model that a cycle ends with, from the model of the cycle before."""
    settings = site.config.potential
    chosen = settings.seed if cycle == 0 else settings.final if last else settings.cycle
    out = site.path(paths.model(cycle))
    heard = Heard(notice(site, f"train-{cycle:03d}"))
    if cycle == 0 and settings.start is not None:
        if not site.exists(paths.model(0)):
            start_potential(site.config, site.facts["level_hash"]).save(out)
        return {"given": f"{settings.start}, {_but(settings.like) or 'as it is'}"}
    start: Path | NequIPPotential | None = None if cycle == 0 else site.path(paths.model(cycle - 1))
    changes: dict[str, Any] = {"device": site.device("train")}
    if cycle == 0 and settings.pretrained is not None:
        start = start_potential(site.config) if settings.like else given_place(settings.pretrained)
        changes["allow_other_level"] = True  # what it is for; all labels are of the campaign's
    train_potential(
        site.training_set(cycle, whole=True),
        chosen.model_copy(update=changes),
        out=out,
        start=start,
        elements=site.elements if cycle == 0 else None,
        seed=site.integer_seed("train", cycle),
        progress=heard,
    )
    begun: Summary = {}
    if changes.get("allow_other_level"):
        begun["begun"] = ", ".join(t for t in (settings.pretrained, _but(settings.like)) if t)
    return {**_training_summary(site, paths.model(cycle)), **heard.notes, **begun}


@on_site
def train_control(site: Site, cycle: int, last: bool) -> Summary:
    """Train the control: the same start and reset, as many atoms seen, the seed data alone."""
    settings = site.config.potential
    chosen = settings.final if last else settings.cycle
    seen = atoms_to_see(site, cycle, chosen)
    # Nothing but the atoms seen ends it, so that it gets no less than the campaign's model.
    chosen = chosen.model_copy(
        update={
            "device": site.device("train"),
            "max_atoms_seen": int(seen),
            "max_steps": None,
            "max_epochs": None,
            "stop_delta": 0.0,
            "stop_patience": 10**9,
            "min_learning_rate": 0.0,
        }
    )
    heard = Heard(notice(site, f"control-{cycle:03d}"))
    train_potential(
        site.training_set(0, whole=True),
        chosen,
        out=site.path(paths.control(cycle)),
        start=site.path(paths.control(cycle - 1)),
        seed=site.integer_seed("train", cycle),
        progress=heard,
    )
    return {**_training_summary(site, paths.control(cycle)), **heard.notes}


def atoms_to_see(site: Site, cycle: int, chosen: TrainingSettings) -> int:
    """Atoms that the model of a cycle sees in its training, or will see at the most."""
    if site.exists(paths.model(cycle)):
        return int(site.model_record(paths.model(cycle))["atoms_seen"])
    data = site.training_set(cycle, whole=True)
    per_epoch = int(data["n_atoms"].values[data["split"].values == "train"].sum())
    bounds = []
    if chosen.max_epochs is not None:
        bounds.append(chosen.max_epochs * per_epoch)
    if chosen.max_atoms_seen is not None:
        # It stops after the batch that passes the bound.
        largest = chosen.batch_size * int(data["n_atoms"].max())
        bounds.append(chosen.max_atoms_seen + largest)
    return min(bounds)


def _but(like: Mapping[str, str]) -> str:
    """Which elements begin as others, in words."""
    return ", ".join(f"{new} as {old}" for new, old in like.items())


def _training_summary(site: Site, relative: str) -> Summary:
    record = site.model_record(relative)
    return {k: record[k] for k in ("steps", "epochs", "atoms_seen", "stopped_by") if k in record}


def _is_last(site: Site, step: Step) -> bool:
    return plan.is_final(site.config, step.cycle, site.last_cycle())


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the training that a cycle ends with."""
    return one_task(site, step, PRIORITY, train, cycle=step.cycle, last=_is_last(site, step))


def control_tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the training of the control."""
    return one_task(
        site, step, CONTROL_PRIORITY, train_control, cycle=step.cycle, last=_is_last(site, step)
    )


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Say how the training went; it left its model itself."""
    summary = summary_of(outcomes)
    if "given" in summary:
        return f"starts from {summary['given']}"
    if "steps" not in summary:
        return counted(site, step, outcomes, pending)
    return (
        f"{summary['steps']} steps, {summary['atoms_seen']:,} atoms seen"
        + (f", stopped by {summary['stopped_by']}" if summary.get("stopped_by") else "")
        + (f", from the weights of {summary['begun']}" if summary.get("begun") else "")
        + (f"; {summary['note']}" if summary.get("note") else "")
    )


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"{step.stage}-{step.cycle:03d}")


PRIORITY = 90
CONTROL_PRIORITY = 10
STAGE = Stage("training", PRIORITY, tasks, finish, notes=_notes)
CONTROL = Stage(
    "training of the control", CONTROL_PRIORITY, control_tasks, finish, kind="train", notes=_notes
)
