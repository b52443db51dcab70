"""References that are an ASE calculator in a process: any of them, by the path of its factory."""

from __future__ import annotations

import contextlib
import json
import os
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
from mofal.reference.options import energies, flag, number, whole_number

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

_blas_lock = threading.Lock()
_blas_users = 0
_blas_limits: Any = None

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
    fresh : bool
        Make a new calculator for each structure: for those that start from what they found last,
        so that a label would depend on which one came before it.
    partly_periodic : bool
        Whether the calculator knows structures that are periodic along some directions only; they
        are refused otherwise.
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
    ) -> None:
        self._fresh = fresh
        self._partly_periodic = partly_periodic
        if time_limit_s is not None:
            time_limit_s = number(name, "time_limit_s", time_limit_s)
        self._make = make_calculator
        self._packages = tuple(packages)
        self._given_atoms = energies(name, "isolated_atom_energies", isolated_atom_energies or {})
        # One calculator per thread: the threads of a worker label side by side.
        self._local = threading.local()
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
        """
        if self.time_limit_s is None and not self.isolated:
            return self.calculate_here(atoms)
        from mofal.reference.child import calculate_in_child

        attempt = begin(self, atoms)
        reason = why_not(atoms, partly_periodic=self._partly_periodic)
        if reason:
            return fail(attempt, "inconsistent", reason)
        return calculate_in_child(
            self, attempt, directory=Path(directory), time_limit_s=self.time_limit_s
        )

    def make_calculator(self) -> Calculator:
        """Return a new ASE calculator of this level, for work that is no label (a relaxation, say).

        Its threads are not limited: `limit_threads` does that, once for all of the calls.
        """
        return self._make()

    def calculate_here(self, atoms: Atoms) -> Attempt:
        """Label one structure in this process, without limits; see `calculate`."""
        attempt = begin(self, atoms)
        reason = why_not(atoms, partly_periodic=self._partly_periodic)
        if reason:
            return fail(attempt, "inconsistent", reason)
        start = time.perf_counter()
        work = bare(atoms)
        log = ""
        try:
            with limit_threads(self.threads):
                if self._fresh or getattr(self._local, "calculator", None) is None:
                    self._local.calculator = self._make()
                work.calc = self._local.calculator
                forces = np.array(work.get_forces())
                energy = float(work.get_potential_energy())
                stress = self._stress(work)
            done = finish(
                attempt, energy=energy, forces=forces, stress=stress, positions=work.positions
            )
        except Exception as error:
            self._local.calculator = None  # one that failed may be left in any state
            status, reason = classify(error)
            log = tail(traceback.format_exc())
            done = fail(attempt, status, reason)
        return replace(done, wall_time_s=time.perf_counter() - start, log_tail=log)

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
            if symbol in self._given_atoms:
                return float(self._given_atoms[symbol])
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
        if not self._given_atoms:
            return self.level_hash
        return f"{self.level_hash}-{hash_level(self._given_atoms)}"


def classify(error: BaseException) -> tuple[str, str]:
    """Status and reason of an exception that a calculator raised."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, MemoryError):
        return "out_of_memory", text
    lower = text.lower()
    if type(error).__name__ in ("SCFError", "KohnShamConvergenceError") or any(
        phrase in lower for phrase in _NOT_CONVERGED
    ):
        return "not_converged", text
    return "crashed", text


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
    )


def _distributions(module_name: str) -> list[str]:
    from importlib.metadata import packages_distributions

    return packages_distributions().get(module_name.partition(".")[0], [])
