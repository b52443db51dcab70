"""Walks and harmonic samples: what they cost and whether they are real.

    python benchmarks/dynamics_sampling.py [--size tiny|full]

Prints, measured in this run on one thread:

- time per harmonic frame of S_pr cells (primitive, conventional, 3 x 3 x 3 conventional);
- forces and energies of harmonic frames at several temperatures under GFN1-xTB, against
  equipartition (only where tblite is installed; `full` only);
- what a walk adds to bare ASE dynamics of the same integrator: checks, samples, checkpoints;
- NPT of a Lennard-Jones crystal: pressure and temperature against what was set, and its modulus
  from volume fluctuations against the one from two pressures.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import units
from ase.build import bulk
from ase.md.langevinbaoab import LangevinBAOAB
from matscipy.calculators.pair_potential import LennardJonesQuadratic, PairPotential
from threadpoolctl import threadpool_limits

from mofal.data import from_atoms, select, to_atoms
from mofal.dynamics import WalkSettings, sample_harmonic, walk
from mofal.frameworks import build

SIZES = {
    "tiny": {"cells": ("primitive",), "frames": 2, "steps": 20, "npt_fs": 800.0, "xtb": ()},
    "full": {
        "cells": ("primitive", "conventional", "3 x 3 x 3"),
        "frames": 20,
        "steps": 500,
        "npt_fs": 24000.0,
        "xtb": (300.0, 600.0, 900.0),
    },
}
ARGON = WalkSettings(
    temperature_K=40.0,
    pressure_GPa=0.0,
    timestep_fs=4.0,
    thermostat_fs=100.0,
    barostat_fs=100.0,
    min_distance=2.0,
    checkpoint_every=1000,
)


def argon() -> PairPotential:
    """Lennard-Jones argon whose force ends smoothly."""
    return PairPotential({(18, 18): LennardJonesQuadratic(0.0104, 3.4, 6.8)})


def harmonic(cells: Sequence[str], frames: int) -> None:
    """Time per frame."""
    print(f"{'S_pr cell':<16}{'atoms':>8}{'set-up (s)':>12}{'frame (s)':>12}{'redrawn':>9}")
    for name in cells:
        large = name == "3 x 3 x 3"
        structure = build(
            "S_pr",
            cell="conventional" if large else name,
            repeat=(3, 3, 3) if large else None,
        )
        n = 2 if large else frames
        start = time.process_time()
        sample_harmonic(structure, n=1, seed=0)
        first = time.process_time() - start
        start = time.process_time()
        drawn = sample_harmonic(structure, n=n + 1, seed=0)
        per_frame = max(0.0, time.process_time() - start - first) / n
        print(
            f"{name:<16}{structure.sizes['atom']:>8}{first - per_frame:>12.2f}"
            f"{per_frame:>12.3f}{drawn.attrs['n_redrawn']:>9}"
        )


def quality(temperatures: Sequence[float]) -> None:
    """Forces and energies of harmonic frames under a real method."""
    if not temperatures or importlib.util.find_spec("tblite") is None:
        return
    from tblite.ase import TBLite

    structure = build("S_pr", cell="primitive")
    ideal = to_atoms(structure, 0)
    ideal.calc = TBLite(method="GFN1-xTB", verbosity=0)
    lowest = ideal.get_potential_energy()
    print(f"\nS_pr primitive under GFN1-xTB: ideal geometry {_size(ideal):.2f} eV/Å")
    print(f"{'T (K)':>8}{'force RMS (eV/Å)':>20}{'largest':>10}{'energy / (3/2 N kT)':>22}")
    for temperature in temperatures:
        frames = sample_harmonic(structure, n=4, seed=1, temperature_K=temperature)
        sizes, largest, rises = [], [], []
        for k in range(4):
            atoms = to_atoms(select(frames, [k]), 0)
            atoms.calc = TBLite(method="GFN1-xTB", verbosity=0)
            sizes.append(_size(atoms))
            largest.append(np.abs(atoms.get_forces()).max())
            rise = atoms.get_potential_energy() - lowest
            rises.append(rise / (1.5 * units.kB * temperature * len(atoms)))
        print(
            f"{temperature:>8.0f}{_span(sizes):>20}{max(largest):>10.1f}{_span(rises):>22}",
            flush=True,
        )


def _size(atoms: object) -> float:
    return float(np.sqrt((atoms.get_forces() ** 2).mean()))  # type: ignore[attr-defined]


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def overhead(steps: int) -> None:
    """A walk against bare ASE, same integrator, same calculator."""
    start = from_atoms([bulk("Ar", "fcc", a=5.3, cubic=True).repeat(3)], system="argon")
    atoms = to_atoms(start, 0)
    atoms.calc = argon()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bare = LangevinBAOAB(
            atoms,
            4.0 * units.fs,
            temperature_K=40.0,
            externalstress=0.0,
            T_tau=100.0 * units.fs,
            P_tau=100.0 * units.fs,
            rng=np.random.default_rng(0),
        )
    began = time.process_time()
    for _ in range(steps):
        bare.step()
    plain = (time.process_time() - began) / steps
    settings = WalkSettings(**{**ARGON.__dict__, "length_fs": 4.0 * steps, "barostat_fs": 20.0})
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        walk(
            start,
            calculator=argon,
            settings=settings,
            seed=1,
            out=Path(folder) / "walk.npz",
        )
        mine = (time.process_time() - began) / steps
    print(
        f"\n108 atoms: bare ASE {1e3 * plain:.2f} ms a step, walk {1e3 * mine:.2f} ms "
        f"(walk / ASE = {mine / plain:.2f}, {1e3 * (mine - plain):.2f} ms a step more)"
    )


def npt(length_fs: float) -> None:
    """Thermodynamics of a crystal."""
    start = from_atoms([bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)], system="argon")
    print(f"\n{'P set (GPa)':>12}{'P found':>20}{'T found (K), 40 set':>24}{'volume (Å³)':>16}")
    volumes, fluctuations = [], []
    for pressure in (0.0, 0.15):
        settings = WalkSettings(
            **{**ARGON.__dict__, "length_fs": length_fs, "pressure_GPa": pressure}
        )
        trace = walk(start, calculator=argon, settings=settings, seed=2).trace
        kept = trace.isel(sample=slice(trace.sizes["sample"] // 8, None))
        found = _mean(kept["pressure_GPa"].values), _mean(kept["temperature_K"].values)
        volume = kept["volume"].values
        volumes.append(volume.mean())
        fluctuations.append(units.kB * 40.0 * volume.mean() / volume.var() / units.GPa)
        print(
            f"{pressure:>12.2f}{found[0][0]:>12.4f} ± {found[0][1]:.4f}"
            f"{found[1][0]:>15.2f} ± {found[1][1]:.2f}{volume.mean():>16.1f}",
            flush=True,
        )
    finite = 0.15 * np.mean(volumes) / (volumes[0] - volumes[1])
    print(
        f"modulus: {finite:.2f} GPa from the two volumes, "
        f"{np.mean(fluctuations):.2f} GPa from fluctuations"
    )


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its error from sixteen blocks."""
    means = np.array([block.mean() for block in np.array_split(values, 16)])
    return float(means.mean()), float(means.std(ddof=1) / 4.0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    size = SIZES[parser.parse_args(argv).size]
    with threadpool_limits(1):
        harmonic(size["cells"], size["frames"])
        quality(size["xtb"])
        overhead(size["steps"])
        npt(size["npt_fs"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
