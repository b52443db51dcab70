"""How long potentials hold a structure, and what their forces are worth where they have come to.

    python benchmarks/potential_holds.py [MODEL ...] [--size tiny|full] [--system S_pr]
        [--temperature 600] [--directory DIR]

MODEL: directories of models or campaigns; default: the seed that travels with mofal. Every run
starts from the ideal primitive cell with velocities of its own, NVT, 0.5 fs, and ends where a bond
strays beyond what its kind does at the temperature (`mofal.dynamics.bond_limits`). The last
frame of each run is labelled with GFN1-xTB, and the force MAE there is printed. Runs and labels are
kept in DIR: an interrupted run goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

SIZES = {"tiny": {"runs": 1, "length_fs": 5.0}, "full": {"runs": 10, "length_fs": 5000.0}}


def force_mae(potential, frames, directory: Path) -> float:
    """MAE of forces against GFN1-xTB, meV/Å; NaN where nothing converges."""
    from mofal.data import concat, select
    from mofal.reference import LabelCache, gather, get_reference, label_one

    reference = get_reference("gfn1-xtb")
    cache = LabelCache(directory / "labels")
    joined = concat(frames)
    for k in range(joined.sizes["structure"]):
        label_one(select(joined, k), reference, directory=cache)
    labels = gather(joined, cache, reference=reference)
    labels = select(labels, np.flatnonzero(labels["status"].values.astype(str) == "converged"))
    if labels.sizes["structure"] == 0:
        return float("nan")
    error = potential.evaluate(labels)["forces"].values - labels["forces"].values
    return 1000 * float(np.abs(error).mean())


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Print the table; return a row for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--system", default="S_pr")
    parser.add_argument("--temperature", type=float, default=600.0)
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    from mofal.campaign.examples import seed_place
    from mofal.campaign.steps.hold import survival_of
    from mofal.commands.hold import hold_file
    from mofal.data import open_group
    from mofal.potential import load

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        place.mkdir(parents=True, exist_ok=True)
        for model in options.models or [str(seed_place("uio66-gfn1") / "model")]:
            records = hold_file(
                options.system,
                potential=model,
                temperature_K=options.temperature,
                directory=place,
                say=lambda line: print(line, flush=True),
                **SIZES[options.size],
            )
            found = survival_of(records)
            wanted = {str(i) for i in records["end_frame"].values}
            ends = [open_group(p).load() for p in sorted(place.glob("*/frame.zarr"))]
            ends = [ds for ds in ends if str(ds["structure_id"].values[0]) in wanted]
            rows.append({**found._asdict(), "mae_at_end": float("nan")})
            if (Path(model) / "model.json").is_file():
                potential = load(model)
                rows[-1]["mae_at_end"] = force_mae(potential, ends, place)
            print(
                f"{model}: {found.n_runs - found.n_broken} of {found.n_runs} runs held, median "
                f"{found.median_ps:.2f} ps, survival per ps {found.per_ps:.3f} "
                f"({found.low:.3f} to {found.high:.3f}); force MAE of the last frames "
                f"{rows[-1]['mae_at_end']:.0f} meV/Å"
            )
    return rows


if __name__ == "__main__":
    main()
