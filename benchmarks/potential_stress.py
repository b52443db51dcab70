"""What stress in the loss does: errors of forces and stress, and the bulk modulus, by its weight.

    python benchmarks/potential_stress.py [--size tiny|full] [--directory DIR]

Potentials (`tiny`) are trained from nothing on frames of UiO-66's primitive cell that travel with
mofal (GFN1-xTB, with stress), all with the same atoms seen, and tried on the frames that they have
not met; then each gives E(V). GFN1-xTB itself has K = 25.56 GPa and V0 = 2275.42 Å³
(docs/mechanics.md). Trainings and points are kept in DIR: the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {
    "tiny": {"frames": (4,), "weights": (0.0, 1000.0), "atoms": 1500, "curve": False, "test": 4},
    "full": {
        "frames": (10, 60),
        "weights": (0.0, 1000.0),
        "atoms": 300_000,
        "curve": True,
        "test": 32,
    },
}
LEVEL = {"K": 25.56, "V0": 2275.42}
GPA = 160.21766


def bulk_modulus(model: Path, directory: Path) -> tuple[float, float]:
    """K (GPa) and V0 (Å³) of the primitive cell by E(V); NaN where the fits do not agree."""
    from mofal.frameworks import build, find_blocks
    from mofal.mechanics import Curve, CurveSettings, energy_volume, potential_level, run_serial

    cell = build("S_pr", cell="primitive")
    plan = Curve(
        cell,
        potential_level(model),
        directory=directory,
        settings=CurveSettings(volumes=7, both_ways=False),
        blocks=find_blocks(cell),
    )
    run_serial(plan, lambda line: None)
    windows = energy_volume(plan.gather()).windows
    return (np.nan, np.nan) if windows is None else (windows.bulk_modulus, windows.best.volume)


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Print the table; return a row for each training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group, select
    from mofal.potential import ARCHITECTURES, TrainingSettings, train

    size = SIZES[options.size]
    labels = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    split = labels["split"].values.astype(str)
    # Divided by walk when they were made: frames that are tried are of no walk learnt from.
    known, new = np.flatnonzero(split == "train"), np.flatnonzero(split == "validation")

    def spread(members: np.ndarray, n: int) -> np.ndarray:
        return members[np.linspace(0, len(members) - 1, min(n, len(members))).round().astype(int)]

    test = select(labels, spread(new, size["test"]))
    rows = []
    print("frames  weight  forces (meV/Å)  stress (GPa)  K (GPa)  V0 (Å³)  CPU s")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        for frames in size["frames"]:
            # Without `split` some of the frames validate, none of them is in the test.
            data = select(labels, spread(known, frames)).drop_vars("split")
            for weight in size["weights"]:
                began = time.process_time()
                settings = TrainingSettings(
                    architecture=ARCHITECTURES["tiny"],
                    learning_rate=0.01,
                    batch_size=2,
                    ema_decay=0.99,
                    energy_weight=10.0,
                    stress_weight=weight,
                    decay="cosine",
                    max_atoms_seen=size["atoms"],
                    stop_patience=100_000,
                )
                name = f"{frames}-{weight:g}"
                model = train(data, settings, out=place / name, seed=1)
                cpu = time.process_time() - began
                said = model.evaluate(test)
                row = {
                    "frames": frames,
                    "weight": weight,
                    "forces": 1000
                    * float(np.abs(said["forces"].values - test["forces"].values).mean()),
                    "stress": GPA
                    * float(np.abs(said["stress"].values - test["stress"].values).mean()),
                    "K": np.nan,
                    "V0": np.nan,
                    "cpu": cpu,
                }
                if size["curve"]:
                    row["K"], row["V0"] = bulk_modulus(place / name, place / f"eos-{name}")
                rows.append(row)
                print(
                    f"{frames:6d}  {weight:6g}  {row['forces']:14.1f}  {row['stress']:12.3f}  "
                    f"{row['K']:7.2f}  {row['V0']:7.1f}  {cpu:5.0f}",
                    flush=True,
                )
    print(f"GFN1-xTB itself: K {LEVEL['K']} GPa, V0 {LEVEL['V0']} Å³")
    return rows


if __name__ == "__main__":
    main()
