"""Density: what the potential knows, fitted in the features of its training data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
from mofal.campaign.directory import Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Stage,
    Summary,
    counted,
    notice,
    on_site,
    one_task,
    progress_files,
)
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity
    from mofal.potential import Potential


@on_site
def density(site: Site, cycle: int) -> Summary:
    """Fit the density of the training part of the data in the features of the last model."""
    from mofal.data import select, write_group
    from mofal.density import fit_density
    from mofal.potential import load

    data = site.training_set(cycle - 1, whole=True)
    data = select(data, data["split"].values == "train")
    potential = load(site.path(paths.model(cycle - 1)), device=site.device("density"))
    say = notice(site, f"density-{cycle:03d}")
    say(f"features of {data.sizes['atom']:,} atoms")
    features = potential.featurize(data)
    write_group(features, site.path(paths.place(cycle, "training_features.zarr")), kind="features")
    settings = site.config.density
    fitted = fit_density(
        features.assign(features=features["features"].astype(np.float64)),
        n_components=settings.components,
        max_components=settings.max_components,
        pca=settings.pca,
        random_state=site.integer_seed("density", cycle),
        progress=say,
    )
    _calibrate(fitted, potential, site.training_set(cycle - 1, whole=True))
    fitted.save(site.path(paths.place(cycle, "density.zarr")))
    return {"atoms": features.sizes["atom"]}


CALIBRATING = 20
"""Validation atoms of every element from which on quantiles are theirs; on its own training data a
density is too confident, but of a few atoms no quantile can be told."""


def _calibrate(fitted: PerElementDensity, potential: Potential, data: xr.Dataset) -> None:
    from mofal.data import select

    validation = select(data, data["split"].values == "validation")
    if validation.sizes["structure"] == 0:
        return
    features = potential.featurize(validation)
    numbers = features["numbers"].values
    if all((numbers == label).sum() >= CALIBRATING for label in fitted.labels_):
        fitted.calibrate(np.asarray(features["features"].values, np.float64), numbers)


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the fit."""
    return one_task(site, step, PRIORITY, density, cycle=step.cycle)


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"density-{step.cycle:03d}")


PRIORITY = 75
STAGE = Stage("density of what is known", PRIORITY, tasks, counted, notes=_notes)
