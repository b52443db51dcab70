"""The integrator of a walk: ASE's Langevin BAOAB, with a state that can be saved whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from numpy.typing import NDArray

# The mass of the cell is chosen so that a crystal of this modulus breathes with a period of
# `barostat_fs`; a stiffer one breathes faster, with the square root.
NOMINAL_MODULUS_GPA = 20.0


def cell_mass(volume: float, barostat_fs: float) -> float:
    """Mass W of the cell's degrees of freedom, amu Å².

    The volume mode of a symmetric strain rate p/W obeys ``W d²ε/dt² = -3 K V ε``, so
    ``W = 3 K V (τ / 2π)²`` gives it the period τ (from Quigley and Probert, J. Chem. Phys. 120,
    11432 (2004), equation of motion of the cell).
    """
    period = barostat_fs * units.fs / (2.0 * np.pi)
    return 3.0 * NOMINAL_MODULUS_GPA * units.GPa * volume * period**2


class Integrator(LangevinBAOAB):
    """Langevin dynamics of atoms and, where a pressure is given, of a flexible cell.

    Cell momenta are symmetric, so that the cell does not rotate. Atoms move continuously and are
    never wrapped.
    """

    def __init__(
        self,
        atoms: Atoms,
        *,
        timestep_fs: float,
        temperature_K: float,
        thermostat_fs: float,
        rng: np.random.Generator,
        pressure_GPa: float | None = None,
        barostat_fs: float | None = None,
    ) -> None:
        barostat: dict[str, Any] = {}
        if pressure_GPa is not None and barostat_fs is not None:
            barostat = {
                "externalstress": -pressure_GPa * units.GPa,
                "P_tau": barostat_fs * units.fs,
                "P_mass": cell_mass(atoms.get_volume(), barostat_fs),
            }
        super().__init__(
            atoms,
            timestep_fs * units.fs,
            temperature_K=temperature_K,
            T_tau=thermostat_fs * units.fs,
            rng=rng,
            **barostat,
        )

    @property
    def flexible(self) -> bool:
        """Whether the cell moves."""
        return self.externalstress is not None

    def _barostat_BAOAB_OU_gamma_mod(self) -> NDArray:
        # Quigley and Probert's drag is p/W + Tr(p)/(N_f W) *times the unit matrix*; ASE 3.29 adds
        # the trace to the off-diagonal elements too, which shears the velocities.
        drag = self.p_eps + (np.trace(self.p_eps) / self.Ndof) * np.identity(3)
        return drag / self.barostat_mass

    def draw_momenta(self, rng: np.random.Generator) -> None:
        """Maxwell-Boltzmann momenta for the atoms, and for the cell where it moves."""
        thermal = units.kB * self.temperature_K
        masses = self.atoms.get_masses()
        noise = rng.standard_normal((len(masses), 3))
        self.atoms.set_momenta(np.sqrt(masses * thermal)[:, None] * noise)
        if self.flexible:
            matrix = rng.standard_normal((3, 3))
            self.p_eps: Any = np.sqrt(self.barostat_mass * thermal) * 0.5 * (matrix + matrix.T)
            self._update_force_eps()

    def state(self) -> dict[str, NDArray]:
        """Everything the next step depends on, apart from the random generator. Copies."""
        arrays = {
            "positions": self.atoms.get_positions(),
            "momenta": self.atoms.get_momenta(),
            "cell": np.array(self.atoms.cell.array),
            "accelerations": np.array(self.accel),
        }
        if self.flexible:
            arrays["cell_momenta"] = np.array(self.p_eps)
            arrays["cell_forces"] = np.array(self.force_eps)
            arrays["cell_mass"] = np.array(self.barostat_mass)
        return arrays

    def restore(self, arrays: dict[str, NDArray]) -> None:
        """Put back what `state` returned, to the last bit.

        Accelerations come from the state and not from a new force call, for calculators whose
        last digits depend on what they computed before.
        """
        self.atoms.set_cell(arrays["cell"], scale_atoms=False)
        self.atoms.set_positions(arrays["positions"])
        self.atoms.set_momenta(arrays["momenta"])
        self.accel = np.array(arrays["accelerations"])
        if self.flexible:
            self.p_eps = np.array(arrays["cell_momenta"])
            self.force_eps = np.array(arrays["cell_forces"])
            self.barostat_mass = float(arrays["cell_mass"])
