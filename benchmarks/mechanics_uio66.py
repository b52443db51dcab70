"""UiO-66's primitive cell: a potential against its own level, and relaxations against ASE's.

``level`` computes E(V) and elastic constants with the potential that travels with mofal and with
the reference it was trained on (GFN1-xTB: 3 s a force call on an idle core, 110 calls for E(V),
200 for all strains); stopped at any moment, the same command goes on. ``relaxation`` counts force
calls of one relaxation against ASE's FIRE and LBFGS with ASE's filter, to the same criteria.
``drift`` walks at constant volume and free shape without a heat bath, with the network as it is
(single precision) and with the same weights in double precision, and prints the slope of the
conserved energy. Tables: docs/mechanics.md.

    OMP_NUM_THREADS=1 python benchmarks/mechanics_uio66.py relaxation
    OMP_NUM_THREADS=1 python benchmarks/mechanics_uio66.py drift [--picoseconds 2]
    OMP_NUM_THREADS=1 python benchmarks/mechanics_uio66.py level --directory uio66-levels
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import units
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS

import mofal
from mofal.data import from_atoms, to_atoms
from mofal.dynamics.integrator import Integrator, Member
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
from mofal.potential import NequIPPotential, load
from mofal.potential.network import build_network, builder_config, put_weights, weights_of

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


def drift(picoseconds: float, timestep_fs: float) -> None:
    """Slope of the conserved energy of (N, V, σa = 0, E) at 300 K, in both precisions."""
    start = to_atoms(build("S_pr", cell="primitive"), 0)
    single = load(MODEL)
    start = relax(displaced(start, 0.01, (0,)), single.calculator(), cell="free").atoms
    steps = round(1000.0 * picoseconds / timestep_fs)
    for potential in (single, _double(single)):
        member = Member(
            start.numbers, start.pbc, start.get_masses(), timestep_fs, 600.0, 100.0,
            np.random.default_rng(0), barostat_fs=1000.0, bath=False,
        )  # fmt: skip
        member.place(start.positions, start.cell.array)
        # Half of 600 K goes into the springs.
        member.draw_momenta(np.random.default_rng(1), ensemble="nvst")
        walk = Integrator(potential.engine(), "nvst", [member])
        begun = time.process_time()
        energy, temperature = [], []
        for _ in range(steps):
            walk.step()
            energy.append(float(walk.conserved_energies()[0]) / len(start))
            temperature.append(float(walk.temperatures()[0]))
        spent = (time.process_time() - begun) / steps
        # The first tenth is where the springs take their half.
        kept = np.array(energy[steps // 10 :])
        slope, error = slope_of(kept, timestep_fs / 1000.0)
        say(
            f"{potential.architecture.dtype}: {1e6 * slope:+.2f} ± {1e6 * error:.2f} µeV/ps/atom, "
            f"rms about the line {1e6 * _rest(kept):.2f} µeV/atom, over {picoseconds:g} ps of "
            f"{timestep_fs:g} fs at {np.mean(temperature[steps // 10 :]):.0f} K, "
            f"{1e3 * spent:.1f} ms a step"
        )


def _double(potential: NequIPPotential) -> NequIPPotential:
    """The same weights in a network of double precision."""
    architecture = potential.architecture.model_copy(update={"dtype": "float64"})
    config = builder_config(
        architecture, potential.elements, avg_num_neighbors=potential.avg_num_neighbors
    )
    network = build_network(config)
    put_weights(network, weights_of(potential.network))
    return NequIPPotential(
        network, architecture, potential.elements, avg_num_neighbors=potential.avg_num_neighbors
    )


def slope_of(values: np.ndarray, step: float, blocks: int = 20) -> tuple[float, float]:
    """Slope of a series and its standard error, from a line through the means of blocks."""
    parts = np.array([part.mean() for part in np.array_split(values, blocks)])
    x = (np.arange(blocks) + 0.5) * len(values) / blocks * step
    (slope, _), covariance = np.polyfit(x, parts, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def _rest(values: np.ndarray) -> float:
    x = np.arange(len(values))
    return float(np.std(values - np.polyval(np.polyfit(x, values, 1), x)))


def say(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the three; a few steps of the last where the size is tiny."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["level", "relaxation", "drift"])
    parser.add_argument("--directory", default="uio66-levels")
    parser.add_argument("--reference", default="gfn1-xtb")
    parser.add_argument(
        "--most", type=int, default=600, help="calls after which a peer is given up"
    )
    parser.add_argument("--picoseconds", type=float, default=2.0, help="of drift")
    parser.add_argument("--timestep", type=float, default=0.5, help="of drift, fs")
    parser.add_argument("--size", choices=["tiny", "full"], default="full")
    args = parser.parse_args(arguments)
    if args.size == "tiny":
        drift(0.02, 0.5)
    elif args.what == "level":
        level(args.directory, args.reference)
    elif args.what == "drift":
        drift(args.picoseconds, args.timestep)
    else:
        relaxation(args.most)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
