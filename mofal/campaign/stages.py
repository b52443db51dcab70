"""Steps become tasks, and what the tasks left becomes groups.

`expand` says which tasks a step consists of (none of them done already); `finish` gathers their
products, where the task of the step did not write the step's product itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import holding, plan, tasks
from mofal.campaign.plan import PRIORITY, Step
from mofal.campaign.site import ISOLATED, Site
from mofal.errors import CampaignError
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr

_TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- expand
def expand(site: Site, step: Step) -> list[Task]:
    """Tasks that a step still needs, in the order of their indices."""
    if step.stage == "label":
        return _label_tasks(site, step)
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
            kwargs={"root": root, **kwargs},
            output=site.path(step.makes),
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


def _label_tasks(site: Site, step: Step) -> list[Task]:
    from mofal.reference.cache import record_key

    group = step.needs[0]
    ds = site.group(group)
    if "energy" in ds:
        return []
    level = site.facts["level_hash"]
    cache = site.cache()
    n_atoms = ds["n_atoms"].values
    out: dict[str, Task] = {}
    for k, structure in enumerate(str(s) for s in ds["structure_id"].values):
        known = cache.attempts(structure, level)
        if any(a.converged for a in known) or len(known) >= site.config.reference.attempts:
            continue
        key = record_key(structure, level)
        out.setdefault(
            key,
            Task(
                kind="label",
                key=key,
                function=tasks.label,
                kwargs={"root": str(site.root), "group": group, "index": k},
                # Cubic in the atoms is what every reference comes to in the end.
                cost=float(n_atoms[k]) ** 3,
                priority=PRIORITY["label"] - (40 if step.holdout else 0),
            ),
        )
    return list(out.values())


# ---------------------------------------------------------------------------------- finish
def finish(site: Site, step: Step, outcomes: Sequence[Outcome]) -> str:
    """Make the step's product from what its tasks left; return one line for a person.

    Raises
    ------
    CampaignError
        A task that the campaign cannot do without has failed.
    """
    if step.stage == "label":
        return _gather_labels(site, step, outcomes)
    if step.stage == "walk":
        return _gather_walks(site, step, outcomes)
    if step.stage == "hold":
        return holding.finish(site, step, outcomes)
    for outcome in outcomes:
        if not outcome.ok:
            raise CampaignError(
                f"{step.name} {outcome.status}: {outcome.reason or 'no reason given'}; "
                "what is finished is kept: mend the cause and run the same command again"
            )
    summary: Mapping[str, Any] = outcomes[0].summary if outcomes else {}
    return _line(step, summary or {})


def _line(step: Step, summary: Mapping[str, Any]) -> str:
    if step.stage in ("train", "control") and "steps" in summary:
        return f"{summary['steps']} steps, {summary['atoms_seen']:,} atoms seen" + (
            f", stopped by {summary['stopped_by']}" if summary.get("stopped_by") else ""
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


def _gather_labels(site: Site, step: Step, outcomes: Sequence[Outcome]) -> str:
    from mofal.data import concat, select, write_group
    from mofal.reference import gather

    group = step.needs[0]
    structures = site.group(group).load()
    if "energy" in structures:
        labels = structures
    else:
        _record_lost(site, structures, outcomes)
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
        for attempt in found:
            if attempt is not None:
                cache.share(attempt)  # one whose task was killed before its label was copied
        labels = gather(
            select(structures, there),
            cache,
            reference=reference,
            isolated_atom_energies=isolated_atoms(site),
        )
    labels, aside = set_aside(labels, site.config.reference.max_force_eV_per_A)
    write_group(labels, site.path(step.makes), kind="labels")
    status = [str(s) for s in labels["status"].values]
    counts = {s: status.count(s) for s in dict.fromkeys(status)}
    line = ", ".join(f"{n} {s.replace('_', ' ')}" for s, n in counts.items())
    if aside:
        line += f" (a force above {site.config.reference.max_force_eV_per_A:g} eV/Å: {aside})"
    return line


def isolated_atoms(site: Site) -> dict[str, float]:
    """Isolated-atom energies of all elements of the campaign, eV."""
    return dict(site.reference().isolated_atom_energies(site.elements, cache=site.root / ISOLATED))


def set_aside(labels: xr.Dataset, limit: float) -> tuple[xr.Dataset, int]:
    """Mark converged labels with a force beyond the limit, so that nothing learns from them.

    Parameters
    ----------
    limit : float
        eV/Å.

    Returns
    -------
    labels, n
        The labels with status ``set_aside`` and a reason, and how many they are.
    """
    size = np.linalg.norm(labels["forces"].values, axis=1)
    largest = np.zeros(labels.sizes["structure"])
    np.fmax.at(largest, labels["structure_index"].values, size)
    status = [str(s) for s in labels["status"].values]
    reason = [str(s) for s in labels["reason"].values] if "reason" in labels else [""] * len(status)
    hot = [k for k, s in enumerate(status) if s == "converged" and largest[k] > limit]
    for k in hot:
        status[k] = "set_aside"
        reason[k] = f"a force of {largest[k]:.1f} eV/Å, the limit is {limit:g}"
    return (
        labels.assign(
            status=("structure", np.array(status, _TEXT)),
            reason=("structure", np.array(reason, _TEXT)),
        ),
        len(hot),
    )


def _record_lost(site: Site, structures: xr.Dataset, outcomes: Sequence[Outcome]) -> None:
    """Give a label whose task ended its workers a record that says so; it is not tried again."""
    from mofal.data import to_atoms
    from mofal.reference.base import begin, fail

    for outcome in outcomes:
        if outcome.ok:
            continue
        index = int(outcome.task.kwargs["index"])
        attempt = begin(site.reference(), to_atoms(structures, index))
        site.cache().put(fail(attempt, "crashed", f"{outcome.status}: {outcome.reason}"))


def _late(site: Site, step: Step) -> xr.Dataset | None:
    """Clusters of earlier cycles whose labels came after their cycle had gone on without them."""
    from mofal.data import concat, select

    cache, level = site.cache(), site.facts["level_hash"]
    taken: set[str] = set()
    parts = []
    for c in range(1, step.cycle):
        taken |= {
            str(s)
            for s in site.group(plan.place(c, step.system, "labels.zarr"))["structure_id"].values
        }
    for c in range(1, step.cycle):
        clusters = site.group(plan.place(c, step.system, "clusters.zarr"))
        ids = [str(s) for s in clusters["structure_id"].values]
        late = [k for k, s in enumerate(ids) if s not in taken and cache.get(s, level) is not None]
        if late:
            parts.append(select(clusters, late).load())
    return concat(parts) if parts else None


def _gather_walks(site: Site, step: Step, outcomes: Sequence[Outcome]) -> str:
    import xarray as xr

    from mofal.data import concat, open_group, write_group

    frames, features, records, traces = [], [], [], []
    for k in range(site.config.exploration.walks):
        where = tasks.walk_place(site, step.cycle, step.system, k)
        if not where.is_dir():
            continue
        frames.append(open_group(where / "frame.zarr").load())
        features.append(open_group(where / "features.zarr").load())
        records.append(open_group(where / "walk.zarr").load())
        trace = open_group(where / "trace.zarr").load()
        traces.append(trace.assign(walk_index=("sample", np.full(trace.sizes["sample"], k))))
    if not frames:
        reason = next((o.reason for o in outcomes if not o.ok), "no reason given")
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
    lost = sum(not o.ok for o in outcomes)
    line = ", ".join(f"{status.count(s)} {s}" for s in dict.fromkeys(status))
    length = float(walks["length_fs"].mean())
    return line + f", {length:.0f} fs on average" + (f", {lost} failed" if lost else "")
