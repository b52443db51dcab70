"""References that are a program in a process of its own, on MPI ranks: what GPAW and CP2K share.

One attempt is a directory, a command under a launcher, a limit of time and one of memory, and a
list of ways to the same answer that are tried one after the other where it does not converge.
"""

from __future__ import annotations

import inspect
import os
import shlex
import shutil
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mofal.data.electrons import electronic_state
from mofal.errors import ReferenceError
from mofal.reference.base import Attempt, begin, fail, hash_level, why_not
from mofal.reference.blas import core_type
from mofal.reference.child import Finished, beyond_pool, run_process
from mofal.reference.options import flag, number, whole_number
from mofal.reference.processes import machine_memory_bytes, pool_memory_bytes

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Box:
    """A structure as a program with a grid is given it: positions shifted into a cell.

    Attributes
    ----------
    positions : ndarray, shape (n, 3)
        Å.
    cell : ndarray, shape (3, 3)
        Å.
    shift : ndarray, shape (3,)
        What was added to the positions asked for, Å.
    grid_points : tuple of int
        Along each cell vector: of GPAW's wave functions, of CP2K's density (it may take some more).
    """

    positions: np.ndarray
    cell: np.ndarray
    shift: np.ndarray
    grid_points: tuple[int, int, int]


class Size(Protocol):
    """What a calculation is going to need."""

    @property
    def memory_GB(self) -> float:
        """Upper estimate over all ranks, 1e9 bytes."""
        ...

    def describe(self) -> str:
        """What makes it large, in a few words."""
        ...


class ProgramReference(ABC):
    """Label structures with a program in its own process, on several ranks.

    Parameters
    ----------
    name, spec : str
        How to ask for it again.
    ranks, threads : int
        MPI ranks, and threads of each.
    time_limit_s : float, optional
        Wall time of one attempt, retries included; its whole process group is ended there.
    memory_limit_GB : float, optional
        A job whose estimate is above is refused; one that grows beyond is ended. Default: the
        machine's memory, for the refusal only.
    max_iterations : int
        Of the density, for each way of reaching it.
    max_retries : int
        How many other ways are tried when the density does not converge.
    launcher : str
        Command line before that of the program, with ``{ranks}``.
    keep : bool
        Keep the directory of each calculation.
    """

    def __init__(
        self,
        *,
        name: str,
        spec: str,
        ranks: int = 1,
        threads: int = 1,
        time_limit_s: float | None = None,
        memory_limit_GB: float | None = None,
        max_iterations: int = 200,
        max_retries: int = 2,
        launcher: str | None = None,
        keep: bool = False,
    ) -> None:
        if time_limit_s is not None:
            time_limit_s = number(name, "time_limit_s", time_limit_s)
        if memory_limit_GB is not None:
            memory_limit_GB = number(name, "memory_limit_GB", memory_limit_GB)
        if launcher is not None:
            _check_launcher(launcher, name)
        self.name = name
        self.spec = spec
        self.ranks = whole_number(name, "ranks", ranks)
        self.threads = whole_number(name, "threads", threads)
        self.time_limit_s = time_limit_s
        self.memory_limit_GB = memory_limit_GB
        self.max_iterations = whole_number(name, "max_iterations", max_iterations)
        self.max_retries = whole_number(name, "max_retries", max_retries, least=0)
        self.launcher = launcher
        self.keep = flag(name, "keep", keep)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, ranks={self.ranks})"

    def __reduce__(self) -> tuple[Any, ...]:
        from mofal.reference.registry import get_reference

        return get_reference, (self.spec,)

    # -------------------------------------------------------- what a program says of itself
    @property
    @abstractmethod
    def level_of_theory(self) -> dict[str, Any]:
        """Method, every parameter, and the hash of the data that it reads."""

    @cached_property
    def level_hash(self) -> str:
        """Hash of the level of theory."""
        return hash_level(self.level_of_theory)

    @property
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions of the codes, as far as they are known before a calculation."""

    @abstractmethod
    def cost(self, atoms: Atoms) -> Size:
        """Size of a calculation before it starts.

        Raises
        ------
        ReferenceError
            There is no data for an element.
        """

    @abstractmethod
    def lacks(self, atoms: Atoms) -> str:
        """Say for which elements there is no data; "" where there is all."""

    @abstractmethod
    def isolated_atom_energies(
        self, elements: Iterable[str], *, cache: str | os.PathLike[str] | None = None
    ) -> dict[str, float]:
        """Energies of isolated atoms at the same level, eV."""

    @abstractmethod
    def _routes(self) -> Sequence[Mapping[str, Any]]:
        """Ways to the same answer, each with a `name`, in the order in which they are tried."""

    @abstractmethod
    def _run(
        self,
        attempt: Attempt,
        atoms: Atoms,
        route: Mapping[str, Any],
        place: Path,
        time_limit_s: float | None,
    ) -> Attempt:
        """Calculate in a directory, in one way, and judge what is left behind."""

    # -------------------------------------------------------- what is the same for all
    def calculate(self, atoms: Atoms, *, directory: str | os.PathLike[str]) -> Attempt:
        """Label one structure; a failure of any kind is a status with its reason.

        Parameters
        ----------
        atoms : ase.Atoms
            A cluster (periodic nowhere) or a crystal (periodic everywhere). One that states
            unpaired electrons is calculated spin-polarised, with its moment fixed; an odd number of
            electrons must state them.
        directory : path
            Where the calculation makes its own directory, removed afterwards unless `keep`.

        Raises
        ------
        OSError
            The machine failed (`mofal.reference.faults`): that is no result.
        """
        attempt = begin(self, atoms)
        reason = self._why_not(atoms)
        if reason:
            return fail(attempt, "inconsistent", reason)
        missing = self.lacks(atoms)
        if missing:
            return fail(attempt, "crashed", missing)
        cost = self.cost(atoms)
        attempt = replace(attempt, memory_estimate=cost.memory_GB)
        there = machine_memory_bytes() / 1e9
        for limit in (self.memory_limit_GB, _in_GB(pool_memory_bytes())):
            there = there if limit is None else min(there, limit)
        if cost.memory_GB > there:
            why = (
                f"refused: it needs about {cost.memory_GB:.1f} GB, {there:.1f} GB are there "
                f"({cost.describe()})"
            )
            return fail(attempt, "out_of_memory", why)
        start = time.perf_counter()
        done = self._try_all(attempt, atoms, Path(directory), start)
        return replace(done, wall_time_s=time.perf_counter() - start)

    def refusal(self, atoms: Atoms) -> str:
        """Return why a structure would be refused before a calculation; "" where it would not."""
        return self._why_not(atoms) or self.lacks(atoms)

    @staticmethod
    def _why_not(atoms: Atoms) -> str:
        reason = why_not(atoms, partly_periodic=False, electrons=True)
        if reason:
            return reason
        charge, n_unpaired = electronic_state(atoms)
        electrons = int(atoms.numbers.sum()) - charge
        if electrons % 2 and not n_unpaired:
            return (
                f"it has {electrons} electrons; an odd number needs spin polarisation: state its "
                "unpaired electrons, for example n_unpaired=1"
            )
        return ""

    def _try_all(self, attempt: Attempt, atoms: Atoms, directory: Path, start: float) -> Attempt:
        place = (directory / f"{attempt.structure_id[:12]}-{uuid.uuid4().hex[:8]}").absolute()
        place.mkdir(parents=True)
        retries: list[Mapping[str, Any]] = []
        try:
            routes = list(self._routes())[: 1 + self.max_retries]
            for k, route in enumerate(routes):
                here = place / f"try-{k}"
                here.mkdir()
                left = None
                if self.time_limit_s is not None:
                    left = self.time_limit_s - (time.perf_counter() - start)
                    if left <= 0:
                        why = f"not done after {self.time_limit_s:g} s"
                        done = fail(attempt, "timed_out", why)
                        break
                done = self._run(attempt, atoms, route, here, left)
                attempt = replace(attempt, memory_peak=done.memory_peak, versions=done.versions)
                if done.status != "not_converged":
                    break
                if route is not routes[-1]:
                    retries.append(
                        {"failed": route["name"], "status": done.status, "reason": done.reason}
                    )
            return replace(done, retries=tuple(retries))
        finally:
            if not self.keep:
                shutil.rmtree(place, ignore_errors=True)

    def _launch(
        self,
        command: Sequence[str],
        place: Path,
        time_limit_s: float | None,
        environment: Mapping[str, str] | None = None,
    ) -> Finished:
        """Run the program on the ranks, in its directory, under the limits."""
        # With a launcher of the user's the ranks may run on another machine's processor.
        kernels = core_type() if self.launcher is None else None
        return run_process(
            [*self._launcher(), *command],
            directory=place,
            time_limit_s=time_limit_s,
            memory_limit_bytes=self._memory_limit(),
            environment={
                "OMP_NUM_THREADS": str(self.threads),
                "OPENBLAS_NUM_THREADS": str(self.threads),
                **({"OPENBLAS_CORETYPE": kernels} if kernels else {}),
                **(environment or {}),
            },
            watch_memory=True,
        )

    def _memory_limit(self) -> float | None:
        limits = (self.memory_limit_GB, _in_GB(pool_memory_bytes()))
        return min((1e9 * x for x in limits if x is not None), default=None)

    def _ended(self, attempt: Attempt, ended: Finished, more: dict[str, Any]) -> Attempt | None:
        """Judge what a limit ended; None where none did. The peak of the memory joins `more`."""
        if ended.peak_memory_bytes:
            more["memory_peak"] = ended.peak_memory_bytes / 1e9
        if ended.timed_out:
            return fail(attempt, "timed_out", f"not done after {self.time_limit_s:g} s", **more)
        if not ended.out_of_memory:
            return None
        own, pool = self.memory_limit_GB, pool_memory_bytes()
        if own is not None and (pool is None or 1e9 * own <= pool):
            why = f"it grew beyond {own:g} GB and was ended"
        else:
            why = beyond_pool(pool or 0.0)
        return fail(attempt, "out_of_memory", why, **more)

    def _launcher(self) -> list[str]:
        if self.launcher is not None:
            return shlex.split(self.launcher.format(ranks=self.ranks))
        # Without binding: several jobs of one machine would else all sit on its first cores.
        command = ["mpirun", "--oversubscribe", "--bind-to", "none"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-run-as-root")
        return [*command, "-np", str(self.ranks)]


PROGRAM_OPTIONS = tuple(
    option
    for option in inspect.signature(ProgramReference.__init__).parameters
    if option not in ("self", "name", "spec")
)
"""What may be said of every program in a specification; the level is no matter of these."""


def _check_launcher(launcher: Any, name: str) -> None:
    try:
        one, two = (shlex.split(launcher.format(ranks=ranks)) for ranks in (1, 2))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        one = two = []  # no text, another placeholder, or a quotation mark that is not closed
    if one == two:
        raise ReferenceError(
            f"{name}: launcher = {launcher!r}; expected a command line with {{ranks}} in it and no "
            "other placeholder, e.g. 'srun -n {ranks}'"
        )


def _in_GB(amount: float | None) -> float | None:
    return None if amount is None else amount / 1e9
