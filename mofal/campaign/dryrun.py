"""`mofal run --dry-run`: what a campaign is going to do, before anything is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mofal.campaign import plan
from mofal.campaign.seeding import examine

if TYPE_CHECKING:
    from mofal.campaign.driver import Campaign

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
    from mofal.schedule.preview import dry_run

    site = campaign.site
    config = campaign.config
    findings = examine(site)
    lines = [f"campaign {config.name!r}, would live in {site.root}"]
    if findings is not None:
        lines.append(f"elements: {' '.join(findings.elements)}; level {findings.level_hash}")
        for name, (structure, blocks) in findings.systems.items():
            roles = [str(r) for r in blocks["role"].values]
            lines.append(
                f"  {name}: {int(structure['n_atoms'][0])} atoms, "
                f"{roles.count('node')} nodes, {roles.count('linker')} linkers"
            )
    steps = site.steps()
    left = plan.unfinished(steps, site.exists)
    lines.append(f"{len(steps)} steps, {len(left)} left; {config.cycles} cycles")
    work = _work(campaign)
    for item in work:
        lines.append(f"  {item.number:6d} x {item.kind}")
    lines += ["", dry_run(config.schedule, directory=site.root, work=work)]
    return "\n".join(lines)


def _work(campaign: Campaign) -> list[Any]:
    from mofal.schedule.preview import Work

    site, config = campaign.site, campaign.config
    left = plan.unfinished(site.steps(), site.exists)
    seed = config.seed_data
    n_seed = (
        seed.perturbed.frames
        if seed.perturbed
        else seed.clusters.per_system * len(config.explored)
        if seed.clusters
        else 0
    )
    counts: dict[str, int] = {}
    at_once: dict[str, int] = {}
    for step in left:
        n = 1
        if step.stage == "walk":
            n = config.exploration.walks
        elif step.stage == "label":
            n = config.selection.clusters if step.cycle else n_seed
            if step.holdout and config.holdout is not None:
                n = config.holdout.frames
        kind = "train" if step.stage == "control" else step.stage
        counts[kind] = counts.get(kind, 0) + n
        at_once[kind] = max(at_once.get(kind, 0), n * max(1, len(config.explored)))
    return [
        Work(kind, n, _seconds(campaign, kind), min(n, at_once[kind]))
        for kind, n in counts.items()
        if n
    ]


def _seconds(campaign: Campaign, kind: str) -> float | None:
    """Mean length of a task: of those of its kind that this campaign has done already."""
    from mofal.schedule.events import read_events

    times = [
        float(event["wall_time"])
        for event in read_events(campaign.site.root)
        if event["event"] == "end" and event.get("kind") == kind and event.get("status") == "done"
    ]
    if times:
        return sum(times) / len(times)
    if kind == "label" and campaign.config.reference.name.startswith("gfn"):
        return XTB_SECONDS * 4  # a 66- to 186-atom cluster
    return None
