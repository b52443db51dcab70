"""A fit that is larger than memory: rows per second and peak memory, against rows in memory.

    python benchmarks/density_scale.py [--size tiny|full] [--rows N] [--iterations N]
                                       [--directory DIR] [--cluster]

Writes N rows of 16 float32 features of ten clusters as a group of the store (shards of 64 MB, Dask
chunk = shard), fits ten iterations of ten components to it, and prints time and memory for growing
parts of it, with the same iteration on rows in memory beside it. Each measurement runs in a process
of its own, so that its memory is its own; with --cluster, on a cluster of one-thread workers.
Rates are compared in wall time and, in one process, in processor time per row, which a busy machine
changes less. Parts of less than four shards are cut into four chunks, for the threads' sake. Then
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


Times = tuple[list[float], list[float]]


def _fit(x: Any, iterations: int) -> Times:
    """Wall and processor time of each iteration, seconds."""
    from mofal.density import GaussianMixture

    stamps: list[tuple[float, float]] = []

    def now(_: str = "") -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    model = GaussianMixture(N_COMPONENTS, max_iter=iterations, tol=0.0, random_state=0, **_start())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        now()
        model.fit(x, progress=now)
    # The first iteration is preceded by the survey, which is one pass more.
    wall, cpu = np.diff(stamps, axis=0).T.tolist()
    return wall, cpu


def _in_memory(n: int, iterations: int, queue: Any) -> None:
    queue.put((_fit(rows_of(n, 0), iterations), _peak()))


def _on_disk(path: Path, n: int, iterations: int, cluster: bool, queue: Any) -> None:
    import dask
    import xarray as xr

    from mofal.data import open_group

    x = open_group(path, check=False)["features"].data[:n]
    if n < 4 * x.chunks[0][0]:
        # What lies in one shard: four chunks of it, read on their own.
        rows = xr.open_zarr(path, consolidated=False, chunks=None)["features"][:n]
        x = rows.chunk(atom=-(-n // 4)).data
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
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says includes the parent's memory at the time of the fork.
        text = status.read_text()
        return int(text.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def apart(function: Any, *arguments: Any) -> tuple[Times, float]:
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


def read_rate(path: Path, n: int) -> float:
    """GB/s of reading the first n rows, checksums included, with as many threads as a fit."""
    import dask

    from mofal.data import open_group
    from mofal.density.rows import threads

    x = open_group(path, check=False)["features"].data[:n]
    begin = time.perf_counter()
    with dask.config.set(scheduler="threads", num_workers=threads()):
        x.map_blocks(lambda block: block[:1, :1], chunks=(1, 1), dtype=x.dtype).compute()
    return x.nbytes / 1e9 / (time.perf_counter() - begin)


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
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--cluster", action="store_true")
    options = parser.parse_args(argv)
    size = SIZES[options.size]
    n, shard = options.rows or size["rows"], size["shard"]
    iterations = max(2, options.iterations or size["iterations"])
    from mofal.density.rows import threads

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
        rate, per_cpu = (memory / float(np.median(t[1:])) for t in times)
        print(
            f"{iterations} iterations of {N_COMPONENTS} components in {N_FEATURES} dimensions\n"
            f"{'rows':>12s} {'where':>8s} {'iteration s':>12s} {'rows/s':>10s} {'of memory':>10s} "
            f"{'(CPU)':>8s} {'fit s':>8s} {'peak GB':>8s}"
        )
        found: dict[str, float] = {"in_memory": rate}

        def report(rows: int, where: str, times: Times, peak: float) -> float:
            per, cpu = (float(np.median(t[1:])) for t in times)
            of_cpu = "" if where == "cluster" else f"{100 * rows / cpu / per_cpu:.0f} %"
            print(
                f"{rows:12d} {where:>8s} {per:12.3f} {rows / per:10.2e} "
                f"{100 * rows / per / rate:8.0f} % {of_cpu:>8s} {sum(times[0]):8.1f} {peak:8.2f}",
                flush=True,
            )
            return per

        report(memory, "memory", times, peak)
        parts = sorted({n, *(k for k in (10**5, 10**6, 10**7) if k < n)})
        where = "cluster" if options.cluster else "disk"
        per_iteration = []
        for rows in parts:
            times, peak = apart(_on_disk, path, rows, iterations, options.cluster)
            per_iteration.append(report(rows, where, times, peak))
            found |= {"on_disk": rows / per_iteration[-1], "peak_GB": peak}
        if len(parts) > 1:
            slope = np.polyfit(np.log(parts), np.log(per_iteration), 1)[0]
            print(f"time grows like rows to the power {slope:.2f}")
        per_task = seconds_per_task(size["tasks"])
        print(f"a scheduler takes {1e3 * per_task:.2f} ms per task (chunks of one row)")
        reading = read_rate(path, min(n, 10**7))
        print(f"reading, what lies in the cache of the system included: {reading:.2f} GB/s")
        predict(rate / threads(), per_task, reading / threads())
        return found
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main(sys.argv[1:])
