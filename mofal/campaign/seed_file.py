"""Seed data from a file: whose labels are taken, what is left out, and what is refused.

Reading is cheap and done wherever the data is needed. Whether the labels are what they are said to
be is looked at once, before anything is paid for (`check_seed_file`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign.config import CampaignConfig
from mofal.data import from_atoms
from mofal.data.atoms import IDENTITY_ATTRS
from mofal.data.electrons import electronic_state
from mofal.data.text import of_frames
from mofal.data.variables import VARIABLES
from mofal.errors import ConfigError, DataError, ReferenceError, StructureError
from mofal.frameworks.reader import read_frames
from mofal.reference.tables import under_level

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

    from mofal.reference import Reference

ALONE_A = 6.0
"""An atom of a periodic cell is alone where its images are further away than this."""

_WORDS = {"energy": ("energ",), "forces": ("forc",), "stress": ("stress", "virial")}


@dataclass
class SeedFrames:
    """A seed file as it is read: what will be learnt from, and atoms that stand alone.

    Attributes
    ----------
    frames, labels, index : list
        Structures, their energy, forces and stress as far as they are there, and their numbers in
        the file.
    lone : list of (int, Atoms, dict)
        Single atoms: number in the file, atom, labels.
    keys : dict
        Names of foreign keys that look like labels, by what they look like.
    """

    file: Path
    frames: list[Atoms] = field(default_factory=list)
    labels: list[dict[str, Any]] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    lone: list[tuple[int, Atoms, dict[str, Any]]] = field(default_factory=list)
    keys: dict[str, list[str]] = field(default_factory=dict)


def read_seed_file(config: CampaignConfig, reference: Reference | None) -> xr.Dataset:
    """Given seed data: labelled at the reference's level, or structures still to be labelled.

    Labels whose level of theory nobody states are refused, and so is a file that has labels for
    some structures only: a group of the campaign is labelled as a whole or not at all. Single atoms
    are left out: there is nothing to be learnt from them.

    Parameters
    ----------
    config : CampaignConfig
        With `seed_data.file`; its `labels` and `keys` say how labels in the file are taken.
    reference : Reference or None
        The campaign's; None: not to be imported now, the labels are left out.

    Returns
    -------
    Dataset
        Of kind ``labels`` or ``structures``.

    Raises
    ------
    ConfigError
        Labels that are not of the reference's level, do not say their level, or are not whole;
        labels under names of another program; or an element that the reference cannot do.
    StructureError
        The file cannot be read.
    """
    return _take(load_seed_file(config), config, reference)


def open_without_spin(frames: list[Atoms]) -> str:
    """Say that metals that are often open-shell stand in structures that state no spin, or ""."""
    from ase.data import chemical_symbols

    from mofal.clusters.electrons import OFTEN_OPEN

    silent = [f for f in frames if set(f.numbers.tolist()) & OFTEN_OPEN]
    silent = [f for f in silent if not electronic_state(f)[1]]
    metals = sorted({z for f in silent for z in f.numbers.tolist()} & OFTEN_OPEN)
    if not metals:
        return ""
    return (
        f"{len(silent)} structures with {_and([chemical_symbols[z] for z in metals])}, often "
        "open-shell, state no unpaired electrons (n_unpaired=...): labelled with as few as can be"
    )


def load_seed_file(config: CampaignConfig) -> SeedFrames:
    """Read the file, find its labels under whatever name, and set single atoms apart."""
    file, keys = config.seed_data.file, config.seed_data.keys
    assert file is not None  # who calls has looked
    out = SeedFrames(Path(file))
    frames = read_frames(Path(file))
    for frame in frames:
        frame.info.pop("reading", None)  # notes of the reader of CIF files, no label
    given = {} if keys is None else {k: v for k, v in keys.model_dump().items() if v is not None}
    out.keys = _foreign(frames, set(given.values()))
    for kind, name in given.items():
        if not any(_value(f, kind, name) is not None for f in frames):
            there = [k for names in _foreign(frames, set()).values() for k in names]
            raise ConfigError(
                f"seed_data.keys: {file} has no {kind} called {name!r}; "
                f"it holds {_and(there) if there else 'none under a name of its own'}"
            )
    for k, frame in enumerate(frames):
        try:
            charge, n_unpaired = electronic_state(frame)
        except DataError as error:
            raise StructureError(f"{file}: structure {k}: {error}") from None
        # Said once and for all: what a calculator has found goes away with its labels.
        frame.info.update({n: v for n, v in (("charge", charge), ("n_unpaired", n_unpaired)) if v})
        found = _results(frame, given)
        if len(frame) == 1 and _is_alone(frame):
            out.lone.append((k, frame, found))
            continue
        out.frames.append(frame)
        out.labels.append(found)
        out.index.append(k)
    return out


def _take(found: SeedFrames, config: CampaignConfig, reference: Reference | None) -> xr.Dataset:
    file, stated = found.file, config.seed_data.labels
    anew = "to have all its structures labelled anew, write `labels: ignore` under seed_data"
    frames, labels, index = found.frames, found.labels, found.index
    if not frames:
        symbols = _and(sorted({str(a.symbols) for _, a, _ in found.lone}))
        raise ConfigError(f"{file} holds nothing but single atoms ({symbols}); nothing is learnt")
    whole = all("energy" in one and "forces" in one for one in labels)
    if not whole and found.keys and stated != "ignore" and config.seed_data.keys is None:
        raise ConfigError(_named(found, config, anew))
    if stated == "ignore" or (stated is None and not any(labels)):
        return _unlabelled(frames, file)
    faults: dict[str, list[int]] = {}
    for k, frame, one in zip(index, frames, labels):
        for name, shape in (("energy", ()), ("forces", (len(frame), 3))):
            fault = _fault(one.get(name), shape)
            if fault:
                faults.setdefault(f"{name} {fault}", []).append(k)
    if faults:
        shown = "; ".join(f"{fault} in {_listed(ks)}" for fault, ks in faults.items())
        raise ConfigError(
            f"{file} is not labelled as a whole: {shown} (counted from 0, there are "
            f"{len(frames) + len(found.lone)}); take what lacks labels out of the file, or, {anew}"
        )
    silent = [k for k, frame in zip(index, frames) if "level_hash" not in frame.info]
    if stated is None and silent:
        raise ConfigError(
            f"{file} holds labels that do not say their level of theory (in {_listed(silent)}); "
            f"if they were made with reference {config.reference.name}, write "
            f"`labels: reference` under seed_data; {anew}"
        )
    if reference is None:
        return _unlabelled(frames, file)
    try:
        ds = of_frames([_labelled(f, one) for f, one in zip(frames, labels)], file, labelled=True)
        return under_level(ds, level=reference, place=file)
    except (DataError, StructureError) as error:
        raise ConfigError(f"{error}; {anew}") from None
    except ReferenceError as error:
        raise ConfigError(f"{file}: {error}") from None


_LABELS = (
    *("energy", "forces", "stress", "status", "reason", "wall_time"),
    *("level_of_theory", "level_hash", "isolated_atom_energies"),
)


def _results(frame: Atoms, keys: dict[str, str]) -> dict[str, Any]:
    """Energy, forces and stress that came with a structure, wherever a reader has put them."""
    found = {
        "energy": frame.info.get("energy"),
        "forces": frame.arrays.get("forces"),
        "stress": frame.info.get("stress"),
    }
    results = getattr(frame.calc, "results", {})
    found.update({k: results[k] for k in found if results.get(k) is not None})
    if keys:
        # Whoever names some names all: an energy of one program beside forces of another is none.
        found = {k: _value(frame, k, v) for k, v in keys.items()}
    return {k: v for k, v in found.items() if v is not None}


def _value(frame: Atoms, kind: str, name: str) -> Any:
    """What a structure holds under a name; ASE's reader has made results of the names it knows."""
    place = frame.arrays if kind == "forces" else frame.info
    return place.get(name, getattr(frame.calc, "results", {}).get(name))


def _labelled(frame: Atoms, found: dict[str, Any]) -> Atoms:
    from ase.calculators.singlepoint import SinglePointCalculator

    out = frame.copy()
    for name in ("energy", "forces", "stress"):
        out.info.pop(name, None)
        out.arrays.pop(name, None)
    out.calc = SinglePointCalculator(out, **found)
    return out


def _foreign(frames: list[Atoms], taken: set[str]) -> dict[str, list[str]]:
    """Keys that look like energies, forces or stresses and have another name than ours or ASE's."""
    known = {*VARIABLES, *IDENTITY_ATTRS, *taken, "energies", "stresses"}
    out: dict[str, dict[str, None]] = {}
    for frame in frames:
        shapes = {k: np.shape(v) for k, v in frame.info.items() if _numeric(v)}
        shapes |= {k: ("atom", *v.shape[1:]) for k, v in frame.arrays.items() if _numeric(v)}
        for name, shape in shapes.items():
            if name in known:
                continue
            for kind, words in _WORDS.items():
                fits = {
                    "energy": shape == (),
                    "forces": shape == ("atom", 3),
                    "stress": shape in ((6,), (9,), (3, 3)),
                }[kind]
                if fits and any(word in name.lower() for word in words):
                    out.setdefault(kind, {})[name] = None
    return {kind: list(names) for kind, names in out.items()}


def _numeric(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "fiu" and not isinstance(value, bool)


def _named(found: SeedFrames, config: CampaignConfig, anew: str) -> str:
    names = [k for kind in found.keys.values() for k in kind]
    own = set.intersection(*(set(one) for one in found.labels))
    pick = {k: found.keys[k][0] for k in ("energy", "forces") if k in found.keys}
    pick |= {k: k for k in ("energy", "forces") if k in own and k not in pick}
    text = f"{found.file} holds {_and(names)}; "
    if {"energy", "forces"} <= set(pick):
        line = ", ".join(f"{k}: {pick[k]}" for k in ("energy", "forces"))
        text += (
            f"if they were made with reference {config.reference.name}, write "
            f"`keys: {{{line}}}` and `labels: reference` under seed_data; "
        )
    else:
        lacks = " and ".join(k for k in ("energy", "forces") if k not in pick)
        text += f"labels also need {lacks}; "
    return text + anew


def _fault(value: Any, shape: tuple[int, ...]) -> str:
    """What is wrong with an energy or with forces; "" where nothing is."""
    if value is None:
        return "missing"
    try:
        numbers = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return "not a number"
    # Looked at here, since NumPy would spread one number per atom over x, y and z.
    if numbers.shape != shape:
        return "of a foreign shape"
    return "" if np.isfinite(numbers).all() else "NaN or infinite"


def _is_alone(atoms: Atoms) -> bool:
    """Whether a single atom has no image near it."""
    if not atoms.pbc.any():
        return True
    from ase.geometry import minkowski_reduce

    cell = minkowski_reduce(atoms.cell[:], pbc=atoms.pbc)[0]
    return bool(np.linalg.norm(cell, axis=1)[atoms.pbc].min() > ALONE_A)


def _listed(indices: list[int]) -> str:
    some = ", ".join(map(str, indices[:5]))
    more = f", ... ({len(indices)} of them)" if len(indices) > 5 else ""
    return f"structure{'s' if len(indices) > 1 else ''} {some}{more}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _unlabelled(frames: list[Atoms], file: Path) -> xr.Dataset:
    """Structures alone; whatever stood in the labels is not looked at."""
    for frame in frames:
        frame.calc = None
        for name in _LABELS:
            frame.info.pop(name, None)
            frame.arrays.pop(name, None)
    try:
        return from_atoms(frames, system=[str(f.info.get("system", file.stem)) for f in frames])
    except DataError as error:
        raise StructureError(f"{file}: {error}") from None
