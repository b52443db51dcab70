"""Models, predictions and features as artefacts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mofal.data import concat, open_group, select, write_group
from mofal.potential import (
    NequIPPotential,
    TrainingSettings,
    create,
    load,
    split_structures,
    train,
)
from paper.settings import ELEMENTS


@lru_cache(maxsize=4)
def loaded(model: Path) -> NequIPPotential:
    """A model: to build its network takes longer than to judge a few frames with it."""
    return load(model)


def draw_subset(n: int, count: int, which: int, seed: int) -> np.ndarray:
    """Number `which` of the disjoint random subsets of `count` among `n`; sorted indices."""
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(n)
    if (which + 1) * count > n:
        raise ValueError(f"{which + 1} disjoint subsets of {count} do not fit into {n}")
    return np.sort(order[which * count : (which + 1) * count])


def make_model(
    path: Path,
    start: Path,
    *data: Path,
    settings: dict[str, Any],
    seed: int,
    warm: bool,
    subsets: list[list[int] | None],
) -> None:
    """Train on labelled sets (each whole, or a subset ``[count, which, seed]`` of it).

    `start` is the model to begin from where `warm`, and else nothing that is looked at.
    """
    parts = []
    for place, subset in zip(data, subsets):
        ds = open_group(place).load()
        if subset is not None:
            count, which, draw = subset
            ds = select(ds, draw_subset(ds.sizes["structure"], count, which, draw))
        parts.append(plain(ds))
    both = concat(parts) if len(parts) > 1 else parts[0]
    train(
        split_structures(both, seed=seed),
        TrainingSettings(**settings),
        out=path,
        seed=seed,
        start=loaded(start) if warm else None,
        elements=None if warm else ELEMENTS,
        checkpoint_every=20,
    )


def make_untrained(path: Path, trained: Path, *, seed: int) -> None:
    """The architecture of a model with random weights, as its training began."""
    model = loaded(trained)
    create(
        model.architecture,
        model.elements,
        seed=seed,
        avg_num_neighbors=model.avg_num_neighbors,
    ).save(path)


def make_prediction(path: Path, model: Path, labels: Path) -> None:
    """Energies and forces of a model on labelled structures."""
    ds = open_group(labels).load()
    out = loaded(model).evaluate(ds)[["energy", "forces"]]
    write_group(
        out.rename(energy="predicted_energy", forces="predicted_forces"), path, kind="table"
    )


def make_features(path: Path, model: Path, structures: Path) -> None:
    """Features of every atom."""
    write_group(loaded(model).featurize(open_group(structures).load()), path, kind="table")


def plain(ds: xr.Dataset) -> xr.Dataset:
    """A labelled set with the variables that crystals and clusters share."""
    extra = ("parent_shift", "parent_atom", "n_electrons", "region")
    return ds.drop_vars([v for v in extra if v in ds])
