"""Is a parent of clusters wide enough? GFN1-xTB at the Gamma point, in it and in its double.

    python benchmarks/clusters_parents.py [--size tiny|full] [--frames 1]

For each rod of `examples` (MIL-53(Al), MOF-74(Mg)) and, where the file's cell is narrow, for that
cell too: a frame at 300 K is labelled as it is, and repeated twice along each cell vector. Equal
forces mean that the Gamma point is enough. Prints the RMSE of the difference (meV/Å) over all atoms
and over metals.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from ase import Atoms
from numpy.typing import NDArray

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SIZES = {"tiny": ("mof74",), "full": ("mof74", "mil53")}


def parents(name: str, tiny: bool) -> Iterator[tuple[str, xr.Dataset]]:
    """The cell of the file, and the supercell that a campaign takes."""
    from mofal.frameworks import read_framework
    from mofal.frameworks.cells import supercell, wide_enough

    ds = read_framework(EXAMPLES / f"{name}.cif")
    yield "as in the file", ds
    if not tiny:
        yield "as in a campaign", supercell(ds, wide_enough(ds["cell"].values[0]))


def forces(atoms: Atoms) -> NDArray[np.float64]:
    """GFN1-xTB, eV/Å."""
    from tempfile import TemporaryDirectory

    from mofal.reference import get_reference

    with TemporaryDirectory() as scratch:
        done = get_reference("gfn1-xtb").calculate(atoms, directory=scratch)
    if not done.converged:
        raise SystemExit(f"{atoms.symbols}: {done.reason}")
    return np.asarray(done.forces)


def main(argv: Sequence[str] | None = None) -> int:
    """Label, double, compare."""
    from mofal.data import to_atoms
    from mofal.dynamics import sample_harmonic

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--frames", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    tiny = args.size == "tiny"
    for name in SIZES[args.size]:
        for what, ds in parents(name, tiny):
            frames = sample_harmonic(
                ds, n=args.frames, temperature_K=300.0, seed=args.seed, volume_strain=0.0, shear=0.0
            )
            for k in range(args.frames):
                atoms = to_atoms(frames, k)
                atoms.info.clear()
                lengths = atoms.cell.lengths()
                once = forces(atoms)
                metal = np.isin(atoms.numbers, (12, 13))
                print(
                    f"{name}, {what}: {len(atoms)} atoms, "
                    f"{' x '.join(f'{d:.1f}' for d in lengths)} Å; RMS force "
                    f"{1000 * np.sqrt((once**2).mean()):.0f} meV/Å",
                    flush=True,
                )
                for axis in range(1 if tiny else 3):
                    start = time.process_time()
                    twice = forces(atoms.repeat(np.where(np.arange(3) == axis, 2, 1)))
                    n = len(atoms)
                    off = 1000 * (twice[:n] - once)
                    print(
                        f"  twice along {'abc'[axis]}: RMSE {np.sqrt((off**2).mean()):.1f} meV/Å, "
                        f"metals {np.sqrt((off[metal] ** 2).mean()):.1f}, largest "
                        f"{np.abs(off).max():.1f}; both halves equal within "
                        f"{1000 * np.abs(twice[n:] - twice[:n]).max():.2f}; "
                        f"{time.process_time() - start:.0f} s",
                        flush=True,
                    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
