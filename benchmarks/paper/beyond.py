"""Beyond the paper: half the labels, the cutters of others, a tenth of the cost.

Each is asked of the same frames, labels and training as claims 3 to 5.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters import cut, random_cores
from mofal.clusters import select as select_cores
from mofal.data import open_group, select, write_group
from mofal.density import fit_density, score
from mofal.frameworks import find_blocks
from mofal.potential import split_structures
from paper import cutters, data, judge
from paper.cutting import gpaw_seconds, grid_points
from paper.forces import LOCAL, MEV, Result, _title, curve_of, grid, marks_of, table_of
from paper.judge import Finding
from paper.lab import DEFECTS, SEED, Lab
from paper.models import loaded
from paper.store import Node

RULES = ("random", "paper", "covering")
"""Any brick; least likely atom first (the paper's); the same, each pick covering its like."""


# ------------------------------------------------------------------------------ half the labels
def make_chosen(
    path: Path,
    system: Path,
    frames: Path,
    model: Path,
    known: Path,
    *,
    rule: str,
    n: int,
    seed: int,
) -> None:
    """Clusters of the bricks that a rule chooses among all bricks of all frames."""
    start, ds = open_group(system).load(), open_group(frames).load()
    blocks = {str(start["system"].values[0]): find_blocks(start)}
    if rule == "random":
        cores = random_cores(ds, blocks, n=n, seed=seed, roles=("node",))
    else:
        potential, labels = loaded(model), open_group(known).load()
        # What the model has learnt from, without its validation part: as in claim 9.
        learnt = split_structures(labels, seed=1)["split"].values.astype(str) == "train"
        density = fit_density(
            potential.featurize(select(labels, np.flatnonzero(learnt))),
            random_state=0,
            max_components=6,
        )
        features = potential.featurize(ds)
        cores = select_cores(
            ds,
            score(features, density),
            blocks,
            n=n,
            seed=seed,
            roles=("node",),
            features=features,
            coverage="features" if rule == "covering" else "none",
        )
    clusters, _ = cut(ds, blocks, cores)
    keep = {*ds.data_vars, "region", "parent_atom", "parent_shift", "charge", "n_electrons"}
    write_group(clusters.drop_vars([v for v in clusters.data_vars if v not in keep]), path)


def chosen_model(lab: Lab, name: str, rule: str, n: int) -> Node:
    """Trained on S_pr's frames and the clusters that a rule chooses."""
    system = lab.system(name)
    known = lab.training_set("S_pr")
    clusters = lab.store.node(
        f"clusters.{rule}-{name}",
        make_chosen,
        system,
        lab.frames(system, lab.size.pool, "pool"),
        lab.pristine(),
        known,
        rule=rule,
        n=n,
        seed=SEED,
    )
    return lab.model(f"mlp_{name[2:]}-{rule}{n}", (known, None), (lab.label(clusters, n), None))


def claim_13(lab: Lab) -> Result:
    """Half the labels: choosing by likelihood and coverage needs fewer than drawing."""
    n = lab.size.counts[0]
    ours: dict[str, Any] = {}
    values: dict[str, dict[str, float]] = {}
    curves = {}
    for name in DEFECTS:
        models = {rule: chosen_model(lab, name, rule, n) for rule in RULES}
        table = table_of(lab, models, {name: lab.test_set(name)})
        values[name] = {m: row[name] for m, row in grid(table, "mae_p95").items()}
        curves[name] = curve_of(lab, name, lab.size.counts)[0]
        for rule in RULES:
            ours[f"{rule}, N = {n}, {name} (meV/Å)"] = round(values[name][rule], 1)
        for count, found in curves[name].items():
            ours[f"defective bricks at random, N = {count}, {name} (meV/Å)"] = [
                round(v, 1) for v in found
            ]
        ours[f"periodic, {name} (meV/Å)"] = [round(v, 1) for v in marks_of(lab, name)]
    verdict, why = judge.judge_selection(values, curves)
    finding = Finding(13, _title(claim_13), {"share of the labels": 0.5}, ours, verdict, why)
    finding.caveats = [LOCAL]
    finding.scaled.append(
        f"N = {n} of {lab.size.pool} frames; every rule chooses among all bricks, the curve of "
        "claim 4 among those with a defect"
    )
    return finding, {}, {}


# ------------------------------------------------------------------------------ cutters
def make_centres(path: Path, labels: Path) -> None:
    """Labels whose forces are left out but for the first atom's, the centre of its sphere."""
    ds = open_group(labels).load()
    masked = np.ones(ds.sizes["atom"], bool)
    masked[np.concatenate([[0], np.cumsum(ds["n_atoms"].values)[:-1]])] = False
    write_group(ds.assign(masked=("atom", masked)), path, kind="labels")


def make_tried(path: Path, structures: Path, *, cache: str) -> None:
    """How GFN1-xTB ends on clusters: a table of statuses (structure)."""
    from mofal.reference import LabelCache, get_reference, label_one

    ds = open_group(structures).load()
    method, store = get_reference("gfn1-xtb"), LabelCache(cache)
    ended = [
        label_one(select(ds, k), method, directory=store).status
        for k in range(ds.sizes["structure"])
    ]
    table = xr.Dataset({"status": ("structure", np.array(ended, dtype="U24"))})
    write_group(table, path, kind="table")


def claim_14(lab: Lab) -> Result:
    """Blocks against the cutters of others, on the same frames."""
    name, n = "S_ld", lab.size.counts[0]
    system = lab.system(name)
    frames = lab.frames(system, n, "pool")
    ours: dict[str, Any] = {}
    models: dict[str, Node] = {}
    values: dict[str, dict[str, float]] = {}
    for row in cutters.compare(lab):
        values[row.pop("cutter")] = row
    for cutter in cutters.CUTTERS:
        cuts = cutters.cuts_of(lab, cutter, frames)
        tried = lab.store.node(
            f"tried.{cutter.replace(' ', '-')}",
            make_tried,
            lab.store.node(
                f"few.{cutter.replace(' ', '-')}", make_few, cuts, n=lab.size.match_frames
            ),
            where={"cache": str(lab.store.work / "labels-gfn1")},
        )
        status = lab.get(tried)[0]["status"].values.astype(str)
        values[cutter]["labelled by GFN1-xTB"] = float((status == "converged").mean())
        labels = lab.label(cuts, n)
        learnt = [(lab.training_set("S_pr"), None), (labels, None)]
        models[cutter] = lab.model(f"mlp_ld-{cutter.replace(' ', '-')}", *learnt)
        if cutter == "sphere":
            centres = lab.store.node("labels.centres", make_centres, labels)
            models["centre alone"] = lab.model("mlp_ld-centre", learnt[0], (centres, None))
    table = table_of(lab, {"mlp_pr": lab.pristine(), **models}, {name: lab.test_set(name)})
    error = {m: row[name] for m, row in grid(table, "mae_p95").items()}
    values["centre alone"] = dict(values["sphere"])
    for who, row in values.items():
        ours |= {f"{key}, {who}": round(float(v), 2) for key, v in row.items() if key != "n"}
        ours[f"MAE_P95 after N = {n}, {who} (meV/Å)"] = round(error[who], 1)
    ours["MAE_P95, mlp_pr (meV/Å)"] = round(error["mlp_pr"], 1)
    verdict, why = judge.judge_cutters(values, error)
    finding = Finding(14, _title(claim_14), {}, ours, verdict, why)
    finding.paper = {"compared by the paper": "nothing"}
    finding.caveats = [
        LOCAL,
        "what SevenNet-0 forgives, open bonds and electrons that do not pair, GFN1-xTB does not: "
        "the share that it labels is the row to read first",
    ]
    finding.scaled.append(
        f"{name}, {n} clusters each, {lab.size.match_frames} of them for forces against the parent "
        "and GFN1-xTB"
    )
    return finding, {}, {}


def make_few(path: Path, structures: Path, *, n: int) -> None:
    """The first of some structures."""
    ds = open_group(structures).load()
    write_group(select(ds, np.arange(min(n, ds.sizes["structure"]))), path)


# ------------------------------------------------------------------------------ a tenth of the cost
def claim_15(lab: Lab) -> Result:
    """A tenth of the cost: the smallest blueprint that carries the forces of the core."""
    ours: dict[str, Any] = {}
    ratios: dict[str, float | None] = {}
    for name in DEFECTS:
        system, n = lab.system(name), lab.size.pool
        bricks = lab.store.node(
            f"clusters.bare-{name}",
            data.make_clusters,
            system,
            lab.frames(system, n, "pool"),
            n=n,
            seed=SEED,
            shells=0,
        )
        labels = lab.label(bricks, n)
        curve: dict[int, list[float]] = {}
        for count in lab.size.counts:
            # Of a bare brick the forces on its caps are those of another molecule.
            model = lab.model(
                f"mlp_{name[2:]}-bare{count}",
                (lab.training_set("S_pr"), None),
                (labels, [count, 0, SEED]),
                regions="core",
            )
            table = table_of(lab, {"bare": model}, {name: lab.test_set(name)})
            curve[count] = [MEV * float(table["mae_p95"].values[0, 0])]
            ours[f"bare bricks, N = {count}, {name} (meV/Å)"] = round(curve[count][0], 1)
        mark = min(marks_of(lab, name))
        pool, periodic = lab.get(labels, lab.training_set(name))
        cost = [gpaw_seconds(d["numbers"].values, grid_points(d, 0))
                for d in (select(pool, 0), select(periodic, 0))]  # fmt: skip
        ours[f"cost of a bare brick over its parent, GPAW model, {name}"] = round(
            cost[0] / cost[1], 3
        )
        ours[f"periodic, {name} (meV/Å)"] = round(mark, 1)
        at = judge.crossing(curve, mark)
        share = None if at is None else at * cost[0] / (periodic.sizes["structure"] * cost[1])
        ratios[name] = share
        key = f"cost at equal accuracy, GPAW model, {name}"
        ours[key] = "never equal at these N" if share is None else round(share, 3)
    verdict, why = judge.judge_tenth(ratios)
    finding = Finding(15, _title(claim_15), {"share of the cost": 0.1}, ours, verdict, why)
    finding.caveats = [LOCAL]
    finding.scaled.append("bare bricks, their caps not learnt from; no partial mantles")
    return finding, {}, {}


__all__ = ["claim_13", "claim_14", "claim_15"]
