"""Accidents by the dozen on a real SLURM that this starts itself: does anything get lost?

    python benchmarks/schedule_chaos.py [--size tiny|full] [--what tasks|campaign] [--seeds 0-19]

Each seed is one run through a schedule of accidents (worker, driver, scheduler killed, job
cancelled, node lost, controller restarted). With ``--what tasks`` a run has many short durable
tasks, with ``--what campaign`` it is a whole small campaign (`mofal run`), compared with one that
nobody disturbed. Prints a table: the accidents, drivers needed, workers at risk (at work when they
were hit), tasks cut (started once more), durable results computed again, results lost.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.slurm import campaigns, tasks  # noqa: E402
from tests.slurm.chaos import Chaos, ChaosResult  # noqa: E402
from tests.slurm.lab import SlurmLab, install  # noqa: E402

#: tasks, seconds each, accidents; accidents of a campaign (each kind comes once before any twice)
SIZES = {"tiny": (12, 0.5, 2, 1), "full": (60, 1.0, 8, 6)}
SETTINGS = {
    "backend": "slurm",
    "interface": "lo",
    "poll_interval": 1.0,
    "idle_time": 5.0,
    "linger": 180.0,
    "pools": {"cpu": {"partition": "cpu", "workers": 4, "memory": "300MB", "walltime": "20m"}},
}


@dataclass
class Run:
    """What became of one seed.

    Attributes
    ----------
    result
        What happened to it.
    lost
        Results that are not there.
    again
        Results that were durable and computed again.
    cut
        Starts beyond one per result: what was in hand when something died.
    wrong
        What is not as if nothing had happened.
    """

    result: ChaosResult
    lost: int
    again: int
    cut: int
    wrong: list[str]

    @classmethod
    def judged(
        cls,
        result: ChaosResult,
        folder: Path,
        *,
        made: dict[str, float],
        lost: int,
        wrong: list[str],
    ) -> Run:
        """Judge what tasks noted of their starts, against when results came to be on disk."""
        trace = folder / "trace"
        starts = tasks.starts(trace)
        run = cls(
            result=result,
            lost=lost,
            again=tasks.started_again(trace, made),
            cut=sum(starts.values()) - len(starts),
            wrong=wrong,
        )
        if run.lost:
            wrong.append(f"{run.lost} results lost")
        if run.again:
            wrong.append(f"{run.again} durable results computed again")
        if run.cut > result.at_risk:
            wrong.append(f"{run.cut} starts too many where {result.at_risk} were at risk")
        return run


def run_tasks(lab: SlurmLab, folder: Path, seed: int, size: str) -> Run:
    """Many short tasks."""
    number, seconds, accidents, _ = SIZES[size]
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
    wrong = [] if result.finished else ["the driver gave up"]
    lost = sum(not (folder / f"{i:04d}.json").exists() for i in range(number))
    made = tasks.first_durable(folder / "trace")
    return Run.judged(result, folder, made=made, lost=lost, wrong=wrong)


def run_campaign(lab: SlurmLab, folder: Path, seed: int, size: str, undisturbed: Path) -> Run:
    """A whole campaign, compared with one that nobody disturbed."""
    file = campaigns.write_campaign(folder)
    chaos = Chaos(
        lab,
        campaigns.command(file),
        folder,
        seed=seed,
        number=SIZES[size][3],
        pause=(2.0, 8.0),
        log=folder / "driver.log",
        first=(folder / "trace").exists,
    )
    result = chaos.run(timeout=1800)
    wrong = [] if result.finished else ["the driver gave up"]
    if result.finished:
        wrong += campaigns.compare(undisturbed, folder)
    made, wanted = campaigns.records(folder), campaigns.records(undisturbed)
    lost = len(set(wanted) - set(made))
    return Run.judged(result, folder, made=made, lost=lost, wrong=wrong)


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
        columns = ("drivers", "at risk", "cut", "again", "lost", "seconds")
        print("".join(f"{column:>9}" for column in columns) + "  verdict", flush=True)
        total: Counter[str] = Counter()
        for seed in seeds:
            folder = base / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            lab.restore()
            if options.what == "tasks":
                run = run_tasks(lab, folder, seed, options.size)
            else:
                run = run_campaign(lab, folder, seed, options.size, undisturbed)
            bad += bool(run.wrong)
            total.update({**run.result.accidents, "cut": run.cut, "again": run.again})
            total.update({"lost": run.lost, "at risk": run.result.at_risk})
            print(
                f"{seed:>5}"
                + "".join(f"{run.result.accidents[word]:>11}" for word in words)
                + f"{run.result.drivers:>9}{run.result.at_risk:>9}{run.cut:>9}{run.again:>9}"
                + f"{run.lost:>9}{run.result.seconds:>9.0f}  {'; '.join(run.wrong) or 'ok'}",
                flush=True,
            )
        print("  all" + "".join(f"{total[word]:>11}" for word in words), end="")
        print(f"{'':>9}" + "".join(f"{total[column]:>9}" for column in columns[1:5]))
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
