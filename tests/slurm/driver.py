"""A driver in a process of its own, for the tests that end it: FOLDER NUMBER SECONDS SETTINGS."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mofal.schedule import CampaignLock, HandedOver, Pools, ScheduleSettings, Task
from tests.slurm import tasks


def work(folder: Path, number: int, seconds: float) -> list[Task]:
    """The same tasks for every driver."""
    made = []
    for index in range(number):
        path = folder / f"{index:04d}.json"
        arguments = {"output": str(path), "seconds": seconds, "trace": str(folder / "trace")}
        made.append(Task("label", f"{index:04d}", tasks.label, arguments, path))
    return made


def main(argv: list[str]) -> int:
    """Run all tasks; prints a line for each."""
    folder, number, seconds = Path(argv[0]), int(argv[1]), float(argv[2])
    content = json.loads(argv[3])
    if "driver" in content and (folder / "schedule" / "events.jsonl").exists():
        content["driver"]["margin"] = "1s"  # who has taken over keeps the campaign
    settings = ScheduleSettings.model_validate(content)
    with CampaignLock(folder), Pools.from_settings(settings, directory=folder) as pools:
        try:
            for outcome in pools.run(work(folder, number, seconds)):
                print(outcome.status, outcome.task.key, flush=True)
        except HandedOver as news:
            print(f"LEFT {news}", flush=True)
            return 0
    print("FINISHED", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
