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
from mofal.commands.run import describe_run
from mofal.data.documents import parse_yaml
from mofal.errors import ConfigError

Say = Callable[[str], None]


def demo_config(
    *, seed: int | None = None, workers: int | None = None, dft: bool = False
) -> CampaignConfig:
    """Campaign of the demo (with `dft`, on labels of GPAW), with another seed or number of workers
    where asked.

    Raises
    ------
    ConfigError
        A number of workers, of the campaign whose pools say how many there are.
    """
    name = "dft" if dft else "demo"
    content: dict[str, Any] = parse_yaml(example_text(name), where=f"{name}.yaml").content
    if dft and workers is not None:
        raise ConfigError(
            "--workers: the pools of the demo on DFT labels say how many there are; type: "
            "mofal init dft.yaml --example dft, edit schedule: pools, and mofal run dft.yaml"
        )
    if seed is not None:
        content["seed"] = seed
    if workers is not None:
        content["schedule"]["workers"] = workers
    return parse_config(content, where=name)


def demo(
    directory: str | os.PathLike[str],
    *,
    dft: bool = False,
    dry_run: bool = False,
    seed: int | None = None,
    workers: int | None = None,
    say: Say = print,
) -> int:
    """Run the demo (or go on with it), write its report, print its table.

    Parameters
    ----------
    directory : path
        Where it lives.
    dft : bool
        The campaign on labels of density functional theory: hours instead of minutes.
    dry_run : bool
        Say what would run and what it costs, and do nothing.
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
    config = demo_config(seed=seed, workers=workers, dft=dft)
    campaign = Campaign(config, directory=directory)
    if dry_run:
        say(describe_run(campaign))
        return 0
    level = " on labels of density functional theory" if dft else ""
    say(f"mofal demo: a potential that knows UiO-66 meets a missing linker{level}")
    say(f"directory {campaign.directory}; stop it at any time, the same command goes on")
    view = campaign.run(progress=say)
    page = report(campaign.directory, progress=say)
    say(f"report: {page}")
    say("")
    for line in [*format_table(holdout_table(view)), "", *holding_table(view.site)]:
        say(line)
    return 0
