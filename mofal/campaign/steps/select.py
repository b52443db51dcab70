"""Selection: which atoms are least known, and clusters cut around them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import CampaignConfig, SelectionSettings
from mofal.campaign.directory import Site
from mofal.campaign.plan import Step
from mofal.campaign.steps.base import (
    Stage,
    Summary,
    notice,
    on_site,
    one_task,
    progress_files,
    summary_of,
)
from mofal.campaign.steps.density import in_memory, shard_rows, width_of
from mofal.clusters.matched import matched_blocks, matched_shells, weighted
from mofal.data import concat, write_group, write_json
from mofal.errors import ConfigError, DataError
from mofal.potential.directory import is_model, read_described
from mofal.schedule.task import Outcome, Task
from mofal.schedule.wide import spread

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity


SCORED = ("log_likelihood", "quantile")
"""What scores of a campaign hold in any case, and rankings may read."""
BOUND = "error_bound"
"""What they hold beside where enough labelled structures validate."""
FALLBACK = "lowest_quantile"
"""How a cycle is ranked that lacks the bound which its ranking reads."""


@on_site
def select_clusters(site: Site, cycle: int, system: str) -> Summary:
    """Score the samples of a system, choose cores, cut clusters."""
    from mofal.clusters import extract
    from mofal.density import PerElementDensity, score

    samples = in_memory(site, site.group(paths.place(cycle, system, "samples.zarr")))
    features = in_memory(site, site.group(paths.place(cycle, system, "features.zarr")))
    say = notice(site, f"select-{cycle:03d}-{system}")
    say(f"scores of {samples.sizes['atom']:,} atoms")
    fitted = PerElementDensity.load(site.path(paths.place(cycle, "density.zarr")))
    refuse_foreign_features(site, cycle, system, features, fitted)
    settings = site.config.selection
    blocks = matched_blocks({system: site.blocks(system)}, settings.blueprints)
    cutting: dict[str, Any] = {
        "shells": matched_shells(
            blocks,
            settings.shells,
            settings.blueprints,
            along_rods=settings.shells_along_rods,
        ),
        "unpaired": settings.unpaired,
        "max_atoms": settings.max_atoms,
    }
    ranking, note = settings.ranking, ""
    with spread():
        target = site.path(paths.place(cycle, system, "scores.zarr"))
        write_group(score(features, fitted), target, kind="scores", rows_per_shard=shard_rows(site))
    # Few shards are read from here on, each where it is needed: nothing to spread.
    scores = in_memory(site, site.group(paths.place(cycle, system, "scores.zarr")))
    if reads(ranking) not in scores:
        # Labels that the bound hangs on have failed: the cycle goes on by the next best.
        ranking, note = FALLBACK, f"no error bound in this cycle, ranked by {FALLBACK}"
    n_drawn = number_drawn(settings) if fitted.bound_ is not None else 0
    say(f"cutting {settings.clusters} clusters")
    clusters, refused, cores = extract(
        samples,
        scores,
        blocks,
        n=settings.clusters - n_drawn,
        ranking=ranking,
        seed=site.integer_seed("select", cycle, system),
        features=features,
        **cutting,
    )
    reasons = [str(r) for r in refused["reason"].values]
    if n_drawn:
        seed = site.integer_seed("draw", cycle, system)
        clusters = with_drawn(clusters, samples, blocks, cores, n_drawn, seed, cutting)
    clusters["cycle"] = ("structure", np.full(clusters.sizes["structure"], cycle, np.int64))
    clusters = weighted(clusters, blocks, site.config.weights)
    write_json(reasons, site.path(paths.place(cycle, system, "refused.json")))
    write_group(clusters, site.path(paths.place(cycle, system, "clusters.zarr")))
    summary: Summary = {"clusters": clusters.sizes["structure"], "refused": len(reasons)}
    if n_drawn:
        summary["drawn"] = int(clusters["drawn"].values.sum())
    shortened = int(clusters["mantle_shortened"].values.sum())
    if shortened:
        summary["with part of their mantle"] = shortened
    return {**summary, "note": note} if note else summary


def number_drawn(settings: SelectionSettings) -> int:
    """Clusters of a system and cycle whose cores are drawn, where there is a bound of the error."""
    if settings.drawn == 0:
        return 0
    return min(max(round(settings.drawn * settings.clusters), 1), settings.clusters - 1)


def with_drawn(
    clusters: xr.Dataset,
    samples: xr.Dataset,
    blocks: dict[str, xr.Dataset],
    cores: xr.Dataset,
    n: int,
    seed: int,
    cutting: dict[str, Any],
) -> xr.Dataset:
    """The clusters with `n` more whose cores are drawn, every block as likely as any other.

    What was selected is not drawn again; what cannot be cut soundly is replaced by the next.
    """
    from mofal.clusters import cut, random_cores

    def pairs(ds: xr.Dataset) -> list[tuple[int, int]]:
        return list(zip(ds["core_structure"].values.tolist(), ds["core_block"].values.tolist()))

    taken = set(pairs(cores))
    drawn = random_cores(samples, blocks, n=len(taken) + 10 * n, seed=seed, take_turns=False)
    drawn = drawn.isel(core=np.flatnonzero([pair not in taken for pair in pairs(drawn)]))
    parts, left, at = [clusters], n, 0
    while left and at < drawn.sizes["core"]:
        more, _ = cut(samples, blocks, drawn.isel(core=slice(at, at + left)), **cutting)
        at += left
        if more.sizes["structure"]:
            shift = cores.sizes["core"] + at
            parts.append(more.assign(core_index=more["core_index"] + shift))
            left -= more.sizes["structure"]
    return concat(
        [
            part.assign(drawn=("structure", np.full(part.sizes["structure"], k > 0)))
            for k, part in enumerate(parts)
        ]
    )


def refuse_foreign_features(
    site: Site, cycle: int, system: str, features: xr.Dataset, fitted: PerElementDensity
) -> None:
    """Refuse features of another potential than the one whose features the density was fitted on.

    Raises
    ------
    DataError
        Also where the features do not say whose they are.
    """
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


def reads(ranking: str) -> str:
    """Which variable of the scores a ranking reads."""
    from mofal.clusters import get_ranking

    return str(getattr(get_ranking(ranking), "variable", SCORED[0]))


def check_ranking(config: CampaignConfig, n_seed: int | None) -> None:
    """Refuse a ranking whose scores the campaign will not have, before anything has been paid for.

    Parameters
    ----------
    config : CampaignConfig
    n_seed : int, optional
        Structures of the seed data; None where that is not known.

    Raises
    ------
    ConfigError
    """
    from mofal.clusters import ranking_names
    from mofal.density import least_structures

    name, known = config.selection.ranking, ranking_names()
    if name not in known:
        raise ConfigError(f"selection.ranking is {name!r}; known: {', '.join(sorted(known))}")
    variable = reads(name)
    if variable not in (*SCORED, BOUND):
        fit = [n for n in known if reads(n) in (*SCORED, BOUND)]
        raise ConfigError(
            f"selection.ranking is {name!r}, which reads {variable}; scores of a campaign hold "
            f"{', '.join(SCORED)} and {BOUND}: choose one of {', '.join(fit)}"
        )
    fraction = config.potential.validation_fraction
    least = least_structures(config.density.coverage)
    if variable != BOUND or n_seed is None or not config.cycles or n_seed * fraction >= least:
        return
    raise ConfigError(
        f"selection.ranking is {name!r}, which reads {BOUND}: a bound at a coverage of "
        f"{config.density.coverage:g} takes {least} labelled structures that validate, and "
        f"{fraction:g} of the {n_seed} of the seed data are about {round(n_seed * fraction)}; give "
        f"{round(np.ceil(least / fraction))} of them, a lower density.coverage, or write ranking: "
        f"{FALLBACK}"
    )


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task for each system, as wide as there are shards of walks."""
    width = width_of(site, int(site.group(step.needs[0]).sizes["atom"]))
    return one_task(
        site, step, PRIORITY, select_clusters, width=width, cycle=step.cycle, system=step.system
    )


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Say how many clusters there are; the task left them itself."""
    summary = dict(summary_of(outcomes))
    note = summary.pop("note", "")
    text = ", ".join(f"{v} {k}" for k, v in summary.items() if v or k != "refused")
    return f"{text}; {note}" if note else text


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"select-{step.cycle:03d}-{step.system}")


PRIORITY = 80
STAGE = Stage("clusters", PRIORITY, tasks, finish, notes=_notes)
