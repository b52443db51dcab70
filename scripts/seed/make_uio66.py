"""Make the seed data and the seed potential of UiO-66 that mofal ships, from nothing but mofal.

    python scripts/seed/make_uio66.py --directory DIR [--level gfn1-xtb] [--size full|tiny]

Harmonic frames of the pristine primitive cell (114 atoms) teach a first potential; its own walks at
600 to 900 K and several volumes, in segments with fresh velocities, give frames that harmonic ones
do not span; these are labelled and learnt, and the next walks hold longer. Each chain of segments
trains or validates as a whole, so that no frame validates beside its neighbours in time. The last
training goes through all frames along a cosine.

Labels, walks and trainings are kept in DIR: an interrupted run goes on with the same command. What
it leaves there is `labels.zarr` and `model/`. The level, seeds and numbers of rounds are below.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import xarray as xr

from mofal.data import concat, open_group, select, write_group
from mofal.dynamics import WalkSettings, sample_harmonic, walk
from mofal.dynamics.checks import bond_lengths
from mofal.frameworks import build, find_blocks
from mofal.potential import ARCHITECTURES, NequIPPotential, TrainingSettings, train
from mofal.reference import LabelCache, gather, get_reference, label_one

SEED = 66
TYPES = ("H", "C", "O", "Zr", "Hf")
TEMPERATURES_K = (600.0, 750.0, 900.0)
SIZES: dict[str, dict] = {
    "full": {
        "harmonic": 25,
        "first_epochs": 200,
        # chains, segments, length of a segment (fs), labels at most, epochs after them
        "rounds": [
            (9, 8, 12.5, 36, 60),
            (9, 8, 25, 36, 40),
            (9, 8, 50, 40, 30),
            (9, 6, 100, 48, 0),
        ],
        "epochs": 200,
    },
    "tiny": {"harmonic": 4, "first_epochs": 3, "rounds": [(2, 2, 5.0, 3, 0)], "epochs": 3},
}
BASE = TrainingSettings(
    architecture=ARCHITECTURES["tiny"],
    learning_rate=0.01,
    batch_size=2,
    ema_decay=0.99,
    energy_weight=10,
    stop_patience=10**6,
    min_learning_rate=0.0,
    max_epochs=1,
)


def label(frames: xr.Dataset, directory: Path, level: str) -> xr.Dataset:
    """Durable labels of frames; those that do not converge are left out."""
    reference = get_reference(level)
    cache = LabelCache(directory / "records")
    for k in range(frames.sizes["structure"]):
        attempt = label_one(select(frames, k), reference, directory=cache)
        print(f"  label {k + 1}/{frames.sizes['structure']}: {attempt.status}", flush=True)
    labels = gather(
        frames,
        cache,
        reference=reference,
        isolated_atom_energies=reference.isolated_atom_energies(TYPES),
    )
    return select(labels, np.flatnonzero(labels["status"].values == "converged"))


def split_by(chain: np.ndarray, shift: int) -> np.ndarray:
    """One chain in five validates, with all of its frames."""
    return np.where((chain + shift) % 5 == 0, "validation", "train")


def with_split(ds: xr.Dataset, split: np.ndarray) -> xr.Dataset:
    text = np.dtypes.StringDType()
    return ds.assign(split=("structure", np.array(list(split), text)))


def walk_chains(
    starts: xr.Dataset,
    potential: NequIPPotential,
    bonds: tuple,
    directory: Path,
    *,
    number: int,
    chains: int,
    segments: int,
    length_fs: float,
) -> xr.Dataset:
    """Frames of walks, each at the end of a segment that began with fresh velocities."""
    found, chain_of = [], []
    for c in range(chains):
        settings = WalkSettings(
            ensemble="nvt",
            temperature_K=TEMPERATURES_K[c % len(TEMPERATURES_K)],
            length_fs=length_fs,
            thermostat_fs=50,
            max_bond_strain=0.35,
            max_force=30,
            sample_every=5,
        )
        frame = select(starts, int((number * 7 + c * 3) % starts.sizes["structure"]))
        held = 0.0
        for s in range(segments):
            out = directory / f"walk-{number}-{c}-{s}.npz"
            result = walk(
                frame, 0, calculator=potential.calculator, settings=settings,
                seed=(SEED, number, c, s), bonds=bonds, out=out,
            )  # fmt: skip
            held += float(result.record["length_fs"][0])
            if float(result.record["length_fs"][0]) > 0:
                frame = result.frame
                found.append(frame)
                chain_of.append(c)
            if str(result.record["walk_status"].values[0]) != "finished":
                break
        print(f"  round {number}, chain {c} at {settings.temperature_K:.0f} K: {held:.0f} fs, "
              f"{result.record['walk_status'].values[0]}", flush=True)  # fmt: skip
    frames = concat(found)
    frames["system"] = ("structure", np.array(["pristine"] * len(found), np.dtypes.StringDType()))
    return frames.assign(chain=("structure", np.array(chain_of)))


def main(argv: list[str] | None = None) -> None:
    """Make the seed; everything finished is found again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--level", default="gfn1-xtb")
    parser.add_argument("--size", choices=SIZES, default="full")
    options = parser.parse_args(argv)
    place: Path = options.directory
    place.mkdir(parents=True, exist_ok=True)
    size = SIZES[options.size]

    ideal = build("S_pr", cell="primitive")
    blocks = find_blocks(ideal)
    pairs, shifts = blocks["bond_atom"].values, blocks["bond_shift"].values
    lengths = bond_lengths(ideal["positions"].values, ideal["cell"].values[0], pairs, shifts)

    group = place / "labels-0.zarr"
    if not group.exists():
        frames = sample_harmonic(
            ideal, n=size["harmonic"], temperature_K=600, seed=SEED,
            bonds=pairs, shifts=shifts, volume_strain=(-0.06, 0.1), shear=0.02,
        )  # fmt: skip
        n = frames.sizes["structure"]
        frames["system"] = ("structure", np.array(["pristine"] * n, np.dtypes.StringDType()))
        labels = label(frames, place, options.level)
        write_group(with_split(labels, split_by(np.arange(labels.sizes["structure"]), 0)), group)
    data = [open_group(group).load()]
    starts = data[0]

    def fit(name: str, epochs: int, start: NequIPPotential | None, **changes) -> NequIPPotential:
        return train(
            concat(data), BASE.model_copy(update={"max_epochs": epochs, **changes}),
            out=place / name, seed=SEED, start=start,
            elements=None if start is not None else TYPES,
            progress=lambda line: print("  " + line, flush=True),
        )  # fmt: skip

    potential = fit("model-0", size["first_epochs"], None)
    for number, (chains, segments, length, most, epochs) in enumerate(size["rounds"], 1):
        group = place / f"labels-{number}.zarr"
        if not group.exists():
            walks = place / "walks"
            walks.mkdir(exist_ok=True)
            frames = walk_chains(
                starts, potential, (pairs, shifts, lengths), walks,
                number=number, chains=chains, segments=segments, length_fs=length,
            )  # fmt: skip
            n = frames.sizes["structure"]
            kept = np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))
            frames = select(frames, kept)
            chain = frames["chain"].values
            labels = label(frames.drop_vars("chain"), place, options.level)
            if labels.sizes["structure"] != len(chain):
                raise SystemExit("a label did not converge: see the records")
            write_group(with_split(labels, split_by(chain, number)), group)
        data.append(open_group(group).load())
        if epochs:
            potential = fit(f"model-{number}", epochs, potential)
    fit("model", size["epochs"], potential, decay="cosine", learning_rate=0.01, warm_up_epochs=3)
    write_group(concat(data), place / "labels.zarr", kind="labels")
    print(json.dumps({"frames": [d.sizes["structure"] for d in data]}))


if __name__ == "__main__":
    main()
