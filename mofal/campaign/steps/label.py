"""Labels: one durable task each, their records addressed by content.

A stage of campaigns, and the service that `mofal label`, `match` and `noise` are built on: there
the structures lie in one immutable group.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths, plan
from mofal.campaign.aside import set_aside
from mofal.campaign.config import CampaignConfig
from mofal.campaign.directory import ISOLATED, Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Stage,
    Summary,
    on_site,
)
from mofal.data import concat, hash_json, open_group, select, to_atoms, write_group
from mofal.errors import CampaignError, ConfigError, MofalError, StructureError
from mofal.files import is_being_written, remove_leftovers
from mofal.reference import LabelCache, gather, get_reference, label_one
from mofal.reference.base import begin, fail
from mofal.reference.cache import record_key
from mofal.reference.processes import machine_memory_bytes
from mofal.schedule import CampaignLock, Pools
from mofal.schedule.settings import ScheduleSettings, cpu_count
from mofal.schedule.task import Outcome, Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.reference import Attempt, Reference


Say = Callable[[str], None]


def label_record(
    group: str,
    index: int,
    reference: str,
    records: str,
    attempts: int,
    caches: Sequence[str] = (),
) -> dict[str, Any]:
    """Label one structure of a group; the record is on disk when this returns."""
    attempt = label_one(
        select(open_group(group), index).load(),
        reference,
        directory=open_cache(records, caches),
        attempts=attempts,
    )
    return {"status": attempt.status, "reason": attempt.reason}


def open_cache(records: str | os.PathLike[str], caches: Sequence[str] = ()) -> LabelCache:
    """Open label records, with shared caches behind them: ``PATH``, or ``PATH:rw``.

    Raises
    ------
    ConfigError
        A shared cache is no directory.
    """
    shared: list[str | LabelCache] = []
    for text in caches:
        path = text.removesuffix(":rw")
        if not path or not Path(path).is_dir():
            path = path or "DIR"
            raise ConfigError(f"--cache {text} is no directory; a new one is made by: mkdir {path}")
        shared.append(LabelCache(path) if text.endswith(":rw") else path)
    return LabelCache(records, shared=shared)


def label_structures(
    structures: xr.Dataset,
    references: str | Sequence[str],
    *,
    directory: str | os.PathLike[str],
    schedule: ScheduleSettings | None = None,
    retry_failed: bool = False,
    caches: Sequence[str] = (),
    say: Say = print,
) -> list[Attempt]:
    """Label structures durably over any workers; started again, it goes on where it was.

    One command at a time works on a directory of records; a second one is refused.

    Parameters
    ----------
    structures : Dataset of kind ``structures``
    references : str or sequence of str
        One specification for all, or one each.
    directory : path
        Of the records.
    schedule : ScheduleSettings, optional
        Where the labels run; default: one process per core of this machine.
    retry_failed : bool
        Try labels that failed before once more.
    caches : sequence of str
        Label caches shared with others: ``PATH`` (read only) or ``PATH:rw`` (given the new labels).
    say : callable
        Takes lines of progress.

    Returns
    -------
    list of Attempt
        One per structure, in order.
    """
    n = structures.sizes["structure"]
    specs = [references] * n if isinstance(references, str) else list(references)
    levels = {spec: get_reference(spec).level_hash for spec in dict.fromkeys(specs)}
    place = Path(directory)
    cache = open_cache(place, caches)
    ids = [str(s) for s in structures["structure_id"].values]
    group = place / "structures" / f"{hash_json(ids)}.zarr"
    n_atoms = structures["n_atoms"].values
    with only_one(place):
        remove_leftovers(place, spare=is_being_written)
        cache.sweep(older_than_s=10.0)
        write_group(structures, group)
        tasks: dict[str, Task] = {}
        for k, (identity, spec) in enumerate(zip(ids, specs)):
            level = levels[spec]
            for made in cache.attempts(identity, level):
                cache.share(made)  # one whose command was killed before its label was copied
            allowed = attempts_left(cache, identity, level, 1, retry_failed)
            if not allowed:
                continue
            key = record_key(identity, level)
            kwargs = {
                "group": str(group.absolute()),
                "index": k,
                "reference": spec,
                "records": str(place.absolute()),
                "attempts": allowed,
                "caches": [absolute(c) for c in caches],
            }
            cost = float(n_atoms[k]) ** 3
            tasks.setdefault(key, Task("label", key, label_record, kwargs, cost=cost))
        if tasks:
            say(f"{n} structures, {len(tasks)} labels to make with {', '.join(levels)}")
            with Pools.from_settings(
                schedule or ScheduleSettings(), directory=place, progress=say
            ) as pools:
                _follow(pools, list(tasks.values()), cache, structures, specs, say)
        else:
            say(f"{n} structures, every label is there already")
    out = []
    for identity, spec in zip(ids, specs):
        attempt = cache.get(identity, levels[spec])
        if attempt is None:
            raise StructureError(f"the label of structure {identity} was lost; run the same again")
        out.append(attempt)
    return out


@contextlib.contextmanager
def only_one(place: Path) -> Iterator[None]:
    """Be the one command that works in a directory.

    Raises
    ------
    CampaignError
        Another one does.
    """
    lock = CampaignLock(place)
    try:
        lock.acquire()
    except CampaignError:
        holder = lock.holder()
        raise CampaignError(
            f"{place} is in use: another command (pid {holder.get('pid')} on {holder.get('host')}) "
            "works in it; wait for it, end it there, or give another directory"
        ) from None
    try:
        yield
    finally:
        lock.release()


def absolute(cache: str) -> str:
    """``PATH`` or ``PATH:rw`` of a shared cache, from the root of the file system."""
    path = cache.removesuffix(":rw")
    return str(Path(path).absolute()) + cache[len(path) :]


def _follow(
    pools: Pools,
    tasks: list[Task],
    cache: LabelCache,
    structures: xr.Dataset,
    specs: list[str],
    say: Say,
) -> None:
    """Show how far the labels are; stop where something around the calculations fails.

    Raises
    ------
    CampaignError
        A disk, a file, a package: no result, and the same command goes on.
    """
    import time

    spoke = time.monotonic()
    first = 0.0
    done = failed = 0
    completions = pools.completions()
    for task in tasks:
        completions.add(pools.submit(task))
    while completions.pending:
        outcome = completions.next(timeout=5.0)
        if outcome is None:
            continue
        done += 1
        _record_quarantine(outcome, cache, structures, specs)
        if outcome.status == "failed":
            for other in completions.wind_down(("label",)):
                _record_quarantine(other, cache, structures, specs)
            raise CampaignError(
                f"the label of structure {outcome.task.kwargs['index']} could not be made: "
                f"{outcome.reason}; what is finished is kept: mend the cause and run the same "
                "command again"
            )
        if not outcome.ok or outcome.summary.get("status", "converged") != "converged":
            failed += 1
            reason = outcome.reason or outcome.summary.get("reason", "")
            say(f"structure {outcome.task.kwargs['index']} failed: {reason}")
        now = time.monotonic()
        first = first or now
        if now - spoke > 5 or done == len(tasks):
            spoke = now
            line = f"{done}/{len(tasks)} done, {failed} failed"
            if 1 < done < len(tasks):
                # Counted from the first that ended: workers need a while to start.
                left = (now - first) / (done - 1) * (len(tasks) - done)
                end = time.strftime("%H:%M", time.localtime(time.time() + left))
                line += f", about {left:.0f} s left" + (f" (until {end})" if left > 300 else "")
            say(line)


def attempts_left(
    cache: LabelCache, structure: str, level: str, most: int, retry_failed: bool
) -> int:
    """Attempts that a label may have had after the next one; 0 where it gets no further one.

    Parameters
    ----------
    most : int
        Attempts after which a failure stands.
    retry_failed : bool
        Give one more to a label that has had them.
    """
    known = cache.attempts(structure, level)
    allowed = max(most, len(known) + 1) if retry_failed else most
    return 0 if any(a.converged for a in known) or len(known) >= allowed else allowed


def _ended(outcome: Outcome, reference: Reference, structures: xr.Dataset, k: int) -> Attempt:
    """Make the record of a label that ended every worker which it met; it is not tried again."""
    status = "out_of_memory" if "out of memory" in outcome.reason else "crashed"
    attempt = begin(reference, to_atoms(structures, k))
    return fail(attempt, status, f"{outcome.status}: {outcome.reason}")


def _record_quarantine(
    outcome: Outcome, cache: LabelCache, structures: xr.Dataset, specs: list[str]
) -> None:
    """Give a label whose task ended its workers a record that says so."""
    if outcome.status == "quarantined":
        k = int(outcome.task.kwargs["index"])
        cache.put(_ended(outcome, get_reference(specs[k]), structures, k))


def local_schedule(
    workers: int | None, references: Sequence[str] = (), structures: xr.Dataset | None = None
) -> ScheduleSettings:
    """So many processes of this machine; default: as many as its cores and its memory allow.

    A label takes as many cores as its reference has ranks and threads, and its worker is idle
    meanwhile. Memory counts where the reference estimates it (GPAW): a job alone may have all of
    it, so several side by side must fit together.
    """
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}, expected at least 1")
    if workers is None and references:
        methods = [get_reference(spec) for spec in references]
        cores = max(getattr(m, "ranks", 1) * getattr(m, "threads", 1) for m in methods)
        workers = max(1, cpu_count() // cores)
        if workers > 1 and structures is not None:
            largest = max(_largest_job(m, structures) for m in methods)
            if largest > 0:
                workers = max(1, min(workers, int(machine_memory_bytes() / 1e9 / largest)))
    return ScheduleSettings(workers=workers)


def _largest_job(method: Reference, structures: xr.Dataset) -> float:
    """Estimated memory of the largest label, GB; 0 where the reference does not say."""
    if not hasattr(method, "cost"):
        return 0.0
    found = [0.0]
    for k in np.argsort(structures["n_atoms"].values)[-20:].tolist():
        # What cannot be labelled, a cell without volume say, is said by its attempt.
        with contextlib.suppress(MofalError, ValueError, ArithmeticError):
            found.append(float(method.cost(to_atoms(structures, k)).memory_GB))
    return max(found)


def forces_of(attempts: Sequence[Attempt]) -> np.ndarray:
    """Forces of attempts, one after another: (atom, 3) eV/Å; NaN where a label failed."""
    return np.concatenate([a.forces for a in attempts])


@on_site
def label(site: Site, group: str, index: int, attempts: int) -> Summary:
    """Label one structure; the record is on disk when this returns."""
    one = select(site.group(group), index).load()
    attempt = label_one(
        one,
        site.reference(),
        directory=site.cache(),
        scratch=site.work("scratch"),
        attempts=attempts,
    )
    return {
        "status": attempt.status,
        "reason": attempt.reason,
        "wall_time_s": attempt.wall_time_s,
    }


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each structure whose label is not there."""
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
    return [paths.place(c, step.system, "clusters.zarr") for c in range(1, step.cycle)]


def _labels_of(site: Site, step: Step, group: str, retry_failed: bool) -> list[Task]:
    level = site.facts["level_hash"]
    cache = site.cache()
    ds = site.group(group)
    n_atoms = ds["n_atoms"].values
    out = []
    for k, structure in enumerate(str(s) for s in ds["structure_id"].values):
        most = site.config.reference.attempts
        allowed = attempts_left(cache, structure, level, most, retry_failed)
        if not allowed or structure in site.by_hand:
            continue
        key = record_key(structure, level)
        out.append(
            Task(
                kind="label",
                key=key,
                function=label,
                kwargs={
                    "root": str(site.root),
                    "identity": site.identity,
                    "group": group,
                    "index": k,
                    "attempts": allowed,
                },
                # Cubic in the atoms is what every reference comes to in the end.
                cost=float(n_atoms[k]) ** 3,
                priority=PRIORITY - (40 if step.holdout else 0),
            )
        )
    return out


def closed_failures(site: Site) -> str:
    """What `--retry-failed` cannot reach, in one line: labels of groups that are finished.

    A group is never written again. A cluster of an earlier cycle joins the next cycle once it has a
    label; seed data and held-out frames have no next one.
    """
    groups = [p for c, p in site.label_groups(0, whole=True)]
    groups += [paths.holdout(s, "labels.zarr") for s in site.config.holdout_systems]
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


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Gather the labels that are there, and set aside those that cannot be meant."""
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
    one = select(site.group(outcome.task.kwargs["group"]), int(outcome.task.kwargs["index"]))
    site.cache().put(_ended(outcome, site.reference(), one.load(), 0))


def _late(site: Site, step: Step) -> xr.Dataset | None:
    """Clusters of earlier cycles whose labels came after their cycle had gone on without them.

    Their cycle did not wait for them (a quorum), or it has them as failed, and another attempt
    brought the label since.
    """
    cache, level = site.cache(), site.facts["level_hash"]
    own = site.group(paths.place(step.cycle, step.system, "clusters.zarr"))
    taken = {str(s) for s in own["structure_id"].values}
    failed: set[str] = set()
    for c in range(1, step.cycle):
        labels = site.group(paths.place(c, step.system, "labels.zarr"))
        for s, status in zip(labels["structure_id"].values, labels["status"].values):
            (failed if str(status) in FAILED else taken).add(str(s))
    parts = []
    for c in range(1, step.cycle):
        clusters = site.group(paths.place(c, step.system, "clusters.zarr"))
        late = []
        for k, s in enumerate(str(v) for v in clusters["structure_id"].values):
            attempt = None if s in taken else cache.get(s, level)
            if attempt is not None and (attempt.converged or s not in failed):
                late.append(k)
                taken.add(s)
        if late:
            parts.append(select(clusters, late).load())
    return concat(parts) if parts else None


def _expected(config: CampaignConfig, step: Step) -> int:
    if step.holdout and config.holdout is not None:
        return config.holdout.frames
    if step.cycle:
        return config.selection.clusters
    seed = config.seed_sources[step.source].seed_data
    if seed.perturbed is not None:
        return seed.perturbed.frames
    return seed.clusters.per_system * len(config.explored) if seed.clusters is not None else 0


PRIORITY = 60
STAGE = Stage("labels", PRIORITY, tasks, finish, expected=_expected, loses=True)
