"""Cost of durability: records written, looked up and read, against the label they hold.

    python benchmarks/reference_records.py --size small

Prints the time of one record written to disk (flushed), of one looked up that is there and one that
is not, and of one GFN1-xTB label of the same structure, and the ratio of the first to the last.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

SIZES = {"tiny": (10, 1), "small": (500, 2), "large": (10000, 4)}


def timed(n: int, work: Callable[[int], object]) -> float:
    """Seconds per call over `n` calls."""
    start = time.perf_counter()
    for i in range(n):
        work(i)
    return (time.perf_counter() - start) / n


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    given = parser.parse_args(argv)
    from ase.build import bulk

    from mofal.reference import LabelCache, get_reference

    n, repeat = SIZES[given.size]
    atoms = bulk("C", cubic=True).repeat(repeat)
    atoms.rattle(0.02, seed=1)
    reference = get_reference("gfn1-xtb")
    with tempfile.TemporaryDirectory() as directory:
        attempt = reference.calculate(atoms, directory=directory)
        if not attempt.converged:
            raise SystemExit(f"no label to keep: {attempt.reason}")
        cache = LabelCache(directory)
        written = timed(n, lambda i: cache.put(replace(attempt, structure_id=f"{i:020d}")))
        found = timed(n, lambda i: cache.get(f"{i:020d}", attempt.level_hash))
        missed = timed(n, lambda i: cache.get(f"x{i:019d}", attempt.level_hash))
        everything = timed(1, lambda _: sum(1 for _ in cache.records()))
    print(f"{len(atoms)} atoms, {n} records; milliseconds each")
    print(f"written and flushed {1e3 * written:8.2f}")
    print(f"looked up, there    {1e3 * found:8.2f}")
    print(f"looked up, not      {1e3 * missed:8.2f}")
    print(f"read in a sweep     {1e3 * everything / n:8.2f}")
    print(f"label (GFN1-xTB)    {1e3 * attempt.wall_time_s:8.2f}")
    print(f"record / label      {written / attempt.wall_time_s:8.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
