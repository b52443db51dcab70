"""`mofal set-aside`: have nothing learn from some labels any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mofal.campaign import paths
from mofal.campaign.aside import FORMAT, LIST, by_hand
from mofal.campaign.directory import Site
from mofal.data import read_json, write_json
from mofal.errors import ConfigError
from mofal.schedule import CampaignLock

SHORTEST = 8
"""So many characters of a structure's identity must be given at least."""


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
    names = []
    for k in range(len(site.config.seed_sources)):
        names += [paths.seed(k, "samples.zarr"), paths.seed(k, "labels.zarr")]
    for c in range(1, site.config.cycles + 1):
        for s in site.config.explored:
            names += [paths.place(c, s, "clusters.zarr"), paths.place(c, s, "labels.zarr")]
    for s in site.config.holdout_systems:
        names += [paths.holdout(s, "samples.zarr"), paths.holdout(s, "labels.zarr")]
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
    if all(g.startswith(f"{paths.HOLDOUT}/") for g in groups):
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
        for relative_path in (paths.model(c), paths.control(c)):
            target = site.path(relative_path)
            work = target.with_name(f".{target.name}.training")
            if work.is_dir() and not target.exists():
                shutil.rmtree(work)
                gone.append(relative_path)
    return gone
