"""A reference that costs nothing: pairs of atoms on springs that soften, for tests of survival."""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from tests.slurm.tasks import note


def name_of(positions: np.ndarray) -> str:
    """What the trace calls a structure."""
    return hashlib.sha256(np.ascontiguousarray(positions.round(8)).tobytes()).hexdigest()[:16]


class Pairs(Calculator):
    """Morse pairs at the sum of covalent radii; smooth at its cut-off, the same on every machine.

    Parameters
    ----------
    seconds
        Length of a calculation.

    Notes
    -----
    The file that ``MOFAL_TEST_TRACE`` names gets a line when a calculation starts and one when it
    has ended.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]
    cutoff = 3.0

    def __init__(self, seconds: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds = seconds

    def calculate(
        self,
        atoms: Any = None,
        properties: Any = ("energy",),
        system_changes: Any = all_changes,
    ) -> None:
        """Energy (eV), forces (eV/Å), stress (eV/Å³)."""
        super().calculate(atoms, properties, system_changes)
        name = name_of(self.atoms.get_positions())
        trace = os.environ.get("MOFAL_TEST_TRACE", "")
        if len(self.atoms) == 1:  # isolated atoms are no labels
            self._calculate()
            return
        if trace:
            note(trace, f"start {name} {os.getpid()} {time.time():.3f}")
        time.sleep(self.seconds)
        self._calculate()
        if trace:
            note(trace, f"computed {name} {os.getpid()} {time.time():.3f}")

    def _calculate(self) -> None:
        first, second, distance, vector = neighbor_list("ijdD", self.atoms, self.cutoff)
        radii = covalent_radii[self.atoms.numbers]
        best = radii[first] + radii[second]
        decay = np.exp(-2.0 * (distance - best))
        smooth = np.where(distance < self.cutoff, (1 - (distance / self.cutoff) ** 2) ** 2, 0.0)
        slope = -4 * distance / self.cutoff**2 * (1 - (distance / self.cutoff) ** 2)
        well = 0.5 * (decay**2 - 2 * decay)
        derivative = 0.5 * (-4 * decay**2 + 4 * decay) * smooth + well * slope
        pull = (derivative / distance)[:, None] * vector
        forces = np.zeros((len(self.atoms), 3))
        np.add.at(forces, first, pull)
        self.results = {"energy": float(0.5 * (well * smooth).sum()), "forces": forces}
        if self.atoms.cell.rank == 3:
            virial = 0.5 * np.einsum("ij,ik->jk", pull, vector) / self.atoms.get_volume()
            self.results["stress"] = virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
