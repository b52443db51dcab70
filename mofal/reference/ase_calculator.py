"""References that are an ASE calculator in a process: any of them, by the path of its factory."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.electrons import electronic_state
from mofal.data.locks import TORCH_DEFAULTS
from mofal.errors import DependencyError, ReferenceError
from mofal.reference.base import (
    Attempt,
    bare,
    begin,
    fail,
    finish,
    hash_level,
    isolated_cache_file,
    package_versions,
    tail,
    why_not,
)
from mofal.reference.child import calculate_in_child
from mofal.reference.faults import is_machine
from mofal.reference.options import energies, flag, number, whole_number

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limits: Any = None

ELECTRONS = ("parameters", "initial", "ignore")
"""How an ASE calculator takes charge and unpaired electrons: by its parameters `charge` and
`multiplicity`, from `initial_charges` and `initial_magmoms` of the structure, or not at all."""

# What calculators say when their iterations end early; matched in the message of the exception.
_NOT_CONVERGED = ("not converge", "did not reach convergence", "failed to converge")


class AseReference:
    """Label structures with an ASE calculator made by a factory.

    Parameters
    ----------
    make_calculator : callable
        Returns a new calculator; called once per process and kept.
    name, spec : str
        How it is called, and the specification that makes it again on another worker.
    level_of_theory : mapping
        The identity of the level; JSON only.
    packages : iterable of str
        Distributions whose versions are provenance.
    threads : int
        Threads of the libraries that the calculator calls; fixed, so that the answer does not
        depend on how many workers there are.
    time_limit_s : float, optional
        With a limit each calculation runs in a process of its own, which is ended at the limit.
    isolated : bool
        A process of its own also without a limit (for calculators that can take theirs down).
    isolated_atom_energies : mapping of str to float, optional
        Energies of isolated atoms in eV at this level, where they are known better than a
        calculation of one atom could tell.
    fixed : mapping, optional
        Charge and multiplicity that the level itself fixes, by the calculator's parameters.
    fresh : bool
        Make a new calculator for each structure: for those that start from what they found last,
        so that a label would depend on which one came before it.
    partly_periodic : bool
        Whether the calculator knows structures that are periodic along some directions only; they
        are refused otherwise.
    electrons : str
        How it takes charge and unpaired electrons, one of `ELECTRONS`. By default it is looked up
        in the calculator: where it has no parameters for them, a structure that states them is
        refused.
    """

    def __init__(
        self,
        make_calculator: Callable[[], Calculator],
        *,
        name: str,
        spec: str,
        level_of_theory: Mapping[str, Any],
        packages: Iterable[str] = (),
        threads: int = 1,
        time_limit_s: float | None = None,
        isolated: bool = False,
        isolated_atom_energies: Mapping[str, float] | None = None,
        fresh: bool = False,
        partly_periodic: bool = True,
        electrons: str = "parameters",
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        if electrons not in ELECTRONS:
            raise ReferenceError(
                f"{name}: electrons = {electrons!r}; expected one of {', '.join(ELECTRONS)}"
            )
        self._electrons = electrons
        self._fixed = dict(fixed or {})
        self._fresh = fresh
        self._partly_periodic = partly_periodic
        if time_limit_s is not None:
            time_limit_s = number(name, "time_limit_s", time_limit_s)
        self._make = make_calculator
        self._packages = tuple(packages)
        self.stated_atoms = energies(name, "isolated_atom_energies", isolated_atom_energies or {})
        # One calculator per thread: the threads of a worker label side by side.
        self._local = threading.local()
        self._as_torch_starts = False
        self.name = name
        self.spec = spec
        self.threads = whole_number(name, "threads", threads)
        self.time_limit_s = time_limit_s
        self.isolated = flag(name, "isolated", isolated)
        self.level_of_theory: dict[str, Any] = dict(level_of_theory)
        self.level_hash = hash_level(self.level_of_theory)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, level_hash={self.level_hash!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        from mofal.reference.registry import get_reference

        return get_reference, (self.spec,)

    @cached_property
    def versions(self) -> dict[str, str]:
        """Versions of the codes behind it."""
        return package_versions(*self._packages)

    def calculate(self, atoms: Atoms, *, directory: str | os.PathLike[str]) -> Attempt:
        """Label one structure.

        Parameters
        ----------
        atoms : ase.Atoms
            Finite or periodic.
        directory : path
            Where files may be left; made if it does not exist.

        Returns
        -------
        Attempt
            With a status and a reason where it failed.

        Raises
        ------
        OSError, ImportError, ReferenceError
            The machine failed (`mofal.reference.faults`): that is no result.
        """
        if self.time_limit_s is None and not self.isolated:
            return self.calculate_here(atoms)
        attempt = begin(self, atoms)
        reason = self._why_not(atoms)
        if reason:
            return fail(attempt, "inconsistent", reason)
        return calculate_in_child(
            self.spec,
            attempt,
            threads=self.threads,
            directory=Path(directory),
            time_limit_s=self.time_limit_s,
        )

    def make_calculator(self) -> Calculator:
        """Return a new ASE calculator of this level, for work that is no label (a relaxation, say).

        Its threads are not limited: `limit_threads` does that, once for all of the calls.
        """
        if self._as_torch_starts:
            with torch_as_it_starts():
                return self._make()
        try:
            return self._make()
        except RuntimeError:
            # NequIP, which a campaign uses in the same processes, sets torch's default to double;
            # networks of others may load weights in single into what they find (SevenNet: "Float
            # did not match Double"). They are made, and from then on asked, as torch starts.
            with TORCH_DEFAULTS:  # beside threads that have it changed for a while
                if not torch_is_changed():
                    raise
                # Said first: a thread that makes its own meanwhile is to compute so too.
                self._as_torch_starts = True
                with torch_as_it_starts():
                    return self._make()

    def calculate_here(self, atoms: Atoms) -> Attempt:
        """Label one structure in this process, without limits; see `calculate`.

        Raises
        ------
        OSError, ImportError, ReferenceError
            The machine failed (`mofal.reference.faults`): that is no result.
        """
        attempt = begin(self, atoms)
        reason = self._why_not(atoms)
        if reason:
            return fail(attempt, "inconsistent", reason)
        start = time.perf_counter()
        work = bare(atoms)
        state = (attempt.charge, attempt.n_unpaired)
        log, as_torch_starts = "", self._as_torch_starts
        try:
            with limit_threads(self.threads):
                if any(state) and self._electrons != "ignore":
                    # Of its own: what is set for an ion must not stay for the next structure.
                    work.calc = self._made()
                    reason = self._set_state(work, *state)
                    if reason:
                        return fail(attempt, "inconsistent", reason)
                else:
                    if self._fresh or getattr(self._local, "calculator", None) is None:
                        self._local.calculator = self._made()
                    work.calc = self._local.calculator
                with torch_as_it_starts() if as_torch_starts else contextlib.nullcontext():
                    forces = np.array(work.get_forces())
                    energy = float(work.get_potential_energy())
                    stress = self._stress(work)
            done = finish(
                attempt, energy=energy, forces=forces, stress=stress, positions=work.positions
            )
        except Exception as error:
            self._local.calculator = None  # one that failed may be left in any state
            if is_machine(error):
                raise
            if not as_torch_starts and _is_of_precision(error):
                # As in `make_calculator`; some networks notice only when they compute (CHGNet).
                with TORCH_DEFAULTS:  # beside threads that have it changed for a while
                    again = self._as_torch_starts or torch_is_changed()
                    self._as_torch_starts = again
                if again:
                    return self.calculate_here(atoms)
            status, reason = classify(error)
            log = tail(traceback.format_exc())
            done = fail(attempt, status, reason)
        return replace(done, wall_time_s=time.perf_counter() - start, log_tail=log)

    def _made(self) -> Calculator:
        """Make a calculator; what goes wrong here is no structure's fault."""
        try:
            return self.make_calculator()
        except Exception as error:
            if is_machine(error):
                raise
            raise ReferenceError(
                f"{self.name}: the calculator cannot be made: {type(error).__name__}: {error}"
            ) from error

    def _why_not(self, atoms: Atoms) -> str:
        return why_not(atoms, partly_periodic=self._partly_periodic, electrons=True)

    def refusal(self, atoms: Atoms) -> str:
        """Return why a structure would be refused before a calculation; "" where it would not."""
        reason = self._why_not(atoms)
        if reason:
            return reason
        state = electronic_state(atoms)
        if not any(state) or self._electrons == "ignore":
            return ""
        work = bare(atoms)
        try:
            work.calc = self.make_calculator()
        except Exception:  # its first label will say what is wrong with it
            return ""
        return self._set_state(work, *state)

    def _set_state(self, work: Atoms, charge: int, n_unpaired: int) -> str:
        """Give charge and spin to the calculator of a structure, or say why it takes none."""
        if self._electrons == "initial":
            n = len(work)
            work.set_initial_charges(np.full(n, charge / n))
            work.set_initial_magnetic_moments(np.full(n, n_unpaired / n))
            return ""
        known = {k.lower(): k for k in getattr(work.calc, "default_parameters", None) or {}}
        spin = next((known[k] for k in ("multiplicity", "mult") if k in known), None)
        takes = {"charge": known.get("charge"), "multiplicity": spin}
        for what, value, asked in (
            ("charge", charge, f"the charge {charge}"),
            ("multiplicity", n_unpaired, f"{n_unpaired} unpaired electrons"),
        ):
            if value and takes[what] is None:
                return (
                    f"it has {asked}, and {type(work.calc).__name__} has no parameter for it that "
                    f"mofal knows; where it reads initial_charges and initial_magmoms, write "
                    f"{self.spec}{'&' if '?' in self.spec else '?'}electrons=initial"
                )
        # What a structure does not state is left to the calculator.
        wanted = {str(takes["charge"]): charge} if charge else {}
        wanted |= {str(spin): n_unpaired + 1} if n_unpaired else {}
        for key, value in wanted.items():
            if self._fixed.get(key, value) != value:
                return (
                    f"it asks for {key}={value}, and the reference fixes {key}={self._fixed[key]}"
                )
        work.calc.set(**wanted)
        return ""

    @staticmethod
    def _stress(work: Atoms) -> np.ndarray | None:
        from ase.calculators.calculator import PropertyNotImplementedError

        if not work.pbc.all() or work.calc is None:
            return None
        try:
            return np.array(work.get_stress())
        except (PropertyNotImplementedError, NotImplementedError):
            return None

    def isolated_atom_energies(
        self, elements: Iterable[str], *, cache: str | os.PathLike[str] | None = None
    ) -> dict[str, float]:
        """Energies of isolated atoms at this level, each one atom without periodicity.

        Parameters
        ----------
        elements : iterable of str
            Chemical symbols.
        cache : path, optional
            Directory that keeps them; default: the user's cache directory.

        Returns
        -------
        dict of str to float
            eV, in the order of the atomic numbers.

        Raises
        ------
        ReferenceError
            The calculator cannot do a single atom.
        """
        from ase import Atoms as AseAtoms

        from mofal.reference.isolated import isolated_energies

        def one(symbol: str) -> float:
            if symbol in self.stated_atoms:
                return float(self.stated_atoms[symbol])
            attempt = self.calculate_here(AseAtoms(symbol))
            if not attempt.converged:
                raise ReferenceError(
                    f"{self.name} gives no energy of an isolated {symbol} atom "
                    f"({attempt.status}: {attempt.reason}); state it: {self.spec}"
                    f"{'&' if '?' in self.spec else '?'}"
                    f'isolated_atom_energies={{"{symbol}":-1.0}}'
                )
            return attempt.energy

        return isolated_energies(elements, one, file=isolated_cache_file(self._atoms_key(), cache))

    def _atoms_key(self) -> str:
        if not self.stated_atoms:
            return self.level_hash
        return f"{self.level_hash}-{hash_level(self.stated_atoms)}"


def classify(error: BaseException) -> tuple[str, str]:
    """Status and reason of an exception that a calculator raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "out_of_memory", text
    lower = text.lower()
    if type(error).__name__ in ("SCFError", "KohnShamConvergenceError") or any(
        phrase in lower for phrase in _NOT_CONVERGED
    ):
        return "not_converged", text
    return "crashed", text


def _is_of_precision(error: BaseException) -> bool:
    """Whether torch says that tensors of two precisions met."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and "double" in text and "float" in text


@contextlib.contextmanager
def torch_as_it_starts() -> Iterator[None]:
    """Compute with torch's own default of single precision, where NequIP has set double.

    The default is the whole process's, so one thread at a time has it changed.
    """
    torch = sys.modules["torch"]
    with TORCH_DEFAULTS:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def torch_is_changed() -> bool:
    """Whether torch is here, and its default is no longer that which it starts with."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.get_default_dtype() != torch.float32


@contextlib.contextmanager
def limit_threads(threads: int) -> Iterator[None]:
    """Fix the threads of BLAS and OpenMP libraries while a calculator runs."""
    from threadpoolctl import threadpool_limits

    global _blas_users, _blas_limits
    # OpenMP counts its threads per calling thread, BLAS once for the whole process: the limit on
    # the latter stays until the last of several labels that run side by side is done.
    with _blas_lock:
        if _blas_users == 0:
            _blas_limits = threadpool_limits(limits=threads, user_api="blas")
        _blas_users += 1
    try:
        with threadpool_limits(limits=threads, user_api="openmp"):
            yield
    finally:
        with _blas_lock:
            _blas_users -= 1
            if _blas_users == 0 and _blas_limits is not None:
                _blas_limits.restore_original_limits()
                _blas_limits = None


def ase_reference(
    target: str = "",
    *,
    threads: int = 1,
    time_limit_s: float | None = None,
    isolated: bool = False,
    isolated_atom_energies: Mapping[str, float] | None = None,
    packages: Iterable[str] = (),
    electrons: str = "parameters",
    spec: str = "",
    **arguments: Any,
) -> AseReference:
    """Make a reference of any ASE calculator: ``ase:module:Factory?argument=value&...``.

    Parameters
    ----------
    target : str
        ``module:Factory``; the factory is called with the arguments and returns a calculator. It
        must be importable on every worker.
    packages : iterable of str
        Distributions whose versions are worth keeping; the factory's own one is kept anyhow.
    electrons : str
        How the calculator takes charge and spin of a structure, see `ELECTRONS`.
    **arguments
        Passed to the factory; together with its path they are the level of theory.

    Raises
    ------
    ReferenceError
        There is no such factory.
    """
    module_name, _, factory_name = target.partition(":")
    if not module_name or not factory_name:
        raise ReferenceError(
            f"ase:{target} names no factory; expected ase:module:Factory, "
            "for instance ase:ase.calculators.emt:EMT"
        )
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"ase:{target}: there is no module {error.name!r} on this machine"
        ) from error
    except Exception as error:
        raise ReferenceError(
            f"ase:{target}: module {module_name} cannot be imported "
            f"({type(error).__name__}: {error})"
        ) from error
    factory = module
    for part in factory_name.split("."):
        if not hasattr(factory, part):
            raise ReferenceError(f"ase:{target}: module {module_name} has no {factory_name}")
        factory = getattr(factory, part)
    if not callable(factory):
        raise ReferenceError(f"ase:{target} cannot be called; expected a calculator's factory")
    try:
        json.dumps(arguments)
    except TypeError as error:
        raise ReferenceError(f"ase:{target}: arguments must be plain values ({error})") from error
    if isinstance(packages, str):
        packages = packages.split(",")
    return AseReference(
        lambda: factory(**arguments),
        name=f"ase:{target}",
        spec=spec or f"ase:{target}",
        level_of_theory={"method": f"ase:{target}", "parameters": dict(arguments)},
        packages=[*packages, *_distributions(module_name)],
        threads=threads,
        time_limit_s=time_limit_s,
        isolated=isolated,
        isolated_atom_energies=isolated_atom_energies,
        electrons=electrons,
        fixed={k: v for k, v in arguments.items() if k in ("charge", "multiplicity", "mult")},
    )


def _distributions(module_name: str) -> list[str]:
    from importlib.metadata import packages_distributions

    return packages_distributions().get(module_name.partition(".")[0], [])
