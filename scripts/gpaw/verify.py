"""Run H2 in finite-difference mode on one and on two ranks, and compare: `verify.py PYTHON`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = """
import json, sys
from ase import Atoms
from gpaw.new.ase_interface import GPAW
from gpaw.mpi import world
atoms = Atoms("H2", [[2.0, 2.0, 1.65], [2.0, 2.0, 2.35]], cell=[4.0, 4.0, 4.0])
atoms.calc = GPAW(mode="fd", h=0.25, xc="PBE", symmetry="off", txt=None)
energy = atoms.get_potential_energy()
if world.rank == 0:
    open(sys.argv[1], "w").write(json.dumps([world.size, energy]))
"""


def main(python: str) -> int:
    """Return 0 when two ranks ran and agree with one."""
    command = ["mpirun", "--oversubscribe"]
    if os.geteuid() == 0:
        command.append("--allow-run-as-root")
    seen = []
    with tempfile.TemporaryDirectory() as directory:
        script = Path(directory) / "h2.py"
        script.write_text(SCRIPT)
        for ranks in (1, 2):
            out = Path(directory) / f"{ranks}.json"
            run = [*command, "-np", str(ranks), python, "-m", "gpaw", "python"]
            run += [str(script), str(out)]
            done = subprocess.run(run, capture_output=True, text=True, timeout=600, cwd=directory)
            if done.returncode != 0 or not out.exists():
                print((done.stdout + done.stderr)[-2000:])
                return 1
            size, energy = out.read_text().strip("[]").split(",")
            if int(size) != ranks:
                print(f"asked for {ranks} ranks, GPAW saw {size}: it was built without MPI")
                return 1
            seen.append(float(energy))
    if abs(seen[0] - seen[1]) > 1e-6:
        print(f"one and two ranks disagree: {seen[0]} and {seen[1]} eV")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
