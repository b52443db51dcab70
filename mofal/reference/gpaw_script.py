"""One GPAW single point in a process of its own: `mpirun -np N python -m gpaw python THIS DIR`.

Reads `input.json` (parameters) and `input.npz` (structure) of the directory. The first rank writes
`output.npz` and `outcome.json`; every rank that fails writes `failure-RANK.json` and takes the
others down with it. Nothing of mofal is imported, so that GPAW may live in another environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np


def run(place: Path) -> None:
    """Calculate what the directory asks for."""
    import gpaw
    from ase import Atoms
    from gpaw import KohnShamConvergenceError
    from gpaw.dft import GPAW
    from gpaw.mpi import world

    (place / "started").touch()  # what fails from here on is the calculation's own failure
    given = json.loads((place / "input.json").read_text())
    with np.load(place / "input.npz", allow_pickle=False) as structure:
        atoms = Atoms(
            numbers=structure["numbers"],
            positions=structure["positions"],
            cell=structure["cell"],
            pbc=structure["pbc"],
        )
    outcome: dict[str, Any] = {
        "status": "crashed",
        "reason": "",
        "ranks": world.size,
        "versions": {"gpaw": gpaw.__version__},
    }
    forces = np.full((len(atoms), 3), np.nan)
    energy = dispersion = float("nan")
    try:
        if world.size != given["ranks"]:
            raise RuntimeError(
                f"asked for {given['ranks']} ranks, GPAW runs on {world.size}: built without MPI?"
            )
        atoms.calc = GPAW(txt=str(place / "gpaw.txt"), **given["parameters"])
        energy = atoms.get_potential_energy()
        forces = atoms.get_forces()
        outcome["status"] = "converged"
    except KohnShamConvergenceError as error:
        # Every rank sees the same error at the same iteration.
        outcome["status"] = "not_converged"
        outcome["reason"] = f"the density did not converge {error}".strip()
    if world.rank == 0:
        if given["dispersion"] and outcome["status"] == "converged":
            dispersion, extra = _dispersion(atoms, given["dispersion"], outcome["versions"])
            energy += dispersion
            forces = forces + extra
        if outcome["status"] == "converged":
            outcome["grid"] = _grid(atoms.calc)
        temporary = place / "output.tmp.npz"
        with open(temporary, "wb") as file:
            np.savez(
                file,
                energy=np.float64(energy),
                dispersion=np.float64(dispersion),
                forces=np.asarray(forces, np.float64),
                positions=atoms.positions,
            )
        os.replace(temporary, place / "output.npz")
        (place / "outcome.tmp").write_text(json.dumps(outcome))
        os.replace(place / "outcome.tmp", place / "outcome.json")
    world.barrier()


def _dispersion(
    atoms: Any, given: dict[str, Any], versions: dict[str, str]
) -> tuple[float, np.ndarray]:
    """D3 energy in eV and forces in eV/Å of the same structure."""
    from importlib.metadata import version

    from dftd3.ase import DFTD3

    versions["dftd3"] = version("dftd3")
    work = atoms.copy()
    if not work.pbc.any():
        work.cell[:] = 0.0
    work.calc = DFTD3(damping=given["damping"], params_tweaks=given["parameters"])
    forces = work.get_forces()
    return float(work.get_potential_energy()), np.array(forces)


def _grid(calculator: Any) -> dict[str, Any]:
    """What the memory of a calculation is made of: grid points, bands, spacings in Å."""
    from ase.units import Bohr

    density = calculator.dft.density.nt_sR.desc
    return {
        "points": [int(n) for n in density.size_c],
        "spacing": [float(h) * Bohr for h in np.linalg.norm(density._gd.h_cv, axis=1)],
        "bands": int(calculator.get_number_of_bands()),
    }


def main(argv: list[str]) -> int:
    """Run, and leave a word behind when it fails."""
    place = Path(argv[1])
    try:
        run(place)
        return 0
    except BaseException as error:
        from gpaw.mpi import world

        out_of_memory = isinstance(error, MemoryError)
        text = {
            "status": "out_of_memory" if out_of_memory else "crashed",
            "reason": f"{type(error).__name__}: {error}",
        }
        traceback.print_exc()
        sys.stderr.flush()
        try:
            (place / f"failure-{world.rank}.json").write_text(json.dumps(text))
        except OSError as full:
            print(f"no word left behind: {full}", file=sys.stderr, flush=True)
        if world.size > 1:
            world.abort(1)  # the other ranks wait for this one
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
