"""The integrator of all walks: Langevin dynamics of a batch of systems, alone or many at once.

One splitting serves all ensembles. With a flexible cell it is, symmetric in time:

    p_c += dt/2 G;  p += dt/2 F
    cell, r by exp(dt/2 p_c/W);  r += dt/2 p/m
    p by exp(-dt/2 D);  heat bath of p, heat bath of p_c;  p by exp(-dt/2 D)
    r += dt/2 p/m;  cell, r by exp(dt/2 p_c/W)
    p += dt/2 F;  p_c += dt/2 G

and without one the steps of the cell fall away (BAOAB: Leimkuhler and Matthews, J. Chem. Phys. 138,
174102 (2013)). At a pressure P (Quigley and Probert, J. Chem. Phys. 120, 11432 (2004)) the force on
the cell is G = Σ p pᵀ/m + virial - P V 1 + (Σ p²/m)/N_f 1 and the drag D = p_c/W + tr(p_c)/(N_f W)
1; at constant volume (N, V, σa = 0, T) (Rogge et al., J. Chem. Theory Comput. 11, 5583 (2015)) both
are symmetric and traceless, so that the exponential has determinant one and the volume is kept to
rounding. Without a heat bath ``H = K + U + P V + tr(p_c²)/2W`` is conserved; with it, H less the
heat that came in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ase import units
from numpy.typing import NDArray

from mofal.dynamics.arrays import (
    Arrays,
    determinant,
    exponential,
    product,
    symmetric,
    trace,
)
from mofal.dynamics.engine import Engine, Outcome, Systems, arrays_of

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


@dataclass
class Member:
    """One system of a batch: what it is, and the conditions that it is under.

    Attributes
    ----------
    numbers, pbc, masses
        (n,), (3,), and (n,) in amu.
    timestep_fs, temperature_K, thermostat_fs, barostat_fs, pressure_GPa
        The last two where the cell moves.
    rng
        Its own generator of noise: a system meets the same noise in any company.
    state
        Where it is (on the host): positions, momenta, cell, forces, energy and, where the cell
        moves, cell_momenta, virial, cell_mass, heat.
    """

    numbers: NDArray
    pbc: NDArray
    masses: NDArray
    timestep_fs: float
    temperature_K: float
    thermostat_fs: float
    rng: np.random.Generator
    barostat_fs: float = 100.0
    pressure_GPa: float = 0.0
    bath: bool = True
    state: dict[str, NDArray] = field(default_factory=dict)
    key: int = 0

    def place(self, positions: NDArray, cell: NDArray) -> None:
        """Begin at a frame, at rest."""
        volume = abs(float(np.linalg.det(cell)))
        self.state = {
            "positions": np.array(positions, float),
            "momenta": np.zeros((len(self.numbers), 3)),
            "cell": np.array(cell, float),
            "cell_momenta": np.zeros((3, 3)),
            "cell_mass": np.array(cell_mass(volume, self.barostat_fs) if volume else 1.0),
            "heat": np.array(0.0),
        }

    def draw_momenta(self, rng: np.random.Generator, *, ensemble: str) -> None:
        """Maxwell-Boltzmann momenta for the atoms, and for the cell where it moves."""
        thermal = units.kB * self.temperature_K
        noise = rng.standard_normal((len(self.masses), 3))
        self.state["momenta"] = np.sqrt(self.masses * thermal)[:, None] * noise
        if ensemble != "nvt":
            matrix = rng.standard_normal((3, 3))
            mass = float(self.state["cell_mass"])
            drawn = np.sqrt(mass * thermal) * 0.5 * (matrix + matrix.T)
            if ensemble == "nvst":
                drawn = drawn - np.trace(drawn) / 3.0 * np.identity(3)
            self.state["cell_momenta"] = drawn


class Integrator:
    """Langevin dynamics of a batch of systems in one ensemble, each under its own conditions.

    Cell momenta are symmetric, so that cells do not rotate. Atoms move continuously and are never
    wrapped.

    Parameters
    ----------
    engine : Engine
        Gives forces; arrays live on its device.
    ensemble : str
        ``"nvt"``, ``"npt"`` or ``"nvst"``.
    members : sequence of Member
        With their states. Forces are computed for those that have none.
    """

    def __init__(self, engine: Engine, ensemble: str, members: Sequence[Member]) -> None:
        self.engine, self.ensemble = engine, ensemble
        self.xp: Arrays = arrays_of(engine)
        self.members: list[Member] = []
        self.outcome: Outcome
        self.gather(members)

    # ------------------------------------------------------------------ who is in it
    @property
    def flexible(self) -> bool:
        """Whether cells move."""
        return self.ensemble != "nvt"

    def gather(self, members: Sequence[Member]) -> None:
        """Make the arrays of a new company; those who leave have their state written back."""
        self.scatter()
        self.members = list(members)
        if not members:
            return
        xp = self.xp
        n_atoms = np.array([len(m.numbers) for m in members])
        first = np.concatenate([[0], np.cumsum(n_atoms)[:-1]])
        system = np.repeat(np.arange(len(members)), n_atoms)
        self.system, self.first = xp.whole(system), xp.whole(first)
        self._rows = [slice(int(a), int(a + n)) for a, n in zip(first, n_atoms)]
        states = [m.state for m in members]
        self.positions = xp.real(np.concatenate([s["positions"] for s in states]))
        self.momenta = xp.real(np.concatenate([s["momenta"] for s in states]))
        self.cells = xp.real(np.stack([s["cell"] for s in states]))
        self.systems = Systems(
            tuple(m.key for m in members),
            np.concatenate([m.numbers for m in members]),
            n_atoms,
            first,
            np.stack([np.asarray(m.pbc, bool) for m in members]),
            self.positions,
            self.cells,
        )
        masses = np.concatenate([m.masses for m in members])
        thermal = np.array([units.kB * m.temperature_K for m in members])
        dt = np.array([m.timestep_fs * units.fs for m in members])
        gamma = np.array([(1.0 / (m.thermostat_fs * units.fs)) * m.bath for m in members])

        def wide(column: NDArray) -> Any:
            # A number for each atom as three: NumPy's products are quickest of equal shapes.
            return xp.real(np.repeat(column[:, None], 3, axis=1))

        self.inverse_mass = wide(1.0 / masses)
        self.dt = xp.real(dt[:, None, None])
        self.half_dt = wide(0.5 * dt[system])
        self.drift = wide(0.5 * dt[system] / masses)
        kept = np.exp(-gamma * dt)
        self.kept = wide(kept[system])
        noise = np.sqrt(thermal * (1.0 - np.exp(-2.0 * gamma * dt)))
        self.noise = wide(noise[system] * np.sqrt(masses))
        self.bath = any(m.bath for m in members)
        self.degrees = xp.real(3.0 * n_atoms)
        if self.flexible:
            self._gather_cells(members, thermal, dt)
        missing = [m for m in members if "forces" not in m.state]
        if missing:
            self.compute()
        else:
            self.forces = xp.real(np.concatenate([s["forces"] for s in states]))
            energy = xp.real(np.array([float(s["energy"]) for s in states]))
            quantile = None
            if all("quantile" in s for s in states):
                quantile = xp.real(np.concatenate([s["quantile"] for s in states]))
            stress = None
            if all("stress" in s for s in states):
                stress = xp.real(np.stack([s["stress"] for s in states]))
            self.outcome = Outcome(energy, self.forces, stress, quantile)

    def _gather_cells(self, members: Sequence[Member], thermal: NDArray, dt: NDArray) -> None:
        xp = self.xp
        states = [m.state for m in members]
        mass = np.array([float(s["cell_mass"]) for s in states])
        gamma = np.array([m.bath / (m.barostat_fs * units.fs) for m in members])
        self.unit = xp.real(np.identity(3)[None])
        self.cell_momenta = xp.real(np.stack([s["cell_momenta"] for s in states]))
        self.cell_masses = xp.real(mass[:, None, None])
        self.cell_kept = xp.real(np.exp(-gamma * dt)[:, None, None])
        noise = np.sqrt(thermal * (1.0 - np.exp(-2.0 * gamma * dt)) * mass)
        self.cell_noise = xp.real(noise[:, None, None])
        pressure = np.array([m.pressure_GPa * units.GPa for m in members])
        self.pressure = xp.real(pressure[:, None, None])
        self.heat = xp.real(np.array([float(s["heat"]) for s in states]))

    def scatter(self) -> None:
        """Write the state of every system back to its member; copies."""
        for k, member in enumerate(self.members):
            member.state = self.state(k)

    def state(self, k: int) -> dict[str, NDArray]:
        """Everything that the next step of a system depends on, apart from its generator. Copies.

        Forces come from here and not from a new call, for calculators whose last digits depend on
        what they computed before.
        """
        xp, rows = self.xp, self._rows[k]

        def copied(values: Any) -> NDArray:
            return np.array(xp.host(values))

        out = {
            "positions": copied(self.positions[rows]),
            "momenta": copied(self.momenta[rows]),
            "cell": copied(self.cells[k]),
            "forces": copied(self.forces[rows]),
            "energy": copied(self.outcome.energy[k]),
        }
        if self.outcome.quantile is not None:
            out["quantile"] = copied(self.outcome.quantile[rows])
        if self.outcome.stress is not None:
            out["stress"] = copied(self.outcome.stress[k])
        if self.flexible:
            out["cell_momenta"] = copied(self.cell_momenta[k])
            out["cell_mass"] = copied(self.cell_masses[k, 0, 0])
            out["heat"] = copied(self.heat[k])
        return out

    # ------------------------------------------------------------------ one step
    def compute(self) -> None:
        """Forces (and virials) where the atoms are."""
        systems = self.systems._replace(positions=self.positions, cells=self.cells)
        self.outcome = self.engine.evaluate(systems, stress=self.flexible)
        self.forces = self.outcome.forces

    def step(self, sane: Callable[[], None] | None = None) -> None:
        """One time step of every system.

        Parameters
        ----------
        sane
            Is called after the atoms have moved and before forces are computed: whoever takes
            systems out has to do it there.
        """
        flexible = self.flexible
        if flexible:
            self._kick_cells()
        self.momenta = self.momenta + self.half_dt * self.forces
        if flexible:
            self._drift_cells()
        self.positions = self.positions + self.drift * self.momenta
        if flexible:
            self._drag()
        self._heat_bath()
        if flexible:
            self._drag()
        self.positions = self.positions + self.drift * self.momenta
        if flexible:
            self._drift_cells()
        if sane is not None:
            sane()
        self.compute()
        self.momenta = self.momenta + self.half_dt * self.forces
        if flexible:
            self._kick_cells()

    def _kick_cells(self) -> None:
        kinetic = self.kinetic_tensor()
        volume = self.volumes()[:, None, None]
        force = symmetric(kinetic - volume * self.outcome.stress)
        if self.ensemble == "npt":
            isotropic = trace(kinetic) / self.degrees
            force = force + (isotropic[:, None, None] - self.pressure * volume) * self.unit
        else:
            force = _deviator(force, self.unit)
        self.cell_momenta = self.cell_momenta + 0.5 * self.dt * force

    def _drift_cells(self) -> None:
        # Cell momenta are symmetric: so is their exponential.
        change = exponential(0.5 * self.dt * self.cell_momenta / self.cell_masses, self.unit)
        self.cells = product(self.cells, change)
        self.positions = self.xp.carry(self.positions, change, self._rows, self.system)

    def drag(self) -> Any:
        """Rate (s, 3, 3) at which the cell slows the atoms.

        Quigley and Probert's is p/W + tr(p)/(N_f W) *times the unit matrix*; ASE 3.29 adds the
        trace to the off-diagonal elements too, which shears the velocities.
        """
        rate = self.cell_momenta
        if self.ensemble == "npt":
            rate = rate + (trace(rate) / self.degrees)[:, None, None] * self.unit
        return rate / self.cell_masses

    def _drag(self) -> None:
        change = exponential(-0.5 * self.dt * self.drag(), self.unit)
        self.momenta = self.xp.carry(self.momenta, change, self._rows, self.system)

    def _heat_bath(self) -> None:
        if not self.bath:
            return
        before = self._kinetic_all() if self.flexible else None
        generators = [member.rng for member in self.members]
        drawn = self.xp.noise(generators, self._rows, (len(self.systems.numbers), 3))
        self.momenta = self.kept * self.momenta + self.noise * drawn
        if self.flexible:
            kept = self.cell_kept * self.cell_momenta
            matrices = np.stack([rng.standard_normal((3, 3)) for rng in generators])
            moved = kept + self.cell_noise * self.xp.real(symmetric(matrices))
            self.cell_momenta = moved if self.ensemble == "npt" else _deviator(moved, self.unit)
            self.heat = self.heat + (self._kinetic_all() - before)

    # ------------------------------------------------------------------ what is measured
    def kinetic_tensor(self) -> Any:
        """Σ p pᵀ/m of every system, (s, 3, 3) in eV."""
        p = self.momenta
        return self.xp.tensors(p, p * self.inverse_mass, self._rows, self.first, self.system)

    def kinetic_energies(self) -> Any:
        """Kinetic energy (s,) of the atoms of every system, eV."""
        square = self.xp.squares(self.momenta) * self.inverse_mass[:, 0]
        return 0.5 * self.xp.sums(square, self.first, self.system)

    def temperatures(self) -> Any:
        """Temperature (s,) of every system, K."""
        return 2.0 * self.kinetic_energies() / (self.degrees * units.kB)

    def cell_kinetic_energies(self) -> Any:
        """Kinetic energy (s,) of the cells, eV: tr(p²)/2W."""
        p = self.cell_momenta
        return 0.5 * trace(product(p, p.swapaxes(1, 2))) / self.cell_masses[:, 0, 0]

    def volumes(self) -> Any:
        """Volume (s,) of every cell, Å³."""
        return abs(determinant(self.cells))

    def conserved_energies(self) -> Any:
        """Energy (s,) of atoms and cells less the heat that came from the bath, eV."""
        energy = self.outcome.energy + self._kinetic_all() - self.heat
        if self.ensemble == "npt":
            energy = energy + self.pressure[:, 0, 0] * self.volumes()
        return energy

    def _kinetic_all(self) -> Any:
        return self.kinetic_energies() + self.cell_kinetic_energies()

    def largest_forces(self) -> Any:
        """Largest squared force (s,) in every system, (eV/Å)²; NaN where one is not a number."""
        return self.xp.largest(self.xp.squares(self.forces), self.first, self.system)


def _deviator(matrices: Any, unit: Any) -> Any:
    """Traceless parts of symmetric matrices (s, 3, 3)."""
    return matrices - (trace(matrices) / 3.0)[:, None, None] * unit
