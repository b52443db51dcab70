"""(N, V, σa = 0, T) of a Lennard-Jones crystal: mofal beside i-PI 3.3.

Both walk the same 32 atoms of argon at the same volume and temperature, with the same calculator in
the same process. Printed with errors from blocks: the mean internal pressure, the fluctuations of
the shape (Hencky strains against the cubic cell, which do not know how a cell is turned), the
volume's largest change, the conserved energy, and the processor time of a step without its force
call. i-PI (`pip install ipi`) is no dependency of mofal: where it is missing, this says so and
mofal stands alone. Table: docs/mechanics.md.

    OMP_NUM_THREADS=1 python benchmarks/mechanics_ipi.py [--size tiny|full]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.io import write
from matscipy.calculators.pair_potential import LennardJonesQuadratic, PairPotential
from numpy.typing import NDArray

from mofal.dynamics.engine import CalculatorEngine
from mofal.dynamics.integrator import Integrator, Member

LATTICE = 5.20  # Å: 2 % of length below the minimum
TEMPERATURE_K = 20.0
STEP_FS = 5.0
BATH_FS = 200.0
CELL_FS = 500.0
EVERY = 4
BLOCKS = 20
SIZES = {"tiny": 400, "full": 40_000}

INPUT = """<simulation verbosity='low' safe_stride='1000000'>
  <output prefix='ipi'>
    <properties stride='{every}' filename='out'>
      [ time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}},
        pressure_md{{gigapascal}}, volume{{angstrom3}}, cell_h{{angstrom}} ]
    </properties>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>{seed}</seed></prng>
  <ffdirect name='argon' threaded='false' pbc='false'>
    <pes>custom</pes><pes_path>{script}</pes_path>
    <parameters>{{n_atoms: {n_atoms}}}</parameters>
  </ffdirect>
  <system>
    <initialize nbeads='1'>
      <file mode='ase'>start.extxyz</file>
      <velocities mode='thermal' units='kelvin'>{temperature}</velocities>
    </initialize>
    <forces><force forcefield='argon'></force></forces>
    <motion mode='dynamics'>
      <fixcom>False</fixcom>
      <dynamics mode='npt'>
        <timestep units='femtosecond'>{step}</timestep>
        <thermostat mode='langevin'><tau units='femtosecond'>{bath}</tau></thermostat>
        <barostat mode='flexible'>
          <vol_constraint>True</vol_constraint>
          <tau units='femtosecond'>{cell}</tau>
          <thermostat mode='langevin'><tau units='femtosecond'>{cell}</tau></thermostat>
        </barostat>
      </dynamics>
    </motion>
    <ensemble>
      <temperature units='kelvin'>{temperature}</temperature>
      <pressure units='gigapascal'>{pressure}</pressure>
    </ensemble>
  </system>
</simulation>
"""


def argon() -> Calculator:
    """Lennard-Jones argon whose force ends smoothly."""
    return PairPotential({(18, 18): LennardJonesQuadratic(0.0104, 3.4, 6.8)})


def crystal() -> Atoms:
    """Argon of 32 atoms at the volume in question."""
    return bulk("Ar", "fcc", a=LATTICE, cubic=True).repeat(2)


class Argon:
    """The calculator as i-PI calls it: atomic units, cell vectors as columns."""

    def __init__(self, n_atoms: int, **_: Any) -> None:
        self.atoms = Atoms(f"Ar{n_atoms}", pbc=True)
        self.atoms.calc = argon()

    def __call__(self, cell: NDArray, positions: NDArray) -> tuple[float, NDArray, NDArray, str]:
        """Energy, forces, virial, and nothing more."""
        atoms = self.atoms
        atoms.set_cell(np.asarray(cell).T * units.Bohr)
        atoms.set_positions(np.asarray(positions) * units.Bohr)
        forces = atoms.get_forces() * units.Bohr / units.Hartree
        virial = -atoms.get_stress(voigt=False) * atoms.get_volume() / units.Hartree
        return atoms.get_potential_energy() / units.Hartree, forces, virial, ""


__DRIVER_NAME__ = "argon"
__DRIVER_CLASS__ = "Argon"

Series = dict[str, NDArray]


def with_mofal(steps: int, seed: int) -> tuple[Series, float]:
    """Series of pressure (GPa), volume, conserved energy (eV), cell; processor time of a step."""
    atoms = crystal()
    member = Member(
        atoms.numbers, atoms.pbc, atoms.get_masses(), STEP_FS, TEMPERATURE_K, BATH_FS,
        np.random.default_rng(seed), barostat_fs=CELL_FS,
    )  # fmt: skip
    member.place(atoms.positions, atoms.cell.array)
    member.draw_momenta(np.random.default_rng(seed + 1), ensemble="nvst")
    integrator = Integrator(CalculatorEngine(argon()), "nvst", [member])
    rows = []
    begun = time.process_time()
    for k in range(steps + 1):
        if k % EVERY == 0:
            volume = integrator.volumes()
            virial = integrator.kinetic_tensor() / volume[:, None, None] - integrator.outcome.stress
            rows.append(
                (
                    k * STEP_FS / 1000.0,
                    integrator.conserved_energies()[0],
                    integrator.temperatures()[0],
                    np.trace(virial[0]) / 3.0 / units.GPa,
                    volume[0],
                    *integrator.cells[0].ravel(),
                )
            )
        integrator.step()
    spent = (time.process_time() - begun) / (steps + 1)
    table = np.array(rows)
    return _series(table, table[:, 5:].reshape(-1, 3, 3)), spent


def with_ipi(steps: int, seed: int, pressure_GPa: float) -> tuple[Series, float]:
    """The same from i-PI; what it takes to start is not counted.

    No average depends on the pressure that is set, but i-PI first pushes the volume by the internal
    less that pressure and then takes the push away, and its conserved energy shows it.
    """
    short, long = (_run_ipi(n, seed, pressure_GPa) for n in (steps // 10, steps))
    table = long[0]
    cell = np.zeros((len(table), 3, 3))
    # i-PI prints the upper triangle of a matrix whose columns are the cell vectors.
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))):
        cell[:, j, i] = table[:, 5 + k]
    return _series(table, cell), (long[1] - short[1]) / (steps - steps // 10)


def _run_ipi(steps: int, seed: int, pressure_GPa: float) -> tuple[NDArray, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        atoms = crystal()
        write(place / "start.extxyz", atoms)
        text = INPUT.format(
            every=EVERY, steps=steps, seed=seed, script=Path(__file__).resolve(),
            n_atoms=len(atoms), temperature=TEMPERATURE_K, step=STEP_FS, bath=BATH_FS, cell=CELL_FS,
            pressure=pressure_GPa,
        )  # fmt: skip
        (place / "input.xml").write_text(text)
        before = os.times()
        program = shutil.which("i-pi", path=str(Path(sys.executable).parent)) or "i-pi"
        done = subprocess.run(
            [sys.executable, program, "input.xml"], cwd=place, capture_output=True, text=True
        )
        after = os.times()
        if done.returncode or not (place / "ipi.out").exists():
            raise SystemExit(f"i-PI ended with {done.returncode}:\n{done.stderr[-2000:]}")
        spent = after.children_user + after.children_system
        spent -= before.children_user + before.children_system
        return np.loadtxt(place / "ipi.out"), spent


def _series(table: NDArray, cell: NDArray) -> Series:
    """Columns by name, the first tenth left out; strains from the metric of the cell."""
    kept = slice(len(table) // 10, None)
    metric = cell @ cell.swapaxes(1, 2) / (2.0 * LATTICE) ** 2
    value, vector = np.linalg.eigh(metric)
    strain = 0.5 * (vector * np.log(value)[:, None, :]) @ vector.swapaxes(1, 2)
    return {
        "time_ps": table[kept, 0],
        "conserved": table[kept, 1],
        "temperature": table[kept, 2],
        "pressure": 1000.0 * table[kept, 3],
        "volume": table[kept, 4],
        "strain": strain[kept],
    }


def blocked(runs: Sequence[NDArray]) -> tuple[float, float]:
    """Mean of several runs and its standard error from their blocks."""
    means = np.array([part.mean() for run in runs for part in np.array_split(run, BLOCKS)])
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means)))


def told(runs: Sequence[Series]) -> dict[str, tuple[float, float]]:
    """What is compared, with errors."""
    diagonal = [np.einsum("tii->ti", run["strain"]) for run in runs]
    shear = [run["strain"][:, [0, 0, 1], [1, 2, 2]] for run in runs]
    slopes = [
        1e6 * np.polyfit(time, energy, 1)[0] / 32.0
        for run in runs
        for time, energy in zip(
            np.array_split(run["time_ps"], 4), np.array_split(run["conserved"], 4)
        )
    ]
    change = [np.abs(run["volume"] / run["volume"][0] - 1.0).max() for run in runs]
    return {
        "temperature, K": blocked([run["temperature"] for run in runs]),
        "<P>, MPa": blocked([run["pressure"] for run in runs]),
        "<tetragonal strain^2>, 1e-6": blocked([5e5 * (d**2).sum(axis=1) for d in diagonal]),
        "<shear strain^2>, 1e-6": blocked([1e6 * (s**2).mean(axis=1) for s in shear]),
        "largest |dV/V|": (float(max(change)), 0.0),
        "conserved energy: slope, ueV/ps/atom": (
            float(np.mean(slopes)),
            float(np.std(slopes, ddof=1) / np.sqrt(len(slopes))),
        ),
    }


def force_call() -> float:
    """Processor time of one force call with stress, s."""
    atoms = crystal()
    atoms.rattle(0.02, seed=0)
    atoms.calc = argon()
    rng = np.random.default_rng(0)
    begun = time.process_time()
    for _ in range(200):
        atoms.positions += 1e-4 * rng.standard_normal((len(atoms), 3))
        atoms.get_forces()
        atoms.get_stress()
    return (time.process_time() - begun) / 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and print them side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=int, default=1, help="of each, with seeds from --seed up")
    args = parser.parse_args(arguments)
    steps = SIZES[args.size]
    call = force_call()
    print(
        f"{args.runs} x {steps} steps of {STEP_FS:g} fs, {TEMPERATURE_K:g} K, "
        f"a force call {1e3 * call:.2f} ms"
    )
    seeds = range(args.seed, args.seed + args.runs)
    columns = {"mofal": [with_mofal(steps, seed) for seed in seeds]}
    if find_spec("ipi") is None:
        print("i-PI is not installed here (pip install ipi): mofal alone")
    else:
        from importlib.metadata import version

        mean = 1e-3 * float(columns["mofal"][0][0]["pressure"].mean())
        for pressure, chosen in ((0.0, seeds[:1]), (mean, seeds)):
            name = f"i-PI {version('ipi')}, {pressure:.2f} GPa"
            columns[name] = [with_ipi(steps, seed, pressure) for seed in chosen]
    print(" " * 40 + "".join(f"{name:>24s}" for name in columns))
    rows = {name: told([series for series, _ in runs]) for name, runs in columns.items()}
    for label in next(iter(rows.values())):
        cells = [f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
                 for value, error in (row[label] for row in rows.values())]  # fmt: skip
        print(f"{label:40s}" + "".join(f"{cell:>24s}" for cell in cells))
    spent = [f"{1e3 * (min(cost for _, cost in runs) - call):.2f}" for runs in columns.values()]
    print(f"{'a step without its force call, ms':40s}" + "".join(f"{cell:>24s}" for cell in spent))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
