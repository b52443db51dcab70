"""Whether the labels of a seed file are what they are said to be.

Where a label is cheap it is made again; else energies are compared with isolated atoms, and forces
with differences of energies between frames of one composition.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign.config import CampaignConfig
from mofal.campaign.seed_file import _and, _take, load_seed_file, open_without_spin
from mofal.data.atoms import _voigt
from mofal.errors import ConfigError, ReferenceError
from mofal.reference import get_reference
from mofal.reference.ase_calculator import AseReference
from mofal.reference.base import refusal

if TYPE_CHECKING:
    import xarray as xr
    from ase import Atoms

    from mofal.campaign.config import CampaignConfig
    from mofal.campaign.seed_file import SeedFrames
    from mofal.reference import Attempt, Reference

ENERGY_EV, ENERGY_PER_ATOM_EV, FORCE_EV_PER_A = 0.01, 0.002, 0.05
"""How far a label may be from the same label made again."""
LONE_ATOM_EV = 0.01
"""How far a single atom may be from the reference's isolated atom."""
BOUND_EV_PER_ATOM = (-25.0, 1.0)
"""Energy per atom less isolated atoms that a structure can have."""
BUDGET_S = 5.0
"""How long labels are made again for; the first one counts in any case."""
CHEAP_ATOMS = {"xtb": 150, "other": 40}
OTHER_LIMIT_S = 30.0

NEAR_A = 0.5
"""Frames further apart (RMS over the atoms) say nothing about each other's forces."""

_EV = {"Hartree": 27.211386, "Rydberg": 13.605693, "kcal/mol": 0.0433641, "kJ/mol": 0.0103643}
_FORCE = {"Hartree/Bohr": 51.422067, "Rydberg/Bohr": 25.711034, "kcal/mol/Å": 0.0433641}
_ANEW = "mend the file, or write `labels: ignore` under seed_data to have it labelled anew"


# ---------------------------------------------------------------------------------- single atoms
def check_lone_atoms(found: SeedFrames, config: CampaignConfig, reference: Reference) -> str:
    """Compare single atoms of the file with the reference's isolated atoms; say what they are.

    Raises
    ------
    ConfigError
        An energy that differs, or two of one element that do, where the labels are to be taken.
    """
    symbols = [str(atoms.symbols) for _, atoms, _ in found.lone]
    shown = f"{found.file}: single atoms ({', '.join(dict.fromkeys(symbols))}) are not trained on"
    energies = {
        k: float(labels["energy"])
        for k, _, labels in found.lone
        if np.ndim(labels.get("energy", [])) == 0
    }
    if config.seed_data.labels == "ignore" or not energies:
        return shown
    try:
        known = reference.isolated_atom_energies(sorted(set(symbols)))
    except ReferenceError as error:
        raise ConfigError(f"{found.file}: {error}") from None
    for (k, atoms, _), symbol in zip(found.lone, symbols):
        if atoms.info.get("charge") or atoms.info.get("n_unpaired", 0) > 1:
            continue  # an ion, or a spin that the isolated atom of xTB does not have
        if k in energies and not abs(energies[k] - known[symbol]) <= LONE_ATOM_EV:
            hint = _unit_hint(energies[k], known[symbol], _EV, LONE_ATOM_EV)
            raise ConfigError(
                f"{found.file}, structure {k}: a single {symbol} of {energies[k]:.4f} eV, the "
                f"isolated {symbol} of {config.reference.name} has {known[symbol]:.4f} eV{hint}; "
                f"take it out where it is of another spin state; else {_ANEW}"
            )
    return f"{shown}; their energies are those of isolated atoms at {config.reference.name}"


# ---------------------------------------------------------------------------------- labels
def check_labels(found: SeedFrames, config: CampaignConfig, reference: Reference) -> list[str]:
    """Test labels that are said to be the reference's.

    Returns
    -------
    list of str
        What was tested, in one line.

    Raises
    ------
    ConfigError
        A label that is not, with both numbers.
    """
    from ase.data import chemical_symbols

    elements = {chemical_symbols[z] for f in found.frames for z in f.numbers.tolist()}
    isolated = reference.isolated_atom_energies(sorted(elements))
    sums = [sum(isolated[s] for s in f.get_chemical_symbols()) for f in found.frames]
    energy = np.array([float(one["energy"]) for one in found.labels])
    per_atom = (energy - sums) / [len(f) for f in found.frames]
    remade = _remake(found, config, reference, per_atom, sums)
    low, high = BOUND_EV_PER_ATOM
    for k, index in enumerate(found.index):
        if k not in remade and not low <= per_atom[k] <= high:
            raise ConfigError(
                f"{found.file}, structure {index}: its energy is {energy[k]:.3f} eV, its isolated "
                f"atoms have {sums[k]:.3f} eV in sum, {-per_atom[k]:+.1f} eV per atom of binding "
                f"(expected {-high:g} to {-low:g}){_bound_hint(energy[k], sums[k])}; {_ANEW}"
            )
    if len(remade) < len(found.frames):
        check_gradients(found)
    n = len(remade)
    if not n:
        return [f"{found.file}: no label was made again (not cheap); bounds hold"]
    return [
        f"{found.file}: {n} of {len(found.frames)} labels made again at {config.reference.name}, "
        "as stated"
    ]


def _remake(
    found: SeedFrames,
    config: CampaignConfig,
    reference: Reference,
    per_atom: np.ndarray,
    sums: Sequence[float],
) -> set[int]:
    """Make cheap labels again, the most suspicious first; which ones were."""
    if not isinstance(reference, AseReference):
        return set()
    xtb = reference.name.startswith("gfn")
    size = np.array([len(f) for f in found.frames])
    cheap = np.flatnonzero(size <= CHEAP_ATOMS["xtb" if xtb else "other"])
    if not len(cheap):
        return set()
    push = np.array([np.abs(one["forces"]).max() for one in found.labels])
    odd = np.abs(per_atom - np.median(per_atom))
    first = [int(cheap[np.argmax(v[cheap])]) for v in (odd, push)]
    smallest = cheap[np.argsort(size[cheap], kind="stable")].tolist()
    # The smallest of all at first: that one is made whatever it takes.
    order = dict.fromkeys([smallest[0], *first, *smallest])
    done: set[int] = set()
    start = time.perf_counter()
    for k in order:
        if done and (not xtb or time.perf_counter() - start > BUDGET_S):
            break
        attempt = _label(reference, found.frames[k], xtb=xtb)
        if attempt.converged:
            _compare(found, config, k, attempt, sums[k])
            done.add(k)
        elif not xtb:
            break
    return done


def _label(reference: Any, atoms: Atoms, *, xtb: bool) -> Attempt:
    if xtb:
        attempt: Attempt = reference.calculate_here(atoms)
        return attempt
    import tempfile

    limited = get_reference(reference.spec, time_limit_s=OTHER_LIMIT_S)
    with tempfile.TemporaryDirectory() as directory:
        return limited.calculate(atoms, directory=directory)


def _compare(
    found: SeedFrames, config: CampaignConfig, k: int, attempt: Attempt, isolated: float
) -> None:
    """Refuse a label that differs from the same one made again."""
    stated = float(found.labels[k]["energy"])
    forces = np.asarray(found.labels[k]["forces"], np.float64)
    n = len(forces)
    name = config.reference.name
    place = f"{found.file}, structure {found.index[k]}"
    within = ENERGY_EV + ENERGY_PER_ATOM_EV * n
    if not abs(stated - attempt.energy) <= within:
        hint = _unit_hint(stated, attempt.energy, _EV, within)
        if abs(stated + isolated - attempt.energy) <= within:
            hint = ": it looks like the energy relative to isolated atoms"
        elif abs(stated * n - attempt.energy) <= within:
            hint = ": it looks like the energy per atom"
        raise ConfigError(
            f"{place}: its energy is {stated:.4f} eV, {name} gives {attempt.energy:.4f} eV{hint}; "
            f"{_ANEW}"
        )
    difference = np.abs(forces - attempt.forces).max()
    if not difference <= FORCE_EV_PER_A:
        a, c = np.unravel_index(np.abs(forces - attempt.forces).argmax(), forces.shape)
        raise ConfigError(
            f"{place}: a force on atom {a} is {forces[a, c]:.3f} eV/Å, {name} gives "
            f"{attempt.forces[a, c]:.3f} eV/Å{_force_hint(forces, attempt.forces)}; {_ANEW}"
        )
    stress = found.labels[k].get("stress")
    if stress is None or not np.isfinite(attempt.stress).all():
        return
    given = _voigt(stress).reshape(-1)
    if given.shape == (9,):
        given = _voigt(given.reshape(3, 3))
    if given.shape != (6,) or not np.allclose(given, attempt.stress, atol=1e-3, rtol=0.05):
        sign = np.allclose(-given, attempt.stress, atol=1e-3, rtol=0.05)
        raise ConfigError(
            f"{place}: its stress is {np.round(given, 5).tolist()} eV/Å³, {name} gives "
            f"{np.round(attempt.stress, 5).tolist()}"
            f"{': it has the other sign' if sign else ''}; {_ANEW}"
        )


def _unit_hint(stated: float, right: float, units: dict[str, float], within: float) -> str:
    for unit, value in units.items():
        if abs(stated * value - right) <= max(within, 1e-4 * abs(right)):
            return f": it looks like {unit}"
    return ""


def _bound_hint(energy: float, isolated: float) -> str:
    if isolated and abs(energy) < 0.5 * abs(isolated):
        return ": it looks relative to isolated atoms, or in another unit (Hartree, Rydberg)"
    if isolated and abs(energy) > 2 * abs(isolated):
        return ": it looks like another unit (kcal/mol, kJ/mol)"
    return ""


def _force_hint(stated: np.ndarray, right: np.ndarray) -> str:
    near = FORCE_EV_PER_A + 1e-3 * np.abs(right).max()
    if np.abs(stated + right).max() <= near:
        return ": they have the other sign (gradients?)"
    for unit, value in _FORCE.items():
        if np.abs(stated * value - right).max() <= near:
            return f": they look like {unit}"
        if np.abs(stated * value + right).max() <= near:
            return f": they look like gradients in {unit}"
    size = [np.sort(np.linalg.norm(v, axis=1)) for v in (stated, right)]
    if np.abs(size[0] - size[1]).max() <= near:
        return ": they are those of other atoms (another order of atoms?)"
    return ""


# ---------------------------------------------------------------------------------- gradients
def check_gradients(found: SeedFrames) -> None:
    """Compare forces with differences of energies between near frames of one composition.

    Between two frames the energy falls by the work of the mean of both forces, exactly so where the
    energy is quadratic in the positions. Frames of other cells, or too few of them, say nothing.

    Raises
    ------
    ConfigError
        Forces that do not belong to the energies: of the other sign, in another unit, of other
        atoms, or of a few frames alone.
    """
    groups: dict[Any, list[int]] = {}
    for k, frame in enumerate(found.frames):
        cell = np.round(frame.cell[:], 4).tobytes() if frame.pbc.any() else b""
        groups.setdefault((frame.numbers.tobytes(), frame.pbc.tobytes(), cell), []).append(k)
    for members in groups.values():
        if len(members) >= 4:
            _check_group(found, members[:500])


def _check_group(found: SeedFrames, members: list[int]) -> None:
    energy = np.array([float(found.labels[k]["energy"]) for k in members])
    positions, forces = _aligned(found, members)
    m = len(members)
    flat = positions.reshape(m, -1)
    square = (flat**2).sum(1)
    distance = square[:, None] + square[None, :] - 2 * flat @ flat.T
    np.fill_diagonal(distance, np.inf)
    # Isomers, or the same atoms in another order, are no neighbours.
    close = distance.min(axis=1) < NEAR_A**2 * positions.shape[1]
    if not close.all():
        if close.sum() >= 4:
            _check_group(found, [k for k, c in zip(members, close) if c])
        return
    near = np.argsort(distance, axis=1, kind="stable")[:, : min(5, m - 1)]
    i = np.repeat(np.arange(m), near.shape[1])
    j = near.ravel()
    step = flat[j] - flat[i]
    f = forces.reshape(m, -1)
    expected = -0.5 * ((f[i] + f[j]) * step).sum(1)
    found_difference = energy[j] - energy[i]
    if np.abs(found_difference).max() < 0.02:
        return
    residual = np.abs(found_difference - expected).reshape(near.shape)
    per_frame = np.median(residual, axis=1)
    typical = np.median(per_frame)
    odd = np.flatnonzero((per_frame > 8 * typical) & (per_frame > 0.5))
    good = ~(np.isin(i, odd) | np.isin(j, odd)) if len(odd) <= m // 4 else np.ones(len(i), bool)
    agreement, slope = _slope(expected[good], found_difference[good])
    if agreement > 0.5 and 0.5 < slope < 1.4:
        if good.all():
            return
        k = int(odd[np.argmax(per_frame[odd])])
        pair = int(np.argsort(residual[k])[near.shape[1] // 2])
        at = k * near.shape[1] + pair
        raise ConfigError(
            f"{found.file}, structure {found.index[members[k]]}: its energy differs by "
            f"{-found_difference[at]:.3f} eV from that of structure "
            f"{found.index[members[int(near[k, pair])]]}, by the forces of both it should be "
            f"{-expected[at]:.3f} eV (elsewhere the two agree within {typical:.3f} eV); {_ANEW}"
        )
    worst = int(np.abs(found_difference).argmax())
    why = "they are those of other atoms, or of another level"
    if agreement < -0.7 and -1.4 < slope < -0.5:
        why = "they have the other sign (gradients?)"
    elif agreement > 0.7:
        why = f"energies or forces are in another unit (a factor of {slope:.3g})"
    raise ConfigError(
        f"{found.file}: forces do not belong to the energies: from structure "
        f"{found.index[members[int(i[worst])]]} to {found.index[members[int(j[worst])]]} "
        f"the energy changes by {found_difference[worst]:.3f} eV, by the forces of both it should "
        f"change by {expected[worst]:.3f} eV; {why}; {_ANEW}"
    )


def _slope(expected: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """How well two sets of differences agree (1: in proportion), and their factor."""
    both = float(expected @ found)
    square = float(expected @ expected)
    scale = (square * float(found @ found)) ** 0.5
    return (both / scale if scale else 0.0), (both / square if square else 0.0)


def _aligned(found: SeedFrames, members: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Positions and forces of frames, moved (and turned, if finite) onto the first: (m, n, 3)."""
    first = found.frames[members[0]]
    origin = first.positions - first.positions.mean(axis=0)
    where, push = [], []
    for k in members:
        frame = found.frames[k]
        f = np.asarray(found.labels[k]["forces"], np.float64)
        if frame.pbc.any():
            from ase.geometry import find_mic

            moved, _ = find_mic(frame.positions - first.positions, frame.cell, frame.pbc)
            where.append(origin + moved - moved.mean(axis=0))
            push.append(f)
            continue
        x = frame.positions - frame.positions.mean(axis=0)
        u, _, vt = np.linalg.svd(x.T @ origin)
        turn = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt)) or 1.0]) @ vt
        where.append(x @ turn)
        push.append(f @ turn)
    return np.array(where), np.array(push)


def check_seed_file(
    config: CampaignConfig, reference: Reference | None
) -> tuple[xr.Dataset, list[str]]:
    """Read a seed file and test what it says: single atoms, the stated level, what can be labelled.

    Returns
    -------
    seed, notes
        As of `read_seed_file`, and lines that a person should see.

    Raises
    ------
    ConfigError
        As `read_seed_file`; or labels that are not what they are said to be.
    """
    found = load_seed_file(config)
    taken = _take(found, config, reference)
    notes: list[str] = []
    if reference is None:
        return taken, notes
    if found.lone:
        notes.append(check_lone_atoms(found, config, reference))
    others = [k for names in found.keys.values() for k in names]
    if "energy" in taken:
        if others:
            notes.append(f"{found.file} also holds {_and(others)}, which are not looked at")
        notes += check_labels(found, config, reference)
        return taken, notes
    silent = open_without_spin(found.frames)
    if silent:
        notes.append(f"{found.file}: {silent}")
    for k, frame in zip(found.index, found.frames):
        reason = refusal(reference, frame)
        if reason:
            raise ConfigError(
                f"{found.file}, structure {k}: {config.reference.name} does not label it: {reason}"
            )
    return taken, notes
