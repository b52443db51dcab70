"""What workers do: one function per kind of task, from paths to paths.

Each function is durable: it writes its product under a temporary name and renames it before it
returns. Arguments are the campaign's directory and the names of the work; data is read from disk.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mofal.campaign import plan
from mofal.campaign.blueprints import shells_of, weighted
from mofal.campaign.electrons import with_spin
from mofal.campaign.given import start_potential
from mofal.campaign.site import COMMON, Site
from mofal.data.sealed import STARTS_OVER
from mofal.errors import DataError

if TYPE_CHECKING:
    import xarray as xr

    from mofal.density import PerElementDensity
    from mofal.dynamics import BondLimits
    from mofal.potential import Potential, TrainingSettings

Summary = dict[str, Any]


def _on_site(function: Callable[..., Summary]) -> Callable[..., Summary]:
    """Give a task the campaign that its driver runs, or refuse another one.

    A worker reads the settings from the directory: whoever changes them there while the campaign
    runs must not change what comes out.
    """

    @functools.wraps(function)
    def task(root: str, identity: str, **arguments: Any) -> Summary:
        site = Site(root)
        site.refuse_changed(identity)
        return function(site, **arguments)

    return task


def notice(site: Site, name: str) -> Callable[[str], None]:
    """Let a driver on any machine see how far a task is: its last line, in one small file."""
    file = site.work("progress", f"{name}.txt")
    last = [0.0]

    def say(line: str) -> None:
        if time.monotonic() - last[0] < 0.5:
            return
        last[0] = time.monotonic()
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        with contextlib.suppress(OSError):  # no result hangs on it
            file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(line, encoding="utf-8")
            os.replace(temporary, file)

    return say


class Heard:
    """Passes progress on, and keeps what a person should read when the task is over."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Take one line."""
        if line.endswith(STARTS_OVER):
            self.lines.append(line)
        self.say(line)

    @property
    def notes(self) -> Summary:
        """For the summary of a task: nothing, mostly."""
        return {"note": "; ".join(self.lines)} if self.lines else {}


# ---------------------------------------------------------------------------------- structures
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


@_on_site
def sample_seed(site: Site) -> Summary:
    """Structures that the first potential learns from."""
    from mofal.campaign.seeding import seed_structures
    from mofal.data import write_group

    ds = seed_structures(site)
    write_group(ds, site.path(plan.place(0, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


@_on_site
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
    write_group(ds, site.path(plan.holdout(system, "samples.zarr")))
    return {"structures": ds.sizes["structure"]}


_TEXT = np.dtypes.StringDType()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------- labels
@_on_site
def label(site: Site, group: str, index: int, attempts: int) -> Summary:
    """Label one structure; the record is on disk when this returns."""
    from mofal.data import select
    from mofal.reference import label_one

    one = select(site.group(group), index).load()
    attempt = label_one(
        one,
        site.reference(),
        directory=site.cache(),
        scratch=site.work("scratch"),
        attempts=attempts,
    )
    return {
        "status": attempt.status,
        "reason": attempt.reason,
        "wall_time_s": attempt.wall_time_s,
    }


# ---------------------------------------------------------------------------------- training
@_on_site
def train(site: Site, cycle: int, last: bool) -> Summary:
    """Train the model that a cycle ends with, from the model of the cycle before."""
    from mofal.potential import train as train_potential

    settings = site.config.potential
    chosen = settings.seed if cycle == 0 else settings.final if last else settings.cycle
    out = site.path(plan.model(cycle))
    heard = Heard(notice(site, f"train-{cycle:03d}"))
    if cycle == 0 and settings.start is not None:
        if not site.exists(plan.model(0)):
            start_potential(site.config, site.facts["level_hash"]).save(out)
        return {"given": f"{settings.start}, as it is"}
    train_potential(
        site.training_set(cycle, whole=True),
        chosen.model_copy(update={"device": site.device("train")}),
        out=out,
        start=None if cycle == 0 else site.path(plan.model(cycle - 1)),
        elements=site.elements if cycle == 0 else None,
        seed=site.integer_seed("train", cycle),
        progress=heard,
    )
    return {**_training_summary(site, plan.model(cycle)), **heard.notes}


@_on_site
def train_control(site: Site, cycle: int, last: bool) -> Summary:
    """Train the control: the same start and reset, as many atoms seen, the seed data alone."""
    from mofal.potential import train as train_potential

    settings = site.config.potential
    chosen = settings.final if last else settings.cycle
    seen = atoms_to_see(site, cycle, chosen)
    # Nothing but the atoms seen ends it, so that it gets no less than the campaign's model.
    chosen = chosen.model_copy(
        update={
            "device": site.device("train"),
            "max_atoms_seen": int(seen),
            "max_steps": None,
            "max_epochs": None,
            "stop_delta": 0.0,
            "stop_patience": 10**9,
            "min_learning_rate": 0.0,
        }
    )
    heard = Heard(notice(site, f"control-{cycle:03d}"))
    train_potential(
        site.training_set(0, whole=True),
        chosen,
        out=site.path(plan.control(cycle)),
        start=site.path(plan.control(cycle - 1)),
        seed=site.integer_seed("train", cycle),
        progress=heard,
    )
    return {**_training_summary(site, plan.control(cycle)), **heard.notes}


def atoms_to_see(site: Site, cycle: int, chosen: TrainingSettings) -> int:
    """Atoms that the model of a cycle sees in its training, or will see at the most."""
    if site.exists(plan.model(cycle)):
        return int(site.model_record(plan.model(cycle))["atoms_seen"])
    data = site.training_set(cycle, whole=True)
    per_epoch = int(data["n_atoms"].values[data["split"].values == "train"].sum())
    bounds = []
    if chosen.max_epochs is not None:
        bounds.append(chosen.max_epochs * per_epoch)
    if chosen.max_atoms_seen is not None:
        # It stops after the batch that passes the bound.
        largest = chosen.batch_size * int(data["n_atoms"].max())
        bounds.append(chosen.max_atoms_seen + largest)
    return min(bounds)


def _training_summary(site: Site, relative: str) -> Summary:
    record = site.model_record(relative)
    return {k: record[k] for k in ("steps", "epochs", "atoms_seen", "stopped_by") if k in record}


# ---------------------------------------------------------------------------------- exploration
@_on_site
def walk(site: Site, cycle: int, system: str, index: int) -> Summary:
    """Walk once, and featurize where it ended."""
    from mofal.campaign.seeding import start_frame
    from mofal.data import write_group
    from mofal.data.store import atomic_path
    from mofal.density import PerElementDensity
    from mofal.dynamics import walk as walk_from
    from mofal.dynamics import walk_length
    from mofal.potential import load

    potential = load(site.path(plan.model(cycle - 1)), device=site.device("walk"))
    settings = site.config.exploration.walk_settings()
    watched = settings.unfamiliar_quantile > 0.0
    density = (
        PerElementDensity.load(site.path(plan.place(cycle, "density.zarr"))) if watched else None
    )
    name = f"walk-{cycle:03d}-{system}-{index:04d}"
    out = walk_place(site, cycle, system, index)
    checkpoint = out.with_name(out.name + ".checkpoint.npz")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    heard = Heard(notice(site, name))
    result = walk_from(
        start_frame(site, cycle, system, index),
        calculator=potential.calculator(features=watched),
        settings=settings,
        seed=site.seed("walk", cycle, system, index),
        length_fs=walk_length(cycle, settings),
        bonds=bonds_of(site, system, settings.temperature_K),
        density=density,
        out=checkpoint,
        progress=heard,
    )
    features = potential.featurize(result.frame)
    with atomic_path(out) as temporary:
        write_group(result.frame, temporary / "frame.zarr")
        write_group(result.record, temporary / "walk.zarr", kind="table")
        write_group(result.trace, temporary / "trace.zarr", kind="table")
        write_group(features, temporary / "features.zarr", kind="features")
    checkpoint.unlink(missing_ok=True)
    record = result.record
    return {
        "status": str(record["walk_status"].values[0]),
        "reason": str(record["walk_reason"].values[0]),
        "length_fs": float(record["length_fs"].values[0]),
        **heard.notes,
    }


def bonds_of(site: Site, system: str, temperature_K: float) -> BondLimits:
    """Bonds of a system with their lengths as built, and the spread of each kind."""
    from mofal.dynamics import bond_limits

    blocks = site.blocks(system)
    return bond_limits(
        site.structure(system),
        temperature_K=temperature_K,
        bonds=blocks["bond_atom"].values,
        shifts=blocks["bond_shift"].values,
    )


def walk_place(site: Site, cycle: int, system: str, index: int) -> Path:
    """Where one walk leaves its end, until all of the cycle are gathered."""
    return site.work(plan.place(cycle), system, f"walk-{index:04d}")


@_on_site
def density(site: Site, cycle: int) -> Summary:
    """Fit the density of the training part of the data in the features of the last model."""
    from mofal.data import select, write_group
    from mofal.density import fit_density
    from mofal.potential import load

    data = site.training_set(cycle - 1, whole=True)
    data = select(data, data["split"].values == "train")
    potential = load(site.path(plan.model(cycle - 1)), device=site.device("density"))
    say = notice(site, f"density-{cycle:03d}")
    say(f"features of {data.sizes['atom']:,} atoms")
    features = potential.featurize(data)
    write_group(features, site.path(plan.place(cycle, "training_features.zarr")), kind="features")
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
    fitted.save(site.path(plan.place(cycle, "density.zarr")))
    return {"atoms": features.sizes["atom"]}


SCORED = ("log_likelihood", "quantile")
"""What scores of a campaign hold, and rankings may read."""
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


@_on_site
def select_clusters(site: Site, cycle: int, system: str) -> Summary:
    """Score the samples of a system, choose cores, cut clusters."""
    from mofal.clusters import extract
    from mofal.data import write_group, write_json
    from mofal.density import PerElementDensity, score

    samples = site.group(plan.place(cycle, system, "samples.zarr")).load()
    features = site.group(plan.place(cycle, system, "features.zarr")).load()
    say = notice(site, f"select-{cycle:03d}-{system}")
    say(f"scores of {samples.sizes['atom']:,} atoms")
    fitted = PerElementDensity.load(site.path(plan.place(cycle, "density.zarr")))
    refuse_foreign_features(site, cycle, system, features, fitted)
    scores = score(features, fitted).compute()
    likelihood, numbers = scores["log_likelihood"].values, scores["numbers"].values
    scores["quantile"] = ("atom", np.asarray(fitted.quantile(likelihood, numbers)))
    write_group(scores, site.path(plan.place(cycle, system, "scores.zarr")), kind="scores")
    blocks = {system: site.blocks(system)}
    settings = site.config.selection
    say(f"cutting {settings.clusters} clusters")
    clusters, refused, _ = extract(
        samples,
        scores,
        blocks,
        n=settings.clusters,
        shells=shells_of(site, blocks),
        ranking=settings.ranking,
        seed=site.integer_seed("select", cycle, system),
        features=features,
        unpaired=settings.unpaired,
    )
    reasons = [str(r) for r in refused["reason"].values]
    clusters["cycle"] = ("structure", np.full(clusters.sizes["structure"], cycle, np.int64))
    clusters = weighted(site, clusters, blocks)
    write_json(reasons, site.path(plan.place(cycle, system, "refused.json")))
    write_group(clusters, site.path(plan.place(cycle, system, "clusters.zarr")))
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

    made_by = site.path(plan.model(cycle - 1))
    if not fitted.model_hash and is_model(made_by):
        # Densities of the version before did not write it down.
        fitted.model_hash = str(read_described(made_by)["model_hash"])
    found = str(features.attrs.get("model_hash", ""))
    if fitted.model_hash and found != fitted.model_hash:
        place = site.path(plan.place(cycle, system))
        raise DataError(
            f"{place / 'features.zarr'} holds features of potential {found or 'unknown'}, the "
            f"density of the cycle was fitted on those of {fitted.model_hash}; features of two "
            f"potentials are not comparable: delete what was walked, to walk again: rm -r {place}"
        )


# ---------------------------------------------------------------------------------- judging
@_on_site
def propose(site: Site, cycle: int) -> Summary:
    """Test the model that proposed a cycle's clusters on their labels, before it learns them."""
    from mofal.data import concat, select, write_group

    parts = []
    for c, relative in site.label_groups(cycle, whole=True):
        if c == cycle:
            ds = site.group(relative).load()
            usable = np.flatnonzero(site.usable(ds))
            if len(usable):
                parts.append(select(ds[[v for v in COMMON if v in ds]], usable))
    target = site.path(plan.place(cycle, "proposal.zarr"))
    if not parts:
        # A cycle whose clusters were all refused, or whose labels all failed, teaches nothing, but
        # is no reason to end: the model goes on learning from what there is.
        import xarray as xr

        empty = {"structures": 0, "mae_meV_per_A": None, "mae_p95_meV_per_A": None}
        write_group(xr.Dataset(attrs={"structures": 0}), target, kind="table")
        return empty
    labels = concat(parts)
    predicted, attrs = predict(site, plan.model(cycle - 1), labels, device=site.device("propose"))
    predicted.attrs.update(attrs)
    write_group(predicted, target, kind="table")
    return attrs


@_on_site
def judge(site: Site, system: str, model: str, makes: str) -> Summary:
    """Predict the held-out frames of a system with one model."""
    from mofal.data import select, write_group

    labels = site.group(plan.holdout(system, "labels.zarr")).load()
    usable = select(labels, np.flatnonzero(site.usable(labels)))
    predicted, attrs = predict(site, model, usable, device=site.device("judge"))
    predicted.attrs.update(attrs)
    write_group(predicted, site.path(makes), kind="table")
    return attrs


def predict(
    site: Site, model: str, labels: xr.Dataset, *, device: str
) -> tuple[xr.Dataset, Summary]:
    """Predictions of a model on labels, and their errors in one line of numbers."""
    from mofal.analysis import mae, mae_p
    from mofal.potential import load

    potential = load(site.path(model), device=device)
    predicted = potential.evaluate(labels)
    keep = [v for v in ("energy", "forces", "stress") if v in predicted]
    out = labels[
        ["numbers", "n_atoms", "structure_index", "structure_id", "system"]
        + (["region"] if "region" in labels else [])
    ].assign({f"predicted_{v}": predicted[v] for v in keep})
    out.attrs = {"model_hash": potential.model_hash}
    error = np.asarray(predicted["forces"].values) - labels["forces"].values
    error = error[np.isfinite(error)]
    return out, {
        "model_hash": potential.model_hash,
        "mae_meV_per_A": 1000 * float(mae(error)),
        "mae_p95_meV_per_A": 1000 * float(mae_p(error, 95)),
        "structures": int(labels.sizes["structure"]),
    }


def sweep_work(site: Site, relative: str) -> None:
    """Delete what a finished step no longer needs."""
    shutil.rmtree(site.work(relative), ignore_errors=True)
