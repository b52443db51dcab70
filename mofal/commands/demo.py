"""`mofal demo`: the main job on the embedded default, and the table that it is judged by."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mofal.campaign.config import CampaignConfig
from mofal.campaign.driver import Campaign
from mofal.campaign.examples import example_text
from mofal.campaign.loading import parse_config
from mofal.campaign.steps.hold import table as holding_table
from mofal.campaign.view import format_table, holdout_table
from mofal.commands.report import report
from mofal.data.documents import parse_yaml

Say = Callable[[str], None]


def demo_config(*, seed: int | None = None, workers: int | None = None) -> CampaignConfig:
    """Campaign of the demo, with another seed or number of workers where asked."""
    content: dict[str, Any] = parse_yaml(example_text("demo"), where="demo.yaml").content
    if seed is not None:
        content["seed"] = seed
    if workers is not None:
        content["schedule"]["workers"] = workers
    return parse_config(content, where="demo")


def demo(
    directory: str | os.PathLike[str],
    *,
    seed: int | None = None,
    workers: int | None = None,
    say: Say = print,
) -> int:
    """Run the demo (or go on with it), write its report, print its table.

    Parameters
    ----------
    directory : path
        Where it lives.
    seed : int, optional
        Another seed than the file's.
    workers : int, optional
        Processes; default: one per core.
    say : callable
        Takes one line.

    Returns
    -------
    int
        0
    """
    campaign = Campaign(demo_config(seed=seed, workers=workers), directory=directory)
    say("mofal demo: a potential that knows UiO-66 meets a missing linker")
    say(f"directory {campaign.directory}; stop it at any time, the same command goes on")
    view = campaign.run(progress=say)
    page = report(campaign.directory, progress=say)
    say(f"report: {page}")
    say("")
    for line in [*format_table(holdout_table(view)), "", *holding_table(view.site)]:
        say(line)
    return 0
