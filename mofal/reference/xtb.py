"""Extended tight binding through tblite: quantum mechanics in seconds per cluster."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mofal.errors import DependencyError, ReferenceError
from mofal.reference.ase_calculator import AseReference
from mofal.reference.options import check_known, number, whole_number

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

    from mofal.reference.base import Attempt

METHODS = ("GFN1-xTB", "GFN2-xTB")
_HEAVIEST = 86
_CAREFUL = 0.1  # tblite's own damping is 0.4


def unpaired_valence(numbers: npt.ArrayLike, n_unpaired: int) -> int:
    """How many of the unpaired electrons of a structure xTB itself has.

    GFN-xTB holds the 4f electrons of a lanthanide in its core and leaves it three of valence, as
    in Ln(III): its spin is none of the calculation's.

    Parameters
    ----------
    numbers : (atom,) int
        Atomic numbers.
    n_unpaired : int
        Unpaired electrons of the structure, those of f shells included: all of them parallel, or
        as few as there can be.

    Returns
    -------
    int
    """
    most, fewest = _in_core(numbers)
    for in_core in (most, fewest):
        if in_core <= n_unpaired:
            return n_unpaired - in_core
    return (n_unpaired + fewest) % 2


def _in_core(numbers: npt.ArrayLike) -> tuple[int, int]:
    """Unpaired 4f electrons of a structure, all of them parallel, and as few as there can be."""
    shell = np.asarray(numbers, np.int64).reshape(-1) - 57
    shell = shell[(shell >= 1) & (shell <= 14)]
    return int(np.minimum(shell, 14 - shell).sum()), int((shell % 2).sum())


class XtbReference(AseReference):
    """A level of tblite; see `make_xtb`.

    Where the charges do not converge, they are mixed in smaller steps once more: the equations, and
    what solves them, are the same.
    """

    def calculate_here(self, atoms: Atoms) -> Attempt:
        """Label one structure in this process, without limits; see `AseReference.calculate`."""
        first = super().calculate_here(atoms)
        if first.status != "not_converged":
            return first
        self._local.careful = True
        try:
            second = super().calculate_here(atoms)
        finally:
            self._local.careful = False
        return replace(second, wall_time_s=first.wall_time_s + second.wall_time_s)

    def _made(self) -> Calculator:
        calculator = super()._made()
        if getattr(self._local, "careful", False):
            calculator.set(mixer_damping=_CAREFUL)
        return calculator

    def _why_not(self, atoms: Atoms) -> str:
        heavy = sorted({s for s, z in zip(atoms.symbols, atoms.numbers) if z > _HEAVIEST})
        known = f"{self.name} has no parameters for {', '.join(heavy)}: it ends at Rn"
        return known if heavy else super()._why_not(atoms)

    def _set_state(self, work: Atoms, charge: int, n_unpaired: int) -> str:
        most, fewest = _in_core(work.numbers)
        if fewest < n_unpaired < most:
            # f against d: which of the electrons are the valence's is not said by their number.
            return (
                f"{n_unpaired} unpaired electrons beside 4f shells with {most} in parallel and "
                f"{fewest} at least: give {most} and more, or {fewest}"
            )
        return super()._set_state(work, charge, unpaired_valence(work.numbers, n_unpaired))


def gfn1_xtb(variant: str = "", *, spec: str = "", **options: Any) -> AseReference:
    """GFN1-xTB, the embedded default: ``gfn1-xtb`` or ``gfn1-xtb?accuracy=0.1``.

    Grimme, Bannwarth, Shushkov, J. Chem. Theory Comput. 2017, 13, 1989. See `make_xtb`.
    """
    return _named("GFN1-xTB", variant, spec, options)


def gfn2_xtb(variant: str = "", *, spec: str = "", **options: Any) -> AseReference:
    """GFN2-xTB: ``gfn2-xtb``.

    Bannwarth, Ehlert, Grimme, J. Chem. Theory Comput. 2019, 15, 1652. See `make_xtb`.
    """
    return _named("GFN2-xTB", variant, spec, options)


def _named(method: str, variant: str, spec: str, options: Mapping[str, Any]) -> AseReference:
    given = ("method", "variant", "spec")
    known = [p for p in inspect.signature(make_xtb).parameters if p not in given]
    check_known(method.lower(), options, known)
    return make_xtb(method, variant=variant, spec=spec, **options)


def make_xtb(
    method: str,
    *,
    variant: str = "",
    accuracy: float = 1.0,
    electronic_temperature_K: float = 300.0,
    max_iterations: int = 250,
    threads: int = 1,
    time_limit_s: float | None = None,
    isolated: bool = False,
    isolated_atom_energies: Mapping[str, float] | None = None,
    spec: str = "",
) -> AseReference:
    """Make an xTB reference, for finite structures and crystals (Gamma point) alike.

    Parameters
    ----------
    method : str
        ``"GFN1-xTB"`` or ``"GFN2-xTB"``; always named, since tblite's own default is not ours.
    accuracy : float
        Scales the convergence thresholds; 1 is tblite's default.
    electronic_temperature_K : float
        Width of the occupations, as a temperature.
    max_iterations : int
        Of the self-consistent charges; how the answer is reached, not part of the level.
    threads : int
        OpenMP threads of one calculation.
    time_limit_s, isolated
        See `AseReference`.

    Raises
    ------
    DependencyError
        tblite is not installed.
    ReferenceError
        A method or a number that cannot be meant.
    """
    name = method.lower()
    if method not in METHODS:
        raise ReferenceError(f"xTB method {method!r}; expected one of {', '.join(METHODS)}")
    if variant:
        raise ReferenceError(f"{name}:{variant}: there are no presets; options go after {name}?")
    accuracy = number(name, "accuracy", accuracy)
    electronic_temperature_K = number(
        name, "electronic_temperature_K", electronic_temperature_K, zero=True
    )
    max_iterations = whole_number(name, "max_iterations", max_iterations)
    if find_spec("tblite") is None:
        raise DependencyError(f"{name} needs tblite; type: pip install 'mofal[xtb]'")
    return XtbReference(
        functools.partial(_calculator, method, accuracy, electronic_temperature_K, max_iterations),
        name=name,
        spec=spec or name,
        level_of_theory={
            "method": method,
            "program": "tblite",
            "accuracy": accuracy,
            "electronic_temperature_K": electronic_temperature_K,
            # Where the structure states none; what it states is part of its own identity.
            "charge": 0,
            "unpaired_electrons": "electrons modulo two",
            "spin_polarization": None,
            "solvation": None,
            "sampling": "gamma point",
        },
        packages=["tblite"],
        threads=threads,
        time_limit_s=time_limit_s,
        isolated=isolated,
        isolated_atom_energies=isolated_atom_energies,
        fresh=True,
        partly_periodic=False,  # tblite takes any periodicity for all three directions
    )


def _calculator(
    method: str, accuracy: float, electronic_temperature_K: float, max_iterations: int
) -> Calculator:
    from tblite.ase import TBLite

    return TBLite(
        method=method,
        accuracy=accuracy,
        electronic_temperature=electronic_temperature_K,
        max_iterations=max_iterations,
        charge=0,
        verbosity=0,
        cache_api=False,
    )
