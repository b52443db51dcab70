"""`mofal run --dry-run`: what a campaign is going to do, before anything is paid for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mofal.campaign import plan
from mofal.campaign.devices import describe_devices
from mofal.campaign.electrons import describe_electrons
from mofal.campaign.estimate import unfit_cores, work_left
from mofal.campaign.prepare import examine
from mofal.reference.code import describe_code, is_foreign
from mofal.schedule.preview import dry_run
from mofal.schedule.survey import survey

if TYPE_CHECKING:
    from mofal.campaign.config import CampaignConfig
    from mofal.campaign.driver import Campaign


def describe_run(campaign: Campaign) -> str:
    """Describe the campaign: systems, steps, labels, pools, job scripts, estimated node-hours.

    Everything that the campaign names is built and checked, a Dask cluster that it names is asked
    who is there; nothing is written.

    Raises
    ------
    MofalError
        Whatever `mofal run` would refuse.
    """
    site = campaign.site
    config = campaign.config
    cluster = survey(config.schedule) if config.schedule.backend == "client" else []
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
    lines += ["", *code_of(config), *cluster]
    lines += ["", dry_run(config.schedule, directory=site.root, work=work)]
    return "\n".join(lines)


def code_of(config: CampaignConfig) -> list[str]:
    """Every factory and command that a run will call: a campaign file is code.

    Told from the file; none of it is imported or run.
    """
    lines = ["a run will call, with your rights (so read the file of somebody else first):"]
    lines += [f"  reference: {line}" for line in describe_code(config.reference.name)]
    ranking = code_of_ranking(config.selection.ranking)
    if ranking:
        lines.append(f"  ranking: factory {ranking}, of an installed package")
    schedule = config.schedule
    if schedule.backend in ("inline", "threads"):
        return lines
    if schedule.backend == "client":
        return [*lines, f"  on the workers of the Dask cluster at {schedule.address or '(given)'}"]
    pools = schedule.effective_pools()
    for name, pool in pools.items():
        lines.append(
            f"  pool {name}: command {pool.python or sys.executable} -m mofal.schedule.job"
        )
        lines += [f"  pool {name}: shell {line}" for line in pool.prologue]
        lines += [f"  pool {name}: #SBATCH {line}" for line in pool.job_extra]
        if pool.environment:
            lines.append(f"  pool {name}: sets {', '.join(pool.environment)}")
    driver = schedule.effective_driver()
    if driver is not None:
        lines.append(f"  driver: command {sys.executable} -m mofal run (with --submit)")
        lines += [f"  driver: shell {line}" for line in driver.prologue]
        lines += [f"  driver: #SBATCH {line}" for line in driver.job_extra]
    if any(pool.backend == "slurm" for pool in pools.values()):
        lines.append("  SLURM: commands sbatch, squeue, scancel")
    return [line if line.isprintable() else repr(line) for line in lines]


def code_of_ranking(name: str) -> str:
    """Where a ranking of an installed package is; "" for mofal's own."""
    from importlib.metadata import entry_points

    return next((p.value for p in entry_points(group="mofal.rankings") if p.name == name), "")
