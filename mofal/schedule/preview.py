"""See before you submit: job scripts, pools and node-hours of a campaign, as text."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mofal.schedule.client import ABSENT
from mofal.schedule.events import EventLog, schedule_directory
from mofal.schedule.files import Layout
from mofal.schedule.jobqueue import describe
from mofal.schedule.jobs import Jobs
from mofal.schedule.sections import PoolSettings
from mofal.schedule.settings import ScheduleSettings
from mofal.schedule.simulate import SimulatedPool, SimulationResult, simulate
from mofal.schedule.units import format_walltime

#: Spread of lengths (of the logarithm) that an estimate assumes.
ASSUMED_SPREAD = 0.5
#: Tasks beyond this many are simulated as so many longer ones: the estimate stays quick.
MOST_SIMULATED = 3000


@dataclass(frozen=True)
class Work:
    """Tasks of one kind that a campaign is going to have.

    Attributes
    ----------
    kind
        Of the tasks.
    number
        How many, over the whole campaign.
    seconds
        Mean length of one on one worker of its pool; None where nobody knows.
    at_once
        How many of them wait at one time (those of one cycle); None: all.
    """

    kind: str
    number: int
    seconds: float | None = None
    at_once: int | None = None


def dry_run(
    settings: ScheduleSettings,
    *,
    directory: str | os.PathLike[str],
    work: Sequence[Work] = (),
) -> str:
    """What a schedule would do, without doing any of it.

    Parameters
    ----------
    settings
        The `schedule` section of a campaign file.
    directory
        Of the campaign; nothing is written there.
    work
        What there will be to do, for the estimates.

    Returns
    -------
    str
        Where scheduler and dashboard listen, each pool with its tasks, its estimate (from a
        simulation by the policy that the campaign runs by) and its job script.
    """
    pools = settings.effective_pools()
    lines = [f"backend {settings.backend}, {len(pools)} pool{'s' if len(pools) != 1 else ''}"]
    if settings.backend == "client":
        lines += describe_client(settings)
    elif settings.backend in ("local", "slurm"):
        where = settings.scheduler_interface or (
            "the address of this machine's name" if settings.backend == "slurm" else "127.0.0.1"
        )
        tls = "on" if settings.encrypted else "off"
        lines.append(f"scheduler on {where}, dashboard on 127.0.0.1, TLS {tls}")
        if not settings.encrypted:
            lines.append(
                "  warning: without TLS whoever reaches the scheduler's port, every user of this "
                "machine at least, can run code as you; expected tls: true"
            )
    total_hours = total_cores = 0.0
    unknown: list[str] = []
    for name, pool in pools.items():
        own = [item for item in work if settings.pool_of(item.kind) == name]
        lines += ["", *_describe(name, pool)]
        for item in own:
            length = "unknown length" if item.seconds is None else f"{_span(item.seconds)} each"
            lines.append(f"  {item.number} x {item.kind}, {length}")
            if item.seconds is None:
                unknown.append(item.kind)
            elif pool.backend == "slurm" and 3 * item.seconds > pool.walltime:
                lines.append(
                    f"  warning: a walltime of {format_walltime(pool.walltime)} holds few or none "
                    f"of them; expected {format_walltime(10 * item.seconds)} or more: walltime:"
                )
        if pool.backend == "client":
            continue  # how many workers there will be is the cluster's affair
        known = [item for item in own if item.seconds is not None and item.number > 0]
        if known:
            hours, cores, span = _estimate(pool, known)
            total_hours += hours
            total_cores += cores
            lines.append(
                f"  about {hours:.1f} node-hours (jobs x hours), {cores:.1f} core-hours, "
                f"{_span(span)} if the jobs start at once"
            )
        if pool.backend == "slurm":
            stated = settings.pools[name].model_copy(update={"backend": "slurm"})
            lines += [f"  {line}" for line in describe(stated)]
            lines.append(f"  job script ({name}-0):")
            lines += ["    " + line for line in script(settings, name, directory=directory)]
    if settings.backend == "client":
        return "\n".join(lines)
    lines += ["", f"in all about {total_hours:.1f} node-hours, {total_cores:.1f} core-hours"]
    if unknown:
        first = min(unknown, key=lambda kind: (kind not in ("label", "train"), kind))
        lines[-1] += (
            f", and what {', '.join(sorted(set(unknown)))} takes: say what you expect, e.g. "
            f"schedule: lengths: {{{first}: 2h}}, for a better estimate"
        )
    if settings.driver is not None:
        lines.append(
            f"driver in a job of {format_walltime(settings.driver.walltime)}, followed by another "
            f"{_span(settings.driver.margin)} before its end"
        )
    return "\n".join(lines)


def describe_client(settings: ScheduleSettings) -> list[str]:
    """Where a campaign on the workers of a Dask client would run, and what that leaves open."""
    lines = [f"Dask cluster at {settings.address or 'the address in its configuration'}; {ABSENT}"]
    if str(settings.address).startswith("tcp://"):
        lines.append(
            "  warning: without TLS whoever reaches the scheduler's port can run code as you; "
            "expected tls://, and distributed.comm.tls in Dask's configuration"
        )
    return lines


def script(
    settings: ScheduleSettings, pool: str, *, directory: str | os.PathLike[str]
) -> list[str]:
    """Lines of the job script of a pool's first job."""
    layout = Layout(schedule_directory(Path(directory).absolute()))
    jobs = Jobs(settings, layout=layout, tls=True, events=_Silent(), say=lambda text: None)
    return jobs.script(pool, name=f"{pool}-0").splitlines()


class _Silent(EventLog):
    """An event log that writes nothing."""

    def __init__(self) -> None:
        self._fd = None


def _describe(name: str, pool: PoolSettings) -> list[str]:
    """What a worker of the pool is."""
    workers = (
        "the cluster's" if pool.backend == "client" else f"{pool.workers.min} to {pool.workers.max}"
    )
    parts = [f"{workers} workers"]
    cores = f"{pool.cores} core{'s' if pool.cores > 1 else ''}"
    if pool.mpi_ranks > 1:
        cores += f" ({pool.mpi_ranks} MPI ranks x {pool.threads} threads)"
    parts.append(f"each {cores}")
    if pool.memory is not None:
        parts.append(f"{pool.memory / 1e9:.1f} GB")
    if pool.gpus:
        parts.append(f"{pool.gpus} GPU{'s' if pool.gpus > 1 else ''}")
    text = f"pool {name} ({pool.backend}): {', '.join(parts)}; takes {', '.join(pool.kinds)}"
    if pool.backend == "slurm":
        jobs = math.ceil(pool.workers.max / pool.workers_per_job)
        text += (
            f"; at most {jobs} jobs of {format_walltime(pool.walltime)} "
            f"on partition {pool.partition or '(default)'}"
        )
        if pool.account:
            text += f", account {pool.account}"
    return [text]


def _estimate(pool: PoolSettings, work: Sequence[Work]) -> tuple[float, float, float]:
    """Node-hours, core-hours and time (s) that a pool needs for its work."""
    hours = cores = span = 0.0
    for item in work:
        seconds = item.seconds or 0.0
        batch = min(item.at_once or item.number, item.number)
        result, factor = _simulate(pool, batch, seconds)
        batches = item.number / batch
        allocated = result.allocated / 3600 * factor * batches
        hours += allocated / pool.workers_per_job
        cores += allocated * pool.cores
        span += result.makespan * batches
    return hours, cores, span


def _simulate(pool: PoolSettings, number: int, seconds: float) -> tuple[SimulationResult, float]:
    """One batch in a pool, or a fraction of batch and pool; and what its hours are to be times.

    Lengths are spread as labels usually are, and known beforehand as well as costs tell them.
    """
    import numpy as np

    factor = max(number / MOST_SIMULATED, 1.0)
    count = math.ceil(number / factor)
    rng = np.random.default_rng(0)
    lengths = np.exp(ASSUMED_SPREAD * rng.normal(size=count))
    lengths *= seconds * count / lengths.sum()
    slurm = pool.backend == "slurm"
    simulated = SimulatedPool(
        most=max(round(pool.workers.max / factor), 1),
        workers_per_job=pool.workers_per_job,
        walltime=max(float(pool.walltime), 1.5 * float(lengths.max())) if slurm else math.inf,
        queue_wait=0.0,
        worth=60.0 if slurm else 0.0,
    )
    return simulate(simulated, lengths.tolist(), costs=lengths.tolist()), number / count


def _span(seconds: float) -> str:
    """A time for a person: 40 s, 12 min, 3.5 h, 2.1 d."""
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            value = seconds / unit
            return f"{value:.2g} {name}" if value < 10 else f"{value:.0f} {name}"
    return f"{seconds / 86400:.1f} d"
