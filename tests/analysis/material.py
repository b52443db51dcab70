"""Simulated results of a campaign, with the shape and the units of real ones."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import xarray as xr

from mofal.analysis import HeldOut, ReportData
from mofal.data import select
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, find_bonds

LEVEL = {"H": -10.0, "C": -50.0, "O": -110.0, "Zr": -30.0}


def formate_atoms(ds: xr.Dataset) -> np.ndarray:
    """Mask of the formates of the first structure: C with two O and one H as neighbours."""
    bonds = find_bonds(ds, 0)["bond_atom"].values
    numbers = ds["numbers"].values[: int(ds["n_atoms"][0])]
    around: list[list[int]] = [[] for _ in numbers]
    for i, j in bonds.tolist():
        around[i].append(j)
        around[j].append(i)
    mask = np.zeros(len(numbers), bool)
    for atom, neighbours in enumerate(around):
        found = sorted(numbers[neighbours].tolist())
        if numbers[atom] == 6 and found == [1, 8, 8]:
            mask[[atom, *neighbours]] = True
    return mask


@cache
def held_out(system: str = "S_ld", n: int = 6) -> HeldOut:
    """Frames with smooth forces, and predictions that are wrong around the formates."""
    start = build(system, cell="primitive")
    frames = sample_harmonic(start, n=n, seed=11)
    rng = np.random.default_rng(5)
    n_atoms = start.sizes["atom"]
    defect = np.tile(formate_atoms(start), n) if system == "S_ld" else np.zeros(n * n_atoms, bool)
    numbers = frames["numbers"].values
    weight = np.array([0.7 if z == 1 else 1.6 for z in numbers])[:, None]
    forces = weight * rng.normal(size=(n * n_atoms, 3))
    labels = frames.copy()
    labels["forces"] = (("atom", "xyz"), forces)
    labels["energy"] = ("structure", rng.normal(-7600.0, 1.0, n))
    labels["status"] = ("structure", np.array(["converged"] * n))
    labels.attrs["isolated_atom_energies"] = json.dumps(LEVEL)
    likelihood = rng.normal(8.0, 2.0, n * n_atoms) - 10.0 * defect * rng.uniform(
        0.6, 1.4, len(defect)
    )
    predictions, by_cycle = {}, {}
    for name, scale, extra in (
        ("seed", 0.09, 0.9),
        ("control", 0.08, 0.8),
        ("campaign", 0.075, 0.1),
        (1, 0.078, 0.3),
    ):
        size = weight * (scale + extra * defect)[:, None] * (1.0 - 0.03 * likelihood[:, None])
        error = size * rng.normal(size=forces.shape)
        predicted = xr.Dataset(
            {
                "predicted_forces": (("atom", "xyz"), forces + error),
                "predicted_energy": ("structure", _relative(labels) + rng.normal(0.3, 0.2, n)),
            }
        )
        if isinstance(name, str):
            predictions[name] = predicted
        if name != "control":
            by_cycle[{"seed": 0, 1: 1, "campaign": 2}[name]] = predicted
    scores = xr.Dataset({"log_likelihood": ("atom", likelihood), "numbers": ("atom", numbers)})
    return HeldOut(
        labels=labels,
        predictions=predictions,
        subsets={"formate": defect} if defect.any() else {},
        scores={"seed": scores},
        by_cycle=by_cycle,
    )


def _relative(labels: xr.Dataset) -> np.ndarray:
    from mofal.data import relative_energy

    return relative_energy(labels).values


def features(seed: int, *, n: int, fresh: bool = False) -> xr.Dataset:
    """Features of four elements, eight numbers each."""
    rng = np.random.default_rng(seed)
    numbers = np.repeat([1, 6, 8, 40], [n, 2 * n, 2 * n, n // 3])
    values = rng.normal(size=(len(numbers), 8)) * np.array([3, 2, 1, 1, 0.5, 0.3, 0.2, 0.1])
    values += np.where(rng.uniform(size=(len(numbers), 1)) < 0.4, 4.0, -2.0)
    values += numbers[:, None] * 0.1
    if fresh:
        values[: 2 * n] += np.array([0, 5, 2, 0, 0, 0, 0, 0])
    return xr.Dataset(
        {"features": (("atom", "feature"), values), "numbers": ("atom", numbers)},
        attrs={"model_hash": "abc"},
    )


def walks(n: int = 6) -> tuple[xr.Dataset, list[xr.Dataset]]:
    """Rows and traces of walks, the last of which exploded."""
    rng = np.random.default_rng(2)
    pressures = rng.uniform(-1.5, 1.5, n)
    time = np.arange(0, 501, 5.0)
    traces = []
    for k in range(n):
        keep = slice(None) if k < n - 1 else slice(60)
        volume = 2230 * (1 - 0.02 * pressures[k] * (1 - np.exp(-time / 120)))
        traces.append(
            xr.Dataset(
                {
                    "time_fs": ("sample", time[keep]),
                    "volume": ("sample", (volume + 6 * np.sin(time / 30 + k))[keep]),
                    "temperature_K": (
                        "sample",
                        (600 - 280 * np.exp(-time / 60) + rng.normal(0, 25, len(time)))[keep],
                    ),
                }
            )
        )
    table = xr.Dataset(
        {
            "walk_system": ("walk", np.array(["S_ld"] * n)),
            "walk_status": ("walk", np.array(["finished"] * (n - 1) + ["exploded"])),
            "walk_reason": ("walk", np.array([""] * (n - 1) + ["temperature 2500 K"])),
            "pressure_GPa": ("walk", pressures),
            "length_fs": ("walk", np.array([500.0] * (n - 1) + [250.0])),
        }
    )
    return table, traces


@cache
def clusters() -> xr.Dataset:
    """Two finite structures with regions, as the clusters room cuts them."""
    from mofal.clusters import cut
    from mofal.frameworks import find_blocks

    frame = select(held_out().labels, [0])
    blocks = {"S_ld": find_blocks(frame)}
    brick = int(np.argmax(blocks["S_ld"]["block_n_atoms"].values))
    cores = xr.Dataset(
        {"core_structure": ("core", [0, 0]), "core_block": ("core", [brick, 1 - min(brick, 1)])}
    )
    found, _ = cut(frame, blocks, cores, shells=1)
    return found


def report_data() -> ReportData:
    """A report with every section."""
    held = held_out()
    table, traces = walks()
    frame = select(held.labels, [0])
    n_atoms = frame.sizes["atom"]
    defect = held.subsets["formate"][:n_atoms]
    return ReportData(
        title="UiO-66 with a missing linker",
        summary=["Level of theory: GFN1-xTB.", "Two cycles, 8 clusters each."],
        systems=[
            {"system": "S_pr", "role": "seed data", "atoms": 114, "frames": 20},
            {"system": "S_ld", "role": "explored", "atoms": 106, "frames": 6},
        ],
        cycles=[
            {"cycle": 0, "labelled": 20, "steps": 800, "model_hash": "a3f5c2d1"},
            {"cycle": 1, "labelled": 8, "refused": 1, "failed": 0, "proposal_mae": 410.0,
             "proposal_mae_p95": 1500.0, "steps": 500, "model_hash": "b7d1"},
            {"cycle": 2, "labelled": 8, "refused": 0, "failed": 1, "proposal_mae": 190.0,
             "proposal_mae_p95": 640.0, "steps": 700, "model_hash": "c9e2"},
        ],
        held_out={"S_ld": held, "S_pr": held_out("S_pr", 4)},
        training_features=features(1, n=900),
        new_features=features(2, n=60, fresh=True),
        frame=frame,
        frame_scores=held.scores["seed"],
        frame_cores=defect,
        clusters=clusters(),
        walks=table,
        traces=traces,
        attempts=xr.Dataset(
            {
                "status": ("attempt", np.array(["converged"] * 36 + ["not_converged"])),
                "n_atoms": ("attempt", np.array([114] * 20 + [166] * 17)),
                "wall_time": ("attempt", np.linspace(2.0, 6.0, 37)),
            }
        ),
        facts={"level of theory": "GFN1-xTB (tblite 0.8.0)", "seed": "1", "mofal": "0.1.0"},
    )  # fmt: skip
