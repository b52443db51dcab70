"""How long potentials hold a structure, and what their forces are worth where they have come to.

    python benchmarks/potential_holds.py [MODEL ...] [--size tiny|full] [--system S_pr]
        [--temperature 600] [--runs 10] [--length 5000] [--engine eager|compiled] [--nve]
        [--precision single double] [--workers 2] [--directory DIR]

MODEL: directories of models or campaigns; default: the seed that travels with mofal. Every run
starts from the ideal primitive cell with velocities of its own, NVT, 0.5 fs, and ends where a bond
strays beyond what its kind does at the temperature (`mofal.dynamics.bond_limits`). The last
frame of each run is labelled with GFN1-xTB, and the force MAE there is printed. Runs and labels are
kept in DIR: an interrupted run goes on with the same command.

--nve: the drift of the energy instead. From a thermal frame with thermal velocities and without a
thermostat, with the network in single precision (as it is: energies are summed, and atoms moved, in
double) and in double. The drift is the slope of the energy's means over twenty parts of the run.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np

PRECISIONS = ("single", "double")
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


def in_double(potential):
    """The same potential with its network in double precision."""
    from mofal.potential import create

    architecture = potential.architecture.model_copy(update={"dtype": "float64"})
    double = create(
        architecture,
        potential.elements,
        seed=0,
        avg_num_neighbors=potential.avg_num_neighbors,
    )
    double.network.load_state_dict(potential.network.state_dict())
    return double


def nve(potential, system: str, *, temperature_K: float, length_fs: float, out: Path) -> dict:
    """Drift of the energy and its standard error, meV/atom/ps, and what it does besides."""
    from ase import units

    from mofal.dynamics import WalkSettings, sample_harmonic, walk
    from mofal.frameworks import build

    frame = sample_harmonic(
        build(system, cell="primitive"),
        n=1, temperature_K=temperature_K, seed=4, volume_strain=(0.0, 0.0), shear=0.0,
    )  # fmt: skip
    settings = WalkSettings(
        ensemble="nvt",
        temperature_K=temperature_K,
        thermostat_fs=1e12,  # no heat goes in or out
        length_fs=length_fs,
        sample_every=2,
        checkpoint_every=500,
        unfamiliar_quantile=0.0,
    )
    trace = walk(frame, calculator=potential.calculator(), settings=settings, seed=4, out=out).trace
    time_ps = trace["time_fs"].values / 1000.0
    temperature = trace["temperature_K"].values
    n = frame.sizes["atom"]
    kinetic = 1.5 * n * units.kB * temperature
    energy = 1000.0 * (trace["potential_energy"].values + kinetic) / n
    parts = min(20, len(energy))
    t, e = (
        np.array([x.mean() for x in np.array_split(values, parts)]) for values in (time_ps, energy)
    )
    (slope, _), covariance = np.polyfit(t, e, 1, cov=True)
    return {
        "drift": float(slope),
        "error": float(np.sqrt(covariance[0, 0])),
        "rms": float((energy - np.polyval(np.polyfit(time_ps, energy, 1), time_ps)).std()),
        "temperature_K": float(temperature[len(temperature) // 10 :].mean()),
        "ps": float(time_ps[-1]),
    }


def nve_table(models, options, length_fs: float, place: Path) -> list[dict]:
    """A row for each model and precision."""
    from mofal.potential import load

    rows = []
    for model in models:
        given = load(model)
        for name in options.precision:
            potential = given if name == "single" else in_double(given)
            if options.engine == "compiled":
                potential.compile(progress=print)
            row = nve(
                potential, options.system, temperature_K=options.temperature, length_fs=length_fs,
                out=place / f"nve-{given.model_hash[:12]}-{options.system}-{name}.npz",
            )  # fmt: skip
            rows.append({"model": str(model), "precision": name, **row})
            print(
                f"{model}, {name} precision, NVE from {options.temperature:g} K, {row['ps']:.3g} "
                f"ps at {row['temperature_K']:.0f} K: drift {row['drift']:+.4f} ± "
                f"{row['error']:.4f} meV/atom/ps, rms about it {row['rms']:.3f} meV/atom",
                flush=True,
            )
    return rows


def main(argv: list[str] | None = None) -> list[dict]:
    """Print the table; return a row for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--system", default="S_pr")
    parser.add_argument("--temperature", type=float, default=600.0)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--length", type=float, help="fs")
    parser.add_argument("--engine", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--nve", action="store_true")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--directory")
    options = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"
    size = dict(SIZES[options.size])
    size |= {k: v for k, v in (("runs", options.runs), ("length_fs", options.length)) if v}
    from mofal.campaign.examples import seed_place
    from mofal.campaign.steps.hold import survival_of
    from mofal.campaign.steps.label import local_schedule
    from mofal.commands.hold import hold_file
    from mofal.data import open_group
    from mofal.potential import load

    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(options.directory or scratch)
        place.mkdir(parents=True, exist_ok=True)
        models = options.models or [str(seed_place("uio66-gfn1") / "model")]
        if options.nve:
            return nve_table(models, options, size["length_fs"], place)
        for model in models:
            records = hold_file(
                options.system,
                potential=model,
                temperature_K=options.temperature,
                engine=options.engine,
                directory=place,
                schedule=local_schedule(options.workers),
                say=lambda line: print(line, flush=True),
                **size,
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
