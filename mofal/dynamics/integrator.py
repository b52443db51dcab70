"""The integrator of a walk: ASE's Langevin BAOAB, with a state that can be saved whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevinbaoab import LangevinBAOAB
from numpy.typing import NDArray
from scipy.linalg import expm

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


def traceless(matrix: NDArray) -> NDArray:
    """Symmetric traceless part of a matrix (3, 3)."""
    symmetric = 0.5 * (matrix + matrix.T)
    return symmetric - np.trace(symmetric) / 3.0 * np.identity(3)


class FixedVolumeIntegrator(Integrator):
    """Langevin dynamics of atoms and of the shape of the cell at its volume: (N, V, σa = 0, T).

    The strain rate p/W is symmetric and traceless, so that its exponential has determinant one and
    the volume is kept to rounding. The splitting is symmetric:

        p += dt/2 dev(Σ m v vᵀ + virial);  v += dt/2 F/m
        cell, r by exp(dt/2 p/W);  r += dt/2 v
        v by exp(-dt/2 p/W);  heat bath of v, heat bath of p;  v by exp(-dt/2 p/W)
        r += dt/2 v;  cell, r by exp(dt/2 p/W)
        v += dt/2 F/m;  p += dt/2 dev(Σ m v vᵀ + virial)

    The flow has no divergence (the trace of the strain rate is zero), so that without heat bath
    ``H = K + U + tr(p²)/2W`` is conserved and its canonical distribution is sampled; with it, H
    less the heat that came in (`heat`) is. Equations of motion: Quigley and Probert, J. Chem. Phys.
    120, 11432 (2004), at zero deviatoric stress; the ensemble: Rogge et al., J. Chem. Theory
    Comput. 11, 5583 (2015).
    """

    def __init__(
        self,
        atoms: Atoms,
        *,
        timestep_fs: float,
        temperature_K: float,
        thermostat_fs: float,
        barostat_fs: float,
        rng: np.random.Generator,
    ) -> None:
        self.heat = 0.0
        super().__init__(
            atoms,
            timestep_fs=timestep_fs,
            temperature_K=temperature_K,
            thermostat_fs=thermostat_fs,
            rng=rng,
            pressure_GPa=0.0,
            barostat_fs=barostat_fs,
        )
        self.p_eps = np.zeros((3, 3))

    def _update_force_eps(self) -> None:
        # The virial alone is kept: the kinetic part is taken where it is used.
        self.force_eps = -self.atoms.get_volume() * self.atoms.get_stress(voigt=False)

    def draw_momenta(self, rng: np.random.Generator) -> None:
        """Maxwell-Boltzmann momenta for the atoms and for the five shapes of the cell."""
        super().draw_momenta(rng)
        self.p_eps = traceless(self.p_eps)

    def cell_kinetic_energy(self) -> float:
        """Kinetic energy of the shape of the cell, eV: tr(p²)/2W."""
        return 0.5 * float(np.sum(self.p_eps * self.p_eps)) / self.barostat_mass

    def conserved_energy(self) -> float:
        """Energy of atoms and cell less the heat that came from the bath, eV."""
        return float(self.atoms.get_total_energy()) + self.cell_kinetic_energy() - self.heat

    def _kick_cell(self) -> None:
        momenta = self.atoms.get_momenta()
        kinetic = (momenta.T / self.atoms.get_masses()) @ momenta
        self.p_eps = self.p_eps + 0.5 * self.dt * traceless(kinetic + self.force_eps)

    def _drift_cell(self) -> None:
        change = expm(0.5 * self.dt * self.p_eps / self.barostat_mass).T
        self.atoms.set_cell(self.atoms.cell.array @ change, scale_atoms=False)
        self.atoms.positions = self.atoms.positions @ change

    def _drag(self) -> None:
        change = expm(-0.5 * self.dt * self.p_eps / self.barostat_mass).T
        self.atoms.set_velocities(self.atoms.get_velocities() @ change)

    def _bath(self) -> None:
        if self.gamma == 0.0 and self.barostat_gamma == 0.0:
            return
        before = self.atoms.get_kinetic_energy() + self.cell_kinetic_energy()
        self._BAOAB_OU()
        self._barostat_BAOAB_OU()
        self.p_eps = traceless(self.p_eps)
        after = self.atoms.get_kinetic_energy() + self.cell_kinetic_energy()
        self.heat += float(after - before)

    def step(self) -> None:
        """One time step."""
        self._kick_cell()
        self._BAOAB_B()
        self._drift_cell()
        self._BAOAB_A()
        self._drag()
        self._bath()
        self._drag()
        self._BAOAB_A()
        self._drift_cell()
        self._update_accel()
        self._update_force_eps()
        self._BAOAB_B()
        self._kick_cell()

    def state(self) -> dict[str, NDArray]:
        """Everything the next step depends on, apart from the random generator. Copies."""
        return {**super().state(), "heat": np.array(self.heat)}

    def restore(self, arrays: dict[str, NDArray]) -> None:
        """Put back what `state` returned, to the last bit."""
        super().restore(arrays)
        self.heat = float(arrays["heat"])
