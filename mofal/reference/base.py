"""What a reference is, and what one try of it leaves behind.

A reference turns a structure into a label. A calculation that fails is an `Attempt` with a status
and a reason; an exception means that the reference could not be set up at all.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from mofal.data.electrons import electronic_state, impossible
from mofal.data.hashing import hash_json, structure_hash
from mofal.data.variables import STATUSES as OF_LABELS
from mofal.errors import DataError

if TYPE_CHECKING:
    from ase import Atoms

STATUSES = tuple(status for status in OF_LABELS if status != "set_aside")
"""Every status that an attempt can have; only the first one is a label to learn from. To set one
aside comes later, and is no matter of the calculation."""

LOG_TAIL_CHARACTERS = 4000
# Positions go to another process as decimal text at most; more than this is another structure.
POSITION_TOLERANCE = 1e-8
CLOSEST_A = 0.4
"""No two nuclei of a structure worth a label are nearer than this, Å (H2 has 0.74)."""


@runtime_checkable
class Reference(Protocol):
    """How to get a label: a method with all its parameters.

    Attributes
    ----------
    name : str
        How to ask for it again: `get_reference(reference.spec)` on any worker.
    spec : str
        The full specification, a plain string that travels between workers.
    level_of_theory : dict
        Method, every parameter that the answer depends on, hashes of PAW data or parameter files.
    level_hash : str
        Hash of `level_of_theory`: the identity of the level.
    versions : dict
        Provenance: versions of the codes. Not part of the identity.
    """

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> str: ...

    @property
    def level_of_theory(self) -> dict[str, Any]: ...

    @property
    def level_hash(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]: ...

    def calculate(self, atoms: Atoms, *, directory: str | os.PathLike[str]) -> Attempt:
        """Label one structure; never raises for a calculation that fails."""
        ...

    def isolated_atom_energies(
        self, elements: Iterable[str], *, cache: str | os.PathLike[str] | None = None
    ) -> dict[str, float]:
        """Energies of isolated atoms at the same level, eV."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One try at one label: what was asked, what came out, and how it went.

    Attributes
    ----------
    structure_id, level_hash : str
        What was asked, at which level of theory.
    numbers, positions, cell, pbc : ndarray
        The structure itself, shapes (n,), (n, 3) Å, (3, 3) Å, (3,).
    charge, n_unpaired : int
        Total charge (e) and unpaired electrons that it was calculated with (0: as few as the number
        of electrons allows).
    status : str
        One of `STATUSES`.
    energy : float
        eV, raw as the reference gives it; NaN unless converged.
    forces : ndarray, shape (n, 3)
        eV/Å; NaN unless converged.
    stress : ndarray, shape (6,)
        eV/Å³, sign and Voigt order of ASE; NaN where the method gives none.
    reason : str
        Why it failed, in one line; empty when converged.
    log_tail : str
        The last lines of the output.
    wall_time_s : float
        Seconds, retries included.
    retries : tuple of dict
        What was changed before each further try inside this attempt, and what had failed.
    memory_estimate, memory_peak : float
        GB (1e9 bytes) over all ranks, NaN where unknown.
    """

    structure_id: str
    level_hash: str
    level_of_theory: Mapping[str, Any]
    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    status: str
    energy: float = float("nan")
    forces: np.ndarray = field(default_factory=lambda: np.full((0, 3), np.nan))
    stress: np.ndarray = field(default_factory=lambda: np.full(6, np.nan))
    reason: str = ""
    log_tail: str = ""
    wall_time_s: float = 0.0
    started: str = ""
    host: str = ""
    reference: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    retries: tuple[Mapping[str, Any], ...] = ()
    memory_estimate: float = float("nan")
    memory_peak: float = float("nan")
    charge: int = 0
    n_unpaired: int = 0

    @property
    def converged(self) -> bool:
        """Whether this is a label to learn from."""
        return self.status == "converged"

    def __repr__(self) -> str:
        why = f", {self.reason!r}" if self.reason else ""
        return (
            f"Attempt({self.structure_id[:10]}, {self.status}{why}, energy={self.energy:.6f} eV, "
            f"{len(self.numbers)} atoms, {self.wall_time_s:.1f} s)"
        )


def hash_level(level_of_theory: Mapping[str, Any]) -> str:
    """Identity of a level of theory: the hash of its canonical JSON."""
    return hash_json(dict(level_of_theory))


def structure_id_of(atoms: Atoms) -> str:
    """Content hash of one structure, charge and spin included, as structures Datasets carry it.

    Raises
    ------
    DataError
        Charge or spin is stated in two ways (`mofal.data.electrons`).
    """
    state = electronic_state(atoms)
    return structure_hash(atoms.numbers, atoms.positions, atoms.cell[:], atoms.pbc, *state)


def bare(atoms: Atoms) -> Atoms:
    """Numbers, positions, cell and pbc alone: charges and moments are given as `electronic_state`
    says, nothing leaks in beside it."""
    from ase import Atoms as AseAtoms

    return AseAtoms(
        numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell[:], pbc=atoms.pbc
    )


def package_versions(*names: str) -> dict[str, str]:
    """Versions of installed packages (and of Python and mofal) for the provenance of a label."""
    found = {"python": platform.python_version()}
    for name in ("mofal", "ase", "numpy", *names):
        try:
            found[name] = _version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def _version(name: str) -> str:
    return metadata.version(name)


def tail(text: str) -> str:
    """Last part of a log, cut at a line."""
    if len(text) <= LOG_TAIL_CHARACTERS:
        return text
    text = text[-LOG_TAIL_CHARACTERS:]
    return text[text.find("\n") + 1 :]


def now() -> str:
    """Coordinated universal time, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def begin(reference: Reference, atoms: Atoms, *, structure_id: str | None = None) -> Attempt:
    """Return an attempt for this structure that has not been made yet (status "crashed")."""
    try:
        charge, n_unpaired = electronic_state(atoms)
    except DataError:  # `why_not` says so
        charge = n_unpaired = 0
    return Attempt(
        structure_id=structure_id
        or structure_hash(
            atoms.numbers, atoms.positions, atoms.cell[:], atoms.pbc, charge, n_unpaired
        ),
        charge=charge,
        n_unpaired=n_unpaired,
        level_hash=reference.level_hash,
        level_of_theory=reference.level_of_theory,
        numbers=np.asarray(atoms.numbers, np.int32),
        positions=np.array(atoms.positions, np.float64),
        cell=np.array(atoms.cell[:], np.float64),
        pbc=np.array(atoms.pbc, bool),
        status="crashed",
        forces=np.full((len(atoms), 3), np.nan),
        reason="it was never started",
        started=now(),
        host=platform.node(),
        reference=reference.spec,
        versions=reference.versions,
    )


def fail(attempt: Attempt, status: str, reason: str, **changes: Any) -> Attempt:
    """Return the attempt with this failure, its numbers wiped to NaN."""
    one_line = " ".join(str(reason).split())
    if len(one_line) > 500:
        one_line = one_line[:500] + " ..."
    return replace(
        attempt,
        status=status,
        reason=one_line or status,
        energy=float("nan"),
        forces=np.full((len(attempt.numbers), 3), np.nan),
        stress=np.full(6, np.nan),
        **changes,
    )


def finish(
    attempt: Attempt,
    *,
    energy: float,
    forces: Any,
    stress: Any = None,
    positions: Any = None,
    **changes: Any,
) -> Attempt:
    """Return the attempt with these results, unless they are not what was asked for.

    NaN or infinite energy or forces, forces of another shape, and positions other than those that
    were asked for make the attempt "inconsistent". A stress that is missing, or that is asked of
    a structure that is not periodic in all directions, is NaN.
    """
    n_atoms = len(attempt.numbers)
    energy = float(energy)
    forces = np.array(forces, np.float64)
    if positions is not None:
        positions = np.asarray(positions, np.float64)
        if positions.shape != attempt.positions.shape:
            found = f"{len(positions)} atoms came back, {n_atoms} were asked for"
            return fail(attempt, "inconsistent", found, **changes)
        moved = np.abs(positions - attempt.positions).max(initial=0.0)
        if not moved <= POSITION_TOLERANCE:
            found = f"the positions that came back are {moved:.2e} Å from those asked for"
            return fail(attempt, "inconsistent", found, **changes)
    if forces.shape != (n_atoms, 3):
        found = f"forces have the shape {forces.shape}, expected ({n_atoms}, 3)"
        return fail(attempt, "inconsistent", found, **changes)
    if not np.isfinite(energy):
        return fail(attempt, "inconsistent", f"the energy is {energy}", **changes)
    bad = ~np.isfinite(forces).all(axis=1)
    if bad.any():
        found = f"the forces of {bad.sum()} of {n_atoms} atoms are not finite"
        return fail(attempt, "inconsistent", found, **changes)
    stress = np.full(6, np.nan) if stress is None else np.array(stress, np.float64)
    if stress.shape != (6,):
        found = f"the stress has the shape {stress.shape}, expected (6,)"
        return fail(attempt, "inconsistent", found, **changes)
    if not attempt.pbc.all():
        stress = np.full(6, np.nan)
    return replace(
        attempt,
        status="converged",
        reason="",
        energy=energy,
        forces=forces,
        stress=stress,
        **changes,
    )


def why_not(atoms: Atoms, *, partly_periodic: bool = True, electrons: bool = False) -> str:
    """Return why no reference should start on this structure, or an empty string.

    Without `partly_periodic`, one that is periodic along some directions only is refused as well.
    With `electrons` the reference takes charge and spin from `electronic_state`; without it, both
    are refused where they are not zero.
    """
    if len(atoms) == 0:
        return "there are no atoms in it"
    if not np.isfinite(atoms.positions).all():
        return "positions are not finite"
    if not np.isfinite(atoms.cell[:]).all():
        return "the cell is not finite"
    if atoms.pbc.any() and np.linalg.norm(atoms.cell[:], axis=1)[atoms.pbc].min() < 1e-6:
        return "a periodic direction has no cell vector"
    if not partly_periodic and 0 < int(atoms.pbc.sum()) < 3:
        return "it is periodic along some directions only; expected all or none"
    try:
        charge, n_unpaired = electronic_state(atoms)
    except DataError as error:
        return str(error)
    if charge and not electrons:
        return f"it carries the charge {charge}, and this reference takes none"
    if n_unpaired and not electrons:
        return f"it has {n_unpaired} unpaired electrons, and this reference takes no spin"
    if charge and atoms.pbc.any():
        return (
            f"it is periodic and carries the charge {charge}: the energy of a charged lattice "
            "depends on its background; label neutral cells, or clusters"
        )
    why = impossible(int(atoms.numbers.sum()) - charge, n_unpaired)
    return why or _too_close(atoms)


def refusal(reference: Reference, atoms: Atoms) -> str:
    """Return why a reference would not even start on a structure; "" where it would.

    Nothing is calculated. References without a method `refusal` are taken to start on anything.
    """
    ask = getattr(reference, "refusal", None)
    return "" if ask is None else str(ask(atoms))


def _too_close(atoms: Atoms) -> str:
    """Return which atoms are on top of each other: methods answer even then, with nonsense."""
    from matscipy.neighbours import neighbour_list

    positions = np.ascontiguousarray(atoms.positions, np.float64)
    cell = np.array(atoms.cell[:], np.float64)
    if not atoms.pbc.all():
        # A direction without a lattice gets a box around the atoms.
        span = np.ptp(positions, axis=0).max() + 10.0
        for axis in np.flatnonzero(~atoms.pbc):
            others = np.delete(cell, axis, axis=0)
            normal = np.cross(*others) if atoms.pbc.any() else np.eye(3)[axis]
            cell[axis] = normal / max(np.linalg.norm(normal), 1e-12) * span
        if abs(np.linalg.det(cell)) < 1e-9:
            cell = np.eye(3) * span
    i, j, d = neighbour_list("ijd", positions=positions, cell=cell, pbc=atoms.pbc, cutoff=CLOSEST_A)
    if len(d) == 0:
        return ""
    k = int(d.argmin())
    return f"atoms {i[k]} and {j[k]} are {d[k]:.2f} Å apart"


def isolated_cache_file(level_hash: str, cache: str | os.PathLike[str] | None) -> Path:
    """Where isolated-atom energies of a level are kept: `cache`, or the user's cache directory."""
    if cache is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        cache = Path(base) / "mofal" / "isolated_atoms"
    return Path(cache) / f"{level_hash}.json"
