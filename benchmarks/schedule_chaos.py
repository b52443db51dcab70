"""Accidents by the dozen on a real SLURM that this starts itself: does anything get lost?

    python benchmarks/schedule_chaos.py [--size tiny|full] [--what tasks|campaign] [--seeds 0-19]

Each seed is one run through a schedule of accidents (worker, driver, scheduler killed, job
cancelled, node lost, controller restarted). With ``--what tasks`` a run has many short durable
tasks, with ``--what campaign`` it is a whole small campaign (`mofal run`), compared with one that
nobody disturbed. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.slurm import campaigns, tasks  # noqa: E402
from tests.slurm.chaos import Chaos, ChaosResult  # noqa: E402
from tests.slurm.lab import SlurmLab, install  # noqa: E402

#: tasks, seconds each, accidents
SIZES = {"tiny": (12, 0.5, 2), "full": (60, 1.0, 8)}
SETTINGS = {
    "backend": "slurm",
    "interface": "lo",
    "poll_interval": 1.0,
    "idle_time": 5.0,
    "linger": 60.0,
    "pools": {"cpu": {"partition": "cpu", "workers": 4, "memory": "300MB", "walltime": "20m"}},
}


def run_tasks(lab: SlurmLab, folder: Path, seed: int, size: str) -> tuple[ChaosResult, list[str]]:
    """Many short tasks; what is wrong afterwards."""
    number, seconds, accidents = SIZES[size]
    command = [sys.executable, "-m", "tests.slurm.driver", str(folder), str(number), str(seconds)]
    command.append(json.dumps(SETTINGS))
    chaos = Chaos(
        lab,
        command,
        folder,
        seed=seed,
        number=accidents,
        pause=(1.0, 4.0),
        log=folder / "driver.log",
        first=(folder / "trace").exists,
    )
    result = chaos.run()
    durable, starts = tasks.durables(folder / "trace"), tasks.starts(folder / "trace")
    wrong = [] if result.finished else ["the driver gave up"]
    missing = [i for i in range(number) if not (folder / f"{i:04d}.json").exists()]
    if missing:
        wrong.append(f"{len(missing)} tasks lost")
    return result, wrong + judge(durable, starts, result, number)


def run_campaign(
    lab: SlurmLab, folder: Path, seed: int, size: str, undisturbed: Path
) -> tuple[ChaosResult, list[str]]:
    """A whole campaign; what is wrong afterwards."""
    file = campaigns.write_campaign(folder)
    chaos = Chaos(
        lab,
        campaigns.command(file),
        folder,
        seed=seed,
        number=SIZES[size][2],
        pause=(3.0, 12.0),
        log=folder / "driver.log",
        first=(folder / "trace").exists,
    )
    result = chaos.run(timeout=1800)
    wrong = [] if result.finished else ["the driver gave up"]
    if result.finished:
        wrong += campaigns.compare(undisturbed, folder)
    durable, starts = tasks.durables(folder / "trace"), tasks.starts(folder / "trace")
    return result, wrong + judge(durable, starts, result, len(durable))


def judge(
    durable: Counter[str], starts: Counter[str], result: ChaosResult, number: int
) -> list[str]:
    """What must hold of the starts and ends that the tasks noted themselves."""
    wrong = []
    again = sum(count - 1 for count in durable.values())
    if again > result.at_risk:
        wrong.append(f"{again} results were computed twice")
    cut = sum(starts.values()) - sum(durable.values())
    if cut > result.at_risk:
        wrong.append(f"{cut} tasks were cut where {result.at_risk} were at risk")
    if len(durable) < number:
        wrong.append(f"{number - len(durable)} results are missing")
    return wrong


def seeds_of(text: str) -> list[int]:
    """``0-19`` or ``3,5,8``."""
    first, dash, last = text.partition("-")
    if dash:
        return list(range(int(first), int(last) + 1))
    return [int(part) for part in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    """Run and print; returns the number of runs in which something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--what", choices=("tasks", "campaign"), default="tasks")
    parser.add_argument("--seeds", default=None)
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    options = parser.parse_args(argv)
    seeds = seeds_of(options.seeds or ("0" if options.size == "tiny" else "0-19"))
    try:
        install()
    except RuntimeError as error:
        print(f"no SLURM here: {error}")
        return 0
    base = Path(tempfile.mkdtemp(prefix="mofal-chaos-"))
    lab = SlurmLab(base / "slurm")
    bad = 0
    base.chmod(0o755)  # munge wants every folder above its socket open
    try:
        lab.start()
        undisturbed = base / "undisturbed"
        if options.what == "campaign":
            file = campaigns.write_campaign(undisturbed)
            quiet = Chaos(
                lab, campaigns.command(file), undisturbed, seed=0, number=0, log=base / "quiet.log"
            ).run(timeout=1800)
            print(f"undisturbed: {quiet.seconds:.0f} s", flush=True)
        words = ("worker", "driver", "scheduler", "scancel", "node", "controller")
        print(f"{'seed':>5}" + "".join(f"{word:>11}" for word in words), end="")
        print(f"{'drivers':>9}{'at risk':>9}{'cut':>5}{'again':>7}{'seconds':>9}  verdict")
        for seed in seeds:
            folder = base / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            lab.restore()
            if options.what == "tasks":
                result, wrong = run_tasks(lab, folder, seed, options.size)
            else:
                result, wrong = run_campaign(lab, folder, seed, options.size, undisturbed)
            durable, starts = tasks.durables(folder / "trace"), tasks.starts(folder / "trace")
            cut = sum(starts.values()) - sum(durable.values())
            again = sum(count - 1 for count in durable.values())
            bad += bool(wrong)
            print(f"{seed:>5}" + "".join(f"{result.accidents[word]:>11}" for word in words), end="")
            print(
                f"{result.drivers:>9}{result.at_risk:>9}{cut:>5}{again:>7}{result.seconds:>9.0f}"
                f"  {'; '.join(wrong) or 'ok'}",
                flush=True,
            )
    finally:
        lab.stop()
        if options.keep:
            print(f"kept in {base}")
        else:
            shutil.rmtree(base, ignore_errors=True)
    print(f"{len(seeds) - bad} of {len(seeds)} runs ended as if nothing had happened")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
