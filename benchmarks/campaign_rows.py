"""A campaign's own density, gathering and selection on 10⁷ training rows and 10⁷ rows of walks.

    python benchmarks/campaign_rows.py DIRECTORY [--rows 10000000] [--walks 54] [--repeat 8]
        [--workers 2] [--backend local] [--components 4]

Prepares a campaign on S_sup of 8 x 8 x 8 cells (about 190,000 atoms), puts generated features of 16
numbers where its first model's would be (four elements, each a mixture of components of ordinary
random shape), and ends of walks with such features where its walks would leave them. Then the
campaign's own tasks run as its driver runs them: the density, gathering the walks, scores and
selection. Printed are the time of each, and the largest resident memory of every process meanwhile,
this one (the driver) included, and the rows per second and iteration of the fit beside those of a
fit in memory. What is in DIRECTORY already is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr

from mofal.campaign import paths
from mofal.campaign.directory import FACTS, Site
from mofal.campaign.given import start_potential
from mofal.campaign.loading import parse_config
from mofal.campaign.plan import ready
from mofal.campaign.prepare import examine, settle
from mofal.campaign.steps import closing, expand
from mofal.campaign.steps.density import shard_rows
from mofal.campaign.steps.walk import walk_place
from mofal.data import write_group
from mofal.data.ragged import structure_ids
from mofal.data.store import atomic_path
from mofal.density import PerElementDensity
from mofal.density.rows import threads
from mofal.schedule import Pools, ScheduleSettings

ELEMENTS = np.array([1, 6, 8, 40], np.int32)
D = 16


def content(options: argparse.Namespace) -> dict[str, Any]:
    """The campaign file."""
    return {
        "name": "rows",
        "seed": 1,
        "systems": {"sup": {"build": "S_sup", "repeat": [options.repeat] * 3}},
        "seed_data": {"example": "uio66-gfn1"},
        "potential": {"start": "example:uio66-gfn1"},
        "cycles": 1,
        "reference": {"name": "gfn1-xtb"},
        "density": {"components": options.components, "in_memory": options.in_memory},
        "exploration": {"walks": options.walks},
        "selection": {"clusters": 10, "ranking": "lowest_quantile"},
    }


def draw(numbers: np.ndarray, seed: int, k: int) -> np.ndarray:
    """Features (atom, 16) float32 of elements: mixtures of k components, whatever the seed."""
    truth = np.random.default_rng(0)
    rng = np.random.default_rng(seed)
    x = np.empty((numbers.size, D), np.float32)
    for z in np.union1d(ELEMENTS, numbers):
        means = 3.0 * truth.normal(size=(k, D))
        lower = np.eye(D) + 0.4 * truth.normal(size=(k, D, D))
        own = np.flatnonzero(numbers == z)
        which = rng.integers(k, size=own.size)
        for i in range(k):
            rows = own[which == i]
            x[rows] = means[i] + rng.normal(size=(rows.size, D)) @ lower[i].T
    return x


def prepare(place: Path, options: argparse.Namespace) -> Site:
    """A campaign that is about to fit its first density."""
    site = Site(place, parse_config(content(options)))
    if not (place / FACTS).exists():
        findings = examine(site)
        assert findings is not None
        place.mkdir(parents=True, exist_ok=True)
        settle(site, findings)
        start_potential(site.config).save(site.path(paths.model(0)))
    model_hash = start_potential(site.config).model_hash
    for part, rows in (("training", options.rows), ("validation", 10_000)):
        target = site.path(paths.place(1, f"{part}_features.zarr"))
        if not target.exists():
            ds = generated(rows, shard_rows(site), model_hash, options.components)
            write_group(ds, target, kind="features", rows_per_shard=shard_rows(site))
    return site


def generated(n: int, chunk: int, model_hash: str, k: int) -> xr.Dataset:
    """Lazy features of n atoms in structures of 1000."""
    import dask.array as da

    size = [min(chunk, n - a) for a in range(0, n, chunk)]
    numbers = da.from_array(np.resize(ELEMENTS, n), chunks=(tuple(size),))
    parts = [
        da.map_blocks(
            draw, numbers.blocks[i], i + 1, k, new_axis=1, chunks=((m,), (D,)), dtype=np.float32
        )
        for i, m in enumerate(size)
    ]
    count = np.full(-(-n // 1000), 1000)
    count[-1] = n - 1000 * (count.size - 1)
    index = np.repeat(np.arange(count.size), count)
    return xr.Dataset(
        {
            "features": (("atom", "feature"), da.concatenate(parts)),
            "numbers": ("atom", numbers),
            "n_atoms": ("structure", count),
            "structure_index": ("atom", da.from_array(index, chunks=(tuple(size),))),
            "structure_id": ("structure", [f"generated-{k}" for k in range(count.size)]),
            "system": ("structure", ["sup"] * count.size),
        },
        attrs={"model_hash": model_hash},
    )


def leave_walks(site: Site, n: int, model_hash: str, components: int) -> None:
    """What `n` walks would leave."""
    base = site.structure("sup")
    numbers = base["numbers"].values
    kept = ["numbers", "n_atoms", "structure_index", "structure_id", "system"]
    for k in range(n):
        out = walk_place(site, 1, "sup", k)
        if out.exists() or site.exists("cycle-001/sup/samples.zarr"):
            continue
        rng = np.random.default_rng(k)
        moved = base["positions"].values + 0.03 * rng.normal(size=base["positions"].shape)
        frame = base.assign(positions=(("atom", "xyz"), moved))
        frame["structure_id"] = ("structure", structure_ids(frame))
        features = frame[kept].assign(
            features=(("atom", "feature"), draw(numbers, 10_000 + k, components))
        )
        features.attrs = {"model_hash": model_hash}
        record = {"walk_status": ("walk", ["finished"]), "length_fs": ("walk", [1.0])}
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as temporary:
            write_group(frame, temporary / "frame.zarr")
            write_group(xr.Dataset(record), temporary / "walk.zarr", kind="table")
            trace = xr.Dataset({"time_fs": ("sample", [0.0])})
            write_group(trace, temporary / "trace.zarr", kind="table")
            write_group(features, temporary / "features.zarr", kind="features")


class Memory:
    """Largest resident memory of this process and of each that it started, by what it is."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(0.1):
            for process in (own, *own.children(recursive=True)):
                try:
                    words = process.cmdline()
                    name = "driver"
                    if process.pid != own.pid:
                        name = next(
                            (w.rpartition(".")[2] for w in words if w.startswith("mofal.sch")), ""
                        )
                    used = process.memory_info().rss / 1e9
                except psutil.Error:
                    continue
                if name:
                    self.peaks[name] = max(self.peaks.get(name, 0.0), used)

    def __str__(self) -> str:
        return ", ".join(f"{name} {used:.2f}" for name, used in sorted(self.peaks.items()))


def run(site: Site, pools: Pools, stage: str) -> float:
    """Run a stage as the driver does, its closing task included; seconds."""
    steps = [s for s in ready(site.steps(), site.exists) if s.stage == stage]
    if not steps:
        return 0.0
    begin = time.perf_counter()
    step = steps[0]
    outcomes = list(pools.run(expand(site, step)))
    last = closing(site, step, outcomes)
    outcomes += [] if last is None else list(pools.run([last]))
    for outcome in outcomes:
        assert outcome.ok, outcome.reason
    return time.perf_counter() - begin


def rate(density: PerElementDensity, seconds: float) -> float:
    """Rows a second and iteration of a fit (each pass serves every element that still runs)."""
    work = sum(density.counts_[z] * m.n_iter_ for z, m in density.mixtures_.items())
    return work / seconds


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run it; seconds and memory (GB) by stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--walks", type=int, default=54)
    parser.add_argument("--repeat", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", default="local")
    parser.add_argument("--in-memory", type=int, default=2_000_000)
    parser.add_argument("--components", type=int, default=4)
    options = parser.parse_args(argv)
    site = prepare(options.directory.absolute(), options)
    model_hash = start_potential(site.config).model_hash
    leave_walks(site, options.walks, model_hash, options.components)
    atoms = options.walks * int(site.structure("sup")["n_atoms"].values[0])
    print(
        f"{options.rows:,} training rows, {atoms:,} rows of {options.walks} walks; backend "
        f"{options.backend}, {options.workers} workers, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}",
        flush=True,
    )
    found: dict[str, float] = {}
    settings = ScheduleSettings(backend=options.backend, workers=options.workers)
    for stage in ("density", "walk", "select"):
        with Memory() as memory, Pools(settings, directory=site.root) as pools:
            found[stage] = run(site, pools, stage)
        print(f"{stage:8s} {found[stage]:7.1f} s   GB: {memory}", flush=True)
        found[f"{stage} GB"] = max(memory.peaks.values(), default=0.0)
    density = PerElementDensity.load(site.path("cycle-001/density.zarr"))
    lazy = rate(density, found["density"]) if found["density"] else float("nan")
    n = min(options.rows, 1_000_000)
    part = site.group("cycle-001/training_features.zarr")
    x, z = part["features"][:n].values, part["numbers"][:n].values
    begin = time.perf_counter()
    settings_ = {"n_components": options.components, "random_state": 0}
    memory_fit = PerElementDensity(**settings_).fit(x, z)
    here = rate(memory_fit, time.perf_counter() - begin)
    print(
        f"hash {density.density_hash}; {lazy:.3g} rows a second and iteration from shards, "
        f"{here:.3g} in memory ({n:,} rows, {threads()} threads): {100 * lazy / here:.0f} %"
    )
    return {**found, "rate": lazy, "rate in memory": here}


if __name__ == "__main__":
    main(sys.argv[1:])
