"""Train a potential on labelled structures: one function, resumable, the same bits for one seed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mofal.data import hash_arrays, hash_json, relative_energy, select, validate
from mofal.errors import DataError, StoreError
from mofal.potential.base import isolated_energies, require_elements, symbols_of
from mofal.potential.directory import is_model
from mofal.potential.settings import TrainingSettings
from mofal.potential.split import TRAIN, VALIDATION, split_structures

if TYPE_CHECKING:
    import torch
    import xarray as xr

    from mofal.potential.model import NequIPPotential
    from mofal.potential.network import Graph

Progress = Callable[[str], None] | None


# ---------------------------------------------------------------------------------- data
def force_weights(ds: xr.Dataset, settings: TrainingSettings) -> np.ndarray:
    """Weight of each atom's squared force error, (atom,) float64; 0 leaves it out.

    Atoms of crystals count 1 whatever the setting, and so does the core of a cluster; `masked`
    atoms count 0.
    """
    weight = np.ones(ds.sizes["atom"])
    if settings.regions != "all" and "region" in ds:
        finite = np.logical_not(np.any(ds["pbc"].values, axis=1))
        of_cluster = np.repeat(finite, ds["n_atoms"].values)
        region = np.asarray(ds["region"].values)
        if settings.regions == "core":
            by_region = np.array([1.0, 0.0, 0.0])
        else:
            by_region = np.array([1.0, settings.mantle_weight, settings.termination_weight])
        weight[of_cluster] = by_region[region[of_cluster]]
    if settings.regions == "weighted" and "force_weight" in ds:
        given = np.asarray(ds["force_weight"].values, float)
        if np.nanmin(given, initial=0.0) < 0:
            raise DataError("force_weight holds a negative weight; expected 0 or more")
        weight = np.where(np.isnan(given), weight, given)
    charged = charged_clusters(ds)
    if charged.any():
        region = np.asarray(ds["region"].values)
        weight[np.repeat(charged, ds["n_atoms"].values) & (region != 0)] = 0.0
    if "masked" in ds:
        weight[np.asarray(ds["masked"].values, bool)] = 0.0
    return weight


def charged_clusters(ds: xr.Dataset) -> np.ndarray:
    """Clusters with a charge of their own, (structure,) bool.

    In the crystal their surroundings balance it. Their energies and the forces beyond the core
    belong to an ion in a vacuum: only the forces on the core are learnt.
    """
    if "charge" not in ds or "region" not in ds:
        return np.zeros(ds.sizes["structure"], bool)
    finite = np.logical_not(np.any(ds["pbc"].values, axis=1))
    return np.asarray(finite & (ds["charge"].values != 0))


def energy_targets(ds: xr.Dataset) -> np.ndarray:
    """Energies relative to isolated atoms, eV; NaN for charged clusters: (structure,)."""
    energy = np.asarray(relative_energy(ds).values, float)
    return np.where(charged_clusters(ds), np.nan, energy)


def stress_targets(ds: xr.Dataset) -> np.ndarray:
    """Stresses of crystals, eV/Å³, ASE's sign; NaN without one: (structure, 3, 3)."""
    from ase.stress import voigt_6_to_full_3x3_stress

    n = ds.sizes["structure"]
    if "stress" not in ds:
        return np.full((n, 3, 3), np.nan)
    periodic = np.all(ds["pbc"].values, axis=1)
    voigt = np.where(periodic[:, None], np.asarray(ds["stress"].values, float), np.nan)
    return np.array([voigt_6_to_full_3x3_stress(v) for v in voigt]).reshape(n, 3, 3)


def usable(ds: xr.Dataset, progress: Progress = None) -> xr.Dataset:
    """Labelled structures that can be trained on: converged ones.

    Raises
    ------
    DataError
        None is left, or a converged label lacks its energy or its forces.
    """
    validate(ds, "labels")
    validate(ds, "structures")
    status = np.array([str(s) for s in ds["status"].values])
    good = status == "converged"
    if not good.any():
        raise DataError(
            f"nothing to train on: none of {len(good)} labels has converged "
            f"(statuses: {', '.join(sorted(set(status)))})"
        )
    if not good.all() and progress is not None:
        progress(f"{int((~good).sum())} of {len(good)} labels left out: they have not converged")
    out = select(ds, np.flatnonzero(good)) if not good.all() else ds
    if not np.isfinite(out["energy"].values).all():
        first = int(np.flatnonzero(~np.isfinite(out["energy"].values))[0])
        raise DataError(f"structure {first} is converged but has no energy; drop or label it again")
    return out


def prepare_graphs(
    ds: xr.Dataset, settings: TrainingSettings, *, elements: Sequence[str], r_max: float
) -> list[Graph]:
    """Graphs with targets, neighbour lists made once.

    Raises
    ------
    DataError
        A structure of which no force is left to learn from.
    """
    import torch

    from mofal.potential.metrics import FORCE_WEIGHT_KEY
    from mofal.potential.network import make_graph, type_table

    types = type_table(elements)
    energy = energy_targets(ds)
    stress = stress_targets(ds)
    forces = np.array(ds["forces"].values, float)
    weight = force_weights(ds, settings)
    forces[weight == 0] = np.nan
    arrays = {k: np.asarray(ds[k].values) for k in ("numbers", "positions", "cell", "pbc")}
    ends = np.concatenate([[0], np.cumsum(ds["n_atoms"].values)])
    graphs = []
    for i, (a, b) in enumerate(pairwise(ends.tolist())):
        if np.isnan(forces[a:b]).all():
            raise DataError(
                f"structure {i} has no force that counts (all NaN, masked or of weight 0); "
                "leave it out, or train with regions='all'"
            )
        graph = make_graph(
            arrays["numbers"][a:b],
            arrays["positions"][a:b],
            arrays["cell"][i],
            arrays["pbc"][i],
            types=types,
            r_max=r_max,
        )
        graph["total_energy"] = torch.tensor([[energy[i]]], dtype=torch.float64)
        graph["forces"] = torch.from_numpy(forces[a:b].copy())
        if settings.stress_weight > 0:
            graph["stress"] = torch.from_numpy(stress[i : i + 1].copy())
        if settings.regions == "weighted":
            graph[FORCE_WEIGHT_KEY] = torch.from_numpy(weight[a:b].copy())
        graphs.append(graph)
    return graphs


def align_shifts(origin: NequIPPotential, ds: xr.Dataset, elements: Sequence[str]) -> np.ndarray:
    """Least change of the shifts per type that takes a model to the mean energies of new data.

    Clusters have compositions that the seed data did not have, and energies per atom that differ
    by some tenths of an eV; learnt by the network, that would drown the forces for as long as it
    takes. Forces do not depend on shifts, and compositions that the model knows keep their energy:
    their residuals, near zero, are part of the fit, whose solution is the smallest one.

    Parameters
    ----------
    origin : NequIPPotential
        The model that training starts from.
    ds : Dataset of labels
    elements : sequence of str
        Types of the model, in order.

    Returns
    -------
    (n_elements,) float
        Changes of the shifts, eV.
    """
    from ase.data import atomic_numbers

    from mofal.data import count_elements

    counts = count_elements(
        ds["numbers"].values, ds["structure_index"].values, ds.sizes["structure"]
    )[:, [atomic_numbers[e] for e in elements]]
    n_atoms = counts.sum(axis=1, keepdims=True)
    residual = energy_targets(ds) - np.asarray(origin.evaluate(ds)["energy"].values)
    known = np.isfinite(residual)
    counts, n_atoms, residual = counts[known], n_atoms[known], residual[known]
    # What differs between frames of one composition is the network's business: directions in which
    # compositions hardly differ (relative to the largest) are left alone.
    change, *_ = np.linalg.lstsq(counts / n_atoms, residual / n_atoms[:, 0], rcond=1e-2)
    return change


def unfounded_energies(ds: xr.Dataset, training: np.ndarray) -> np.ndarray:
    """Structures whose mean energy nothing in the training part tells.

    Energies per atom of a composition that the training part's do not span are off by tenths of an
    eV, whatever the forces: one such structure would decide which epoch is the best.

    Parameters
    ----------
    ds : Dataset of structures
    training : (structure,) bool
        Which of them train.

    Returns
    -------
    (structure,) bool
        False throughout where it would hold for all that validate.
    """
    from mofal.data import count_elements

    counts = count_elements(
        ds["numbers"].values, ds["structure_index"].values, ds.sizes["structure"]
    )
    fractions = counts / counts.sum(axis=1, keepdims=True)
    _, sizes, directions = np.linalg.svd(np.unique(fractions[training], axis=0))
    # The directions that `align_shifts` fits.
    basis = directions[: len(sizes)][sizes > 1e-2 * sizes[0]]
    beyond = np.linalg.norm(fractions - fractions @ basis.T @ basis, axis=1) > 1e-2
    seen = {tuple(row) for row in counts[training].tolist()}
    beyond &= np.array([tuple(row) not in seen for row in counts.tolist()], bool)
    return beyond if not beyond[~training].all() else np.zeros_like(beyond)


def data_hash(ds: xr.Dataset, settings: TrainingSettings) -> str:
    """Identity of a training set: structures, labels, weights and split."""
    stress = hash_arrays(np.nan_to_num(stress_targets(ds), nan=1e30))
    return hash_json(
        {
            **({"stress": stress} if settings.stress_weight > 0 else {}),
            "ids": [str(v) for v in ds["structure_id"].values],
            "split": [str(v) for v in ds["split"].values],
            "labels": hash_arrays(
                np.nan_to_num(energy_targets(ds), nan=1e30),
                np.nan_to_num(np.asarray(ds["forces"].values), nan=1e30),
                force_weights(ds, settings),
            ),
        }
    )


# ---------------------------------------------------------------------------------- the verb
def train(
    dataset: xr.Dataset,
    settings: TrainingSettings | None = None,
    *,
    out: str | Path,
    seed: int,
    elements: Sequence[str] | None = None,
    start: NequIPPotential | str | Path | None = None,
    progress: Progress = None,
    checkpoint_every: int = 100,
) -> NequIPPotential:
    """Train a potential through NequIP's own Lightning module (Section SI.2 of the paper).

    Energies are learnt relative to isolated atoms (`mofal.data.relative_energy`), with a shift
    per atom, the same for all types, that is the mean of the first training data and stays, and
    trainable scales that start at the RMS of the training forces. A warm start takes architecture,
    weights, shift and scales from `start` and resets optimiser and moving average.

    The same data, settings, seed and start give the same bits, whatever the number of threads. A
    training that was killed goes on from its checkpoint beside `out` when called again, and ends
    with the model that it would have ended with; `out` appears when it is complete. Where `out`
    holds the model of just this training already, it is loaded.

    Parameters
    ----------
    dataset : xarray.Dataset
        Labelled structures, crystals and clusters, with `isolated_atom_energies` in its attributes.
        Only converged labels are used, NaN forces are left out; stress counts where
        `settings.stress_weight` says so. `split` says which structures train; without it, or
        where it is empty, they are divided by `seed`.
    settings : TrainingSettings, optional
        Default: the paper's.
    out : path
        Directory of the model. A directory beside it, named ``.<out>.training``, holds the
        checkpoint until then.
    seed : int
        Of weights, split and order of batches.
    elements : sequence of str, optional
        All elements of the campaign; default: those of the data. Not with `start`, which has its.
    start : NequIPPotential or path, optional
        Model to start from.
    progress : callable, optional
        Is given lines of text.
    checkpoint_every : int
        Optimiser steps between checkpoints, at least; they are written between epochs.

    Returns
    -------
    NequIPPotential
        As loaded from `out`, with `history` and `provenance`.

    Raises
    ------
    DataError
        Nothing to train or to validate on, or labels without isolated-atom energies.
    PotentialError
        An element without a type, a device that is not there, or a training that diverges.
    StoreError
        `out`, or the checkpoint beside it, belongs to another training.
    """
    settings = settings or TrainingSettings()
    if settings.device not in ("cpu", "auto"):
        from mofal.potential.devices import resolve_device

        resolve_device(settings.device)  # before the data is looked at
    data = split_structures(
        usable(dataset, progress), fraction=settings.validation_fraction, seed=seed
    )
    origin = _resolve_start(start, data, settings)
    types = _elements(data, elements, origin)
    decisive = {
        "data": data_hash(data, settings),
        "seed": int(seed),
        "elements": types,
        "start": origin.model_hash if origin else "",
    }
    # Where and by which engine it runs does not make it another training; before, cuda did.
    kept = settings.model_dump(exclude={"threads", "engine"})
    identity, *also = (
        hash_json({"settings": {**kept, "device": d}, **decisive}) for d in ("cpu", "cuda")
    )
    target = Path(out)
    finished = _finished(target, (identity, *also), settings.device)
    if finished is not None:
        return finished

    from mofal.potential.network import prepare, quiet, threads

    prepare()
    work = target.with_name(f".{target.name}.training")
    work.mkdir(parents=True, exist_ok=True)
    with threads(settings.threads), quiet():
        potential = _fit(
            data,
            settings,
            work=work,
            identity=identity,
            also=also,
            seed=seed,
            elements=types,
            origin=origin,
            progress=progress,
            checkpoint_every=checkpoint_every,
        )
    potential.save(target)
    shutil.rmtree(work)
    return potential


def _fit(
    data: xr.Dataset,
    settings: TrainingSettings,
    *,
    work: Path,
    identity: str,
    also: Sequence[str],
    seed: int,
    elements: Sequence[str],
    origin: NequIPPotential | None,
    progress: Progress,
    checkpoint_every: int,
) -> NequIPPotential:
    import torch
    from nequip.data import register_fields

    from mofal.potential.loop import Batches, Clock, make_module, run, set_weights
    from mofal.potential.metrics import FORCE_WEIGHT_KEY
    from mofal.potential.model import NequIPPotential
    from mofal.potential.network import (
        BUILDING,
        build_network,
        builder_config,
        put_weights,
    )

    register_fields(node_fields=[FORCE_WEIGHT_KEY])
    architecture = origin.architecture if origin else settings.architecture
    if settings.stress_weight > 0 and not np.isfinite(stress_targets(data)).any():
        raise DataError(
            f"stress_weight {settings.stress_weight:g}, and no crystal of this data has a stress; "
            "take a level that gives one (gfn1-xtb, gpaw:pw), or stress_weight 0"
        )
    graphs = prepare_graphs(data, settings, elements=elements, r_max=architecture.r_max)
    part = np.array([str(v) for v in data["split"].values])
    training = [g for g, p in zip(graphs, part) if p == TRAIN]
    validation = [g for g, p in zip(graphs, part) if p == VALIDATION]
    if not training or not validation:
        raise DataError(
            f"{len(training)} structures to train on and {len(validation)} to validate on; "
            "both parts need at least one"
        )
    unfounded = unfounded_energies(data, part == TRAIN)
    for k in np.flatnonzero(unfounded):
        graphs[k]["total_energy"].fill_(torch.nan)
    n_atoms = sum(len(g["pos"]) for g in training)
    first = _first_values(training, settings)
    if origin:
        first["avg_num_neighbors"] = origin.avg_num_neighbors
    config = builder_config(architecture, elements, seed=seed, **first)
    with BUILDING:
        masked = bool((charged_clusters(data) | unfounded).any())
        module = make_module(config, settings, energies_masked=masked)
    if origin:
        set_weights(module, _start_weights(origin, data, settings, part == TRAIN))
    batches = Batches(training, settings.batch_size, seed=seed)
    clock = Clock(
        settings,
        batches,
        work=work,
        identity=identity,
        also=also,
        warm=origin is not None,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )
    compiled = settings.engine == "compiled" and len(training) > 1
    if settings.engine == "compiled" and not compiled and progress is not None:
        progress("one structure to train on: nothing to compile, its steps are eager")
    with contextlib.ExitStack() as held:
        if compiled:
            from mofal.potential.compiled_steps import ONE_AT_A_TIME, compile_steps

            held.enter_context(ONE_AT_A_TIME)
            compile_steps(module, training, settings, config=config, progress=progress)
        if progress is not None:
            progress(
                f"training on {len(training)} structures ({n_atoms} atoms), validating on "
                f"{len(validation)}, {len(batches)} steps per epoch"
                + (f", from model {origin.model_hash}" if origin else "")
                + (
                    f"; not by the energies of {unfounded.sum()}, of compositions unlike the "
                    "training's"
                    if unfounded.any()
                    else ""
                )
            )
        run(module, clock, validation, settings=settings)
    network = build_network(config)
    put_weights(network, clock.best_weights)
    return NequIPPotential(
        network,
        architecture,
        elements,
        avg_num_neighbors=first["avg_num_neighbors"],
        history=clock.history,
        device=settings.device,
        provenance={
            "training": identity,
            "seed": int(seed),
            "settings": settings.model_dump(),
            "start": origin.model_hash if origin else "",
            "structures": {TRAIN: len(training), VALIDATION: len(validation)},
            "steps": clock.step,
            "atoms_seen": clock.atoms_seen,
            "best_epoch": clock.best_epoch,
            "validation_loss": clock.best_loss,
            "stopped_by": clock.stopped_by,
            "level_hash": str(data.attrs.get("level_hash", "")),
            "isolated_atom_energies": isolated_energies(data.attrs),
        },
    )


def _first_values(training: Sequence[Graph], settings: TrainingSettings) -> dict[str, float]:
    """What the first training data fix for good: neighbours, start of the scales, shift."""
    import torch

    n_atoms = sum(len(g["pos"]) for g in training)
    n_edges = sum(g["edge_index"].shape[1] for g in training)
    squares = torch.cat([g["forces"].reshape(-1) for g in training]).square()
    # One number for all types: data of one composition fixes no more than that, and without it the
    # first part of a training goes into learning the cohesive energy.
    per_atom = [float(g["total_energy"]) / len(g["pos"]) for g in training]
    per_atom = [value for value in per_atom if np.isfinite(value)] or [0.0]
    return {
        "avg_num_neighbors": max(n_edges / n_atoms, 1.0),
        "scales": float(torch.nanmean(squares).sqrt()) or 1.0,
        "shifts": float(np.mean(per_atom)) if settings.energy_shift == "mean" else 0.0,
    }


def _start_weights(
    origin: NequIPPotential, data: xr.Dataset, settings: TrainingSettings, training: np.ndarray
) -> dict[str, torch.Tensor]:
    """Weights of a warm start, with shifts that suit the compositions of the training part."""
    import torch

    from mofal.potential.network import SHIFTS, weights_of

    weights = weights_of(origin.network)
    if settings.align_energies:
        change = align_shifts(origin, select(data, np.flatnonzero(training)), origin.elements)
        shifts = weights[SHIFTS]
        weights[SHIFTS] = shifts + torch.tensor(change, dtype=shifts.dtype).view_as(shifts)
    return weights


# ---------------------------------------------------------------------------------- helpers
def _resolve_start(
    start: NequIPPotential | str | Path | None, data: xr.Dataset, settings: TrainingSettings
) -> NequIPPotential | None:
    if start is None:
        return None
    if isinstance(start, (str, Path)):
        from mofal.potential.model import load

        start = load(start, device=settings.device)
    before = start.provenance.get("level_hash", "")
    now = str(data.attrs.get("level_hash", ""))
    if before and now and before != now and not settings.allow_other_level:
        raise DataError(
            f"the start model was trained at level of theory {before}, these labels are of {now}; "
            "label at the same level, or say that it is meant: allow_other_level=True"
        )
    return start


def _elements(
    data: xr.Dataset, elements: Sequence[str] | None, origin: NequIPPotential | None
) -> list[str]:
    from mofal.potential.making import order_elements

    found = symbols_of(data["numbers"].values)
    if origin is not None:
        require_elements(found, origin.elements, what="the start model")
        if elements is not None:
            require_elements(elements, origin.elements, what="the start model")
        return list(origin.elements)
    types = order_elements(list(elements) if elements is not None else found)
    require_elements(found, types, what="the list of elements")
    return types


def _finished(target: Path, known: Sequence[str], device: str) -> NequIPPotential | None:
    if not target.exists():
        return None
    if not is_model(target):
        raise StoreError(
            f"{target} is in the way: there is no model in it (no model.json); move it away, or "
            f"delete it: rm -r {target}"
        )
    from mofal.potential.model import load

    potential = load(target, device=device)
    if potential.provenance.get("training") not in known:
        raise StoreError(
            f"{target} holds a model of another training (other data, settings, seed or start "
            "model); give a new directory"
        )
    return potential
