"""A campaign of minutes on SLURM, with a reference that costs nothing, to be run and disturbed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.slurm.cheap import name_of

#: Three pools as on a real cluster; the GPU is a pretended one.
POOLS: dict[str, Any] = {
    "cpu": {"kinds": ["*"], "partition": "cpu", "workers": 1, "walltime": "20m"},
    "dft": {"kinds": ["label"], "partition": "dft", "workers": 2, "walltime": "20m"},
    "gpu": {
        "kinds": ["train", "walk", "density", "propose", "judge"],
        "partition": "gpu",
        "workers": 1,
        "gpus": 1,
        "memory": "1500MB",
        "walltime": "20m",
    },
}


def content(trace: Path, *, cycles: int = 1, **changes: Any) -> dict[str, Any]:
    """A campaign file's content; `trace` gets a line for each label that starts or ends."""
    root = str(Path(__file__).parent.parent.parent)
    environment = {"MOFAL_TEST_TRACE": str(trace), "PYTHONPATH": root}
    pools = {
        name: {"memory": "800MB", **pool, "environment": environment}
        for name, pool in POOLS.items()
    }
    energies = '{"H":0.0,"C":0.0,"O":0.0,"Zr":0.0}'
    return {
        "name": "survival",
        "seed": 11,
        "systems": {
            "pristine": {"build": "S_pr", "cell": "primitive", "explore": False},
            "defective": {"build": "S_ld", "cell": "primitive"},
        },
        "seed_data": {"perturbed": {"system": "pristine", "frames": 6}},
        "cycles": cycles,
        "reference": {
            "name": f"ase:tests.slurm.cheap:Pairs?seconds=0.5&isolated_atom_energies={energies}",
            "max_force_eV_per_A": 1000.0,
        },
        "potential": {
            "architecture": {"r_max": 3.0, "n_layers": 1, "n_features": 2},
            "seed": {"learning_rate": 0.01, "max_epochs": 3},
            "cycle": {"learning_rate": 0.01, "max_epochs": 2},
            "final": {"learning_rate": 0.01, "max_epochs": 2},
        },
        "density": {"max_components": 1},
        "exploration": {"walks": 2, "length_fs": 4, "barostat_fs": 2, "ramp_cycles": 1},
        "selection": {"clusters": 4},
        "schedule": {
            "backend": "slurm",
            "interface": "lo",
            "poll_interval": 1.0,
            "idle_time": 300.0,  # to start a worker costs more than all that it does here
            "linger": 180.0,
            "performance_reports": True,
            "pools": pools,
        },
        **changes,
    }


def write_campaign(folder: Path, **changes: Any) -> Path:
    """Write the campaign file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(content(folder / "trace", **changes)))
    return path


def command(file: Path) -> list[str]:
    """The command that runs, or goes on with, the campaign of a file."""
    return [
        sys.executable,
        "-m",
        "mofal",
        "run",
        str(file),
        "--directory",
        str(file.parent / "campaign"),
    ]


def records(folder: Path) -> dict[str, float]:
    """When the label of each structure came to be on disk, by what the trace calls it."""
    made = {}
    for path in (folder / "campaign" / "label-records").rglob("*.npz"):
        with np.load(path, allow_pickle=False) as record:
            made[name_of(record["positions"])] = path.stat().st_mtime
    return made


def compare(one: Path, other: Path) -> list[str]:
    """Differences between two finished campaigns: structures, labels, models."""
    import mofal

    a, b = mofal.open(one / "campaign"), mofal.open(other / "campaign")
    wrong = []
    first, second = a.labels.load(), b.labels.load()
    ids = [ds["structure_id"].values.tolist() for ds in (first, second)]
    if ids[0] != ids[1]:
        wrong.append(f"structures differ: {len(set(ids[0]) ^ set(ids[1]))} of {len(ids[0])}")
    else:
        for name in ("energy", "forces"):
            if not np.allclose(first[name].values, second[name].values, atol=1e-6, equal_nan=True):
                wrong.append(f"labels differ: {name}")
    last = a.site.config.cycles
    for cycle in range(last + 1):
        if a.potential(cycle).model_hash != b.potential(cycle).model_hash:
            wrong.append(f"the model of cycle {cycle} differs")
    for step in b.site.steps():
        if not b.site.exists(step.makes):
            wrong.append(f"{step.name} is missing")
    return wrong
