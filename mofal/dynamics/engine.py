"""What moves atoms: engines give energies, forces and stresses of a batch of systems.

A potential of mofal brings an engine of its own (`potential.engine`), which computes on its device;
any ASE calculator becomes one here. The integrator does not know the difference.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from mofal.dynamics.arrays import Arrays, NumpyArrays
from mofal.errors import ConfigError


class Systems(NamedTuple):
    """A batch of systems, flat along atoms.

    Attributes
    ----------
    keys
        One number per system that stays its own for as long as it lives.
    numbers
        (n,) on the host.
    n_atoms, first
        (s,) on the host: atoms of each system, and its first atom.
    pbc
        (s, 3) on the host.
    positions, cells
        (n, 3) and (s, 3, 3) in Å, arrays of the engine's device.
    """

    keys: tuple[int, ...]
    numbers: NDArray
    n_atoms: NDArray
    first: NDArray
    pbc: NDArray
    positions: Any
    cells: Any


class Outcome(NamedTuple):
    """What one pass gives.

    Attributes
    ----------
    energy
        (s,) eV.
    forces
        (n, 3) eV/Å.
    stress
        (s, 3, 3) eV/Å³ with ASE's sign, NaN for systems without one; or None where there is none
        at all.
    quantile
        (n,) of each atom's environment among those that are known; None where nobody asks.
    shortest
        (s,) on the host, distance of the closest two atoms, Å; None where it would have to be
        looked for.
    failed
        What an engine could not compute: text by the number of the system in the batch.
    """

    energy: Any
    forces: Any
    stress: Any = None
    quantile: Any = None
    shortest: Any = None
    failed: dict[int, str] = {}  # noqa: RUF012


@runtime_checkable
class Engine(Protocol):
    """Energies, forces and stresses of a batch, on one device."""

    @property
    def model_hash(self) -> str:
        """Of the potential; empty where it has none."""

    @property
    def name(self) -> str:
        """Which engine this is, for the record of a walk."""

    @property
    def device(self) -> str:
        """``cpu``, ``cuda`` or ``cuda:1``."""

    def evaluate(self, systems: Systems, *, stress: bool = True) -> Outcome:
        """One pass over a batch; `stress` says whether a stress is needed."""


class CalculatorEngine:
    """An ASE calculator as an engine: one system after the other.

    Parameters
    ----------
    calculator
        ASE calculator.
    density
        Calibrated density in the calculator's features; its quantiles are part of the outcome.
    """

    device = "cpu"

    def __init__(self, calculator: Any, *, density: Any = None) -> None:
        self.calculator, self.density = calculator, density
        self._atoms: dict[int, Atoms] = {}

    @property
    def model_hash(self) -> str:
        """Of the calculator's potential, where it says so."""
        return str(getattr(self.calculator, "model_hash", ""))

    @property
    def name(self) -> str:
        """``ASE``, or what the calculator says of itself."""
        return str(getattr(self.calculator, "engine_name", "ASE"))

    def evaluate(self, systems: Systems, *, stress: bool = True) -> Outcome:
        """One system after the other; what the calculator raises comes through for a single one."""
        energy = np.full(len(systems.keys), np.nan)
        forces = np.full((len(systems.numbers), 3), np.nan)
        stresses = np.full((len(systems.keys), 3, 3), np.nan)
        quantile = None if self.density is None else np.zeros(len(systems.numbers))
        failed: dict[int, str] = {}
        self._atoms = {k: a for k, a in self._atoms.items() if k in systems.keys}
        for s, key in enumerate(systems.keys):
            rows = slice(systems.first[s], systems.first[s] + systems.n_atoms[s])
            atoms = self._of(key, systems, s, rows)
            try:
                forces[rows] = atoms.get_forces()
                energy[s] = atoms.get_potential_energy()
                # Where none is needed, one is taken that came with the forces.
                if stress or ("stress" in self.calculator.results and atoms.pbc.all()):
                    stresses[s] = atoms.get_stress(voigt=False)
                if quantile is not None:
                    quantile[rows] = self._quantile(atoms.numbers)
            except (MemoryError, OSError, ImportError, ConfigError):
                raise
            except Exception as error:
                if len(systems.keys) == 1:
                    raise
                first_line = (str(error).strip().splitlines() or [""])[0]
                failed[s] = f"{type(error).__name__}: {first_line}"
        return Outcome(energy, forces, stresses, quantile, failed=failed)

    def _of(self, key: int, systems: Systems, s: int, rows: slice) -> Atoms:
        atoms = self._atoms.get(key)
        if atoms is None or len(atoms) != systems.n_atoms[s]:
            atoms = Atoms(systems.numbers[rows], cell=systems.cells[s], pbc=systems.pbc[s])
            self._atoms[key] = atoms
            atoms.calc = self.calculator
        atoms.arrays["positions"] = systems.positions[rows]
        atoms.cell.array[:] = systems.cells[s]
        return atoms

    def _quantile(self, numbers: NDArray) -> NDArray:
        features = self.calculator.results.get("features")
        if features is None:
            raise ConfigError(
                "a density can watch a walk only where its calculator gives features: write "
                "calculator=potential.calculator(features=True)"
            )
        x = np.asarray(features, np.float64)
        values = np.asarray(self.density.score_samples(x, numbers))
        return np.asarray(self.density.quantile(values, numbers))


def arrays_of(engine: Engine) -> Arrays:
    """Arrays on the engine's device."""
    if engine.device == "cpu":
        return NumpyArrays()
    from mofal.dynamics.arrays import TorchArrays

    return TorchArrays(engine.device)


def as_engine(calculator: Any, *, density: Any = None) -> Engine:
    """Engine of what a walk is given: an engine, an ASE calculator, or a function that makes one.

    An engine of a potential takes the density on board where it has none yet.
    """
    made = not isinstance(calculator, type) and (
        hasattr(calculator, "get_potential_energy") or hasattr(calculator, "evaluate")
    )
    given = calculator if made else calculator()
    if hasattr(given, "get_potential_energy"):
        return CalculatorEngine(given, density=density)
    if density is not None and getattr(given, "density", None) is None:
        return given.with_density(density)  # type: ignore[no-any-return]
    return given  # type: ignore[no-any-return]
