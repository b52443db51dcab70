"""A fit that is larger than memory: rows per second and peak memory, against rows in memory.

    python benchmarks/density_scale.py [--size tiny|full] [--rows N] [--directory DIR] [--cluster]

Writes N rows of 16 float32 features of ten clusters as a group of the store (shards of 64 MB, Dask
chunk = shard), fits ten iterations of ten components to it, and prints time and memory for growing
parts of it, with the same iteration on rows in memory beside it. Each measurement runs in a process
of its own, so that its memory is its own; with --cluster, on a cluster of one-thread workers. Then
the time per task that a scheduler takes is measured with chunks of one row, and with it what an
iteration over 10¹⁰ rows would take. The group is deleted at the end.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

N_FEATURES, N_COMPONENTS = 16, 10
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"rows": 40_000, "shard": 5_000, "iterations": 2, "tasks": 64},
    "full": {"rows": 100_000_000, "shard": 1_000_000, "iterations": 10, "tasks": 4000},
}
IN_MEMORY = 2_000_000


def rows_of(n: int, seed: int) -> np.ndarray:
    """Rows of ten overlapping clusters, (n, 16) float32."""
    clusters = np.random.default_rng(0)
    centres = 2.0 * clusters.normal(size=(N_COMPONENTS, N_FEATURES))
    turn = np.eye(N_FEATURES) + 0.3 * clusters.normal(size=(N_FEATURES, N_FEATURES))
    rng = np.random.default_rng([1, seed])
    x = rng.standard_normal(size=(n, N_FEATURES), dtype=np.float32) @ turn.astype(np.float32)
    x += centres.astype(np.float32)[rng.integers(N_COMPONENTS, size=n)]
    return x


def write(path: Path, n: int, shard: int) -> None:
    """Write the group, shard by shard."""
    import dask
    import dask.array as da
    import xarray as xr

    from mofal.data import write_group

    sizes = [min(shard, n - a) for a in range(0, n, shard)]
    blocks = [
        da.from_delayed(dask.delayed(rows_of)(size, i), (size, N_FEATURES), np.float32)
        for i, size in enumerate(sizes)
    ]
    ds = xr.Dataset({"features": (("atom", "feature"), da.concatenate(blocks))})
    write_group(ds, path, kind="table", rows_per_shard=shard)


def _start() -> dict[str, Any]:
    """Where the fit begins: near the clusters, so that every iteration has the same work."""
    clusters = np.random.default_rng(0)
    centres = 2.0 * clusters.normal(size=(N_COMPONENTS, N_FEATURES))
    return {
        "weights_init": np.full(N_COMPONENTS, 1.0 / N_COMPONENTS),
        "means_init": centres + 0.3,
        "precisions_init": np.broadcast_to(
            np.eye(N_FEATURES), (N_COMPONENTS, N_FEATURES, N_FEATURES)
        ),
    }


def _fit(x: Any, iterations: int) -> list[float]:
    """Seconds of each iteration."""
    from mofal.density import GaussianMixture

    stamps: list[float] = []
    model = GaussianMixture(N_COMPONENTS, max_iter=iterations, tol=0.0, random_state=0, **_start())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin = time.perf_counter()
        model.fit(x, progress=lambda _: stamps.append(time.perf_counter()))
    # The first iteration starts after the survey; its time is that of the others.
    return [stamps[0] - begin, *np.diff(stamps)]


def _in_memory(n: int, iterations: int, queue: Any) -> None:
    queue.put((_fit(rows_of(n, 0), iterations), _peak()))


def _on_disk(path: Path, n: int, iterations: int, cluster: bool, queue: Any) -> None:
    import dask

    from mofal.data import open_group

    x = open_group(path, check=False)["features"].data[:n]
    if not cluster:
        from mofal.density.rows import threads

        with dask.config.set(scheduler="threads", num_workers=threads()):
            queue.put((_fit(x, iterations), _peak()))
        return
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as pool,
        Client(pool) as client,
    ):
        times = _fit(x, iterations)
        queue.put((times, _peak() + sum(client.run(_peak).values())))


def _peak() -> float:
    """Largest resident memory of this process so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def apart(function: Any, *arguments: Any) -> tuple[list[float], float]:
    """Run in a fresh process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=function, args=(*arguments, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def seconds_per_task(tasks: int) -> float:
    """Time that a scheduler takes for one task of an iteration: chunks of one row."""
    import dask.array as da
    from distributed import Client, LocalCluster

    from mofal.density.em import em_chunk, em_combine, em_step, start_state
    from mofal.density.rows import DaskRows
    from mofal.density.start import Spec
    from mofal.density.survey import take

    x = da.from_array(rows_of(tasks, 0), chunks=(1, N_FEATURES))
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
        ) as pool,
        Client(pool),
    ):
        rows = DaskRows(x.persist())
        spec = Spec(N_COMPONENTS, "full", np.full(N_FEATURES, 1e-6))
        settings = ({0: [spec]}, 0.0, 9, None)
        state = rows.keep(rows.apply(start_state, take(rows, 0), *map(rows.put, settings)))
        begin = time.perf_counter()
        rows.get(rows.apply(em_step, state, rows.reduce(em_chunk, em_combine, state)))
        return (time.perf_counter() - begin) / tasks


def predict(rate: float, per_task: float, read_rate: float) -> None:
    """An iteration over 10¹⁰ rows: what each part takes, from what was measured here."""
    rows, shard, workers = 1e10, 1e6, 100
    chunks = rows / shard
    parts = {
        "arithmetic, 100 workers of one core": rows / (rate * workers),
        "scheduler, one task after the other": chunks * (1 + 1 / 15) * per_task,
        f"reading 640 GB, {read_rate:.1f} GB/s per worker": 640 / read_rate / workers,
        "reading 640 GB, 10 GB/s in all (a shared disk)": 64.0,
    }
    print(f"\n10¹⁰ rows in {chunks:.0f} chunks on {workers} workers, seconds per iteration:")
    for name, value in parts.items():
        print(f"  {name:50s} {value:8.1f}")


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the benchmark; what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=sorted(SIZES), default="full")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--cluster", action="store_true")
    options = parser.parse_args(argv)
    size = SIZES[options.size]
    n, shard, iterations = options.rows or size["rows"], size["shard"], size["iterations"]
    directory = Path(tempfile.mkdtemp(dir=options.directory))
    free = shutil.disk_usage(directory).free
    need = 4 * N_FEATURES * n * 1.05
    if free < 1.2 * need:
        raise SystemExit(f"{directory} has {free / 1e9:.0f} GB free, {1.2 * need / 1e9:.0f} needed")
    try:
        path = directory / "features.zarr"
        begin = time.perf_counter()
        write(path, n, shard)
        print(f"wrote {n:.0e} rows in {time.perf_counter() - begin:.0f} s", flush=True)
        memory = min(n, IN_MEMORY)
        times, peak = apart(_in_memory, memory, iterations)
        rate = memory / float(np.median(times[1:]))
        print(
            f"{'rows':>12s} {'where':>8s} {'iteration s':>12s} {'rows/s':>10s} {'of memory':>10s} "
            f"{'fit s':>8s} {'peak GB':>8s}"
        )
        found: dict[str, float] = {"in_memory": rate}

        def report(rows: int, where: str, times: list[float], peak: float) -> None:
            per = float(np.median(times[1:]))
            print(
                f"{rows:12d} {where:>8s} {per:12.3f} {rows / per:10.2e} "
                f"{100 * rows / per / rate:8.0f} % {sum(times):8.1f} {peak:8.2f}",
                flush=True,
            )

        report(memory, "memory", times, peak)
        parts = sorted({n, *(n // 10**k for k in range(1, 4) if n // 10**k >= 4 * shard)})
        per_iteration = []
        for rows in parts:
            times, peak = apart(_on_disk, path, rows, iterations, options.cluster)
            report(rows, "disk", times, peak)
            per_iteration.append(float(np.median(times[1:])))
            found |= {"on_disk": rows / per_iteration[-1], "peak_GB": peak}
        if len(parts) > 1:
            slope = np.polyfit(np.log(parts), np.log(per_iteration), 1)[0]
            print(f"time grows like rows to the power {slope:.2f}")
        per_task = seconds_per_task(size["tasks"])
        print(f"a scheduler takes {1e3 * per_task:.2f} ms per task (chunks of one row)")
        predict(rate / 2, per_task, 0.5)
        return found
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
