"""`mofal watch`: what did a trajectory from elsewhere meet that its potential does not know?"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mofal.campaign.directory import CONFIG
from mofal.campaign.familiar import campaign_known, campaign_settings, same_system
from mofal.campaign.joining import join_cycle
from mofal.campaign.steps.label import only_one
from mofal.campaign.view import CampaignView, open_campaign
from mofal.data import open_group, read_json
from mofal.errors import CampaignError, ConfigError
from mofal.potential.base import require_elements, symbols_of
from mofal.trajectories import FittedKnown, WatchSettings, open_known, open_trajectory, watch
from mofal.trajectories.cutting import GROUP, REFUSED, TEXT_FILE, parents_of
from mofal.trajectories.frames import Trajectory, read_frame
from mofal.trajectories.known import Known
from mofal.trajectories.scores import Scores
from mofal.trajectories.watching import without_frames

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

Say = Callable[[str], None]


def watch_file(
    trajectory: str | os.PathLike[str],
    *,
    potential: str,
    density: str | None = None,
    types: Sequence[str] | None = None,
    structure: str | None = None,
    directory: str | os.PathLike[str] | None = None,
    follow: bool = False,
    until_idle_s: float | None = None,
    workers: int | None = None,
    device: str = "cpu",
    next_cycle: bool = False,
    say: Say = print,
    **settings: Any,
) -> xr.Dataset:
    """`mofal watch`: score a trajectory, draw what was unfamiliar, cut it out.

    Parameters
    ----------
    trajectory : path
        See `mofal.trajectories.open_trajectory`.
    potential : path
        A campaign, an export with its density, or a model directory with `density`.
    density : path, optional
    types : sequence of str, optional
        Elements of the types of a LAMMPS dump.
    structure : path, optional
        The same atoms at rest, in whose bonds blocks are found.
    directory : path, optional
        Default: ``<trajectory>.watch``.
    follow, until_idle_s, workers
        See `mofal.trajectories.watch`.
    device : str
    next_cycle : bool
        Make the clusters those of the campaign's next cycle.
    **settings
        Of `WatchSettings`; None: what the campaign has, else the default.

    Returns
    -------
    xarray.Dataset
        See `mofal.trajectories.watch`.
    """
    if until_idle_s is not None and not follow:
        raise ConfigError("--until-idle is for --follow: without it all that is there is read once")
    if until_idle_s is not None and not until_idle_s >= 0:
        raise ConfigError(f"--until-idle is {until_idle_s:g}, expected seconds from 0 on")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers is {workers}, expected at least 1")
    if next_cycle and not (Path(potential) / CONFIG).is_file():
        raise ConfigError("--next-cycle is for a campaign: --potential CAMPAIGN")
    source = open_trajectory(trajectory, types=types)
    if not follow and not source.look():
        raise without_frames(source)
    place = Path(directory) if directory is not None else Path(f"{source.path}.watch")
    if not place.absolute().parent.is_dir():
        raise ConfigError(f"--directory {place}: there is no directory {place.absolute().parent}")
    view: CampaignView | None = None
    chosen: dict[str, Any] = {}
    if (Path(potential) / CONFIG).is_file():
        if density is not None:
            raise ConfigError(f"{potential} is a campaign, which has its own: leave out --density")
        view = open_campaign(potential)
        chosen = campaign_settings(view.config)
    chosen |= {name: value for name, value in settings.items() if value is not None}
    wanted = WatchSettings(**chosen)
    blocks, system = _from_structure(structure, wanted) if structure else (None, "")
    # What is refused is refused before a density is fitted and anything is written.
    if view is not None and source.look():
        numbers = read_frame(source, 0).numbers
        require_elements(symbols_of(numbers), view.site.elements, what="this campaign")
        if next_cycle:
            _explored(view, numbers)
    known: Known | None = None
    if view is None:
        known = open_known(potential, density, device=device)
        if source.look():
            found = symbols_of(read_frame(source, 0).numbers)
            require_elements(found, known.elements, what="this potential")
    place.mkdir(exist_ok=True)
    with only_one(place):
        if known is None:
            assert view is not None
            known = campaign_known(view, place, device=device, say=say)
            if blocks is None:
                blocks, system = _of_campaign(view, source, say)
        summary = watch(
            source,
            known,
            directory=place,
            settings=wanted,
            blocks=blocks,
            system=system,
            follow=follow,
            until_idle_s=until_idle_s,
            workers=workers,
            say=say,
        )
        if next_cycle and view is not None:
            assert isinstance(known, FittedKnown)  # of a campaign
            _join(view, source, known, place, wanted, say)
        return summary


def _join(
    view: CampaignView,
    source: Trajectory,
    known: FittedKnown,
    place: Path,
    settings: WatchSettings,
    say: Say,
) -> None:
    """Give the clusters to the campaign.

    Raises
    ------
    CampaignError
        The trajectory is of none of its explored systems.
    """
    numbers = read_frame(source, 0).numbers
    system = _explored(view, numbers)
    why = ""
    if not (place / GROUP).exists():
        why = "no cluster was cut"
    elif str(open_group(place / GROUP)["system"].values[0]) != system:
        why = f"these clusters were not cut with its blocks of {system} (leave out --structure)"
    if why:
        raise CampaignError(
            f"{why}; the next cycle of {view.path} gets none. Clusters that are there: mofal label "
            f"{place / TEXT_FILE}, and give them to a campaign as seed data"
        )
    scores = Scores(place, known, source, numbers, every=settings.every, system=system)
    clusters = open_group(place / GROUP).load()
    structures, scored = parents_of(scores, clusters)
    join_cycle(
        view.site,
        system,
        structures=structures,
        scores=scored,
        clusters=clusters,
        refused=read_json(place / REFUSED),
        density=known.density,
        say=say,
    )


def _explored(view: CampaignView, numbers: NDArray[np.int64]) -> str:
    """The explored system of a campaign that consists of these atoms.

    Raises
    ------
    CampaignError
        There is none.
    """
    system = same_system(view, numbers)
    if system is None or system not in view.config.explored:
        raise CampaignError(
            f"{view.path} explores {', '.join(view.config.explored)}, and the trajectory has the "
            "atoms of none of them; leave out --next-cycle, label the clusters (mofal label), and "
            "give them to a campaign as seed data"
        )
    return system


def _from_structure(path: str, settings: WatchSettings) -> tuple[xr.Dataset, str]:
    """Blocks of a structure at rest."""
    from mofal.frameworks import find_blocks, read_framework

    ds = read_framework(path, rule=settings.rule, charge=None)
    return find_blocks(ds, rule=settings.rule), str(ds["system"].values[0])


def _of_campaign(view: CampaignView, source: Trajectory, say: Say) -> tuple[xr.Dataset | None, str]:
    """Blocks of the campaign's system that the trajectory is of, if there is one."""
    if not source.look():
        return None, ""
    name = same_system(view, read_frame(source, 0).numbers)
    if name is None:
        return None, ""
    say(f"the trajectory has the atoms of the campaign's {name}: its blocks are used")
    return view.blocks(name), name
