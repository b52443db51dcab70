"""Durable labels: one record per attempt, addressed by structure and level of theory.

A record is one `.npz` file (read with `allow_pickle=False`) that holds the structure, the results
and, as JSON, everything else, with a checksum over all of it. It is flushed to disk and put in
place in one step, so a record is whole or not there; what is damaged is treated as missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mofal.data.hashing import hash_json
from mofal.errors import DataError, StoreError
from mofal.files import is_being_written
from mofal.reference.base import (
    STATUSES,
    Attempt,
    Reference,
    begin,
    fail,
    hash_level,
    structure_id_of,
)
from mofal.reference.faults import is_machine
from mofal.reference.files import write_new

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

FORMAT = 1
_ARRAYS = ("numbers", "positions", "cell", "pbc", "energy", "forces", "stress")
_NAME = re.compile(r"([0-9a-f]+)-(\d{3,})\.npz")
# Versions of these change results; that of mofal or Python alone is not worth a warning.
_SILENT_VERSIONS = frozenset({"mofal", "python"})


def record_key(structure_id: str, level_hash: str) -> str:
    """Address of a label: hash of the structure and the level of theory."""
    return hash_json([structure_id, level_hash])


# ---------------------------------------------------------------------------------- one record
def encode(attempt: Attempt) -> bytes:
    """Write an attempt as the bytes of a record."""
    arrays = {
        "numbers": np.asarray(attempt.numbers, "<i4"),
        "positions": np.asarray(attempt.positions, "<f8"),
        "cell": np.asarray(attempt.cell, "<f8"),
        "pbc": np.asarray(attempt.pbc, bool),
        "energy": np.asarray(attempt.energy, "<f8"),
        "forces": np.asarray(attempt.forces, "<f8"),
        "stress": np.asarray(attempt.stress, "<f8"),
    }
    meta = {
        "mofal_format": FORMAT,
        "structure_id": attempt.structure_id,
        "level_hash": attempt.level_hash,
        "level_of_theory": dict(attempt.level_of_theory),
        "status": attempt.status,
        "reason": attempt.reason,
        "log_tail": attempt.log_tail,
        "wall_time_s": attempt.wall_time_s,
        "started": attempt.started,
        "host": attempt.host,
        "reference": attempt.reference,
        "versions": dict(attempt.versions),
        "retries": [dict(r) for r in attempt.retries],
        "memory_estimate_GB": _number_or_none(attempt.memory_estimate),
        "memory_peak_GB": _number_or_none(attempt.memory_peak),
        "charge": attempt.charge,
        "n_unpaired": attempt.n_unpaired,
    }
    text = json.dumps(meta, sort_keys=True, allow_nan=False).encode()
    arrays["meta"] = np.frombuffer(text, np.uint8)
    out = io.BytesIO()
    np.savez(out, checksum=np.array(_checksum(arrays)), **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def decode(content: bytes) -> Attempt:
    """Read an attempt from the bytes of a record.

    Raises
    ------
    StoreError
        It is truncated, its checksum does not fit, or a newer version wrote it.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        checksum = str(found.pop("checksum"))
        meta = json.loads(found["meta"].tobytes())
        written = int(meta["mofal_format"])
    except Exception as error:  # a flipped byte in a zip file raises nearly anything
        raise StoreError(f"damaged record ({type(error).__name__}: {error})") from error
    if written > FORMAT:
        raise StoreError(
            f"record of format {written}, this mofal reads up to {FORMAT}: "
            "pip install --upgrade mofal"
        )
    if checksum != _checksum(found) or not set(_ARRAYS) <= set(found):
        raise StoreError("damaged record (its checksum does not fit)")
    return Attempt(
        structure_id=meta["structure_id"],
        level_hash=meta["level_hash"],
        level_of_theory=meta["level_of_theory"],
        numbers=found["numbers"],
        positions=found["positions"],
        cell=found["cell"],
        pbc=found["pbc"],
        status=meta["status"],
        energy=float(found["energy"]),
        forces=found["forces"],
        stress=found["stress"],
        reason=meta["reason"],
        log_tail=meta["log_tail"],
        wall_time_s=meta["wall_time_s"],
        started=meta["started"],
        host=meta["host"],
        reference=meta["reference"],
        versions=meta["versions"],
        retries=tuple(meta["retries"]),
        memory_estimate=_nan_or_number(meta["memory_estimate_GB"]),
        memory_peak=_nan_or_number(meta["memory_peak_GB"]),
        charge=int(meta.get("charge", 0)),
        n_unpaired=int(meta.get("n_unpaired", 0)),
    )


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {a.dtype.str} {arrays[name].shape}\n".encode())
        digest.update(a.tobytes())
    return digest.hexdigest()


def _number_or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _nan_or_number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


# ---------------------------------------------------------------------------------- the cache
class LabelCache:
    """Labels on disk, for one campaign or shared by several.

    Many processes may read and write at once: a record is put in place whole, under a name that
    nobody else has.

    Parameters
    ----------
    path : path
        Directory of this cache; made on the first write.
    mode : {"rw", "r"}
        Whether `put` writes into it.
    shared : sequence of path or LabelCache
        Further caches: labels that they hold are never paid for again. A path is only read; a
        `LabelCache` with mode "rw" is given a copy of every label that is recorded or asked for
        here. Failures are copied to none and taken from none: another's time limit or
        full disk says nothing about this attempt.

    Examples
    --------
    >>> from pathlib import Path
    >>> Path("our-labels").mkdir()
    >>> cache = LabelCache("my-labels", shared=["our-labels"])
    >>> cache.get("0123456789abcdef0123", "0123456789abcdef") is None    # asked for in both
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Literal["rw", "r"] = "rw",
        *,
        shared: Sequence[str | os.PathLike[str] | LabelCache] = (),
    ) -> None:
        if mode not in ("rw", "r"):
            raise StoreError(f"mode {mode!r} of a label cache; expected 'rw' or 'r'")
        self.path = Path(path)
        self.mode = mode
        self.shared = tuple(c.path if isinstance(c, LabelCache) else Path(c) for c in shared)
        self.copied_to = tuple(
            c.path for c in shared if isinstance(c, LabelCache) and c.mode == "rw"
        )
        for place in [*self.shared, *([self.path] if mode == "r" else [])]:
            if not place.is_dir():
                raise StoreError(f"there is no label cache at {place}")
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} is a file; a label cache is a directory")
        self._warned: set[Path] = set()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"LabelCache({str(self.path)!r}, {self.mode!r}, shared={len(self.shared)})"

    def __getstate__(self) -> dict[str, Any]:
        names = ("path", "mode", "shared", "copied_to")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._warned = set()
        self._lock = threading.Lock()

    def get(self, structure_id: str, level_hash: str) -> Attempt | None:
        """Return the first converged attempt, else the last failed one of its own, else None."""
        attempts = self.attempts(structure_id, level_hash)
        for attempt in attempts:
            if attempt.converged:
                return attempt
        return attempts[-1] if attempts else None

    def attempts(self, structure_id: str, level_hash: str) -> list[Attempt]:
        """All attempts of its own in the order of their records, then labels of shared caches.

        Raises
        ------
        OSError
            A record of its own cannot be read now: it may be a label that was paid for.
        """
        key = record_key(structure_id, level_hash)
        found = []
        for place in (self.path, *self.shared):
            for file in self._files_of(place, key):
                attempt = self._read(file)
                if attempt is None:
                    continue
                if (attempt.structure_id, attempt.level_hash) != (structure_id, level_hash):
                    self._warn(file, "holds another label than its name says")
                    continue
                if attempt.converged or place == self.path:
                    found.append(attempt)
        return found

    def put(self, attempt: Attempt) -> Path:
        """Write one record; when this returns, it is on disk whole.

        Raises
        ------
        StoreError
            The cache is read-only, or the record contradicts itself.
        OSError
            The disk is full or cannot be written.
        """
        if self.mode != "rw":
            raise StoreError(f"the label cache {self.path} is read-only; open it with mode='rw'")
        if attempt.status not in STATUSES:
            raise StoreError(f"status {attempt.status!r}; expected one of {', '.join(STATUSES)}")
        if hash_level(attempt.level_of_theory) != attempt.level_hash:
            raise StoreError("the level of theory of this attempt does not have its level_hash")
        if attempt.converged and not (
            math.isfinite(attempt.energy) and np.isfinite(attempt.forces).all()
        ):
            raise StoreError("a converged attempt with an energy or forces that are not finite")
        key = record_key(attempt.structure_id, attempt.level_hash)
        content = encode(attempt)
        number = 1 + max((self._number(f) for f in self._files_of(self.path, key)), default=-1)
        while True:
            file = self.path / key[:2] / f"{key}-{number:03d}.npz"
            if write_new(file, content):
                break
            number += 1
        self.share(attempt)
        return file

    def share(self, attempt: Attempt) -> None:
        """Copy a label into the shared caches that take copies and do not have it yet.

        The label is safe in this cache, so a shared one that cannot be written is warned about.
        """
        if not attempt.converged:
            return
        key = record_key(attempt.structure_id, attempt.level_hash)
        for place in self.copied_to:
            try:
                files = self._files_of(place, key)
                if any(found.converged for found in map(self._read, files) if found is not None):
                    continue
                number = 1 + max((self._number(f) for f in files), default=-1)
                directory = place / key[:2]
                if not directory.is_dir():
                    # Who may write into the cache may write into all of it, whatever the umask.
                    directory.mkdir(exist_ok=True)
                    directory.chmod(stat.S_IMODE(place.stat().st_mode))
                write_new(place / key[:2] / f"{key}-{number:03d}.npz", encode(attempt))
            except OSError as error:
                self._warn(place, f"a label could not be copied into it ({error})", missing=False)

    def records(self, *, shared: bool = True) -> Iterator[Attempt]:
        """Every readable attempt of this cache and of the shared ones; each label's in order."""
        for place in (self.path, *(self.shared if shared else ())):
            for directory in sorted(place.glob("[0-9a-f][0-9a-f]")):
                for file in sorted(directory.glob("*.npz")):
                    attempt = self._read(file)
                    if attempt is not None:
                        yield attempt

    def sweep(self, *, older_than_s: float = 3600.0) -> int:
        """Remove temporary files that killed writers left behind; return how many.

        What a process that is still there began is not touched.
        """
        if self.mode != "rw":
            return 0
        removed = 0
        for file in self.path.glob("[0-9a-f][0-9a-f]/.tmp-*"):
            try:
                old = time.time() - file.stat().st_mtime > older_than_s
                if old and not is_being_written(file):
                    file.unlink()
                    removed += 1
            except OSError:
                continue
        return removed

    def _files_of(self, place: Path, key: str) -> list[Path]:
        try:
            names = os.listdir(place / key[:2])
        except FileNotFoundError:
            return []
        except OSError as error:
            if place == self.path:
                raise
            self._warn(place / "*", str(error))
            return []
        ours = (n for n in sorted(names) if n.startswith(f"{key}-") and n.endswith(".npz"))
        return [place / key[:2] / name for name in ours]

    @staticmethod
    def _number(file: Path) -> int:
        match = _NAME.fullmatch(file.name)
        return int(match.group(2)) if match else -1

    def _read(self, file: Path) -> Attempt | None:
        try:
            return decode(file.read_bytes())
        except FileNotFoundError:
            return None
        except StoreError as error:
            self._warn(file, str(error))
        except OSError as error:
            if file.is_relative_to(self.path):
                raise
            self._warn(file, str(error))
        return None

    def _warn(self, file: Path, what: str, *, missing: bool = True) -> None:
        with self._lock:
            if file in self._warned:
                return
            self._warned.add(file)
        end = "; it counts as missing" if missing else ""
        warnings.warn(f"{file}: {what}{end}", stacklevel=4)


# ---------------------------------------------------------------------------------- labelling
def label_one(
    structure: Atoms | xr.Dataset,
    reference: Reference | str,
    *,
    directory: str | os.PathLike[str] | LabelCache,
    shared: Sequence[str | os.PathLike[str]] = (),
    scratch: str | os.PathLike[str] | None = None,
    attempts: int = 1,
) -> Attempt:
    """Label one structure, unless it is labelled already; durable when this returns.

    Parameters
    ----------
    structure : ase.Atoms or Dataset of one structure
    reference : Reference or str
        A reference, or its specification.
    directory : path or LabelCache
        The label cache that the record goes to.
    shared : sequence of path
        Further caches to look in (not with a `LabelCache`, which has its own).
    scratch : path, optional
        Where the reference works; default: `scratch` in the cache's directory.
    attempts : int
        How many recorded attempts a label may have in all. While there are fewer, a label that
        failed is tried again; at the limit the recorded failure is returned.

    Returns
    -------
    Attempt
        The label, or the failure with its reason.

    Raises
    ------
    OSError
        The record could not be written (a full disk): without a record there is no label.
    OSError, ImportError, ReferenceError
        The machine failed (`mofal.reference.faults`), not the calculation: nothing is recorded.
    """
    from mofal.reference.registry import get_reference

    atoms = _one_structure(structure)
    method = get_reference(reference)
    cache = directory if isinstance(directory, LabelCache) else LabelCache(directory, shared=shared)
    if attempts < 1:
        raise DataError(f"attempts = {attempts}; expected a whole number from 1 up")
    structure_id = structure_id_of(atoms)
    recorded = cache.attempts(structure_id, method.level_hash)
    for found in recorded:
        if found.converged:
            warn_versions(found.versions, method.versions)
            cache.share(found)
            return found
    last = recorded[-1] if recorded else None
    for _ in range(attempts - len(recorded)):
        last = _calculate(method, atoms, cache.path / "scratch" if scratch is None else scratch)
        cache.put(last)
        if last.converged:
            break
    assert last is not None  # attempts >= 1: there is a record, or one was made
    return last


def _calculate(method: Reference, atoms: Atoms, scratch: str | os.PathLike[str]) -> Attempt:
    start = time.perf_counter()
    try:
        attempt = method.calculate(atoms, directory=scratch)
    except Exception as error:
        if is_machine(error):
            raise
        # A plug-in that breaks the protocol must not end a campaign.
        attempt = fail(
            begin(method, atoms),
            "crashed",
            f"the reference raised {type(error).__name__}: {error}",
            wall_time_s=time.perf_counter() - start,
        )
    asked = begin(method, atoms)
    if not isinstance(attempt, Attempt):
        return fail(asked, "inconsistent", f"the reference returned a {type(attempt).__name__}")
    if attempt.structure_id != asked.structure_id or attempt.level_hash != asked.level_hash:
        return fail(asked, "inconsistent", "the reference labelled another structure or level")
    if attempt.status not in STATUSES:
        return fail(asked, "inconsistent", f"the reference says status {attempt.status!r}")
    if attempt.converged:
        if attempt.forces.shape != (len(atoms), 3):
            return fail(attempt, "inconsistent", f"forces of shape {attempt.forces.shape}")
        if not (math.isfinite(attempt.energy) and np.isfinite(attempt.forces).all()):
            return fail(attempt, "inconsistent", "energy or forces are not finite")
    return attempt


def _one_structure(structure: Atoms | xr.Dataset) -> Atoms:
    from ase import Atoms as AseAtoms

    if isinstance(structure, AseAtoms):
        return structure
    from mofal.data import to_atoms

    if structure.sizes.get("structure") != 1:
        raise DataError(
            f"label_one takes one structure, this Dataset has {structure.sizes.get('structure')}; "
            "choose one: mofal.data.select(ds, i)"
        )
    return to_atoms(structure, 0)


_warned_versions: set[str] = set()


def warn_versions(recorded: Any, current: Any) -> None:
    """Warn, once per difference, where labels of one level come from other code versions."""
    for name in sorted((set(recorded) & set(current)) - _SILENT_VERSIONS):
        if recorded[name] == current[name]:
            continue
        text = f"{name} {recorded[name]} and {current[name]}"
        if text not in _warned_versions:
            _warned_versions.add(text)
            warnings.warn(
                f"labels of one level of theory made by {text}: compare a few before mixing them",
                stacklevel=3,
            )
