"""Samples: the structures that the first potential learns from, and the held-out frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
from mofal.campaign.config import FrameSettings
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
from mofal.clusters.matched import matched_blocks, matched_shells, weighted
from mofal.data import concat, write_group
from mofal.data.variables import STRING
from mofal.errors import CampaignError
from mofal.schedule.task import Task

if TYPE_CHECKING:
    import xarray as xr


def seed_structures(site: Site, source: int = 0) -> xr.Dataset:
    """Structures of one source of the seed data, labelled or not."""
    from mofal.clusters import cut, random_cores

    config = site.config.seed_sources[source]
    settings = config.seed_data
    # Each source draws frames of its own.
    words = ("seed",) if source == 0 else ("seed", source)
    if settings.file is not None:
        return read_seed_file(config, site.reference())
    if settings.example is not None:
        return example_labels(config, site.reference())
    selection = site.config.selection
    unpaired = selection.unpaired
    if settings.perturbed is not None:
        name = settings.perturbed.system
        ds = perturb(site, name, settings.perturbed, (*words, name))
        ds["system"] = ("structure", np.array([name] * ds.sizes["structure"], STRING))
        return with_spin(ds, site.blocks(name), unpaired, place=f"systems.{name}")
    assert settings.clusters is not None  # the config gives one of the three
    parts, reasons = [], []
    for name in site.config.explored:
        frames = perturb(site, name, settings.clusters, (*words, name))
        frames["system"] = ("structure", np.array([name] * frames.sizes["structure"], STRING))
        blocks = matched_blocks({name: site.blocks(name)}, selection.blueprints)
        cores = random_cores(
            frames,
            blocks,
            n=settings.clusters.per_system,
            seed=site.integer_seed("seed-clusters", *words[1:], name),
        )
        shells = matched_shells(
            blocks,
            selection.shells,
            selection.blueprints,
            along_rods=selection.shells_along_rods,
        )
        clusters, refused = cut(
            frames,
            blocks,
            cores,
            shells=shells,
            max_atoms=selection.max_atoms,
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


def perturb(
    site: Site, system: str, settings: FrameSettings, words: tuple[str | int, ...]
) -> xr.Dataset:
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
def sample_seed(site: Site, source: int = 0) -> Summary:
    """Structures of one source that the first potential learns from."""
    ds = seed_structures(site, source)
    write_group(ds, site.path(paths.seed(source, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


@on_site
def sample_holdout(site: Site, system: str) -> Summary:
    """Frames that judge, from a sampler that uses no model and a seed of their own."""
    settings = site.config.holdout
    if settings is None:
        return {"structures": 0}
    ds = perturb(site, system, settings, ("holdout", system))
    ds = with_spin(
        ds, site.blocks(system), site.config.selection.unpaired, place=f"systems.{system}"
    )
    ds["system"] = ("structure", np.array([system] * ds.sizes["structure"], STRING))
    write_group(ds, site.path(paths.holdout(system, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the seed data, or the held-out frames of a system."""
    if step.holdout:
        return one_task(site, step, PRIORITY, sample_holdout, system=step.system)
    return one_task(site, step, PRIORITY, sample_seed, source=step.source)


PRIORITY = 40
STAGE = Stage("structures", PRIORITY, tasks, counted)
