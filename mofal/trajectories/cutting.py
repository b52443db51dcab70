"""Clusters around what was unfamiliar in a trajectory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.data.hashing import hash_json
from mofal.errors import StoreError
from mofal.files import write_json
from mofal.trajectories.scores import Scores, lazy_structures

if TYPE_CHECKING:
    import xarray as xr

    from mofal.trajectories.settings import WatchSettings

IN_MEMORY = 2_000_000
"""Atoms whose scores and features are held in memory at most when cores are chosen."""
GROUP, TEXT_FILE, REFUSED = "clusters.zarr", "clusters.extxyz", "refused.json"


def cut_unfamiliar(
    scores: Scores, blocks: xr.Dataset, settings: WatchSettings, *, say: Callable[[str], None]
) -> None:
    """Choose and cut the clusters, and write them; what was cut from the same frames is kept.

    Parameters
    ----------
    scores : Scores
    blocks : xarray.Dataset
        Of the structure.
    settings : WatchSettings
    say : callable
        Takes lines.
    """
    from mofal.data import open_group, write, write_group

    target = scores.directory / GROUP
    asked = _asked(scores, blocks, settings)
    if target.exists():
        try:
            if open_group(target).attrs.get("asked") == asked:
                say(f"{target}: cut before, from the same frames")
                return
        except StoreError:
            say(f"{target} is damaged and is made again")
        shutil.rmtree(target)
    say(f"choosing {settings.clusters} clusters in {len(scores.done)} frames")
    found, refused = _extract(scores, blocks, settings)
    found.attrs["asked"] = asked
    reasons = [str(r) for r in refused["reason"].values]
    write_json(reasons, scores.directory / REFUSED)
    if found.sizes["structure"] == 0:
        say(
            f"not one cluster is sound: {len(reasons)} were refused, the first for "
            f"{reasons[0] if reasons else 'want of a block that may be a core'}"
        )
        return
    text = scores.directory / TEXT_FILE
    write(found, text)
    write_group(found, target)
    sizes = found["n_atoms"].values
    fresh = int((found["least_quantile"].values < settings.unfamiliar_quantile).sum())
    say(
        f"wrote {text}: {len(sizes)} clusters of {sizes.min()} to {sizes.max()} atoms from "
        f"{len(np.unique(found['frame_number'].values))} frames, {fresh} with an unfamiliar atom "
        f"in their core; {len(reasons)} were refused"
    )
    say(f"label them: mofal label {text} --reference ...")


def parents_of(scores: Scores, clusters: xr.Dataset) -> tuple[xr.Dataset, xr.Dataset]:
    """Frames that clusters were cut from, and their scores with features, in memory."""
    from mofal.data import select

    joined = scores.joined()
    cut = np.isin(joined["frame_number"].values, clusters["frame_number"].values)
    mine = select(joined, np.flatnonzero(cut)).load()
    return lazy_structures(mine, scores.trajectory, scores.numbers).load(), mine


def _asked(scores: Scores, blocks: xr.Dataset, settings: WatchSettings) -> str:
    """Hash of all that decides which clusters are cut."""
    s = settings
    blueprints = None if s.blueprints is None else s.blueprints.read_text(encoding="utf-8")
    content: dict[str, Any] = {
        "frames": sorted(scores.done),
        "model": scores.known.model_hash,
        "density": scores.known.density_hash,
        "clusters": s.clusters,
        "ranking": s.ranking,
        "shells": [s.shells, s.shells_along_rods],
        "blueprints": blueprints,
        "unpaired": dict(s.unpaired),
        "kinds": [str(kind) for kind in blocks["kind_hash"].values],
        "members": blocks["member_atom"].values.tolist(),
        "seed": s.seed,
    }
    return hash_json(content)


def _extract(
    scores: Scores, blocks: xr.Dataset, settings: WatchSettings
) -> tuple[xr.Dataset, xr.Dataset]:
    """Clusters, and the refused ones with their reasons."""
    from mofal.clusters import extract
    from mofal.clusters.matched import matched_blocks, matched_shells

    s = settings
    joined = scores.joined()
    structures = lazy_structures(joined, scores.trajectory, scores.numbers)
    if joined.sizes["atom"] <= IN_MEMORY:
        joined = joined.load()
    known = matched_blocks({scores.system: blocks}, s.blueprints)
    shells = matched_shells(known, s.shells, s.blueprints, along_rods=s.shells_along_rods)
    found, refused, _ = extract(
        structures,
        joined,
        known,
        n=s.clusters,
        ranking=s.ranking,
        seed=s.seed,
        features=joined,
        shells=shells,
        unpaired=s.unpaired,
    )
    return _described(found, joined, len(scores.numbers)), refused


def _described(found: xr.Dataset, scores: xr.Dataset, n: int) -> xr.Dataset:
    """Clusters that say which frame they are from, and how unfamiliar their cores were there."""
    from mofal.data import atom_slice, describe

    parent = found["parent_structure"].values
    least = np.ones(found.sizes["structure"])
    for k, frame in enumerate(parent.tolist()):
        own = atom_slice(found, k)
        core = found["parent_atom"].values[own][found["region"].values[own] == 0]
        rows = scores["quantile"].isel(atom=slice(frame * n, (frame + 1) * n)).values
        least[k] = rows[core].min()
    return describe(
        found.assign(
            {
                "frame_number": ("structure", scores["frame_number"].values[parent]),
                "md_step": ("structure", scores["md_step"].values[parent]),
                "least_quantile": ("structure", least),
            }
        )
    )
