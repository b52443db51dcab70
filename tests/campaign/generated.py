"""Campaigns whose features are never in memory whole, and one with generated features."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mofal.campaign import paths
from mofal.campaign.directory import Site
from mofal.campaign.examples import seed_place
from mofal.campaign.loading import parse_config
from mofal.campaign.prepare import examine, settle
from mofal.data import write_group
from mofal.potential.directory import read_described

from .services import PAIRS

CHEAP: dict[str, Any] = {
    "name": "joined",
    "seed": 5,
    "systems": {"p": {"build": "S_ld", "cell": "primitive"}},
    "seed_data": {"perturbed": {"system": "p", "frames": 6}},
    "cycles": 1,
    "reference": {"name": PAIRS, "max_force_eV_per_A": 1e6},
    "potential": {
        "architecture": {"r_max": 3.5, "n_layers": 2, "n_features": 4},
        "validation_fraction": 0.5,
        "seed": {"max_epochs": 2},
        "final": {"max_epochs": 1},
    },
    "density": {"components": 2, "in_memory": 100, "coverage": 0.5},
    "exploration": {
        "walks": 2,
        "length_fs": 5,
        "ramp_cycles": 1,
        "barostat_fs": 2,
        "unfamiliar_quantile": 0,
        "bond_z": None,
        "bond_mean_z": None,
    },
    "selection": {"clusters": 4, "drawn": 0.5, "ranking": "calibrated_score"},
    "schedule": {"backend": "inline"},
}
"""A campaign whose features are never in memory whole, and whose validation part makes a bound."""


def _features(seed: int, n_structures: int, model_hash: str) -> xr.Dataset:
    """Features of three elements in structures of 100 atoms."""
    rng = np.random.default_rng(seed)
    n = 100 * n_structures
    numbers = np.tile(np.repeat([1, 6, 8], [30, 40, 30]), n_structures).astype(np.int32)
    which = rng.integers(4, size=n)
    centres = np.random.default_rng(1).normal(size=(119, 4, 6)) * 3.0
    x = centres[numbers, which] + rng.normal(size=(n, 6)) * rng.uniform(0.3, 1.2, size=(n, 1))
    return xr.Dataset(
        {
            "features": (("atom", "feature"), x.astype(np.float32)),
            "numbers": ("atom", numbers),
            "n_atoms": ("structure", np.full(n_structures, 100)),
            "structure_index": ("atom", np.repeat(np.arange(n_structures), 100)),
            "structure_id": ("structure", [f"{seed}-{k}" for k in range(n_structures)]),
            "system": ("structure", ["p"] * n_structures),
        },
        attrs={"model_hash": model_hash},
    )


def prepare_density(place: Path, *, in_memory: int, structures: int) -> Site:
    """A campaign that is about to fit the density of its first cycle, to generated features."""
    content = {
        **CHEAP,
        "density": {"components": 4, "in_memory": in_memory},
        "selection": {"clusters": 2},
    }
    site = Site(place, parse_config(content))
    findings = examine(site)
    assert findings is not None
    place.mkdir(parents=True)
    settle(site, findings)
    model = site.path(paths.model(0))
    shutil.copytree(seed_place("uio66-gfn1") / "model", model)
    model_hash = read_described(model)["model_hash"]
    for seed, part, n in ((0, "training", structures), (1, "validation", 5)):
        ds = _features(seed, n, model_hash)
        target = site.path(paths.place(1, f"{part}_features.zarr"))
        write_group(ds, target, kind="features", rows_per_shard=in_memory)
    return site


def pid_of(worker: str, directory: Path) -> int:
    """Process of a worker of a campaign on this machine, by its name in the events."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            here = any(word.startswith(str(directory)) for word in words)
            if here and "mofal.schedule.worker" in words and worker in words:
                return int(entry.name)
    raise AssertionError(f"no process of worker {worker}")
