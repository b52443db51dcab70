"""Do walks end when they should, and only then? Reference walks, and potentials that go wrong.

    python benchmarks/dynamics_ends.py reference [--walks 8] [--length 250] [--timestep 0.5]
        [--moved-by gfn1-xtb|seed] [--first 0] --directory DIR
    python benchmarks/dynamics_ends.py delay [--walks 10] [--length 300] --directory DIR

`reference`: walks of the pristine primitive cell (114 atoms) with GFN1-xTB itself at 600 K, NVT,
from thermal frames; none should end before its time by bonds or by an explosion. Then the seed
potential goes through the recorded frames: would the density on board have ended one? With
`--moved-by seed` the seed potential, a hundred times as fast, stands in for GFN1-xTB.

`delay`: early checkpoints of a training on 25 harmonic frames walk the same cell with nothing
watched; a frame every 5 fs is labelled as the walk goes, until the force error of an atom passes
the larger of 1 eV/Å and five times the RMSE at the start: of components, and, later, of atoms. The
same walk (same seed, same bits) with each criterion alone, and with all, says when it would have
ended.

Walks, labels and models are kept in DIR: an interrupted run goes on with the same command, and one
of more walks with what is there. A row of each walk is in DIR/NAME-K.json.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SIZES = {"tiny": {"walks": 1, "length": 4.0}, "full": {}}
QUANTILE, PATIENCE_FS = 0.001, 10.0
THRESHOLD = f"{QUANTILE:g}-for-{PATIENCE_FS:g}-fs"
"""Of rows of another one nothing is taken."""
QUANTILES, PATIENCES_FS = (0.001, 0.002, 0.005, 0.01, 0.02), (2.5, 5.0, 10.0, 20.0)
HARMONIC = 25
"""So many frames at the beginning of the seed's data are harmonic: no dynamics at all."""
# Nothing watched but what can no longer be computed: neighbours of a gas as hot as stars.
OFF = {"max_temperature": 50.0, "max_force": 1000.0, "min_distance": 0.1}
NO_BONDS = {"bond_z": None, "bond_mean_z": None}
EPOCHS = (8, 16, 32, 64, 128)
STARTS = 10
AFTER_FS = 40.0
"""How long after the error has passed an end is waited for."""


def recording(calculator, path: Path, each=lambda atoms, results: None):
    """The calculator, with the positions of each evaluation appended to a file, and a call."""
    inner = calculator.calculate

    def calculate(atoms=None, properties=("energy",), system_changes=()):
        inner(atoms, properties, system_changes)
        with path.open("ab") as file:
            file.write(atoms.positions.astype("<f8").tobytes())
        each(atoms, calculator.results)

    calculator.calculate = calculate
    return calculator


class Enough(Exception):
    """Ends a walk."""


def recorded(path: Path, n_atoms: int) -> np.ndarray:
    """Positions (frame, atom, 3) of each evaluation, without what a walk that went on repeats."""
    raw = np.fromfile(path, "<f8")
    frames = raw[: len(raw) // (3 * n_atoms) * 3 * n_atoms].reshape(-1, n_atoms, 3)
    kept: dict[bytes, NDArray] = {}
    for frame in frames:
        key = frame.tobytes()
        if key in kept:  # back at a checkpoint: what came after it was lost
            keys = list(kept)
            for gone in keys[keys.index(key) + 1 :]:
                del kept[gone]
        kept[key] = frame
    return np.array(list(kept.values()))


def at(structure, positions):
    """The structure with other positions, shape (frame, atom, 3)."""
    from mofal.data import make_structures

    n = len(positions)
    return make_structures(
        np.tile(structure["numbers"].values, n),
        positions.reshape(-1, 3),
        n_atoms=np.full(n, structure.sizes["atom"]),
        cell=np.tile(structure["cell"].values[0], (n, 1, 1)),
        pbc=np.tile(structure["pbc"].values[0], (n, 1)),
        system="pristine",
    )


def pristine():
    """Ideal cell, limits of its bonds at 600 K, labelled frames of the seed."""
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group
    from mofal.dynamics import bond_limits
    from mofal.frameworks import build, find_blocks

    ideal = build("S_pr", cell="primitive")
    blocks = find_blocks(ideal)
    limits = bond_limits(
        ideal,
        temperature_K=600,
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
    )
    place = seed_place("uio66-gfn1")
    return ideal, limits, open_group(place / "labels.zarr").load(), place / "model"


def starts(labels, limits):
    """`STARTS` frames of dynamics at the ideal volume, no bond of which is far from its length."""
    from mofal.data import select

    volume = np.abs(np.linalg.det(labels["cell"].values))
    n = labels.sizes["atom"] // labels.sizes["structure"]
    sound = [
        k
        for k in range(HARMONIC, labels.sizes["structure"])
        if abs(volume[k] / np.median(volume) - 1) < 0.02
        and largest_z(
            labels["positions"].values[n * k : n * k + n], labels["cell"].values[k], limits
        )
        < 4.0
    ]
    return select(labels, np.array(sound)[:: len(sound) // STARTS][:STARTS])


def strains(positions, cell, limits) -> NDArray:
    """Relative change of the length of every bond."""
    from mofal.dynamics.checks import bond_lengths

    return bond_lengths(positions, cell, limits.bonds, limits.shifts) / limits.expected - 1.0


def largest_z(positions, cell, limits) -> float:
    """The largest of them in spreads of the bond's kind."""
    return float((np.abs(strains(positions, cell, limits)) / limits.spread).max())


def calibrated(potential, data):
    """Density of the training part in the potential's features, calibrated on the rest."""
    from mofal.data import select
    from mofal.density import fit_density

    split = data["split"].values.astype(str)
    features = potential.featurize(select(data, np.flatnonzero(split == "train")))
    density = fit_density(
        features.assign(features=features["features"].astype(np.float64)),
        n_components="bic", max_components=6, random_state=1,
    )  # fmt: skip
    held = potential.featurize(select(data, np.flatnonzero(split == "validation")))
    density.calibrate(np.asarray(held["features"].values, np.float64), held["numbers"].values)
    return density


def xtb():
    """Calculator of GFN1-xTB."""
    from tblite.ase import TBLite

    return TBLite(method="GFN1-xTB", verbosity=0)


def quantiles(potential, density, frames) -> NDArray:
    """Quantile of every atom's environment, shape (frame, atom)."""
    from mofal.data import select

    found = []
    n = frames.sizes["structure"]
    for x in np.array_split(np.arange(n), max(1, n // 50)):
        part = select(frames, x)
        numbers = part["numbers"].values
        features = np.asarray(potential.featurize(part)["features"].values, np.float64)
        scores = density.score_samples(features, numbers)
        found.append(np.asarray(density.quantile(scores, numbers)).reshape(len(x), -1))
    return np.concatenate(found)


def longest_below(series: NDArray, quantile: float) -> tuple[NDArray, int]:
    """Most steps so far that an atom has stayed below (frame,), and how many were at the start."""
    from mofal.dynamics.watch import Watch

    watch = Watch(quantile, 1)
    watch.begin(series[0])
    most, longest = 0, [0]
    for row in series[1:]:
        watch.step(row)
        most = max(most, int(watch.since.max()))
        longest.append(most)
    return np.array(longest), int(watch.from_start.sum())


def reference_walks(
    walks: int, length: float, timestep: float, by: str, place: Path, first: int = 0
) -> dict:
    """Walks with GFN1-xTB; a row each, and the bound on the rate of false alarms."""
    from scipy.stats import chi2

    from mofal.data import select
    from mofal.dynamics import WalkSettings, walk
    from mofal.potential import load

    _, limits, labels, model = pristine()
    begin = starts(labels, limits)
    settings = WalkSettings(
        ensemble="nvt",
        temperature_K=600,
        timestep_fs=timestep,
        length_fs=length,
        unfamiliar_quantile=0.0,
        checkpoint_every=10,
    )
    potential = load(model)
    density = calibrated(potential, labels)
    rows = []
    for k in range(first, walks):
        name = f"{'reference' if by == 'gfn1-xtb' else by}-{k}"
        done, path = place / f"{name}.json", place / f"{name}.positions"
        if done.exists():
            rows.append(json.loads(done.read_text()))
        else:
            result = walk(
                begin, k % STARTS,
                calculator=recording(potential.calculator() if by == "seed" else xtb(), path),
                settings=settings, seed=(3, k), bonds=limits, out=place / f"{name}.npz",
                progress=lambda line: print("  " + line, flush=True),
            )  # fmt: skip
            one = select(begin, k % STARTS)
            frames = at(one, recorded(path, one.sizes["atom"]))
            cell, moved = one["cell"].values[0], frames["positions"].values
            z = [largest_z(x, cell, limits) for x in moved.reshape(-1, one.sizes["atom"], 3)]
            series = quantiles(potential, density, frames)
            below = {q: longest_below(series, q) for q in QUANTILES}
            rows.append(
                {
                    "moved_by": by,
                    "timestep_fs": timestep,
                    "status": str(result.record["walk_status"].values[0]),
                    "stopped_fs": float(result.record["stopped_fs"].values[0]),
                    "temperature_K": float(result.trace["temperature_K"].values.mean()),
                    "largest_bond_in_spreads": max(z),
                    "unfamiliar_at_start": below[QUANTILE][1],
                    "longest_below_fs": {
                        str(q): float(b[0][-1] * timestep) for q, b in below.items()
                    },
                }
            )
            done.write_text(json.dumps(rows[-1]))
        print(f"walk {k}: {rows[-1]}", flush=True)
    total = sum(r["stopped_fs"] for r in rows) / 1000
    ended = sum(r["status"] != "finished" for r in rows)
    alarms = sum(r["longest_below_fs"][str(QUANTILE)] >= PATIENCE_FS for r in rows)
    most = [chi2.ppf(0.95, 2 * c + 2) / 2 / total for c in (ended, alarms)]
    print(
        f"{len(rows)} walks, {total:.2f} ps: {ended} ended by bonds or explosion (rate below "
        f"{most[0]:.1f} per ps at 95 %), {alarms} by the density (below {most[1]:.1f})"
    )
    for q in QUANTILES:
        longest = sorted((r["longest_below_fs"][str(q)] for r in rows), reverse=True)
        print(f"longest time of an atom below {q:g}, fs: " + ", ".join(f"{v:g}" for v in longest))
    return {"rows": rows, "ended": ended, "alarms": alarms, "total_ps": total}


def checkpoints(harmonic, seed: int, place: Path) -> list[Path]:
    """Models after each of `EPOCHS` epochs of one training."""
    from mofal.potential import ARCHITECTURES, TrainingSettings, train

    made: list[Path] = []
    for before, epochs in zip((0, *EPOCHS), EPOCHS):
        out = place / f"model-{seed}-{epochs}"
        train(
            harmonic,
            TrainingSettings(architecture=ARCHITECTURES["tiny"], learning_rate=0.01, batch_size=2,
                             ema_decay=0.9, energy_weight=10, stop_patience=10**6,
                             min_learning_rate=0.0, max_epochs=epochs - before),
            out=out, seed=seed, start=made[-1] if made else None,
        )  # fmt: skip
        made.append(out)
    return made


def delay_walks(walks: int, length: float, place: Path) -> list[dict]:
    """Walks of poor potentials: when does the error pass, and when does each criterion end them?"""
    from mofal.data import select
    from mofal.dynamics import WalkSettings, walk
    from mofal.potential import load
    from mofal.reference import LabelCache, gather, get_reference, label_one

    _, limits, labels, _ = pristine()
    harmonic = select(labels, np.arange(HARMONIC))  # what a first model has seen
    begin = starts(labels, limits)
    reference, cache = get_reference("gfn1-xtb"), LabelCache(place / "labels")
    silent = {**OFF, **NO_BONDS, "unfamiliar_quantile": 0.0}
    only = {  # what is on, and which end counts
        "bonds": ({**OFF, "unfamiliar_quantile": 0.0}, "bond_broken"),
        "density": ({**OFF, **NO_BONDS, "unfamiliar_quantile": QUANTILE}, "unfamiliar"),
        "explosion": ({**NO_BONDS, "unfamiliar_quantile": 0.0}, "exploded"),
        "all": ({"unfamiliar_quantile": QUANTILE}, ""),
    }
    rows = []
    for k in range(walks):
        done, path = place / f"delay-{THRESHOLD}-{k}.json", place / f"delay-{k}.positions"
        if done.exists():
            rows.append(json.loads(done.read_text()))
            print(f"walk {k}: {rows[-1]}", flush=True)
            continue
        which = k % len(EPOCHS)
        potential = load(checkpoints(harmonic, 100, place)[which])
        density = calibrated(potential, harmonic)
        one = select(begin, k % STARTS)
        row = {
            "threshold": THRESHOLD,
            "epochs": EPOCHS[which],
            "passes_fs": np.inf,
            "passes_of_atoms_fs": np.inf,
        }
        errors, step = [], [0]

        def follow(atoms, results, one=one, row=row, errors=errors, step=step):
            """Label every tenth step."""
            now, step[0] = step[0] * 0.5, step[0] + 1
            passed = row["passes_of_atoms_fs"]
            if now >= passed + AFTER_FS:
                raise Enough
            if np.isfinite(passed) or (step[0] - 1) % 10:
                return
            frame = at(one, atoms.positions[None])
            if label_one(frame, reference, directory=cache).status == "converged":
                truth = gather(frame, cache, reference=reference)["forces"].values
                error = np.linalg.norm(results["forces"] - truth, axis=1)
                errors.append(round(float(error.max()), 3))
                if now == 0:
                    row["rmse_eV_per_A"] = float(np.sqrt((error**2).mean() / 3))
                largest = error.max()
            else:  # where the reference gives up, the potential has long left
                largest = np.inf
            rmse = row["rmse_eV_per_A"]
            for name, limit in (("passes_fs", 5 * rmse), ("passes_of_atoms_fs", 75**0.5 * rmse)):
                if largest > max(1.0, limit):
                    row[name] = min(row[name], now)

        def run(changes, calculator, length, k=k, density=density):
            settings = WalkSettings(
                ensemble="nvt", temperature_K=600, length_fs=length, sample_every=1, **changes
            )
            return walk(begin, k % STARTS, calculator=calculator, settings=settings, seed=(5, k),
                        bonds=limits, density=density).record  # fmt: skip

        path.unlink(missing_ok=True)
        run(silent, recording(potential.calculator(), path, follow), length)
        row |= {"largest_errors_eV_per_A": errors, "n_steps": step[0]}
        until = min(length, row["passes_of_atoms_fs"] + AFTER_FS)
        for name, (changes, status) in only.items():
            record = run(changes, potential.calculator(features=True), until)
            found = str(record["walk_status"].values[0])
            counts = found == status or (name == "all" and found != "finished")
            row[name] = float(record["stopped_fs"].values[0]) if counts else np.inf
            row[f"{name}_kept"] = float(record["length_fs"].values[0]) if counts else np.inf
            if name == "all":
                row |= {"status": found, "reason": str(record["walk_reason"].values[0])}
                row["unfamiliar_at_start"] = int(record["unfamiliar_at_start"].values[0])
        frames = at(one, recorded(path, one.sizes["atom"]))
        series = quantiles(potential, density, frames)
        row["density_at"] = {
            f"{q:g} for {p:g} fs": 0.5 * float(next(iter(np.flatnonzero(longest >= 2 * p)), np.inf))
            for q in QUANTILES
            for longest in [longest_below(series, q)[0]]
            for p in PATIENCES_FS
        }
        rows.append(row)
        done.write_text(json.dumps(row))
        print(f"walk {k}: {row}", flush=True)
    for passes in ("passes_fs", "passes_of_atoms_fs"):
        gone = [r for r in rows if np.isfinite(r[passes])]
        ends = {n: [r[n] for r in gone] for n in [*only, *(f"{n}_kept" for n in only)]}
        for n in gone[0]["density_at"] if gone else ():
            ends[n] = [r["density_at"][n] for r in gone]
            ends[f"{n}, or another"] = [
                min(r["density_at"][n], r["bonds"], r["explosion"]) for r in gone
            ]
        for name, times in ends.items():
            late = sorted(t - r[passes] for t, r in zip(times, gone))
            print(
                f"{name}: at most 10 fs after {passes} in {sum(v <= 10.0 for v in late)} of "
                f"{len(late)}; delay " + ", ".join(f"{v:+.0f}" for v in late)
            )
    return rows


def main(argv: list[str] | None = None):
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("reference", "delay"), default="reference")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--walks", type=int)
    parser.add_argument("--length", type=float, help="fs")
    parser.add_argument("--timestep", type=float, default=0.5, help="fs, of reference walks")
    parser.add_argument("--moved-by", choices=("gfn1-xtb", "seed"), default="gfn1-xtb")
    parser.add_argument("--first", type=int, default=0, help="beside another run: begin with this")
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    size = {"walks": 8 if options.what == "reference" else 10,
            "length": 250.0 if options.what == "reference" else 300.0,
            **SIZES[options.size]}  # fmt: skip
    size.update({k: v for k, v in (("walks", options.walks), ("length", options.length)) if v})
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        place.mkdir(parents=True, exist_ok=True)
        if options.what == "reference":
            return reference_walks(
                size["walks"], size["length"], options.timestep, options.moved_by, place,
                options.first,
            )  # fmt: skip
        return delay_walks(size["walks"], size["length"], place)


if __name__ == "__main__":
    main()
