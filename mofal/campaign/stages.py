"""Steps become tasks, and what the tasks left becomes groups.

`expand` says which tasks a step consists of (none of them done already); `finish` gathers their
products, where the task of the step did not write the step's product itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import holding, plan, tasks
from mofal.campaign.aside import set_aside
from mofal.campaign.label import ended_by
from mofal.campaign.plan import PRIORITY, Step
from mofal.campaign.site import ISOLATED, Site
from mofal.errors import CampaignError
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr


# ---------------------------------------------------------------------------------- expand
def expand(site: Site, step: Step, *, retry_failed: bool = False) -> list[Task]:
    """Tasks that a step still needs, in the order of their indices.

    With `retry_failed`, labels whose attempts all failed get one more, those of earlier cycles
    among them: a label that comes late joins the cycle that is open.
    """
    if step.stage == "label":
        return _label_tasks(site, step, retry_failed)
    if step.stage == "walk":
        return _walk_tasks(site, step)
    if step.stage == "hold":
        return holding.expand(site, step)
    root = str(site.root)
    cycle, system = step.cycle, step.system
    last = plan.is_final(site.config, cycle, site.last_cycle())
    function: Any
    kwargs: dict[str, Any]
    if step.stage == "sample" and step.holdout:
        function, kwargs = tasks.sample_holdout, {"system": system}
    elif step.stage == "sample":
        function, kwargs = tasks.sample_seed, {}
    elif step.stage == "train":
        function, kwargs = tasks.train, {"cycle": cycle, "last": last}
    elif step.stage == "control":
        function, kwargs = tasks.train_control, {"cycle": cycle, "last": last}
    elif step.stage == "density":
        function, kwargs = tasks.density, {"cycle": cycle}
    elif step.stage == "select":
        function, kwargs = tasks.select_clusters, {"cycle": cycle, "system": system}
    elif step.stage == "propose":
        function, kwargs = tasks.propose, {"cycle": cycle}
    else:
        function = tasks.judge
        kwargs = {"system": system, "model": step.needs[0], "makes": step.makes}
    kind = "train" if step.stage == "control" else step.stage
    return [
        Task(
            kind=kind,
            key=_key(step.stage, step.makes),
            function=function,
            kwargs={"root": root, "identity": site.identity, **kwargs},
            output=site.path(plan.marker(step.makes)),
            priority=PRIORITY[step.stage],
            resumable=kind == "train",
        )
    ]


def _key(*words: str) -> str:
    return "-".join(words).replace("/", "-").removesuffix(".zarr")


def _walk_tasks(site: Site, step: Step) -> list[Task]:
    return [
        Task(
            kind="walk",
            key=f"{step.cycle:03d}-{step.system}-{k:04d}",
            function=tasks.walk,
            kwargs={
                "root": str(site.root),
                "identity": site.identity,
                "cycle": step.cycle,
                "system": step.system,
                "index": k,
            },
            output=tasks.walk_place(site, step.cycle, step.system, k),
            priority=PRIORITY["walk"],
            resumable=True,
        )
        for k in range(site.config.exploration.walks)
    ]


def _label_tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    group = step.needs[0]
    if "energy" in site.group(group):
        return []
    out: dict[str, Task] = {}
    for relative in [group, *(_earlier(site, step) if retry_failed else [])]:
        for task in _labels_of(site, step, relative, retry_failed):
            out.setdefault(task.key, task)
    return list(out.values())


def _earlier(site: Site, step: Step) -> list[str]:
    """Clusters of the same system in the cycles before."""
    if not step.cycle or step.holdout:
        return []
    return [plan.place(c, step.system, "clusters.zarr") for c in range(1, step.cycle)]


def _labels_of(site: Site, step: Step, group: str, retry_failed: bool) -> list[Task]:
    from mofal.reference.cache import record_key

    level = site.facts["level_hash"]
    cache = site.cache()
    ds = site.group(group)
    n_atoms = ds["n_atoms"].values
    out = []
    for k, structure in enumerate(str(s) for s in ds["structure_id"].values):
        known = cache.attempts(structure, level)
        allowed = site.config.reference.attempts
        if retry_failed:
            allowed = max(allowed, len(known) + 1)
        if any(a.converged for a in known) or len(known) >= allowed:
            continue
        if structure in site.by_hand:
            continue
        key = record_key(structure, level)
        out.append(
            Task(
                kind="label",
                key=key,
                function=tasks.label,
                kwargs={
                    "root": str(site.root),
                    "identity": site.identity,
                    "group": group,
                    "index": k,
                    "attempts": allowed,
                },
                # Cubic in the atoms is what every reference comes to in the end.
                cost=float(n_atoms[k]) ** 3,
                priority=PRIORITY["label"] - (40 if step.holdout else 0),
            )
        )
    return out


def closed_failures(site: Site) -> str:
    """What `--retry-failed` cannot reach, in one line: labels of groups that are finished.

    A group is never written again. A cluster of an earlier cycle joins the next cycle once it has a
    label; seed data and held-out frames have no next one.
    """
    groups = [plan.place(0, "labels.zarr")]
    groups += [plan.holdout(s, "labels.zarr") for s in site.config.holdout_systems]
    clusters = [p for c, p in site.label_groups(site.config.cycles) if c]
    last = not any(
        step.stage == "label" and step.cycle and not step.holdout
        for step in plan.unfinished(site.steps(), site.exists)
    )
    lost = sum(_failed(site, g) for g in [*groups, *(clusters if last else [])] if site.exists(g))
    later = 0 if last else sum(_failed(site, g) for g in clusters)
    parts = []
    if later:
        parts.append(f"{later} failed labels of earlier cycles join the cycle that is open")
    if lost:
        parts.append(
            f"{lost} failed labels are in groups that are finished and stay as they are"
            + ("; a further cycle takes those of clusters up: raise `cycles`" if last else "")
        )
    return "; ".join(parts)


def _failed(site: Site, group: str) -> int:
    return sum(str(s) in FAILED for s in site.group(group)["status"].values)


FAILED = ("not_converged", "crashed", "timed_out", "out_of_memory", "inconsistent")
"""Statuses of labels that another attempt may mend."""


# ---------------------------------------------------------------------------------- finish
def failure(step: Step, outcome: Outcome) -> str:
    """What to tell a person of a task that stops a step; "" where the step goes on without it.

    Only a calculation itself can fail as a result, and that is a record of its own. A task that
    fails around it (a disk, a file, a package) is done again once that is mended. A label or a walk
    that ended every worker which it met is left out.
    """
    if outcome.ok or (outcome.status == "quarantined" and step.stage in ("label", "walk")):
        return ""
    return (
        f"{step.name} {outcome.status}: {outcome.reason or 'no reason given'}; "
        "what is finished is kept: mend the cause and run the same command again"
    )


def finish(
    site: Site, step: Step, outcomes: Sequence[Outcome], *, pending: Collection[str] = ()
) -> str:
    """Make the step's product from what its tasks left; return one line for a person.

    Parameters
    ----------
    site, step
    outcomes : sequence of Outcome
    pending : collection of str
        Names of tasks that the step does not wait for.

    Raises
    ------
    CampaignError
        A task that the campaign cannot do without has failed, or what it left is gone.
    """
    for outcome in outcomes:
        why = failure(step, outcome)
        if why:
            raise CampaignError(why)
    if step.stage == "label":
        return _gather_labels(site, step, pending)
    if step.stage == "walk":
        return _gather_walks(site, step, outcomes)
    if step.stage == "hold":
        return holding.finish(site, step)
    summary: Mapping[str, Any] = outcomes[0].summary if outcomes else {}
    return _line(step, summary or {})


def _line(step: Step, summary: Mapping[str, Any]) -> str:
    if "given" in summary:
        return f"starts from {summary['given']}"
    if step.stage in ("train", "control") and "steps" in summary:
        return (
            f"{summary['steps']} steps, {summary['atoms_seen']:,} atoms seen"
            + (f", stopped by {summary['stopped_by']}" if summary.get("stopped_by") else "")
            + (f"; {summary['note']}" if summary.get("note") else "")
        )
    if summary.get("structures") == 0 and step.stage == "propose":
        return "no cluster could be labelled; the model goes on with what there is"
    if summary.get("mae_p95_meV_per_A") is not None:
        what = "error before learning from them" if step.stage == "propose" else step.needs[0]
        return (
            f"{what}: MAE {summary['mae_meV_per_A']:.0f}, "
            f"MAE_P95 {summary['mae_p95_meV_per_A']:.0f} meV/Å"
        )
    return ", ".join(f"{v} {k}" for k, v in summary.items() if v or k != "refused")


def _gather_labels(site: Site, step: Step, pending: Collection[str]) -> str:
    from mofal.data import concat, select, write_group
    from mofal.reference import gather
    from mofal.reference.cache import record_key

    group = step.needs[0]
    structures = site.group(group).load()
    if "energy" in structures:
        labels = structures
    else:
        reference = site.reference()
        cache = site.cache()
        if step.cycle and not step.holdout:
            late = _late(site, step)
            if late is not None:
                structures = concat([structures, late])
        level = reference.level_hash
        ids = [str(s) for s in structures["structure_id"].values]
        found = [cache.get(s, level) for s in ids]
        there = [k for k, attempt in enumerate(found) if attempt is not None]
        for s, attempt in zip(ids, found):
            if attempt is not None:
                cache.share(attempt)  # one whose task was killed before its label was copied
            elif f"label-{record_key(s, level)}" not in pending and s not in site.by_hand:
                raise CampaignError(
                    f"{step.name}: the record of structure {s} is not in {cache.path} any more; "
                    "run the same command again, which makes what is missing"
                )
        labels = gather(
            select(structures, there),
            cache,
            reference=reference,
            isolated_atom_energies=isolated_atoms(site),
        )
    labels, aside = set_aside(labels, site.config.reference, site.by_hand)
    write_group(labels, site.path(step.makes), kind="labels")
    status = [str(s) for s in labels["status"].values]
    counts = {s: status.count(s) for s in dict.fromkeys(status)}
    line = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in counts.items())
    if aside:
        line += f" ({aside[0]}{f'; and {len(aside) - 1} more' if len(aside) > 1 else ''})"
    return line


def isolated_atoms(site: Site) -> dict[str, float]:
    """Isolated-atom energies of all elements of the campaign, eV."""
    return dict(site.reference().isolated_atom_energies(site.elements, cache=site.root / ISOLATED))


def record_quarantine(site: Site, outcome: Outcome) -> None:
    """Give a label whose task ended its workers a record that says so; it is not tried again."""
    from mofal.data import select, to_atoms
    from mofal.reference.base import begin, fail

    one = select(site.group(outcome.task.kwargs["group"]), int(outcome.task.kwargs["index"]))
    attempt = begin(site.reference(), to_atoms(one.load(), 0))
    site.cache().put(fail(attempt, ended_by(outcome.reason), f"{outcome.status}: {outcome.reason}"))


def _late(site: Site, step: Step) -> xr.Dataset | None:
    """Clusters of earlier cycles whose labels came after their cycle had gone on without them.

    Their cycle did not wait for them (a quorum), or it has them as failed, and another attempt
    brought the label since.
    """
    from mofal.data import concat, select

    cache, level = site.cache(), site.facts["level_hash"]
    own = site.group(plan.place(step.cycle, step.system, "clusters.zarr"))
    taken = {str(s) for s in own["structure_id"].values}
    failed: set[str] = set()
    for c in range(1, step.cycle):
        labels = site.group(plan.place(c, step.system, "labels.zarr"))
        for s, status in zip(labels["structure_id"].values, labels["status"].values):
            (failed if str(status) in FAILED else taken).add(str(s))
    parts = []
    for c in range(1, step.cycle):
        clusters = site.group(plan.place(c, step.system, "clusters.zarr"))
        late = []
        for k, s in enumerate(str(v) for v in clusters["structure_id"].values):
            attempt = None if s in taken else cache.get(s, level)
            if attempt is not None and (attempt.converged or s not in failed):
                late.append(k)
                taken.add(s)
        if late:
            parts.append(select(clusters, late).load())
    return concat(parts) if parts else None


def _gather_walks(site: Site, step: Step, outcomes: Sequence[Outcome]) -> str:
    import xarray as xr

    from mofal.data import concat, open_group, write_group

    lost = {int(o.task.kwargs["index"]): o.reason for o in outcomes if not o.ok}
    frames, features, records, traces = [], [], [], []
    for k in range(site.config.exploration.walks):
        where = tasks.walk_place(site, step.cycle, step.system, k)
        if not where.exists():
            if k in lost:
                continue
            raise CampaignError(
                f"{step.name}: walk {k} is not in {where.parent} any more; run the same command "
                "again, which makes what is missing"
            )
        frames.append(open_group(where / "frame.zarr").load())
        features.append(open_group(where / "features.zarr").load())
        records.append(open_group(where / "walk.zarr").load())
        trace = open_group(where / "trace.zarr").load()
        traces.append(trace.assign(walk_index=("sample", np.full(trace.sizes["sample"], k))))
    if not frames:
        reason = next(iter(lost.values()), "no reason given")
        raise CampaignError(
            f"{step.name}: not one walk of {site.config.exploration.walks} gave a frame: {reason}"
        )
    walks = xr.concat(records, "walk")
    target = plan.place(step.cycle, step.system)
    write_group(concat(features), site.path(f"{target}/features.zarr"), kind="features")
    write_group(walks, site.path(f"{target}/walks.zarr"), kind="table")
    write_group(xr.concat(traces, "sample"), site.path(f"{target}/traces.zarr"), kind="table")
    write_group(concat(frames), site.path(step.makes))
    tasks.sweep_work(site, target)
    status = [str(s).replace("_", " ") for s in walks["walk_status"].values]
    notes = "".join(f"; {o.summary['note']}" for o in outcomes if o.ok and "note" in o.summary)
    line = ", ".join(f"{status.count(s)} {s}" for s in dict.fromkeys(status))
    length = float(walks["length_fs"].mean())
    failed = f", {len(lost)} failed" if lost else ""
    return line + f", {length:.0f} fs on average" + failed + notes
