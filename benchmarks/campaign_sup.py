"""A whole campaign on S_sup (23,700 atoms): time and peak memory of each stage.

    python benchmarks/campaign_sup.py DIRECTORY [--workers 2] [--steps 20] [--clusters 10]

The potential is `tiny`, the reference a Lennard-Jones potential that costs nothing (so that what is
measured is the campaign), two walks of 20 steps, cores by `lowest_quantile`. Time is that of a task
on its worker, memory the largest resident one of any process while such a task ran, the driver's
beside it. Killed, it goes on when it is started again, as every campaign does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

import mofal
from mofal.schedule import read_events


def content(options: argparse.Namespace) -> dict[str, Any]:
    """The campaign file."""
    return {
        "name": "sup",
        "seed": 1,
        "systems": {
            "pristine": {"build": "S_pr", "cell": "primitive", "explore": False},
            "sup": {"build": "S_sup"},
        },
        "seed_data": {"perturbed": {"system": "pristine", "frames": 20}},
        "cycles": 1,
        "reference": {
            "name": "ase:ase.calculators.lj:LennardJones?epsilon=0.2&sigma=1.0&rc=3.0",
            "max_force_eV_per_A": 1e6,
        },
        "potential": {
            "architecture": "tiny",
            "seed": {"max_epochs": 3},
            "final": {"max_epochs": 1},
        },
        "exploration": {
            "walks": 2,
            "length_fs": 0.5 * options.steps,
            "ramp_cycles": 1,
            "ensemble": "nvt",
            "max_force": 1e4,
            "unfamiliar_quantile": 0.0,
            # Three epochs on twenty frames make no potential that holds a bond or a cell.
            "bond_z": None,
            "bond_mean_z": None,
        },
        "selection": {"clusters": options.clusters, "ranking": "lowest_quantile"},
        "schedule": {"backend": "local", "workers": options.workers},
    }


def watch(file: Path, stop: threading.Event) -> None:
    """Sample resident memory (GB) of this process and of all that it started, into a file."""
    own = psutil.Process()
    with file.open("a") as out:
        while not stop.wait(0.2):
            now = time.time()
            for process in (own, *own.children(recursive=True)):
                try:
                    used = process.memory_info().rss / 1e9
                except psutil.Error:
                    continue
                out.write(json.dumps([now, process.pid == own.pid, used]) + "\n")
            out.flush()


def table(directory: Path, file: Path) -> str:
    """Tasks, their time, and the largest memory while one of their kind ran."""
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    open_: dict[tuple[str, str], float] = {}
    spans: dict[str, list[tuple[float, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for event in read_events(directory):
        if event["event"] not in ("start", "end") or "kind" not in event:
            continue
        task = (event["kind"], event["key"])
        if event["event"] == "start":
            open_[task] = event["t"]
        elif task in open_:
            spans.setdefault(event["kind"], []).append((open_.pop(task), event["t"]))
            seconds.setdefault(event["kind"], []).append(float(event["wall_time"]))
    lines = [
        "| stage | tasks | s a task | largest worker, GB | driver, GB |",
        "|---|---|---|---|---|",
    ]
    for kind, own in spans.items():
        here = [s for s in samples if any(a - 0.2 <= s[0] <= b + 0.2 for a, b in own)]
        worker = max((gb for _, driver, gb in here if not driver), default=0.0)
        driver = max((gb for _, driver, gb in here if driver), default=0.0)
        mean = sum(seconds[kind]) / len(own)
        lines.append(f"| {kind} | {len(own)} | {mean:.1f} | {worker:.2f} | {driver:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run it, or go on with it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clusters", type=int, default=10)
    options = parser.parse_args(argv)
    file = options.directory.with_name(options.directory.name + ".memory.jsonl")
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(file, stop), daemon=True)
    thread.start()
    mofal.Campaign(content(options), directory=options.directory).run(progress=print)
    stop.set()
    thread.join()
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(table(options.directory, file))


if __name__ == "__main__":
    main(sys.argv[1:])
