"""Claims 5 and 10: what a cluster costs, and whether it carries the forces of its parent."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mofal.analysis.pictures import plot_cluster_values
from mofal.clusters import compare_forces
from mofal.data import atom_slice, concat, select
from paper import data, judge
from paper.forces import LOCAL, MEV, Result, _title, crossing_curves
from paper.judge import Finding
from paper.lab import DEFECTS, SEED, Lab
from paper.masks import formate_mask

VALENCE = {1: 1, 6: 4, 8: 6, 40: 12, 72: 12}
"""Electrons that GPAW's setups treat (Hf as Zr)."""
VACUUM = 4.0
POINTS = 0.175
MEASURED = {"points": 92**3, "bands": 584 / 2 - 42 / 2, "seconds": 2 * 989.0}
"""`gpaw:paper` on the capped brick of 66 atoms, two ranks, to convergence (docs/reference.md)."""


def gpaw_seconds(numbers: np.ndarray, points: float) -> float:
    """CPU seconds of a label at the paper's level, from the one that was measured.

    Finite differences spend their time on bands times grid points, and on bands squared times
    grid points where bands are made orthogonal; for more than a hundred bands the second leads.
    """
    bands = sum(VALENCE[int(z)] for z in numbers) / 2
    return MEASURED["seconds"] * (points / MEASURED["points"]) * (bands / MEASURED["bands"]) ** 2


def grid_points(ds: Any, i: int) -> float:
    """Points of a cluster's box with its vacuum, or of a crystal's cell, at 0.175 Å."""
    if ds["pbc"].values[i].any():
        return abs(np.linalg.det(ds["cell"].values[i])) / POINTS**3
    x = ds["positions"].values[atom_slice(ds, i)]
    return float(np.prod(np.ptp(x, axis=0) + 2 * VACUUM)) / POINTS**3


def claim_5(lab: Lab) -> Result:
    """Labels cost a fifth at equal accuracy."""
    ours: dict[str, Any] = {}
    ratios = []
    curves, marks = crossing_curves(lab)
    for name in DEFECTS:
        pool, periodic = lab.get(lab.pool(name), lab.training_set(name))
        crystal = select(periodic, 0)
        cluster = select(pool, 0)
        dft = [gpaw_seconds(ds["numbers"].values, grid_points(ds, 0)) for ds in (cluster, crystal)]
        level = [float(np.median(ds["wall_time"].values)) for ds in (pool, periodic)]
        n = judge.crossing(curves[name], min(marks[name]))
        ours[f"cost of a cluster over its parent, GPAW model, {name}"] = round(dft[0] / dft[1], 2)
        ours[f"cost of a cluster over its parent, at the level, {name}"] = round(
            level[0] / level[1], 2
        )
        if n is None:
            ours[f"cost at equal accuracy, {name}"] = "never equal at these N"
            continue
        share = n * dft[0] / (periodic.sizes["structure"] * dft[1])
        ours[f"cost at equal accuracy, GPAW model, {name}"] = round(share, 2)
        ratios.append(share)
    if ratios:
        verdict, why = judge.graded(
            [r < 0.4 for r in ratios] + [False] * (len(DEFECTS) - len(ratios)),
            "labels of the clusters that equal the periodic model cost under two fifths of its own",
        )
    else:
        verdict, why = judge.NOT, "no cluster model equals its periodic one at these N"
    finding = Finding(
        5, _title(claim_5), {"cost at equal accuracy": 0.2}, ours, verdict, why, caveats=[LOCAL]
    )
    finding.caveats.append(
        "the cost of GPAW is a model with one measured point (bands squared times grid points); "
        "the ratio of costs is all that enters"
    )
    return finding, {}, {}


def claim_10(lab: Lab) -> Result:
    """Force matching: the core's first neighbours are enough."""
    n = lab.size.match_frames
    system = lab.system("S_ld")
    frames = lab.frames(system, n, "test")
    parents, model = lab.label(frames, n), lab.pristine()
    found: dict[tuple[str, str, str], float] = {}
    shown, values = [], []
    for candidate, shells in (("small", 0), ("large", 1)):
        cut = lab.store.node(
            "clusters.match",
            data.make_clusters,
            system,
            frames,
            n=n,
            seed=SEED,
            shells=shells,
            fixed=True,
        )
        labels = lab.label(cut, n)
        truth, cluster = lab.get(parents, labels)
        p_truth, p_cluster = lab.get(lab.prediction(model, parents), lab.prediction(model, labels))
        formate = np.flatnonzero(formate_mask(select(truth, 0)))
        for who, whole, part in (
            ("level", truth, cluster),
            ("mlp", _said(truth, p_truth), _said(cluster, p_cluster)),
        ):
            table = compare_forces(whole, part, groups={"formate": formate})
            found[who, candidate, "all"] = MEV * float(table["rmse_all"][0])
            found[who, candidate, "core"] = MEV * float(table["rmse_core"][0])
            found[who, candidate, "formate"] = MEV * float(table["rmse_group"].values[0, 0])
            found[who, candidate, "Zr"] = MEV * float(
                table["rmse_element"].sel(element="Zr").values[0]
            )
            if who == "level":
                shown.append(select(cluster, 0))
                values.append(MEV * table["rmse"].values)
    verdict, why = judge.judge_match(found)
    names = {"level": "level", "mlp": "mlp_pr"}
    ours = {
        f"{names[who]}, {c}, {atoms} (meV/Å)": round(v, 1) for (who, c, atoms), v in found.items()
    }
    paper: dict[str, Any] = {}
    for who, table in (
        ("level", ((456, 114, 41), (200, 67, 31))),
        ("mlp_pr", ((844, 227, 86), (255, 59, 30))),
    ):
        for c, row in zip(("small", "large"), table):
            for atoms, v in zip(("all", "Zr", "formate"), row):
                paper[f"{who}, {c}, {atoms} (meV/Å)"] = v
    figure: Figure = plot_cluster_values(
        concat(shown),
        np.concatenate(values),
        titles=["small", "large"],
        label="RMSE of cluster against parent (meV/Å)",
    )
    finding = Finding(10, _title(claim_10), paper, ours, verdict, why)
    finding.caveats.append(
        "the level here knows no electrons: a dangling bond or a wrong spin costs it nothing"
    )
    finding.scaled.append(f"{n} frames (paper: 100)")
    return finding, {"match": figure}, {}


def _said(labels: Any, predicted: Any) -> Any:
    """Labels with a model's forces in the place of the level's."""
    return labels.assign(forces=(("atom", "xyz"), predicted["predicted_forces"].values))
