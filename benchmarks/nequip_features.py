"""Real features for benchmarks/density_speed.py: a small NequIP potential on thermal frames.

    python benchmarks/nequip_features.py OUT.npz [--steps 400] [--frames 150]

Trains `tiny` with a readout of 16 on the labels of the example seed (GFN1-xTB, periodic UiO-66),
then takes the features of all atoms of harmonic frames at 600 K of S_pr, S_ld and S_reo. About ten
minutes on one busy core; the file holds `x` (atom, 16) and `z` (atom,).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

from mofal.campaign.examples import seed_place
from mofal.data import open_group
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build
from mofal.potential import TRAININGS, train
from mofal.potential.settings import ARCHITECTURES


def main(argv: list[str] | None = None) -> None:
    """Make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--frames", type=int, default=150)
    options = parser.parse_args(argv)
    labels = open_group(seed_place("uio66-gfn1") / "labels.zarr").load()
    wide = ARCHITECTURES["tiny"].model_copy(update={"feature_dim": 16})
    settings = TRAININGS["demo"].model_copy(
        update={"architecture": wide, "max_steps": options.steps}
    )
    x, z = [], []
    with tempfile.TemporaryDirectory() as place:
        potential = train(labels, settings, out=Path(place) / "model", seed=0)
        for name in ("S_pr", "S_ld", "S_reo"):
            frames = sample_harmonic(build(name), n=options.frames, temperature_K=600.0, seed=1)
            features = potential.featurize(frames)
            x.append(features["features"].values)
            z.append(features["numbers"].values)
            print(f"{name}: {len(z[-1]):,} atoms", flush=True)
    np.savez(options.out, x=np.concatenate(x), z=np.concatenate(z))


if __name__ == "__main__":
    main(sys.argv[1:])
