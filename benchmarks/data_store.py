"""Writing and reading groups of features, beside what xarray does by itself.

    python benchmarks/data_store.py [--size tiny|base|full] [--directory DIR]

Full size: 10^8 rows, 3.2 GB of features and 1.2 GB of the rest. The features are random numbers in
chunks that do not divide shards; the peer is `Dataset.to_zarr` with the same Dask chunks and no
shards, no checksums and no manifest. Ratios are of CPU time, all threads: on a busy machine wall
times say little. Peak memory is that of the process so far.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from mofal.data import check_group, open_group, select, write_group

SIZES = {"tiny": 20_000, "base": 5_000_000, "full": 100_000_000}
WIDTH = 8
ATOMS = 114
"""Atoms of a structure: the primitive cell of UiO-66."""


def features(rows: int, chunk: int) -> xr.Dataset:
    """Lazy features of `rows` atoms in structures of equal size."""
    structures = rows // ATOMS
    total = structures * ATOMS
    atom = da.arange(total, chunks=chunk)

    def block(index: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng(int(index[0]))
        return generator.normal(size=(len(index), WIDTH)).astype(np.float32)

    values = atom.map_blocks(block, new_axis=1, chunks=(atom.chunks[0], (WIDTH,)), dtype=np.float32)
    return xr.Dataset(
        {
            "numbers": ("atom", (atom % 5 + 1).astype(np.int32)),
            "n_atoms": ("structure", np.full(structures, ATOMS)),
            "structure_index": ("atom", atom // ATOMS),
            "features": (("atom", "feature"), values),
        }
    )


def timed(action: Callable[[], Any]) -> tuple[tuple[float, float], Any]:
    """Wall time and CPU time in seconds, and what the action returns."""
    wall, cpu = time.perf_counter(), time.process_time()
    out = action()
    return (time.perf_counter() - wall, time.process_time() - cpu), out


def peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def count_files(path: Path) -> int:
    """Number of files below a directory."""
    return sum(p.is_file() for p in path.rglob("*"))


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; print one line per step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--directory", help="where to write (default: a temporary directory)")
    options = parser.parse_args(argv)
    rows = SIZES[options.size]
    chunk = max(1000, rows // 129)
    root = Path(tempfile.mkdtemp(dir=options.directory))
    try:
        run(rows, chunk, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return 0


def run(rows: int, chunk: int, root: Path) -> None:
    """Write, check, open, read whole and read one structure; then the same with the peer."""
    ds = features(rows, chunk)
    megabytes = sum(ds[name].nbytes for name in ds.data_vars) / 1e6
    print(f"{ds.sizes['atom']:,} atoms, {megabytes:,.0f} MB; before: {peak_mb():,.0f} MB of memory")
    group = root / "ours.zarr"

    def line(
        what: str,
        seconds: tuple[float, float],
        peer: tuple[float, float] | None = None,
        size: float = megabytes,
    ) -> None:
        wall, cpu = seconds
        beside = ""
        if peer:
            beside = f"  peer {peer[0]:8.3f} s, {peer[1]:8.3f} s CPU  ratio {cpu / peer[1]:5.2f}"
        print(
            f"{what:28s} {wall:8.3f} s, {cpu:8.3f} s CPU {size / wall:7.0f} MB/s{beside}",
            flush=True,
        )

    seconds, _ = timed(lambda: write_group(ds, group, kind="features"))
    print(f"peak memory after writing {peak_mb():,.0f} MB, {count_files(group)} files")
    peer_path = root / "peer.zarr"
    encoding = {name: {"chunks": (chunk, *ds[name].shape[1:])} for name in ("features", "numbers")}
    encoding["structure_index"] = {"chunks": (chunk,)}
    peer, _ = timed(lambda: ds.to_zarr(peer_path, consolidated=False, encoding=encoding))
    line("write", seconds, peer)

    seconds, back = timed(lambda: open_group(group))
    peer, peer_back = timed(lambda: xr.open_zarr(peer_path, consolidated=False))
    line("open and check", seconds, peer)

    middle = ds.sizes["structure"] // 2
    seconds, one = timed(lambda: select(back, middle)["features"].compute())
    span = slice(middle * ATOMS, (middle + 1) * ATOMS)
    peer, peer_one = timed(lambda: peer_back["features"][span].compute())
    line("read one structure", seconds, peer, one.nbytes / 1e6)

    seconds, total = timed(lambda: float(back["features"].sum()))
    peer, peer_total = timed(lambda: float(peer_back["features"].sum()))
    line("read and add up all features", seconds, peer, back["features"].nbytes / 1e6)

    seconds, _ = timed(lambda: check_group(group, full=True))
    line("check every byte", seconds)
    print(f"peak memory at the end {peak_mb():,.0f} MB")
    if not np.array_equal(one, peer_one) or not np.isclose(total, peer_total, rtol=1e-3, atol=1.0):
        raise SystemExit("the two stores do not hold the same numbers")


if __name__ == "__main__":
    sys.exit(main())
