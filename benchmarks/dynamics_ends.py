"""Do walks end when they should, and only then? Reference walks, and potentials that go wrong.

    python benchmarks/dynamics_ends.py reference [--walks 8] [--length 250] --directory DIR
    python benchmarks/dynamics_ends.py delay [--walks 10] [--length 300] --directory DIR

`reference`: walks of the pristine primitive cell (114 atoms) with GFN1-xTB itself at 600 K, NVT,
0.5 fs, from thermal frames; none should end before its time by bonds or by an explosion. Then
the seed potential goes through the recorded frames: would the density on board have ended one?

`delay`: potentials of a few epochs walk the same cell with nothing watched; frames are labelled
every 5 fs until the force error of an atom first passes the larger of 1 eV/Å and five times the
RMSE at the start. The same walk (same seed, same bits) with each criterion alone, and with all,
says when it would have ended.

Walks, labels and models are kept in DIR: an interrupted run goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np

SIZES = {"tiny": {"walks": 1, "length": 4.0}, "full": {}}
QUANTILE, PATIENCE_FS = 0.005, 20.0
OFF = {"max_temperature": 1e6, "max_force": 1e6, "max_stretch": 1e3, "min_distance": 1e-3}
NO_BONDS = {"bond_z": None, "bond_mean_z": None}
EPOCHS = (4, 8, 16, 32)


def recording(calculator, path: Path):
    """The calculator, with the positions of each evaluation appended to a file."""
    inner = calculator.calculate

    def calculate(atoms=None, properties=("energy",), system_changes=()):
        inner(atoms, properties, system_changes)
        with path.open("ab") as file:
            file.write(atoms.positions.astype("<f8").tobytes())

    calculator.calculate = calculate
    return calculator


def recorded(path: Path, n_atoms: int) -> np.ndarray:
    """Positions (frame, atom, 3) of each evaluation, a repeated stretch of a resumed walk once."""
    raw = np.fromfile(path, "<f8")
    frames = raw[: len(raw) // (3 * n_atoms) * 3 * n_atoms].reshape(-1, n_atoms, 3)
    seen, kept = set(), []
    for k, frame in enumerate(frames):
        key = frame.tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(k)
    return frames[kept]


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


def starts(labels, n: int):
    """Frames at the ideal volume, spread over the data."""
    from mofal.data import select

    volume = np.abs(np.linalg.det(labels["cell"].values))
    order = np.argsort(np.abs(volume / np.median(volume) - 1), kind="stable")[: 4 * n]
    return select(labels, np.sort(order)[:: max(1, len(order) // n)][:n])


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


def reference_walks(walks: int, length: float, place: Path) -> dict:
    """Walks with GFN1-xTB; a row each, and the bound on the rate of false alarms."""
    from tblite.ase import TBLite

    from mofal.data import open_group, select, write_group
    from mofal.dynamics import WalkSettings, walk
    from mofal.dynamics.watch import Watch
    from mofal.potential import load

    _, limits, labels, model = pristine()
    begin = starts(labels, walks)
    settings = WalkSettings(
        ensemble="nvt",
        temperature_K=600,
        length_fs=length,
        unfamiliar_quantile=0.0,
        checkpoint_every=10,
    )
    potential = load(model)
    density = calibrated(potential, labels)
    rows = []
    for k in range(walks):
        out = place / f"reference-{k}.zarr"
        path = place / f"reference-{k}.positions"
        if not out.exists():
            result = walk(
                begin, k,
                calculator=recording(TBLite(method="GFN1-xTB", verbosity=0), path),
                settings=settings, seed=(3, k), bonds=limits, out=place / f"reference-{k}.npz",
                progress=lambda line: print("  " + line, flush=True),
            )  # fmt: skip
            write_group(result.record, out, kind="table")
        record = open_group(out).load()
        one = select(begin, k)
        frames = at(one, recorded(path, one.sizes["atom"]))
        watch = Watch(density, QUANTILE, round(PATIENCE_FS / settings.timestep_fs))
        numbers, longest, first = one["numbers"].values, 0, True
        for x in np.array_split(
            np.arange(frames.sizes["structure"]), max(1, len(frames["structure"]) // 50)
        ):
            features = potential.featurize(select(frames, x))["features"].values
            for row in features.reshape(len(x), len(numbers), -1).astype(np.float64):
                (watch.begin if first else watch.step)(row, numbers)
                longest, first = max(longest, int(watch.since.max())), False
        rows.append(
            {
                "status": str(record["walk_status"].values[0]),
                "stopped_fs": float(record["stopped_fs"].values[0]),
                "unfamiliar_at_start": int(watch.from_start.sum()),
                "longest_unfamiliar_fs": longest * settings.timestep_fs,
            }
        )
        print(f"walk {k}: {rows[-1]}", flush=True)
    total = sum(r["stopped_fs"] for r in rows) / 1000
    ended = sum(r["status"] != "finished" for r in rows)
    alarms = sum(r["longest_unfamiliar_fs"] >= PATIENCE_FS for r in rows)
    from scipy.stats import chi2

    most = [chi2.ppf(0.95, 2 * c + 2) / 2 / total for c in (ended, alarms)]
    print(
        f"{walks} walks, {total:.2f} ps: {ended} ended by bonds or explosion (rate below "
        f"{most[0]:.1f} per ps at 95 %), {alarms} by the density (below {most[1]:.1f})"
    )
    return {"rows": rows, "ended": ended, "alarms": alarms, "total_ps": total}


def delay_walks(walks: int, length: float, place: Path) -> list[dict]:
    """Walks of poor potentials: when does the error pass, and when does each criterion end them?"""
    from mofal.data import select
    from mofal.dynamics import WalkSettings, walk
    from mofal.potential import ARCHITECTURES, TrainingSettings, train
    from mofal.reference import LabelCache, gather, get_reference, label_one

    _, limits, labels, _ = pristine()
    harmonic = select(labels, np.arange(25))  # what a first model has seen: no dynamics at all
    begin = starts(labels, walks)
    reference, cache = get_reference("gfn1-xtb"), LabelCache(place / "labels")
    rows = []
    for k in range(walks):
        epochs = EPOCHS[k % len(EPOCHS)]
        potential = train(
            harmonic,
            TrainingSettings(architecture=ARCHITECTURES["tiny"], learning_rate=0.01, batch_size=2,
                             ema_decay=0.9, energy_weight=10, stop_patience=10**6,
                             min_learning_rate=0.0, max_epochs=epochs),
            out=place / f"model-{k}", seed=100 + k,
        )  # fmt: skip
        density = calibrated(potential, harmonic)
        path = place / f"delay-{k}.positions"
        done = place / f"delay-{k}.json"
        if done.exists():
            rows.append(json.loads(done.read_text()))
            print(f"walk {k}: {rows[-1]}", flush=True)
            continue

        def run(name, changes, *, density=None, record=False, k=k, potential=potential, path=path):
            settings = WalkSettings(
                ensemble="nvt", temperature_K=600, length_fs=length, sample_every=1, **changes
            )
            calculator = potential.calculator(features=True)
            if record:
                path.unlink(missing_ok=True)
                calculator = recording(calculator, path)
            result = walk(begin, k, calculator=calculator, settings=settings, seed=(5, k),
                          bonds=limits, density=density)  # fmt: skip
            status = str(result.record["walk_status"].values[0])
            return float(result.record["stopped_fs"].values[0]) if status != "finished" else np.inf

        silent = {**OFF, **NO_BONDS, "unfamiliar_quantile": 0.0}
        run("none", silent, record=True)
        ends = {
            "bonds": run("bonds", {**OFF, "unfamiliar_quantile": 0.0}),
            "density": run(
                "density", {**OFF, **NO_BONDS, "unfamiliar_quantile": QUANTILE}, density=density
            ),
            "explosion": run("explosion", {**NO_BONDS, "unfamiliar_quantile": 0.0}),
            "all": run("all", {"unfamiliar_quantile": QUANTILE}, density=density),
        }
        one = select(begin, k)
        positions = recorded(path, one.sizes["atom"])
        passed, limit = np.inf, np.nan
        for step in range(0, len(positions), 10):
            if not np.isfinite(positions[step]).all():
                break
            frame = at(one, positions[step : step + 1])
            attempt = label_one(frame, reference, directory=cache)
            if attempt.status != "converged":
                passed = (
                    step * 0.5
                )  # where the reference itself gives up, the potential has long left
                break
            truth = gather(frame, cache, reference=reference)["forces"].values
            error = np.linalg.norm(potential.evaluate(frame)["forces"].values - truth, axis=1)
            if step == 0:
                limit = max(1.0, 5 * float(np.sqrt((error**2).mean() / 3)))
            if error.max() > limit:
                passed = step * 0.5
                break
            if step * 0.5 > min(ends["all"] + 60, length):
                break
        rows.append({"epochs": epochs, "limit_eV_per_A": limit, "error_passes_fs": passed, **ends})
        done.write_text(json.dumps(rows[-1]))
        print(f"walk {k}: {rows[-1]}", flush=True)
    for name in ("bonds", "density", "explosion", "all"):
        late = [r[name] - r["error_passes_fs"] for r in rows if np.isfinite(r["error_passes_fs"])]
        timely = sum(value <= 10.0 for value in late)
        print(
            f"{name}: at most 10 fs after the error passes in {timely} of {len(late)}; delay "
            + ", ".join("never" if np.isinf(v) else f"{v:+.0f}" for v in sorted(late))
        )
    return rows


def main(argv: list[str] | None = None):
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("reference", "delay"), default="reference")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--walks", type=int)
    parser.add_argument("--length", type=float, help="fs")
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
        job = reference_walks if options.what == "reference" else delay_walks
        return job(size["walks"], size["length"], place)


if __name__ == "__main__":
    main()
