"""`mofal status`: how far a campaign is, from its directory (and SLURM's queue) alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from mofal.campaign import plan
from mofal.campaign.directory import Site
from mofal.campaign.estimate import seconds_left
from mofal.campaign.view import cycle_table
from mofal.schedule import format_status, read_status

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
    for row in cycle_table(site):
        mae, p95 = (
            f"{row[k]:.0f}" if k in row else "-" for k in ("proposal_mae", "proposal_mae_p95")
        )
        steps = "-" if row.get("steps") is None else str(row["steps"])
        out.append(
            f"{row['cycle']:>5} {row['labelled']:>7} {row['failed']:>7} {row['set_aside']:>6} "
            f"{mae:>7} {p95:>8} {steps:>7}   {row.get('model_hash', '-')}"
        )
    return out


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
