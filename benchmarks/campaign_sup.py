"""A whole campaign on S_sup (23,700 atoms): time and peak memory of each stage.

    python benchmarks/campaign_sup.py DIRECTORY [--workers 2] [--steps 20] [--clusters 10]

The potential is `tiny`, the reference a Lennard-Jones potential that costs nothing (so that what is
measured is the campaign), two walks of 20 steps, cores by `lowest_quantile`. Time is from the first
start to the last end of a stage's tasks, memory the largest resident one of any process meanwhile,
the driver's beside it.
"""

from __future__ import annotations

import argparse
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
            "barostat_fs": 2.0,
            "max_force": 1e4,
            "unfamiliar_quantile": 0.0,
        },
        "selection": {"clusters": options.clusters, "ranking": "lowest_quantile"},
        "schedule": {"backend": "local", "workers": options.workers},
    }


def watch(samples: list[tuple[float, bool, float]], stop: threading.Event) -> None:
    """Sample resident memory (GB) of this process and of all that it started."""
    own = psutil.Process()
    while not stop.wait(0.2):
        now = time.time()
        for process in (own, *own.children(recursive=True)):
            try:
                samples.append((now, process.pid == own.pid, process.memory_info().rss / 1e9))
            except psutil.Error:
                continue


def main(argv: list[str] | None = None) -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clusters", type=int, default=10)
    options = parser.parse_args(argv)
    samples: list[tuple[float, bool, float]] = []
    stop = threading.Event()
    thread = threading.Thread(target=watch, args=(samples, stop), daemon=True)
    thread.start()
    begin = time.perf_counter()
    mofal.Campaign(content(options), directory=options.directory).run(progress=print)
    whole = time.perf_counter() - begin
    stop.set()
    thread.join()
    spans: dict[str, list[float]] = {}
    for event in read_events(options.directory):
        if event["event"] in ("start", "end") and "kind" in event:
            spans.setdefault(event["kind"], []).append(event["t"])
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {whole:.0f} s in all")
    print("| stage | s | largest worker, GB | driver, GB |\n|---|---|---|---|")
    for kind, times in sorted(spans.items(), key=lambda item: min(item[1])):
        here = [s for s in samples if min(times) - 0.2 <= s[0] <= max(times) + 0.2]
        worker = max((gb for _, driver, gb in here if not driver), default=0.0)
        driver = max((gb for _, driver, gb in here if driver), default=0.0)
        print(f"| {kind} | {max(times) - min(times):.0f} | {worker:.2f} | {driver:.2f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
