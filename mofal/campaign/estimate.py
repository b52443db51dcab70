"""The numbers of a dry run and of a status: what is left to do, and how long that takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mofal.campaign import plan
from mofal.campaign.steps import STAGES
from mofal.schedule.events import read_events
from mofal.schedule.preview import Work

if TYPE_CHECKING:
    from mofal.campaign.directory import Site


#: Seconds of one label per (atoms / 114)³ on one core, where the campaign has no labels yet:
#: measured with GFN1-xTB; of other references nothing is known before the first label.
XTB_SECONDS = 2.5


def unfit_cores(site: Site) -> str:
    """Say so where the labels' pool books other cores than the reference uses; "" where it fits."""
    reference, schedule = site.reference(), site.config.schedule
    ranks = getattr(reference, "ranks", None)
    if ranks is None or schedule.backend in ("inline", "threads", "client"):
        return ""
    threads = int(getattr(reference, "threads", 1))
    name = schedule.pool_of("label")
    pool = schedule.effective_pools()[name]
    if (pool.mpi_ranks, pool.threads) == (ranks, threads) or (
        pool.backend == "local" and not schedule.pools
    ):
        return ""
    return (
        f"warning: reference {site.config.reference.name} uses {ranks} MPI ranks x {threads} "
        f"threads, a worker of pool {name} has {pool.mpi_ranks} x {pool.threads}; set "
        f"pools: {name}: mpi_ranks: {ranks}, threads: {threads}, or ...?ranks={pool.mpi_ranks}"
        f"{f'&threads={pool.threads}' if pool.threads != threads else ''} in reference: name:"
    )


def work_left(site: Site) -> list[Work]:
    """Tasks of each kind that a campaign is still going to have, and what is known of their length.

    Of a step that can start, or has, those tasks are counted that are not done; of later ones as
    many as the campaign file says.
    """
    config = site.config
    left = plan.unfinished(site.steps(), site.exists)
    ready = plan.ready(left, site.exists)
    counts: dict[str, int] = {}
    at_once: dict[str, int] = {}
    for step in left:
        stage = STAGES[step.stage]
        if step in ready:
            n = sum(not task.found() for task in stage.tasks(site, step, False))
        else:
            n = stage.expected(config, step)
        kind = stage.kind or step.stage
        counts[kind] = counts.get(kind, 0) + n
        at_once[kind] = max(at_once.get(kind, 0), n * max(1, len(config.explored)))
    lengths = known_lengths(site)
    return [Work(k, n, lengths.get(k), min(n, at_once[k])) for k, n in counts.items() if n]


def known_lengths(site: Site) -> dict[str, float]:
    """Mean length (s) of a task by kind: of those that this campaign has done, else as its file
    says (`schedule.lengths`), else as measured with the embedded reference."""
    lengths: dict[str, float] = {}
    if site.config.reference.name.startswith("gfn"):
        lengths["label"] = XTB_SECONDS * 4  # a 66- to 186-atom cluster
    lengths.update(site.config.schedule.lengths)
    times: dict[str, list[float]] = {}
    for event in read_events(site.root):
        done = event["event"] == "end" and event.get("status") == "done"
        if done and "kind" in event and "wall_time" in event:
            times.setdefault(event["kind"], []).append(float(event["wall_time"]))
    lengths.update({kind: sum(own) / len(own) for kind, own in times.items()})
    return lengths


def seconds_left(site: Site) -> float | None:
    """Time (s) that what is left takes with all workers that the pools may have, one kind after
    the other; None where the length of a kind is not known yet."""
    schedule = site.config.schedule
    if schedule.backend == "client":
        return None  # how many workers there are is the cluster's affair
    pools = schedule.effective_pools()
    total = 0.0
    for item in work_left(site):
        if item.seconds is None:
            return None
        workers = pools[schedule.pool_of(item.kind)].workers.max
        total += item.number * item.seconds / min(workers, item.at_once or item.number)
    return total
