"""Density: what the potential knows, fitted in the features of its training data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.campaign import paths
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
from mofal.data import select, write_group
from mofal.data.shards import SHARD_BYTES
from mofal.errors import DataError
from mofal.potential.directory import read_described
from mofal.schedule.task import Outcome, Task
from mofal.schedule.wide import spread

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity
    from mofal.potential import Potential


@on_site
def density(site: Site, cycle: int) -> Summary:
    """Fit the density of the training part of the data in the features of the last model.

    Features are written as shards, and read from there: by threads of this task, or where there
    are so many of them that it may borrow workers, by all of these.
    """
    from mofal.density import fit_density

    @functools.cache
    def potential() -> Potential:
        from mofal.potential import load  # torch with it, which features on the disk do without

        return load(site.path(paths.model(cycle - 1)), device=site.device("density"))

    say = notice(site, f"density-{cycle:03d}")
    features = featurized(site, cycle, potential, "train", say)
    assert features is not None  # a model learnt from something
    settings = site.config.density
    with spread():
        fitted = fit_density(
            in_memory(site, features),
            n_components=settings.components,
            max_components=settings.max_components,
            pca=settings.pca,
            random_state=site.integer_seed("density", cycle),
            progress=say,
        )
        say("quantiles and bounds on the validation part")
        validation = featurized(site, cycle, potential, "validation", say)
        if validation is not None:
            calibrate(site, cycle, fitted, potential, in_memory(site, validation))
    fitted.save(site.path(paths.place(cycle, "density.zarr")))
    summary: Summary = {"atoms": features.sizes["atom"]}
    if fitted.bound_ is not None:
        summary["coverage"] = fitted.bound_.bound.coverage
    return summary


FEATURES = {"train": "training_features.zarr", "validation": "validation_features.zarr"}
"""Groups of the features of both parts of the labelled data."""


def featurized(
    site: Site,
    cycle: int,
    potential: Callable[[], Potential],
    part: str,
    say: Callable[[str], None],
) -> xr.Dataset | None:
    """Features of a part of the labelled data, lazy, made if they are not there; None of nothing.

    The potential is loaded if it is needed.

    Raises
    ------
    DataError
        Those that are there are of another potential.
    """
    import dask

    relative = paths.place(cycle, FEATURES[part])
    if not site.exists(relative):
        data = site.training_set(cycle - 1, whole=True)
        data = select(data, data["split"].values == part)
        if data.sizes["structure"] == 0:
            return None
        say(f"features of {data.sizes['atom']:,} atoms")
        rows = shard_rows(site)
        if data.sizes["atom"] > rows:
            # Runs of structures, one after the other.
            data = data.assign({n: v.chunk(atom=rows) for n, v in data.items() if "atom" in v.dims})
        with dask.config.set(scheduler="synchronous"):
            features = potential().featurize(data)
            write_group(features, site.path(relative), kind="features", rows_per_shard=rows)
    features = site.group(relative)
    found = str(features.attrs.get("model_hash", ""))
    expected = str(read_described(site.path(paths.model(cycle - 1)))["model_hash"])
    if found != expected:
        raise DataError(
            f"{site.path(relative)} holds features of potential {found or 'unknown'}, the cycle "
            f"begins with {expected}; delete them, to make them again: "
            f"rm -r {site.path(relative)}"
        )
    return features


def shard_rows(site: Site) -> int:
    """Atoms in a shard of features."""
    return min(SHARD_BYTES // 64, site.config.density.in_memory)


def in_memory(site: Site, ds: xr.Dataset) -> xr.Dataset:
    """The same in memory, if it has no more atoms than may be: by their number alone, so that what
    comes out is the same to the bit wherever it is computed."""
    return ds.load() if ds.sizes["atom"] <= site.config.density.in_memory else ds


def width_of(site: Site, atoms: int) -> int:
    """Workers that can work on so many atoms at a time: one for each shard, if they are lazy."""
    return 1 if atoms <= site.config.density.in_memory else -(-atoms // shard_rows(site))


CALIBRATING = 20
"""Validation atoms of every element from which on quantiles are theirs; on its own training data a
density is too confident, but of a few atoms no quantile can be told."""


def calibrate(
    site: Site,
    cycle: int,
    fitted: PerElementDensity,
    potential: Callable[[], Potential],
    features: xr.Dataset,
) -> None:
    """Take quantiles from the validation part, and from its errors a bound of the force error.

    Only where it is large enough for them. The errors are those of the model that the cycle begins
    with; of clusters those of their cores count, whose environments are whole.
    """
    from mofal.density import least_structures

    numbers = np.asarray(features["numbers"].values)
    rows = features["features"].data
    if all((numbers == label).sum() >= CALIBRATING for label in fitted.labels_):
        fitted.calibrate(rows, numbers)
    coverage = site.config.density.coverage
    if features.sizes["structure"] < least_structures(coverage):
        return
    data = site.training_set(cycle - 1, whole=True)
    data = select(data, data["split"].values == "validation")
    error = force_error(data, potential().evaluate(data)["forces"].values)
    index = data["structure_index"].values
    if np.unique(index[np.isfinite(error)]).size >= least_structures(coverage):
        fitted.bound_errors(
            rows,
            numbers,
            error,
            index,
            coverage=coverage,
            random_state=site.integer_seed("bound", cycle),
        )


def force_error(labels: xr.Dataset, predicted: np.ndarray) -> np.ndarray:
    """Norm of the force error of each atom (atom,) in eV/Å; NaN for what is not of a core."""
    error = np.linalg.norm(predicted - labels["forces"].values, axis=1)
    if "region" in labels:
        error[labels["region"].values != 0] = np.nan
    return error


def tasks(site: Site, step: Step, retry_failed: bool) -> list[Task]:
    """One task: the fit, as wide as there are shards of training features."""
    known = paths.place(step.cycle, FEATURES["train"])
    if site.exists(known):
        atoms = int(site.group(known).sizes["atom"])
    else:
        groups = [site.group(p) for _, p in site.label_groups(step.cycle - 1)]
        labelled = sum(int(group.sizes["atom"]) for group in groups)
        atoms = round(labelled * (1.0 - site.config.potential.validation_fraction))
    width = width_of(site, atoms)
    return one_task(site, step, PRIORITY, density, width=width, cycle=step.cycle)


def finish(site: Site, step: Step, outcomes: Sequence[Outcome], pending: Collection[str]) -> str:
    """Say what it was fitted to; the task left the density itself."""
    summary = summary_of(outcomes)
    if not summary:
        return ""
    text = f"{summary['atoms']} atoms"
    if "coverage" in summary:
        text += f", a bound of the force error at {summary['coverage']:g}"
    return text


def _notes(site: Site, step: Step) -> Iterable[Path]:
    return progress_files(site, f"density-{step.cycle:03d}")


PRIORITY = 75
STAGE = Stage("density of what is known", PRIORITY, tasks, finish, notes=_notes)
