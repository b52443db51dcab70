"""Which forces of a cluster to learn from: all atoms, the core only, or weighted.

    python benchmarks/potential_regions.py [--size tiny|full] [--directory DIR] [--seeds 1 2 3]

The demo's system: a potential that knows the primitive cell of UiO-66 learns one with a linker
missing from clusters, labelled with GFN1-xTB (at `tiny`: by the potential that travels with
mofal). The same start, clusters and number of steps for each
variant; the control sees the seed data only, and as many atoms. `weighted` counts the mantle by a
half and the caps not at all; `matched` weighs each atom by how well forces match at its distance
from the cut: both the clusters and the frames that they were cut from are labelled. Errors are on
held-out frames of a harmonic sampler, which does not know the model. Seeds run side by side in
processes of one thread. Labels and trainings are kept in DIR: an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import xarray as xr

from mofal.clusters import compare_forces, cut, select
from mofal.clusters.match import match_weights
from mofal.data import concat, to_atoms
from mofal.data import select as choose
from mofal.density import fit_density, score
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, find_blocks
from mofal.potential import (
    ARCHITECTURES,
    NequIPPotential,
    TrainingSettings,
    split_structures,
    train,
)
from mofal.reference import get_reference, label_one

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"seed": 2, "pool": 1, "clusters": 1, "test": 1, "epochs": 3, "more": 2},
    "full": {"seed": 16, "pool": 16, "clusters": 8, "test": 8, "epochs": 280, "more": 140},
}
LEVELS = {"tiny": "ase:paper.teacher:seed_potential?electrons=ignore", "full": "gfn1-xtb"}
"""The teacher of the paper's claims takes a hundredth of the time, and says nothing of regions."""
ELEMENTS = ("H", "C", "O", "Zr")
KEPT = ("region", "parent_atom", "charge", "n_electrons")
MEV = 1000.0
COLUMNS = ("formate MAE", "defective MAE", "and MAE_P95", "pristine MAE", "and MAE_P95")


def labelled(ds: xr.Dataset, level: str, directory: str, what: str) -> xr.Dataset:
    """Structures with labels; those that fail are left out."""
    reference = get_reference(level)
    energy, forces, good = [], [], []
    for k, atoms in enumerate(to_atoms(ds)):
        attempt = label_one(atoms, reference, directory=directory)
        good.append(attempt.status == "converged")
        energy.append(np.nan if attempt.energy is None else attempt.energy)
        missing = np.full((len(atoms), 3), np.nan)
        forces.append(missing if attempt.forces is None else np.asarray(attempt.forces))
        print(f"  {what} {k + 1}/{ds.sizes['structure']}: {attempt.status}", flush=True)
    n = ds.sizes["structure"]
    text = np.dtypes.StringDType()  # type: ignore[attr-defined]
    out = ds.assign(
        energy=("structure", np.array(energy)),
        forces=(("atom", "xyz"), np.concatenate(forces)),
        stress=(("structure", "voigt"), np.full((n, 6), np.nan)),
        status=("structure", np.array(["converged"] * n, text)),
    )
    out.attrs["level_hash"] = reference.level_hash
    atoms_eV = reference.isolated_atom_energies(ELEMENTS)
    out.attrs["isolated_atom_energies"] = json.dumps({k: float(v) for k, v in atoms_eV.items()})
    return choose(out, np.flatnonzero(good))


def formate_atoms(ds: xr.Dataset) -> np.ndarray:
    """Mask of formate atoms: C with one H and two O, and these H and O: shape (atom,)."""
    from mofal.frameworks import find_bonds

    mask = np.zeros(ds.sizes["atom"], bool)
    numbers = ds["numbers"].values
    ends = np.concatenate([[0], np.cumsum(ds["n_atoms"].values)])
    for i in range(ds.sizes["structure"]):
        bonds = find_bonds(ds, i)["bond_atom"].values
        near: dict[int, list[int]] = {}
        for a, b in bonds:
            near.setdefault(int(a), []).append(int(b))
            near.setdefault(int(b), []).append(int(a))
        z = numbers[ends[i] : ends[i + 1]]
        for atom, others in near.items():
            if z[atom] == 6 and sorted(z[others].tolist()) == [1, 8, 8]:
                mask[ends[i] + np.array([atom, *others])] = True
    return mask


def errors(potential: NequIPPotential, ds: xr.Dataset, mask: np.ndarray) -> list[float]:
    """MAE of forces on the masked atoms, on all, and MAE_P95 over all, meV/Å."""
    wrong = np.abs(potential.evaluate(ds)["forces"].values - ds["forces"].values)
    threshold = np.percentile(wrong, 95)
    near = wrong[mask] if mask.any() else wrong
    return [MEV * float(x.mean()) for x in (near, wrong, wrong[wrong >= threshold])]


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Print the table; return per variant, for each seed, the five errors of COLUMNS (meV/Å)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--directory", help="kept; default: a temporary one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    # A spawned process sees it before its numerics start.
    os.environ["OMP_NUM_THREADS"] = "1"
    table: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = options.directory or scratch
        given = [
            (options.size, seed, f"{kept}/labels", f"{kept}/{options.size}-{seed}")
            for seed in options.seeds
        ]
        if options.processes == 1 or len(given) == 1:
            parts = [one_seed(*arguments) for arguments in given]
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
                parts = list(pool.map(one_seed, *zip(*given)))
    for part in parts:
        for name, values in part.items():
            table.setdefault(name, []).extend(values)
    n = len(COLUMNS)
    print("meV/Å; " + ", ".join(COLUMNS) + "; one block per seed, then the median")
    for name, values in table.items():
        blocks = np.array(values).reshape(-1, n)
        if len(blocks) > 1:
            blocks = np.concatenate([blocks, np.median(blocks, axis=0)[None]])
        print(f"  {name:9s}" + " |".join("".join(f"{v:6.0f}" for v in one) for one in blocks))
    return table


def one_seed(name: str, seed: int, labels: str, directory: str) -> dict[str, list[float]]:
    """All variants for one seed."""
    size, level, work = SIZES[name], LEVELS[name], Path(directory)
    pristine, defect = build("UiO-66", cell="primitive"), build("S_ld", cell="primitive")
    known = labelled(
        sample_harmonic(pristine, n=size["seed"], seed=(seed, 1)), level, labels, "seed"
    )
    known = split_structures(known, seed=seed)
    pool = sample_harmonic(defect, n=size["pool"], seed=(seed, 2))
    tests = [
        labelled(sample_harmonic(ds, n=size["test"], seed=(seed, k)), level, labels, "test")
        for ds, k in ((defect, 3), (pristine, 4))
    ]
    masks = [formate_atoms(ds) for ds in tests]

    # The demo's settings, so that the answer is one for the demo (mofal/campaign/demo.yaml).
    first = TrainingSettings(
        architecture=ARCHITECTURES["tiny"],
        learning_rate=0.01,
        batch_size=2,
        ema_decay=0.99,
        energy_weight=10,
        stop_patience=1000,
        max_epochs=size["epochs"],
    )
    start = train(known, first, out=work / "start", seed=seed, elements=ELEMENTS, progress=print)
    training = choose(known, known["split"].values == "train")
    density = fit_density(start.featurize(training), random_state=seed, max_components=4)
    scores = score(start.featurize(pool), density)
    blocks = {str(pool["system"].values[0]): find_blocks(defect)}
    cores = select(pool, scores, blocks, n=size["clusters"], seed=seed)
    clusters, refused = cut(pool, blocks, cores)
    print(f"  {clusters.sizes['structure']} clusters, {refused.sizes.get('core', 0)} refused")
    odd = [v for v in clusters.data_vars if v not in known and v not in KEPT]
    more = labelled(clusters.drop_vars(odd), level, labels, "cluster")
    both = split_structures(concat([known, more]), seed=seed)

    plan = first.model_copy(
        update={
            "learning_rate": 0.007,
            "ema_decay": 0.995,
            "decay": "cosine",
            "warm_up_epochs": 3,
            "max_epochs": size["more"],
        }
    )
    # The control sees as many atoms as the others, not as many epochs of fewer structures.
    per_epoch = [
        int(ds["n_atoms"].values[ds["split"].values == "train"].sum()) for ds in (known, both)
    ]
    longer = round(size["more"] * per_epoch[1] / per_epoch[0])
    runs: dict[str, tuple[xr.Dataset, TrainingSettings]] = {
        "control": (known, plan.model_copy(update={"max_epochs": longer}))
    }
    for regions in ("all", "core", "weighted"):
        runs[regions] = (both, plan.model_copy(update={"regions": regions}))
    runs["matched"] = (
        matched(both, known, clusters, more, pool, level, labels),
        runs["weighted"][1],
    )
    models = {"seed": start}
    for run, (ds, settings) in runs.items():
        models[run] = train(ds, settings, out=work / run, seed=seed, start=start, progress=print)
    table: dict[str, list[float]] = {}
    for run, model in models.items():
        table[run] = errors(model, tests[0], masks[0]) + errors(model, tests[1], masks[1])[1:]
    return table


def matched(
    both: xr.Dataset,
    known: xr.Dataset,
    clusters: xr.Dataset,
    more: xr.Dataset,
    pool: xr.Dataset,
    level: str,
    labels: str,
) -> xr.Dataset:
    """The training data with `force_weight`: for the clusters what force matching says."""
    good = np.isin(clusters["structure_id"].values, more["structure_id"].values)
    clusters = choose(clusters, good).assign(forces=(("atom", "xyz"), more["forces"].values))
    frames = np.isin(pool["structure_id"].values, clusters["parent"].values)
    parents = labelled(choose(pool, frames), level, labels, "parent")
    squares = []
    # Cores differ, so each cluster is compared on its own; what is kept is the mean by distance.
    tables = [
        compare_forces(parents, choose(clusters, [k])) for k in range(clusters.sizes["structure"])
    ]
    n_bins = max(t.sizes["distance"] for t in tables)
    for t in tables:
        square = np.full(n_bins, np.nan)
        square[: t.sizes["distance"]] = t["rmse_distance"].values[0] ** 2
        squares.append(square)
    longest = max(tables, key=lambda t: t.sizes["distance"])
    mean = np.sqrt(np.nanmean(squares, axis=0))
    print("  RMSE by distance: " + ", ".join(f"{MEV * v:.0f}" for v in mean))
    table = longest.assign(rmse_distance=(("candidate", "distance"), mean[None]))
    weights = match_weights(clusters, table)
    print(f"  mean weight {weights.mean():.2f}")
    crystals = np.full(known.sizes["atom"], np.nan)
    return both.assign(force_weight=("atom", np.concatenate([crystals, weights])))


if __name__ == "__main__":
    main(sys.argv[1:])
