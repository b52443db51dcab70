"""Labels that nothing learns from: those that cannot be true, and those that a person takes out.

A group of labels is never changed. So what a person sets aside stands in a small list beside them,
``set-aside.json``, which is read wherever labels are about to be learnt from or judged by.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.data import read_json, relative_energy
from mofal.data.variables import STRING
from mofal.errors import DataError, StoreError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.config import ReferenceSettings

LIST = "set-aside.json"
FORMAT = 1


# ---------------------------------------------------------------------------------- what is absurd
def absurdities(labels: xr.Dataset, settings: ReferenceSettings) -> list[str]:
    """Why a label cannot be learnt from, for each structure; "" where it can.

    Parameters
    ----------
    labels : Dataset of kind ``labels``
        With the isolated-atom energies of the level, else energies are looked at as they are only
        for being finite.
    settings : ReferenceSettings
        Limits: eV/Å, and eV per atom from the isolated atoms.
    """
    energy = labels["energy"].values
    forces = labels["forces"].values
    n_atoms = labels["n_atoms"].values
    with np.errstate(over="ignore", invalid="ignore"):
        size = np.linalg.norm(forces, axis=1)
        binding = relative(labels) / np.maximum(n_atoms, 1)
    largest = np.zeros(len(energy))
    np.fmax.at(largest, labels["structure_index"].values, size)
    whole = np.ones(len(energy), bool)
    np.logical_and.at(whole, labels["structure_index"].values, np.isfinite(forces).all(axis=1))
    out = []
    for e, b, f, ok in zip(energy, binding, largest, whole):
        if not np.isfinite(e):
            why = f"an energy of {e} eV"
        elif not ok:
            why = "forces that are not finite"
        elif f > settings.max_force_eV_per_A:
            why = f"a force of {_short(f)} eV/Å, the limit is {settings.max_force_eV_per_A:g}"
        elif abs(b) > settings.max_energy_eV_per_atom:
            why = (
                f"an energy of {_short(b)} eV per atom from the isolated atoms, "
                f"the limit is {settings.max_energy_eV_per_atom:g}"
            )
        else:
            why = ""
        out.append(why)
    return out


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1e6 else f"{value:.1e}"


def relative(labels: xr.Dataset) -> np.ndarray:
    """Energies from the isolated atoms, eV; zero where those are not known."""
    try:
        return np.asarray(relative_energy(labels).values, np.float64)
    except DataError:
        return np.zeros(labels.sizes["structure"])


def set_aside(
    labels: xr.Dataset, settings: ReferenceSettings, by_hand: Mapping[str, str]
) -> tuple[xr.Dataset, list[str]]:
    """Mark converged labels that nothing is to learn from.

    Returns
    -------
    labels, reasons
        The labels with status ``set_aside`` and a reason, and those reasons.
    """
    status = [str(s) for s in labels["status"].values]
    ids = [str(s) for s in labels["structure_id"].values]
    reason = [str(s) for s in labels["reason"].values] if "reason" in labels else [""] * len(status)
    said = []
    for k, why in enumerate(absurdities(labels, settings)):
        if status[k] != "converged":
            continue
        if ids[k] in by_hand:
            why = f"by hand: {by_hand[ids[k]]}"
        if why:
            status[k], reason[k] = "set_aside", why
            said.append(why)
    return (
        labels.assign(
            status=("structure", np.array(status, STRING)),
            reason=("structure", np.array(reason, STRING)),
        ),
        said,
    )


# ---------------------------------------------------------------------------------- by hand
def by_hand(root: Path) -> dict[str, str]:
    """What a person has set aside: reason by identity of the structure.

    Raises
    ------
    StoreError
        The list is there and cannot be read.
    """
    file = root / LIST
    try:
        content = read_json(file)
    except StoreError:
        if not os.path.lexists(file):
            return {}
        raise
    entries = content.get("structures") if isinstance(content, dict) else None
    if not isinstance(entries, dict):
        raise StoreError(f"{file} is damaged: it holds no structures; mend it or take it away")
    if int(content.get("mofal_format", 0)) > FORMAT:
        raise StoreError(f"{file} was written by a newer mofal: pip install --upgrade mofal")
    return {str(k): str(v.get("reason", "")) for k, v in entries.items()}
