"""What a minute of processor time teaches: batches, schedules, stress, threads, compiled steps.

    python benchmarks/potential_training.py [--size tiny|full] [--seeds 1 2 3] [--only NAME ...]
        [--directory DIR]

The data of the demo (164 labelled frames of UiO-66's primitive cell, 28 of which validate), `tiny`,
from nothing. Each line is a training with one thing changed: force MAE on the validation frames
against processor seconds, with those of children (a compiler's), and by the clock. The peer of all
is the first line, the demo's way. Rows are kept in DIR, one for each training; an interrupted run
goes on with the same command.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"atoms": 2_000, "frames": 12,
             "architecture": {"r_max": 3.0, "n_layers": 1, "n_features": 2}},
    "full": {"atoms": 100_000, "frames": None, "architecture": "tiny"},
}  # fmt: skip
BASE: dict[str, Any] = {
    "learning_rate": 0.01, "batch_size": 2, "ema_decay": 0.99, "energy_weight": 10,
    "decay": "cosine", "stop_patience": 10**6,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "as the demo trains": {},
    "one structure a step": {"batch_size": 1},
    "four structures a step": {"batch_size": 4},
    "four, twice the rate": {"batch_size": 4, "learning_rate": 0.02},
    "rate by plateau": {"decay": "plateau"},
    "half the rate": {"learning_rate": 0.005},
    "stress in the loss": {"stress_weight": 1000.0},
    "two threads": {"threads": 2},
    "compiled": {"engine": "compiled"},
    "compiled, 2.4 times the atoms": {"engine": "compiled", "more": 2.4},
}


def used() -> float:
    """Processor seconds of this process and its ended children."""
    mine, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return mine.ru_utime + mine.ru_stime + children.ru_utime + children.ru_stime


def one(name: str, seed: int, size: str, out: Path) -> None:
    """One training, in a process of its own, and its row."""
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group, select
    from mofal.potential import TrainingSettings, train

    plan = SIZES[size]
    labels = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    if plan["frames"]:
        every = labels.sizes["structure"] // plan["frames"]
        labels = select(labels, range(0, labels.sizes["structure"], every))
    changes = dict(VARIANTS[name])
    atoms = int(plan["atoms"] * changes.pop("more", 1.0))
    settings = TrainingSettings(
        **{**BASE, "architecture": plan["architecture"], "max_atoms_seen": atoms, **changes}
    )
    said: list[tuple[float, float, str]] = []
    begun, clock = used(), time.monotonic()
    potential = train(
        labels, settings, out=out / "model", seed=seed,
        progress=lambda line: said.append((used(), time.monotonic(), line)),
    )  # fmt: skip
    compiling = [
        b[0] - a[0] for a, b in itertools.pairwise(said) if a[2].startswith("compiling the steps")
    ]
    last = potential.history[-1]
    row = {
        "name": name, "seed": seed, "cpu_s": used() - begun, "wall_s": time.monotonic() - clock,
        "before_cpu_s": said[0][0] - begun, "compiling_cpu_s": sum(compiling),
        "steps": potential.provenance["steps"],
        "force_mae_meV_per_A": 1000 * min(h["validation_force_mae"] for h in potential.history),
        "last_force_mae_meV_per_A": 1000 * last["validation_force_mae"],
    }  # fmt: skip
    (out / "row.json").write_text(json.dumps(row))


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--directory")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.one:
        one(options.only[0], options.seeds[0], options.size, Path(options.directory))
        return []
    if options.size == "tiny":
        options.seeds = options.seeds[:1]
    with tempfile.TemporaryDirectory() as scratch:
        return trainings(Path(options.directory or scratch), options)


def trainings(place: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the trainings that are not there yet, and print their table."""
    rows: list[dict[str, Any]] = []
    for name in options.only:
        for seed in options.seeds:
            out = place / options.size / f"{name.replace(',', '').replace(' ', '-')}-{seed}"
            out.mkdir(parents=True, exist_ok=True)
            if not (out / "row.json").exists():
                print(f"{name}, seed {seed} ...", flush=True)
                subprocess.run(
                    [sys.executable, __file__, "--one", "--size", options.size, "--only", name,
                     "--seeds", str(seed), "--directory", str(out)],
                    check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
                )  # fmt: skip
            rows.append(json.loads((out / "row.json").read_text()))
    table(rows, options.only)
    return rows


def table(rows: list[dict[str, Any]], names: list[str]) -> None:
    """Print a line for each variant: medians over seeds, all force errors, ratio of time."""
    print(f"{'':32}{'force MAE (meV/Å)':>30}{'CPU s':>8}{'compiling':>11}{'by clock':>10}"
          f"{'ms a step':>11}")  # fmt: skip
    for name in names:
        mine = [r for r in rows if r["name"] == name]
        errors = sorted(r["force_mae_meV_per_A"] for r in mine)
        cpu, compiling, wall, each = (
            statistics.median(values)
            for values in (
                [r["cpu_s"] for r in mine],
                [r["compiling_cpu_s"] for r in mine],
                [r["wall_s"] for r in mine],
                [
                    1000 * (r["cpu_s"] - r["before_cpu_s"] - r["compiling_cpu_s"]) / r["steps"]
                    for r in mine
                ],
            )
        )
        shown = f"{statistics.median(errors):.1f} ({', '.join(f'{e:.1f}' for e in errors)})"
        print(f"{name:32}{shown:>30}{cpu:8.0f}{compiling:11.0f}{wall:10.0f}{each:11.1f}")


if __name__ == "__main__":
    main()
