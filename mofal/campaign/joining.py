"""A next cycle whose clusters come from a trajectory: in the place of a system's own walks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
from mofal.campaign.directory import Site, write_config
from mofal.data import write_group, write_json
from mofal.data.ragged import TEXT
from mofal.errors import CampaignError
from mofal.schedule import CampaignLock

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity

WATCHED = "watched"
"""Status of a frame that no walk of the campaign came to; the next cycle starts from none of it."""


def join_cycle(
    site: Site,
    system: str,
    *,
    structures: xr.Dataset,
    scores: xr.Dataset,
    clusters: xr.Dataset,
    refused: Sequence[str],
    density: PerElementDensity,
    say: Callable[[str], None],
) -> int:
    """Make clusters of a trajectory those of a campaign's next cycle.

    What a cycle's walks and its selection would leave for the system is put in its place; the
    other explored systems walk as ever. Where the campaign was to end before, it is to have one
    cycle more.

    Parameters
    ----------
    site : Site
    system : str
        Explored system that the trajectory is of.
    structures, scores : xarray.Dataset
        Frames that the clusters were cut from, and their scores and features.
    clusters : xarray.Dataset
    refused : sequence of str
        Reasons of clusters that were not sound.
    density : PerElementDensity
        What the frames were scored with.
    say : callable
        Takes lines.

    Returns
    -------
    int
        The cycle.

    Raises
    ------
    CampaignError
        A driver runs, or the cycle has begun.
    """
    from mofal.clusters.matched import matched_blocks, weighted

    cycle = site.finished_cycles() + 1

    def path(name: str) -> str:
        return paths.place(cycle, system, name)

    with CampaignLock(site.root):
        begun = [n for n in ("samples.zarr", "clusters.zarr") if site.exists(path(n))]
        if begun or site.work(paths.place(cycle), system).exists():
            raise CampaignError(
                f"cycle {cycle} of {site.root} has walked with {system} already; let it come "
                f"to its end (mofal run {site.root}), then type this command again"
            )
        if not site.exists(paths.place(cycle, "density.zarr")):
            density.save(site.path(paths.place(cycle, "density.zarr")))
        kept = ["numbers", "n_atoms", "structure_index", "structure_id", "system"]
        beside = [n for n in ("log_likelihood", "quantile", "error_bound") if n in scores]
        model = {k: v for k, v in scores.attrs.items() if k == "model_hash"}
        features = scores[[*kept, "features"]]
        features.attrs = model
        write_group(features, site.path(path("features.zarr")), kind="features")
        write_group(scores[kept + beside], site.path(path("scores.zarr")), kind="scores")
        write_group(_walks(structures, scores), site.path(path("walks.zarr")), kind="table")
        write_group(structures, site.path(path("samples.zarr")))
        blueprints = site.config.selection.blueprints
        blocks = matched_blocks({system: site.blocks(system)}, blueprints)
        n = clusters.sizes["structure"]
        own = clusters.assign(cycle=("structure", np.full(n, cycle, np.int64)))
        own = weighted(own, blocks, site.config.weights)
        write_json(list(refused), site.path(path("refused.json")))
        write_group(own, site.path(path("clusters.zarr")))
        if site.config.cycles < cycle:
            write_config(site.root, site.config.model_copy(update={"cycles": cycle}))
    say(
        f"cycle {cycle} of {site.root} labels these {n} clusters of {system} and learns from them: "
        f"mofal run {site.root} (a file of your own must say cycles: {cycle} or more)"
    )
    return cycle


def _walks(structures: xr.Dataset, scores: xr.Dataset) -> xr.Dataset:
    """One row for each frame, as walks leave them."""
    import xarray as xr

    n = structures.sizes["structure"]
    text = {
        "start_frame": "",
        "walk_system": str(structures["system"].values[0]),
        "ensemble": "",
        "walk_status": WATCHED,
        "walk_reason": "a frame of a trajectory from elsewhere",
        "walk_engine": "",
        "unfamiliar_atoms": "[]",
        "seed": "null",
        "model_hash": str(scores.attrs.get("model_hash", "")),
    }
    unknown = ("temperature_K", "pressure_GPa", "timestep_fs", "planned_fs", "length_fs")
    columns = {name: np.full(n, value, TEXT) for name, value in text.items()}
    columns["end_frame"] = structures["structure_id"].values
    columns |= {name: np.full(n, np.nan) for name in (*unknown, "stopped_fs")}
    columns["unfamiliar_at_start"] = np.zeros(n, np.int64)
    columns["volume"] = np.abs(np.linalg.det(structures["cell"].values))
    return xr.Dataset({name: ("walk", value) for name, value in columns.items()})
