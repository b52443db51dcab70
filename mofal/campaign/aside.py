"""Labels that nothing learns from: those that cannot be true, and those that a person takes out.

A group of labels is never changed. So what a person sets aside stands in a small list beside them,
``set-aside.json``, which is read wherever labels are about to be learnt from or judged by.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import plan
from mofal.errors import ConfigError, StoreError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.campaign.config import ReferenceSettings
    from mofal.campaign.site import Site

LIST = "set-aside.json"
FORMAT = 1
SHORTEST = 8
"""So many characters of a structure's identity must be given at least."""

_TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


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
    from mofal.data import relative_energy
    from mofal.errors import DataError

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
            status=("structure", np.array(status, _TEXT)),
            reason=("structure", np.array(reason, _TEXT)),
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
    from mofal.data import read_json

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


def take_out(
    directory: str | os.PathLike[str],
    identities: Sequence[str],
    *,
    reason: str,
    back: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """`mofal set-aside`: have nothing learn from some labels any more.

    Parameters
    ----------
    directory : path
        Of the campaign; no driver may run in it.
    identities : sequence of str
        ``structure_id`` of the labels, or the first characters of one. None: the list is shown.
    reason : str
        One line, kept with it.
    back : bool
        Take them back instead.

    Raises
    ------
    CampaignError
        There is no campaign, or a driver runs in it.
    ConfigError
        No such structure, or none that is meant alone.
    """
    from mofal.campaign.site import Site
    from mofal.data import read_json, write_json
    from mofal.schedule import CampaignLock

    site = Site(directory)
    site.facts  # noqa: B018  a directory without a campaign is refused here
    if not identities:
        for identity, why in by_hand(site.root).items():
            say(f"{identity}  {why}")
        return
    if not back and not reason.strip():
        raise ConfigError('say why, for whoever asks later: --reason "..."')
    known = _known(site)
    chosen = [_whole(given, known) for given in identities]
    with CampaignLock(site.root):
        listed = by_hand(site.root)
        entries = read_json(site.root / LIST)["structures"] if listed else {}
        for identity in chosen:
            if back:
                if entries.pop(identity, None) is None:
                    raise ConfigError(f"{identity} is not set aside by hand")
            else:
                since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                entries[identity] = {"reason": " ".join(reason.split()), "since": since}
        dropped = _drop_checkpoints(site)
        write_json({"mofal_format": FORMAT, "structures": entries}, site.root / LIST)
    for identity in chosen:
        say(f"{identity} {'is learnt from again' if back else 'is set aside'}")
        say(f"  {_consequence(site, known[identity])}")
    if dropped:
        say(f"training begun before starts over: {', '.join(dropped)}")


def _known(site: Site) -> dict[str, list[str]]:
    """Paths, relative to the campaign, of the groups that each structure is in."""
    names = [plan.place(0, "samples.zarr"), plan.place(0, "labels.zarr")]
    for c in range(1, site.config.cycles + 1):
        for s in site.config.explored:
            names += [plan.place(c, s, "clusters.zarr"), plan.place(c, s, "labels.zarr")]
    for s in site.config.holdout_systems:
        names += [plan.holdout(s, "samples.zarr"), plan.holdout(s, "labels.zarr")]
    out: dict[str, list[str]] = {}
    for relative_path in names:
        if site.exists(relative_path):
            for identity in site.group(relative_path)["structure_id"].values:
                out.setdefault(str(identity), []).append(relative_path)
    return out


def _whole(given: str, known: Mapping[str, Any]) -> str:
    found = [k for k in known if k.startswith(given)] if len(given) >= SHORTEST else []
    if given in known:
        return given
    if len(given) < SHORTEST:
        raise ConfigError(f"{given!r} is too short; give at least {SHORTEST} characters")
    if len(found) != 1:
        what = "no structure" if not found else f"{len(found)} structures"
        raise ConfigError(
            f"{given} is the beginning of {what} of this campaign; the identities are "
            'mofal.open(DIR).labels["structure_id"]'
        )
    return found[0]


def _consequence(site: Site, groups: Sequence[str]) -> str:
    """What follows from setting a label aside, in one line."""
    if all(g.startswith(f"{plan.HOLDOUT}/") for g in groups):
        return "judgements that are made from now on leave it out; those that are there stay"
    labelled = [g for g in groups if g.endswith("labels.zarr")]
    first = min((int(g.split("/")[0].removeprefix("cycle-")) for g in groups), default=0)
    learnt = list(range(first, site.finished_cycles() + 1)) if labelled else []
    upcoming = site.finished_cycles() + 1
    text = "no model has learnt from it"
    if learnt:
        shown = str(learnt[0]) if len(learnt) == 1 else f"{learnt[0]} to {learnt[-1]}"
        text = f"the model of cycle {shown} has learnt from it and stays as it is"
    if upcoming > site.last_cycle():
        return f"{text}; no training is left: raise `cycles` for one without it, or begin anew"
    return f"{text}; the training of cycle {upcoming} goes by the list"


def _drop_checkpoints(site: Site) -> list[str]:
    """Delete what unfinished trainings have left: they learn from other data now."""
    import shutil

    gone = []
    for c in range(site.config.cycles + 1):
        for relative_path in (plan.model(c), plan.control(c)):
            target = site.path(relative_path)
            work = target.with_name(f".{target.name}.training")
            if work.is_dir() and not target.exists():
                shutil.rmtree(work)
                gone.append(relative_path)
    return gone
