"""How much of what is unfamiliar a batch of clusters makes familiar, by rule of coverage.

    python benchmarks/clusters_coverage.py [--size tiny|full]

A density fitted to frames of the pristine cell scores a pool: frames of a disordered supercell, or
many frames of one defective cell and a few of others (an uneven pool). Each rule picks a batch of
cores, or draws one. An atom is *new* when the known atom of its element that is most like it is
farther in features than 999 of 1000 atoms of an unseen pristine frame are. Printed: the share of
the new atoms that are still new when the cores of the batch are known, over seeds. Features are
radial sums over neighbours, eight principal directions of them: no trained potential is needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
import xarray as xr
from matscipy.neighbours import neighbour_list
from scipy.spatial import cKDTree

from mofal.clusters import random_cores, select
from mofal.clusters.coverage import block_classes
from mofal.clusters.graph import block_graph
from mofal.data import concat, offsets
from mofal.data import select as select_structures
from mofal.density import PCA, fit_density, score
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, disorder, find_blocks

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"repeat": (2, 1, 1), "train": 3, "frames": 1, "batches": (4,), "seeds": 1, "most": 3},
    "full": {
        "repeat": (2, 2, 2),
        "train": 20,
        "frames": 3,
        "batches": (10, 30, 90),
        "seeds": 5,
        "most": 20,
    },
}
HEAT: dict[str, Any] = {"temperature_K": 600.0, "volume_strain": 0.0, "shear": 0.0}
"""No strain: what is new is new by its defects."""
RULES: dict[str, dict[str, Any]] = {
    "random": {},
    "least likely, none": {"coverage": "none"},
    "least likely, blocks": {"coverage": "blocks"},
    "least likely, features": {"coverage": "features"},
    "sum below threshold, none": {"coverage": "none", "ranking": "sum_below_threshold"},
    "sum below threshold, features": {"coverage": "features", "ranking": "sum_below_threshold"},
}
CUTOFF = 5.0
DEPTH = 0.999
"""Quantile of distances in a pristine frame beyond which an atom is new."""


def radial(ds: xr.Dataset) -> np.ndarray:
    """Sums over neighbours of Gaussians of the distance, by row of the elements: (atom, 48)."""
    centres = np.linspace(0.9, CUTOFF - 0.4, 16)
    start = offsets(ds["n_atoms"].values)
    out = np.zeros((ds.sizes["atom"], 3, len(centres)))
    for k in range(ds.sizes["structure"]):
        span = slice(start[k], start[k + 1])
        z = ds["numbers"].values[span]
        i, j, d = neighbour_list(
            "ijd",
            positions=ds["positions"].values[span],
            cell=ds["cell"].values[k],
            pbc=ds["pbc"].values[k],
            cutoff=CUTOFF,
        )
        row = np.where(z == 1, 0, np.where(z < 19, 1, 2))
        taper = 0.5 * (np.cos(np.pi * d / CUTOFF) + 1.0)
        for c, centre in enumerate(centres):
            term = np.exp(-(((d - centre) / 0.35) ** 2)) * taper
            for r in range(3):
                mine = row[j] == r
                out[span, r, c] += np.bincount(i[mine], term[mine], minlength=len(z))
    return out.reshape(len(out), -1)


def featurized(ds: xr.Dataset, raw: np.ndarray, basis: PCA) -> xr.Dataset:
    """A features Dataset of the structures."""
    base = ds[["numbers", "n_atoms", "structure_index"]]
    return base.assign(features=(("atom", "feature"), np.asarray(basis.transform(raw))))


def atoms_of(pool: xr.Dataset, by_system: dict[str, xr.Dataset], cores: xr.Dataset) -> np.ndarray:
    """Atoms of the pool that belong to the picked cores."""
    start = offsets(pool["n_atoms"].values)
    found = []
    for s, b in zip(cores["core_structure"].values, cores["core_block"].values):
        blocks = by_system[str(pool["system"].values[s])]
        first = offsets(blocks["block_n_atoms"].values)
        found.append(start[s] + blocks["member_atom"].values[first[b] : first[b + 1]])
    return np.concatenate(found)


def disordered(size: dict[str, Any], seed: int) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Frames of a supercell with missing linkers and bricks."""
    start = disorder(build("S_pr", repeat=size["repeat"]), linker=0.2, brick=0.1, seed=seed)
    frames = [sample_harmonic(start, n=1, seed=(seed, k), **HEAT) for k in range(size["frames"])]
    return concat(frames), {str(start["system"].values[0]): find_blocks(start)}


def uneven(size: dict[str, Any], seed: int) -> tuple[xr.Dataset, dict[str, xr.Dataset]]:
    """Many frames of S_scu, two of S_reo, one of S_ld."""
    frames, blocks = [], {}
    for k, (name, n) in enumerate((("S_scu", size["most"]), ("S_reo", 2), ("S_ld", 1))):
        start = build(name)
        frames.append(sample_harmonic(start, n=n, seed=(seed, 100 + k), **HEAT))
        blocks[name] = find_blocks(start)
    return concat(frames), blocks


class Known:
    """Atoms that are known, by element, in features whitened by those of the pristine frames."""

    def __init__(self, train: xr.Dataset, unseen: xr.Dataset) -> None:
        self.white, self.rows = {}, {}
        for z in np.unique(train["numbers"].values):
            x = train["features"].values[train["numbers"].values == z]
            lower = np.linalg.cholesky(np.cov(x.T) + 1e-9 * np.eye(x.shape[1]))
            self.white[z] = np.linalg.inv(lower).T
            self.rows[z] = x @ self.white[z]
        away = self.distance(unseen)
        z = unseen["numbers"].values
        self.limit = {k: np.quantile(away[z == k], DEPTH) for k in self.rows}

    def distance(self, features: xr.Dataset, more: np.ndarray | None = None) -> np.ndarray:
        """Distance of every atom to the nearest known one of its element: (atom,).

        Parameters
        ----------
        more : atoms of `features` that are known as well
        """
        z, x = features["numbers"].values, features["features"].values
        out = np.full(len(z), np.inf)
        for k, known in self.rows.items():
            mine = np.flatnonzero(z == k)
            extra = mine if more is None else mine[np.isin(mine, more)]
            extra = extra[:0] if more is None else extra
            tree = cKDTree(np.concatenate([known, x[extra] @ self.white[k]]))
            out[mine] = tree.query(x[mine] @ self.white[k])[0]
        return out

    def new(self, features: xr.Dataset, more: np.ndarray | None = None) -> np.ndarray:
        """Which atoms are new: (atom,) bool."""
        limit = np.array([self.limit.get(k, 0.0) for k in features["numbers"].values.tolist()])
        return self.distance(features, more) > limit


Found = dict[tuple[str, int, str], tuple[float, int, float]]


def one_seed(size: dict[str, Any], seed: int) -> Found:
    """Share still new, classes held and time (s) of every pool, batch size and rule."""
    pristine = sample_harmonic(build("S_pr"), n=size["train"] + 2, seed=(seed, 999), **HEAT)
    seen = select_structures(pristine, np.arange(size["train"]))
    unseen = select_structures(pristine, np.arange(size["train"], size["train"] + 2))
    basis = PCA(n_components=8).fit(radial(seen))
    train, held_out = (featurized(ds, radial(ds), basis) for ds in (seen, unseen))
    density, known = fit_density(train, n_components=10), Known(train, held_out)
    found: Found = {}
    for make in (disordered, uneven):
        pool, by_system = make(size, seed)
        features = featurized(pool, radial(pool), basis)
        scores = score(features, density)
        before = known.new(features)
        classes = {name: block_classes(block_graph(b)) for name, b in by_system.items()}
        if seed == 0:
            print(
                f"{make.__name__}: {pool.sizes['atom']} atoms in {pool.sizes['structure']} frames; "
                f"new: {100 * before.mean():.1f} % of the atoms",
                flush=True,
            )
        for n in size["batches"]:
            for rule, options in RULES.items():
                begin = time.perf_counter()
                if rule == "random":
                    cores = random_cores(pool, by_system, n=n, seed=seed)
                else:
                    cores = select(pool, scores, by_system, n=n, features=features, **options)
                spent = time.perf_counter() - begin
                rows = atoms_of(pool, by_system, cores)
                still = known.new(features, rows)[before].mean()
                names = [str(s) for s in cores["system"].values]
                held = {
                    (name, int(classes[name][block]))
                    for name, block in zip(names, cores["core_block"].values)
                }
                found[make.__name__, n, rule] = (float(still), len(held), spent)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    size = SIZES[parser.parse_args(argv).size]
    runs = [one_seed(size, seed) for seed in range(size["seeds"])]
    print(
        f"\n{'pool':<11}{'clusters':>9} {'rule':<30} {'still new':>18} {'classes':>8} {'time s':>7}"
    )
    for key in runs[0]:
        still = 100 * np.array([run[key][0] for run in runs])
        classes = np.mean([run[key][1] for run in runs])
        spent = np.mean([run[key][2] for run in runs])
        print(
            f"{key[0]:<11}{key[1]:9d} {key[2]:<30} {still.mean():8.1f} ± {still.std():4.1f} % "
            f"{classes:8.0f} {spent:7.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
