"""What is attacked, and the comparison with what nobody attacked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ENERGIES = '{"H":0.0,"C":0.0,"O":0.0,"Zr":0.0}'
PAIRS = f"ase:tests.slurm.cheap:Pairs?isolated_atom_energies={ENERGIES}"
#: Differ between runs by their nature.
TIMES = {"wall_time", "seconds", "started", "host"}


def content(**changes: Any) -> dict[str, Any]:
    """A campaign file's content: eight labels, two models, with every step that costs something."""
    return {
        "name": "attacked",
        "seed": 11,
        "systems": {
            "pristine": {"build": "S_pr", "cell": "primitive", "explore": False},
            "defective": {"build": "S_ld", "cell": "primitive"},
        },
        "seed_data": {"perturbed": {"system": "pristine", "frames": 3}},
        "cycles": 1,
        "reference": {"name": PAIRS, "max_force_eV_per_A": 1000.0},
        "potential": {
            "architecture": {"r_max": 3.0, "n_layers": 1, "n_features": 2},
            "seed": {"learning_rate": 0.01, "max_epochs": 1},
            "cycle": {"learning_rate": 0.01, "max_epochs": 1},
            "final": {"learning_rate": 0.01, "max_epochs": 1},
        },
        "density": {"max_components": 1},
        "exploration": {"walks": 2, "length_fs": 2, "barostat_fs": 1, "ramp_cycles": 1},
        "selection": {"clusters": 5},
        "schedule": {"backend": "inline"},
        **changes,
    }


@dataclass(frozen=True)
class Target:
    """A command that is attacked; what it leaves in `campaign` of its folder is compared.

    Attributes
    ----------
    write
        Makes the input of a folder.
    argv
        Arguments of `mofal` for a folder.
    compare
        ``module:function`` of two such places; returns the differences.
    modules
        What the command imports sooner or later.
    """

    write: Callable[[Path], Any]
    argv: Callable[[Path], list[str]]
    compare: str
    modules: tuple[str, ...]


def write_campaign(folder: Path, **changes: Any) -> Path:
    """Write the campaign file of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "campaign.yaml"
    path.write_text(yaml.safe_dump(content(**changes)))
    return path


def compare(one: str, other: str) -> list[str]:
    """Every difference between two finished campaigns: groups bit for bit, models by their hash."""
    import mofal
    from mofal.data import open_group

    first, second = Path(one), Path(other)
    a, b = mofal.open(first), mofal.open(second)
    wrong = [f"{s.name} is missing" for s in a.site.steps() if not b.site.exists(s.makes)]
    if wrong:
        return wrong
    for place in sorted(p.parent.relative_to(first) for p in first.rglob("zarr.json")):
        if place.suffix != ".zarr" or place.parts[0] == "work":
            continue
        if not (second / place).is_dir():
            wrong.append(f"{place} is missing")
            continue
        x, y = open_group(first / place).load(), open_group(second / place).load()
        if set(x.variables) != set(y.variables):
            wrong.append(f"{place} holds other variables")
            continue
        for name in map(str, x.variables):
            if name in TIMES:
                continue
            left, right = x[name].values, y[name].values
            same = left.shape == right.shape and (
                np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
            )
            if not same:
                wrong.append(f"{place}: {name} differs")
    for cycle in range(a.site.config.cycles + 1):
        if a.potential(cycle).model_hash != b.potential(cycle).model_hash:
            wrong.append(f"the model of cycle {cycle} differs")
    return wrong


def write_structures(folder: Path, **schedule: Any) -> None:
    """Write three small molecules, and the schedule of their labels."""
    from ase.build import molecule
    from ase.io import write

    write_campaign(folder, schedule=schedule or {"backend": "inline"})
    write(folder / "molecules.xyz", [molecule(name) for name in ("H2O", "CH4", "HCOOH")])


def label_argv(folder: Path) -> list[str]:
    """Label them."""
    place = folder / "campaign"
    place.mkdir(exist_ok=True)
    return [
        *("label", str(folder / "molecules.xyz"), "--reference", PAIRS),
        *("--schedule", str(folder / "campaign.yaml"), "--records", str(place / "records")),
        *("-o", str(place / "out.extxyz")),
    ]


def compare_labels(one: str, other: str) -> list[str]:
    """Every difference between two directories of labels."""
    from ase.io import read

    from mofal.reference import LabelCache

    wrong = []
    a, b = (
        {r.structure_id: r for r in LabelCache(Path(place, "records")).records()}
        for place in (one, other)
    )
    if set(a) != set(b):
        wrong.append(f"records differ: {len(a)} and {len(b)}")
    for key in sorted(set(a) & set(b)):
        if a[key].status != b[key].status or a[key].energy != b[key].energy:
            wrong.append(f"{key[:10]}: {a[key]} and {b[key]}")
        if not np.array_equal(a[key].forces, b[key].forces):
            wrong.append(f"{key[:10]}: forces differ")
    first, second = (read(Path(place, "out.extxyz"), ":") for place in (one, other))
    for x, y in zip(first, second, strict=True):
        if x != y or not np.array_equal(x.get_forces(), y.get_forces()):
            wrong.append(f"{x.symbols} in the file differs")
    return wrong


LABELS = Target(
    write=write_structures,
    argv=label_argv,
    compare="tests.attacks.campaigns:compare_labels",
    modules=(
        "mofal.cli",
        "mofal.campaign.steps.label",
        "mofal.campaign.config",
        "mofal.data",
        "mofal.reference.cache",
        "mofal.reference.tables",
        "mofal.reference.registry",
        "mofal.schedule.dispatcher",
        "tests.slurm.cheap",
        "xarray",
        "zarr",
        "ase.io.extxyz",
        "matscipy.neighbours",
    ),
)

CAMPAIGN = Target(
    write=write_campaign,
    argv=lambda folder: [
        *("run", str(folder / "campaign.yaml"), "--directory", str(folder / "campaign"))
    ],
    compare="tests.attacks.campaigns:compare",
    modules=(
        *LABELS.modules,
        "mofal.campaign.driver",
        "mofal.campaign.view",
        "mofal.potential",
        "mofal.potential.training",
        "mofal.potential.model",
        "mofal.potential.network",
        "mofal.dynamics.walking",
        "mofal.density",
        "mofal.clusters",
        "nequip.model",
    ),
)

# The same with processes for the scheduler, a job and a worker, each of which may meet the fault.
ONE_WORKER = {"backend": "local", "workers": 1}
LABELS_LOCAL = replace(LABELS, write=lambda folder: write_structures(folder, **ONE_WORKER))
CAMPAIGN_LOCAL = replace(CAMPAIGN, write=lambda folder: write_campaign(folder, schedule=ONE_WORKER))
