"""The stages of a campaign, one file each: its tasks, what a task does, and the gathering after.

A new stage is a file here, its line in `STAGES`, and its steps in `mofal.campaign.plan`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mofal.campaign.directory import Site
from mofal.campaign.plan import StageName, Step
from mofal.campaign.steps import density, hold, judge, label, sample, select, train, walk
from mofal.campaign.steps.base import Stage
from mofal.errors import CampaignError
from mofal.schedule.task import Outcome, Task

STAGES: dict[StageName, Stage] = {
    "sample": sample.STAGE,
    "label": label.STAGE,
    "train": train.STAGE,
    "density": density.STAGE,
    "walk": walk.STAGE,
    "select": select.STAGE,
    "propose": judge.PROPOSE,
    "judge": judge.JUDGE,
    "hold": hold.STAGE,
    "control": train.CONTROL,
}


def expand(site: Site, step: Step, *, retry_failed: bool = False) -> list[Task]:
    """Tasks that a step still needs, in the order of their indices.

    With `retry_failed`, labels whose attempts all failed get one more, those of earlier cycles
    among them: a label that comes late joins the cycle that is open.
    """
    return STAGES[step.stage].tasks(site, step, retry_failed)


def failure(step: Step, outcome: Outcome) -> str:
    """What to tell a person of a task that stops a step; "" where the step goes on without it.

    Only a calculation itself can fail as a result, and that is a record of its own. A task that
    fails around it (a disk, a file, a package) is done again once that is mended. A label or a walk
    that ended every worker which it met is left out.
    """
    stage = STAGES[step.stage]
    spared = stage.loses and outcome.task.kind == (stage.kind or step.stage)
    if outcome.ok or (outcome.status == "quarantined" and spared):
        return ""
    return (
        f"{step.name} {outcome.status}: {outcome.reason or 'no reason given'}; "
        "what is finished is kept: mend the cause and run the same command again"
    )


def closing(site: Site, step: Step, outcomes: Sequence[Outcome]) -> Task | None:
    """Task that brings together what the others of a step have left, if it has one."""
    last = STAGES[step.stage].closing
    return None if last is None else last(site, step, outcomes)


def finish(
    site: Site, step: Step, outcomes: Sequence[Outcome], *, pending: Collection[str] = ()
) -> str:
    """Make the step's product from what its tasks left; return one line for a person.

    Parameters
    ----------
    site, step
    outcomes : sequence of Outcome
    pending : collection of str
        Names of tasks that the step does not wait for.

    Raises
    ------
    CampaignError
        A task that the campaign cannot do without has failed, or what it left is gone.
    """
    for outcome in outcomes:
        why = failure(step, outcome)
        if why:
            raise CampaignError(why)
    return STAGES[step.stage].finish(site, step, outcomes, pending)
