"""Frames of 10⁵ to 10⁶ atoms by spatial domains: time, memory, and what the surroundings cost.

    python benchmarks/engine_domains.py [--size tiny|full] [--repeat N ...] [--what features forces]

The reference is a frame of UiO-66 with missing linkers and bricks that goes in one pass (23,700
atoms). Each larger frame is cut into domains, one Dask task each, on workers of one thread
(`--workers`, processes of their own). Prints, for features and for energy, forces and stress:

- processor time per *processed* atom (surroundings included), and its ratio to the reference's;
- processed atoms over atoms, and the halo factor ((x + 2 halo)/x)³ of slabs about a domain;
- processor time per atom of the frame, and that over the reference's: what domains cost;
- the largest memory that any one process held (VmHWM, libraries included).

Where a frame of the same kind fits in one pass, both are compared (`difference`). With `--sample K`
no frame is computed whole: K of its domains are, one after another in one process that holds all of
the frame, as a worker would.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]
SEED = HERE / "mofal" / "examples" / "seeds" / "uio66-gfn1"
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"reference": 1, "repeats": [2], "largest": {"features": 2500, "forces": 2500}},
    "full": {"reference": 4, "repeats": [8], "largest": {}},
}
METHODS = {"features": "featurize_arrays", "forces": "evaluate_arrays"}
SAMPLED = 12
"""Domains in which processed atoms are counted, where there are more."""


def frame(repeat: int) -> Any:
    """A frame of a supercell with a fifth of its linkers and a tenth of its bricks missing."""
    from mofal.data import make_structures
    from mofal.frameworks import build, disorder

    made = build("S_pr", repeat=(repeat,) * 3)
    if repeat > 1:
        made = disorder(made, linker=0.2, brick=0.1, seed=0)
    rng = np.random.default_rng(1)
    return make_structures(
        made["numbers"].values,
        made["positions"].values + rng.normal(scale=0.05, size=made["positions"].shape),
        n_atoms=made["n_atoms"].values,
        cell=made["cell"].values,
    )


def peak_GB() -> float:
    """Largest memory that this process has held."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e9


def one_thread() -> float:
    """Set torch to one thread; processor seconds so far."""
    import torch

    torch.set_num_threads(1)
    return time.process_time()


def one_pass(task: tuple[str, int, str]) -> dict[str, Any]:
    """The reference: a frame in one pass, in a process of its own."""
    from mofal.potential import load

    potential, repeat, what = task
    model, ds = load(potential), frame(repeat)
    one_thread()
    run = model.featurize if what == "features" else model.evaluate
    run(frame(1))
    start = time.process_time()
    found = run(ds)
    seconds = time.process_time() - start
    name = "features" if what == "features" else "forces"
    return {
        "atoms": ds.sizes["atom"],
        "seconds": seconds,
        "GB": peak_GB(),
        "values": np.asarray(found[name].values),
    }


def by_domains(potential: str, repeat: int, what: str, workers: int, largest: Any) -> Any:
    """A frame cut into domains, on workers."""
    from distributed import Client, LocalCluster

    from mofal.potential import load
    from mofal.potential.domains import (
        LARGEST,
        cut_domain,
        grid_of,
        halo_factor,
        make_box,
        reach,
    )

    model, ds = load(potential), frame(repeat)
    one_thread()
    box = make_box(*(ds[k].values for k in ("numbers", "positions")), ds["cell"][0], ds["pbc"][0])
    n, most = ds.sizes["atom"], largest or LARGEST[METHODS[what]]
    grid = grid_of(box.widths, n, reach=reach(model), largest=most)
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,
            dashboard_address=None,
            silence_logs=40,
        ) as cluster,
        Client(cluster) as client,
    ):
        run = model.featurize if what == "features" else model.evaluate
        client.run(one_thread)
        run(frame(1), domains=(2, 1, 1))
        before = client.run(time.process_time)
        own, wall = time.process_time(), time.perf_counter()
        found = run(ds, domains=grid)
        wall, own = time.perf_counter() - wall, time.process_time() - own
        after = client.run(time.process_time)
        peaks = [peak_GB(), *client.run(peak_GB).values()]
    places = list(product(*map(range, grid)))
    rng = np.random.default_rng(0)
    if len(places) > SAMPLED:
        places = [places[k] for k in rng.choice(len(places), SAMPLED, replace=False)]
    how = {"r_max": model.r_max, "n_layers": model.architecture.n_layers}
    cut = [cut_domain(box, grid, place, **how) for place in places]
    name = "features" if what == "features" else "forces"
    return {
        "atoms": n,
        "grid": grid,
        "halo": halo_factor(box.widths, grid, reach(model)),
        "processed": sum(len(d.atom) for d in cut) / sum(d.own for d in cut),
        "seconds": sum(after[w] - before[w] for w in after) + own,
        "wall": wall,
        "GB": max(peaks),
        "values": np.asarray(found[name].values),
    }


def sampled(task: tuple[str, int, str, int, int]) -> dict[str, Any]:
    """Some domains of a frame, in a process of its own."""
    from mofal.potential import load
    from mofal.potential.domains import (
        LARGEST,
        cut_domain,
        evaluate_domain,
        featurize_domain,
        grid_of,
        halo_factor,
        make_box,
        reach,
    )

    potential, repeat, what, largest, n = task
    model, ds = load(potential), frame(repeat)
    one_thread()
    box = make_box(*(ds[k].values for k in ("numbers", "positions")), ds["cell"][0], ds["pbc"][0])
    most = largest or LARGEST[METHODS[what]]
    grid = grid_of(box.widths, ds.sizes["atom"], reach=reach(model), largest=most)
    places = list(product(*map(range, grid)))
    rng = np.random.default_rng(0)
    places = [places[k] for k in rng.choice(len(places), min(n, len(places)), replace=False)]
    run = featurize_domain if what == "features" else evaluate_domain
    run(model, make_box(np.full(2, 1), np.eye(3)[:2], np.eye(3), np.zeros(3)), (1, 1, 1), (0, 0, 0))
    how = {"r_max": model.r_max, "n_layers": model.architecture.n_layers}
    before, wall = time.process_time(), time.perf_counter()
    for place in places:
        run(model, box, grid, place)
    seconds, wall = time.process_time() - before, time.perf_counter() - wall
    peak = peak_GB()
    cut = [cut_domain(box, grid, place, **how) for place in places]
    own = sum(d.own for d in cut)
    return {
        "atoms": ds.sizes["atom"],
        "grid": grid,
        "halo": halo_factor(box.widths, grid, reach(model)),
        "processed": sum(len(d.atom) for d in cut) / own,
        "seconds": seconds * ds.sizes["atom"] / own,
        "wall": wall,
        "GB": peak,
        "sampled": len(places),
    }


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Print the table; its rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--potential", default=str(SEED / "model"))
    parser.add_argument("--repeat", type=int, nargs="+", help="conventional cells along each axis")
    parser.add_argument("--what", choices=METHODS, nargs="+", default=list(METHODS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sample", type=int, help="compute so many domains of a frame only")
    given = parser.parse_args(arguments)
    size = SIZES[given.size]
    repeats = given.repeat or size["repeats"]
    rows = []
    context = multiprocessing.get_context("spawn")
    for what in given.what:
        with context.Pool(1) as pool:
            (one,) = pool.map(one_pass, [(given.potential, size["reference"], what)])
        each = 1e6 * one["seconds"] / one["atoms"]
        print(
            f"{what}: {one['atoms']:,} atoms in one pass: {one['seconds']:.2f} s of CPU time, "
            f"{each:.0f} µs an atom, {one['GB']:.2f} GB",
            flush=True,
        )
        for repeat in repeats:
            largest = size["largest"].get(what)
            if given.sample:
                with context.Pool(1) as pool:
                    task = (given.potential, repeat, what, largest or 0, given.sample)
                    (row,) = pool.map(sampled, [task])
            else:
                row = by_domains(given.potential, repeat, what, given.workers, largest)
            spent = 1e6 * row["seconds"] / row["atoms"]
            line = (
                f"{what}: {row['atoms']:,} atoms in {'x'.join(map(str, row['grid']))} domains: "
                f"{spent / row['processed']:.0f} µs a processed atom "
                f"({spent / row['processed'] / each:.2f} of one pass), "
                f"{row['processed']:.2f} processed per atom (halo factor {row['halo']:.2f}), "
                f"{spent:.0f} µs an atom ({spent / each:.2f} of one pass), "
                f"{row['wall']:.0f} s wall, {row['GB']:.2f} GB"
            )
            if given.sample:
                line += f", {row['sampled']} domains computed"
            elif repeat <= 2 or repeat == size["reference"]:
                with context.Pool(1) as pool:
                    (same,) = pool.map(one_pass, [(given.potential, repeat, what)])
                row["difference"] = float(np.abs(row["values"] - same["values"]).max())
                line += f", difference {row['difference']:.0e}"
            print(line, flush=True)
            rows.append({"what": what, "each": each, "spent": spent, **row})
    return rows


if __name__ == "__main__":
    main()
