"""Force matching of the defective brick in S_ld with GFN1-xTB, beside Table SI.3 of the paper.

    python benchmarks/clusters_match.py [--size tiny|small|full] [--labels DIR] [--potential MODEL]

Labels are kept in DIR: an interrupted run goes on where it was. Full size: three frames of the
448-atom cell (some minutes each) and their clusters; small size: of the 106-atom primitive cell,
which is smaller than its clusters. Grow: no parents; clusters of up to two shells are compared with
the largest (Section 2.1.1), since crystals and clusters of tblite are not quite one level. With a
potential (a model directory) the same comparison is made on its forces too: the paper's MLP
columns, where the potential knows the pristine cell only.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import xarray as xr

from mofal.clusters import candidates, compare_forces, cut_candidates, verdict
from mofal.data import to_atoms
from mofal.dynamics import sample_harmonic
from mofal.frameworks import build, find_blocks
from mofal.reference import label_one

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"cell": "primitive", "frames": 1, "shells": (0,), "partial": False},
    "small": {"cell": "primitive", "frames": 3, "shells": (0, 1), "partial": (0.5,)},
    "full": {"cell": "conventional", "frames": 3, "shells": (0, 1), "partial": (0.5,)},
    "grow": {"cell": "conventional", "frames": 1, "shells": (0, 1, 2), "partial": (0.5,)},
}
PAPER = {
    "DFT": {"all": (456, 200), "Zr": (114, 67), "formate": (41, 31)},
    "MLP": {"all": (844, 255), "Zr": (227, 59), "formate": (86, 30)},
}
MEV = 1000.0


def labelled(
    ds: xr.Dataset, directory: str, what: str, pool: ProcessPoolExecutor | None
) -> xr.Dataset:
    """Structures with GFN1-xTB forces (eV/Å) and wall times (s)."""
    forces, wall = [], []
    structures = to_atoms(ds)
    label = functools.partial(label_one, reference="gfn1-xtb", directory=directory)
    attempts = map(label, structures) if pool is None else pool.map(label, structures)
    for k, (atoms, attempt) in enumerate(zip(structures, attempts)):
        print(
            f"  {what} {k + 1}/{ds.sizes['structure']}: {len(atoms)} atoms, {attempt.status}, "
            f"{attempt.wall_time_s:.1f} s",
            flush=True,
        )
        missing = np.full((len(atoms), 3), np.nan)
        forces.append(np.asarray(attempt.forces) if attempt.converged else missing)
        wall.append(attempt.wall_time_s)
    return ds.assign(
        forces=(("atom", "xyz"), np.concatenate(forces)), wall_time=("structure", wall)
    )


def formate_atoms(ds: xr.Dataset, blocks: xr.Dataset, core: int) -> list[int]:
    """Atoms H, C, O, O of formates in one brick: an H whose C holds two O."""
    z = ds["numbers"].values
    near: dict[int, set[int]] = {}
    for a, b in blocks["bond_atom"].values.tolist():
        near.setdefault(a, set()).add(b)
        near.setdefault(b, set()).add(a)
    count = blocks["block_n_atoms"].values
    begin = int(count[:core].sum())
    members = blocks["member_atom"].values[begin : begin + count[core]].tolist()
    found: list[int] = []
    for carbon in members:
        hydrogen = [a for a in near.get(carbon, ()) if z[a] == 1]
        oxygen = [a for a in near.get(carbon, ()) if z[a] == 8]
        if z[carbon] == 6 and len(hydrogen) == 1 and len(oxygen) == 2:
            found += [carbon, *hydrogen, *oxygen]
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--labels", default=None)
    parser.add_argument("--potential", default=None, help="model directory to compare as well")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--frames", type=int, default=None, help="instead of the size's own")
    options = parser.parse_args(argv)
    size = dict(SIZES[options.size])
    if options.frames is not None:
        size["frames"] = options.frames
    # A spawned process sees it before its numerics start: one thread a label, like a campaign.
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        place = options.labels or scratch
        if options.processes == 1:
            run(size, place, options.potential, None, options.size != "grow")
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
                run(size, place, options.potential, pool, options.size != "grow")
    return 0


def run(
    size: dict[str, Any],
    directory: str,
    potential: str | None,
    pool: ProcessPoolExecutor | None,
    with_parents: bool,
) -> None:
    """Label, compare, print."""
    ds = build("S_ld", cell=size["cell"])
    blocks = find_blocks(ds)
    node = np.flatnonzero(blocks["role"].values == "node")
    core = int(node[blocks["coordination"].values[node].argmin()])
    formate = formate_atoms(ds, blocks, core)
    frames = sample_harmonic(ds, n=size["frames"], temperature_K=600.0, seed=0)
    proposals = candidates(
        blocks, core, shells=size["shells"], partial=size["partial"], focus=formate
    )
    clusters, refused = cut_candidates(frames, proposals, blocks)
    for reason in refused["reason"].values:
        print(f"  refused: {reason}")
    if not with_parents:
        compare(None, labelled(clusters, directory, "cluster", pool), formate, "GFN1-xTB")
        return
    parents = labelled(frames, directory, "parent", pool)
    clusters = labelled(clusters, directory, "cluster", pool)
    compare(parents, clusters, formate, "GFN1-xTB")
    print("paper, DFT, small and large: " + ", ".join(f"{k} {v}" for k, v in PAPER["DFT"].items()))
    print(f"parent: {parents['wall_time'].values.mean():.1f} s")
    if potential is None:
        return
    from mofal.potential import load

    model = load(potential)
    truth = parents["forces"].values
    for what, structures in (("parents", parents), ("clusters", clusters)):
        wrong = model.evaluate(structures)["forces"].values - structures["forces"].values
        print(f"  force MAE of the potential on the {what}: {MEV * np.nanmean(abs(wrong)):.0f}")
    print(f"  RMS of the reference's forces on the parents: {MEV * np.sqrt(np.mean(truth**2)):.0f}")
    compare(
        parents.assign(forces=model.evaluate(parents)["forces"]),
        clusters.assign(forces=model.evaluate(clusters)["forces"]),
        formate,
        f"potential, {', '.join(model.elements)}",
    )
    print("paper, MLP, small and large: " + ", ".join(f"{k} {v}" for k, v in PAPER["MLP"].items()))


def compare(
    parents: xr.Dataset | None, clusters: xr.Dataset, formate: list[int], level: str
) -> None:
    """Print the table of one level of theory, and its verdict."""
    table = compare_forces(parents, clusters, groups={"formate": formate})
    names = [str(name) for name in table["candidate"].values]
    rows = {
        "all atoms": table["rmse_all"].values,
        "core": table["rmse_core"].values,
        **{
            f"{symbol} in the core": table["rmse_element"].sel(element=symbol).values
            for symbol in ("Zr", "O", "C", "H")
        },
        "formate": table["rmse_group"].sel(group="formate").values,
    }
    n_frames = int(table["n_frames"].max())
    print(f"\nRMSE over {n_frames} frames, against {table.attrs['compared_with']}, meV/Å ({level})")
    print(f"  {'':<16}" + "".join(f"{name:>22}" for name in names))
    print(f"  {'atoms':<16}" + "".join(f"{n:22d}" for n in table["n_atoms"].values))
    print(f"  {'wall time, s':<16}" + "".join(f"{c:22.1f}" for c in table["cost"].values))
    for name, values in rows.items():
        print(f"  {name:<16}" + "".join(f"{MEV * v:22.0f}" for v in values))
    print("\nby distance to the nearest cap, meV/Å")
    for middle, values in zip(table["distance"].values, table["rmse_distance"].values.T):
        low, high = middle - 0.75, middle + 0.75
        print(f"  {low:4.1f} to {high:4.1f} Å  " + "".join(f"{MEV * v:22.0f}" for v in values))
    print(verdict(table).text)


if __name__ == "__main__":
    sys.exit(main())
