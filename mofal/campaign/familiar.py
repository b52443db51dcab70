"""What a campaign knows, for judging what it did not make itself: trajectories from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig, ExplorationSettings
from mofal.campaign.steps.density import calibrate
from mofal.campaign.steps.select import BOUND, FALLBACK, reads
from mofal.data import select
from mofal.errors import StoreError
from mofal.trajectories import FittedKnown

if TYPE_CHECKING:
    from mofal.campaign.view import CampaignView
    from mofal.density import PerElementDensity
    from mofal.potential import NequIPPotential

Say = Callable[[str], None]


def campaign_known(view: CampaignView, directory: Path, *, device: str, say: Say) -> FittedKnown:
    """The last potential of a campaign, with the density of all that it learnt from.

    The cycle that would come next has that density where it has begun; else it is fitted here as
    it would be there, and kept in `directory`: nothing is written into the campaign.

    Parameters
    ----------
    view : CampaignView
    directory : Path
    device : str
    say : callable
        Takes lines.

    Raises
    ------
    StoreError
        The campaign has no model yet.
    """
    from mofal.density import PerElementDensity
    from mofal.potential import load

    site = view.site
    last = site.finished_cycles()
    if last < 0:
        raise StoreError(f"{view.path} has no model yet; look again when its seed model is trained")
    potential = load(site.path(paths.model(last)), device=device)
    known = paths.place(last + 1, "density.zarr")
    if site.exists(known):
        return FittedKnown(potential, PerElementDensity.load(site.path(known)))
    kept = directory / f"density-{potential.model_hash}.zarr"
    if not kept.exists():
        say(f"fitting the density of what the model of cycle {last} has learnt from")
        fitted = _fit(view, last + 1, potential, say)
        fitted.save(kept)
    return FittedKnown(potential, PerElementDensity.load(kept))


def _fit(view: CampaignView, cycle: int, potential: NequIPPotential, say: Say) -> PerElementDensity:
    """Fit the density of a cycle as its step does, in memory."""
    from mofal.density import fit_density

    site = view.site
    data = site.training_set(cycle - 1, whole=True)
    part = data["split"].values
    settings = site.config.density
    fitted = fit_density(
        potential.featurize(select(data, part == "train")),
        n_components=settings.components,
        max_components=settings.max_components,
        pca=settings.pca,
        random_state=site.integer_seed("density", cycle),
    )
    if (part == "validation").any():
        validation = potential.featurize(select(data, part == "validation"))
        calibrate(site, cycle, fitted, lambda: potential, validation)
    return fitted


def campaign_settings(config: CampaignConfig) -> dict[str, Any]:
    """Settings of `mofal.trajectories.WatchSettings` that a campaign file has too."""
    selection = config.selection
    quantile = config.exploration.unfamiliar_quantile
    if quantile == 0.0:  # its walks are not watched
        quantile = ExplorationSettings.model_fields["unfamiliar_quantile"].default
    ranking = selection.ranking
    return {
        "unfamiliar_quantile": quantile,
        "clusters": selection.clusters,
        "ranking": FALLBACK if reads(ranking) == BOUND else ranking,
        "shells": selection.shells,
        "shells_along_rods": selection.shells_along_rods,
        "blueprints": selection.blueprints,
        "unpaired": selection.unpaired,
    }


def same_system(view: CampaignView, numbers: np.ndarray) -> str | None:
    """System of a campaign that consists of these atoms in this order, if there is one."""
    explored = view.config.explored
    for name in (*explored, *(s for s in view.config.systems if s not in explored)):
        place = paths.system_place(name, "structure.zarr")
        if view.site.exists(place) and np.array_equal(
            view.site.structure(name)["numbers"].values, numbers
        ):
            return name
    return None
