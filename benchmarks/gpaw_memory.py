"""Estimated against measured memory of GPAW, and wall time, over clusters and crystals.

    python benchmarks/gpaw_memory.py --size small
    python benchmarks/gpaw_memory.py --size brick      # the paper's settings: 15 minutes and more

Prints one line per calculation: the grid, the bands, the measured peak over all ranks, the estimate
made before the start, and their ratio, which has to be from 1 to 1.5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

SIZES: dict[str, list[tuple[str, str]]] = {
    "tiny": [("H2O", "gpaw:lcao?h=0.3")],
    "small": [
        ("H2O", "gpaw:lcao?ranks=2"),
        ("HCOOH", "gpaw:coarse"),
        ("HCOOH", "gpaw:coarse?ranks=2"),
        ("HCOOH", "gpaw:lcao"),
        ("HCOOH", "gpaw:paper"),
        ("HCOOH", "gpaw:paper?ranks=2"),
        ("C6H6", "gpaw:coarse"),
        ("C6H6", "gpaw:paper?ranks=2"),
        ("C6H6", "gpaw:lcao?ranks=2"),
        ("diamond", "gpaw:coarse"),
        ("diamond", "gpaw:paper"),
        ("diamond-64", "gpaw:coarse?ranks=2"),
        ("diamond-64", "gpaw:lcao?ranks=2"),
        ("MgO", "gpaw:paper?ranks=2"),
    ],
    "large": [
        ("brick", "gpaw:lcao?h=0.25&ranks=2"),
        ("brick", "gpaw:coarse?ranks=2&max_iterations=4&max_retries=0"),
        ("UiO-66", "gpaw:coarse?ranks=2&max_iterations=2&max_retries=0"),
        ("brick", "gpaw:paper?ranks=2&max_iterations=1&max_retries=0"),
    ],
    "brick": [("brick", "gpaw:paper?ranks=2")],
}


def structure(name: str) -> Any:
    """One of the structures by name, as `ase.Atoms`."""
    from ase.build import bulk, molecule

    if name == "diamond":
        return bulk("C", cubic=True)
    if name == "diamond-64":
        return bulk("C", cubic=True).repeat(2)
    if name == "MgO":
        return bulk("MgO", "rocksalt", a=4.21, cubic=True)
    if name in ("brick", "UiO-66"):
        return _uio(name)
    return molecule(name)


def _uio(name: str) -> Any:
    """UiO-66's primitive cell, or its brick capped by twelve hydrogens (66 atoms)."""
    import xarray as xr

    from mofal import clusters, frameworks
    from mofal.data import to_atoms

    parent = frameworks.build("UiO-66", cell="primitive")
    if name == "UiO-66":
        return to_atoms(parent, 0)
    blocks = frameworks.find_blocks(parent)
    brick = int(np.flatnonzero(blocks["role"].values == "node")[0])
    core = xr.Dataset({"core_structure": ("core", [0]), "core_block": ("core", [brick])})
    cut, refused = clusters.cut(parent, {str(parent.system.values[0]): blocks}, core, shells=0)
    if cut.sizes["structure"] != 1:
        raise SystemExit(f"the brick was refused: {refused['reason'].values}")
    return to_atoms(cut, 0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the calculations of one size and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    given = parser.parse_args(argv)
    from mofal.reference import get_reference

    head = "structure    reference                        grid          bands  peak GB  estimate"
    print(head + "  ratio  wall s  status", flush=True)
    worst = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name, spec in SIZES[given.size]:
            atoms = structure(name)
            reference = get_reference(spec)
            cost = reference.cost(atoms)
            attempt = reference.calculate(atoms, directory=scratch)
            ratio = attempt.memory_estimate / attempt.memory_peak
            worst += not 1.0 <= ratio <= 1.5
            print(
                f"{name:12s} {spec:32s} {'x'.join(map(str, cost.grid_points)):13s} "
                f"{cost.bands:5d} {attempt.memory_peak:8.2f} {attempt.memory_estimate:9.2f} "
                f"{ratio:6.2f} {attempt.wall_time_s:7.1f}  {attempt.status} {attempt.reason}",
                flush=True,
            )
    print(f"{worst} of {len(SIZES[given.size])} outside 1 to 1.5")
    return 0


if __name__ == "__main__":
    sys.exit(main())
