"""Labelling as a service: `mofal label`, and what `match` and `noise` are built on.

A short plan of its own on the campaign's stages: structures in one immutable group, one durable
task per label, records addressed by content, the labelled file at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.files import is_being_written, remove_leftovers
from mofal.errors import CampaignError, ConfigError, MofalError, StructureError
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.reference import LabelCache

HOLD_FORCES = (".extxyz", ".xyz", ".traj", ".db", ".json")
"""Endings of files that keep what a label is."""

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
    from mofal.data import open_group, select
    from mofal.reference import label_one

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
    from mofal.reference import LabelCache

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
) -> list[Any]:
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
    from mofal.data import hash_json, write_group
    from mofal.reference import get_reference
    from mofal.reference.cache import record_key
    from mofal.schedule import Pools

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
            known = cache.attempts(identity, levels[spec])
            for made in known:
                cache.share(made)  # one whose command was killed before its label was copied
            if any(a.converged for a in known) or (known and not retry_failed):
                continue
            key = record_key(identity, levels[spec])
            kwargs = {
                "group": str(group.absolute()),
                "index": k,
                "reference": spec,
                "records": str(place.absolute()),
                "attempts": len(known) + 1,
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
    """Be the one command that labels into a directory.

    Raises
    ------
    CampaignError
        Another one does.
    """
    from mofal.schedule import CampaignLock

    lock = CampaignLock(place)
    try:
        lock.acquire()
    except CampaignError:
        holder = lock.holder()
        raise CampaignError(
            f"{place} is in use: another command (pid {holder.get('pid')} on {holder.get('host')}) "
            "labels into it; wait for it, end it there, or give another directory"
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
    pools: Any,
    tasks: list[Task],
    cache: Any,
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


def ended_by(reason: str) -> str:
    """Status of a label that ended every worker which it met."""
    return "out_of_memory" if "out of memory" in reason else "crashed"


def _record_quarantine(
    outcome: Any, cache: LabelCache, structures: xr.Dataset, specs: list[str]
) -> None:
    """Give a label whose task ended its workers a record that says so."""
    from mofal.data import to_atoms
    from mofal.reference import get_reference
    from mofal.reference.base import begin, fail

    if outcome.status == "quarantined":
        k = int(outcome.task.kwargs["index"])
        attempt = begin(get_reference(specs[k]), to_atoms(structures, k))
        cache.put(fail(attempt, ended_by(outcome.reason), f"{outcome.status}: {outcome.reason}"))


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
        from mofal.reference import get_reference
        from mofal.reference.gpaw_memory import machine_memory_bytes
        from mofal.schedule.settings import cpu_count

        methods = [get_reference(spec) for spec in references]
        cores = max(getattr(m, "ranks", 1) * getattr(m, "threads", 1) for m in methods)
        workers = max(1, cpu_count() // cores)
        if workers > 1 and structures is not None:
            largest = max(_largest_job(m, structures) for m in methods)
            if largest > 0:
                workers = max(1, min(workers, int(machine_memory_bytes() / 1e9 / largest)))
    return ScheduleSettings(workers=workers)


def _largest_job(method: Any, structures: xr.Dataset) -> float:
    """Estimated memory of the largest label, GB; 0 where the reference does not say."""
    from mofal.data import to_atoms

    if not hasattr(method, "cost"):
        return 0.0
    found = [0.0]
    for k in np.argsort(structures["n_atoms"].values)[-20:].tolist():
        # What cannot be labelled, a cell without volume say, is said by its attempt.
        with contextlib.suppress(MofalError, ValueError, ArithmeticError):
            found.append(float(method.cost(to_atoms(structures, k)).memory_GB))
    return max(found)


def check_seed(seed: int) -> None:
    """Refuse a seed that no generator takes."""
    if seed < 0:
        raise ConfigError(f"--seed is {seed}, expected a whole number from 0 up")


def label_file(
    path: str | os.PathLike[str],
    *,
    reference: str,
    output: str | None = None,
    records: str | None = None,
    caches: Sequence[str] = (),
    workers: int | None = None,
    schedule: str | None = None,
    retry_failed: bool = False,
    say: Say = print,
) -> int:
    """`mofal label`: label the structures of a file, write them labelled.

    Returns
    -------
    int
        0 where every label converged, 1 where some failed (they are listed).
    """
    from mofal.campaign.loading import load_config
    from mofal.campaign.seed_file import open_without_spin
    from mofal.data import read, to_atoms, write
    from mofal.reference import gather, get_reference

    method = get_reference(reference)
    if Path(path).is_dir():
        raise ConfigError(f"{path} is a directory; expected a file of structures")
    structures = unlabelled(read(path))
    silent = open_without_spin(to_atoms(structures))
    if silent:
        say(f"note: {silent}")
    target = Path(output) if output else Path(f"{path}.labelled.extxyz")
    if not target.parent.is_dir():
        raise ConfigError(f"{target.parent} is no directory; make it first: mkdir {target.parent}")
    if target.suffix.lower() not in HOLD_FORCES:
        raise ConfigError(
            f"-o {target}: a file of that kind holds no energies and forces; expected "
            + ", ".join(HOLD_FORCES)
        )
    settings = (
        load_config(schedule).schedule
        if schedule
        else local_schedule(workers, [reference], structures)
    )
    place = Path(records) if records else Path(f"{path}.labels")
    attempts = label_structures(
        structures,
        reference,
        directory=place,
        schedule=settings,
        retry_failed=retry_failed,
        caches=caches,
        say=say,
    )
    labels = gather(structures, attempts, reference=method, cache=place / "isolated-atoms")
    write(labels, target)
    if not getattr(method, "keep", False):
        shutil.rmtree(place / "scratch", ignore_errors=True)
    failed = [k for k, a in enumerate(attempts) if not a.converged]
    say(f"wrote {target}: {len(attempts) - len(failed)} labels at level {method.level_hash}")
    for k in failed:
        say(f"  structure {k}: {attempts[k].status}: {attempts[k].reason}")
    if failed:
        say(f"{len(failed)} failed; try them again with --retry-failed")
    return 1 if failed else 0


def unlabelled(structures: xr.Dataset) -> xr.Dataset:
    """Structures alone, without the labels that a file may bring along."""
    names = ("energy", "forces", "stress", "status", "reason", "wall_time")
    out = structures.drop_vars([v for v in names if v in structures])
    out.attrs = {}
    return out


def forces_of(attempts: Sequence[Any]) -> np.ndarray:
    """Forces of attempts, one after another: (atom, 3) eV/Å; NaN where a label failed."""
    return np.concatenate([a.forces for a in attempts])
