"""`mofal watch` on a trajectory of a disordered supercell, in LAMMPS's dump format.

    python benchmarks/watch_trajectory.py [--size tiny|full] [--workers N] [--directory DIR]

A supercell of UiO-66 with missing linkers, missing bricks and Hf is built, frames with growing
displacements are written as LAMMPS writes them (text, elements, wrapped, atoms in another order in
each frame), and the command watches them with the potential that travels with mofal and the density
of its labels. Prints

- seconds (wall) until the frames are found, scored, drawn and cut; processor time and memory of
  the whole command, and how often it took all of that: atoms scored per second;
- seconds of processor time to read one frame from the middle, and by ASE's reader with an index.

`full` is 4 x 4 x 4 cells (about 23,700 atoms), 20 frames and 150 clusters; `tiny` one cell.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {
    "tiny": {"repeat": (1, 1, 1), "frames": 3, "clusters": 3},
    "full": {"repeat": (4, 4, 4), "frames": 20, "clusters": 150},
}


def write_trajectory(path: Path, ds: Any, n: int) -> None:
    """Write frames of a structure, displaced by 0.01 Å in the first to 0.06 Å in the last."""
    from ase.data import chemical_symbols

    symbols = [chemical_symbols[z] for z in ds["numbers"].values]
    cell = ds["cell"].values[0]
    rng = np.random.default_rng(0)
    with path.open("w") as stream:
        for k in range(n):
            moved = ds["positions"].values
            moved = moved + rng.normal(scale=0.01 + 0.05 * k / max(n - 1, 1), size=moved.shape)
            inside = moved @ np.linalg.inv(cell)
            moved = (inside - np.floor(inside)) @ cell
            stream.write(f"ITEM: TIMESTEP\n{1000 * k}\nITEM: NUMBER OF ATOMS\n{len(moved)}\n")
            stream.write("ITEM: BOX BOUNDS pp pp pp\n")
            stream.writelines(f"0.0 {length:.16e}\n" for length in np.diag(cell))
            stream.write("ITEM: ATOMS id element x y z\n")
            stream.writelines(
                f"{i + 1} {symbols[i]} {moved[i, 0]:.6f} {moved[i, 1]:.6f} {moved[i, 2]:.6f}\n"
                for i in rng.permutation(len(moved)).tolist()
            )


def prepare(directory: Path, repeat: tuple[int, int, int], n: int) -> tuple[Path, Path, Path]:
    """Model, density and trajectory."""
    from mofal.campaign.examples import seed_place
    from mofal.data import open_group, select
    from mofal.density import fit_density
    from mofal.frameworks import build, disorder
    from mofal.potential import load

    seed = seed_place("uio66-gfn1")
    model = load(seed / "model")
    labels = open_group(seed / "labels.zarr").load()
    split = labels["split"].values
    density = fit_density(model.featurize(select(labels, split == "train")), random_state=0)
    known = model.featurize(select(labels, split == "validation"))
    density.calibrate(known["features"].values, known["numbers"].values)
    density.save(directory / "density.zarr")
    brick = 0.1 if min(repeat) > 1 else 0.0
    ds = disorder(build("S_pr", repeat=repeat), linker=0.2, brick=brick, hf=0.02, seed=0)
    file = directory / "production.lammpstrj"
    write_trajectory(file, ds, n)
    return seed / "model", directory / "density.zarr", file


STAGES = {
    "found": " frames of ",
    "scored": " of atoms below ",
    "drawn": "choosing ",
    "cut": "clusters of ",
}
"""What a line holds that ends a stage."""


def run(command: list[str]) -> dict[str, float]:
    """Run the command, and tell when each stage was over."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    out: dict[str, float] = {}
    assert process.stdout is not None
    for line in process.stdout:
        print("  " + line.rstrip())
        for stage, part in STAGES.items():
            if part in line and stage not in out:
                out[stage] = time.perf_counter() - begin
    if process.wait() != 0:
        raise SystemExit(process.returncode)
    out["all"] = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    out["processor"] = used.ru_utime + used.ru_stime
    out["GB"] = used.ru_maxrss / 1e6
    return out


def reading(file: Path) -> tuple[float, float]:
    """Processor seconds of one frame from the middle: here (places known), and by ASE."""
    import ase.io

    from mofal.trajectories import open_trajectory, read_frame

    trajectory = open_trajectory(file)
    middle = trajectory.look() // 2
    begin = time.process_time()
    ours = read_frame(trajectory, middle)
    between = time.process_time()
    theirs: Any = ase.io.read(file, middle, format="lammps-dump-text")
    end = time.process_time()
    np.testing.assert_array_equal(ours.positions, theirs.positions)
    return between - begin, end - between


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--directory", help="where it works (default: a temporary directory)")
    args = parser.parse_args()
    size: Any = SIZES[args.size]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(args.directory or temporary)
        place.mkdir(parents=True, exist_ok=True)
        model, density, file = prepare(place, size["repeat"], size["frames"])
        print(f"{file.name}: {size['frames']} frames, {file.stat().st_size / 1e6:.0f} MB")
        command = [sys.executable, "-m", "mofal", "watch", str(file), "--potential", str(model)]
        command += ["--density", str(density), "--clusters", str(size["clusters"])]
        command += ["--workers", str(args.workers), "--directory", str(place / "watch")]
        took = run(command)
        print(f"{'until':<24}{'s (wall)':>10}")
        for stage in (*STAGES, "all"):
            print(f"{stage:<24}{took[stage]:>10.1f}")
        print(f"processor time {took['processor']:.1f} s, {took['GB']:.1f} GB at most")
        ours, theirs = reading(file)
        print(f"one frame from the middle: {ours:.3f} s here, {theirs:.3f} s by ASE (processor)")


if __name__ == "__main__":
    main()
