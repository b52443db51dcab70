"""Samples: the structures that the first potential learns from, and the held-out frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import paths
from mofal.campaign.directory import Site
from mofal.campaign.electrons import with_spin
from mofal.campaign.given import example_labels
from mofal.campaign.plan import Step
from mofal.campaign.seed_file import read_seed_file
from mofal.campaign.steps.base import (
    Stage,
    Summary,
    counted,
    on_site,
    one_task,
)
from mofal.errors import CampaignError
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr

_TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


def seed_structures(site: Site) -> xr.Dataset:
    """Structures of the seed data, labelled or not."""
    from mofal.clusters import cut, random_cores
    from mofal.clusters.matched import matched_blocks, matched_shells, weighted
    from mofal.data import concat

    settings = site.config.seed_data
    if settings.file is not None:
        return read_seed_file(site.config, site.reference())
    if settings.example is not None:
        return example_labels(site.config, site.reference())
    selection = site.config.selection
    unpaired = selection.unpaired
    if settings.perturbed is not None:
        name = settings.perturbed.system
        ds = perturb(site, name, settings.perturbed, ("seed", name))
        ds["system"] = ("structure", np.array([name] * ds.sizes["structure"], _TEXT))
        return with_spin(ds, site.blocks(name), unpaired, place=f"systems.{name}")
    assert settings.clusters is not None  # the config gives one of the three
    parts, reasons = [], []
    for name in site.config.explored:
        frames = perturb(site, name, settings.clusters, ("seed", name))
        frames["system"] = ("structure", np.array([name] * frames.sizes["structure"], _TEXT))
        blocks = matched_blocks({name: site.blocks(name)}, selection.blueprints)
        cores = random_cores(
            frames,
            blocks,
            n=settings.clusters.per_system,
            seed=site.integer_seed("seed-clusters", name),
        )
        shells = matched_shells(blocks, selection.shells, selection.blueprints)
        clusters, refused = cut(
            frames,
            blocks,
            cores,
            shells=shells,
            unpaired=unpaired,
        )
        reasons += [f"{name}: {r}" for r in refused["reason"].values]
        parts.append(weighted(clusters, blocks, site.config.weights))
    out = concat(parts)
    if not out.sizes["structure"]:
        raise CampaignError(
            f"seed data: not one sound cluster among {len(reasons)} ({reasons[0]})"
            if reasons
            else "seed data: there is no block to cut a cluster around"
        )
    return out


def perturb(site: Site, system: str, settings: Any, words: tuple[str | int, ...]) -> xr.Dataset:
    """Frames of a system from a network of springs on its bonds; no potential enters."""
    from mofal.dynamics import sample_harmonic

    blocks = site.blocks(system)
    return sample_harmonic(
        site.structure(system),
        n=settings.frames,
        temperature_K=settings.temperature_K,
        seed=site.seed("perturb", *words),
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
        volume_strain=settings.volume_strain,
        shear=settings.shear,
    )


@on_site
def sample_seed(site: Site) -> Summary:
    """Structures that the first potential learns from."""
    from mofal.campaign.steps.sample import seed_structures
    from mofal.data import write_group

    ds = seed_structures(site)
    write_group(ds, site.path(paths.place(0, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


@on_site
def sample_holdout(site: Site, system: str) -> Summary:
    """Frames that judge, from a sampler that uses no model and a seed of their own."""
    from mofal.data import write_group

    settings = site.config.holdout
    if settings is None:
        return {"structures": 0}
    ds = perturb(site, system, settings, ("holdout", system))
    ds = with_spin(
        ds, site.blocks(system), site.config.selection.unpaired, place=f"systems.{system}"
    )
    ds["system"] = ("structure", np.array([system] * ds.sizes["structure"], _TEXT))
    write_group(ds, site.path(paths.holdout(system, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the seed data, or the held-out frames of a system."""
    if step.holdout:
        return one_task(site, step, PRIORITY, sample_holdout, system=step.system)
    return one_task(site, step, PRIORITY, sample_seed)


PRIORITY = 40
STAGE = Stage("structures", PRIORITY, tasks, counted)
