"""What gives energy, forces and stress: a potential, or a reference, as a plain specification."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import (
    Calculator,
    CalculatorError,
    PropertyNotImplementedError,
    all_changes,
)

from mofal.errors import ConfigError, StructureError
from mofal.reference.ase_calculator import limit_threads

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Level:
    """Where energies come from; travels between workers as text.

    Attributes
    ----------
    kind : str
        ``"potential"`` or ``"reference"``.
    spec : str
        Directory of the model, or specification of the reference.
    identity : str
        Hash of the model or of the level of theory.
    engine : str
        Network of a potential: ``"eager"`` or ``"compiled"``.
    """

    kind: str
    spec: str
    identity: str
    engine: str = "eager"

    @property
    def key(self) -> str:
        """What tells results of this level from those of others."""
        return self.identity if self.engine == "eager" else f"{self.identity} {self.engine}"

    @property
    def label(self) -> str:
        """Its name over a picture: a reference's own, the last two parts of a model's path."""
        if self.kind != "potential":
            return self.spec
        return "/".join(Path(self.spec).parts[-2:])

    def potential(self) -> Any:
        """The model, with its eager network.

        Raises
        ------
        ConfigError
            It is another one by now.
        """
        return self._checked(_potential(self.spec))

    def _checked(self, potential: Any) -> Any:
        if potential.model_hash != self.identity:
            raise ConfigError(
                f"{self.spec} is not the model that this began with (hash "
                f"{potential.model_hash}, expected {self.identity}); put that one back"
            )
        return potential

    def mover(self) -> Any:
        """What moves atoms of walks: the engine of a compiled network, or the calculator."""
        if self.kind == "potential" and self.engine == "compiled":
            with limit_threads(1):
                return self.potential().engine("compiled")
        return self.calculator()

    def calculator(self) -> Calculator:
        """Return an ASE calculator whose results depend on nothing but the structure."""
        if self.kind == "potential":
            if self.engine == "compiled":
                return self._checked(_compiled(self.spec)).calculator()
            return self.potential().calculator()
        reference = _reference(self.spec)
        plain = hasattr(reference, "make_calculator") and not (
            reference.isolated or reference.time_limit_s is not None
        )
        return reference.make_calculator() if plain else ReferenceCalculator(reference)

    @property
    def elements(self) -> tuple[str, ...] | None:
        """Elements that it knows; None where it does not say."""
        return _potential(self.spec).elements if self.kind == "potential" else None


def potential_level(path: str | Path, *, engine: str = "eager") -> Level:
    """Level of a model directory.

    Parameters
    ----------
    path : path
    engine : str
        ``"eager"``, or ``"compiled"``: the network as machine code, made by whoever is the first to
        want it (minutes, once for an architecture and machine).

    Raises
    ------
    StoreError
        There is no model.
    ConfigError
        No engine of this name.
    """
    if engine not in ("eager", "compiled"):
        raise ConfigError(f"the engine is {engine!r}; expected eager or compiled")
    spec = str(Path(path).absolute())
    return Level("potential", spec, _potential(spec).model_hash, engine)


def reference_level(spec: str) -> Level:
    """Level of a reference (``gfn1-xtb``, ``ase:ase.calculators.emt:EMT``).

    Raises
    ------
    ReferenceError, DependencyError
        It cannot be set up.
    """
    return Level("reference", spec, _reference(spec).level_hash)


@functools.lru_cache(maxsize=4)
def _potential(path: str) -> Any:
    from mofal.potential import load

    return load(path)


@functools.lru_cache(maxsize=4)
def _compiled(path: str) -> Any:
    from mofal.potential import load

    # Compiled for one thread, which is what every point has.
    with limit_threads(1):
        return load(path).compile()


def _reference(spec: str) -> Any:
    from mofal.reference import get_reference

    return get_reference(spec)


class ReferenceCalculator(Calculator):
    """A reference as an ASE calculator: each call is a label; one that fails is an error.

    For references that are a process of their own; of an ASE calculator in this process the
    calculator itself is taken.

    Parameters
    ----------
    reference : Reference
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, reference: Any) -> None:
        super().__init__()
        self.reference = reference
        self._scratch = tempfile.TemporaryDirectory(prefix="mofal-mechanics-")

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Label the structure."""
        super().calculate(atoms, properties or ["energy"], system_changes)
        attempt = self.reference.calculate(self.atoms, directory=self._scratch.name)
        if not attempt.converged:
            raise CalculatorError(f"{attempt.status}: {attempt.reason}")
        energy = float(attempt.energy)
        self.results = {"energy": energy, "free_energy": energy, "forces": attempt.forces}
        if np.isfinite(attempt.stress).all():
            self.results["stress"] = attempt.stress


def check_level(level: Level, atoms: Atoms) -> None:
    """Refuse a level that cannot do the mechanics of a structure, before anything is paid for.

    Raises
    ------
    StructureError
        The structure is not a crystal.
    ConfigError
        The level lacks an element, or gives no stress.
    """
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise StructureError(
            "mechanics needs a crystal, periodic along all three cell vectors; this structure is "
            f"periodic along {int(atoms.pbc.sum())}: give the framework, not a cluster"
        )
    known = level.elements
    if known is not None:
        lacking = sorted(set(atoms.get_chemical_symbols()) - set(known))
        if lacking:
            raise ConfigError(
                f"the potential {level.spec} knows {', '.join(known)}, not {', '.join(lacking)}; "
                "give one that does"
            )
    trial = atoms.copy()
    trial.calc = level.calculator()
    try:
        with limit_threads(1):
            trial.get_forces()
            stress = _stress(trial)
    except MemoryError:
        raise
    except Exception as error:
        # Calculators raise what they like for an element that they lack.
        first = (str(error).strip().splitlines() or [""])[0]
        mend = "give a level that knows its elements"
        if "converge" in first.lower():
            mend = "give it more iterations, or a structure nearer to its rest"
        raise ConfigError(
            f"{level.spec} fails on the structure given: {type(error).__name__}: {first}; {mend}"
        ) from None
    if stress.shape != (6,) or not np.isfinite(stress).all():
        raise ConfigError(
            f"{level.spec} gives no stress, and cells cannot be relaxed without; give another "
            "potential or reference (gfn1-xtb gives stress, finite-difference GPAW does not)"
        )


def _stress(atoms: Atoms) -> np.ndarray:
    try:
        return np.asarray(atoms.get_stress())
    except (PropertyNotImplementedError, NotImplementedError):
        return np.full(6, np.nan)
