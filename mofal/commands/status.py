"""`mofal status`: how far a campaign is, from its directory (and SLURM's queue) alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mofal.campaign import paths, plan
from mofal.campaign.directory import Site
from mofal.campaign.estimate import seconds_left

#: A hundred years: a longer estimate says nothing, and has no date.
MOST_SECONDS = 3e9


def show(directory: str | os.PathLike[str]) -> str:
    """Text about a campaign: cycles, what comes next, tasks, failures.

    Parameters
    ----------
    directory : path
        Of the campaign; no driver need run.

    Raises
    ------
    CampaignError
        There is no campaign in it.
    """
    from mofal.schedule import format_status, read_status

    site = Site(directory)
    steps = site.steps()
    left = plan.unfinished(steps, site.exists)
    lines = [
        f"campaign {site.config.name!r} in {site.root}",
        f"steps    {len(steps) - len(left)} of {len(steps)} done"
        + (f", next: {left[0].name}" if left else ": finished"),
    ]
    rows = cycle_rows(site)
    if rows:
        lines.append("")
        lines.append(
            f"{'cycle':>5} {'labels':>7} {'failed':>7} {'aside':>6} {'MAE':>7} {'MAE_P95':>8}"
            f" {'steps':>7}   model"
        )
        lines += rows
        lines.append("MAE, MAE_P95: meV/Å on the cycle's clusters, before learning from them")
    progress = sorted(site.work("progress").glob("*.txt"), key=lambda p: p.stat().st_mtime)
    if left and progress and time.time() - progress[-1].stat().st_mtime < 120:
        word = progress[-1].read_text(encoding="utf-8", errors="replace").strip()
        lines += ["", f"{progress[-1].stem}: {word}"]
    lines += ["", format_status(read_status(site.root))]
    seconds = seconds_left(site) if left else None
    if seconds is not None and seconds < MOST_SECONDS:
        hours = f"{seconds / 3600:.1f} h" if seconds > 7200 else f"{seconds / 60:.0f} min"
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + seconds))
        lines += [
            "",
            f"all that is left takes about {hours} with all workers at work (until {end})",
        ]
    return "\n".join(lines)


def cycle_rows(site: Site) -> list[str]:
    """One line per cycle that has labels."""
    out = []
    for c in range(site.config.cycles + 1):
        groups = [p for k, p in site.label_groups(c) if k == c]
        if not groups:
            continue
        status = [str(s) for g in groups for s in site.group(g)["status"].values]
        aside = status.count("set_aside")
        good = status.count("converged")
        mae = p95 = "-"
        proposal = paths.place(c, "proposal.zarr")
        if site.exists(proposal):
            attrs = site.group(proposal).attrs
        else:
            attrs = {}
        if "mae_meV_per_A" in attrs:
            mae, p95 = f"{attrs['mae_meV_per_A']:.0f}", f"{attrs['mae_p95_meV_per_A']:.0f}"
        steps = model = "-"
        if site.exists(paths.model(c)):
            record = site.model_record(paths.model(c))
            steps, model = str(record.get("steps", "-")), model_hash(site, c)
        out.append(
            f"{c:>5} {good:>7} {len(status) - good - aside:>7} {aside:>6} {mae:>7} {p95:>8}"
            f" {steps:>7}   {model}"
        )
    return out


def model_hash(site: Site, cycle: int) -> str:
    """Hash of the model of a cycle, as its directory says."""
    from mofal.potential.directory import read_described

    return str(read_described(site.path(paths.model(cycle))).get("model_hash", "-"))[:12]


def watch(
    directory: str | os.PathLike[str], *, say: Callable[[str], None], every: float = 5.0
) -> None:
    """Show the status again and again until the campaign is finished or the user stops it."""
    while True:
        text = show(directory)
        say("\x1b[2J\x1b[H" + text)
        site = Site(directory)
        if not plan.unfinished(site.steps(), site.exists):
            return
        time.sleep(every)
