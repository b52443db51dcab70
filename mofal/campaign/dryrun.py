"""`mofal run --dry-run`: what a campaign is going to do, before anything is paid for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mofal.campaign import plan
from mofal.campaign.devices import describe_devices
from mofal.campaign.electrons import describe_electrons
from mofal.campaign.seeding import examine

if TYPE_CHECKING:
    from mofal.campaign.config import CampaignConfig
    from mofal.campaign.driver import Campaign
    from mofal.campaign.site import Site
    from mofal.schedule.preview import Work

#: Seconds of one label per (atoms / 114)³ on one core, where the campaign has no labels yet:
#: measured with GFN1-xTB; of other references nothing is known before the first label.
XTB_SECONDS = 2.5


def describe_run(campaign: Campaign) -> str:
    """Describe the campaign: systems, steps, labels, pools, job scripts, estimated node-hours.

    Everything that the campaign names is built and checked; nothing is written.

    Raises
    ------
    MofalError
        Whatever `mofal run` would refuse.
    """
    from mofal.reference.code import is_foreign
    from mofal.schedule.preview import dry_run

    site = campaign.site
    config = campaign.config
    findings = examine(site, run_code=False)
    lines = [f"campaign {config.name!r}, would live in {site.root}"]
    if findings is not None:
        level = findings.level_hash or "known once the code of its reference has been imported"
        lines.append(f"elements: {' '.join(findings.elements)}; level {level}")
        for name, (structure, blocks) in findings.systems.items():
            roles = [str(r) for r in blocks["role"].values]
            lines.append(
                f"  {name}: {int(structure['n_atoms'][0])} atoms, "
                f"{roles.count('node')} nodes, {roles.count('linker')} linkers"
            )
            lines += [f"    {line}" for line in describe_electrons(structure, blocks)]
        lines += [f"  note: {line}" for line in findings.notes]
    steps = site.steps()
    left = plan.unfinished(steps, site.exists)
    lines.append(f"{len(steps)} steps, {len(left)} left; {config.cycles} cycles")
    work = work_left(site)
    for item in work:
        lines.append(f"  {item.number:6d} x {item.kind}")
    if config.mechanics is not None:
        names = config.mechanics.systems or tuple(config.systems)
        lines.append(f"then mechanics ({', '.join(config.mechanics.what)}) of {', '.join(names)}")
    devices = describe_devices(config)
    lines += [devices] if devices else []
    # Code of others is asked only once a run has imported it.
    warning = "" if is_foreign(config.reference.name, level=False) else unfit_cores(site)
    lines += [warning] if warning else []
    lines += ["", *code_of(config)]
    lines += ["", dry_run(config.schedule, directory=site.root, work=work)]
    return "\n".join(lines)


def code_of(config: CampaignConfig) -> list[str]:
    """Every factory and command that a run will call: a campaign file is code.

    Told from the file; none of it is imported or run.
    """
    from mofal.reference.code import describe_code

    lines = ["a run will call, with your rights (so read the file of somebody else first):"]
    lines += [f"  reference: {line}" for line in describe_code(config.reference.name)]
    ranking = code_of_ranking(config.selection.ranking)
    if ranking:
        lines.append(f"  ranking: factory {ranking}, of an installed package")
    schedule = config.schedule
    if schedule.backend in ("inline", "threads"):
        return lines
    pools = schedule.effective_pools()
    for name, pool in pools.items():
        lines.append(
            f"  pool {name}: command {pool.python or sys.executable} -m mofal.schedule.job"
        )
        lines += [f"  pool {name}: shell {line}" for line in pool.prologue]
        lines += [f"  pool {name}: #SBATCH {line}" for line in pool.job_extra]
        if pool.environment:
            lines.append(f"  pool {name}: sets {', '.join(pool.environment)}")
    if schedule.driver is not None:
        lines.append(f"  driver: command {sys.executable} -m mofal run (with --submit)")
        lines += [f"  driver: shell {line}" for line in schedule.driver.prologue]
        lines += [f"  driver: #SBATCH {line}" for line in schedule.driver.job_extra]
    if any(pool.backend == "slurm" for pool in pools.values()):
        lines.append("  SLURM: commands sbatch, squeue, scancel")
    return [line if line.isprintable() else repr(line) for line in lines]


def code_of_ranking(name: str) -> str:
    """Where a ranking of an installed package is; "" for mofal's own."""
    from importlib.metadata import entry_points

    return next((p.value for p in entry_points(group="mofal.rankings") if p.name == name), "")


def unfit_cores(site: Site) -> str:
    """Say so where the labels' pool books other cores than the reference uses; "" where it fits."""
    reference, schedule = site.reference(), site.config.schedule
    ranks = getattr(reference, "ranks", None)
    if ranks is None or schedule.backend in ("inline", "threads"):
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
    from mofal.campaign import stages
    from mofal.schedule.preview import Work

    config = site.config
    seed = config.seed_data
    n_seed = (
        seed.perturbed.frames
        if seed.perturbed
        else seed.clusters.per_system * len(config.explored)
        if seed.clusters
        else 0
    )
    left = plan.unfinished(site.steps(), site.exists)
    ready = plan.ready(left, site.exists)
    counts: dict[str, int] = {}
    at_once: dict[str, int] = {}
    for step in left:
        n = 1
        if step in ready:
            n = sum(not task.found() for task in stages.expand(site, step))
        elif step.stage == "walk":
            n = config.exploration.walks
        elif step.stage == "hold" and config.holding is not None:
            n = config.holding.runs
        elif step.stage == "label":
            n = config.selection.clusters if step.cycle else n_seed
            if step.holdout and config.holdout is not None:
                n = config.holdout.frames
        kind = {"control": "train", "hold": "walk"}.get(step.stage, step.stage)
        counts[kind] = counts.get(kind, 0) + n
        at_once[kind] = max(at_once.get(kind, 0), n * max(1, len(config.explored)))
    lengths = known_lengths(site)
    return [Work(k, n, lengths.get(k), min(n, at_once[k])) for k, n in counts.items() if n]


def known_lengths(site: Site) -> dict[str, float]:
    """Mean length (s) of a task by kind: of those that this campaign has done, else as its file
    says (`schedule.lengths`), else as measured with the embedded reference."""
    from mofal.schedule.events import read_events

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
    pools = schedule.effective_pools()
    total = 0.0
    for item in work_left(site):
        if item.seconds is None:
            return None
        workers = pools[schedule.pool_of(item.kind)].workers.max
        total += item.number * item.seconds / min(workers, item.at_once or item.number)
    return total
