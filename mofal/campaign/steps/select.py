"""Selection: which atoms are least known, and clusters cut around them."""

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
from mofal.clusters.matched import matched_blocks, matched_shells, weighted
from mofal.errors import ConfigError, DataError
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity


SCORED = ("log_likelihood", "quantile")
"""What scores of a campaign hold, and rankings may read."""


@on_site
def select_clusters(site: Site, cycle: int, system: str) -> Summary:
    """Score the samples of a system, choose cores, cut clusters."""
    from mofal.clusters import extract
    from mofal.data import write_group, write_json
    from mofal.density import PerElementDensity, score

    samples = site.group(paths.place(cycle, system, "samples.zarr")).load()
    features = site.group(paths.place(cycle, system, "features.zarr")).load()
    say = notice(site, f"select-{cycle:03d}-{system}")
    say(f"scores of {samples.sizes['atom']:,} atoms")
    fitted = PerElementDensity.load(site.path(paths.place(cycle, "density.zarr")))
    refuse_foreign_features(site, cycle, system, features, fitted)
    scores = score(features, fitted).compute()
    likelihood, numbers = scores["log_likelihood"].values, scores["numbers"].values
    scores["quantile"] = ("atom", np.asarray(fitted.quantile(likelihood, numbers)))
    write_group(scores, site.path(paths.place(cycle, system, "scores.zarr")), kind="scores")
    settings = site.config.selection
    blocks = matched_blocks({system: site.blocks(system)}, settings.blueprints)
    say(f"cutting {settings.clusters} clusters")
    clusters, refused, _ = extract(
        samples,
        scores,
        blocks,
        n=settings.clusters,
        shells=matched_shells(blocks, settings.shells, settings.blueprints),
        ranking=settings.ranking,
        seed=site.integer_seed("select", cycle, system),
        features=features,
        unpaired=settings.unpaired,
    )
    reasons = [str(r) for r in refused["reason"].values]
    clusters["cycle"] = ("structure", np.full(clusters.sizes["structure"], cycle, np.int64))
    clusters = weighted(clusters, blocks, site.config.weights)
    write_json(reasons, site.path(paths.place(cycle, system, "refused.json")))
    write_group(clusters, site.path(paths.place(cycle, system, "clusters.zarr")))
    return {"clusters": clusters.sizes["structure"], "refused": len(reasons)}


def refuse_foreign_features(
    site: Site, cycle: int, system: str, features: xr.Dataset, fitted: PerElementDensity
) -> None:
    """Refuse features of another potential than the one whose features the density was fitted on.

    Raises
    ------
    DataError
        Also where the features do not say whose they are.
    """
    from mofal.potential.directory import is_model, read_described

    made_by = site.path(paths.model(cycle - 1))
    if not fitted.model_hash and is_model(made_by):
        # Densities of the version before did not write it down.
        fitted.model_hash = str(read_described(made_by)["model_hash"])
    found = str(features.attrs.get("model_hash", ""))
    if fitted.model_hash and found != fitted.model_hash:
        place = site.path(paths.place(cycle, system))
        raise DataError(
            f"{place / 'features.zarr'} holds features of potential {found or 'unknown'}, the "
            f"density of the cycle was fitted on those of {fitted.model_hash}; features of two "
            f"potentials are not comparable: delete what was walked, to walk again: rm -r {place}"
        )


def check_ranking(name: str) -> None:
    """Refuse a ranking that does not exist before anything has been paid for."""
    from mofal.campaign.steps.select import SCORED
    from mofal.clusters import get_ranking, ranking_names

    known = ranking_names()
    if name not in known:
        raise ConfigError(f"selection.ranking is {name!r}; known: {', '.join(sorted(known))}")
    reads = str(getattr(get_ranking(name), "variable", SCORED[0]))
    if reads not in SCORED:
        fit = [n for n in known if getattr(get_ranking(n), "variable", "") in SCORED]
        raise ConfigError(
            f"selection.ranking is {name!r}, which reads {reads}; scores of a campaign hold "
            f"{' and '.join(SCORED)}: choose one of {', '.join(fit)}"
        )


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each system."""
    return one_task(site, step, PRIORITY, select_clusters, cycle=step.cycle, system=step.system)


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"select-{step.cycle:03d}-{step.system}")


PRIORITY = 80
STAGE = Stage("clusters", PRIORITY, tasks, counted, notes=_notes)
