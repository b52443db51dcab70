"""Runs one step of a prepared campaign, as its driver would: ``one_step.py DIRECTORY BACKEND``.

A process of its own, which a test can kill.
"""

from __future__ import annotations

import json
import sys

from mofal.campaign.directory import Site
from mofal.campaign.plan import ready
from mofal.campaign.steps import expand
from mofal.schedule import Pools, ScheduleSettings


def main(directory: str, backend: str, stage: str = "density") -> None:
    """Run the tasks of the first step of a stage that is ready."""
    site = Site(directory)
    step = next(s for s in ready(site.steps(), site.exists) if s.stage == stage)
    settings = ScheduleSettings(backend=backend, workers=2)  # type: ignore[arg-type]
    with Pools(settings, directory=site.root) as pools:
        for outcome in pools.run(expand(site, step)):
            print(json.dumps({"status": outcome.status, "reason": outcome.reason}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
