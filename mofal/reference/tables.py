"""From records to Datasets: labels beside their structures, attempts as a table."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.ragged import TEXT
from mofal.errors import DataError
from mofal.reference.base import Attempt, Reference, hash_level
from mofal.reference.cache import LabelCache, warn_versions

if TYPE_CHECKING:
    import xarray as xr


def gather(
    structures: xr.Dataset,
    attempts: LabelCache | Iterable[Attempt],
    *,
    reference: Reference | None = None,
    level_hash: str | None = None,
    isolated_atom_energies: Mapping[str, float] | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Join labels to the structures that they belong to.

    Parameters
    ----------
    structures : Dataset
        Structures; their `structure_id` says which label is whose.
    attempts : LabelCache or iterable of Attempt
        Where the labels are. Of several attempts at one label the first converged one counts,
        else the last failed one.
    reference : Reference, optional
        The level to gather, and the source of the isolated-atom energies.
    level_hash : str, optional
        The level to gather, without a reference at hand.
    isolated_atom_energies : mapping of str to float, optional
        eV, of the same level; wins over the reference's own.
    cache : path, optional
        Directory of the isolated-atom energies.

    Returns
    -------
    Dataset
        The structures with `energy`, `forces`, `stress`, `status`, `reason`, `wall_time`; attrs
        `level_of_theory`, `level_hash`, `isolated_atom_energies`, `versions`. A failed label is
        NaN with its status; elements that only failed structures have need no isolated atom.

    Raises
    ------
    DataError
        A structure without any attempt, or attempts at two levels of theory.
    """
    ids = [str(s) for s in structures["structure_id"].values]
    level = reference.level_hash if reference is not None else level_hash
    if isinstance(attempts, LabelCache):
        if level is None:
            raise DataError("which level of theory? give reference=... or level_hash=...")
        found = {i: attempts.get(i, level) for i in ids}
    else:
        found = _choose(attempts, level)
    missing = [i for i in ids if found.get(i) is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(ids)} structures have no attempt at this level "
            f"(the first is {missing[0]}); label them first"
        )
    chosen = [a for a in (found[i] for i in ids) if a is not None]
    return _assemble(
        structures, chosen, _atoms_of(chosen, reference, isolated_atom_energies, cache)
    )


def _choose(attempts: Iterable[Attempt], level: str | None) -> dict[str, Attempt | None]:
    found: dict[str, Attempt | None] = {}
    for attempt in attempts:
        if level is None:
            level = attempt.level_hash
        if attempt.level_hash != level:
            raise DataError(
                f"attempts at two levels of theory, {level} and {attempt.level_hash}; "
                "gather one: gather(..., level_hash=...)"
            )
        before = found.get(attempt.structure_id)
        if before is None or not before.converged:
            found[attempt.structure_id] = attempt
    return found


def _atoms_of(
    attempts: Sequence[Attempt],
    reference: Reference | None,
    given: Mapping[str, float] | None,
    cache: str | os.PathLike[str] | None,
) -> dict[str, float] | None:
    if given is not None:
        return {k: float(v) for k, v in given.items()}
    if reference is None:
        return None
    from ase.data import chemical_symbols

    there = {z for a in attempts if a.converged for z in a.numbers.tolist()}
    elements = [chemical_symbols[z] for z in sorted(there)]
    return reference.isolated_atom_energies(elements, cache=cache)


def _assemble(
    structures: xr.Dataset, attempts: Sequence[Attempt], atoms: Mapping[str, float] | None
) -> xr.Dataset:
    from mofal.data import describe

    n_atoms = structures["n_atoms"].values
    for i, attempt in enumerate(attempts):
        if len(attempt.numbers) != n_atoms[i]:
            raise DataError(
                f"structure {i} has {n_atoms[i]} atoms, its label {len(attempt.numbers)}"
            )
    forces = [a.forces for a in attempts] or [np.empty((0, 3))]
    out = structures.assign(
        energy=("structure", np.array([a.energy for a in attempts], np.float64)),
        forces=(("atom", "xyz"), np.concatenate(forces)),
        stress=(
            ("structure", "voigt"),
            np.array([a.stress for a in attempts], np.float64).reshape(-1, 6),
        ),
        status=("structure", np.array([a.status for a in attempts], TEXT)),
        reason=("structure", np.array([a.reason for a in attempts], TEXT)),
        wall_time=("structure", np.array([a.wall_time_s for a in attempts], np.float64)),
    )
    if attempts:
        first = attempts[0]
        out.attrs["level_hash"] = first.level_hash
        out.attrs["level_of_theory"] = json.dumps(dict(first.level_of_theory), sort_keys=True)
        out.attrs["versions"] = json.dumps(dict(first.versions), sort_keys=True)
        for other in attempts[1:]:
            warn_versions(first.versions, other.versions)
    if atoms is not None:
        out.attrs["isolated_atom_energies"] = json.dumps(dict(atoms))
    return describe(out)


def attempts_table(attempts: LabelCache | Iterable[Attempt]) -> xr.Dataset:
    """Make a table with one row per attempt: which structure, which level, how it went.

    Returns
    -------
    Dataset
        Dim `attempt`; `structure_id`, `level_hash`, `status`, `reason`, `n_atoms`, `wall_time` (s),
        `started`, `host`, `reference`, `charge` (e), `n_unpaired`,
        `n_retries`, `memory_peak` and `memory_estimate` (GB).
    """
    import xarray as xr

    rows = list(attempts.records() if isinstance(attempts, LabelCache) else attempts)

    def text(values: Iterable[str]) -> tuple[str, np.ndarray]:
        return "attempt", np.array(list(values), TEXT)

    def number(values: Iterable[float], dtype: Any, unit: str) -> tuple[str, np.ndarray, dict]:
        return "attempt", np.array(list(values), dtype), {"units": unit}

    return xr.Dataset(
        {
            "structure_id": text(a.structure_id for a in rows),
            "level_hash": text(a.level_hash for a in rows),
            "status": text(a.status for a in rows),
            "reason": text(a.reason for a in rows),
            "n_atoms": number((len(a.numbers) for a in rows), np.int64, "1"),
            "wall_time": number((a.wall_time_s for a in rows), np.float64, "s"),
            "started": text(a.started for a in rows),
            "host": text(a.host for a in rows),
            "reference": text(a.reference for a in rows),
            "charge": number((a.charge for a in rows), np.int32, "e"),
            "n_unpaired": number((a.n_unpaired for a in rows), np.int32, "1"),
            "n_retries": number((len(a.retries) for a in rows), np.int64, "1"),
            "memory_estimate": number((a.memory_estimate for a in rows), np.float64, "GB"),
            "memory_peak": number((a.memory_peak for a in rows), np.float64, "GB"),
        }
    )


def check_same_level(*datasets: xr.Dataset, allow: Sequence[str] = ()) -> str:
    """Refuse labels of two levels of theory in one training set.

    Parameters
    ----------
    *datasets : Dataset
        Labels.
    allow : sequence of str
        Level hashes that may be mixed, asked for by name.

    Returns
    -------
    str
        The one level hash (that of the first Dataset where mixing was asked for).

    Raises
    ------
    DataError
        Labels that do not say their level, or two levels that were not asked to be mixed.
    """
    levels: dict[str, str] = {}
    for i, ds in enumerate(datasets):
        level = ds.attrs.get("level_hash")
        if not level:
            raise DataError(
                f"labels {i} do not say their level of theory; import them under one: "
                "mofal.reference.import_labels(path, level=...)"
            )
        levels.setdefault(str(level), str(ds.attrs.get("level_of_theory", "")))
    foreign = [level for level in levels if level not in allow]
    if len(levels) > 1 and foreign:
        shown = "; ".join(f"{level} ({_method(text)})" for level, text in levels.items())
        names = ", ".join(repr(level) for level in levels)
        raise DataError(
            f"labels of {len(levels)} levels of theory in one training set: {shown}; "
            f"to mix them all the same: allow=[{names}]"
        )
    versions = [json.loads(d.attrs["versions"]) for d in datasets if "versions" in d.attrs]
    for one, other in pairwise(versions):
        warn_versions(one, other)
    return next(iter(levels), "")


def _method(text: str) -> str:
    try:
        return str(json.loads(text).get("method", "unnamed"))
    except (ValueError, AttributeError):
        return "unnamed"


def import_labels(
    path: str | os.PathLike[str],
    *,
    level: str | Mapping[str, Any] | Reference,
    isolated_atom_energies: Mapping[str, float] | None = None,
    system: str | None = None,
) -> xr.Dataset:
    """Read labelled structures (extxyz and whatever ASE reads) under a level the user states.

    Parameters
    ----------
    path : path
    level : str, mapping or Reference
        A name of the method, or the whole level of theory as a mapping, or the reference whose
        level the labels have (then its own labels may join them).
    isolated_atom_energies : mapping of str to float, optional
        eV at that level. Without them (and without a reference) no potential can be trained.
    system : str, optional
        Name of the system.

    Raises
    ------
    DataError
        A structure without energy or without forces, or a level that is already stated otherwise.
    """
    from mofal.data import read

    _theory(level)  # what cannot be meant is said before anything is read
    return under_level(
        read(path, system=system),
        level=level,
        place=Path(path),
        isolated_atom_energies=isolated_atom_energies,
    )


def _theory(level: str | Mapping[str, Any] | Reference) -> dict[str, Any]:
    """Level of theory of what a user states."""
    if not isinstance(level, str | Mapping | Reference):
        raise DataError(
            f"level = {level!r}; expected the name of the method (level='PBE'), a whole level of "
            "theory as a mapping, or a reference (get_reference('gfn1-xtb'))"
        )
    if isinstance(level, str):
        theory: dict[str, Any] = {"method": level}
    elif isinstance(level, Mapping):
        theory = dict(level)
    else:
        theory = dict(level.level_of_theory)
    if not theory.get("method"):
        raise DataError('the stated level of theory needs a "method"')
    return theory


def under_level(
    ds: xr.Dataset,
    *,
    level: str | Mapping[str, Any] | Reference,
    place: str | os.PathLike[str],
    isolated_atom_energies: Mapping[str, float] | None = None,
) -> xr.Dataset:
    """Put labelled structures under a level the user states; see `import_labels`.

    Parameters
    ----------
    ds : Dataset
        As `mofal.data.read` gives it.
    place : path
        Where it comes from, for messages.

    Raises
    ------
    DataError
        See `import_labels`.
    """
    from mofal.data import validate

    path = place
    atoms = dict(isolated_atom_energies) if isolated_atom_energies else None
    theory = _theory(level)
    level_hash = hash_level(theory)
    if "energy" not in ds or "forces" not in ds:
        raise DataError(f"{Path(path)} holds structures without energy and forces")
    energy = np.isfinite(ds["energy"].values)
    whole = np.ones(len(energy), bool)
    np.logical_and.at(
        whole, ds["structure_index"].values, np.isfinite(ds["forces"].values).all(axis=1)
    )
    bad = np.flatnonzero(~(energy & whole))
    if len(bad):
        raise DataError(
            f"{Path(path)}: {len(bad)} of {len(energy)} structures lack an energy or forces "
            f"(the first is number {bad[0]}); take them out or label them"
        )
    stated = ds.attrs.get("level_hash")
    if stated and stated != level_hash:
        raise DataError(
            f"{Path(path)} says that its level of theory is {stated}, not {level_hash} as stated; "
            f"its own is {ds.attrs.get('level_of_theory', 'not written out')}"
        )
    if atoms is None and not isinstance(level, str | Mapping):
        from ase.data import chemical_symbols

        elements = [chemical_symbols[z] for z in np.unique(ds["numbers"].values)]
        atoms = level.isolated_atom_energies(elements)
    n = len(energy)
    if "status" not in ds or not all(ds["status"].values):
        ds["status"] = ("structure", np.full(n, "converged", TEXT))
    for name, fill in (("reason", np.full(n, "", TEXT)), ("wall_time", np.full(n, np.nan))):
        if name not in ds:
            ds[name] = ("structure", fill)
    if "stress" not in ds:
        ds["stress"] = (("structure", "voigt"), np.full((n, 6), np.nan))
    ds.attrs["level_of_theory"] = json.dumps(theory, sort_keys=True)
    ds.attrs["level_hash"] = level_hash
    if atoms is not None:
        ds.attrs["isolated_atom_energies"] = json.dumps(atoms)
    return validate(ds, "labels")


def merge_labels(*datasets: xr.Dataset, allow: Sequence[str] = ()) -> xr.Dataset:
    """Concatenate labels of one level of theory; two levels only where asked for by name.

    Levels differ in their energy zero. Where they are mixed, energies are moved to that of the
    first one, by the isolated atoms of both, and the attribute `mixed_levels` names all of them.

    Raises
    ------
    DataError
        Nothing given, two levels that were not asked to be mixed, or isolated-atom energies that
        are needed to mix them and not there.
    """
    from mofal.data import concat, relative_energy

    if not datasets:
        raise DataError("no labels given")
    level = check_same_level(*datasets, allow=allow)
    levels = list(dict.fromkeys(str(d.attrs["level_hash"]) for d in datasets))
    atoms: dict[str, float] = {}
    for ds in datasets:
        if ds.attrs["level_hash"] == level:
            atoms.update(json.loads(ds.attrs.get("isolated_atom_energies", "{}")))
    parts = []
    for ds in datasets:
        part = ds.assign_attrs(level_hash=level)
        if ds.attrs["level_hash"] != level:
            zero = ds.assign(energy=("structure", np.zeros(ds.sizes["structure"])))
            zero.attrs["isolated_atom_energies"] = json.dumps(atoms)
            moved = relative_energy(ds) - relative_energy(zero)
            part = part.assign(energy=("structure", moved.values, ds["energy"].attrs))
            part.attrs.pop("isolated_atom_energies", None)
        parts.append(part)
    out = concat(parts)
    out.attrs = {**datasets[0].attrs, "level_hash": level}
    if atoms:
        out.attrs["isolated_atom_energies"] = json.dumps(atoms)
    if len(levels) > 1:
        out.attrs["mixed_levels"] = json.dumps(levels)
    return out
