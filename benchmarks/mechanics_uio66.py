"""UiO-66's primitive cell: a potential against its own level, and relaxations against ASE's.

``level`` computes E(V) and elastic constants with the potential that travels with mofal and with
the reference it was trained on (GFN1-xTB: 3 s a force call on an idle core, 110 calls for E(V),
200 for all strains); stopped at any moment, the same command goes on. ``relaxation`` counts force
calls of one relaxation against ASE's FIRE and LBFGS with ASE's filter, to the same criteria.
Tables: docs/mechanics.md.

    OMP_NUM_THREADS=1 python benchmarks/mechanics_uio66.py relaxation
    OMP_NUM_THREADS=1 python benchmarks/mechanics_uio66.py level --directory uio66-levels
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import units
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS

import mofal
from mofal.data import from_atoms, to_atoms
from mofal.frameworks import build
from mofal.mechanics import (
    Criteria,
    Curve,
    CurveSettings,
    Elastic,
    Level,
    energy_volume,
    potential_level,
    reference_level,
    relax,
    run_serial,
)
from mofal.mechanics.curve import Record
from mofal.mechanics.elastic import describe_elastic
from mofal.mechanics.relaxation import deviator, displaced, scaled
from mofal.mechanics.show import describe_curve

MODEL = Path(mofal.__file__).parent / "examples" / "seeds" / "uio66-gfn1" / "model"


def level(directory: str, reference: str) -> None:
    """E(V) and C_ij of both levels; the reference begins at the minimum of the potential."""
    structure = build("S_pr", cell="primitive")
    settings = CurveSettings(volumes=7, spacing=0.0075, both_ways=False, displacement=0.003)
    levels: dict[str, Level] = {
        "potential": potential_level(MODEL),
        reference: reference_level(reference),
    }
    for name, one in levels.items():
        curve = Curve(structure, one, directory=Path(directory) / name, settings=settings)
        run_serial(curve, say)
        found = energy_volume(curve.gather())
        elastic = Elastic(name, curve.point("minimum"), one, directory=Path(directory) / name)
        run_serial(elastic, say)
        for line in describe_curve(name, found, n_atoms=114, cells=0.25):
            say(line)
        modulus = None if found.windows is None else found.windows.bulk_modulus
        for line in describe_elastic(name, elastic.gather(), modulus):
            say(line)
        structure = from_atoms([Record.load(curve.point("minimum")).atoms], system="S_pr")


def relaxation(most: int) -> None:
    """Force calls from three starts."""
    calculator = potential_level(MODEL).calculator()
    first = displaced(to_atoms(build("S_pr", cell="primitive"), 0), 0.01, (0,))
    minimum = relax(first, calculator, cell="free").atoms
    starts = {"free cell": (first, "free")}
    for percent in (0.5, -2.0):
        moved = scaled(minimum, minimum.get_volume() * (1 + percent / 100))
        starts[f"volume {percent:+g} %"] = displaced(moved, 0.01, (1,)), "volume"
    for name, (start, cell) in starts.items():
        ours = relax(start, calculator, cell=cell)
        line = f"{name:14s} here {ours.force_calls:4d} calls {ours.energy:.5f} eV"
        for peer in (LBFGS, FIRE):
            atoms = start.copy()
            atoms.calc = calculator
            calls = 0
            optimizer = peer(
                FrechetCellFilter(atoms, constant_volume=cell == "volume"), logfile=None
            )
            for _ in optimizer.irun(fmax=0.0, steps=most):
                calls += 1
                stress = atoms.get_stress()
                left = deviator(stress) if cell == "volume" else stress
                small = np.abs(left).max() < 1e-3 * Criteria().max_stress_MPa * units.GPa
                if small and np.abs(atoms.get_forces()).max() < Criteria().max_force:
                    break
            line += f"   {peer.__name__} {calls:4d} {atoms.get_potential_energy():.5f} eV"
        say(line)


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["level", "relaxation"])
    parser.add_argument("--directory", default="uio66-levels")
    parser.add_argument("--reference", default="gfn1-xtb")
    parser.add_argument(
        "--most", type=int, default=600, help="calls after which a peer is given up"
    )
    args = parser.parse_args()
    if args.what == "level":
        level(args.directory, args.reference)
    else:
        relaxation(args.most)
