"""Noise floor of GPAW's forces under shifts, rotations and changes of the grid, per preset.

    python benchmarks/gpaw_noise.py --size small

Prints one line per preset and factor, in meV/Å: the floor (standard deviation about the per-atom
mean), the RMSE between pairs of repeats, and the largest deviation of a component from its mean.
The paper (Section SI.1) gives an RMSE of 20 and a largest difference of about 100 for each factor
alone, on the 66-atom brick at its own settings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence

SIZES: dict[str, tuple[list[str], list[str], int]] = {
    "tiny": (["H2O"], ["gpaw:lcao?h=0.3&vacuum=3&poisson_extension=3"], 1),
    "small": (["HCOOH"], ["gpaw:lcao", "gpaw:coarse", "gpaw:paper?ranks=2"], 3),
    "large": (["HCOOH", "C6H6", "H2O"], ["gpaw:paper?ranks=2"], 4),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", help="label cache that is kept; default: a temporary one")
    given = parser.parse_args(argv)
    from ase.build import molecule

    from mofal.data import from_atoms
    from mofal.reference import measure_noise

    names, specs, repeats = SIZES[given.size]
    frames = [molecule(name) for name in names]
    for atoms in frames:
        atoms.rattle(0.05, seed=1)
    factors = ["shift"] if given.size == "tiny" else ["shift", "rotation", "grid", "combined"]
    print(f"{', '.join(names)}; {repeats} repeats beside the original; meV/Å", flush=True)
    print("reference                factor     floor  pair RMSE  largest", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for spec in specs:
            noise = measure_noise(
                from_atoms(frames),
                spec,
                directory=given.directory or scratch,
                factors=factors,
                repeats=repeats,
                seed=given.seed,
                progress=lambda line: print(f"  {line}", file=sys.stderr, flush=True),
            )
            for factor in noise["factor"].values.tolist():
                one = noise.sel(factor=factor)
                print(
                    f"{spec:24s} {factor:9s} {1e3 * float(one['floor']):6.1f} "
                    f"{1e3 * float(one['pair_rmse']):10.1f} {1e3 * float(one['largest']):8.1f}",
                    flush=True,
                )
            if noise.attrs["quadrature"] == noise.attrs["quadrature"]:
                print(
                    f"{spec:24s} {noise.attrs['quadrature_of']} added in variance "
                    f"{1e3 * noise.attrs['quadrature']:.1f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
