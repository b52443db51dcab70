"""What weights of another level are worth: errors after few labels, from nothing and pretrained.

    python benchmarks/potential_pretrained.py [--size tiny|full] [--reference NAME]
        [--directory DIR]

The seed potential that travels with mofal has learnt GFN1-xTB. Frames of UiO-66's primitive cell,
drawn from a network of springs, are labelled at another level (default: SevenNet-0, which takes
the extra `teacher`); `tiny` networks learn N of them, from nothing and beginning with the seed's
weights, for equal numbers of atoms seen, and are tried on drawn frames and on frames of walks that
they have not met. Labels and trainings are kept in DIR: the same command goes on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES = {
    "tiny": {"frames": (3,), "test": 1, "atoms": 1500, "reference": "gfn2-xtb"},
    "full": {
        "frames": (4, 8, 16),
        "test": 8,
        "atoms": 150_000,
        "reference": "ase:sevenn.calculator:SevenNetCalculator"
        "?model=7net-0&device=cpu&electrons=ignore",
    },
}


def main(argv: list[str] | None = None) -> list[dict[str, float]]:
    """Print the table; return a row for each training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--reference", help="level of the labels")
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group, select
    from mofal.dynamics import sample_harmonic
    from mofal.frameworks import build
    from mofal.potential import ARCHITECTURES, TrainingSettings, load, train
    from mofal.reference import LabelCache, gather, get_reference, label_one

    size = SIZES[options.size]
    reference = get_reference(options.reference or size["reference"])
    given = load(seed_place("uio66-gfn1") / "model")
    walks = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    validation = np.flatnonzero(walks["split"].values.astype(str) == "validation")
    most = max(size["frames"])
    drawn = sample_harmonic(
        build("S_pr", cell="primitive"), n=most + size["test"], temperature_K=600, seed=1
    )
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        cache = LabelCache(place / "labels")

        def labelled(structures):
            for k in range(structures.sizes["structure"]):
                label_one(select(structures, k), reference, directory=cache)
            return gather(structures, cache, reference=reference)

        known = labelled(select(drawn, np.arange(most)))
        walked = select(
            walks, validation[np.linspace(0, len(validation) - 1, size["test"]).astype(int)]
        )
        tests = {
            "drawn": labelled(select(drawn, np.arange(most, most + size["test"]))),
            "walks": labelled(walked[[v for v in walked if v in drawn]]),
        }

        def row(frames: int, how: str, model, cpu: float) -> None:
            errors = {
                name: 1000
                * float(np.abs(model.evaluate(ds)["forces"].values - ds["forces"].values).mean())
                for name, ds in tests.items()
            }
            rows.append({"frames": frames, "how": how, **errors, "cpu": cpu})
            print(
                f"{frames:6d}  {how:12s}  {errors['drawn']:14.0f}  {errors['walks']:14.0f}"
                f"  {cpu:5.0f}",
                flush=True,
            )

        print(f"{reference.name if hasattr(reference, 'name') else reference}")
        print("frames  weights       drawn, meV/Å    walks, meV/Å  CPU s")
        row(0, "the seed's", given, 0.0)
        for frames in size["frames"]:
            data = select(known, np.arange(frames))
            for how, start, rate in (("nothing", None, 0.01), ("pretrained", given, 0.004)):
                began = time.process_time()
                settings = TrainingSettings(
                    architecture=ARCHITECTURES["tiny"],
                    learning_rate=rate,
                    batch_size=2,
                    ema_decay=0.99,
                    energy_weight=10.0,
                    decay="cosine",
                    max_atoms_seen=size["atoms"],
                    stop_patience=100_000,
                    allow_other_level=start is not None,
                )
                model = train(
                    data, settings, out=place / f"{frames}-{how}", seed=1, start=start,
                    elements=given.elements,
                )  # fmt: skip
                row(frames, how, model, time.process_time() - began)
    return rows


if __name__ == "__main__":
    main()
